"""Windows of a simulation, judged by what the monitor judges live ones by (`monitoring.judgement`, `record`)."""

from __future__ import annotations

from typing import Any

import numpy as np

from mlops_ray.config import Project
from mlops_ray.data.profile import codes, fold
from mlops_ray.monitoring import clock, judgement, record
from mlops_ray.simulation.history import History
from mlops_ray.state import WindowRow
from mlops_ray.training import target
from mlops_ray.training.artifact.model import Model
from mlops_ray.training.evaluation.intervals import Floats

DRIFT, QUALITY = 0, 1
"""What is judged at one instant, in this order; the numbers stand in the cursor."""
ENTRY = ("drift", "quality")

Due = tuple[float, int, float]
"""When something is judged, what, and where its window ends."""


def due(project: Project, first: float, judged: tuple[float, int], now: float) -> list[Due]:
    """What is to be judged by `now`, in order. Args: first: when traffic began; judged: the last instant and kind."""
    plan, (at, _) = project.monitoring, judged
    after = max(at, first) - plan.block_s
    found = [(end, DRIFT, end) for end in clock.passed(after, now, every_s=plan.window_s)]
    mature = clock.passed(after - plan.label_horizon_s, now - plan.label_horizon_s, every_s=plan.window_s)
    found += [(end + plan.label_horizon_s, QUALITY, end) for end in mature]
    return [one for one in sorted(found) if one[2] - plan.window_s >= first and one[:2] > judged]


def drift(
    project: Project,
    history: History,
    stable: tuple[int, Model],
    scored: tuple[np.ndarray, Floats],
    windows: list[WindowRow],
    at: float,
    end: float,
) -> dict[int, dict[str, Any]]:
    """What a window that ends at `end` gets when it closes, by version: its drift, and the quality to expect.

    Args: stable: its number and model. scored: of all rows, which version was stable, and its score."""
    plan, (number, model) = project.monitoring, stable
    rows = history.between(end - plan.window_s, end)
    reference, columns = model.reference, history.inputs(rows)
    versions, scores = scored[0][rows], scored[1][rows]
    found = judgement.judge_drift(plan, reference, fold(reference.bins, columns, target.counted(project.task, scores)))
    mine = versions == number
    rng = np.random.default_rng([project.seed, int(end), 1])
    before = sorted((w for w in windows if w.version == number and w.end < end), key=lambda w: w.end)
    entry = record.estimated(
        plan,
        reference.calibration,
        scores[mine],
        codes(reference.bins, {name: values[mine] for name, values in columns.items()}),
        threshold=project.serving.threshold if model.threshold is None else model.threshold,
        before=[w.result[record.ENTRY] for w in before if record.ENTRY in w.result],
        at=at,
        rng=rng,
    )
    expected = judgement.judge_estimate(plan, project.task, reference, entry, rng)
    return {
        number: {
            "drift": _entry(found, at),
            record.ENTRY: entry | {"alarm": expected.alarm, "why": expected.why, **expected.detail},
        }
    }


def quality(
    project: Project,
    history: History,
    stable: tuple[int, Model],
    scored: tuple[np.ndarray, Floats],
    windows: list[WindowRow],
    models: dict[int, Model],
    at: float,
    end: float,
) -> dict[int, dict[str, Any]]:
    """What the same window gets `label_horizon_s` later: its realised quality, and what became of its estimates."""
    plan, (number, model) = project.monitoring, stable
    rows = history.between(end - plan.window_s, end)
    versions, scores = scored[0][rows], scored[1][rows]
    labels = np.where(history.labelled[rows] <= at, history.y[rows], np.nan)
    mine = versions == number
    rng = np.random.default_rng([project.seed, int(end)])
    if project.task == "binary":
        found = judgement.judge_quality(plan, model.reference, labels[mine], scores[mine], rng)
    else:
        found = judgement.unjudged_quality(project.task)
    results: dict[int, dict[str, Any]] = {number: {"quality": _entry(found, at)}}
    for window in windows:
        if window.end != end or record.ENTRY not in window.result:
            continue
        theirs, version = versions == window.version, models[window.version]
        threshold = project.serving.threshold if version.threshold is None else version.threshold
        entry = record.scored(
            window.result[record.ENTRY], plan, project.task, labels[theirs], scores[theirs], threshold=threshold
        )
        results.setdefault(window.version, {})[record.ENTRY] = entry
    return results


def _entry(found: judgement.Judgement, at: float) -> dict[str, Any]:
    return {"alarm": found.alarm, "why": found.why, "at": at, **found.detail}
