from __future__ import annotations

import math

import numpy as np
import pytest

from mlops_ray.monitoring.drift import level
from mlops_ray.monitoring.performance import Block, Quality, limit, losses, quality

NAN = math.nan
DAY_S = 86_400.0


def test_losses() -> None:
    found = losses(np.array([1.0, 0.0, 1.0, 0.0]), np.array([0.5, 0.5, 0.9, 0.9]))
    assert found == pytest.approx([math.log(2), math.log(2), -math.log(0.9), -math.log(0.1)])
    clipped = losses(np.array([1.0, 0.0]), np.array([0.0, 1.0]), clip=0.01)
    assert clipped == pytest.approx([-math.log(0.01)] * 2)
    assert np.isfinite(losses(np.array([1.0]), np.array([0.0]))).all()


def test_quality_counts_only_known_labels() -> None:
    found = quality(np.array([1.0, 0.0, NAN, 1.0]), np.array([0.8, 0.4, 0.1, 0.3]))
    assert (found.n_rows, found.n_labelled, found.coverage) == (4, 3, 0.75)
    assert found.log_loss == pytest.approx((-math.log(0.8) - math.log(0.6) - math.log(0.3)) / 3)
    assert found.roc_auc == 0.5


@pytest.mark.parametrize(
    ("labels", "expected"),
    [
        ([], Quality(0, 0, None, None)),
        ([NAN, NAN], Quality(2, 0, None, None)),
        ([1.0, 1.0], Quality(2, 2, math.log(2), None)),
    ],
)
def test_quality_without_labels_or_with_one_class(labels: list[float], expected: Quality) -> None:
    found = quality(np.array(labels), np.full(len(labels), 0.5))
    assert found == expected
    assert found.coverage == (1.0 if labels and labels[0] == 1 else 0.0)


def days(rng: np.random.Generator, n: int, worse: float = 0.0) -> list[Block]:
    """Days of 200 rows whose mean loss wanders (AR(1), 0.5 from day to day) around 0.5 nats."""
    drifting, out = rng.normal(0, 0.05), []
    for i in range(n):
        drifting = 0.5 * drifting + rng.normal(0, 0.05 * math.sqrt(1 - 0.25))
        total = (0.5 + worse + drifting) * 200 + rng.normal(0, 0.3 * math.sqrt(200))
        out.append((i * DAY_S, 200, float(total), 40))
    return out


def weekly_means(blocks: list[Block]) -> np.ndarray:
    return np.array([b[2] for b in blocks]).reshape(-1, 7).sum(axis=1) / 1400


def test_false_alarms_come_about_as_often_as_was_chosen() -> None:
    """Fresh weeks of the same world, over 100 holdouts of 60 days. Tolerance: half to double the level of 11.5 %."""
    chosen, found = level(0.5, 7 * DAY_S), []
    for seed in range(100):
        rng = np.random.default_rng(seed)
        highest = limit(days(rng, 60), 7, chosen, min_blocks=8)
        found += (weekly_means(days(rng, 30 * 7)) > highest).tolist()
    assert 0.5 * chosen <= np.mean(found) <= 2 * chosen


def test_real_decay_is_seen() -> None:
    rng = np.random.default_rng(0)
    highest = limit(days(rng, 60), 7, 0.1, min_blocks=8)
    assert (weekly_means(days(rng, 70, worse=0.2)) > highest).all()


def test_the_limit_lies_above_the_holdouts_mean_and_falls_with_longer_windows() -> None:
    holdout = days(np.random.default_rng(1), 60)
    mean = sum(b[2] for b in holdout) / sum(b[1] for b in holdout)
    limits = [limit(holdout, n, 0.05, min_blocks=8) for n in (1, 7, 60)]
    assert None not in limits
    assert limits == sorted(limits, reverse=True)  # type: ignore[type-var]
    assert limits[-1] > mean  # type: ignore[operator]


@pytest.mark.parametrize(("n", "min_blocks"), [(7, 8), (0, 1), (1, 1)])
def test_a_short_holdout_supports_no_limit(n: int, min_blocks: int) -> None:
    """Found: one block with `min_blocks: 1` raised ValueError."""
    assert limit(days(np.random.default_rng(0), n), 7, 0.1, min_blocks=min_blocks) is None


def test_a_holdout_shorter_than_a_window_still_has_a_limit() -> None:
    rng = np.random.default_rng(0)
    found = limit(days(rng, 8), 14, 0.1, min_blocks=8)
    assert found is not None
    assert math.isfinite(found)
