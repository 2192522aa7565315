"""Tables for people: `status`, and what the demonstration ends with."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from rich.console import Group
from rich.table import Table
from rich.text import Text


def status_table(status: dict[str, Any]) -> Group:
    """The result of `verbs.status` as tables."""
    head = Table.grid(padding=(0, 2))
    head.add_row("project", status["project"])
    head.add_row("stable", f"v{status['stable']}" if status["stable"] else "none; run `mlops-ray run`")
    if status["canary"]:
        head.add_row("canary", f"v{status['canary']} at {status['share']:.0%}")
    if status["arms"]:
        named = ", ".join(f"v{version}" for version in status["arms"])
        head.add_row("side by side", f"{named} at {status['share']:.0%} together")
    if status["watermark"]:
        head.add_row("decision time", _at(status["watermark"]))
    if status["retrain"]:
        head.add_row("retrain", f"{status['retrain']['status']}: {status['retrain']['reason']}")
    decisions = Table("when", "decision", "what", "why", title="last decisions", title_justify="left")
    for entry in status["ledger"]:
        decisions.add_row(_at(entry["at"]), entry["kind"], entry["subject"], Text(entry["why"]))
    return Group(head, decisions) if status["ledger"] else Group(head)


def demo_table(summary: dict[str, Any]) -> Group:
    """The summary of a demonstration by month, and its total."""
    table = Table(title="the year of flights", title_justify="left")
    for name in ("month", "requests", "failed", "version", "AUC", "log-loss", "never retrained", "decisions"):
        table.add_column(name, justify="left" if name in ("month", "decisions", "version") else "right")
    for month in summary["months"]:
        table.add_row(
            month["month"],
            f"{month['requests']:,}",
            str(month["failed_requests"]),
            ", ".join(f"v{v}" for v in month["versions"]),
            _number(month["roc_auc"]),
            _number(month["log_loss"]),
            _number(month["log_loss_never_retrained"]),
            Text("\n".join(month["decisions"])),
        )
    total = (
        f"{summary['requests']:,} requests ({summary['predictions']:,} flights), {summary['failed_requests']} failed; "
        f"{summary['retrains']} retrains, {summary['promotions']} promotions, {summary['rejections']} rejections, "
        f"{summary['rejections_planted']} planted candidate refused. Log-loss {_number(summary['log_loss'])}, never "
        f"retrained {_number(summary['log_loss_never_retrained'])}. Ledger of {summary['ledger_entries']} entries "
        + ("unbroken." if summary["ledger_ok"] else "BROKEN.")
    )
    return Group(table, Text(total))


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"


def _at(time_s: float) -> str:
    return datetime.fromtimestamp(time_s, UTC).strftime("%Y-%m-%d %H:%M")
