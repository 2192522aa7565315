"""Charts of a simulation as inline SVG: loss by month, who answered, and what alarmed, over one axis of time.

Drawn twice, for a desk and for a phone; the page's style sheet shows one. What they show stands in the page's tables
as well.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from html import escape
from typing import Any

STYLE = """
figure { margin: 1rem 0 } svg { display: block; width: 100%; height: auto } svg.narrow { display: none }
svg text { fill: var(--soft); font: 12px system-ui, sans-serif } svg .name { fill: var(--ink); font-weight: 600 }
.grid { stroke: var(--line) } .ours { fill: none; stroke: var(--data); stroke-width: 2.5 }
.never { fill: none; stroke: var(--soft); stroke-width: 1.5; stroke-dasharray: 5 4 }
svg .ours-name { fill: var(--data) }
.v0 { fill: var(--a) } .v1 { fill: var(--b) } .v2 { fill: var(--c) } .v3 { fill: var(--d) }
svg rect { shape-rendering: crispEdges } svg .on { fill: #fff; font-weight: 600 }
.quiet { fill: var(--line) } .loud { fill: var(--fail) }
.decided { stroke: var(--ink); stroke-width: 1.5 } .went { fill: var(--ink) } .back { fill: none; stroke: var(--ink) }
@media (max-width: 640px) { svg.broad { display: none } svg.narrow { display: block } }
"""
_SHORT = {"multivariate": "together", "sequential": "blocks"}
"""Names of rows that there is little room for."""
_ENDS = {"retrain decided": "retrain", "rollout promoted": "promoted", "rollout rolled back": "rolled back"}
_HUES = 4


def charts(run: Mapping[str, Any], number: int) -> str:
    """A run's figure. Args: number: of the run on its page."""
    if not run["months"] or not run["served"]:
        return ""
    drawn = (_Chart(run, f"r{number}{kind}", kind, width).svg() for width, kind in ((760, "broad"), (350, "narrow")))
    return f"<figure>{''.join(drawn)}</figure>"


@dataclass(frozen=True)
class _Chart:
    """One drawing. Three panels, from top to bottom."""

    run: Mapping[str, Any]
    name: str
    kind: str
    width: int
    left = 74.0
    right = 14.0
    loss = (34.0, 150.0)
    served = (222.0, 70.0)
    rows = (330.0, 22.0)
    """Top and height of each panel; of the last, of each of its rows."""

    @property
    def floor(self) -> float:
        """Where the axis of time lies."""
        return self.rows[0] + self.rows[1] * (len(self._kinds()) + 1)

    def x(self, at: float) -> float:
        since, until = float(self.run["from"]), float(self.run["until"])
        return self.left + (self.width - self.left - self.right) * (at - since) / max(until - since, 1.0)

    def svg(self) -> str:
        name = self.name
        return (
            f'<svg class="{self.kind}" viewBox="0 0 {self.width} {self.floor + 26:.0f}" role="img" '
            f'aria-labelledby="{name}t {name}d"><title id="{name}t">Loss, versions and alarms over time</title>'
            f'<desc id="{name}d">{escape(self._described())}</desc>'
            f"{''.join(self._months())}{''.join(self._losses())}{''.join(self._versions())}{''.join(self._alarms())}</svg>"
        )

    def _described(self) -> str:
        months = "; ".join(
            f"{m['month']}: {m['loss']:.4f}, never retrained {m['loss_never']:.4f}"
            for m in self.run["months"]
            if m["loss"] is not None
        )
        ends = ", ".join(f"{_day(d['at'])} {_ENDS[d['kind']]}" for d in self._ends())
        return f"Loss by month: {months}. {ends}." if ends else f"Loss by month: {months}."

    def _kinds(self) -> list[str]:
        """What judged anything, in the order of its first judgement."""
        return list(dict.fromkeys(w["kind"] for w in self.run["windows"]))

    def _ends(self) -> Iterator[Mapping[str, Any]]:
        yield from (d for d in self.run["decisions"] if d["kind"] in _ENDS)

    def _months(self) -> Iterator[str]:
        """The axis of time, by months, with as many names as there is room for."""
        free = 0.0
        for start, _, month in self._spans():
            x = self.x(start)
            yield f'<line class="grid" x1="{x:.1f}" x2="{x:.1f}" y1="{self.loss[0]}" y2="{self.floor + 4}"/>'
            if x >= free and x < self.width - 30:
                yield f'<text x="{x:.1f}" y="{self.floor + 18}">{datetime.strptime(month, "%Y-%m"):%b}</text>'
                free = x + 34

    def _spans(self) -> Iterator[tuple[float, float, str]]:
        """Start, end and name of each month that has rows."""
        for m in self.run["months"]:
            start = datetime.strptime(m["month"], "%Y-%m").replace(tzinfo=UTC)
            end = start.replace(year=start.year + start.month // 12, month=start.month % 12 + 1)
            yield max(start.timestamp(), self.run["from"]), min(end.timestamp(), self.run["until"]), m["month"]

    def _losses(self) -> Iterator[str]:
        told = [
            (a, b, m) for (a, b, _), m in zip(self._spans(), self.run["months"], strict=True) if m["loss"] is not None
        ]
        if not told:
            return
        values = [float(m[which]) for _, _, m in told for which in ("loss", "loss_never")]
        low, high = min(values), max(values)
        room = max(high - low, 1e-6)
        top, height = self.loss

        def y(value: float) -> float:
            return top + height * (high + 0.08 * room - value) / (1.16 * room)

        yield f'<text class="name" x="0" y="{top - 16}">Loss by month</text>'
        yield f'<text class="ours-name" x="110" y="{top - 16}">served</text>'
        yield f'<text x="160" y="{top - 16}">never retrained (dashed)</text>'
        for value in (low, (low + high) / 2, high):
            at, end = f"{y(value):.1f}", self.width - self.right
            yield f'<line class="grid" x1="{self.left}" x2="{end}" y1="{at}" y2="{at}"/>'
            yield f'<text x="{self.left - 8}" y="{y(value) + 4:.1f}" text-anchor="end">{value:.4f}</text>'
        for which, line in (("loss_never", "never"), ("loss", "ours")):
            points = [f"{self.x(at):.1f},{y(m[which]):.1f}" for a, b, m in told for at in (a, b)]
            yield f'<polyline class="{line}" points="{" ".join(points)}"/>'
        for a, b, m in told:
            says = f"{m['month']}: {m['loss']:.4f}, never retrained {m['loss_never']:.4f}, {m['labelled']:,} labels"
            yield (
                f'<rect fill="transparent" x="{self.x(a):.1f}" y="{top}" width="{self.x(b) - self.x(a):.1f}" '
                f'height="{height}"><title>{escape(says)}</title></rect>'
            )

    def _versions(self) -> Iterator[str]:
        """Shares by version, a bar a day; its name stands where its largest share begins."""
        top, height = self.served
        yield f'<text class="name" x="0" y="{top - 14}">Answered by</text>'
        days: Sequence[Mapping[str, Any]] = self.run["served"]
        widest: dict[int, tuple[float, float, float]] = {}
        for day, after in itertools.zip_longest(days, days[1:]):
            until = min(after["at"], day["at"] + day["span_s"]) if after else day["at"] + day["span_s"]
            a, b = self.x(max(day["at"], self.run["from"])), self.x(min(until, self.run["until"]))
            below, total = 0.0, sum(day["rows"].values())
            for version, n in sorted((int(v), n) for v, n in day["rows"].items()):
                high = height * n / total
                where = top + height - below - high
                yield (
                    f'<rect class="v{(version - 1) % _HUES}" x="{a:.2f}" y="{where:.1f}" width="{b - a + 0.3:.2f}" '
                    f'height="{high:.1f}"><title>{_day(day["at"])}: v{version} answered {n / total:.0%} of {total:,}'
                    f"</title></rect>"
                )
                first, _, best = widest.get(version, (a, b, 0.0))
                widest[version] = (a if high > best else first, b, max(best, high))
                below += high
        for version, (a, b, high) in widest.items():
            if b - a > 26 and high > 30:
                yield f'<text class="on" x="{a + 6:.1f}" y="{top + height - 8}">v{version}</text>'

    def _alarms(self) -> Iterator[str]:
        top, step = self.rows
        kinds = self._kinds()
        yield f'<text class="name" x="0" y="{top - 12}">Alarms</text>'
        yield f'<text x="{self.left}" y="{top - 12}">red; line: retrain, ▲ promoted, ▽ rolled back</text>'
        for row, kind in enumerate(kinds):
            y = top + step * (row + 0.5)
            yield f'<text x="{self.left - 8}" y="{y + 4:.1f}" text-anchor="end">{_SHORT.get(kind, kind)}</text>'
            for w in self.run["windows"]:
                if w["kind"] == kind:
                    said = f"{_day(w['end'])}, v{w['version']}: {w['why']}"
                    yield (
                        f'<circle class="{"loud" if w["alarm"] else "quiet"}" cx="{self.x(w["end"]):.1f}" cy="{y:.1f}" '
                        f'r="{5 if w["alarm"] else 3.5}"><title>{escape(said)}</title></circle>'
                    )
        y = top + step * (len(kinds) + 0.5)
        yield f'<text x="{self.left - 8}" y="{y + 4:.1f}" text-anchor="end">decisions</text>'
        for d in self._ends():
            x, said = self.x(d["at"]), escape(f"{_day(d['at'])} {_ENDS[d['kind']]} {d['subject']}: {d['why']}")
            if d["kind"] == "retrain decided":
                mark = f'<line class="decided" x1="{x:.1f}" x2="{x:.1f}" y1="{self.loss[0]}" y2="{y + 8:.1f}"/>'
            else:
                way = -1 if d["kind"] == "rollout promoted" else 1
                tip = f"{x - 5:.1f},{y - 4 * way:.1f} {x + 5:.1f},{y - 4 * way:.1f} {x:.1f},{y + 5 * way:.1f}"
                mark = f'<polygon class="{"went" if way < 0 else "back"}" points="{tip}"/>'
            yield f"<g>{mark}<title>{said}</title></g>"


def _day(at: float) -> str:
    return datetime.fromtimestamp(at, UTC).strftime("%Y-%m-%d")
