"""The rule file, by Prometheus' own promtool: it checks, each alert fires on what it is about and on nothing else."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import typer.main
import yaml

from mlops_ray.cli import app
from mlops_ray.config import Project, load_project
from mlops_ray.monitoring.prometheus.promql import duration, over
from mlops_ray.monitoring.prometheus.rules import rules, text
from tests import fakes
from tests.prometheus import promtool

ROOT = Path(__file__).parents[4]
FILES = "-c configs/flights.yaml"
CONFIGS = sorted((ROOT / "configs").glob("*.yaml"))


@pytest.fixture(scope="module")
def flights() -> Project:
    return load_project([ROOT / "configs/flights.yaml"], env={})


def alerts_of(project: Project) -> dict[str, dict[str, Any]]:
    return {
        rule["alert"]: rule for group in rules(project, FILES)["groups"] for rule in group["rules"] if "alert" in rule
    }


@pytest.mark.parametrize("path", CONFIGS, ids=lambda p: p.name)
def test_promtool_finds_nothing_wrong_with_the_rules_of_any_project(path: Path, tmp_path: Path) -> None:
    file = tmp_path / "rules.yaml"
    file.write_text(text(rules(load_project([path], env={}), f"-c {path}")))
    checked = promtool("check", "rules", str(file))
    assert checked.returncode == 0, checked.stdout + checked.stderr
    assert "SUCCESS" in checked.stdout


def test_the_same_project_gives_the_same_text() -> None:
    assert text(rules(fakes.project(), FILES)) == text(rules(fakes.project(), FILES))


def test_recorded_names_are_level_metric_operations(flights: Project) -> None:
    recorded = [
        rule["record"] for group in rules(flights, FILES)["groups"] for rule in group["rules"] if "record" in rule
    ]
    assert len(set(recorded)) == len(recorded)
    assert all(re.fullmatch(r"[a-z_]+:mlops_ray_[a-z_]+:[a-z0-9_]+", name) for name in recorded), recorded


def test_every_alert_says_how_bad_it_is_what_to_do_and_which_command_tells_more(flights: Project) -> None:
    for name, rule in alerts_of(flights).items():
        assert rule["labels"]["severity"] in ("critical", "warning", "info"), name
        assert "flights" in rule["annotations"]["summary"], name
        assert "`mlops-ray " in rule["annotations"]["description"], name


def test_the_commands_that_alerts_name_are_commands(flights: Project) -> None:
    for rule in alerts_of(flights).values():
        for code in re.findall(r"`mlops-ray ([^`]+)`", rule["annotations"]["description"]):
            words = shlex.split(code.replace("{{ $labels.version }}", "4"))
            here: Any = typer.main.get_command(app)
            while hasattr(here, "commands"):
                here = here.commands[words.pop(0)]
            if words:  # `mlops-ray approve`, which needs more than an alert knows, stands without any
                here.make_context("", words)


def test_thresholds_are_the_project_files() -> None:
    plan = {"step_max_s": 7200, "step_min_s": 0, "analyses": [{"metric": "failures", "margin": 0.123}]}
    mine = fakes.project(
        rollout=plan, retraining={"max_failures": 7, "timeout_s": 1000}, capture={"commit_idle_s": 300}
    )
    found = alerts_of(mine)
    assert "> 7200" in found["MlopsRayRolloutUndecided"]["expr"]
    assert "> 0.123" in found["MlopsRayCanaryFails"]["expr"]
    assert "[20m]" in found["MlopsRayCanaryFails"]["expr"]
    assert ">= 7" in found["MlopsRayRetrainBreakerOpen"]["expr"]
    assert "> 1300" in found["MlopsRayRetrainOverdue"]["expr"]
    assert (over(mine), over(fakes.project())) == ("20m", "5m")


def test_the_example_configuration_is_one() -> None:
    checked = promtool("check", "config", "--syntax-only", str(ROOT / "deploy/prometheus.yml"))
    assert checked.returncode == 0, checked.stdout + checked.stderr


def test_alerts_are_the_documented_ones(flights: Project) -> None:
    text = (ROOT / "docs/monitoring.md").read_text(encoding="utf-8")
    found = alerts_of(flights)
    assert set(re.findall(r"`(MlopsRay\w+)`", text)) == found.keys()
    for severity in ("critical", "warning"):
        table = text.partition(f"| {severity} | fires when |")[2].partition("\n\n")[0]
        told = set(re.findall(r"`(MlopsRay\w+)`", table))
        assert told == {name for name, rule in found.items() if rule["labels"]["severity"] == severity}


def test_spans_in_words() -> None:
    assert [duration(s) for s in (0, 90, 300, 7200, 604_800, 90.4)] == ["0s", "90s", "5m", "2h", "7d", "90s"]


# --- which alert fires when, on two hours of series a minute apart ---

# A project that is well: time is that of the test, from 0.
WELL = {
    "mlops_ray_watermark_seconds{}": "1000000+60x120",
    "mlops_ray_pending_seconds{}": "1000060+60x120",
    "mlops_ray_decision_time_seconds{}": "1000000+60x120",
    "mlops_ray_arrival_timestamp_seconds{}": "1+60x120",
    'mlops_ray_lease_expiry_timestamp_seconds{lease="controller"}': "20+60x120",
    'mlops_ray_rows_total{version="3"}': "0+600x120",
    'mlops_ray_score_seconds_bucket{version="3",le="1.0"}': "0+600x120",
    'mlops_ray_score_seconds_bucket{version="3",le="10.0"}': "0+600x120",
    'mlops_ray_score_seconds_bucket{version="3",le="+Inf"}': "0+600x120",
    'mlops_ray_canary_rows_total{version="4"}': "0+600x120",
    'mlops_ray_canary_failures_total{version="4",reason="deadline"}': "0+1x120",
    'mlops_ray_uncaptured_rows_total{reason="sampled"}': "0+60x120",
    'mlops_ray_uncaptured_rows_total{reason="disk"}': "7x120",
    "mlops_ray_label_seconds{}": "900000+60x120",
    "mlops_ray_label_coverage{}": "0.97x120",
    'mlops_ray_detector_window_end_seconds{detector="drift"}': "950000x120",
    'mlops_ray_detector_state{detector="drift",state="alarm"}': "0x120",
    'mlops_ray_detector_state{detector="drift",state="ok"}': "1x120",
    'mlops_ray_detector_state{detector="quality",state="uncalibrated"}': "0x120",
    'mlops_ray_rollout_since_seconds{version="4",phase="ramping"}': "950000x120",
    'mlops_ray_rollout_end_seconds{phase="promoted"}': "990000x120",
    'mlops_ray_rollout_end_seconds{phase="rolled back"}': "500000x120",
    'mlops_ray_retrain_updated_timestamp_seconds{status="succeeded"}': "0x120",
    "mlops_ray_retrain_failures{}": "2x120",
}
ILL = {
    "MlopsRayMonitorMissing": dict.fromkeys(WELL, "_x120"),
    "MlopsRayMonitorStalled": {"mlops_ray_decision_time_seconds{}": "1000000x120"},
    "MlopsRayControllerSilent": {'mlops_ray_lease_expiry_timestamp_seconds{lease="controller"}': "20x120"},
    "MlopsRayCollectorBehind": {
        "mlops_ray_watermark_seconds{}": "1000000x120",
        "mlops_ray_decision_time_seconds{}": "1000000x120",
    },
    "MlopsRayNoTraffic": {"mlops_ray_arrival_timestamp_seconds{}": "1x120"},
    "MlopsRayRowsNotCaptured": {'mlops_ray_uncaptured_rows_total{reason="disk"}': "7+1x120"},
    "MlopsRayScoringSlow": {
        'mlops_ray_score_seconds_bucket{version="3",le="1.0"}': "0+590x120",
    },
    "MlopsRayLabelsLate": {"mlops_ray_label_seconds{}": "800000x120"},
    "MlopsRayLabelCoverageLow": {"mlops_ray_label_coverage{}": "0.3x120"},
    "MlopsRayDrift": {'mlops_ray_detector_state{detector="drift",state="alarm"}': "1x120"},
    "MlopsRayQuality": {'mlops_ray_detector_state{detector="quality",state="alarm"}': "1x120"},
    "MlopsRayEstimatedQuality": {'mlops_ray_detector_state{detector="estimated",state="alarm"}': "1x120"},
    "MlopsRayDetector": {'mlops_ray_detector_state{detector="sequential",state="alarm"}': "1x120"},
    "MlopsRayUncalibrated": {'mlops_ray_detector_state{detector="quality",state="uncalibrated"}': "1x120"},
    "MlopsRayWindowsOverdue": {
        "mlops_ray_watermark_seconds{}": "9000000+60x120",
        "mlops_ray_pending_seconds{}": "9000060+60x120",
        "mlops_ray_decision_time_seconds{}": "9000000+60x120",
        "mlops_ray_label_seconds{}": "8990000+60x120",
        'mlops_ray_rollout_since_seconds{version="4",phase="ramping"}': "8990000x120",
    },
    "MlopsRayCanaryFails": {'mlops_ray_canary_failures_total{version="4",reason="deadline"}': "0+30x120"},
    "MlopsRayRolloutUndecided": {
        'mlops_ray_rollout_since_seconds{version="4",phase="ramping"}': "-1000000x120",
    },
    "MlopsRayRolloutWaitsForPeople": {
        'mlops_ray_rollout_since_seconds{version="4",phase="ramping"}': "_x120",
        'mlops_ray_rollout_since_seconds{version="4",phase="pending"}': "900000x120",
    },
    "MlopsRayRolledBack": {'mlops_ray_rollout_end_seconds{phase="rolled back"}': "999999x120"},
    "MlopsRayRetrainOverdue": {'mlops_ray_retrain_updated_timestamp_seconds{status="submitted"}': "0x120"},
    "MlopsRayRetrainFailed": {'mlops_ray_retrain_updated_timestamp_seconds{status="failed"}': "0x120"},
    "MlopsRayRetrainBreakerOpen": {"mlops_ray_retrain_failures{}": "3x120"},
}


def case(name: str, overlay: dict[str, str], project: str) -> dict[str, Any]:
    """A test of promtool's: after two hours this alert fires, and no other."""
    series = [
        {"series": key.replace("{", f'{{project="{project}",instance="a:9464",job="mlops_ray",', 1), "values": values}
        for key, values in (WELL | overlay).items()
    ]
    fires = [{"labels": f'{{alertname="{name}"}}', "value": 1}] if name else []
    asked = {"expr": 'count by (alertname) (ALERTS{alertstate="firing"})', "eval_time": "115m", "exp_samples": fires}
    return {"name": name or "well", "interval": "1m", "input_series": series, "promql_expr_test": [asked]}


def test_every_alert_fires_on_its_own_trouble_alone_and_none_while_all_is_well(
    flights: Project, tmp_path: Path
) -> None:
    assert ILL.keys() == alerts_of(flights).keys()
    (tmp_path / "rules.yaml").write_text(text(rules(flights, FILES)))
    cases = [case("", {}, "flights"), *(case(name, overlay, "flights") for name, overlay in ILL.items())]
    # Another project's trouble is another project's.
    others = [case("", {}, "flights")]
    for key, values in ILL["MlopsRayDrift"].items():
        others[0]["input_series"].append({"series": key.replace("{", '{project="other",', 1), "values": values})
    file = tmp_path / "cases.yaml"
    file.write_text(
        yaml.safe_dump({"rule_files": ["rules.yaml"], "evaluation_interval": "5m", "tests": cases + others})
    )
    done = promtool("test", "rules", str(file))
    assert done.returncode == 0, done.stdout + done.stderr
    cases[1]["promql_expr_test"][0]["exp_samples"] = []
    file.write_text(yaml.safe_dump({"rule_files": ["rules.yaml"], "evaluation_interval": "5m", "tests": cases[1:2]}))
    assert promtool("test", "rules", str(file)).returncode == 1  # and the tests of this test can fail
