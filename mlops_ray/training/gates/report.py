"""A gate's result as a page: one self-contained HTML file, every value escaped."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape

from mlops_ray.training.evaluation.metrics import CalibrationBin
from mlops_ray.training.gates.verdict import GateResult

_STYLE = (
    "body{font:15px/1.5 system-ui,sans-serif;max-width:60em;margin:2em auto;padding:0 1em;color:#222}"
    "table{border-collapse:collapse;width:100%}td,th{text-align:left;padding:.3em .6em;border-bottom:1px solid #ddd}"
    ".pass{color:#14713d}.fail{color:#b3261e}.inconclusive{color:#8a5a00}"
    "svg{background:#fafafa;border:1px solid #ddd}"
)
_SIDE = 240


def html(
    title: str, result: GateResult, calibration: Sequence[CalibrationBin], facts: Mapping[str, object] | None = None
) -> str:
    """The page: verdict, checks with reasons, metrics with intervals, calibration, and `facts` about the run."""
    checks = "".join(
        f"<tr><td>{escape(c.name)}</td><td class={c.verdict.value}>{c.verdict.value}</td>"
        f"<td>{escape(c.detail)}</td></tr>"
        for c in result.checks
    )
    metrics = "".join(
        f"<tr><td>{escape(name)}</td><td>{e.value:.4f}</td><td>{e.low:.4f} to {e.high:.4f}</td>"
        f"<td>{e.n}</td><td>{e.n_blocks}</td></tr>"
        for name, e in result.metrics.items()
    )
    run = "".join(f"<tr><td>{escape(str(k))}</td><td>{escape(str(v))}</td></tr>" for k, v in (facts or {}).items())
    verdict = result.verdict.value
    return (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{escape(title)}</title><style>{_STYLE}</style>'
        f"<h1>{escape(title)}</h1><p>Verdict: <b class={verdict}>{verdict}</b></p>"
        f"<h2>Checks</h2><table><tr><th>check</th><th>verdict</th><th>why</th></tr>{checks}</table>"
        "<h2>Metrics on the holdout</h2><table><tr><th>metric</th><th>value</th><th>interval</th><th>rows</th>"
        f"<th>blocks</th></tr>{metrics}</table>"
        f"<h2>Calibration</h2><p>Mean score against observed rate, ten groups of equal size.</p>{_plot(calibration)}"
        f"<h2>Run</h2><table>{run}</table></html>\n"
    )


def _plot(bins: Sequence[CalibrationBin]) -> str:
    dots = "".join(
        f'<circle cx="{b.mean_score * _SIDE:.1f}" cy="{(1 - b.rate) * _SIDE:.1f}" r="4">'
        f"<title>{b.n} rows: said {b.mean_score:.3f}, happened {b.rate:.3f}</title></circle>"
        for b in bins
    )
    return (
        f'<svg width="{_SIDE}" height="{_SIDE}" role="img" aria-label="calibration">'
        f'<line x1="0" y1="{_SIDE}" x2="{_SIDE}" y2="0" stroke="#999"/>{dots}</svg>'
    )
