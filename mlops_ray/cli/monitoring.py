"""`mlops-ray monitoring rules | dashboard`: what Prometheus and Grafana are given."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Annotated, Any

import typer

from mlops_ray.cli.output import AsJson, Config, say, writable

app = typer.Typer(no_args_is_help=True, help="Rules for Prometheus and a dashboard for Grafana, from the project file.")

Output = Annotated[
    Path | None,
    typer.Option("--output", "-o", help="Write to this file; default: standard output.", callback=writable),
]


@app.command()
def rules(config: Config, output: Output = None, as_json: AsJson = False) -> None:
    """Recording and alerting rules for Prometheus. Needs no cluster and no state.

    Thresholds are the project file's: make them again when it changes. Prometheus reads the file that `rule_files:`
    of its configuration names; `promtool check rules` checks it.

    mlops-ray monitoring rules -c configs/flights.yaml -o flights-rules.yaml
    """
    from mlops_ray.monitoring.prometheus.rules import text
    from mlops_ray.verbs import monitoring

    document = monitoring.rules(config, os.environ)
    found = [rule for group in document["groups"] for rule in group["rules"]]
    counts = {"recorded": sum("record" in rule for rule in found), "alerts": sum("alert" in rule for rule in found)}
    _give(
        document,
        text(document),
        output,
        as_json,
        counts,
        f"{counts['recorded']} recorded series and {counts['alerts']} alerts",
    )


@app.command()
def dashboard(config: Config, output: Output = None, as_json: AsJson = False) -> None:
    """A dashboard for Grafana, as the JSON that it imports or finds in a folder that it was told of. Needs no cluster.

    It asks which Prometheus to read, shows this project first, and has the others in a list.

    mlops-ray monitoring dashboard -c configs/flights.yaml -o flights-dashboard.json
    """
    from mlops_ray.verbs import monitoring

    document = monitoring.dashboard(config, os.environ)
    n = sum(panel["type"] != "row" for panel in document["panels"])
    counts = {"uid": document["uid"], "panels": n}
    _give(document, json.dumps(document, indent=2) + "\n", output, as_json, counts, f"{n} panels, {document['uid']}")


def _give(
    document: dict[str, Any], text: str, output: Path | None, as_json: bool, counts: dict[str, Any], words: str
) -> None:
    if output is not None:
        output.write_text(text, encoding="utf-8")
        say({"output": str(output), **counts}, as_json, lambda r: f"{r['output']}: {words}")
    elif as_json:
        say(document, True, str)
    else:
        typer.echo(text, nl=False)
