"""`mlops-ray analyze`: a canary that ran elsewhere, judged by its log."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mlops_ray.cli.ledger import moment
from mlops_ray.cli.output import AsJson, say, table_console, writable

if TYPE_CHECKING:
    from rich.console import Group

_EXITS = {"pass": 0, "fail": 3, "inconclusive": 4}


def analyze(
    log: Annotated[Path, typer.Option(metavar="FILE", help="CSV, Parquet or JSON lines, sorted by time.")],
    plan: Annotated[Path, typer.Option(metavar="FILE", help="YAML: its columns, and what is compared.")],
    html: Annotated[
        Path | None,
        typer.Option(metavar="FILE", callback=writable, help="Also write a page with the sequences over time."),
    ] = None,
    at: Annotated[
        float | None, typer.Option(parser=moment, metavar="TIME", help="As it stood at the last look by then (UTC).")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Judge a canary that ran elsewhere by its log: the statistics of a rollout, without a project or a cluster.

    The verdict holds however often you look. Exit code 0: passes, 3: proven worse, 4: not decided, 2: the log or the
    plan is wrong.

    mlops-ray analyze --log canary.parquet --plan canary.yaml --html report.html
    """
    from mlops_ray.verbs.analyze import analyze as analysed

    result = analysed(log, plan, at)
    if html is not None:
        from mlops_ray.rollout.page import page

        html.write_text(page(result), encoding="utf-8")
    if as_json:
        say(result, True, str)
    else:
        table_console().print(view(result))
    raise typer.Exit(_EXITS[result["verdict"]])


def view(result: Mapping[str, Any]) -> Group:
    """The result of `verbs.analyze` for people."""
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    from mlops_ray.cli.output import day
    from mlops_ray.cli.rollout_view import COLOURS

    bars = result["bars"]
    table = Table(box=None, pad_edge=False, header_style="dim")
    table.add_column("metric", overflow="fold")
    worse, fine = f"worse (of {bars['worse']:g})", f"fine (of {bars['fine']:g})"
    for name in ("estimate", "interval", "margin", "keys", worse, fine):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("verdict", no_wrap=True)
    table.add_column("decided, or to go", no_wrap=True)
    for m in result["metrics"]:
        known = m["low"] is not None
        to_go = f"about {m['needed']:,} keys" if m["needed"] else ""
        table.add_row(
            Text(m["name"]),
            f"{m['estimate']:+.4f}" if known else "",
            f"{m['low']:+.4f} … {m['high']:+.4f}" if known else "",
            f"{m['margin']:g}",
            f"{m['n_keys']:,}",
            f"{m['evidence_worse']:.3g}",
            f"{m['evidence_fine']:.3g}",
            Text(m["verdict"], COLOURS[m["verdict"]]),
            to_go if m["decided"] is None else day(m["decided"]),
        )
    rows = f"{result['log']}: {result['rows']:,} rows, {result['keys']:,} keys"
    head = Text(f"{rows}, {day(result['from'])} to {day(result['until'])} UTC")
    decided = f" Decided {day(result['decided'])}." if result["decided"] is not None else ""
    verdict = Text.assemble((result["verdict"], COLOURS[result["verdict"]]), f": {result['says']}{decided}")
    return Group(
        head, table, *(Text(f"warning: {w}", "yellow") for w in result["warnings"]), *_assignment(result), verdict
    )


def _assignment(result: Mapping[str, Any]) -> list[str]:
    found = result["assignment"]
    if found is None:
        return []
    shares = f"the canary got {found['realised']:.2%} of {found['n_keys']:,} keys, by its shares {found['stated']:.2%}"
    return [f"{shares} (evidence of another share {found['evidence']:.3g}, proof at {found['bar']:g})"]
