"""Answers for protocols to write down."""

from __future__ import annotations

from typing import Any

import numpy as np

from mlops_ray.serving.exchange import Answer

_BINARY: dict[str, Any] = {
    "request_id": "r",
    "task": "binary",
    "classes": (0, 1),
    "threshold": 0.5,
    "scores": np.array([0.25, 0.75]),
    "versions": np.array([3, 4]),
    "canary": np.array([False, True]),
}


def binary(**fields: Any) -> Answer:
    """Two rows, the second one the canary's; `fields` replace the answer's."""
    return Answer(**(_BINARY | fields))


def multiclass(classes: tuple[str | int, ...] = ("cat", "dog", "fox"), **fields: Any) -> Answer:
    """Two rows: the second class, then the first."""
    scores = np.array([[0.25, 0.5, 0.25], [0.75, 0.25, 0.0]])
    return binary(**({"task": "multiclass", "classes": classes, "scores": scores} | fields))


def regression(**fields: Any) -> Answer:
    """Two rows with numbers."""
    return binary(**({"task": "regression", "classes": (), "scores": np.array([-1.5, 20.0])} | fields))
