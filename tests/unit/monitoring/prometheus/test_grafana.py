"""The dashboard's JSON, held against Grafana's model as far as that goes without Grafana.

Fields are those of `Dashboard`, `Panel`, `VariableModel` and `AnnotationQuery` in @grafana/schema 13.2; units those of
@grafana/data. That every query finds series is tested on a real Prometheus, in tests/integration/test_prometheus.py.
"""

from __future__ import annotations

import itertools
import json
import re
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from mlops_ray.cli import app
from mlops_ray.config import Project, load_project
from mlops_ray.monitoring.prometheus.grafana import SCHEMA_VERSION, dashboard, uid
from tests import fakes

ROOT = Path(__file__).parents[4]
CONFIG = str(ROOT / "configs/flights.yaml")
DASHBOARD_FIELDS = {
    "annotations",
    "description",
    "editable",
    "fiscalYearStartMonth",
    "graphTooltip",
    "id",
    "links",
    "liveNow",
    "panels",
    "refresh",
    "schemaVersion",
    "tags",
    "templating",
    "time",
    "timepicker",
    "timezone",
    "title",
    "uid",
    "version",
    "weekStart",
}
PANEL_FIELDS = {"datasource", "description", "fieldConfig", "gridPos", "id", "options", "targets", "title", "type"}
VARIABLE_FIELDS = {
    "current",
    "datasource",
    "hide",
    "includeAll",
    "label",
    "multi",
    "name",
    "options",
    "query",
    "refresh",
    "regex",
    "sort",
    "type",
}
KINDS = {"bargauge", "heatmap", "state-timeline", "stat", "status-history", "table", "timeseries"}
UNITS = {"cps", "dtdurations", "none", "percentunit", "s", "short"}
PROJECTS = [
    load_project([CONFIG], env={}),
    load_project([ROOT / "configs/quickstart.yaml"], env={}),
    fakes.project(),
    fakes.project(task="regression"),
    fakes.project(project="p" * 40, task="multiclass"),
]


@pytest.fixture(params=PROJECTS, ids=lambda p: f"{p.project[:10]}-{p.task}")
def project(request: pytest.FixtureRequest) -> Project:
    found: Project = request.param
    return found


def panels(project: Project) -> list[dict[str, Any]]:
    return [panel for panel in dashboard(project)["panels"] if panel["type"] != "row"]


def test_it_is_a_dashboard(project: Project) -> None:
    made = dashboard(project)
    assert set(made) <= DASHBOARD_FIELDS
    assert made["schemaVersion"] == SCHEMA_VERSION
    assert project.project in made["title"]
    assert re.fullmatch(r"[a-zA-Z0-9_-]{8,40}", made["uid"])
    assert made["id"] is None  # Grafana gives one


def test_the_same_project_gives_the_same_bytes_and_uid(project: Project) -> None:
    assert json.dumps(dashboard(project)) == json.dumps(dashboard(project))
    assert uid(project) == uid(project.model_copy(update={"seed": 99}))


def test_no_two_projects_share_a_uid() -> None:
    names = ["a", "b", "p" * 40, "p" * 39 + "q", "p" * 30, "p" * 31]
    assert len({uid(fakes.project(project=name)) for name in names}) == len(names)


def test_panels_have_numbers_places_and_fields_of_their_own(project: Project) -> None:
    every = dashboard(project)["panels"]
    assert [panel["id"] for panel in every] == list(range(1, len(every) + 1))
    taken: set[tuple[int, int]] = set()
    for panel in every:
        place = panel["gridPos"]
        cells = {(place["x"] + dx, place["y"] + dy) for dx in range(place["w"]) for dy in range(place["h"])}
        assert not cells & taken, panel["title"]
        assert place["x"] >= 0
        assert place["x"] + place["w"] <= 24
        taken |= cells
    for panel in panels(project):
        assert set(panel) == PANEL_FIELDS
        assert panel["type"] in KINDS
        assert panel["description"]
        assert panel["fieldConfig"]["defaults"]["unit"] in UNITS
        for override in panel["fieldConfig"]["overrides"]:
            assert override["matcher"]["id"] == "byRegexp"
            re.compile(override["matcher"]["options"].strip("/"))
    titles = [panel["title"] for panel in every]
    assert len(set(titles)) == len(titles)


def test_rows_show_what_an_operator_asks_for() -> None:
    rows = [panel["title"] for panel in dashboard(PROJECTS[0])["panels"] if panel["type"] == "row"]
    assert rows == [
        "At a glance",
        "Traffic",
        "Errors",
        "Time in the predictor",
        "Drift",
        "Quality",
        "Labels",
        "Rollout",
        "Retraining and the loop itself",
    ]


def test_queries_are_whole_and_of_the_chosen_project_and_source(project: Project) -> None:
    for panel in panels(project):
        letters = [target["refId"] for target in panel["targets"]]
        assert letters
        assert letters == sorted(set(letters))
        for target in panel["targets"]:
            assert target["datasource"] == panel["datasource"] == {"type": "prometheus", "uid": "${datasource}"}
            assert target["expr"].count('project="$project"') == target["expr"].count("{")
            assert target["instant"] is not target["range"]


def test_thresholds_rise(project: Project) -> None:
    for panel in panels(project):
        steps = panel["fieldConfig"]["defaults"].get("thresholds", {}).get("steps", [])
        values = [step["value"] for step in steps]
        assert not values or values[0] is None
        assert all(a < b for a, b in itertools.pairwise(values[1:]))


def test_variables_choose_source_and_project(project: Project) -> None:
    source, mine = dashboard(project)["templating"]["list"]
    assert (source["name"], source["type"], source["query"]) == ("datasource", "datasource", "prometheus")
    assert (mine["name"], mine["type"], mine["current"]["value"]) == ("project", "query", project.project)
    assert {*source, *mine} <= VARIABLE_FIELDS


def test_no_host_is_named(project: Project) -> None:
    assert "://" not in json.dumps(dashboard(project))


# --- the commands ---


def test_the_command_prints_or_writes_what_grafana_imports(tmp_path: Path) -> None:
    printed = CliRunner().invoke(app, ["monitoring", "dashboard", "-c", CONFIG])
    assert printed.exit_code == 0
    assert json.loads(printed.stdout) == dashboard(PROJECTS[0])
    file = tmp_path / "flights.json"
    written = CliRunner().invoke(app, ["monitoring", "dashboard", "-c", CONFIG, "-o", str(file), "--json"])
    assert json.loads(written.stdout)["uid"] == "mlops-ray-flights"
    assert file.read_text() == printed.stdout


def test_the_command_for_rules(tmp_path: Path) -> None:
    printed = CliRunner().invoke(app, ["monitoring", "rules", "-c", CONFIG])
    as_json = CliRunner().invoke(app, ["monitoring", "rules", "-c", CONFIG, "--json"])
    assert printed.stdout.startswith("groups:\n")
    assert [group["name"] for group in json.loads(as_json.stdout)["groups"]] == [
        "mlops_ray flights recorded",
        "mlops_ray flights alerts",
    ]
    assert f"mlops-ray status -c {CONFIG}" in " ".join(printed.stdout.split())
    file = tmp_path / "rules.yaml"
    written = CliRunner().invoke(app, ["monitoring", "rules", "-c", CONFIG, "-o", str(file)])
    assert "22 alerts" in written.stdout
    assert file.read_text() == printed.stdout


@pytest.mark.parametrize("verb", ["rules", "dashboard"])
def test_mistakes_are_said_before_any_work(verb: str, tmp_path: Path) -> None:
    nowhere = CliRunner().invoke(app, ["monitoring", verb, "-c", CONFIG, "-o", str(tmp_path / "no/file")])
    assert nowhere.exit_code == 2
    wrong = tmp_path / "wrong.yaml"
    wrong.write_text("project: 5\n")
    refused = CliRunner().invoke(app, ["monitoring", verb, "-c", str(wrong)])
    assert refused.exit_code
    assert "project" in str(refused.exception)
