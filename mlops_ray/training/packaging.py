"""From a fitted pipeline to an artifact in its place: the reference that monitoring compares with, and the files."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mlops_ray.config import Project
from mlops_ray.data import profile
from mlops_ray.data.features.statistics import Partial
from mlops_ray.data.features.transformer import bins
from mlops_ray.data.profile import Bins, Columns
from mlops_ray.data.splits import HOLDOUT
from mlops_ray.training import calibration, target
from mlops_ray.training.artifact import files, model
from mlops_ray.training.artifact.model import Model, Reference
from mlops_ray.training.evaluation import intervals
from mlops_ray.training.rows import Rows
from mlops_ray.training.search.references import Folded
from mlops_ray.training.target import Scores

if TYPE_CHECKING:
    from sklearn.pipeline import Pipeline


def bins_for(project: Project, seen: Partial, rival: Model | None) -> Bins:
    """The champion's bins where the features are the same: live windows must survive a promotion and add."""
    found = bins(project.features, seen)
    if rival is not None and rival.reference.bins.widths.keys() == found.widths.keys():
        return rival.reference.bins
    return found


def reference(project: Project, edges: Bins, rows: Rows, scores: Scores) -> Reference:
    """Profiles of all rows per block of time, and losses of the holdout's.

    Args: scores: of every row as no fit on that row gave them, shape (n,) or (n, classes).
    """
    block_s = project.monitoring.block_s
    grouped = intervals.blocks(rows.times, block_s)
    starts = np.searchsorted(grouped.index, np.arange(len(grouped) + 1))
    shown = target.counted(project.task, scores)
    profiles = tuple(
        (float(start), profile.fold(edges, _cut(rows.columns, a, b), None if shown is None else shown[a:b]))
        for start, (a, b) in zip(grouped.starts, pairwise(starts), strict=True)
    )
    judged = rows.of(HOLDOUT)
    y, late = rows.y[judged], intervals.blocks(rows.times[judged], block_s)
    labels = np.zeros(len(y)) if project.task == "multiclass" else y
    sums = (np.ones(len(y)), target.losses(project.task, y, scores[judged]), labels)
    holdout = tuple(
        (float(start), int(n), float(loss), float(label))
        for start, n, loss, label in zip(late.starts, *(late.sums(each) for each in sums), strict=True)
    )
    return Reference(edges, block_s, profiles, holdout)


def calibrated(project: Project, found: Reference, rows: Rows, answers: Scores) -> Reference:
    """The reference with what the version's `answers` to the holdout of `rows`, oldest first, turned out to mean."""
    judged = rows.of(HOLDOUT)
    times = intervals.blocks(rows.times[judged], found.block_s)
    y, columns = rows.y[judged], rows.inputs(judged)
    return replace(found, calibration=calibration.fit(project.task, y, answers, times, found.bins, columns))


def reference_of(project: Project, edges: Bins, parts: Folded) -> Reference:
    """The same of rows that were folded shard by shard: `parts` of them all, by the bins `edges`."""
    holdout = tuple((start, *sums) for start, sums in sorted(parts.holdout.items()))
    return Reference(edges, project.monitoring.block_s, tuple(sorted(parts.blocks.items())), holdout)


def _cut(columns: Columns, start: int, stop: int) -> Columns:
    return {name: values[start:stop] for name, values in columns.items()}


def package(project: Project, pipeline: Pipeline, holdout: Columns, run_id: str, **described: Any) -> tuple[str, str]:
    """Address and hash of the artifact, written aside first, so that a run that dies leaves no half of one there.

    Args: holdout: inputs of the holdout, which choose the engine; described: what else `model.save` takes.
    """
    # A resumed run may have packaged already, and even registered: what lies there is never written over.
    address = files.vacant(project.storage.path("models", project.project, run_id))
    parent = None if project.storage.is_remote else Path(address).parent
    if parent is not None:
        parent.mkdir(parents=True, exist_ok=True)
    aside = Path(tempfile.mkdtemp(prefix=".writing-", dir=parent))
    try:
        folder = aside / run_id
        sha256 = model.save(
            folder,
            pipeline,
            task=project.task,
            features=project.features,
            target=project.target,
            holdout=holdout,
            **described,
        )
        model.publish(folder, address)
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    return address, sha256


def facts_of(project: Project, candidate: Model, described: Mapping[str, Any]) -> dict[str, str]:
    """What a report shows of a packaged version besides its judgement."""
    why = {"engine": candidate.engine, "engine because": candidate.manifest["reason"]}
    return {str(name): str(value) for name, value in {"project": project.project, **described, **why}.items()}
