"""The command `mlops-ray`: teaches by `--help`, shows progress to people, prints JSON for machines.

Exit codes: 0 done, 1 fault, 2 wrong configuration or order, 3 refused by validation, by the
gates or by evidence, 4 not decided by the evidence there is.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape

from mlops_ray.cli import access, alerts, backup, data, ledger, log, models, monitoring, rollout
from mlops_ray.cli.analyze import analyze
from mlops_ray.cli.dashboard import dashboard
from mlops_ray.cli.output import AsJson, Config, progress, say, table_console, writable
from mlops_ray.cli.profile import drift, profile
from mlops_ray.cli.schema import schema_app
from mlops_ray.cli.scoring import score
from mlops_ray.cli.simulate import simulate
from mlops_ray.errors import DataRefused, GateRejected, MlopsRayError
from mlops_ray.texts import harmless, harmless_lines

app = typer.Typer(
    name="mlops-ray",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
    help=(
        "The whole life of a tabular model as one closed loop on one Ray cluster.\n\n"
        "Start with [bold]mlops-ray check -c configs/quickstart.yaml[/], then [bold]run[/], [bold]status[/], "
        "[bold]down[/]; or watch a year of flights: [bold]mlops-ray demo[/]."
    ),
    epilog=(
        "Exit codes: 0 done, 1 fault, 2 wrong configuration or order, 3 refused by validation, gates or evidence, "
        "4 not decided by the evidence there is."
    ),
)
app.add_typer(rollout.app, name="rollout")
app.add_typer(ledger.app, name="ledger")
app.add_typer(alerts.app, name="alerts")
app.add_typer(data.app, name="data")
app.add_typer(log.app, name="log")
app.add_typer(monitoring.app, name="monitoring")
app.add_typer(access.app, name="token")
for command in (
    dashboard,
    profile,
    drift,
    analyze,
    simulate,
    score,
    models.lineage,
    models.card,
    models.reproduce,
    models.export,
):
    app.command()(command)
for decision in (models.approve, models.reject):
    app.command()(decision)
app.command()(backup.backup)
app.command()(backup.restore)
app.add_typer(schema_app, name="schema")


def main() -> None:
    """Entry point of the command."""
    try:
        app(standalone_mode=True)
    except MlopsRayError as exc:
        Console(stderr=True).print(
            f"[bold red]error[/] {escape(harmless_lines(str(exc)))}", soft_wrap=True, highlight=False
        )
        sys.exit(exc.exit_code)
    except Exception as exc:
        if os.environ.get("MLOPS_RAY_DEBUG"):
            raise
        says = f"{type(exc).__name__}: {str(exc).strip() or 'no message'}"
        hint = "set MLOPS_RAY_DEBUG=1 to see where"
        Console(stderr=True).print(
            f"[bold red]fault[/] {escape(harmless_lines(says))}; {hint}", soft_wrap=True, highlight=False
        )
        sys.exit(1)


@app.command()
def check(config: Config, as_json: AsJson = False) -> None:
    """Say everything that is wrong with a project file, with line, field, value and remedy. Needs no cluster."""
    from mlops_ray import verbs

    say(
        verbs.check(config, os.environ),
        as_json,
        lambda r: f"{r['project']}: {len(r['features'])} features, no problems",
    )


@app.command()
def prepare(
    config: Config,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Check everything, commit nothing.")] = False,
    html: Annotated[
        Path | None, typer.Option(help="Write the validation report, with plots, to this file.", callback=writable)
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Read the source, check every row, quarantine bad ones, and commit an immutable dataset version.

    The same rows again, in any order, give the same version and write nothing. Exit code 3 when the rows are not what
    `validation:` expects; what was wrong stands in the message and in the report.
    """
    from mlops_ray import verbs

    try:
        with progress(as_json) as on_progress:
            result = verbs.prepare(config, os.environ, on_progress, dry_run=dry_run, page=html)
    except DataRefused as exc:
        if as_json:
            say({"dataset": None, "report": exc.report, "refused": list(exc.reasons), "page": exc.page}, True, str)
        raise
    say(result, as_json, _prepared)
    if result["refused"]:
        raise typer.Exit(3)


@app.command()
def train(
    config: Config,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with the newest search over the same rows that did not end well.")
    ] = False,
    html: Annotated[
        Path | None, typer.Option(help="Write the gates' report, with plots, to this file.", callback=writable)
    ] = None,
    junit: Annotated[
        Path | None, typer.Option(help="Write the gates' result as JUnit XML, for CI.", callback=writable)
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Search, judge and register: Ray Tune over all candidates, then statistical gates against the champion.

    Exit code 3 when the gates refuse the winner; their reasons are in the message, in the MLflow run and in the files
    that --html and --junit name.
    """
    from mlops_ray import verbs

    try:
        with progress(as_json) as on_progress:
            result = verbs.train(config, os.environ, on_progress, resume=resume, page=html, junit=junit)
    except GateRejected as exc:
        if as_json and exc.report:
            say(exc.report, True, str)
        raise
    except KeyboardInterrupt:
        Console(stderr=True).print("interrupted; finished trials are kept: go on with `mlops-ray train --resume`")
        raise typer.Exit(130) from None  # as shells count a process that SIGINT ended
    say(result, as_json, _trained)


@app.command()
def up(config: Config, as_json: AsJson = False) -> None:
    """Start (or join) the cluster, serve the champion, and keep monitor, collector and controller running."""
    from mlops_ray import verbs

    with progress(as_json) as on_progress:
        result = verbs.up(config, os.environ, on_progress)
    say(result, as_json, lambda r: r["hint"] or f"v{r['stable']} answers at {r['url']}/predict")


@app.command()
def run(config: Config, as_json: AsJson = False) -> None:
    """Prepare, train and deploy. A first version serves at once; a later one goes through gates and a canary."""
    from mlops_ray import verbs

    with progress(as_json) as on_progress:
        result = verbs.run(config, os.environ, on_progress)
    say(
        result,
        as_json,
        lambda r: (
            f"{_prepared(r['prepare'])}\n{_trained(r['train'])}\n"
            f"v{r['deploy']['stable']} answers at {r['deploy']['url']}/predict"
            + (f"; rollout {r['rollout']} has started" if r["rollout"] else "")
        ),
    )


@app.command()
def down(config: Config, as_json: AsJson = False) -> None:
    """Take the project down. Only its own processes end; state, models and logs stay."""
    from mlops_ray import verbs

    say(verbs.down(config, os.environ), as_json, lambda r: f"{r['ended_processes']} processes ended")


@app.command()
def status(config: Config, as_json: AsJson = False) -> None:
    """Where the project stands: stable, canary, retrain, last decisions; with --json also versions and windows."""
    from mlops_ray import verbs
    from mlops_ray.verbs.tables import status_table

    result = verbs.status(config, os.environ)
    if as_json:
        say(result, True, str)
    else:
        table_console().print(status_table(harmless(result)))


@app.command()
def retrain(
    config: Annotated[list[Path] | None, typer.Option("--config", "-c", help="Project file, then overlays.")] = None,
    decision: Annotated[
        str | None, typer.Option(help="Carry out this decision instead of recording a new one.")
    ] = None,
    reason: Annotated[str, typer.Option(help="What the ledger says about a manual retrain.")] = "manual",
    if_changed: Annotated[
        bool,
        typer.Option("--if-changed", help="Only if code or project file would make another model; for CI."),
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Train on the newest labelled traffic, judge, and start a canary when the gates pass (exit code 3: refused)."""
    from mlops_ray import verbs

    if if_changed and decision is not None:
        raise typer.BadParameter("--if-changed makes a decision of its own; leave --decision out")
    result = verbs.retrain(config or (), os.environ, decision, reason, if_changed=if_changed)
    say(result, as_json, _retrained)


def _retrained(result: dict[str, Any]) -> str:
    if result["status"] == "unchanged":
        return "nothing has changed since the newest version was trained"
    return f"v{result['version']} passed its gates; rollout {result.get('rollout')}"


@app.command()
def demo(
    fast: Annotated[bool, typer.Option(help="Two months instead of seven.")] = False,
    speed: Annotated[
        float | None, typer.Option(help="Seconds of flights per second; default: as fast as it goes.")
    ] = None,
    per_flight: Annotated[bool, typer.Option(help="One request per flight instead of one per departure hour.")] = False,
    summary: Annotated[Path, typer.Option(help="Where the summary goes.")] = Path("demo-summary.json"),
    as_json: AsJson = False,
) -> None:
    """Watch the loop close on real flights: train on January and February 2013, then live through the year.

    Trains, serves, replays flights as HTTP requests with labels that arrive when the flights land, sees drift,
    retrains, tries the new model on a canary, promotes it or rolls it back. Ends by itself.
    """
    from mlops_ray.demo.on_ray import run_demo

    with progress(as_json) as on_progress:
        result = run_demo(os.environ, fast=fast, speed=speed, per_flight=per_flight, on_progress=on_progress)
    summary.write_text(json.dumps(result, indent=1), encoding="utf-8")
    if as_json:
        say(result, True, str)
    else:
        from mlops_ray.verbs.tables import demo_table

        table_console().print(demo_table(result))
        Console().print(f"summary: {summary}")
    if broken := result["broken_promises"]:
        Console(stderr=True).print(f"[bold red]broken:[/] {escape('; '.join(broken))}", soft_wrap=True)
        raise typer.Exit(1)


@app.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True})
def submit(
    context: typer.Context,
    verb: Annotated[str, typer.Argument(help="prepare, train, run, retrain or up")],
    address: Annotated[str | None, typer.Option(help="Dashboard of the cluster, http://host:8265.")] = None,
    working_dir: Annotated[Path, typer.Option(help="Directory that the job sees.")] = Path(),
) -> None:
    """Run a verb as a Ray Job on a cluster and follow its log; the exit code is the job's.

    Everything after the verb goes to it: mlops-ray submit train --address http://head:8265 -c configs/flights.yaml
    """
    from mlops_ray.cluster.on_jobs import submit_verb

    raise typer.Exit(submit_verb(verb, context.args, address or os.environ.get("RAY_ADDRESS"), working_dir, print))


# output


def _prepared(result: dict[str, Any]) -> str:
    report, dataset = result["report"], result["dataset"]
    head = (
        f"dataset v{dataset['version']} ({dataset['content_hash'][:12]}): {dataset['rows']:,} rows"
        if dataset
        else f"nothing was committed: {report['n_kept']:,} good rows"
        + (f", {result['inputs']} columns for an estimator" if "inputs" in result else "")
    )
    lines = [f"{head}; {report['n_read']:,} read, {report['n_quarantined']:,} in quarantine"]
    for finding in report["findings"]:
        if finding["passed"] is not True:
            state = (
                "not judged" if finding["passed"] is None else "BROKEN" if finding["on_fail"] == "stop" else "warning"
            )
            lines.append(f"  {state}: {finding['id']}: wanted {finding['wanted']}; observed {finding['observed']}")
    return "\n".join([*lines, *(f"  it would be refused: {reason}" for reason in result["refused"])])


def _trained(result: dict[str, Any]) -> str:
    metrics = ", ".join(f"{k} {v:.4f}" for k, v in result["metrics"].items())
    waits = "; it waits for `mlops-ray approve`" if result.get("status") == "pending" else ""
    return f"v{result['version']} registered: {metrics}{waits}"
