"""`mlops-ray alerts list | show | ack | silence | unsilence | test`: what is wrong now, and who is told."""

from __future__ import annotations

import os
import re
from typing import Annotated, Any

import typer

from mlops_ray.cli.output import AsJson, Config, day, say

app = typer.Typer(
    no_args_is_help=True,
    help=(
        "See what is wrong now, take it on, keep it quiet.\n\n"
        "An alert fires while the condition of a rule holds and resolves by itself when it does not; rules and "
        "channels stand in the project file's `alerts:`. [bold]ack[/] stops repeats and escalation of one alert, "
        "[bold]silence[/] keeps a rule or a subject quiet for a time; both are in the ledger with your name."
    ),
)

_UNITS = {"d": 86_400.0, "h": 3_600.0, "m": 60.0, "s": 1.0}


def duration(text: str) -> float:
    """Seconds of `90s`, `30m`, `2h`, `1d12h`. Raises: typer.BadParameter."""
    parts = re.findall(r"(\d+(?:\.\d+)?)([dhms])", text)
    if not parts or "".join(n + unit for n, unit in parts) != text:
        raise typer.BadParameter(f"{text!r} is no duration; write 30m, 2h or 1d12h")
    seconds = sum(float(n) * _UNITS[unit] for n, unit in parts)
    if not 0 < seconds <= 366 * _UNITS["d"]:
        raise typer.BadParameter(f"{text!r} is not between a second and a year")
    return seconds


Which = Annotated[str, typer.Argument(metavar="ID", help="An alert's id, or how it begins, as `list` shows it.")]
Why = Annotated[str, typer.Option(help="Reason, for the ledger and for others.")]


@app.command("list")
def list_(
    config: Config,
    resolved: Annotated[bool, typer.Option("--all", "-a", help="Also the last hundred that have resolved.")] = False,
    as_json: AsJson = False,
) -> None:
    """What is open now, worst first, and the silences that last.

    mlops-ray alerts list -c configs/flights.yaml
    """
    from mlops_ray.verbs import alerts as verbs

    def lines(result: dict[str, Any]) -> str:
        told = [_line(alert) for alert in result["alerts"]] or ["nothing is wrong"]
        told += [_silence(silence) for silence in result["silences"]]
        told += [f"{channel}: {n} messages could not be delivered" for channel, n in result["undelivered"].items()]
        told += [f"{channel}: {n} messages wait for their receiver" for channel, n in result["waiting"].items()]
        return "\n".join(told)

    say(verbs.alerts(config, os.environ, resolved=resolved), as_json, lines)


@app.command("show")
def show(config: Config, which: Which, as_json: AsJson = False) -> None:
    """One alert: why, since when, who has taken it on, and every attempt to tell somebody.

    mlops-ray alerts show -c configs/flights.yaml 4f0a
    """
    from mlops_ray.verbs import alerts as verbs

    def lines(result: dict[str, Any]) -> str:
        alert = result["alert"]
        told = [_line(alert)]
        told += [f"  first seen {day(alert['since'])}"]
        told += [f"  resolved {day(alert['ended'])}"] if alert["ended"] is not None else []
        if alert["ack"]:
            told += [f"  acknowledged by {alert['ack']['who']} {day(alert['ack']['at'])}: {alert['ack']['why']}"]
        told += [f"  silenced by {alert['silence']}"] if alert["silence"] else []
        for message in result["messages"]:
            kind = next(n["kind"] for n in message["notices"] if n["alert"] == alert["id"])
            told.append(f"  {day(message['created'])} {kind} to {message['channel']}: {message['status']}")
            told += [f"    {day(a['at'])} {a['result']}: {a['said']}" for a in message["attempts"]]
        return "\n".join(told)

    say(verbs.show(config, os.environ, which), as_json, lines)


@app.command("ack")
def ack(config: Config, which: Which, why: Why = "taken on", as_json: AsJson = False) -> None:
    """Take an alert on: it is no longer repeated or escalated. That it has resolved is still told.

    mlops-ray alerts ack -c configs/flights.yaml 4f0a --why "looking into it"
    """
    from mlops_ray.verbs import alerts as verbs

    say(verbs.ack(config, os.environ, which, why), as_json, lambda r: _line(r["alert"]))


@app.command("silence")
def silence(
    config: Config,
    for_: Annotated[float, typer.Option("--for", parser=duration, metavar="DURATION", help="Such as 30m, 2h, 1d12h.")],
    rule: Annotated[str, typer.Option(help="Only alerts of this rule.")] = "",
    subject: Annotated[str, typer.Option(help="Only about this: v3, retraining, ...")] = "",
    everything: Annotated[bool, typer.Option("--everything", help="All alerts of the project.")] = False,
    why: Why = "silenced by hand",
    as_json: AsJson = False,
) -> None:
    """Tell nobody for a time. Alerts are recorded all the same, and what still fires afterwards is told then.

    mlops-ray alerts silence -c configs/flights.yaml --rule drift --for 2h --why "the new airport opens today"
    """
    from mlops_ray.verbs import alerts as verbs

    if everything == bool(rule or subject):
        raise typer.BadParameter("say what: --rule, --subject or both; or --everything")
    result = verbs.silence(config, os.environ, rule=rule, subject=subject, for_s=for_, why=why)
    say(result, as_json, lambda r: _silence(r["silence"]))


@app.command("unsilence")
def unsilence(
    config: Config,
    which: Annotated[str, typer.Argument(metavar="ID", help="The silence's id, as `list` shows it.")],
    as_json: AsJson = False,
) -> None:
    """End a silence before its time.

    mlops-ray alerts unsilence -c configs/flights.yaml 9c41d2e0
    """
    from mlops_ray.verbs import alerts as verbs

    say(verbs.unsilence(config, os.environ, which), as_json, lambda r: f"silence {r['silence']['id']} has ended")


@app.command("test")
def try_channel(
    config: Config,
    channel: Annotated[str, typer.Argument(help="A channel of `alerts.channels`.")],
    as_json: AsJson = False,
) -> None:
    """Send a test notice through a channel, from this machine, and say what came back; exit code 3: not taken.

    mlops-ray alerts test -c configs/flights.yaml team
    """
    from mlops_ray.verbs import alerts as verbs

    result = verbs.try_channel(config, os.environ, channel)
    say(result, as_json, lambda r: f"{r['channel']} ({r['kind']} to {r['to']}): {r['result']}: {r['said']}")
    if not result["ok"]:
        raise typer.Exit(3)


def _line(alert: dict[str, Any]) -> str:
    since = day(alert["fired"] if alert["fired"] is not None else alert["since"])
    by = f" by {alert['ack']['who']}" if alert["state"] == "acknowledged" else ""
    return (
        f"{alert['id']}  {alert['state']}{by}  {alert['severity']}  {alert['rule']} of {alert['subject']}"
        f" since {since}: {alert['why']}"
    )


def _silence(silence: dict[str, Any]) -> str:
    what = " and ".join(f"{name} {silence[name]}" for name in ("rule", "subject") if silence[name]) or "everything"
    return f"silence {silence['id']}: {what}, until {day(silence['ends'])} UTC, by {silence['who']}: {silence['why']}"
