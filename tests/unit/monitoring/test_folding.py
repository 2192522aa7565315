"""Pushes of collectors: each once, and time goes on whatever their profiles are over."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mlops_ray.data.profile import Bins, Profile, fold
from mlops_ray.monitoring import folding
from mlops_ray.state import Store

ONE = Bins({"x": (0.0, 1.0), "y": (0.0,)}, {})
OTHER = Bins({"x": (0.0, 1.0)}, {})
"""Of a version with fewer features."""


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    opened = Store.open(f"sqlite:///{tmp_path}/state.db")
    yield opened
    opened.close()


def push(store: Store, number: int, bins: Bins, n: int) -> bool:
    columns = {name: np.full(n, 0.5, dtype=np.float32) for name in bins.numeric}
    time = 100.0 + number
    pushed: dict[str, Any] = {
        "spool": "s",
        "base": number - 1,
        "number": number,
        "profiles": [(1, 0.0, fold(bins, columns).to_dict())],
        "watermark": time,
        "newest": time,
        "node": "a",
        "passed": time,
        "nodes": ("a",),
    }
    return store.run(lambda tx: folding.fold(tx, "small", pushed, 1000.0))


def told(store: Store) -> tuple[int, float]:
    """Rows of the block, and decision time."""
    with store.read() as tx:
        body = tx.profile("small", 1, 0.0)
        assert body is not None
        return Profile.from_dict(body).n, tx.cursor("small", "watermark").at


def test_a_push_is_folded_once(store: Store) -> None:
    assert push(store, 0, ONE, 5)
    assert push(store, 1, ONE, 7)
    assert not push(store, 1, ONE, 7)
    assert told(store) == (12, 101.0)


def test_features_that_change_within_a_block_stop_no_clock(store: Store) -> None:
    """The block holds what came since: counts over other features do not add up."""
    assert push(store, 0, ONE, 5)
    assert push(store, 1, OTHER, 7)
    assert push(store, 2, OTHER, 1)
    assert told(store) == (8, 102.0)
    with store.read() as tx:
        assert tx.cursor("small", folding.rows_cursor(1)).number == 13
