"""`mlops-ray alerts`: what its user types and sees."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner, Result

from mlops_ray import ledger
from mlops_ray.cli import app
from mlops_ray.cli.alerts import duration
from mlops_ray.errors import DataError
from mlops_ray.monitoring.alerts import book
from mlops_ray.monitoring.alerts.alerting import Alert, Kind, Message, Phase
from mlops_ray.monitoring.alerts.book import Attempt, Posted, Status
from mlops_ray.state import Store
from mlops_ray.verbs.subjects import os_user
from tests.receivers import http_receiver

ROOT = Path(__file__).parents[2]
FIRED = time.time() - 3600
DRIFT = Alert(
    "4f0a11223344", "drift", "v3", "warning", Phase.FIRING, FIRED, "dest: PSI 0.4", FIRED, told={"team": FIRED}
)
QUALITY = Alert("5b0a11223344", "quality", "v3", "critical", Phase.PENDING, FIRED, "log-loss 0.7")
OLD = Alert(
    "6c0a11223344", "drift", "v2", "warning", Phase.RESOLVED, FIRED - 99, "dest: PSI 0.3", FIRED - 99, FIRED - 9
)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    opened = Store.open(f"sqlite:///{tmp_path}/state.db")
    yield opened
    opened.close()


@pytest.fixture
def config(tmp_path: Path, store: Store) -> list[str]:
    """Options of a project file with alerts of every kind."""
    overlay = tmp_path / "overlay.yaml"
    channels = {"script": {"kind": "command", "argv": ["cat"]}, "broken": {"kind": "command", "argv": ["false"]}}
    overlay.write_text(yaml.safe_dump({"storage": {"root": str(tmp_path)}, "alerts": {"channels": channels}}))
    with store.begin() as tx:
        for alert in (DRIFT, QUALITY, OLD):
            book.save(tx, "quickstart", alert)
        message = Message("m1", "team", ((Kind.FIRING, DRIFT),))
        attempts = (Attempt(FIRED, "busy", "HTTP 503", 0.1), Attempt(FIRED + 9, "refused", "HTTP 404 no_service", 0.1))
        book.save_posted(tx, "quickstart", Posted(message, 1, Status.FAILED, FIRED, FIRED, attempts))
    return ["-c", str(ROOT / "configs/quickstart.yaml"), "-c", str(overlay)]


def run(*words: str, code: int = 0) -> Result:
    result = CliRunner().invoke(app, ["alerts", *words])
    assert result.exit_code == code, (result.output, result.exception)
    return result


def answer(*words: str, code: int = 0) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(run(*words, "--json", code=code).stdout)
    return found


def test_list_shows_what_is_open_worst_first(config: list[str]) -> None:
    first, second, third = run("list", *config).stdout.splitlines()
    assert first.startswith("5b0a11223344  pending  critical  quality of v3 since ")
    assert second.endswith(": dest: PSI 0.4")
    assert third == "team: 1 messages could not be delivered"
    assert [a["id"][:2] for a in answer("list", *config, "--all")["alerts"]] == ["5b", "4f", "6c"]


def test_list_of_a_project_where_all_is_well(config: list[str], store: Store) -> None:
    with store.begin() as tx:
        tx.connection.execute(book.ALERTS.delete())
        tx.connection.execute(book.MESSAGES.delete())
    assert run("list", *config).stdout == "nothing is wrong\n"


def test_show_tells_each_attempt(config: list[str]) -> None:
    said = run("show", *config, "4f").stdout
    assert "firing to team: failed" in said
    assert "busy: HTTP 503" in said
    assert "refused: HTTP 404 no_service" in said
    (message,) = answer("show", *config, "4f0a")["messages"]
    assert [a["result"] for a in message["attempts"]] == ["busy", "refused"]


@pytest.mark.parametrize("which", ["zz", "", "4f0a112233445"])
def test_show_of_what_is_not_there(config: list[str], which: str) -> None:
    found = CliRunner().invoke(app, ["alerts", "show", *config, which])
    assert isinstance(found.exception, DataError)
    assert "alerts list --all" in str(found.exception)


def test_ack_is_recorded_with_its_author(config: list[str], store: Store) -> None:
    said = run("ack", *config, "4f0a", "--why", "looking into it").stdout
    assert said.startswith(f"4f0a11223344  acknowledged by {os_user()}  warning")
    with store.read() as tx:
        (entry,) = ledger.entries(tx, "quickstart")
        alert = book.alert(tx, "quickstart", "4f0a")
    assert (entry.kind, entry.subject, entry.who, entry.why) == (
        "alert acknowledged",
        "4f0a11223344",
        os_user(),
        "looking into it",
    )
    assert alert.ack is not None
    assert alert.ack.who == os_user()
    assert "acknowledged by" in run("show", *config, "4f0a").stdout


@pytest.mark.parametrize("which", ["5b0a", "6c0a"])
def test_only_what_fires_can_be_acknowledged(config: list[str], which: str) -> None:
    found = CliRunner().invoke(app, ["alerts", "ack", *config, which])
    assert "only what fires can be acknowledged" in str(found.exception)


def test_silence_and_its_end(config: list[str], store: Store) -> None:
    made = answer("silence", *config, "--rule", "drift", "--for", "2h", "--why", "known")["silence"]
    assert (made["rule"], made["subject"], made["who"], made["why"]) == ("drift", "", os_user(), "known")
    assert made["ends"] - made["created"] == 7200.0
    assert f"silence {made['id']}: rule drift, until" in run("list", *config).stdout
    assert run("unsilence", *config, made["id"]).stdout == f"silence {made['id']} has ended\n"
    assert answer("list", *config)["silences"] == []
    assert isinstance(CliRunner().invoke(app, ["alerts", "unsilence", *config, made["id"]]).exception, DataError)
    with store.read() as tx:
        assert [e.kind for e in ledger.entries(tx, "quickstart")] == ["alerts silenced", "silence ended"]


def test_silence_asks_what_and_for_how_long(config: list[str]) -> None:
    assert "say what" in run("silence", *config, "--for", "2h", code=2).output
    assert "say what" in run("silence", *config, "--for", "2h", "--everything", "--rule", "drift", code=2).output
    assert "no duration" in run("silence", *config, "--everything", "--for", "soon", code=2).output
    found = CliRunner().invoke(app, ["alerts", "silence", *config, "--rule", "drfit", "--for", "2h"])
    assert "there are drift, quality" in str(found.exception)
    assert answer("silence", *config, "--everything", "--for", "90s")["silence"]["rule"] == ""


@pytest.mark.parametrize(("text", "seconds"), [("90s", 90.0), ("2h", 7200.0), ("1d12h", 129_600.0), ("1.5h", 5400.0)])
def test_durations(text: str, seconds: float) -> None:
    assert duration(text) == seconds


def test_test_says_what_came_back(config: list[str], tmp_path: Path) -> None:
    found = answer("test", *config, "script")
    assert (found["ok"], found["result"], found["kind"], found["to"]) == (True, "sent", "command", "cat")
    assert '"alertname": "test"' in found["said"]
    assert answer("test", *config, "broken", code=3)["said"] == "exit code 1"
    assert run("test", *config, "broken", code=3).stdout == "broken (command to false): busy: exit code 1\n"
    missing = CliRunner().invoke(app, ["alerts", "test", *config, "pager"])
    assert "there are broken, script" in str(missing.exception) or "there are script, broken" in str(missing.exception)


def test_test_of_a_webhook_shows_no_secret(config: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with http_receiver() as posts:
        monkeypatch.setenv("HOOK", posts.url)
        hook = tmp_path / "hook.yaml"
        hook.write_text(yaml.safe_dump({"alerts": {"channels": {"team": {"kind": "webhook", "url": "${HOOK}"}}}}))
        said = run("test", *config, "-c", str(hook), "team").stdout
    assert said == "team (webhook to 127.0.0.1): sent: HTTP 200 ok\n"
    assert json.loads(posts.got[0][1])["text"] == "quickstart: 1 test"
