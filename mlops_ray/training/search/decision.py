"""From the winner's scores to probabilities, and from probabilities to decisions: calibration and threshold.

Both are fitted on out-of-fold answers (`candidates.crossed`): what a fit says to its own rows is too sure of itself.
"""

from __future__ import annotations

import warnings
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from mlops_ray import config
from mlops_ray.errors import DataError
from mlops_ray.training.evaluation.intervals import Floats
from mlops_ray.training.search import candidates
from mlops_ray.training.target import Labels, Scores

Method = Literal["sigmoid", "isotonic"]


def calibrated(estimator: Any, method: Method, raw: Scores, y: Labels, *, weights: Floats | None = None) -> Any:
    """The fitted classifier with its answers mapped to probabilities: scikit-learn's own `CalibratedClassifierCV`
    around `FrozenEstimator(estimator)`, with nothing of ours in it.

    Args: estimator: fitted on all rows. raw: what fits on other folds said to each row (`candidates.crossed(...).raw`),
        (n,) or (n, classes), of which the map is learnt; y: their labels (n,), each class among them.
    Multiclass: one map per class against the others, normalised (Zadrozny and Elkan 2002).
    Raises: DataError when a class of the estimator has no row or only one.
    Source: Platt 1999 (sigmoid), Zadrozny and Elkan 2002 (isotonic).
    """
    from sklearn.base import ClassifierMixin
    from sklearn.frozen import FrozenEstimator

    known = np.asarray(estimator.classes_)
    if not isinstance(estimator, ClassifierMixin):
        raise DataError("search.calibrate", f"{type(estimator).__name__} is no classifier")
    counts = [int((y == label).sum()) for label in known]
    if min(counts) < 2:
        rare = known[int(np.argmin(counts))]
        raise DataError("search.calibrate", f"class {rare} has {min(counts)} rows, and calibration needs two of each")
    fitted = _map(method, known, raw, y, weights, decides=hasattr(estimator, "decision_function"))
    # The map was learnt on answers that were given; from here on the estimator gives them.
    frozen = FrozenEstimator(estimator)
    fitted.set_params(estimator=frozen)
    fitted.calibrated_classifiers_[0].estimator = frozen
    for name in ("n_features_in_", "feature_names_in_"):
        if hasattr(estimator, name):
            setattr(fitted, name, getattr(estimator, name))
        elif hasattr(fitted, name):
            delattr(fitted, name)
    return fitted


def cross_calibrated(
    method: Method, known: ArrayLike, crossed: candidates.Crossed, y: Labels, *, weights: Floats | None = None
) -> Scores:
    """Out-of-fold scores as a calibrated version would give them: each fold's by a map learnt on the other folds.

    Args: known: the estimator's `classes_`; y: labels (n,). Returns: (n,) for two classes, else (n, classes).
    For choosing a threshold and for reference profiles, neither of which may look sharper than what is served."""
    raw, labels = crossed.raw, np.asarray(known)
    if raw is None:
        raise DataError("search.calibrate", "a regression has no classes; remove it")
    task: config.Task = "binary" if len(labels) == 2 else "multiclass"
    found = np.empty_like(crossed.scores)
    for fold in np.unique(crossed.fold):
        rows, rest = crossed.fold == fold, crossed.fold != fold
        kept = None if weights is None else weights[rest]
        fitted = _map(method, labels, raw[rest], y[rest], kept, decides=crossed.decides)
        found[rows] = candidates.placed(
            fitted.predict_proba(_wide(raw[rows])), fitted.classes_, task, None if task == "binary" else len(labels)
        )
    return found


def _wide(raw: Scores) -> Scores:
    return raw.reshape(len(raw), -1)


def _map(method: Method, known: NDArray[Any], raw: Scores, y: Labels, weights: Floats | None, *, decides: bool) -> Any:
    """`CalibratedClassifierCV` fitted around something that repeats `raw`."""
    from sklearn.calibration import CalibratedClassifierCV
    from sklearn.frozen import FrozenEstimator

    told = FrozenEstimator(_told(known, decides=decides))
    fitted = CalibratedClassifierCV(told, method=method, cv=2, ensemble=False)
    with warnings.catch_warnings():
        # That weights reach the map alone is what is meant: what it is fitted around has nothing to fit.
        warnings.filterwarnings("ignore", message="Since FrozenEstimator does not appear to accept sample_weight")
        return fitted.fit(_wide(raw), y, sample_weight=weights)


def _told(known: NDArray[Any], *, decides: bool) -> Any:
    """A fitted classifier whose answers are its inputs. Its class is made here, for scikit-learn is imported only
    where it is needed."""
    from sklearn.base import BaseEstimator, ClassifierMixin

    class Told(ClassifierMixin, BaseEstimator):  # type: ignore[misc]  # scikit-learn has no types
        classes_ = known

        def __sklearn_is_fitted__(self) -> bool:
            return True

        def fit(self, said: Scores, y: Labels) -> Any:
            return self

        def predict(self, said: Scores) -> Any:
            return known[np.argmax(said, axis=1)]

    class Decided(Told):
        def decision_function(self, said: Scores) -> Scores:
            return said[:, 0] if said.shape[1] == 1 else said

    class Probable(Told):
        def predict_proba(self, said: Scores) -> Scores:
            return said

    return Decided() if decides else Probable()


def best_threshold(plan: config.Threshold, y: ArrayLike, scores: ArrayLike, weights: Floats | None = None) -> float:
    """The threshold in (0, 1) at which `score >= threshold` decides best on these rows: the exact optimum.

    Decisions change only at observed scores, so each gap between two neighbours is tried, at its middle, which leaves
    room for rounding on both sides. Of equally good ones the one nearest to 0.5 is taken, then the lower one.

    Args: y: 0 or 1, (n,); scores: P(1), out of fold, (n,); weights: of rows, (n,).
    Raises: DataError when they are not equally long, or hold one class only.
    """
    labels, p = np.asarray(y), np.asarray(scores, dtype=np.float64)
    if labels.shape != p.shape or p.ndim != 1 or not 0 < (labels == 1).sum() < len(labels):
        raise DataError("search.threshold", "needs labels and scores of the same rows, of both classes")
    w = np.ones(len(p)) if weights is None else np.asarray(weights, dtype=np.float64)
    levels, index = np.unique(p, return_inverse=True)
    positives, negatives = (
        np.bincount(index, weights=w * part, minlength=len(levels)).astype(np.float64)
        for part in (labels == 1, labels != 1)
    )
    edges = np.concatenate([[0.0], levels, [1.0]])
    cuts = (edges[:-1] + edges[1:]) / 2  # cut i lets levels i and above through
    missed, caught = _below(positives), _above(positives)
    cleared, accused = _below(negatives), _above(negatives)
    value = _worth(plan, caught, accused, missed, cleared)
    allowed = np.flatnonzero((cuts > 0) & (cuts < 1) & (np.diff(edges) > 0))
    if len(allowed) == 0:
        return 0.5  # every score is 0 or 1: any threshold between decides alike
    top = value[allowed].max()
    equal = allowed[value[allowed] >= top - 1e-12 * max(1.0, abs(top))]
    return float(min(cuts[equal], key=lambda cut: (abs(cut - 0.5), cut)))


def _below(counts: Floats) -> Floats:
    return np.concatenate([[0.0], np.cumsum(counts)])


def _above(counts: Floats) -> Floats:
    return np.concatenate([np.cumsum(counts[::-1])[::-1], [0.0]])


def _worth(plan: config.Threshold, tp: Floats, fp: Floats, fn: Floats, tn: Floats) -> Floats:
    """What is maximised, per cut."""
    if plan.cost is not None:
        cost = plan.cost
        return np.asarray(
            -(tp * cost.true_positive + fp * cost.false_positive + fn * cost.false_negative + tn * cost.true_negative)
        )
    if plan.metric == "f1":
        return np.asarray(2 * tp / np.maximum(2 * tp + fp + fn, np.finfo(float).tiny))
    if plan.metric == "balanced_accuracy":
        return np.asarray((tp / (tp + fn) + tn / (tn + fp)) / 2)
    return np.asarray((tp + tn) / (tp + fp + fn + tn))
