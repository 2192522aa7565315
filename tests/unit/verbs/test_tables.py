from __future__ import annotations

from io import StringIO
from typing import Any

from rich.console import Console, Group

from mlops_ray.verbs.tables import demo_table, status_table

EMPTY: dict[str, Any] = {
    "project": "small",
    "stable": None,
    "canary": None,
    "arms": [],
    "share": 0.0,
    "watermark": None,
    "retrain": None,
    "ledger": [],
}


def shown(table: Group) -> str:
    console = Console(width=160, no_color=True, record=True, file=StringIO())
    console.print(table)
    return console.export_text()


def test_a_project_that_serves_nothing_yet() -> None:
    assert "mlops-ray run" in shown(status_table(EMPTY))


def test_a_project_in_full_swing() -> None:
    entry = {"at": 0.0, "kind": "rollout started", "subject": "v2", "who": "me", "why": "[bold]drift[/]"}
    retrain = {"status": "submitted", "reason": "drift of x"}
    more = {"stable": 1, "canary": 2, "share": 0.1, "watermark": 86_400.0, "retrain": retrain, "ledger": [entry]}
    text = shown(status_table(EMPTY | more))
    for part in ("v1", "v2 at 10%", "1970-01-02 00:00", "submitted: drift of x", "rollout started", "[bold]drift[/]"):
        assert part in text


def test_versions_side_by_side() -> None:
    assert "v2, v3 at 40% together" in shown(status_table(EMPTY | {"stable": 1, "arms": [2, 3], "share": 0.4}))


def test_the_demonstrations_year() -> None:
    month = {
        "month": "2013-03",
        "requests": 1234,
        "failed_requests": 0,
        "versions": [1, 2],
        "roc_auc": None,
        "log_loss": 0.5,
        "log_loss_never_retrained": 0.6,
        "decisions": ["03-11 retrain [drift]"],
    }
    total = {
        "requests": 5678,
        "predictions": 99_999,
        "failed_requests": 0,
        "retrains": 3,
        "promotions": 2,
        "rejections": 1,
        "rejections_planted": 1,
        "log_loss": 0.41234,
        "log_loss_never_retrained": 0.5,
        "ledger_entries": 20,
        "ledger_ok": True,
    }
    text = shown(demo_table(total | {"months": [month]}))
    for part in ("1,234", "v1, v2", "0.5000", "-", "[drift]", "99,999 flights", "Log-loss 0.4123", "unbroken"):
        assert part in text
    assert "BROKEN" in shown(demo_table(total | {"months": [month], "ledger_ok": False}))
