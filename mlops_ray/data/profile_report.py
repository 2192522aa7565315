"""Pages of `mlops-ray profile` and `mlops-ray drift`: one HTML file each, which needs no other host, light or dark."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape
from typing import Any

_STYLE = """
:root { color-scheme: light dark; --ink: #1d2433; --soft: #5b6577; --line: #d9dee7; --page: #fff; --card: #f6f8fb;
  --before: #8a94a6; --now: #2563eb; --word: #9a3412; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6e9ef; --soft: #9aa4b5; --line: #323a48; --page: #12161d;
  --card: #1a202a; --before: #7c8798; --now: #60a5fa; --word: #fdba74; } }
* { box-sizing: border-box }
body { margin: 0 auto; padding: 2rem 1.25rem 4rem; max-width: 76rem; background: var(--page); color: var(--ink);
  font: 15px/1.5 system-ui, -apple-system, "Segoe UI", sans-serif; }
h1 { font-size: 1.5rem; margin: 0 0 .25rem; overflow-wrap: anywhere }
p { margin: .25rem 0; color: var(--soft) } p.word { color: var(--word) } code { font-size: .92em }
.legend i { display: inline-block; width: .7rem; height: .7rem; border-radius: 2px; margin: 0 .35rem 0 .9rem }
.legend i:first-child { margin-left: 0 } .before { background: var(--before) } .now { background: var(--now) }
.wide { overflow-x: auto; margin: 1.5rem 0 }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums }
th { font-weight: 600; color: var(--soft); font-size: .85rem } th, td { padding: .35rem .6rem; text-align: right;
  border-bottom: 1px solid var(--line); white-space: nowrap } th:first-child, td:first-child { text-align: left }
td a { color: inherit }
.cards { display: grid; grid-template-columns: repeat(auto-fill, minmax(21rem, 1fr)); gap: 1rem }
.card { background: var(--card); border: 1px solid var(--line); border-radius: 8px; padding: .9rem 1rem; min-width: 0 }
.card h2 { font-size: 1rem; margin: 0; overflow-wrap: anywhere } .card h2 small { color: var(--soft); font-weight: 400 }
svg { display: block; width: 100%; height: auto; margin: .6rem 0 .2rem }
svg .r { fill: var(--before) } svg .c { fill: var(--now) } svg text { fill: var(--soft); font-size: 10px }
svg line { stroke: var(--line) }
dl { display: grid; grid-template-columns: 1fr auto; gap: .1rem .8rem; margin: .4rem 0 0; font-size: .85rem }
dt { color: var(--soft) } dd { margin: 0; text-align: right; white-space: nowrap; font-variant-numeric: tabular-nums }
"""

_NAMES = {
    "psi": "PSI",
    "jensen_shannon": "Jensen-Shannon",
    "kolmogorov_smirnov": "Kolmogorov-Smirnov",
    "kolmogorov_smirnov_p": "p (KS)",
    "wasserstein": "Wasserstein",
    "wasserstein_normed": "Wasserstein / std",
    "chi_square": "chi²",
    "chi_square_p": "p (chi²)",
    "l_infinity": "L∞",
    "total_variation": "total variation",
    "hellinger": "Hellinger",
}
_WIDTH, _HEIGHT = 320, 96


def drift_page(result: dict[str, Any]) -> str:
    """The result of `verbs.profile.drift` as a page: a table of all features, then a card with histograms for each."""
    rows = result["rows"]
    head = (
        f"<p class=legend><i class=before></i>reference <code>{escape(result['reference'])}</code>, {rows[0]:,} rows"
        f"<i class=now></i>current <code>{escape(result['current'])}</code>, {rows[1]:,} rows</p>"
        f"<p>{_modes(result['mode'])} Statistics are over rows that have a value.</p>"
    )
    columns = ("psi", "jensen_shannon", "kolmogorov_smirnov", "chi_square", "p", "wasserstein_normed", "l_infinity")
    lines = []
    for i, f in enumerate(result["features"]):
        s = f["statistics"] | {"p": f["statistics"].get("kolmogorov_smirnov_p", f["statistics"].get("chi_square_p"))}
        cells = "".join(f"<td>{_with_error(s.get(c), f['errors'].get(c))}</td>" for c in columns)
        missing = " → ".join(f"{share:.1%}" for share in f["missing"])
        lines.append(f'<tr><td><a href="#f{i}">{escape(f["name"])}</a></td>{cells}<td>{missing}</td></tr>')
    names = "".join(f"<th>{_NAMES.get(c, c)}</th>" for c in columns)
    table = f"<div class=wide><table><tr><th>feature</th>{names}<th>missing</th></tr>{''.join(lines)}</table></div>"
    notes = "".join(f"<p>Not compared: {escape(note)}.</p>" for note in result["notes"])
    cards = "".join(_drift_card(i, f) for i, f in enumerate(result["features"]))
    return _page("Drift", head, table + notes + f"<div class=cards>{cards}</div>")


def profile_page(result: dict[str, Any]) -> str:
    """The result of `verbs.profile.profile` as a page: a card for each column."""
    head = f"<p>{result['rows']:,} rows, {len(result['columns'])} columns</p>"
    cards = "".join(_profile_card(c, result["rows"]) for c in result["columns"])
    return _page(f"Profile of {result['data']}", head, f"<p>&nbsp;</p><div class=cards>{cards}</div>")


def _page(title: str, head: str, body: str) -> str:
    return (
        f'<!doctype html><html lang=en><meta charset=utf-8><meta name=viewport content="width=device-width">'
        f"<title>{escape(title)}</title><style>{_STYLE}</style><h1>{escape(title)}</h1>{head}{body}</html>\n"
    )


def _modes(mode: str) -> str:
    if mode == "exact":
        return "Computed from the values themselves."
    return "Computed from profiles; ± is how far the statistic of the values can be off."


def _drift_card(i: int, f: dict[str, Any]) -> str:
    facts = ((_NAMES[k], _with_error(v, f["errors"].get(k))) for k, v in f["statistics"].items())
    words = "".join(f"<p class=word>{escape(word)}</p>" for word in f["words"])
    series = [("r", f["reference"]), ("c", f["current"])]
    return (
        f'<div class=card id="f{i}"><h2>{escape(f["name"])} <small>{f["kind"]}</small></h2>{words}'
        f"{_bars(series, f.get('edges'), f.get('categories'))}{_facts(facts)}</div>"
    )


def _profile_card(c: dict[str, Any], rows: int) -> str:
    facts = [("missing", f"{c['missing']:.1%}")]
    if "distinct" in c:
        facts.append(("distinct", f"{c['distinct']:,}"))
    facts += [(k, _value(c[k])) for k in ("low", "q25", "median", "q75", "high", "mean", "std") if k in c]
    bars = ""
    if c["kind"] == "numeric":
        bars = _bars([("c", c["counts"])], c["edges"], None)
    elif c.get("top"):
        bars = _bars([("c", [*(n for _, n in c["top"]), c["rest"]])], None, [name for name, _ in c["top"]])
    return f"<div class=card><h2>{escape(c['name'])} <small>{c['kind']}</small></h2>{bars}{_facts(facts)}</div>"


def _facts(facts: Iterable[tuple[str, str]]) -> str:
    return f"<dl>{''.join(f'<dt>{name}</dt><dd>{value}</dd>' for name, value in facts)}</dl>"


def _bars(series: list[tuple[str, list[int]]], edges: list[float] | None, categories: list[str] | None) -> str:
    """Histograms side by side as shares, a group of bars per bin: numbers under edges, categories under their names."""
    n = len(series[0][1])
    shares = [(kind, [count / max(1, sum(counts)) for count in counts]) for kind, counts in series]
    most = max(max(values) for _, values in shares) or 1.0
    group = _WIDTH / n
    width = group * 0.8 / len(shares)
    labels = [*(categories or ()), *(["other"] if categories is not None else ())]
    drawn = []
    for at, (kind, values) in enumerate(shares):
        for i, share in enumerate(values):
            height = share / most * _HEIGHT
            x = i * group + group * 0.1 + at * width
            says = escape(labels[i] if labels else _interval(edges or [], i))
            drawn.append(
                f'<rect class={kind} x="{x:.1f}" y="{_HEIGHT - height:.1f}" width="{max(0.5, width - 0.5):.1f}" '
                f'height="{height:.1f}"><title>{says}: {share:.1%}</title></rect>'
            )
    drawn.append(f'<line x1="0" x2="{_WIDTH}" y1="{_HEIGHT}" y2="{_HEIGHT}"/>')
    room = max(3, int(group / 6.5))
    if labels:
        texts = [((i + 0.5) * group, _cut(label, room)) for i, label in enumerate(labels)]
    else:
        texts = [((i + 1) * group, _value(edge)) for i, edge in enumerate(edges or [])]
        every = 1 + int(max((len(text) for _, text in texts), default=0) * 6 / group)
        texts = texts[::every]
    drawn += [f'<text x="{x:.1f}" y="{_HEIGHT + 12}" text-anchor="middle">{escape(t)}</text>' for x, t in texts]
    return f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT + 16}" role="img">{"".join(drawn)}</svg>'


def _interval(edges: Sequence[float], i: int) -> str:
    if not edges:
        return "all values"
    if i == 0:
        return f"below {_value(edges[0])}"
    return f"from {_value(edges[-1])}" if i == len(edges) else f"{_value(edges[i - 1])} to {_value(edges[i])}"


def _cut(text: str, room: int) -> str:
    return text if len(text) <= room else text[: room - 1] + "…"


def _with_error(value: float | None, error: float | None) -> str:
    return _value(value) + (f" ± {_value(error)}" if error is not None else "")


def _value(value: float | str | None) -> str:
    if value is None:
        return ""
    if isinstance(value, str):
        return escape(value)
    if value == 0 or 1e-3 <= abs(value) < 1e6:
        return f"{value:,.4g}" if abs(value) < 1e4 else f"{value:,.0f}"
    return f"{value:.1e}"
