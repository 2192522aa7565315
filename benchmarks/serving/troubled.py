"""A version that passes every check where it is loaded and misbehaves afterwards, as soon as a file says how.

Workers import it by its name, as a type of a project's own that stands in `features.trusted_types`.
"""

from __future__ import annotations

import itertools
import os
import shutil
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from sklearn.base import BaseEstimator, ClassifierMixin

from mlops_ray.config import Project
from mlops_ray.rollout.canary import Phase
from mlops_ray.rollout.traffic import wanted_configuration
from mlops_ray.serving.versions import Wanted
from mlops_ray.state import Store, Tx, VersionRow
from mlops_ray.training.artifact import model

if TYPE_CHECKING:
    from sklearn.pipeline import Pipeline

TRUSTED = f"{__name__}.Troubled"
SLEEP_S = 2.0
SLOW_S = 0.5
"""For each call: longer than any model takes, and below the deadline of a canary."""
CONSTANT = 0.3
"""Probability of class 1, whatever the row."""
SHIFT = 0.6
"""Added to the log odds of class 1."""
# Three calls of every ten fail, never two of them in a row: a version that is asked no more (`serving.canary`) would
# fail all of its rows.
_FAILING, _OF = (1, 4, 7), 10
# The first call in a process is the replay of the golden requests when the version is loaded.
_calls = itertools.count()


class Troubled(ClassifierMixin, BaseEstimator):  # type: ignore[misc]
    """Answers as `inner` does, a fitted classifier of two classes, until the file `trouble` says `sleep`, `exit`,
    `raise`, `slow`, `constant` or `shift`.

    A subclass of no known estimator has no converter: scikit-learn serves it."""

    def __init__(self, inner: Any, trouble: str) -> None:
        self.inner, self.trouble = inner, trouble

    @property
    def classes_(self) -> Any:
        return self.inner.classes_

    def __sklearn_is_fitted__(self) -> bool:
        return True

    def fit(self, x: Any, y: Any) -> Troubled:
        self.inner.fit(x, y)
        return self

    def predict(self, x: Any) -> Any:
        return self.inner.predict(x)

    def predict_proba(self, x: Any) -> Any:
        if not (call := next(_calls)):
            return self.inner.predict_proba(x)
        file = Path(self.trouble)
        return _troubled_answer(file.read_text(encoding="utf-8") if file.exists() else "", call, self.inner, x)


def _troubled_answer(trouble: str, call: int, inner: Any, x: Any) -> Any:
    if trouble == "sleep":
        time.sleep(SLEEP_S)
    elif trouble == "exit":
        os._exit(7)
    elif trouble == "raise" and call % _OF in _FAILING:
        raise ValueError("troubled")
    elif trouble == "slow":
        time.sleep(SLOW_S)
    elif trouble == "constant":
        return np.tile([1 - CONSTANT, CONSTANT], (len(x), 1))
    said = inner.predict_proba(x)
    if trouble == "shift":
        said = said * np.exp([0.0, SHIFT])
        said /= said.sum(axis=1, keepdims=True)
    return said


def register(project: Project, store: Store, folder: Path, trouble: Path) -> int:
    """A copy of the project's stable version that is troubled when the file `trouble` says so; its number.

    It lies in the new directory `folder`."""
    row = _stable(project, store)
    healthy = model.load(row.artifact, row.sha256, trusted=project.features.trusted_types)
    shutil.rmtree(folder, ignore_errors=True)
    sha256 = model.save(
        folder,
        _troubled(healthy.pipeline(), trouble),
        task=project.task,
        classes=healthy.classes,
        features=project.features,
        target=project.target,
        reference=healthy.reference,
        holdout=healthy.golden.columns,
        lock=healthy.lock,
        recipe=healthy.recipe,
        threshold=healthy.threshold,
    )
    return _numbered(project, store, replace(row, artifact=str(folder), sha256=sha256))


def again(project: Project, store: Store) -> int:
    """The artifact of the project's stable version under a new number; that number."""
    return _numbered(project, store, _stable(project, store))


def _stable(project: Project, store: Store) -> VersionRow:
    with store.read() as tx:
        served = tx.serving(project.project)
        assert served is not None, "a project that is up serves a version"
        return tx.version(project.project, served.spec["stable"]["version"])


def _numbered(project: Project, store: Store, row: VersionRow) -> int:
    """The registry knows it too, for the controller moves aliases there."""
    import mlflow

    client = mlflow.MlflowClient(project.storage.tracking)
    version = int(client.create_model_version(project.project, row.artifact, row.run_id).version)
    store.run(lambda tx: tx.save_version(replace(row, version=version)))
    return version


def _troubled(pipeline: Pipeline, trouble: Path) -> Pipeline:
    name, estimator = pipeline.steps[-1]
    pipeline.steps[-1] = (name, Troubled(estimator, str(trouble)))
    return pipeline


def try_on(store: Store, rollout: str, share: float, *, shadow: bool = False) -> Wanted:
    """Give the version of an open rollout this share of keys from now on, as canary or as shadow; what is wanted now.

    With a tiny share it idles beside stable, which is what its troubles are compared with."""

    def save(tx: Tx) -> Wanted:
        row = tx.rollout(rollout)
        assert row is not None
        plan = {**row.plan, "shares": [share], "shadow_share": share}
        state = dict(row.state)
        if state["phase"] in (Phase.RAMPING, Phase.SHADOWING):
            state["phase"] = str(Phase.SHADOWING if shadow else Phase.RAMPING)
        tx.save_rollout(replace(row, plan=plan, state=state))
        served, wanted = tx.serving(row.project), wanted_configuration(tx, row.project, now=row.created)
        assert served is not None
        assert wanted is not None
        return Wanted.of(tx.save_serving(row.project, wanted.spec(), served.fence))

    found: Wanted = store.run(save)
    return found
