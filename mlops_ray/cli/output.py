"""What all commands share: their options, and how results and progress reach people and machines."""

from __future__ import annotations

import contextlib
import json
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from rich.console import Console
from rich.markup import escape

from mlops_ray.texts import harmless_lines

Config = Annotated[
    list[Path],
    typer.Option(
        "--config", "-c", help="Project file; give it again for overlays, the last one wins.", show_default=False
    ),
]
Kind = Annotated[
    Literal["parquet", "csv", "json", "delta"] | None,
    typer.Option(help="What the files are, where their names do not say it."),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON document and nothing else.")]


def writable(path: Path | None) -> Path | None:
    """Callback of an option that names a file to write: says what is wrong with it before any work is done.

    Raises: typer.BadParameter (exit code 2) when nothing can be written there.
    """
    if path is None:
        return None
    if path.is_dir():
        raise typer.BadParameter(f"{path} is a directory; name a file in it")
    if not path.parent.is_dir():
        raise typer.BadParameter(f"there is no directory {path.parent}; make it first")
    if not os.access(path if path.exists() else path.parent, os.W_OK):
        raise typer.BadParameter(f"{path} may not be written; name another file")
    return path


def say(result: dict[str, Any], as_json: bool, line: Callable[[dict[str, Any]], str]) -> None:
    """Print a verb's result: one JSON document, or what `line` makes of it, without what a terminal would obey."""
    if as_json:
        typer.echo(json.dumps(result, default=str))
    else:
        Console().print(escape(harmless_lines(line(result))), soft_wrap=True, highlight=False)


def table_console() -> Console:
    """As wide as the terminal; wide enough for a table where there is none (a file, a log)."""
    return Console() if sys.stdout.isatty() else Console(width=140)


def day(at: float) -> str:
    """A time, seconds since the epoch, to the minute (UTC)."""
    from datetime import UTC, datetime

    return datetime.fromtimestamp(at, UTC).strftime("%Y-%m-%d %H:%M")


@contextlib.contextmanager
def progress(as_json: bool) -> Iterator[Callable[[str, int, int], None]]:
    """A rich progress bar per stage on standard error; silent for machines."""
    if as_json:
        yield lambda stage, done, total: None
        return
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=Console(stderr=True)) as bars:
        tasks: dict[str, Any] = {}

        def on_progress(stage: str, done: int, total: int) -> None:
            if stage not in tasks:
                tasks[stage] = bars.add_task(stage, total=total or None)
            bars.update(tasks[stage], completed=done, total=total or None)

        yield on_progress
