"""The `alerts:` block: what is said about it, and where secrets may stand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from mlops_ray.config import load_project, parse_portable, portable
from mlops_ray.config.alerts import DEFAULT_RULES, Alerts, When
from mlops_ray.errors import ConfigError
from mlops_ray.training.on_mlflow import _config_text
from mlops_ray.training.recipe import Recipe
from tests.fakes import project

QUICKSTART = Path(__file__).parents[2] / "configs/quickstart.yaml"
ENV = {"SLACK": "T0/B0/geheim123456", "PW": "geheim99"}
TEAM = {"kind": "webhook", "url": "https://hooks.slack.com/services/${SLACK}"}
MAIL = {
    "kind": "email",
    "host": "smtp.example.org",
    "sender": "mlops@example.org",
    "to": ["oncall@example.org"],
    "user": "mlops",
    "password": "${PW}",
}
SCRIPT = {"kind": "command", "argv": ["/usr/local/bin/page"]}


def alerts_of(tmp_path: Path, **block: Any) -> Alerts:
    overlay = tmp_path / "alerts.yaml"
    overlay.write_text(yaml.safe_dump({"alerts": block}), encoding="utf-8")
    return load_project([QUICKSTART, overlay], env=ENV).alerts


def problems(tmp_path: Path, **block: Any) -> str:
    with pytest.raises(ConfigError) as caught:
        alerts_of(tmp_path, **block)
    return str(caught.value)


def test_channels_alone_are_enough(tmp_path: Path) -> None:
    found = alerts_of(tmp_path, channels={"team": TEAM, "oncall": MAIL, "script": SCRIPT})
    assert {rule.when for rule in found.in_force} == set(_words(When))
    told = {rule.when: frozenset(rule.notify or ()) for rule in found.in_force}
    assert told.pop("data_quality") == frozenset()  # it has no part of the budget of false alarms
    assert set(told.values()) == {frozenset({"team", "oncall", "script"})}
    assert len(DEFAULT_RULES) == len(set(_words(When)))


def test_rules_replace_the_default_ones(tmp_path: Path) -> None:
    rules = [{"name": "late", "when": "quality", "for_windows": 2, "notify": []}]
    (rule,) = alerts_of(tmp_path, channels={"team": TEAM}, rules=rules).in_force
    assert (rule.notify, rule.severity, rule.repeat_s) == ((), "warning", 86_400.0)
    assert alerts_of(tmp_path, channels={"team": TEAM}, rules=[]).in_force == ()


@pytest.mark.parametrize(
    ("block", "says"),
    [
        (
            {"rules": [{"name": "a", "when": "drift", "notify": ["tem"]}]},
            "rules.0.notify.0: 'tem' is no channel; did you",
        ),
        ({"rules": [{"name": "a", "when": "drift"}, {"name": "a", "when": "quality"}]}, "another rule's name"),
        ({"rules": [{"name": "a", "when": "no_traffic", "for_windows": 2}]}, "is not of windows; use for_s"),
        (
            {"rules": [{"name": "a", "when": "drift", "notify": [], "escalate_to": ["team"]}]},
            "escalate_after_s: is missing",
        ),
        ({"rules": [{"name": "a", "when": "drift", "escalate_after_s": 60}]}, "escalate_to: is missing"),
        (
            {"rules": [{"name": "a", "when": "drift", "escalate_to": ["team"], "escalate_after_s": 60}]},
            "is told at once already",
        ),
        ({"rules": [{"name": "a", "when": "drfit"}]}, "rules.0.when: should be 'drift'"),
        ({"rules": [{"name": "a", "when": "drift", "repeat_s": 1}]}, "rules.0.repeat_s"),
        ({"channels": {"team": {"kind": "slack"}}}, "kind should be one of 'webhook', 'email', 'command'"),
        ({"channels": {"team": TEAM | {"url": "ftp://x/${SLACK}"}}}, "channels.team.url: is no address of a webhook"),
        ({"channels": {"team": TEAM | {"url": "http:///x"}}}, "is no address of a webhook"),
        ({"channels": {"team": TEAM | {"headers": {"Host": "x"}}}}, "Host is set by us"),
        ({"channels": {"team": TEAM | {"headers": {"X": "a\nb"}}}}, "holds what no header may"),
        (
            {"channels": {"team": TEAM | {"headers": {"Authorization": "Bearer x"}}}},
            "headers.Authorization: is a secret",
        ),
        (
            {"channels": {"team": TEAM | {"url": "https://hooks.slack.com/services/T012/B345/abcdefgh12345678ijkl"}}},
            "channels.team.url: looks as if it held a secret",
        ),
        ({"channels": {"team": TEAM | {"url": "https://me:pw@x.org/"}}}, "looks as if it held a secret"),
        (
            {"channels": {"team": MAIL | {"password": "hunter2"}}},
            "channels.team.password: a password does not stand in",
        ),
        ({"channels": {"team": MAIL | {"user": None}}}, "user and password go together"),
        ({"channels": {"team": MAIL | {"tls": "none"}}}, "would show the password"),
        ({"channels": {"team": MAIL | {"to": ["a@x\nBcc: b@x"]}}}, "channels.team.to.0"),
        ({"channels": {"team": SCRIPT | {"argv": []}}}, "channels.team.argv"),
    ],
)
def test_what_is_wrong_is_said_with_its_place(tmp_path: Path, block: dict[str, Any], says: str) -> None:
    found = problems(tmp_path, **({"channels": {"team": TEAM}} | block))
    assert says in found
    for secret in ENV.values():
        assert secret not in found


def test_an_address_that_people_can_read_is_no_secret(tmp_path: Path) -> None:
    plain = {"kind": "webhook", "url": "http://alerts.internal:9000/hooks/mlops-ray-notifications"}
    assert alerts_of(tmp_path, channels={"team": plain}).channels


def test_secrets_go_nowhere(tmp_path: Path) -> None:
    overlay = tmp_path / "alerts.yaml"
    overlay.write_text(yaml.safe_dump({"alerts": {"channels": {"team": TEAM, "oncall": MAIL}}}), encoding="utf-8")
    paths = [QUICKSTART, overlay]
    found = load_project(paths, env=ENV)
    kept = portable(paths)
    assert parse_portable(kept, env=ENV).alerts == found.alerts
    for text in (kept, repr(found), str(found), found.model_dump_json(), _config_text(found)):
        assert "geheim" not in text


def test_a_recorded_project_is_read_whatever_the_channels_are() -> None:
    today = project(alerts={"channels": {"team": TEAM | {"url": "https://x.org/geheim"}}})
    recipe = object.__new__(Recipe)
    object.__setattr__(recipe, "project", {})
    with pytest.raises(ConfigError, match="columns"):  # of the recorded blocks, and not of channels
        recipe.project_of(today)


def _words(when: Any) -> list[str]:
    return [word for part in when.__args__ for word in (_words(part) if hasattr(part, "__args__") else [part])]
