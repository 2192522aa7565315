from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from mlops_ray.data.profile import MAX_UNSEEN, Bins, Profile, empty, fold
from mlops_ray.monitoring.cause import cause

BINS = Bins({"delay": (0.0, 10.0, 20.0)}, {"dest": ("ATL", "ORD")})


def profile(delay: Any = 0.0, dest: dict[str, int] | None = None, n: int = 1000) -> Profile:
    """Rows whose `delay` is this number or these, and with so many rows of each `dest` (else ATL)."""
    places = [name for name, times in (dest or {}).items() for _ in range(times)]
    column = np.array(places + ["ATL"] * (n - len(places)), dtype=object)
    return fold(BINS, {"delay": np.broadcast_to(np.float32(delay), n), "dest": column})


def test_new_categories_are_counted_with_their_share_of_the_rows() -> None:
    found = cause("dest", profile(dest={"XNA": 2}), profile(dest={"BNA": 20, "CVG": 15, "SAT": 6, "XNA": 1}))
    assert found == ("3 new categories, 4.1 % of rows",)


def test_one_new_category_is_named() -> None:
    assert cause("dest", profile(), profile(dest={"BNA": 20})) == ("1 new category, 'BNA', 2 % of rows",)


@pytest.mark.parametrize("side", ["reference", "window"])
def test_of_more_categories_than_a_profile_names_some_are_surely_new(side: str) -> None:
    many = profile(dest={f"A{i}": 1 for i in range(10 * MAX_UNSEEN)})
    few = profile(dest={f"B{i}": 10 for i in range(MAX_UNSEEN - 1)})
    (found,) = cause("dest", many, few) if side == "reference" else cause("dest", few, many)
    assert found.startswith("at least ")
    assert "new categor" in found


def test_rare_categories_that_become_frequent_are_not_new() -> None:
    found = cause("dest", profile(dest={"XNA": 2}), profile(dest={"XNA": 231}))
    assert found == ("rare categories from 0.2 % to 23 % of rows",)


def test_missing_values_and_the_mean_of_the_others() -> None:
    rng = np.random.default_rng(0)
    usual, later = rng.normal(12.1, 5, 1000), rng.normal(15.4, 5, 1000)
    usual[:2], later[:60] = np.nan, np.nan
    usual += 12.1 - np.nanmean(usual)
    later += 15.4 - np.nanmean(later)
    assert cause("delay", profile(usual), profile(later)) == ("missing from 0.2 % to 6 %", "mean from 12.1 to 15.4")


def test_a_spread_that_grows_or_shrinks() -> None:
    usual = np.tile([9.0, 11.0], 500)
    assert cause("delay", profile(usual), profile(10 + 3 * (usual - 10))) == ("standard deviation from 1 to 3",)
    assert cause("delay", profile(10 + 3 * (usual - 10)), profile(usual)) == ("standard deviation from 3 to 1",)


def test_what_hardly_moves_is_not_worth_a_word() -> None:
    usual = np.tile([9.0, 11.0], 500)
    assert cause("delay", profile(usual), profile(usual + 0.1)) == ()
    assert cause("dest", profile(dest={"ORD": 500}), profile(dest={"ORD": 400})) == ()


def test_a_side_without_rows_or_values_has_no_cause() -> None:
    assert cause("delay", profile(), empty(BINS)) == cause("delay", empty(BINS), profile()) == ()
    assert cause("delay", profile(1.0), profile(np.nan)) == ("missing from 0 % to 100 %",)
