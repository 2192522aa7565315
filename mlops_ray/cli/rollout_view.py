"""How a rollout and its decisions look in a terminal."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

from rich.console import Group, RenderableType
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from mlops_ray.cli.output import day
from mlops_ray.rollout.canary import ENDED

_WIDTH = 31
COLOURS = {"pass": "green", "fail": "bold red", "inconclusive": "yellow"}
# Phases in the order of their way, as far as a plan's mode has them.
_WAYS = {
    "canary": ("starting", "ramping", "promoting", "promoted"),
    "shadow": ("starting", "shadowing", "promoting", "promoted"),
    "shadow_then_canary": ("starting", "shadowing", "ramping", "promoting", "promoted"),
    "ab": ("starting", "ramping", "promoting", "promoted"),
    "immediate": ("starting", "promoting", "promoted"),
}


def ended(outlook: Mapping[str, Any]) -> bool:
    """Whether there is nothing more to watch."""
    return outlook["phase"] in ENDED


def view(outlook: Mapping[str, Any]) -> Group:
    """A rollout as it stands: see `rollout.outlook.Outlook`, whose JSON this takes."""
    phase, reason = outlook["phase"], f" ({outlook['reason']})" if outlook["reason"] else ""
    versions = ", ".join(f"v{arm['version']}" for arm in outlook.get("arms", ())) or f"v{outlook['version']}"
    head = Text.assemble(
        (versions, "bold"),
        f" against v{outlook['against']}  ",
        (phase, "bold green" if phase == "promoted" else "bold"),
        f"{reason} since {day(outlook['since'])}   {outlook['id']}",
    )
    return Group(head, *_body(outlook))


def _body(outlook: Mapping[str, Any]) -> Iterator[RenderableType]:
    yield _way(outlook)
    if not ended(outlook):
        yield Text("  ".join(_spans(outlook)), style="dim")
    for arm in outlook.get("arms", ()):
        yield Text(_arm(arm))
    for what in outlook["waits"]:
        yield Text(f"waits for {what}")
    if outlook["metrics"]:
        yield metrics_table(outlook["metrics"])
        seen = f", seen {day(outlook['looked'])}" if outlook["looked"] is not None else ""
        yield Text.assemble("together: ", (str(outlook["verdict"]), COLOURS.get(str(outlook["verdict"]), "")), seen)


def _arm(arm: Mapping[str, Any]) -> str:
    if arm["dropped"]:
        return f"v{arm['version']}: dropped ({arm['dropped']}), its keys are stable's again"
    gain = "" if arm["gain"] is None else f", {arm['gain']:+.4f} better than stable by estimate"
    return f"v{arm['version']}: {arm['share']:.0%} of the keys{gain}" + (", proven: it has won" if arm["won"] else "")


def _way(outlook: Mapping[str, Any]) -> Text:
    """The phases of the plan with the present one marked, and the steps of the ramp."""
    text = Text()
    for phase in _WAYS.get(outlook["mode"], _WAYS["canary"]):
        here = outlook["phase"] == phase
        if phase == "ramping":
            steps = [f"{share:.0%}" for share in outlook["steps"]]
            ramps = outlook["share"] > 0 and outlook["phase"] != "shadowing"
            for at, step in enumerate(steps):
                text.append(f" {step} ", "reverse bold" if ramps and at == outlook["step"] else "dim")
                text.append("→" if at + 1 < len(steps) else "", "dim")
        else:
            text.append(f" {phase} ", "reverse bold" if here else "dim")
        text.append("→ " if phase != "promoted" else "", "dim")
    return text


def _spans(outlook: Mapping[str, Any]) -> Iterator[str]:
    if outlook["share"]:
        yield f"{outlook['share']:.1%} of the keys"
    if outlook["least_s"]:
        yield f"at least {span(outlook['least_s'])} more"
    if outlook["most_s"] is not None:
        yield f"time-out in {span(outlook['most_s'])}"
    if outlook["keys"]:
        yield f"about {outlook['keys']:,} keys to go at the present estimates"


def span(seconds: float) -> str:
    """A span of time in its two largest units.

    >>> span(93_784.0)
    '1 d 2 h'
    """
    whole = round(seconds)
    parts = [(whole // 86_400, "d"), (whole // 3_600 % 24, "h"), (whole // 60 % 60, "min"), (whole % 60, "s")]
    first = next((at for at, (n, _) in enumerate(parts) if n), len(parts) - 1)
    return " ".join(f"{n} {unit}" for n, unit in parts[first : first + 2] if n or first == len(parts) - 1)


def metrics_table(metrics: Any) -> Table:
    """Each metric's estimate and interval against its margin. Positive is worse."""
    table = Table(box=None, pad_edge=False, header_style="dim")
    has_arms = any(m.get("arm") is not None for m in metrics)
    if has_arms:
        table.add_column("arm")
    # Where it is narrow the numbers break, not what is read first.
    table.add_column("metric", no_wrap=True)
    table.add_column(f"{'better':<{_WIDTH // 2}}0{'margin | worse':>{_WIDTH // 2}}", no_wrap=True)
    for name in ("estimate", "interval", "margin", "keys", "rows", "largest key", "to go"):
        table.add_column(name, justify="right")
    if has_arms:
        table.add_column("evidence: worse / better", justify="right")
    table.add_column("verdict", no_wrap=True)
    for m in metrics:
        low, high = m.get("low"), m.get("high")
        interval = f"{low:+.4f} … {high:+.4f}" if low is not None and high is not None else ""
        rows, largest, needed = m.get("n_rows"), m.get("largest_key"), m.get("needed")
        better = "" if m.get("evidence_better") is None else f" / {m['evidence_better']:.3g}"
        table.add_row(
            *([f"v{m['arm']}"] if has_arms else []),
            escape(str(m["name"])),
            Text(bar(m["estimate"], low, high, m["margin"])),
            f"{m['estimate']:+.4f}",
            interval,
            f"{m['margin']:g}",
            f"{m['n_keys']:,}",
            "" if rows is None else f"{rows:,}",
            "" if largest is None else f"{largest:.1%}",
            f"{needed:,} keys" if needed else "",
            *([f"{m['evidence_worse']:.3g}{better}"] if has_arms else []),
            Text(str(m["verdict"]), COLOURS.get(str(m["verdict"]), "")),
        )
    return table


def bar(estimate: float, low: float | None, high: float | None, margin: float) -> str:
    """An interval drawn on a line from -2 to +2 margins: `│` no difference, `┆` the margin, `●` the estimate.

    >>> bar(0.0, -0.01, 0.01, 0.02)
    '        ├──────●──────┤┆       '
    """

    def place(value: float) -> int:
        share = (value / margin + 2) / 4 if margin > 0 else 0.5
        return min(_WIDTH - 1, max(0, round(share * (_WIDTH - 1))))

    line = [" "] * _WIDTH
    line[place(0.0)], line[place(margin)] = "│", "┆"
    if low is not None and high is not None:
        first, last = place(low), place(high)
        for at in range(first, last + 1):
            line[at] = "─" if line[at] == " " else "┼"
        line[first], line[last] = ("◂" if low < -2 * margin else "├"), ("▸" if high > 2 * margin else "┤")
    line[place(estimate)] = "●"
    return "".join(line)


def explained(result: Mapping[str, Any]) -> Group:
    """Decisions with their evidence as the ledger kept it; nothing is computed anew."""
    parts: list[RenderableType] = [Text(str(result["rollout"]), "bold")]
    for entry in result["entries"]:
        parts.append(Text(f"\n{entry['seq']:4d}  {day(entry['at'])}  {entry['kind']}  by {entry['who']}", "bold"))
        parts += [Text(f"      {line}") for line in str(entry["why"]).split("; ")]
        analysis = entry["evidence"].get("analysis")
        if analysis is not None:
            parts.append(metrics_table(analysis["metrics"]))
            parts.append(Text(f"      together: {analysis['verdict']}"))
        rest = {k: v for k, v in entry["evidence"].items() if k not in ("analysis", "rollout")}
        parts.append(Text(f"      {json.dumps(rest, sort_keys=True)}", "dim"))
        parts.append(Text(f"      sealed as {entry['hash']}", "dim"))
    return Group(*parts)
