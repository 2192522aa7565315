"""The validation report as one HTML page: no scripts, nothing from other hosts, light and dark.

Cells, column names and rules are text from outside: all of it goes through `_text`, and the page's own policy forbids
whatever should slip through to load or to run.
"""

from __future__ import annotations

import html
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from mlops_ray.config import Project
from mlops_ray.data.rules.expectations import Report
from mlops_ray.data.rules.facts import ColumnFacts, Facts
from mlops_ray.data.rules.findings import Finding

BARS = 40
"""Bars of a histogram: as many as can be told apart at 20 rem."""
TOP = 12
"""Values shown of a column of texts."""
_LONGEST = 200

_STYLE = """
:root { color-scheme: light dark; --ink: #1c2024; --soft: #60646c; --line: #e0e1e6; --page: #fcfcfd; --card: #fff;
  --good: #2b8a5e; --bad: #ce2c31; --warn: #ab6400; --none: #80838d; --bar: #3a6ea5; --before: #b9bbc6; }
@media (prefers-color-scheme: dark) { :root { --ink: #edeef0; --soft: #b0b4ba; --line: #363a3f; --page: #111113;
  --card: #18191b; --good: #3dd68c; --bad: #ff9592; --warn: #ffca16; --none: #777b84; --bar: #70b8ff;
  --before: #5a6169; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--page); color: var(--ink); font: 15px/1.5 system-ui, sans-serif; }
main { max-width: 72rem; margin: 0 auto; padding: 2rem 1.25rem 4rem; }
h1 { font-size: 1.5rem; margin: 0 0 .25rem; } h2 { font-size: 1.05rem; margin: 2.5rem 0 .75rem; }
p { margin: .25rem 0; } .soft { color: var(--soft); } .num { text-align: right; font-variant-numeric: tabular-nums; }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(9rem, 1fr)); gap: .75rem; margin: 1.25rem 0; }
.tile, figure { background: var(--card); border: 1px solid var(--line); border-radius: .5rem; padding: .75rem 1rem; }
.tile b { display: block; font-size: 1.5rem; line-height: 1.3; font-variant-numeric: tabular-nums; }
.scroll { overflow-x: auto; border: 1px solid var(--line); border-radius: .5rem; background: var(--card); }
table { border-collapse: collapse; width: 100%; } th { text-align: left; font-weight: 500; color: var(--soft); }
th, td { padding: .45rem .75rem; border-bottom: 1px solid var(--line); vertical-align: top; }
tr:last-child td { border-bottom: 0; } td { overflow-wrap: anywhere; } td.id { font-weight: 500; min-width: 11rem; }
td.state { white-space: nowrap; font-weight: 600; } td.plot { width: 10rem; min-width: 8rem; }
.kept { color: var(--good); } .broken { color: var(--bad); }
.warned { color: var(--warn); } .open { color: var(--none); }
code { font: .85em/1.5 ui-monospace, monospace; white-space: pre-wrap; }
svg { display: block; width: 100%; } .plots { display: grid; gap: .75rem; }
.plots { grid-template-columns: repeat(auto-fill, minmax(20rem, 1fr)); } figure { margin: 0; }
figcaption { font-weight: 500; margin-bottom: .5rem; overflow-wrap: anywhere; }
.axis { display: flex; justify-content: space-between; font-size: .8rem; color: var(--soft); }
"""


def render(
    project: Project, report: Report, findings: Sequence[Finding], facts: Facts, *, previous: Facts | None = None
) -> str:
    """The page, complete from doctype to the closing tag.

    Args: report, findings and facts: of one pass (`findings.conclude`); previous: the facts of the previous dataset
    version, drawn behind the present ones.
    """
    stops = [finding for finding in findings if finding.stops]
    too_bad = report.bad_share > project.validation.max_bad_share
    too_few = report.n_kept < project.validation.min_rows
    why = [f"{_share(report.bad_share)} of the rows are bad"] * too_bad
    why += [f"only {report.n_kept:,} rows are good"] * too_few
    why += [f"{len(stops)} expectation{'s' * (len(stops) > 1)} broken"] * bool(stops)
    verdict = f"stops the run: {'; '.join(why)}" if why else "lets the run go on"
    body = [
        f"<h1>Validation of {_text(project.project)}</h1>",
        f'<p class="{"broken" if why else "kept"}">{_sign(not why)} It {_text(verdict)}.</p>',
        _tiles(report, findings),
        _proportion(report),
        _expectations(report, findings),
        _column_rules(report, findings),
        _plots(facts, previous),
    ]
    policy = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"
    return (
        f'<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">\n'
        f'<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>Validation of {_text(project.project)}</title>\n<style>{_STYLE}</style>\n</head>\n<body><main>\n"
        + "\n".join(filter(None, body))
        + "\n</main></body>\n</html>\n"
    )


def _text(value: object) -> str:
    """Text of others, harmless and of bounded length."""
    text = str(value)
    if len(text) > _LONGEST:
        text = text[: _LONGEST - 3] + "..."
    # Control characters and lone surrogates are no characters of a page.
    plain = "".join(c if c.isprintable() else " " if c.isspace() else "\N{REPLACEMENT CHARACTER}" for c in text)
    return html.escape(plain)


def _sign(good: bool | None) -> str:
    return {True: "✓", False: "✕", None: "–"}[good]


def _share(share: float) -> str:
    if share == 0:
        return "0 %"
    return f"{share:.2%}".replace("%", " %") if share >= 0.0001 else "< 0.01 %"


def _figure(value: object) -> str:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return _text("" if value is None else value)
    if isinstance(value, int) or abs(value) >= 1e6:
        return f"{value:,.0f}" if abs(value) < 1e15 else f"{value:.6g}"
    return f"{value:,.6g}"


def _tiles(report: Report, findings: Sequence[Finding]) -> str:
    tiles = [
        (f"{report.n_read:,}", "rows read", ""),
        (f"{report.n_kept:,}", "kept", ""),
        (f"{report.n_quarantined:,}", f"in quarantine, {_share(report.bad_share)}", ""),
    ]
    states = [_state(finding) for finding in findings]
    for state, words in (("kept", "kept"), ("broken", "broken"), ("warned", "broken, only warned"), ("open", "open")):
        n = states.count(state)
        if n or state == "kept":
            tiles.append((str(n), f"expectation{'s' * (n != 1)} {words}", state if n else ""))
    shown = "".join(f'<div class="tile"><b class="{kind}">{n}</b>{words}</div>' for n, words, kind in tiles)
    return f'<div class="tiles">{shown}</div>'


def _state(finding: Finding) -> str:
    if finding.passed is None:
        return "open"
    if finding.passed:
        return "kept"
    return "broken" if finding.on_fail == "stop" else "warned"


def _proportion(report: Report) -> str:
    if not report.n_read:
        return '<p class="soft">The source has no rows.</p>'
    kept = 100 * report.n_kept / report.n_read
    return (
        f'<svg viewBox="0 0 100 2" preserveAspectRatio="none" height="10" role="img" '
        f'aria-label="{_share(kept / 100)} kept"><rect width="100" height="2" fill="var(--bad)"/>'
        f'<rect width="{kept:.3f}" height="2" fill="var(--good)"/></svg>'
    )


def _bar(share: float | None) -> str:
    if share is None:
        return ""
    # What is there should be seen: a thousandth would be a sixth of a pixel.
    width = max(100 * share, 1.0) if share else 0.0
    return (
        f'<svg viewBox="0 0 100 8" preserveAspectRatio="none" height="8" aria-hidden="true">'
        f'<rect width="100" height="8" fill="var(--line)"/><rect width="{width:.2f}" height="8" fill="var(--bad)"/>'
        f'</svg><span class="soft">{_share(share)}</span>'
    )


def _expectations(report: Report, findings: Sequence[Finding]) -> str:
    if not findings:
        return ""
    order = {"broken": 0, "warned": 1, "open": 2, "kept": 3}
    rows = []
    for finding in sorted(findings, key=lambda f: order[_state(f)]):
        state = _state(finding)
        words = {"broken": "broken", "warned": "warning", "open": "not judged", "kept": "kept"}[state]
        count = f"{finding.n_broken:,} of {finding.n:,} rows" if finding.n_broken and finding.n else ""
        # Of rows, the share that breaks it stands beside its bar.
        observed = f"{finding.n:,} rows" if finding.n and not finding.n_broken else _figure(finding.observed)
        rows.append(
            f'<tr><td class="state {state}">{_sign(finding.passed)} {words}</td><td class="id">{_text(finding.id)}</td>'
            f"<td>{_text(finding.wanted)}{_examples(report.examples.get(finding.id, ()))}</td>"
            f'<td class="num">{count or observed}</td><td class="plot">{_bar(finding.share)}</td></tr>'
        )
    head = "<tr><th></th><th>expectation</th><th>wanted</th><th>observed</th><th>share broken</th></tr>"
    return f'<h2>Expectations</h2><div class="scroll"><table>{head}{"".join(rows)}</table></div>'


def _column_rules(report: Report, findings: Sequence[Finding]) -> str:
    known = {finding.id for finding in findings}
    found = sorted(((n, rule) for rule, n in report.broken.items() if rule not in known and n), reverse=True)
    if not found:
        return '<h2>Rules of the columns</h2><p class="kept">✓ Every row keeps the rules of its columns.</p>'
    rows = [
        f'<tr><td class="id">{_text(rule)}</td><td>{_examples(report.examples.get(rule, ()))}</td>'
        f'<td class="plot">{_bar(n / max(report.n_read, 1))}</td><td class="num">{n:,} rows</td></tr>'
        for n, rule in found
    ]
    head = "<tr><th>rule</th><th>for example</th><th>share broken</th><th></th></tr>"
    return f'<h2>Rules of the columns</h2><div class="scroll"><table>{head}{"".join(rows)}</table></div>'


def _examples(found: Iterable[str]) -> str:
    return "".join(f'<br><code class="soft">{_text(example)}</code>' for example in found)


def _plots(facts: Facts, previous: Facts | None) -> str:
    drawn = []
    for name, column in facts.columns.items():
        before = previous.columns.get(name) if previous is not None else None
        if column.histogram is not None and column.n:
            drawn.append(_numbers(name, column, before))
        elif column.values is not None and column.values.counts and not column.values.more:
            drawn.append(_top_values(name, column, before))
    if not drawn:
        return ""
    note = "Kept rows; grey: the previous version." if previous is not None else "Kept rows."
    return f'<h2>Distributions</h2><p class="soft">{note}</p><div class="plots">{"".join(drawn)}</div>'


def _shares_between(column: ColumnFacts, ends: npt.NDArray[np.floating[Any]]) -> list[float]:
    assert column.histogram is not None
    place = np.clip(np.searchsorted(ends, column.histogram.edges, "right") - 1, 0, BARS - 1)
    counts = np.bincount(place, weights=column.histogram.counts, minlength=BARS)
    return [float(share) for share in counts / max(counts.sum(), 1.0)]


def _numbers(name: str, column: ColumnFacts, before: ColumnFacts | None) -> str:
    """Bars of equal width from the 0.5 to the 99.5 percentile; what lies beyond stands in the outermost."""
    assert column.histogram is not None
    low, high = column.histogram.quantile(0.005), column.histogram.quantile(0.995)
    if low == high:
        low, high = low - 0.5, high + 0.5
    # Of the halves: the largest and the smallest float lie further apart than a number can be.
    ends = 2 * np.linspace(low / 2, high / 2, BARS + 1)
    now = _shares_between(column, ends)
    old = _shares_between(before, ends) if before is not None and before.histogram is not None and before.n else []
    top = max([*now, *old])
    bars = [_column_bar(i, share / top, "--bar", 0.15, 0.7) for i, share in enumerate(now)]
    behind = [_column_bar(i, share / top, "--before", 0.0, 1.0) for i, share in enumerate(old)]
    return (
        f"<figure><figcaption>{_text(name)}</figcaption>"
        f'<svg viewBox="0 0 {BARS} 12" preserveAspectRatio="none" height="96" role="img" '
        f'aria-label="histogram of {_text(name)}">{"".join(behind + bars)}</svg>'
        f'<div class="axis"><span>{low:,.4g}</span><span>median {column.histogram.quantile(0.5):,.4g}</span>'
        f"<span>{high:,.4g}</span></div></figure>"
    )


def _column_bar(i: int, height: float, color: str, left: float, width: float) -> str:
    if not height:
        return ""
    tall = 12 * height
    return f'<rect x="{i + left}" y="{12 - tall:.3f}" width="{width}" height="{tall:.3f}" fill="var({color})"/>'


def _top_values(name: str, column: ColumnFacts, before: ColumnFacts | None) -> str:
    assert column.values is not None
    old = before.values.counts if before is not None and before.values is not None else {}
    n_before = before.n if before is not None else 0
    most = sorted(column.values.counts.items(), key=lambda item: (-item[1][0], item[1][1]))
    rows = []
    largest = most[0][1][0] / column.n
    for code, (n, label) in most[:TOP]:
        was = old.get(code, (0, ""))[0] / n_before if n_before else 0.0
        rows.append(
            f"<tr><td>{_text(label)}</td>"
            f'<td class="plot">{_value_bar(n / column.n / largest, min(was / largest, 1.0))}</td>'
            f'<td class="num">{_share(n / column.n)}</td></tr>'
        )
    left = len(most) - TOP
    more = f'<p class="soft">and {left:,} more</p>' if left > 0 else ""
    return f"<figure><figcaption>{_text(name)}</figcaption><table>{''.join(rows)}</table>{more}</figure>"


def _value_bar(now: float, was: float) -> str:
    return (
        f'<svg viewBox="0 0 100 10" preserveAspectRatio="none" height="12" role="img" aria-hidden="true">'
        f'<rect width="{100 * was:.2f}" height="10" fill="var(--before)"/>'
        f'<rect y="2" width="{100 * now:.2f}" height="6" fill="var(--bar)"/></svg>'
    )
