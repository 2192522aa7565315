"""A gate's result as a page: one self-contained HTML file, light and dark, every value escaped.

Names of columns, categories and messages are text from outside: all of it goes through `_text`, and the page's own
policy forbids whatever should slip through to load or to run. Plots are SVG from outside as well: they come in as
images, in which no script runs.
"""

from __future__ import annotations

import base64
import html as markup
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from mlops_ray.training.evaluation.intervals import Estimate
from mlops_ray.training.gates import naming
from mlops_ray.training.gates.verdict import CheckResult, GateResult, Verdict

_STYLE = """
:root { color-scheme: light dark; --ink: #1c2024; --soft: #60646c; --line: #e0e1e6; --page: #fcfcfd; --card: #fff;
  --pass: #1f7a4d; --fail: #ce2c31; --inconclusive: #a15c00; --none: #6f727b; --bar: #3a6ea5; --band: #bcd3ea; }
@media (prefers-color-scheme: dark) { :root { --ink: #edeef0; --soft: #b0b4ba; --line: #363a3f; --page: #111113;
  --card: #18191b; --pass: #3dd68c; --fail: #ff9592; --inconclusive: #ffca16; --none: #8b8f98; --bar: #70b8ff;
  --band: #2c4a68; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--page); color: var(--ink); font: 15px/1.5 system-ui, sans-serif; }
main { max-width: 72rem; margin: 0 auto; padding: 2rem 1.25rem 4rem; }
h1 { font-size: 1.5rem; margin: 0 0 .75rem; } h2 { font-size: 1.05rem; margin: 2.5rem 0 .25rem; }
h3 { font-size: .95rem; margin: 1.25rem 0 .5rem; font-weight: 600; }
p { margin: .25rem 0 .75rem; max-width: 60rem; } .soft { color: var(--soft); }
.banner { border: 1px solid var(--line); border-left: .35rem solid; border-radius: .5rem; background: var(--card);
  padding: .75rem 1.1rem; }
.banner b { font-size: 1.15rem; } .banner p { margin: 0; color: var(--ink); } .banner ul { margin: .5rem 0 0;
  padding-left: 1.2rem; color: var(--ink); } .banner li { margin: .2rem 0; overflow-wrap: anywhere; }
.pass { color: var(--pass); } .fail { color: var(--fail); } .inconclusive { color: var(--inconclusive); }
.none { color: var(--none); }
.scroll { overflow-x: auto; border: 1px solid var(--line); border-radius: .5rem; background: var(--card); }
table { border-collapse: collapse; width: 100%; } th { text-align: left; font-weight: 500; color: var(--soft); }
th, td { padding: .45rem .75rem; border-bottom: 1px solid var(--line); vertical-align: top; }
tr:last-child td { border-bottom: 0; } td { overflow-wrap: anywhere; } td.id { font-weight: 500; min-width: 12rem; }
td.state { white-space: nowrap; font-weight: 600; } td.wide { min-width: 20rem; }
th.num, td.num { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
td.plot { width: 14rem; min-width: 11rem; vertical-align: middle; } td.plot svg { display: block; width: 100%; }
details { margin-top: .35rem; } summary { color: var(--soft); cursor: pointer; font-size: .85rem; }
details table { font-size: .85rem; margin-top: .25rem; width: auto; } details td { padding: .15rem .5rem; }
code { font: .85em/1.5 ui-monospace, monospace; white-space: pre-wrap; overflow-wrap: anywhere; }
.plots { display: grid; gap: .75rem; grid-template-columns: repeat(6, 1fr); align-items: start; }
.plots .of2 { grid-column: span 2; } .plots .of3 { grid-column: span 3; } .plots .of4 { grid-column: span 4; }
.plots .of6 { grid-column: span 6; } @media (max-width: 60rem) { .plots figure { grid-column: span 6; } }
figure { margin: 0; background: #fff; border: 1px solid var(--line); border-radius: .5rem; padding: .75rem; }
figure img { display: block; width: 100%; }
@media print { details { display: none; } }
"""
_SIGNS = {"pass": "\u2713", "fail": "\u2717", "inconclusive": "?"}
_SAYS = {
    Verdict.PASS: "Passed: the candidate may be registered.",
    Verdict.FAIL: "Failed: the candidate is refused.",
    Verdict.INCONCLUSIVE: "Inconclusive: the evidence is too thin, and that is no pass.",
}
_TABLES = ("slices", "groups", "probes")
"""Parts of the evidence that have tables of their own, or none at all."""
_WIDEST = ((2, 370.0), (3, 470.0), (4, 620.0))
"""Sixths of the page, and the widest plot (points, 1/72 inch) that fits."""
_RATES = {
    "selection_rate": "decided for",
    "true_positive_rate": "true positive rate",
    "false_positive_rate": "false positive rate",
}


def html(
    title: str,
    result: GateResult,
    plots: Mapping[str, str] | None = None,
    facts: Mapping[str, object] | None = None,
) -> str:
    """The page, complete from doctype to the closing tag.

    Args: plots: name to an SVG text that shows its own title; facts: what else to know about the run, name to value."""
    sections = [
        f"<h1>{_text(title)}</h1>",
        _banner(result),
        _checks(result.checks),
        _metrics(result.metrics),
        _slices(result.checks),
        _fairness(result.checks),
        _weak(result.information.get("weak_slices", ())),
        _plots(plots or {}),
        _facts(facts or {}),
    ]
    policy = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"
    return (
        f'<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">\n'
        f'<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{_text(title)}</title>\n<style>{_STYLE}</style>\n</head>\n<body><main>\n"
        + "\n".join(filter(None, sections))
        + "\n</main></body>\n</html>\n"
    )


def _banner(result: GateResult) -> str:
    state = result.verdict.value
    passed = sum(check.verdict is Verdict.PASS for check in result.checks)
    worst = [c for v in (Verdict.FAIL, Verdict.INCONCLUSIVE) for c in result.checks if c.verdict is v]
    reasons = "".join(
        f"<li>{_state(c.verdict.value)} <strong>{_text(naming.check(c.name))}</strong>: {_text(c.detail)}</li>"
        for c in worst
    )
    listed = f"<ul>{reasons}</ul>" if reasons else ""
    return (
        f'<div class="banner {state}"><b>{_SIGNS[state]} {_SAYS[result.verdict]}</b>'
        f"<p>{passed} of {len(result.checks)} checks passed.</p>{listed}</div>"
    )


def _checks(checks: Sequence[CheckResult]) -> str:
    rows = [
        f'<tr><td class="id" title="{_text(c.name)}">{_text(naming.check(c.name))}</td>'
        f'<td class="state">{_state(c.verdict.value, word=True)}</td>'
        f'<td class="wide">{_text(c.detail)}{_evidence(c.evidence)}</td></tr>'
        for c in checks
    ]
    return "<h2>Checks</h2>" + _table(("check", "verdict", "why"), rows)


def _evidence(evidence: Mapping[str, Any]) -> str:
    shown = {name: value for name, value in evidence.items() if name not in _TABLES}
    if not shown:
        return ""
    rows = "".join(f"<tr><td>{_text(k)}</td><td><code>{_text(_plainly(v))}</code></td></tr>" for k, v in shown.items())
    return f"<details><summary>numbers</summary><table>{rows}</table></details>"


def _plainly(value: Any) -> str:
    if value is None:
        return "–"
    if isinstance(value, float):
        return f"{value:.6g}"
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)


def _metrics(metrics: Mapping[Any, Estimate]) -> str:
    if not metrics:
        return ""
    rows = [
        f'<tr><td class="id" title="{_text(name)}">{_text(naming.metric(name))}</td>{_numbers(e.value, e.low, e.high)}'
        f'<td class="plot">{_whisker(e.value, e.low, e.high)}</td>{_counts(e.n, e.n_blocks)}</tr>'
        for name, e in metrics.items()
    ]
    head = ("metric", "#value", "#from", "#to", "", "#rows", "#blocks")
    says = "Intervals are those of a bootstrap over blocks: of time, or of the group that the project names."
    return f'<h2>Metrics on the holdout</h2><p class="soft">{says}</p>' + _table(head, rows)


def _slices(checks: Sequence[CheckResult]) -> str:
    parts = []
    for check in (c for c in checks if c.evidence.get("slices")):
        margin = float(check.evidence["margin"])
        found = check.evidence["slices"]
        span = _span([*(s[k] for s in found for k in ("lower", "upper", "value")), 0.0, margin])
        rows = [
            f'<tr><td class="id">{_text(s["slice"])}</td>'
            f'<td class="state">{_state(s["verdict"], word=True)}</td>'
            f"{_numbers(s['value'], s['lower'], s['upper'], signed=True)}"
            f'<td class="plot">{_whisker(s["value"], s["lower"], s["upper"], span=span, marks=(0.0, margin))}</td>'
            f"{_counts(s['n'], s['n_blocks'])}</tr>"
            for s in found
        ]
        against = "the champion" if check.evidence["against"] == "champion" else "the slice's own constant"
        says = f"{_text(check.name.partition('.')[2])}: loss per row less that of {against}; margin {margin:g}"
        head = ("slice", "verdict", "#difference", "#from", "#to", "", "#rows", "#blocks")
        parts.append(f"<h3>{says}</h3>" + _table(head, rows))
    return "<h2>Slices</h2>" + "".join(parts) if parts else ""


def _fairness(checks: Sequence[CheckResult]) -> str:
    parts, done = [], set()
    for check in (c for c in checks if c.name.startswith("fairness.") and c.evidence.get("groups")):
        column = check.name.removeprefix("fairness.").rpartition(".")[0]
        if column in done:
            continue  # both measures carry the same table
        done.add(column)
        groups = check.evidence["groups"]
        rates = [name for name in _RATES if name in groups[0]]
        classes = ("class",) if "class" in groups[0] else ()
        rows = []
        for g in groups:
            cells = "".join(_rate(g[name]) for name in rates)
            label = f"<td>{_text(g['class'])}</td>" if classes else ""
            rows.append(
                f'<tr><td class="id">{_text(g["group"])}</td>{label}<td class="num">{g["n"]:,}</td>{cells}</tr>'
            )
        head = ("group", *classes, "#rows", *(f"#{_RATES[name]}" for name in rates))
        parts.append(f"<h3>{_text(column)}</h3>" + _table(head, rows))
    if not parts:
        return ""
    says = "In brackets the rows that a rate is measured on; grey where they are too few to judge."
    return f'<h2>Fairness</h2><p class="soft">{says}</p>' + "".join(parts)


def _rate(rate: Mapping[str, Any]) -> str:
    shown = "–" if rate["rate"] is None else f"{rate['rate']:.3f}"
    return f'<td class="num{"" if rate["judged"] else " none"}">{shown} ({rate["n"]:,})</td>'


def _weak(found: Sequence[Mapping[str, Any]]) -> str:
    if not found:
        return ""
    rows = [
        f'<tr><td class="id">{_text(s["name"])}</td>'
        f"{_numbers(*(s['difference'][k] for k in ('value', 'low', 'high')), signed=True)}"
        f'<td class="num">{"–" if s["p"] is None else format(s["p"], ".3g")}</td>'
        f"{_counts(s['loss']['n'], s['loss']['n_blocks'])}</tr>"
        for s in found
    ]
    says = "Found by a search over the inputs and pairs of them; for information, no gate judges them. p is adjusted."
    head = ("slice", "#more loss than elsewhere", "#from", "#to", "#p", "#rows", "#blocks")
    return f'<h2>Weak slices</h2><p class="soft">{says}</p>' + _table(head, rows)


def _plots(plots: Mapping[str, str]) -> str:
    if not plots:
        return ""
    figures = "".join(
        f'<figure class="of{_sixths(svg)}"><img alt="{_text(name)}" '
        f'src="data:image/svg+xml;base64,{base64.b64encode(svg.encode()).decode()}"></figure>'
        for name, svg in plots.items()
    )
    return f'<h2>Plots</h2><div class="plots">{figures}</div>'


def _sixths(svg: str) -> int:
    """How much of the page's width a plot gets, in sixths: letters of all plots should be about equally large."""
    drawn = re.search(r'viewBox="0 0 ([\d.]+) [\d.]+"', svg)
    width = float(drawn[1]) if drawn is not None else 0.0
    return next((part for part, most in _WIDEST if width <= most), 6)


def _facts(facts: Mapping[str, object]) -> str:
    if not facts:
        return ""
    rows = [
        f'<tr><td class="id">{_text(k)}</td><td><code>{_text(_plainly(v))}</code></td></tr>' for k, v in facts.items()
    ]
    return "<h2>Run</h2>" + _table((), rows)


# --- cells ---------------------------------------------------------------------------------------------------------


def _text(value: object) -> str:
    return markup.escape(str(value), quote=True)


def _table(head: Sequence[str], rows: Iterable[str]) -> str:
    """Columns whose name begins with # hold numbers."""
    cells = "".join(
        f'<th class="num">{_text(name[1:])}</th>' if name.startswith("#") else f"<th>{_text(name)}</th>"
        for name in head
    )
    top = f"<tr>{cells}</tr>" if head else ""
    return f'<div class="scroll"><table>{top}{"".join(rows)}</table></div>'


def _state(verdict: str, *, word: bool = False) -> str:
    known = verdict in _SIGNS
    shown = f"{_SIGNS[verdict]} {verdict}" if known and word else _SIGNS[verdict] if known else verdict
    return f'<span class="{verdict if known else "none"}">{_text(shown)}</span>'


def _numbers(value: float | None, low: float | None, high: float | None, *, signed: bool = False) -> str:
    return "".join(f'<td class="num">{_number(v, signed)}</td>' for v in (value, low, high))


def _number(value: float | None, signed: bool = False) -> str:
    if not _is_number(value):
        return "–"
    return f"{value:+.4f}" if signed else f"{value:.4f}"


def _counts(n: int, n_blocks: int) -> str:
    return f'<td class="num">{n:,}</td><td class="num">{n_blocks:,}</td>'


def _is_number(value: float | None) -> bool:
    return value is not None and value == value


def _span(values: Iterable[float | None]) -> tuple[float, float]:
    known = [float(v) for v in values if v is not None and v == v]
    low, high = min(known, default=0.0), max(known, default=1.0)
    around = 0.05 * (high - low) or 0.5
    return low - around, high + around


def _whisker(
    value: float | None,
    low: float | None,
    high: float | None,
    *,
    span: tuple[float, float] | None = None,
    marks: Sequence[float] = (),
) -> str:
    """The interval as a band with the value in it, on `span` (default: the unit interval, or what holds all of it)."""
    if value is None or value != value:
        return ""
    if span is None:
        within = 0 <= value <= 1 and all(v is None or v != v or 0 <= v <= 1 for v in (low, high))
        span = (0.0, 1.0) if within else _span([value, low, high, 0.0])
    start, stop = span
    width = stop - start

    def x(at: float) -> float:
        return 200 * (at - start) / width

    band = ""
    if low is not None and high is not None and low == low and high == high:
        band = f'<rect x="{x(low):.1f}" y="4" width="{max(x(high) - x(low), 1):.1f}" height="8" fill="var(--band)"/>'
    lines = "".join(
        f'<line x1="{x(m):.1f}" x2="{x(m):.1f}" y1="0" y2="16" stroke="var(--{"soft" if m == 0 else "fail"})" '
        f'stroke-dasharray="{"none" if m == 0 else "3 2"}"/>'
        for m in marks
    )
    axis = '<line x1="0" x2="200" y1="8" y2="8" stroke="var(--line)"/>'
    dot = f'<circle cx="{x(value):.1f}" cy="8" r="3.5" fill="var(--bar)"/>'
    return f'<svg viewBox="-4 0 208 16" height="16" aria-hidden="true">{axis}{band}{lines}{dot}</svg>'
