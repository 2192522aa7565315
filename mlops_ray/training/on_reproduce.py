"""`mlops-ray reproduce`: a version trained again from its recipe, and what came out compared with what was made."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from mlops_ray.config import Project
from mlops_ray.data import lake
from mlops_ray.data.splits import HOLDOUT
from mlops_ray.errors import DataError
from mlops_ray.state import VersionRow
from mlops_ray.training import recipe
from mlops_ray.training import rows as rows_of
from mlops_ray.training.artifact import engines, model
from mlops_ray.training.artifact.lock import differences, environment_lock
from mlops_ray.training.on_fit import Whole
from mlops_ray.training.on_machine import checkout
from mlops_ray.training.on_parallel import Parallel, way_of
from mlops_ray.training.recipe import Recipe, Reproduction

Progress = Callable[[str, int, int], None]


def reproduce(project: Project, row: VersionRow, *, search: bool, on_progress: Progress) -> Reproduction:
    """Train version `row` again from its recipe and compare predictions on the holdout. Ray must be initialised.

    Nothing is written: no run, no artifact, no version.
    Args: search: repeat the search as well; its winner is compared, the recorded one is trained.
    A dataset version that was redacted meanwhile is used as it is, and the result says so.
    Raises: DataError when the dataset version is gone or holds other rows; ArtifactRefused; what training raises.
    """
    with tempfile.TemporaryDirectory() as cache:
        stored = model.load(
            model.fetch(row.artifact, Path(cache), row.sha256), row.sha256, trusted=project.features.trusted_types
        )
        made = Recipe.from_dict(stored.recipe, row.artifact)
        then = made.project_of(project)
        dataset = lake.dataset(made.uri, made.version)
        if made.content_hash not in dataset.contents:
            what = (
                f"has content {dataset.content_hash[:12]}, version {row.version} was made from {made.content_hash[:12]}"
            )
            raise DataError(rows_of.label(dataset), what)
        on_progress("read", 0, 1)
        kind = way_of(then)
        rows = kind.read(then, dataset)
        if made.shuffle_target:
            rows = rows.shuffled(np.random.default_rng(then.seed))
        on_progress("read", 1, 1)
        on_progress("features", 0, 1)
        way = kind.prepare(then, dataset, rows)
        on_progress("features", 1, 1)
        searched = _search(way, made, on_progress) if search else None
        on_progress("refit", 0, 1)
        if made.refit and isinstance(way, Whole):
            now = way.refit_on_all(made.winner, dataset)[1]
        else:
            now = way.refit(made.winner).answers
        before = engines.sklearn_scorer(stored.pipeline(), then.features, then.task)(rows.inputs(rows.of(HOLDOUT)))
        on_progress("refit", 1, 1)
    same, gap = recipe.compare(then.task, made.scores_sha256, before, now)
    code = checkout()
    changed = dataset.content_hash != made.content_hash
    said = (
        *([f"{rows_of.label(dataset)} was {dataset.redacted}; the version was made of more rows"] if changed else []),
        *recipe.code_differences(made.commit, made.dirty, (code.commit, code.dirty) if code is not None else None),
        *differences(stored.lock, environment_lock(tuple(stored.lock))),
        *recipe.project_differences(made.project, project),
    )
    return Reproduction(row.version, same, gap, len(now), said, searched)


def _search(way: Whole | Parallel, made: Recipe, on_progress: Progress) -> dict[str, Any]:
    """What the search finds today, and whether it is what it found then."""
    with tempfile.TemporaryDirectory() as storage:
        found = way.search(storage=storage, name="reproduce", on_progress=on_progress)
    return {
        "same": found.choice == made.winner,
        "winner": f"{found.choice.estimator} {dict(found.choice.params)}",
        "score": found.score,
        "score_then": made.score,
    }
