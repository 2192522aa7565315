"""`mlops-ray schema`: a first `columns:` block from data, and what differs between two datasets."""

from __future__ import annotations

import os
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mlops_ray.cli.output import AsJson, Kind, progress, say, table_console

if TYPE_CHECKING:
    from rich.console import Group

schema_app = typer.Typer(
    no_args_is_help=True, help="Write down the columns that data has, and see what differs between two datasets."
)


class Ranges(StrEnum):
    """What becomes of observed extremes."""

    none = "none"
    observed = "observed"
    padded = "padded"


ProjectFile = Annotated[
    list[Path] | None,
    typer.Option("--config", "-c", help="Project file; give it again for overlays.", show_default=False),
]


@schema_app.command("infer")
def infer(
    data: Annotated[
        str | None, typer.Argument(help="File, pattern in quotes, directory or Delta table, instead of -c.")
    ] = None,
    config: ProjectFile = None,
    kind: Kind = None,
    ranges: Annotated[
        Ranges,
        typer.Option(help="Write min and max: as observed, or with half of the width on each side; else as comments."),
    ] = Ranges.none,
    output: Annotated[Path | None, typer.Option("--output", "-o", metavar="FILE", help="Write it there.")] = None,
    as_json: AsJson = False,
) -> None:
    """Write the columns: block of a project file from what the data show, with the evidence as comments.

    Of the project file, only source: must be there; or give the data and no project:

      mlops-ray schema infer -c configs/quickstart.yaml

      mlops-ray schema infer 'logs/2024-*.csv' -o columns.yaml

    Every rule is a proposal. A closed set, a pattern or a key is written only where the rows carry it; ranges stand as
    comments unless you ask for them, for the next legal row may lie outside of what was observed.
    """
    from mlops_ray.verbs import schema as verbs

    if (data is None) == (config is None):
        raise typer.BadParameter("give either data or -c FILE")
    if output is not None and output.exists():
        raise typer.BadParameter(f"{output} exists; choose another name, or remove it")
    with progress(as_json) as on_progress:
        result = verbs.infer(config or (), os.environ, data, kind, ranges.value, on_progress)
    if output is not None:
        output.write_text(result["yaml"], encoding="utf-8")
    if as_json:
        say(result, True, str)
    elif output is None:
        typer.echo(result["yaml"], nl=False)
    else:
        say(result, False, lambda r: f"{len(r['columns'])} columns of {r['rows']:,} rows in {output}")


@schema_app.command("diff")
def diff(
    before: Annotated[str | None, typer.Argument(help="File, pattern, directory or Delta table.")] = None,
    after: Annotated[str | None, typer.Argument(help="What is compared with it.")] = None,
    config: ProjectFile = None,
    first: Annotated[
        int | None, typer.Option("--from", help="Dataset version; default: the one before --to.", show_default=False)
    ] = None,
    last: Annotated[
        int | None, typer.Option("--to", help="Dataset version; default: the newest.", show_default=False)
    ] = None,
    kind: Kind = None,
    exit_code: Annotated[bool, typer.Option("--exit-code", help="Exit with 3 when they differ.")] = False,
    as_json: AsJson = False,
) -> None:
    """Say what differs between the schemas of two dataset versions, or of any two files or tables.

    Columns that came or went, dtypes, presence, nulls, ranges that grew, new and vanished categories, with counts:

      mlops-ray schema diff -c configs/quickstart.yaml --from 1 --to 2

      mlops-ray schema diff january.parquet february.parquet
    """
    from mlops_ray.verbs import schema as verbs

    if config is None and (before is None or after is None):
        raise typer.BadParameter("give two files or tables, or -c FILE with --from and --to")
    if config is not None and before is not None:
        raise typer.BadParameter("give either data or -c FILE")
    data = (before, after) if before is not None and after is not None else None
    with progress(as_json) as on_progress:
        result = verbs.diff(config or (), os.environ, data, (first, last), kind, on_progress)
    if as_json:
        say(result, True, str)
    else:
        table_console().print(_table(result))
    if exit_code and result["changed"]:
        raise typer.Exit(3)


def _table(result: dict[str, Any]) -> Group:
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    rows = f"{result['before']} ({result['rows'][0]:,} rows) and {result['after']} ({result['rows'][1]:,} rows)"
    if not result["changed"]:
        return Group(Text(f"{rows}: the same schema"))
    table = Table("column", "what", "before", "after", "how much")
    for change in result["changes"]:
        sides = (_short(change["before"]), _short(change["after"]))
        if change["what"] == "categories":
            sides = ("", "")  # listed with their rows
        table.add_row(*map(Text, (change["column"], change["what"], *sides, change["detail"])))
    return Group(Text(rows), table)


def _short(value: Any) -> str:
    if isinstance(value, list):
        return " to ".join(map(str, value))
    return "" if value is None else str(value)
