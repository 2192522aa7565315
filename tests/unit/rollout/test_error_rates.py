"""The simulations of benchmarks/rollout in short: they hold, and they are of what the package decides by."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks.rollout import error_rates, worlds
from mlops_ray.rollout.evidence import by_assignment, capital


@pytest.mark.parametrize(("bar", "fine"), [(0.0, False), (0.02, True)])
def test_capital_from_counts_is_the_capital_row_by_row(bar: float, fine: bool) -> None:
    share = np.repeat([0.1, 0.5], 20)
    counts = worlds.events(np.random.default_rng(0), 3, 40, share, 0.2, 0.3)
    found = worlds.capital_of_counts(counts, bar, fine=fine)
    for run in range(3):
        value: list[float] = []
        canary: list[bool] = []
        ends: list[int] = []
        for step in range(40):
            rows, errors = int(counts.rows[run, step]), int(counts.stable[run, step])
            value += [1.0] * errors + [0.0] * (rows - errors) + [float(counts.canary[run, step])]
            canary += [False] * rows + [True]
            ends.append(len(value))
        shares = np.repeat(share, np.diff([0, *ends]))
        x = by_assignment(np.array(value), np.array(canary), shares, low=0.0, high=1.0)
        path = capital(-x, -bar) if fine else capital(x, bar)
        np.testing.assert_allclose(found[run], path[ends])
    most = worlds.largest_capital(counts, bar, fine=fine)
    np.testing.assert_allclose(most, np.maximum(found.max(axis=1), 1.0))


def test_no_cell_of_the_table_breaks_alpha_and_rows_of_heavy_keys_would() -> None:
    for row in error_rates.rows(runs=200, n=1000):
        broken = str(row).endswith("| breaks |")
        assert broken == row.what.endswith("taken as rows"), row
