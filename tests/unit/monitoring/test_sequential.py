from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlops_ray.errors import DataError
from mlops_ray.monitoring import sequential
from mlops_ray.monitoring.sequential import State, Watch, run_length, update

WATCH = Watch(0.15, 20_000)
losses = st.lists(st.sampled_from([0.0, 0.2, 1.0]), max_size=60)


def one_by_one(watch: Watch, rows: Any) -> State:
    """The definition, row by row: M = max(M, 1) * L for every size of change, and their mean against the run length."""
    m, n_sizes = watch.baseline, len(sequential._ODDS)
    evidence, since, alarm = [0.0] * n_sizes, [0] * n_sizes, None
    for i, x in enumerate(rows, start=1):
        for k, odds in enumerate(sequential._ODDS):
            raised = odds * m / (1 - m + odds * m)
            bet = (raised - m) / (m * (1 - m))
            since[k] = since[k] + 1 if evidence[k] > 0 else 1
            evidence[k] = max(evidence[k], 0.0) + math.log(1 + bet * (x - m))
        if alarm is None and sum(map(math.exp, evidence)) / n_sizes >= watch.run_length:
            alarm = i
    return State(len(rows), tuple(evidence), tuple(since), alarm)


@given(losses, st.lists(st.integers(0, 60), max_size=5), st.sampled_from([20.0, 20_000.0]))
def test_batches_of_any_size_say_what_rows_one_by_one_do(rows: list[float], cuts: list[int], length: float) -> None:
    watch, state = Watch(0.15, length), State()
    for part in np.split(np.array(rows), sorted(min(c, len(rows)) for c in cuts)):
        state = State.from_dict(json.loads(json.dumps(update(watch, state, part).to_dict())))
    expected = one_by_one(watch, rows)
    assert (state.n, state.alarm) == (expected.n, expected.alarm)
    assert state.evidence == pytest.approx(expected.evidence, abs=1e-9)


def test_a_rate_that_doubles_is_seen_within_a_few_hundred_rows_and_its_beginning_is_told() -> None:
    rng = np.random.default_rng(0)
    quiet = update(WATCH, State(), rng.random(2_000) < 0.15)
    assert quiet.alarm is None
    state = update(WATCH, quiet, rng.random(1_000) < 0.30)
    assert state.alarm is not None
    assert 2_000 < state.alarm < 2_400
    assert abs(state.began - 2_001) < 100


@pytest.mark.parametrize("kind", ["0 or 1", "beta", "rare and large"])
def test_false_alarms_are_at_least_the_run_length_apart_whatever_the_distribution(kind: str) -> None:
    """Mean run lengths of 300 streams against a guaranteed 200 rows; streams are cut at 4,000, which only shortens."""
    rng = np.random.default_rng(1)
    draw = {
        "0 or 1": lambda: rng.random(4_000) < 0.15,
        "beta": lambda: rng.beta(0.3, 1.7, 4_000),
        "rare and large": lambda: 0.75 * (rng.random(4_000) < 0.2),
    }[kind]
    watch = Watch(0.15, 200)
    lengths = [update(watch, State(), draw()).alarm or 4_000 for _ in range(300)]
    assert np.mean(lengths) > 200


def test_a_mean_below_the_baseline_is_no_matter() -> None:
    rng = np.random.default_rng(2)
    state = update(WATCH, State(), rng.random(50_000) < 0.05)
    assert state.alarm is None
    assert max(state.evidence) < 3


def test_no_rows_change_nothing() -> None:
    state = update(WATCH, State(), np.array([1.0, 0.0]))
    assert update(WATCH, state, np.array([])) == state


def test_the_run_length_follows_from_budget_and_traffic() -> None:
    assert run_length(1.0, 30_000) == 30_000
    assert run_length(1e9, 10) == 1  # no detector alarms more often than after every row


@pytest.mark.parametrize("wrong", [[1.5], [-0.1], [math.nan]])
def test_a_loss_that_is_not_bounded_is_refused(wrong: list[float]) -> None:
    with pytest.raises(DataError, match="clip"):
        update(WATCH, State(), np.array(wrong))


def test_a_watch_needs_a_baseline_and_a_run_length_that_mean_something() -> None:
    with pytest.raises(DataError, match="bound"):
        Watch(1.2, 100)
    with pytest.raises(DataError, match="at least 1 row"):
        Watch(0.2, 0.5)


def test_a_state_of_another_grid_is_refused() -> None:
    with pytest.raises(DataError, match="anew"):
        State.from_dict({"n": 1, "evidence": [0.0], "since": [1], "alarm": None})
