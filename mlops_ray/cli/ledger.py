"""`mlops-ray ledger show | verify | export | at`: the chained record of every decision."""

from __future__ import annotations

import math
import os
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import typer

from mlops_ray.cli.output import AsJson, Config, day, say, writable
from mlops_ray.texts import harmless

app = typer.Typer(no_args_is_help=True, help="Read and verify the chained record of every decision.")


def moment(text: str) -> float:
    """Seconds since the epoch of `2026-05-01`, `2026-05-01T12:00` (UTC unless it names a zone), or of such seconds.

    Raises: typer.BadParameter."""
    try:
        found = datetime.fromisoformat(text)
        return (found if found.tzinfo else found.replace(tzinfo=UTC)).timestamp()
    except ValueError:
        pass
    try:
        seconds = float(text)
    except ValueError:
        seconds = math.nan
    if not math.isfinite(seconds):
        raise typer.BadParameter(f"{text!r} is no time; write 2026-05-01, 2026-05-01T12:00, or seconds since the epoch")
    return seconds


Time = Annotated[float, typer.Argument(parser=moment, metavar="TIME", help="2026-05-01T12:00 (UTC), or seconds.")]


@app.command()
def show(
    config: Config,
    since: Annotated[
        float | None, typer.Option(parser=moment, metavar="TIME", help="Only entries dated then or later.")
    ] = None,
    kind: Annotated[str | None, typer.Option(help="Only kinds that begin so, such as 'rollout'.")] = None,
    subject: Annotated[str | None, typer.Option(help="Only about this: v3, a rollout's id, a decision's.")] = None,
    as_json: AsJson = False,
) -> None:
    """Decisions, oldest first: what, who, why.

    mlops-ray ledger show -c configs/flights.yaml --since 2026-05-01 --kind rollout --subject v3
    """
    from mlops_ray.verbs import ledger

    def lines(result: dict[str, Any]) -> str:
        return "\n".join(
            f"{e['seq']:4d}  {day(e['at'])}  {e['kind']} {e['subject']} by {e['who']}: {e['why']}"
            for e in harmless(result["entries"])
        ) or (f"none of {result['n']} entries is so" if result["n"] else "no entries yet")

    say(ledger.show(config, os.environ, since=since, kind=kind, subject=subject), as_json, lines)


@app.command()
def verify(
    config: Config,
    anchor: Annotated[
        list[str] | None, typer.Option(metavar="SEQ:HASH", help="A head that you kept; repeatable.")
    ] = None,
    anchors: Annotated[
        Path | None, typer.Option(metavar="FILE", help="A file with a head a line, or an export.")
    ] = None,
    accept_loss: Annotated[
        list[str] | None,
        typer.Option(
            metavar="SEQ:HASH", help="A head that you know to be lost, such as by a restored backup; repeatable."
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Prove that no entry was changed, inserted or taken out; exit code 3 when one was, or when that is not proven.

    Heads that promotions left in MLflow are looked at by themselves, and the decisions that rollouts, retrains and the
    serving configuration come from must stand in the ledger. What no head vouches for is said. A head that the ledger
    does not hold is excused only by name, with --accept-loss, whatever the ledger says of it.
    """
    from mlops_ray.verbs import ledger

    lost = accept_loss or ()
    result = ledger.verify(config, os.environ, anchors=anchor or (), anchors_file=anchors, accept_loss=lost)
    say(result, as_json, lambda r: str(r["says"]))
    if not result["ok"]:
        raise typer.Exit(3)


@app.command()
def export(
    config: Config,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="File to write.", callback=writable)] = None,
    as_json: AsJson = False,
) -> None:
    """All entries as JSON, one a line, to keep elsewhere; `verify --anchors` reads it."""
    from mlops_ray.verbs import ledger

    result = ledger.export(config, os.environ, output)
    if output is None and not as_json:
        for line in result["lines"]:
            typer.echo(line)
        return
    say(result, as_json, lambda r: f"{r['n']} entries in {r['output']}")


@app.command("at")
def at_(config: Config, time: Time, as_json: AsJson = False) -> None:
    """What served at a time, and who approved it.

    mlops-ray ledger at -c configs/flights.yaml 2026-05-01T12:00
    """
    from mlops_ray.verbs import ledger

    found = ledger.at(config, os.environ, time)
    say(found.to_dict(), as_json, lambda _: "\n".join(harmless(found.lines())))
