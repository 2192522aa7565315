"""Records as tests make them, and spools as tests read them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mlops_ray.serving.exchange import Labels
from mlops_ray.serving.records import Labelled, Record, Scored, Shadowed, Trial, Uncaptured, Watermark
from mlops_ray.serving.spool import segments as spool


def scored(request_id: str, n: int = 1, **more: Any) -> Scored:
    """A request of `tests.fakes.project()` with n rows, answered by version 10."""
    values: dict[str, Any] = {
        "id": request_id,
        "at": 2e9,
        "keys": tuple(f"k{i}" for i in range(n)),
        "times": np.full(n, 1e9),
        "columns": {
            "x": np.array([np.nan, *[0.5] * (n - 1)], np.float32)[:n],
            "n": np.full(n, 2, np.float32),
            "flag": np.ones(n, np.float32),
            "c": np.array(["", *["red"] * (n - 1)], object)[:n],
            "d": np.array(["blue"] * n, object),
        },
        "stable": 10,
        "scores": 0.1 * (np.arange(n) % 9 + 1),
        "score_us": 60.0,
    }
    return Scored(**values | more)


def trial(rows: list[int], scores: Any, failure: str = "", row_us: float | None = None) -> Trial:
    """Version 20's answers to these rows; None where it failed."""
    found = None if scores is None else np.array(scores, np.float64)
    return Trial(20, "r1", 0.5, np.array(rows, np.int64), found, failure, row_us)


def labelled(*rows: tuple[str, str, Any, float], at: float = 2e9, **numbers: list[float]) -> Labelled:
    """Labels as (prediction id, key, value, time), and business numbers by name."""
    ids, keys, values, times = zip(*rows, strict=True)
    kind = object if any(isinstance(v, str) for v in values) else np.float64
    told = {name: np.array(told, np.float64) for name, told in numbers.items()}
    return Labelled(at, Labels(ids, keys, np.array(values, kind), np.array(times, np.float64), told))


def spooled(folder: Path) -> list[Record]:
    """All whole records that stand in a spool, claimed or not, in the order of their files."""
    spool.claim(folder, 1 + max((s.number for s in spool.claimed(folder)), default=-1))
    return [record for segment in spool.claimed(folder) for record in segment.records()]


def same(a: Any, b: Any) -> bool:
    """Whether two records, or parts of them, are equal bit for bit."""
    if isinstance(a, np.ndarray):
        return bool(isinstance(b, np.ndarray) and a.dtype == b.dtype and _bits(a) == _bits(b) and a.shape == b.shape)
    if isinstance(a, dict):
        return isinstance(b, dict) and a.keys() == b.keys() and all(same(a[name], b[name]) for name in a)
    if isinstance(a, tuple):
        return isinstance(b, tuple) and len(a) == len(b) and all(map(same, a, b))
    if isinstance(a, Scored | Shadowed | Labelled | Watermark | Uncaptured | Trial | Labels):
        return type(a) is type(b) and same(vars(a), vars(b))
    return bool(a == b)


def _bits(values: NDArray[Any]) -> Any:
    return values.tolist() if values.dtype == object else values.tobytes()
