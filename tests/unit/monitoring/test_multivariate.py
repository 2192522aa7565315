from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from threadpoolctl import threadpool_limits

from mlops_ray.monitoring.multivariate import auc, tell

LEVEL = 0.1


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    with threadpool_limits(1):
        yield


def rows(rng: np.random.Generator, n_blocks: int, *, together: float = 0.0, alike: float = 0.0) -> Any:
    """Bins of two columns, forty rows a block, with a correlation; `alike`: a block's common effect."""
    block = np.repeat(np.arange(n_blocks), 40)
    x = rng.normal(size=(len(block), 2)) + alike * rng.normal(size=(n_blocks, 2))[block]
    x[:, 0] = together * x[:, 1] + np.sqrt(1 - together**2) * x[:, 0]
    return np.searchsorted(np.linspace(-1.6, 1.6, 9), x).astype(np.uint16), block


def told(seed: int, *, level: float = LEVEL, blocks: tuple[int, int] = (16, 8), **of: Any) -> Any:
    rng = np.random.default_rng(seed)
    alike = of.pop("alike", 0.0)
    known, live = rows(rng, blocks[0], alike=alike), rows(rng, blocks[1], alike=alike, **of)
    return tell(*known, *live, alarm_level=level, min_rows=200, rng=rng)


def test_what_shows_in_no_feature_alone_is_seen() -> None:
    found = told(0, together=0.8, level=0.05)
    assert found.alarm
    assert found.auc > 0.6
    assert found.p <= 0.05
    assert found.why.startswith("a classifier tells the rows from the holdout's: AUC 0.")


def test_rows_of_a_block_that_are_alike_fake_no_difference() -> None:
    """Ten quiet windows at a level of 10 %; without blocks left out the curve alone would say 0.8 and more."""
    alarms = [told(seed, alike=1.0).alarm for seed in range(10)]
    assert sum(alarms) <= 3


def test_a_row_is_told_by_a_classifier_that_saw_no_row_of_its_block() -> None:
    """Each block has a value of its own, which tells its side, and nothing else does."""
    block = np.repeat(np.arange(20), 40)
    values = np.random.default_rng(0).permutation(20).astype(np.float32)[block][:, None]
    assert auc(values, block, np.arange(20) >= 10) < 0.75


def test_too_few_rows_or_blocks_alarm_nobody() -> None:
    assert told(0, blocks=(16, 4)).why == "the window has 160 rows; 200 are needed"
    few = told(0, blocks=(6, 6), level=0.001, together=0.9)
    assert not few.alarm
    assert few.why.startswith("uncalibrated: 6 blocks of the holdout and 6 of the window")


def test_the_same_again() -> None:
    assert told(1) == told(1)
