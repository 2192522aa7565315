"""The page of `mlops-ray analyze`: one HTML file that needs no other host and no script, light or dark, wide or narrow.

Each chart is drawn twice, for a desk and for a phone, and the style sheet shows one: a drawing that is scaled down has
letters that nobody can read.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from html import escape
from typing import Any

import yaml

_STYLE = """
:root { color-scheme: light dark; --ink: #1d2430; --soft: #566070; --line: #dfe3e8; --page: #fff; --card: #f6f7f9;
  --pass: #14713d; --fail: #b3261e; --inconclusive: #8a5a00; --data: #1f5fae; --band: #1f5fae33; --keys: #8793a5; }
@media (prefers-color-scheme: dark) { :root { --ink: #e4e7ec; --soft: #a2acba; --line: #343b46; --page: #14171c;
  --card: #1c2027; --pass: #5fc48b; --fail: #f28b82; --inconclusive: #e0b050; --data: #7fb2f0; --band: #7fb2f03d;
  --keys: #7b8798; } }
* { box-sizing: border-box }
body { margin: 0 auto; padding: 1.75rem 1.25rem 4rem; max-width: 64rem; background: var(--page); color: var(--ink);
  font: 16px/1.55 system-ui, -apple-system, "Segoe UI", sans-serif; overflow-wrap: anywhere }
h1, h2, p, figure, ul { margin: 0 } p { max-width: 44rem }
h1 { font-size: 1.7rem; line-height: 1.2 } h2 { font-size: 1.15rem; margin: 2.6rem 0 .3rem }
.soft { color: var(--soft) } .facts { color: var(--soft); font-size: .9rem; margin-bottom: 1.25rem }
.said { border-left: 5px solid var(--verdict); background: var(--card); padding: 1rem 1.2rem;
  border-radius: 0 6px 6px 0 }
.said h1 { color: var(--verdict); margin-bottom: .3rem } .word { color: var(--verdict); font-weight: 600 }
.pass { --verdict: var(--pass) } .fail { --verdict: var(--fail) } .inconclusive { --verdict: var(--inconclusive) }
.warnings { margin-top: 1rem; padding: .8rem 1.2rem .8rem 2.2rem;
  border: 1px solid var(--inconclusive); border-radius: 6px }
.wide { overflow-x: auto; margin: 1rem 0 } table { border-collapse: collapse; width: 100%; font-size: .9rem;
  font-variant-numeric: tabular-nums } th { color: var(--soft); font-weight: 600; vertical-align: bottom }
th, td { padding: .4rem .9rem .4rem 0; text-align: right; border-bottom: 1px solid var(--line); white-space: nowrap }
th:first-child, td:first-child { text-align: left } td a { color: inherit } th { white-space: normal;
  overflow-wrap: normal }
svg { display: block; width: 100%; height: auto; margin-top: .6rem } svg.narrow { display: none }
svg text { fill: var(--soft); font: 12px system-ui, sans-serif } svg .name { fill: var(--ink); font-weight: 600 }
.grid { stroke: var(--line) } .zero { stroke: var(--ink) } .margin { stroke: var(--fail); stroke-dasharray: 6 4 }
.step { stroke: var(--soft); stroke-dasharray: 1 4 } .mark { stroke: var(--verdict); stroke-width: 1.5 }
.band { fill: var(--band) } .mean { fill: none; stroke: var(--data); stroke-width: 2 } .dot { fill: var(--data) }
.keys { fill: var(--keys); fill-opacity: .45 } .touch { fill: transparent } svg .verdict { fill: var(--verdict) }
svg .limit { fill: var(--fail) }
details { margin-top: .6rem } summary { cursor: pointer; color: var(--soft) }
pre { background: var(--card); padding: .8rem 1rem; border-radius: 6px; overflow-x: auto; font-size: .85rem }
ul.plain { padding-left: 1.2rem } ul.plain li { margin: .3rem 0; max-width: 44rem }
@media (max-width: 640px) { svg.broad { display: none } svg.narrow { display: block } h1 { font-size: 1.4rem }
  body { padding: 1.25rem 1rem 3rem }
  .summary thead { display: none }
  .summary tr { display: block; padding: .5rem 0; border-bottom: 1px solid var(--line) }
  .summary td { display: flex; justify-content: space-between; gap: 1rem; padding: .12rem 0; border: 0;
    white-space: normal; text-align: right }
  .summary td::before { content: attr(data-name); color: var(--soft); text-align: left } }
@media print { body { max-width: none } figure { break-inside: avoid } }
"""

_HEADS = {
    "pass": "The canary is fine",
    "fail": "The canary is worse",
    "inconclusive": "Not decided",
}
_MARKS = {"pass": "proven fine", "fail": "proven worse"}
_MOST_STEPS = 12  # a log whose share moves all the time has no steps to mark
_STEPS_S = (60, 300, 900, 1800, 3600, 7200, 10_800, 21_600, 43_200, 86_400, 172_800, 604_800, 2_592_000, 31_536_000)


def page(result: Mapping[str, Any]) -> str:
    """The result of `verbs.analyze` as a page."""
    title = f"Analysis of {result['log']}"
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta name="viewport" content="width=device-width, initial-scale=1"><title>{escape(title)}</title>'
        f"<style>{_STYLE}</style></head><body>\n{''.join(_parts(result))}</body></html>\n"
    )


def _parts(result: Mapping[str, Any]) -> Iterator[str]:
    verdict = result["verdict"]
    yield (
        f'<p class="facts">{escape(result["log"])}: {result["rows"]:,} rows of {result["keys"]:,} keys, '
        f"{_time(result['from'])} to {_time(result['until'])} UTC</p>\n"
    )
    decided = f" Decided {_time(result['decided'])} UTC." if result["decided"] is not None else ""
    yield f'<main><section class="said {verdict}"><h1>{_HEADS[verdict]}</h1>'
    yield f"<p>{escape(result['says'])}{decided}</p></section>\n"
    if result["warnings"]:
        yield f'<ul class="warnings">{"".join(f"<li>{escape(w)}</li>" for w in result["warnings"])}</ul>\n'
    yield _summary(result)
    for i, metric in enumerate(result["metrics"]):
        yield _metric(i, metric, result)
    yield _assignment(result["assignment"])
    yield _guarantee(result["plan"])
    yield f"<h2>The plan</h2>\n<pre>{escape(yaml.safe_dump(result['plan'], sort_keys=False))}</pre></main>\n"


def _summary(result: Mapping[str, Any]) -> str:
    bars = result["bars"]
    head = ("metric", "verdict", "estimate", "interval", "margin", "keys")
    names = [*head, f"worse, of {bars['worse']:.0f}", f"fine, of {bars['fine']:.0f}", "decided, or to go"]
    rows = []
    for i, m in enumerate(result["metrics"]):
        known = m["low"] is not None
        cells = (
            f'<a href="#m{i}">{escape(m["name"])}</a>',
            f'<span class="word {m["verdict"]}">{m["verdict"]}</span>',
            _signed(m["estimate"]) if known else "",
            f"{_signed(m['low'])} to {_signed(m['high'])}" if known else "",
            f"{m['margin']:g}",
            f"{m['n_keys']:,}",
            f"{m['evidence_worse']:.3g}",
            f"{m['evidence_fine']:.3g}",
            f"about {m['needed']:,} keys" if m["needed"] else _time(m["decided"]) if m["decided"] else "unknown",
        )
        named = [f'<td data-name="{name}">{cell}</td>' for name, cell in zip(names, cells, strict=True)]
        rows.append(f"<tr>{''.join(named)}</tr>")
    return (
        f'<div class="wide summary"><table><thead><tr>{"".join(f"<th>{name}</th>" for name in names)}</tr></thead>'
        f'<tbody>{"".join(rows)}</tbody></table></div>\n<p class="soft">Canary minus stable; positive is worse. Worse '
        "and fine are the capitals of two gamblers: the one that reaches its number proves its claim. The last column "
        "says when that was, or how many more keys it takes at the present estimate.</p>\n"
    )


def _metric(i: int, m: Mapping[str, Any], result: Mapping[str, Any]) -> str:
    how = "on the same row" if m["same_row"] else "between keys, by assignment"
    head = f'<h2 id="m{i}">{escape(m["name"])} <span class="word {m["verdict"]}">{m["verdict"]}</span></h2>'
    if not m["looks"]:
        return f"<section>{head}<p>No outcome of this metric is in the log.</p></section>\n"
    note = f'<p class="soft">Canary minus stable, compared {how}; positive is worse.</p>'
    drawn = "".join(_Chart.of(m, result, i, width, kind).svg() for width, kind in ((720, "broad"), (350, "narrow")))
    return (
        f'<section class="{m["verdict"]}">{head}{note}<figure>{drawn}</figure>'
        f"<details><summary>The same as a table</summary>{_table(m['looks'])}</details></section>\n"
    )


def _table(looks: Sequence[Mapping[str, Any]]) -> str:
    names = ("time (UTC)", "keys", "estimate", "low", "high", "worse", "fine")
    rows = "".join(
        f"<tr><td>{_time(p['at'])}</td><td>{p['n_keys']:,}</td><td>{_signed(p['estimate'])}</td>"
        f"<td>{_signed(p['low'])}</td><td>{_signed(p['high'])}</td>"
        f"<td>{p['evidence_worse']:.3g}</td><td>{p['evidence_fine']:.3g}</td></tr>"
        for p in looks
    )
    head = "".join(f"<th>{name}</th>" for name in names)
    table = f"<table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table>"
    return f'<div class="wide" tabindex="0">{table}</div>'


def _assignment(found: Mapping[str, Any] | None) -> str:
    if found is None:
        return ""
    said = "a mismatch" if found["decided"] is not None else "no mismatch is proven"
    return (
        f"<h2>Was the share what it says?</h2>\n"
        f"<p>The canary got {found['realised']:.2%} of {found['n_keys']:,} keys; by "
        f"the shares in force it was to get {found['stated']:.2%}. Evidence of another share reached "
        f"{found['evidence']:.3g}, and {found['bar']:g} would prove a mismatch: {said}.</p>\n"
    )


def _guarantee(plan: Mapping[str, Any]) -> str:
    alpha = f"{plan['alpha']:.3g}"
    return f"""<h2>What this promises</h2>
<ul class="plain">
<li>A canary that is not worse is called worse with probability at most {alpha}, over all metrics and however often one
looks. One that is worse by its margin on some metric passes with probability at most {alpha}.</li>
<li>The band is a confidence sequence: with probability at least {1 - plan["alpha"]:.3g} it holds the truth of its
metric at all times together, not only at the end.</li>
<li>It takes keys to be independent, each heard once and assigned by chance with the share that the log states. It says
nothing about slices and metrics that the plan does not list, about keys that turn bad after they were heard, or about
outcomes that are missing more often from one variant.</li>
</ul>
"""


# Charts ---------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Chart:
    """A metric's confidence sequence above, its keys below, over one axis of time."""

    metric: Mapping[str, Any]
    shares: Sequence[Sequence[float]]
    name: str
    kind: str
    width: int
    since: float
    until: float
    bottom: float
    top: float
    left = 58.0
    right = 12.0
    head = 30.0
    plot = 210.0
    gap = 22.0
    low_plot = 46.0

    @classmethod
    def of(cls, metric: Mapping[str, Any], result: Mapping[str, Any], i: int, width: int, kind: str) -> _Chart:
        looks, last = metric["looks"], metric["looks"][-1]
        # The first intervals are as wide as the metric's bounds: drawn whole, nothing else could be seen.
        later = looks[len(looks) // 5 :]
        low = min(0.0, last["low"], *(p["estimate"] for p in later))
        high = max(metric["margin"], last["high"], *(p["estimate"] for p in later))
        room = 0.3 * (high - low)
        since, until = min(result["from"], looks[0]["at"]), max(result["until"], last["at"])
        until = max(until, since + 1.0)
        return cls(metric, result["shares"], f"c{i}{kind}", kind, width, since, until, low - room, high + room)

    @property
    def height(self) -> float:
        return self.head + self.plot + self.gap + self.low_plot + 24

    def x(self, at: float) -> float:
        return self.left + (self.width - self.left - self.right) * (at - self.since) / (self.until - self.since)

    def y(self, value: float) -> float:
        """Far values stay just outside, where the plot is cut off."""
        share = (self.top - value) / (self.top - self.bottom)
        return self.head + self.plot * min(max(share, -0.5), 1.5)

    def svg(self) -> str:
        name, m, last = self.name, self.metric, self.metric["looks"][-1]
        wide = self.width - self.left - self.right
        box = f'<rect x="{self.left}" y="{self.head}" width="{wide}" height="{self.plot}"/>'
        return (
            f'<svg class="{self.kind}" viewBox="0 0 {self.width} {self.height:.0f}" role="img" '
            f'aria-labelledby="{name}t {name}d"><title id="{name}t">{escape(m["name"])} over time</title>'
            f'<desc id="{name}d">{escape(self._described())}</desc><clipPath id="{name}p">{box}</clipPath>'
            f"{''.join(self._axes())}{''.join(self._steps())}"
            f'<g clip-path="url(#{name}p)">{"".join(self._sequence())}</g>'
            f'<circle class="dot" cx="{self.x(last["at"]):.1f}" cy="{self.y(last["estimate"]):.1f}" r="3.5"/>'
            f"{''.join(self._keys())}{''.join(self._decided())}{''.join(self._touch())}</svg>"
        )

    def _described(self) -> str:
        last = self.metric["looks"][-1]
        return (
            f"Difference of canary and stable from {_time(self.since)} to {_time(self.until)} UTC. At the end "
            f"{_signed(last['estimate'])}, interval {_signed(last['low'])} to {_signed(last['high'])}, margin "
            f"{self.metric['margin']:g}, after {last['n_keys']:,} keys: {self.metric['verdict']}."
        )

    def _axes(self) -> Iterator[str]:
        start, end = self.left, self.width - self.right
        step = _nice((self.top - self.bottom) / 5)
        for k in range(math.ceil(self.bottom / step), math.floor(self.top / step) + 1):
            y = self.y(k * step)
            if k:
                yield f'<line class="grid" x1="{start}" x2="{end}" y1="{y:.1f}" y2="{y:.1f}"/>'
            text = f"{k * step:+.{max(0, -math.floor(math.log10(step)))}f}" if k else "0"
            yield f'<text x="{start - 8}" y="{y + 4:.1f}" text-anchor="end">{text}</text>'
        floor = self.height - 24
        ticks = _times(self.since, self.until, 6 if self.width > 500 else 3)
        for at, text in ticks:
            x = self.x(at)
            yield f'<line class="grid" x1="{x:.1f}" x2="{x:.1f}" y1="{floor}" y2="{floor + 5}"/>'
            anchor = "end" if x > end - 24 else "middle"
            yield f'<text x="{x:.1f}" y="{floor + 18}" text-anchor="{anchor}">{text}</text>'

    def _steps(self) -> Iterator[str]:
        """Where a share came into force, with as many names as there is room for."""
        if len(self.shares) > _MOST_STEPS:
            return
        free = 0.0
        for at, share in self.shares:
            x = max(self.x(at), self.left)
            if at > self.since:
                floor = self.head + self.plot
                yield f'<line class="step" x1="{x:.1f}" x2="{x:.1f}" y1="{self.head - 6}" y2="{floor}"/>'
            if x >= free:
                yield f'<text x="{x:.1f}" y="{self.head - 10}">{100 * share:.3g} %</text>'
                free = x + 46

    def _sequence(self) -> Iterator[str]:
        looks = self.metric["looks"]
        start, end = self.left, self.width - self.right
        upper = [f"{self.x(p['at']):.1f},{self.y(p['high']):.1f}" for p in looks]
        lower = [f"{self.x(p['at']):.1f},{self.y(p['low']):.1f}" for p in reversed(looks)]
        yield f'<polygon class="band" points="{" ".join([*upper, *lower])}"/>'
        zero, margin = self.y(0), self.y(self.metric["margin"])
        yield f'<line class="zero" x1="{start}" x2="{end}" y1="{zero:.1f}" y2="{zero:.1f}"/>'
        yield f'<line class="margin" x1="{start}" x2="{end}" y1="{margin:.1f}" y2="{margin:.1f}"/>'
        yield f'<text class="limit" x="{end - 4}" y="{margin - 5:.1f}" text-anchor="end">margin</text>'
        mean = " ".join(f"{self.x(p['at']):.1f},{self.y(p['estimate']):.1f}" for p in looks)
        yield f'<polyline class="mean" points="{mean}"/>'

    def _keys(self) -> Iterator[str]:
        looks = self.metric["looks"]
        top, floor, most = self.head + self.plot + self.gap, self.height - 24, looks[-1]["n_keys"]
        points = [(self.x(p["at"]), floor - self.low_plot * p["n_keys"] / most) for p in looks]
        line = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
        yield f'<polygon class="keys" points="{points[0][0]:.1f},{floor} {line} {points[-1][0]:.1f},{floor}"/>'
        yield f'<line class="grid" x1="{self.left}" x2="{self.width - self.right}" y1="{floor}" y2="{floor}"/>'
        yield f'<text x="{self.left - 8}" y="{top + 8}" text-anchor="end">{_short(most)}</text>'
        yield f'<text x="{self.left - 8}" y="{floor}" text-anchor="end">keys</text>'

    def _decided(self) -> Iterator[str]:
        if self.metric["decided"] is None:
            return
        x = self.x(self.metric["decided"])
        anchor, shift = ("end", -5) if x > self.width / 2 else ("start", 5)
        text = f"{_MARKS[self.metric['verdict']]} {_time(self.metric['decided'])[11:]}"
        yield f'<line class="mark" x1="{x:.1f}" x2="{x:.1f}" y1="{self.head}" y2="{self.height - 24}"/>'
        y = self.head + self.plot - 8
        yield f'<text class="verdict" x="{x + shift:.1f}" y="{y}" text-anchor="{anchor}">{text}</text>'

    def _touch(self) -> Iterator[str]:
        """What a pointer finds over each look."""
        looks = self.metric["looks"]
        for p in looks:
            says = (
                f"{_time(p['at'])} UTC: {_signed(p['estimate'])} in {_signed(p['low'])} to {_signed(p['high'])}, "
                f"{p['n_keys']:,} keys"
            )
            wide = max(4.0, (self.width - self.left - self.right) / len(looks))
            yield (
                f'<rect class="touch" x="{self.x(p["at"]) - wide / 2:.1f}" y="{self.head}" width="{wide:.1f}" '
                f'height="{self.plot}"><title>{says}</title></rect>'
            )


def _nice(step: float) -> float:
    """The next of 1, 2, 5 times a power of ten."""
    power = 10.0 ** math.floor(math.log10(step))
    return next(k * power for k in (1, 2, 5, 10) if k * power >= step * (1 - 1e-9))


def _times(since: float, until: float, most: int) -> list[tuple[float, str]]:
    """Round times between two, at most so many, with what is written under them."""
    step = next((s for s in _STEPS_S if (until - since) / s <= most), _STEPS_S[-1])
    form = "%H:%M" if step < 86_400 else "%d %b" if step < 31_536_000 else "%Y"
    first, last = math.ceil(since / step), math.floor(until / step)
    found = []
    for k in range(first, last + 1):
        at = datetime.fromtimestamp(k * step, UTC)
        midnight = step < 86_400 and at.hour == at.minute == 0
        found.append((float(k * step), at.strftime("%d %b" if midnight else form)))
    return found


def _time(at: float) -> str:
    return datetime.fromtimestamp(at, UTC).strftime("%Y-%m-%d %H:%M")


def _signed(value: float) -> str:
    return f"{value:+.4f}" if abs(value) < 1000 else f"{value:+,.4g}"


def _short(n: int) -> str:
    """A count in few letters.

    >>> _short(999), _short(12_345), _short(2_500_000)
    ('999', '12 k', '2.5 M')
    """
    return (
        str(n)
        if n < 1000
        else f"{n / 1000:.3g} k"
        if n < 9950
        else f"{n / 1000:.0f} k"
        if n < 1e6
        else f"{n / 1e6:.2g} M"
    )
