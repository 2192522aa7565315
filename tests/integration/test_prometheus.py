"""A real Prometheus scrapes a real exposition of a project's history: all rules and all panels are asked of it."""

from __future__ import annotations

import itertools
import re
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import prometheus_client
import pytest
import requests

from mlops_ray.config import load_project
from mlops_ray.monitoring.on_prometheus import Exposition
from mlops_ray.monitoring.prometheus.grafana import dashboard
from mlops_ray.monitoring.prometheus.rules import rules, text
from mlops_ray.state import Store
from tests import watched
from tests.prometheus import Server, promtool, running

ROOT = Path(__file__).parents[2]
PROJECT = load_project([ROOT / "configs/flights.yaml"], env={})
DASHBOARD = dashboard(PROJECT)
RULES = [rule for group in rules(PROJECT, "-c configs/flights.yaml")["groups"] for rule in group["rules"]]
# What the history of `watched` is about to alarm for: their `for` is longer than a test.
EXPECTED = {
    "MlopsRayCanaryFails",
    "MlopsRayCollectorBehind",
    "MlopsRayDrift",
    "MlopsRayRetrainFailed",
    "MlopsRayRowsNotCaptured",
    "MlopsRayScoringSlow",
    "MlopsRayUncalibrated",
}


@dataclass(frozen=True)
class World:
    """A project that is exposed, and the server that looks at it."""

    metrics: str
    server: Server


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    folder = tmp_path_factory.mktemp("prometheus")
    store = Store.open(f"sqlite:///{folder}/state.db")
    watched.lived(store, PROJECT, time.time())
    registry = prometheus_client.CollectorRegistry()
    registry.register(Exposition(store, PROJECT.project))
    exporter, thread = prometheus_client.start_http_server(0, addr="127.0.0.1", registry=registry)
    rule_file = folder / "rules.yaml"
    rule_file.write_text(text(rules(PROJECT, "-c configs/flights.yaml")))
    target = f"127.0.0.1:{exporter.server_port}"
    try:
        with running(folder, target, rule_file) as server:
            rate = 'rate(mlops_ray_rows_total{version="4"}[5m]) > 0'
            server.wait_for("mlops_ray_rows_total", 4)
            watched.answered(store, PROJECT, time.time(), 100)
            server.wait_for(rate)
            server.wait_for("project_version:mlops_ray_score_seconds:p99_rate5m > 0", 2)
            server.wait_for('ALERTS{alertname="MlopsRayCanaryFails"}')
            yield World(f"http://{target}/metrics", server)
    finally:
        exporter.shutdown()
        exporter.server_close()
        thread.join()
        store.close()


def test_promtool_finds_nothing_to_lint_in_a_scrape(world: World) -> None:
    scraped = requests.get(world.metrics, timeout=30).text
    checked = promtool("check", "metrics", said=scraped)
    assert (checked.returncode, checked.stdout + checked.stderr) == (0, "")
    assert "mlops_ray_score_seconds_bucket" in scraped


def test_label_sets_are_few(world: World) -> None:
    scraped = requests.get(world.metrics, timeout=30).text
    series = [line for line in scraped.splitlines() if not line.startswith("#")]
    features = len(PROJECT.features.inputs)
    assert len(series) < 200 + 3 * features
    assert {found for line in series for found in re.findall(r'version="(\d+)"', line)} == {"1", "2", "3", "4"}


def test_every_rule_is_evaluated_and_every_recorded_series_is_there(world: World) -> None:
    found = [rule for group in world.server.get("rules")["groups"] for rule in group["rules"]]
    assert len(found) == len(RULES)
    assert not [(rule["name"], rule.get("lastError")) for rule in found if rule["health"] != "ok"]
    recorded = [rule["record"] for rule in RULES if "record" in rule]
    assert not [name for name in recorded if not world.server.series(name)]


def test_the_alerts_of_this_history_are_the_ones_that_it_deserves(world: World) -> None:
    found = world.server.get("alerts")["alerts"]
    assert {alert["labels"]["alertname"] for alert in found} == EXPECTED
    assert {alert["labels"]["project"] for alert in found} == {"flights"}
    for alert in found:
        said = " ".join(alert["annotations"].values())
        assert "<" not in said, said  # "<error expanding template>", "<no value>"
        assert "{{" not in said, said


def targets() -> list[Any]:
    return [
        pytest.param(panel, target, id=f"{panel['title']}:{target['refId']}")
        for panel in DASHBOARD["panels"]
        for target in panel.get("targets", ())
    ]


def asked(expr: str) -> str:
    """As Grafana fills in the dashboard's variable."""
    assert set(re.findall(r"\$\w+", expr)) <= {"$project"}, expr
    return expr.replace("$project", PROJECT.project)


def legend(template: str, labels: dict[str, str]) -> str:
    """As Grafana writes it. Raises: KeyError for a label that the series lacks."""
    return re.sub(r"{{(\w+)}}", lambda found: labels[found[1]], template)


@pytest.mark.parametrize(("panel", "target"), targets())
def test_every_query_of_the_dashboard_finds_series(world: World, panel: dict[str, Any], target: dict[str, Any]) -> None:
    expr, now = asked(target["expr"]), time.time()
    found = world.server.series(expr)
    assert found
    ranged = world.server.get("query_range", query=expr, start=str(now - 60), end=str(now), step="1")["result"]
    assert ranged
    # Two lines of one name cannot be told apart.
    legends = [legend(target["legendFormat"], each["metric"]) for each in found]
    assert panel["type"] == "table" or len(set(legends)) == len(legends)


def test_annotations_and_variables_parse(world: World) -> None:
    for annotation in DASHBOARD["annotations"]["list"]:
        world.server.get("query", query=asked(annotation["target"]["expr"]))
    assert world.server.get("label/project/values") == ["flights"]


def test_nothing_names_what_is_not_exported(world: World) -> None:
    """Neither rules nor panels ask for a metric that a scrape does not yield."""
    scraped = requests.get(world.metrics, timeout=30).text
    exported = set(re.findall(r"^(mlops_ray_\w+)", scraped, flags=re.M))
    exprs = [rule["expr"] for rule in RULES]
    exprs += [target["expr"] for panel in DASHBOARD["panels"] for target in panel.get("targets", ())]
    named = set(itertools.chain.from_iterable(re.findall(r"(?<![:\w])(mlops_ray_\w+)\{", expr) for expr in exprs))
    assert named <= exported, named - exported
    drawn = {
        name
        for panel in DASHBOARD["panels"]
        for target in panel.get("targets", ())
        for name in re.findall(r"mlops_ray_\w+", target["expr"])
    }
    families = {re.sub("_(bucket|sum|count)$", "", name) for name in exported}
    unseen = families - {re.sub("_(bucket|sum|count)$", "", name) for name in drawn}
    assert unseen <= {"mlops_ray_rollout_looked_seconds", "mlops_ray_rollout_end_seconds"} | {
        "mlops_ray_retrain_updated_timestamp_seconds",
        "mlops_ray_detector_window_end_seconds",
    }, unseen
