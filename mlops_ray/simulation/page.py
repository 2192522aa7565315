"""The page of `mlops-ray simulate`: one HTML file without a script or another host, light or dark."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from html import escape
from typing import Any

from mlops_ray.simulation.charts import STYLE, charts

_STYLE = """
:root { color-scheme: light dark; --ink: #1d2430; --soft: #566070; --line: #dfe3e8; --page: #fff; --fail: #b3261e;
  --data: #1f5fae; --a: #5b6b82; --b: #1f5fae; --c: #14713d; --d: #8a5a00 }
@media (prefers-color-scheme: dark) { :root { --ink: #e4e7ec; --soft: #a2acba; --line: #343b46; --page: #14171c;
  --fail: #f28b82; --data: #7fb2f0; --a: #55637a; --b: #2f6db8; --c: #2c7d4f; --d: #8f6414 } }
body { margin: 0 auto; padding: 1.75rem 1.25rem 4rem; max-width: 64rem; background: var(--page); color: var(--ink);
  font: 16px/1.55 system-ui, -apple-system, "Segoe UI", sans-serif; overflow-wrap: anywhere }
h1 { font-size: 1.6rem } h2 { font-size: 1.15rem; margin-top: 2.4rem } .wide { overflow-x: auto }
table { border-collapse: collapse; width: 100%; font-size: .9rem; font-variant-numeric: tabular-nums }
th, td { overflow-wrap: normal }
th, td { padding: .4rem .9rem .4rem 0; text-align: left; border-bottom: 1px solid var(--line); vertical-align: top }
th { color: var(--soft) } .alarm { color: var(--fail); font-weight: 600 }
summary { cursor: pointer; color: var(--soft) }
"""


def page(result: Mapping[str, Any]) -> str:
    """The result of `verbs.simulate` as a page: settings side by side, then each run's months, decisions, windows."""
    title = f"Simulation of {result['project']}"
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta name="viewport" content="width=device-width, initial-scale=1"><title>{escape(title)}</title>'
        f"<style>{_STYLE}{STYLE}</style></head><body>\n<h1>{escape(title)}</h1>{''.join(_parts(result))}</body></html>\n"
    )


def _parts(result: Mapping[str, Any]) -> Iterator[str]:
    heads = ("settings", "loss", "never retrained", "alarms", "retrains", "rejected", "promoted", "rolled back")
    runs = result["runs"]
    yield _table(
        heads,
        [
            (
                _named(run),
                _number(run["loss"]),
                _number(run["loss_never"]),
                *(str(run[n]) for n in ("alarms", "retrains", "rejected", "promoted", "rolled_back")),
            )
            for run in runs
        ],
    )
    for number, run in enumerate(runs):
        yield f"<h2>{escape(_named(run))}</h2>" + charts(run, number)
        yield _table(
            ("month", "rows", "loss", "never retrained", "AUC", "alarms", "versions"),
            [
                (
                    m["month"],
                    f"{m['rows']:,}",
                    _number(m["loss"]),
                    _number(m["loss_never"]),
                    _number(m.get("roc_auc")),
                    str(m["alarms"]),
                    ", ".join(f"v{v}" for v in m["versions"]),
                )
                for m in run["months"]
            ],
        )
        yield "<h2>Decisions</h2>" + _table(
            ("when", "what", "of", "why"),
            [(_day(d["at"]), d["kind"], d["subject"], d["why"]) for d in run["decisions"]],
        )
        rows = [(_day(w["end"]), f"v{w['version']}", w["kind"], w["why"]) for w in run["windows"]]
        alarms = {i for i, w in enumerate(run["windows"]) if w["alarm"]}
        listed = _table(("until", "version", "of", "what it says"), rows, alarms)
        yield f"<details><summary>{len(rows)} judged windows</summary>{listed}</details>"


def _table(heads: Sequence[str], rows: Sequence[Sequence[str]], marked: set[int] | frozenset[int] = frozenset()) -> str:
    top = "".join(f"<th>{escape(head)}</th>" for head in heads)
    body = "".join(
        f"<tr{' class=alarm' if i in marked else ''}>{''.join(f'<td>{escape(cell)}</td>' for cell in row)}</tr>"
        for i, row in enumerate(rows)
    )
    return f'<div class="wide"><table><thead><tr>{top}</tr></thead><tbody>{body}</tbody></table></div>'


def _named(run: Mapping[str, Any]) -> str:
    return ", ".join(run["settings"]) or "as in the file"


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.4f}"


def _day(at: float) -> str:
    return datetime.fromtimestamp(at, UTC).strftime("%Y-%m-%d")
