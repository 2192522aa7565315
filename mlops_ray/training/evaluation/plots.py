"""Plots of evaluations as self-contained SVG and as PNG, in one quiet style.

matplotlib's object-oriented interface draws them: no window, no state of the process is touched. SVG text stays text (a
reader can search it), element ids carry the caller's prefix so that several plots fit into one page, and equal values
give equal bytes: no dates, no random ids.
"""

from __future__ import annotations

import io
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from mlops_ray.training.evaluation.curves import CalibrationBin, Confusion, Curve, Curves, Lift, Residuals
from mlops_ray.training.evaluation.intervals import Estimate

if TYPE_CHECKING:
    from collections.abc import Mapping

    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_INK, _QUIET, _GRID = "#2b2f36", "#8a919c", "#e6e8eb"
_COLOURS = (
    "#2563a8",
    "#c2571a",
    "#2f7d4f",
    "#8a4fa3",
    "#b08900",
    "#3d8c95",
    "#a33b55",
    "#5b6b2f",
    "#6b5bd2",
    "#7a5a3a",
)
"""Told apart by people with red-green blindness in this order, and dark enough on white."""
_STYLE: dict[Any, Any] = {  # matplotlib types its keys as one large Literal
    "font.family": ["DejaVu Sans", "sans-serif"],
    "font.size": 9.0,
    "axes.edgecolor": _QUIET,
    "axes.labelcolor": _INK,
    "axes.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": _GRID,
    "grid.linewidth": 0.8,
    "xtick.color": _QUIET,
    "ytick.color": _QUIET,
    "xtick.labelcolor": _INK,
    "ytick.labelcolor": _INK,
    "legend.frameon": False,
    "legend.fontsize": 8.0,
    "figure.facecolor": "white",
    "axes.facecolor": "white",
    "figure.dpi": 100.0,
    "svg.fonttype": "none",
    "svg.hashsalt": "mlops_ray",
}
_DPI = 150
_LABEL = 28
"""Characters of a label; longer ones lose their middle."""


def figures(drawn: Curves) -> dict[str, Figure]:
    """A figure for each curve there is: calibration, roc, precision_recall, lift, confusion, residuals."""
    result: dict[str, Figure] = {}
    if drawn.calibration:
        result["calibration"] = calibration(drawn.calibration)
    if drawn.roc:
        result["roc"] = roc(drawn.roc)
        result["precision_recall"] = precision_recall(drawn.precision_recall, drawn.rates)
    if drawn.lift is not None:
        result["lift"] = lift(drawn.lift)
    if drawn.confusion is not None:
        result["confusion"] = confusion(drawn.confusion)
    if drawn.residuals is not None:
        result["residuals"] = residuals(drawn.residuals)
    return result


def svg(figure: Figure, prefix: str = "plot") -> str:
    """The figure as an `<svg>` element for a page: no prolog, no references outside, ids that begin with `prefix`."""
    import matplotlib as mpl

    buffer = io.BytesIO()
    with mpl.rc_context(_STYLE):
        _settle(figure)
        nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
        figure.savefig(buffer, format="svg", metadata=nothing)
    text = buffer.getvalue().decode("utf-8")
    text = text[text.index("<svg") :]
    text = re.sub(r"\s*<metadata>.*?</metadata>", "", text, flags=re.S)
    text = re.sub(r'\bid="', f'id="{prefix}-', text)
    text = re.sub(r'((?:xlink:)?href="#|url\(#)', rf"\1{prefix}-", text)
    # As wide as it was drawn, so that letters of all plots are equally large; narrower on a narrow page.
    width = round(figure.get_figwidth() * 96)
    text = re.sub(r' (?:width|height)="[\d.]+pt"', "", text, count=2)
    return text.replace("<svg", f'<svg width="{width}" style="max-width:100%;height:auto"', 1)


def png(figure: Figure) -> bytes:
    """The figure as a PNG of 150 dots per inch."""
    import matplotlib as mpl

    buffer = io.BytesIO()
    with mpl.rc_context(_STYLE):
        _settle(figure)
        figure.savefig(buffer, format="png", dpi=_DPI, metadata={"Software": None})
    return buffer.getvalue()


# --- classification ------------------------------------------------------------------------------------------------


def calibration(bins: Sequence[CalibrationBin]) -> Figure:
    """What happened over what was said, with the rows per bin below."""
    figure, (axes, below) = _figure(4.6, 4.8, rows=2, heights=(4, 1))
    said, rate = [b.mean_score for b in bins], [b.rate for b in bins]
    axes.plot([0, 1], [0, 1], color=_QUIET, linewidth=1, linestyle=(0, (4, 3)))
    spread = [[b.rate - b.low for b in bins], [b.high - b.rate for b in bins]]
    axes.errorbar(said, rate, yerr=spread, color=_COLOURS[0], marker="o", markersize=4, linewidth=1.4, elinewidth=1)
    _unit_square(axes)
    _title(axes, "Calibration")
    axes.set(ylabel="observed rate")
    axes.tick_params(labelbottom=False)
    axes.text(0.98, 0.04, "bars: 95 % of independent rows", transform=axes.transAxes, ha="right", color=_QUIET, size=8)
    below.vlines(said, 0, [b.n for b in bins], color=_COLOURS[0], linewidth=3)
    below.set(xlabel="mean predicted probability", ylabel="rows", xlim=(-0.02, 1.02), ylim=(0, None))
    below.grid(False, axis="x")
    _sparse(below, 2)
    return figure


def roc(by_class: Mapping[str, Curve]) -> Figure:
    """True over false positive rate, a line per class."""
    figure, (axes,) = _figure(_width(by_class), 4.2)
    axes.plot([0, 1], [0, 1], color=_QUIET, linewidth=1, linestyle=(0, (4, 3)))
    for (name, curve), colour in zip(by_class.items(), _COLOURS, strict=False):
        axes.plot(curve.x, curve.y, color=colour, linewidth=1.6, label=_short(name))
    _unit_square(axes)
    _title(axes, "ROC")
    axes.set(xlabel="false positive rate", ylabel="true positive rate")
    _legend(figure, by_class)
    return figure


def precision_recall(by_class: Mapping[str, Curve], rates: Mapping[str, float]) -> Figure:
    """Precision over recall, a line per class; dashed lines are what guessing reaches."""
    figure, (axes,) = _figure(_width(by_class), 4.2)
    for (name, curve), colour in zip(by_class.items(), _COLOURS, strict=False):
        axes.axhline(rates[name], color=colour, linewidth=0.8, linestyle=(0, (4, 3)), alpha=0.7)
        axes.plot(curve.x, curve.y, color=colour, linewidth=1.6, label=_short(name))
    _unit_square(axes)
    _title(axes, "Precision and recall")
    axes.set(xlabel="recall", ylabel="precision")
    if len(by_class) == 1:
        rate = next(iter(rates.values()))
        above = rate < 0.9
        axes.text(
            0.0,
            rate + (0.01 if above else -0.01),
            f"base rate {rate:.3g}",
            va="bottom" if above else "top",
            color=_QUIET,
            size=8,
        )
    _legend(figure, by_class)
    return figure


def lift(curve: Lift) -> Figure:
    """Positives found, and their rate over the base rate, by the share of rows taken from the highest score down."""
    figure, (left, right) = _figure(7.4, 3.6, columns=2)
    left.plot([0, 1], [0, 1], color=_QUIET, linewidth=1, linestyle=(0, (4, 3)))
    left.plot([0.0, *curve.share], [0.0, *curve.gain], color=_COLOURS[0], linewidth=1.6)
    _unit_square(left)
    _title(left, "Gains")
    left.set(xlabel="share of rows, highest scores first", ylabel="share of positives found")
    right.axhline(1, color=_QUIET, linewidth=1, linestyle=(0, (4, 3)))
    steady = [i for i, share in enumerate(curve.share) if share >= 0.01]  # a handful of rows says nothing about a rate
    right.plot([curve.share[i] for i in steady], [curve.lift[i] for i in steady], color=_COLOURS[0], linewidth=1.6)
    _title(right, "Lift")
    right.set(xlabel="share of rows, highest scores first", ylabel="rate over base rate")
    right.set(xlim=(-0.02, 1.02), ylim=(0, None))
    return figure


def confusion(counts: Confusion) -> Figure:
    """Rows by true and decided class; the colour is the share of the true class."""
    k = len(counts.labels)
    side = 1.4 + (0.6 if k <= 8 else 0.38) * max(k, 3)
    figure, (axes,) = _figure(side + 0.6, side)
    cells = np.array(counts.counts, dtype=np.float64)
    totals = cells.sum(axis=1, keepdims=True)
    shares = np.divide(cells, totals, out=np.zeros_like(cells), where=totals > 0)
    from matplotlib.colors import LinearSegmentedColormap

    tint = LinearSegmentedColormap.from_list("quiet", ["#ffffff", _COLOURS[0]])
    axes.pcolormesh(shares, cmap=tint, vmin=0, vmax=1, edgecolors=_GRID, linewidth=0.8)
    for i in range(k):
        for j in range(k):
            says = f"{int(cells[i, j]):,}" + (f"\n{shares[i, j]:.0%}" if k <= 8 else "")
            dark = shares[i, j] > 0.6
            axes.text(
                j + 0.5,
                i + 0.5,
                says,
                ha="center",
                va="center",
                size=9 if k <= 8 else 6,
                color="white" if dark else _INK,
            )
    names = [_short(name, 14) for name in counts.labels]
    steep = max(map(len, names)) > (6 if k <= 8 else 2)
    axes.set_xticks(np.arange(k) + 0.5, names, rotation=45 if steep else 0)
    if steep:
        for label in axes.get_xticklabels():
            label.set(ha="right", rotation_mode="anchor")
    axes.set_yticks(np.arange(k) + 0.5, names)
    _title(axes, "Confusion")
    axes.set(xlabel="decided", ylabel="true", aspect="equal")
    axes.invert_yaxis()
    axes.grid(False)
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    return figure


# --- regression ----------------------------------------------------------------------------------------------------


def residuals(found: Residuals) -> Figure:
    """Residuals over predictions, as a histogram, and against a normal distribution."""
    figure, (over, histogram, normal) = _figure(10.2, 3.4, columns=3)
    over.axhline(0, color=_QUIET, linewidth=1, linestyle=(0, (4, 3)))
    said, off = _framed(found.predicted), _framed(found.residual)
    over.scatter(said, off, s=8, color=_COLOURS[0], alpha=0.45, linewidths=0)
    if (said, off) != (list(found.predicted), list(found.residual)):
        over.text(0.02, 0.02, "points beyond the frame lie on it", transform=over.transAxes, color=_QUIET, size=8)
    _title(over, "Residuals by prediction")
    over.set(xlabel="predicted, target's unit", ylabel="true less predicted, target's unit")
    edges = np.array(found.edges)
    histogram.bar(edges[:-1], found.counts, width=np.diff(edges), align="edge", color=_COLOURS[0], alpha=0.8)
    histogram.axvline(found.mean, color=_COLOURS[1], linewidth=1.2)
    _title(histogram, "Distribution")
    histogram.set(xlabel="true less predicted, target's unit", ylabel="rows")
    histogram.text(
        0.98,
        0.97,
        f"mean {found.mean:.3g}\nsd {found.sd:.3g}",
        transform=histogram.transAxes,
        ha="right",
        va="top",
        size=8,
    )
    histogram.grid(False, axis="x")
    ends = [min(found.normal), max(found.normal)]
    normal.plot(ends, ends, color=_QUIET, linewidth=1, linestyle=(0, (4, 3)))
    normal.plot(found.normal, found.quantile, color=_COLOURS[0], marker=".", markersize=4, linestyle="none")
    _title(normal, "Against a normal")
    normal.set(xlabel="normal quantile, sd", ylabel="residual quantile, sd")
    for axes in (over, histogram, normal):
        _sparse(axes, 5)
    return figure


def _framed(values: Sequence[float]) -> list[float]:
    """Values with the outliers moved to where a box plot's far fences are, so that the others keep their room."""
    low, high = np.quantile(values, [0.25, 0.75])
    reach = 3 * (high - low)
    return [float(v) for v in np.clip(values, low - reach, high + reach)] if reach else list(values)


# --- rows with intervals -------------------------------------------------------------------------------------------


def estimates(title: str, rows: Sequence[tuple[str, Estimate]], *, unit: str, zero: bool = True) -> Figure:
    """A dot with its interval per row, the first at the top: importances, slices, differences.

    `unit` labels the axis; `zero` draws a line there."""
    figure, (axes,) = _figure(6.4, 1.1 + 0.27 * max(len(rows), 1))
    if zero:
        axes.axvline(0, color=_QUIET, linewidth=1, linestyle=(0, (4, 3)))
    for place, (_, e) in enumerate(rows):
        if np.isfinite(e.low) and np.isfinite(e.high):
            axes.plot(
                [e.low, e.high], [place, place], color=_COLOURS[0], linewidth=2, alpha=0.5, solid_capstyle="round"
            )
        axes.plot([e.value], [place], color=_COLOURS[0], marker="o", markersize=4.5)
    axes.set_yticks(range(len(rows)), [_short(name, 40) for name, _ in rows])
    _title(axes, title)
    axes.set(xlabel=unit, ylim=(max(len(rows), 1) - 0.4, -0.6))
    axes.grid(False, axis="y")
    axes.tick_params(axis="y", length=0)
    axes.spines["left"].set_visible(False)
    _sparse(axes, 4, "x")
    return figure


def bars(title: str, rows: Sequence[tuple[str, float]], *, unit: str) -> Figure:
    """A bar per row, the first at the top: mean absolute SHAP values."""
    figure, (axes,) = _figure(6.4, 1.1 + 0.27 * max(len(rows), 1))
    axes.barh(range(len(rows)), [value for _, value in rows], height=0.62, color=_COLOURS[0], alpha=0.85)
    axes.set_yticks(range(len(rows)), [_short(name, 40) for name, _ in rows])
    _title(axes, title)
    axes.set(xlabel=unit, ylim=(max(len(rows), 1) - 0.4, -0.6))
    axes.grid(False, axis="y")
    axes.tick_params(axis="y", length=0)
    axes.spines["left"].set_visible(False)
    _sparse(axes, 4, "x")
    return figure


# --- style ---------------------------------------------------------------------------------------------------------


def _figure(
    width: float, height: float, *, rows: int = 1, columns: int = 1, heights: tuple[int, ...] | None = None
) -> tuple[Figure, tuple[Axes, ...]]:
    """A figure of so many inches in the house's style, and its axes row by row."""
    import matplotlib as mpl
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=(width, height), layout="constrained")
        FigureCanvasAgg(figure)
        axes: Any = figure.subplots(rows, columns, squeeze=False, gridspec_kw={"height_ratios": heights})
    return figure, tuple(axes.ravel())


def _settle(figure: Figure) -> None:
    """Lay the figure out once: each further round would move it by a hair, and the bytes with it."""
    if figure.get_layout_engine() is not None:
        figure.draw_without_rendering()
        figure.set_layout_engine("none")


def _title(axes: Axes, text: str) -> None:
    axes.set_title(text, loc="left", size=10, weight="bold", color=_INK)


def _unit_square(axes: Axes) -> None:
    axes.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.02))
    axes.set_xticks(np.linspace(0, 1, 6))
    axes.set_yticks(np.linspace(0, 1, 6))


def _sparse(axes: Axes, n: int, axis: str = "both") -> None:
    from matplotlib.ticker import MaxNLocator

    if axis in ("x", "both") and n > 2:
        axes.xaxis.set_major_locator(MaxNLocator(n))
    if axis == "both":
        axes.yaxis.set_major_locator(MaxNLocator(n))


def _width(by_class: Mapping[str, Curve]) -> float:
    """Room for names beside the axes, where there is more than one."""
    return 4.6 if len(by_class) == 1 else 5.1 + 0.075 * max(len(_short(name)) for name in by_class)


def _legend(figure: Figure, by_class: Mapping[str, Curve]) -> None:
    if len(by_class) > 1:
        import matplotlib as mpl

        with mpl.rc_context(_STYLE):
            figure.legend(loc="outside right upper", handlelength=1.2, title="class", alignment="left")


def _short(text: str, length: int = _LABEL) -> str:
    """`text` with `$` taken literally, its middle cut out where it is too long."""
    if len(text) > length:
        half = (length - 1) // 2
        text = f"{text[: length - 1 - half]}…{text[-half:]}"
    return text.replace("$", r"\$")
