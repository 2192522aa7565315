"""SHAP: how far each transformed feature moves a model's answers. Needs the extra `shap`."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from mlops_ray.errors import MlopsRayError
from mlops_ray.training.evaluation.intervals import Floats

_COST = 3e9
"""Leaves times squared depth times outputs that are walked for a forest, some four seconds on one core."""
_MIN_ROWS = 50


class NoExplanation(MlopsRayError):
    """SHAP values cannot be had here; `detail` says why and what else there is."""

    def __init__(self, detail: str) -> None:
        super().__init__(detail)
        self.detail = detail

    def __str__(self) -> str:
        return f"no SHAP values: {self.detail}"


@dataclass(frozen=True)
class Contribution:
    """Mean absolute SHAP value of one transformed feature."""

    feature: str
    mean_abs: float


@dataclass(frozen=True)
class Explanation:
    """Contributions, largest first, over `n` rows, in `unit`: log-odds, probability, or the target's unit."""

    contributions: tuple[Contribution, ...]
    n: int
    unit: str

    def to_dict(self) -> dict[str, Any]:
        """JSON-friendly."""
        return asdict(self)


def explain(
    pipeline: Any,
    rows: Any,
    *,
    rng: np.random.Generator,
    names: Sequence[str] | None = None,
    max_rows: int = 500,
) -> Explanation:
    """Mean absolute SHAP values of a fitted pipeline's last step, per feature that reaches it.

    Trees by TreeSHAP (path-dependent), linear models by their coefficients around the mean row. Of several classes the
    mean over classes. A calibrated classifier is explained as it was before calibration. Large forests are explained on
    fewer rows, at least 50 (TreeSHAP takes leaves times squared depth per row); `Explanation.n` says on how many.

    Args: pipeline: scikit-learn's, its last step the model; rows: what it predicts on, (n, inputs); names: of the
        transformed features, those of the pipeline by default.
    Raises: NoExplanation without the package, and for a model that neither explainer takes.
    Source: Lundberg et al., From local explanations to global understanding with explainable AI for trees, 2020.
    """
    shap = _package()
    transformed = pipeline[:-1].transform(rows) if len(pipeline) > 1 else rows
    matrix = np.asarray(transformed.toarray() if hasattr(transformed, "toarray") else transformed, dtype=np.float64)
    members = _members(pipeline[-1])
    kept = np.sort(rng.permutation(len(matrix))[: min(max_rows, _affordable(members))])
    parts = [_values(shap, model, matrix, kept) for model in members]
    mean_abs = np.abs(np.mean(parts, axis=0)).mean(axis=0)
    if mean_abs.ndim == 2:  # a forest's two classes mirror each other
        mean_abs = mean_abs[:, 1] if mean_abs.shape[1] == 2 else mean_abs.mean(axis=1)
    found = list(names) if names is not None else [str(name) for name in pipeline[:-1].get_feature_names_out()]
    pairs = sorted(zip(found, mean_abs.tolist(), strict=True), key=lambda pair: -pair[1])
    return Explanation(tuple(Contribution(*pair) for pair in pairs), len(kept), _unit(members[0]))


def _package() -> Any:
    try:
        with warnings.catch_warnings():
            # Its plots, which we do not use, call names of matplotlib that are about to go.
            warnings.simplefilter("ignore", PendingDeprecationWarning)
            import shap
    except ImportError as exc:
        raise NoExplanation("the package is missing; pip install 'mlops-ray[shap]', or use `importance`") from exc
    return shap


def _members(model: Any) -> list[Any]:
    """The models whose mean answers, before calibration."""
    if hasattr(model, "calibrated_classifiers_"):
        return [member for part in model.calibrated_classifiers_ for member in _members(part.estimator)]
    if type(model).__name__ == "FrozenEstimator":
        return _members(model.estimator)
    return [model]


def _trees(model: Any) -> list[Any]:
    return [tree.tree_ for tree in np.ravel(getattr(model, "estimators_", [])) if hasattr(tree, "tree_")]


def _affordable(members: Sequence[Any]) -> int:
    """Rows within `_COST`; only forests of scikit-learn are that slow, for their trees grow to the end."""
    per_row = sum(
        tree.n_leaves * tree.max_depth**2 * int(tree.max_n_classes) for model in members for tree in _trees(model)
    )
    return max(_MIN_ROWS, int(_COST / per_row)) if per_row else np.iinfo(np.int64).max


def _values(shap: Any, model: Any, matrix: Floats, kept: np.ndarray[Any, np.dtype[np.int64]]) -> Floats:
    try:
        if hasattr(model, "coef_"):
            explainer = shap.LinearExplainer(model, shap.maskers.Independent(matrix, max_samples=len(matrix)))
        else:
            explainer = shap.TreeExplainer(model)
        return np.asarray(explainer.shap_values(matrix[kept]), dtype=np.float64)
    except Exception as exc:  # shap refuses models by a bare Exception, a TypeError or errors of its own
        kind = type(model).__name__
        raise NoExplanation(f"{kind} has no explainer ({exc}); use permutation importance instead") from exc


def _unit(model: Any) -> str:
    if not hasattr(model, "classes_"):
        return "target's unit"
    return "probability" if _trees(model) and not hasattr(model, "learning_rate") else "log-odds"
