"""`mlops-ray backup | restore`: a project's state as one file."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Any

import typer

from mlops_ray.cli.output import AsJson, Config, day, progress, say


def backup(
    config: Config,
    output: Annotated[Path, typer.Option("--output", "-o", help="A new file, or the folder to put one into.")],
    models: Annotated[bool, typer.Option(help="With the artifacts of all versions.")] = True,
    data: Annotated[bool, typer.Option(help="With the Delta tables: dataset versions, log, labels.")] = False,
    as_json: AsJson = False,
) -> None:
    """Write state, ledger, MLflow's versions and aliases to one file, of one instant; the project may run meanwhile.

    The file holds what the state database holds, the hashes of tokens and the secret of hashed keys too: keep it so.
    """
    from mlops_ray.verbs import backup as verbs

    with progress(as_json) as on_progress:
        result = verbs.backup(config, os.environ, output, on_progress, models=models, data=data)
    say(result, as_json, _written)


def restore(
    config: Config,
    file: Annotated[Path, typer.Argument(metavar="FILE", help="A backup.")],
    force: Annotated[bool, typer.Option("--force", help="Replace the state that is there.")] = False,
    reason: Annotated[str, typer.Option(help="Why, for the ledger.")] = "restored from a backup",
    as_json: AsJson = False,
) -> None:
    """Put a backup back and verify the ledger. Take the project down first.

    The state is replaced whole or stays as it was; artifacts, tables and MLflow's entries come before it, so that a
    restore which stopped half way is simply run again.

    Exit code 1 when heads that were kept in MLflow do not fit the restored ledger.
    """
    from mlops_ray.verbs import backup as verbs

    with progress(as_json) as on_progress:
        result = verbs.restore(config, os.environ, file, on_progress, force=force, why=reason)
    say(result, as_json, _restored)
    if not result["ok"]:
        raise typer.Exit(1)


def _written(result: dict[str, Any]) -> str:
    holds = f"{sum(result['rows'].values()):,} rows, {result['versions']} versions, {result['models']} artifacts"
    return (
        f"{result['file']}, {result['bytes'] / 1e6:.1f} MB: {holds}, {result['tables']} tables\n"
        f"head of the ledger: {result['head'][0]}:{result['head'][1]}"
    )


def _restored(result: dict[str, Any]) -> str:
    lost = f"; {result['gave_up']} entries of the ledger after it are given up" if result["gave_up"] else ""
    return (
        f"{result['project']} is as it was on {day(result['created'])} (UTC){lost}\n"
        f"{result['models']} artifacts and {len(result['tables'])} tables were put back\n{result['says']}"
    )
