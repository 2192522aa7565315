"""`mlops-ray score`."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Any

import typer

from mlops_ray.cli.output import AsJson, Config, Kind, progress, say, writable


def score(
    config: Config,
    data: Annotated[
        str,
        typer.Option(
            "--input", "-i", help="A file, a pattern, a folder, a Delta table; or `source`, the project's own."
        ),
    ],
    output: Annotated[str, typer.Option("--output", "-o", help="A new folder of Parquet files, or delta:PATH.")],
    kind: Kind = None,
    version: Annotated[str, typer.Option(help="A registered version, or champion.")] = "champion",
    profile: Annotated[
        Path | None, typer.Option(help="Write the profile of inputs and scores to this file.", callback=writable)
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with a batch that was cut off.")] = False,
    as_json: AsJson = False,
) -> None:
    """Score rows in bulk, on the cluster, with the same model object and rules as a request.

    Bad rows go to `_mlops_ray/score-<id>/rejects` below the output, with the rules that they broke. A Delta table gets
    all rows in one commit. Scoring the same batch again with --resume adds nothing.
    """
    from mlops_ray.verbs import scoring

    with progress(as_json) as on_progress:
        result = scoring.score(
            config,
            os.environ,
            data,
            output,
            on_progress,
            kind=kind,
            version=version,
            profile=profile,
            resume=resume,
        )
    say(result, as_json, _line)


def _line(result: dict[str, Any]) -> str:
    lines = [f"v{result['version']} scored {result['scored']:,} of {result['read']:,} rows into {result['output']}"]
    if result["rejected"]:
        aside = f"{result['output']}/_mlops_ray/score-{result['batch']}/rejects"
        lines.append(f"{result['rejected']:,} rows were refused and stand in {aside}:")
        lines += [f"  {rule}: {n:,}" for rule, n in result["rejects"].items()]
    if result["resumed"]:
        lines.append(f"{result['resumed']} of {result['blocks']} blocks were finished before")
    return "\n".join(lines)
