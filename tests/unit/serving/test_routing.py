from __future__ import annotations

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given
from numpy.typing import NDArray

from mlops_ray.serving.routing import chosen, points, spread, to_canary

KEYS = [f"key-{i}" for i in range(100_000)]


def test_points_never_change() -> None:
    """Golden values: another hash would move every subject of a running rollout."""
    assert points(["a", "b"], "r1").round(12).tolist() == [0.497430005242, 0.773776206421]


@pytest.mark.parametrize("share", [0.01, 0.1, 0.5, 0.9])
def test_the_share_is_met_within_three_standard_errors(share: float) -> None:
    n = len(KEYS)
    found = to_canary(KEYS, "rollout-7", share).mean()
    assert abs(found - share) <= 3 * np.sqrt(share * (1 - share) / n)


def test_points_are_even_over_the_whole_unit_interval() -> None:
    found = points(KEYS, "rollout-7")
    assert found.min() >= 0
    assert found.max() < 1
    counts = np.histogram(found, 100, (0, 1))[0]
    chi2 = ((counts - 1000) ** 2 / 1000).sum()
    assert chi2 < 99 + 4 * np.sqrt(2 * 99)


def test_a_rising_share_moves_keys_only_to_the_canary() -> None:
    before = np.zeros(len(KEYS), dtype=bool)
    for share in (0.0, 0.01, 0.1, 0.5, 1.0):
        after = to_canary(KEYS, "r", share)
        assert (after | ~before).all()
        before = after
    assert before.all()
    assert not to_canary(KEYS, "r", 0.0).any()


def test_another_salt_draws_other_keys() -> None:
    """A tenth of a tenth is in both rollouts' first step, as for independent draws."""
    both = (to_canary(KEYS, "rollout-1", 0.1) & to_canary(KEYS, "rollout-2", 0.1)).mean()
    assert abs(both - 0.01) <= 3 * np.sqrt(0.01 * 0.99 / len(KEYS))
    assert abs(np.corrcoef(points(KEYS, "rollout-1"), points(KEYS, "rollout-2"))[0, 1]) < 4 / np.sqrt(len(KEYS))


@given(st.lists(st.text(max_size=20), max_size=20), st.text(max_size=10), st.floats(0, 1))
def test_a_key_is_sticky_whatever_else_is_in_its_request(keys: list[str], salt: str, share: float) -> None:
    together = to_canary(keys, salt, share)
    assert together.tolist() == [bool(to_canary([k], salt, share)[0]) for k in keys]


def test_heavy_keys_meet_the_share_by_key_and_none_of_them_moves_back() -> None:
    """100,000 rows of keys of which a few send most: the error of the realised share is one of a mean over keys."""
    rng = np.random.default_rng(0)
    weight = 1 / np.arange(1, 5_001) ** 1.1
    rows = rng.choice(len(weight), 100_000, p=weight / weight.sum())
    n_rows = np.bincount(rows, minlength=len(weight))
    keys = [f"key-{i}" for i in range(len(weight))]
    before = np.zeros(len(keys), dtype=bool)
    for share in (0.01, 0.05, 0.25, 0.5):
        after = to_canary(keys, "rollout-7", share)
        error = np.sqrt((n_rows**2).sum() * share * (1 - share)) / n_rows.sum()
        assert abs(after[rows].mean() - share) <= 3 * error
        assert error > 10 * np.sqrt(share * (1 - share) / n_rows.sum()), "rows would have promised too much"
        assert after[before].all()
        before = after


def arms_of(keys: list[str], spans: list[tuple[float, float]]) -> NDArray[np.int64]:
    """Which span each key lies in; -1: none, so stable's."""
    found = np.full(len(keys), -1)
    for arm, places in enumerate(spread(keys, "rollout-7", spans)):
        found[places] = arm
    return found


def test_arms_have_their_shares_and_their_keys_stay() -> None:
    spans = [(0.2 * place, 0.2 * (place + 1)) for place in range(4)]
    found = arms_of(KEYS, spans)
    error = np.sqrt(0.2 * 0.8 / len(KEYS))
    for arm in range(-1, 4):
        assert abs((found == arm).mean() - 0.2) <= 3 * error
    assert found.tolist() == arms_of(KEYS, spans).tolist()
    assert (found[:50] == np.concatenate([arms_of([key], spans) for key in KEYS[:50]])).all()


def test_an_arm_that_is_dropped_moves_its_own_keys_back_to_stable_and_no_others() -> None:
    spans = [(0.1 * place, 0.1 * (place + 1)) for place in range(3)]
    before, after = arms_of(KEYS, spans), arms_of(KEYS, [spans[0], spans[2]])
    assert (after[before == 1] == -1).all()
    assert (after[before == 0] == 0).all()
    assert (after[before == 2] == 1).all()
    assert (after[before == -1] == -1).all()


@given(st.lists(st.text(max_size=20), max_size=20), st.text(max_size=10), st.floats(0, 1))
def test_one_arm_has_the_keys_that_a_canary_would_have(keys: list[str], salt: str, share: float) -> None:
    assert spread(keys, salt, [(0.0, share)]) == [chosen(keys, salt, share)]
