"""What a training run leaves to look at: the gates' pages, and plots."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from mlops_ray.config import Gates
from mlops_ray.training.evaluation import curves, importance, intervals, plots
from mlops_ray.training.gates.case import Case
from mlops_ray.training.gates.junit import junit
from mlops_ray.training.gates.report import html
from mlops_ray.training.gates.verdict import GateResult

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class Pages:
    """The gates' result as a page, as JSON and as JUnit XML; plots as PNG by file name."""

    html: str
    json: str
    junit: str
    plots: dict[str, bytes]

    @property
    def gates(self) -> dict[str, str]:
        """Files of the run's folder `gates`."""
        return {"gates.html": self.html, "gates.json": self.json, "gates.xml": self.junit}


def pages(
    title: str, gates: Gates, case: Case, result: GateResult, facts: Mapping[str, str], *, rng: np.random.Generator
) -> Pages:
    """Draw the holdout's curves and the importance of each input, and write down the result."""
    figures = dict(_figures(gates, case, rng))
    drawn = {name.replace("_", " "): plots.svg(figure, name) for name, figure in figures.items()}
    return Pages(
        html=html(title, result, drawn, facts),
        json=json.dumps(result.to_dict(), indent=1),
        junit=junit(title, result),
        plots={f"{name}.png": plots.png(figure) for name, figure in figures.items()},
    )


def _figures(gates: Gates, case: Case, rng: np.random.Generator) -> Iterator[tuple[str, Figure]]:
    found = curves.curves(case.task, case.y, case.scores, case.classes, threshold=case.threshold)
    yield from plots.figures(found).items()
    blocks = intervals.blocks(case.times, gates.block_s)
    ranked = importance.permutation(
        case.task, case.columns, case.y, case.score, blocks, resamples=gates.resamples, alpha=gates.alpha, rng=rng
    )
    rows = [(each.column, each.increase) for each in ranked[:20]]
    yield "importance", plots.estimates("Loss added when an input is shuffled", rows, unit="loss per row")
