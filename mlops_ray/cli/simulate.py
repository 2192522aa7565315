"""`mlops-ray simulate`: recorded history, lived through by the real loop in virtual time."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mlops_ray.cli.output import AsJson, Config, progress, say, table_console, writable

if TYPE_CHECKING:
    from rich.console import Group


def simulate(
    config: Config,
    data: Annotated[
        str | None,
        typer.Option(metavar="FILE", help="Parquet, CSV or module:function; default: the newest dataset version."),
    ] = None,
    label_time: Annotated[
        str | None, typer.Option(metavar="COLUMN", help="When each label was known; null where it never was.")
    ] = None,
    label_lag_s: Annotated[float, typer.Option(min=0, help="Without such a column: seconds from event to label.")] = 0,
    start: Annotated[
        str | None, typer.Option(metavar="DAY", help="First day of traffic (UTC); rows before it are the source's.")
    ] = None,
    until: Annotated[str | None, typer.Option(metavar="DAY", help="First day that is not lived through.")] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="FIELD=VALUE,...", help="Replace a field; several values are compared."),
    ] = None,
    html: Annotated[
        Path | None, typer.Option(metavar="FILE", callback=writable, help="Also write a page with all decisions.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Live through recorded history in virtual time, by the real windows, policy, training, gates and rollout.

    To choose thresholds before going live. No cluster, no server; nothing of the project is changed.

    mlops-ray simulate -c configs/flights.yaml --data mlops_ray.demo.flights:flights --label-time landed
    --start 2013-03-01 --until 2013-05-01 --set monitoring.false_alarms_per_month=0.5,2
    """
    from mlops_ray.verbs.simulate import simulate as simulated

    with progress(as_json) as on_progress:
        result = simulated(
            config,
            os.environ,
            on_progress,
            data=data,
            label_time=label_time,
            label_lag_s=label_lag_s,
            start=start,
            until=until,
            settings=settings or (),
        )
    if html is not None:
        from mlops_ray.simulation.page import page

        html.write_text(page(result), encoding="utf-8")
    if as_json:
        say(result, True, str)
    else:
        table_console().print(view(result))


def view(result: Mapping[str, Any]) -> Group:
    """The result of `verbs.simulate` for people: settings side by side, then each run's months and decisions."""
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    from mlops_ray.cli.output import day

    parts: list[Any] = []
    head = Table(box=None, pad_edge=False, header_style="dim")
    head.add_column("settings", overflow="fold")
    names = ("loss", "never retrained", "alarms", "retrains", "rejected", "promoted", "rolled back", "times life")
    for name in names:
        head.add_column(name, justify="right")
    for run in result["runs"]:
        counts = [str(run[n]) for n in ("alarms", "retrains", "rejected", "promoted", "rolled_back")]
        said = ", ".join(run["settings"]) or "as in the file"
        head.add_row(Text(said), _number(run["loss"]), _number(run["loss_never"]), *counts, f"{run['times_life']:,}")
    parts.append(head)
    for run in result["runs"]:
        parts.append(Text(f"\n{', '.join(run['settings']) or result['project']}", "bold"))
        months = Table(box=None, pad_edge=False, header_style="dim")
        for name in ("month", "rows", "loss", "never retrained", "AUC", "alarms", "versions"):
            months.add_column(name, justify="left" if name == "month" else "right")
        for m in run["months"]:
            versions = ", ".join(f"v{v}" for v in m["versions"])
            auc = _number(m.get("roc_auc"))
            cells = (_number(m["loss"]), _number(m["loss_never"]), auc, str(m["alarms"]), versions)
            months.add_row(m["month"], f"{m['rows']:,}", *cells)
        parts.append(months)
        parts += [Text(f"{day(d['at'])} {d['kind']} {d['subject']}: {d['why']}") for d in run["decisions"]]
    return Group(*parts)


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.4f}"
