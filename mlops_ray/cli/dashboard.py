"""`mlops-ray dashboard`: the page about one project."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Any

import typer

from mlops_ray.cli.output import AsJson, Config, say, writable


def dashboard(
    config: Config,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            metavar="FILE",
            callback=writable,
            help="Write a snapshot: one HTML file with the data inside.",
        ),
    ] = None,
    show: Annotated[bool, typer.Option("--open", help="Open the page, or the snapshot, in your browser.")] = False,
    as_json: AsJson = False,
) -> None:
    """Where the dashboard is, and where the loop stands: one live page that the project's own endpoint serves.

    It shows the loop, traffic by version, quality realised and estimated, drift, rollouts with their confidence
    sequences, retrains, lineage and the ledger. A snapshot shows the same without a server: for an incident's record.

    mlops-ray dashboard -c configs/flights.yaml --output incident.html
    """
    from mlops_ray.verbs.dashboard import dashboard as found

    result = found(config, os.environ, output=output)
    if show:
        import webbrowser

        webbrowser.open(output.absolute().as_uri() if output is not None else result["url"])
    say(result, as_json, _lines)


def _lines(result: dict[str, Any]) -> str:
    token = "; it asks for a token with the role read" if result["needs_token"] else ""
    lines = [f"{result['url']}{token}", result["says"]]
    return "\n".join([*lines, *([f"snapshot: {result['output']}"] if result["output"] else [])])
