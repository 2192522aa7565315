"""`mlops-ray log ...`: the prediction log."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from mlops_ray.cli.output import AsJson, Config, progress, say, table_console

if TYPE_CHECKING:
    from rich.console import RenderableType


app = typer.Typer(
    no_args_is_help=True,
    help="The prediction log: look into it, take it elsewhere, take somebody out of it. Only `forget` asks a cluster, "
    "and only if one is up.",
)


def _day(text: str | None) -> str | None:
    if text is not None and not re.fullmatch(r"\d{4}-(0[1-9]|1[0-2])-(0[1-9]|[12]\d|3[01])", text):
        raise typer.BadParameter(f"{text!r} is no day; write 2026-01-31")
    return text


Since = Annotated[str | None, typer.Option(callback=_day, help="First day (UTC) of the events.", show_default=False)]
Until = Annotated[str | None, typer.Option(callback=_day, help="Last day, included.", show_default=False)]


@app.command()
def query(
    config: Config,
    key: Annotated[list[str] | None, typer.Option(help="Only this key's; may be given again.")] = None,
    prediction: Annotated[str | None, typer.Option("--id", help="Only the prediction with this id.")] = None,
    since: Since = None,
    until: Until = None,
    version: Annotated[int | None, typer.Option(help="Only those that this version answered.")] = None,
    variant: Annotated[
        Literal["stable", "canary"] | None, typer.Option(help="Only those whose key was assigned to it.")
    ] = None,
    limit: Annotated[int, typer.Option(min=1, help="How many, at most.")] = 20,
    labels: Annotated[
        bool, typer.Option("--labels", help="Also show every label and number that came, corrections too.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Predictions with the label that counts (the one that became known last), newest first.

    With --json also their features. Days that are not asked for are not read.
    """
    from mlops_ray.serving.log.history import Question
    from mlops_ray.verbs import log

    question = Question(tuple(key or ()), prediction, since, until, version, variant, limit)
    result = log.query(config, os.environ, question, labels=labels)
    if as_json or not result["predictions"]:
        say(result, as_json, lambda r: f"the log of {r['project']} has no such prediction")
    else:
        table_console().print(_table(result["predictions"]))


@app.command()
def export(
    config: Config,
    output: Annotated[
        Path,
        typer.Option("--output", "-o", help="A .parquet or .csv file; any other name: a folder, one file per day."),
    ],
    since: Since = None,
    until: Until = None,
    columns: Annotated[str, typer.Option(help="Only these, separated by commas; default: all.")] = "",
    as_json: AsJson = False,
) -> None:
    """Write the log's predictions with their labels to a file that appears whole or not at all.

    Memory holds some days, never the log. `log forget` does not reach what was exported.
    """
    from mlops_ray.serving.log.history import Question
    from mlops_ray.verbs import log

    if not output.absolute().parent.is_dir():
        raise typer.BadParameter(f"there is no directory {output.parent}; make it first")
    chosen = [name.strip() for name in columns.split(",") if name.strip()]
    with progress(as_json) as on_progress:
        result = log.export(config, os.environ, Question(since=since, until=until), output, chosen, on_progress)
    say(result, as_json, lambda r: f"{r['rows']:,} predictions of {r['days']} days are in {r['output']}")


@app.command()
def forget(
    config: Config,
    key: Annotated[list[str] | None, typer.Option(help="Whom to forget; may be given again.")] = None,
    keys_file: Annotated[
        Path | None, typer.Option(exists=True, dir_okay=False, help="File with one key on each line.")
    ] = None,
    why: Annotated[str, typer.Option(help="Reason for the ledger. Name nobody: the ledger forgets nothing.")] = (
        "a request to be forgotten"
    ),
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only count what would go.")] = False,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    as_json: AsJson = False,
) -> None:
    """Take keys out of spools, prediction log, labels, values, quarantine and every dataset version, for good.

    Ends with a search of every file of those tables, cells, statistics and raw bytes, and exits with 1 if anything is
    left. Dataset versions stay readable and say that they were redacted. Killed, or run again, it goes on.
    """
    from mlops_ray.verbs import log

    keys = list(key or ())
    if keys_file is not None:
        keys += [line.strip() for line in keys_file.read_text(encoding="utf-8").splitlines() if line.strip()]
    if not keys:
        raise typer.BadParameter("give --key or --keys-file")
    if not (yes or dry_run):
        typer.confirm(
            f"{len(set(keys))} keys will be taken out of every table, which cannot be undone. Go on?", abort=True
        )
    with progress(as_json) as on_progress:
        result = log.forget(config, os.environ, keys, why, on_progress, dry_run=dry_run)
    say(result, as_json, _would_go if dry_run else _gone)
    if result.get("left"):
        raise typer.Exit(1)


def _table(predictions: list[dict[str, Any]]) -> RenderableType:
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False)
    for name in ("event time", "prediction", "key", "answered by", "score", "label", "known"):
        table.add_column(name, justify="right" if name == "score" else "left")
    for row in predictions:
        known = row.get("labels") or ([{"label": row["label"], "time": row["label_time"]}] if row["n_labels"] else [])
        known = [*known, *row.get("values", [])]
        more = f" (of {row['n_labels']})" if row["n_labels"] > 1 and "labels" not in row else ""
        table.add_row(
            row["event_time"].strftime("%Y-%m-%d %H:%M:%S"),
            Text(row["prediction_id"]),
            Text(str(row["key"])),
            f"v{row['version']}" + (" (canary)" if row["variant"] == "canary" else ""),
            _score(row["score"]),
            Text("\n".join(map(_told, known)) + more),
            Text("\n".join(one["time"].strftime("%Y-%m-%d %H:%M") for one in known)),
        )
    return table


def _told(one: dict[str, Any]) -> str:
    """A label, or a business number with its name."""
    if "value" in one:
        return f"{one['name']} {one['value']:g}"
    return f"{one['label']:g}" if isinstance(one["label"], float) else str(one["label"])


def _score(score: Any) -> str:
    if isinstance(score, list):
        return " ".join(f"{share:.3f}" for share in score)
    return "-" if score is None else f"{score:.4f}"


def _would_go(result: dict[str, Any]) -> str:
    return "\n".join(f"{name}: {n:,} rows would go" for name, n in result["rows"].items())


def _gone(result: dict[str, Any]) -> str:
    lines = []
    for table, removed in result["removed"].items():
        versions = f"; redacted: versions {', '.join(map(str, removed['versions']))}" if removed["versions"] else ""
        lines.append(f"{table}: {removed['rows']:,} rows{versions}")
    lines += result["spools"]
    lines += [
        f"LEFT in {left['table']}: {left['what']} of {left['file']}, {left['n']} times" for left in result["left"]
    ]
    if any(left["table"] == "spool" for left in result["left"]):
        lines.append("collectors will sieve the spool: start them with `mlops-ray up`, then give the order again")
    if not result["left"]:
        lines.append(f"no row and no byte of {result['keys']} keys is left in these tables; order {result['order']}")
    others = [f"{found['what']} of {found['table']}" for found in result["mentions"]]
    lines += [f"other rows say the same word: {what}" for what in dict.fromkeys(others)]
    return "\n".join([*lines, "not reached:", *(f"  - {said}" for said in result["unreached"])])
