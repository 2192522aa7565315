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
from mlops_ray.state import Store, Tx
from mlops_ray.training.artifact import model

if TYPE_CHECKING:
    from sklearn.pipeline import Pipeline

TRUSTED = f"{__name__}.Troubled"
SLEEP_S = 2.0
_FAILING = 0.3
# The first call in a process is the replay of the golden requests when the version is loaded.
_calls = itertools.count()


class Troubled(ClassifierMixin, BaseEstimator):  # type: ignore[misc]
    """Answers as `inner` does, a fitted classifier, until the file `trouble` says `sleep`, `exit` or `raise`.

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
        if next(_calls):
            _misbehave(Path(self.trouble))
        return self.inner.predict_proba(x)


def _misbehave(file: Path) -> None:
    trouble = file.read_text(encoding="utf-8") if file.exists() else ""
    if trouble == "sleep":
        time.sleep(SLEEP_S)
    elif trouble == "exit":
        os._exit(7)
    elif trouble == "raise" and np.random.default_rng().random() < _FAILING:
        raise ValueError("troubled")


def register(project: Project, store: Store, folder: Path, trouble: Path) -> int:
    """A copy of the project's stable version that is troubled when the file `trouble` says so; its number.

    It lies in the new directory `folder`; the registry knows it too, for the controller moves aliases there."""
    import mlflow

    with store.read() as tx:
        served = tx.serving(project.project)
        assert served is not None, "a project that is up serves a version"
        row = tx.version(project.project, served.spec["stable"]["version"])
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
    client = mlflow.MlflowClient(project.storage.tracking)
    version = int(client.create_model_version(project.project, str(folder), row.run_id).version)
    troubled = replace(row, version=version, artifact=str(folder), sha256=sha256)
    store.run(lambda tx: tx.save_version(troubled))
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
