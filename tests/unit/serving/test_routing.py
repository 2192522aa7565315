from __future__ import annotations

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given

from mlops_ray.serving.routing import points, to_canary

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
