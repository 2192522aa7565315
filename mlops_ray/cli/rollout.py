"""`mlops-ray rollout`: watch and steer the way of a new version to traffic."""

from __future__ import annotations

import json
import os
import time
from typing import Annotated, Any

import typer

from mlops_ray.cli.output import AsJson, Config, day, say, table_console
from mlops_ray.texts import harmless

app = typer.Typer(
    no_args_is_help=True,
    help=(
        "Watch and steer the rollout of a new version.\n\n"
        "A version goes from pending over starting, shadowing, ramping and baking to promoted, as far as the evidence "
        "carries it; the plan stands in the project file's `rollout:`. Watch it with [bold]status -w[/], ask "
        "[bold]explain[/] why something was decided. An order that the phase does not allow exits with 2 and says what "
        "is possible."
    ),
)

Why = Annotated[str, typer.Option(help="Reason for the ledger: a sentence in one line, 1,000 characters at most.")]
Of = Annotated[
    str | None,
    typer.Option(
        "--rollout", metavar="ID", help="The rollout that you mean; if orders are about another by now: exit code 2."
    ),
]
# Between two looks of `status --watch`, which read the state database only: it tells nobody that it has changed.
_WATCH_S = 1.0


@app.command("start")
def start(
    config: Config,
    versions: Annotated[
        list[int],
        typer.Argument(
            metavar="VERSION...",
            help="A registered version; `mlops-ray status` lists them. Several where the plan says `mode: ab`.",
        ),
    ],
    why: Why = "ordered by hand",
    supersede: Annotated[
        bool, typer.Option("--supersede", help="Take the place of an open rollout that is not decided yet.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Start a rollout of a registered version, as the project file's `rollout:` says now.

    mlops-ray rollout start -c configs/flights.yaml 7 --why "the one from Tuesday"
    """
    from mlops_ray.verbs import rollout as verbs

    first, *others = versions
    result = verbs.start(config, os.environ, first, why, beside=others, supersede=supersede)
    say(result, as_json, lambda r: f"rollout {r['rollout']} has started")


@app.command("status")
def status(
    config: Config,
    watch: Annotated[
        bool, typer.Option("--watch", "-w", help="Keep showing it until it has ended; Ctrl-C leaves it alone.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """The open rollout: phase, step, share, each metric's interval against its margin, what it waits for.

    With --watch a live view; with --watch --json one line whenever something has changed.
    """
    from mlops_ray.verbs import rollout as verbs

    if watch:
        _watch(config, as_json)
        return
    result = verbs.status(config, os.environ)
    if as_json or not result.get("outlook"):
        say(result, as_json, _line)
        return
    from mlops_ray.cli.rollout_view import view

    table_console().print(view(harmless(result["outlook"])))


def _watch(config: Config, as_json: bool) -> None:
    from rich.live import Live

    from mlops_ray.cli.rollout_view import ended, view
    from mlops_ray.verbs import rollout as verbs

    found = verbs.status(config, os.environ)
    if found["outlook"] is None:
        say(found, as_json, _line)
        return
    watched = found["outlook"]["id"]
    console = table_console()
    with Live(console=console, auto_refresh=False, transient=False) if not as_json else _Silent() as live:
        shown: dict[str, Any] | None = None
        try:
            while True:
                if as_json:
                    # `now` moves by itself; what is worth a line is the rest.
                    told = {k: v for k, v in found["outlook"].items() if k not in ("now", "least_s", "most_s")}
                    if told != shown:
                        typer.echo(json.dumps(found, default=str))
                    shown = told
                else:
                    live.update(view(harmless(found["outlook"])), refresh=True)
                if ended(found["outlook"]):
                    return
                time.sleep(_WATCH_S)
                found = verbs.status(config, os.environ, of=watched)
        except KeyboardInterrupt:
            raise typer.Exit(130) from None  # as shells count a process that SIGINT ended


class _Silent:
    """Stands for the live view where a program reads."""

    def __enter__(self) -> Any:
        return self

    def __exit__(self, *_: object) -> None:
        return None


@app.command("history")
def history(config: Config, as_json: AsJson = False) -> None:
    """All rollouts, newest first, and how each ended."""
    from mlops_ray.verbs import rollout as verbs

    result = verbs.history(config, os.environ)
    say(result, as_json, lambda r: "\n".join(_line({"rollout": o}) for o in r["rollouts"]) or "no rollouts yet")


@app.command("explain")
def explain(
    config: Config,
    which: Annotated[
        str | None, typer.Argument(help="A rollout's id, or a version (its newest rollout). Default: the newest one.")
    ] = None,
    entry: Annotated[int | None, typer.Option(help="Only the decision with this number in the ledger.")] = None,
    as_json: AsJson = False,
) -> None:
    """Why a rollout went the way it did: each decision with its evidence, exactly as the ledger kept it.

    mlops-ray rollout explain -c configs/flights.yaml v7
    """
    from mlops_ray.verbs import rollout as verbs

    result = verbs.explain(config, os.environ, which, entry=entry)
    if as_json:
        say(result, True, str)
        return
    from mlops_ray.cli.rollout_view import explained

    table_console().print(explained(harmless(result)))


def _ordered(
    config: Config,
    name: str,
    of: str | None,
    why: str,
    as_json: bool,
    *,
    to: int | None = None,
    version: int | None = None,
) -> None:
    from mlops_ray.verbs import rollout as verbs

    result = verbs.move(config, os.environ, name, why, of=of, to=to, version=version)
    say(result, as_json, lambda r: f"rollout {r['rollout']} is {r['phase']}")


@app.command("pause")
def pause(config: Config, rollout: Of = None, why: Why = "ordered by hand", as_json: AsJson = False) -> None:
    """Hold the rollout at its present share. What is proven worse is still taken out."""
    _ordered(config, "pause", rollout, why, as_json)


@app.command("resume")
def resume(config: Config, rollout: Of = None, why: Why = "ordered by hand", as_json: AsJson = False) -> None:
    """Go on with a paused rollout; the step's time begins anew."""
    _ordered(config, "resume", rollout, why, as_json)


@app.command("promote")
def promote(
    config: Config,
    version: Annotated[
        int | None, typer.Option(help="Which of several that are on trial; may be left out where there is one.")
    ] = None,
    rollout: Of = None,
    why: Why = "ordered by hand",
    as_json: AsJson = False,
) -> None:
    """Make the new version stable now, whatever the evidence says; while it bakes: end that.

    Where the plan asks for approval before promotion, the rollout waits for it here too.
    """
    _ordered(config, "promote", rollout, why, as_json, version=version)


@app.command("abort")
def abort(config: Config, rollout: Of = None, why: Why = "ordered by hand", as_json: AsJson = False) -> None:
    """Take the new version out; stable answers everything.

    mlops-ray rollout abort -c configs/flights.yaml --rollout flights-v7-r3 --why "complaints"
    """
    _ordered(config, "abort", rollout, why, as_json)


@app.command("rollback")
def rollback(
    config: Config,
    to: Annotated[
        int | None, typer.Option(metavar="VERSION", help="A version that was stable before. Default: the last one.")
    ] = None,
    rollout: Of = None,
    why: Why = "ordered by hand",
    as_json: AsJson = False,
) -> None:
    """Go back to the version before the last promotion, at once while it is kept warm, or to another earlier one.

    With --to it works at any time: an open rollout is ended, and a new one makes the older version stable as soon as
    all replicas have loaded it and its golden requests hold.

    mlops-ray rollout rollback -c configs/flights.yaml --to 3 --why "complaints"
    """
    _ordered(config, "rollback", rollout, why, as_json, to=to)


def _line(result: dict[str, Any]) -> str:
    row = harmless(result["rollout"])
    if not row:
        return "no rollout is open"
    state = row["state"]
    share = f" at {result['share']:.0%}" if result.get("share") else ""
    why = f" ({state['reason']})" if state["reason"] else ""
    versions = ", ".join(f"v{arm['version']}" for arm in state.get("arms", ())) or f"v{row['version']}"
    return (
        f"{versions} against v{row['stable']}: {state['phase']}{share}{why}, since {day(state['since'])}, {row['id']}"
    )
