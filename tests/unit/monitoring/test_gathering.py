"""The detector of inputs after every block: where it stands, whom it names, and what it does not call about."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

from mlops_ray.config import DAY_S, HOUR_S, Monitoring
from mlops_ray.data.profile import Bins, Profile, empty, fold
from mlops_ray.monitoring import gathering
from mlops_ray.monitoring.drift import SCORES
from mlops_ray.monitoring.gathering import Inputs, look
from mlops_ray.monitoring.inputs import NAME
from mlops_ray.monitoring.standing import read_body
from mlops_ray.training.artifact.model import Reference
from tests.monitors import Run, Story

BINS = Bins({"x": (-1.0, 0.0, 1.0), "z": (-1.0, 0.0, 1.0)}, {})
PLAN = Monitoring(window_s=DAY_S, block_s=HOUR_S, false_alarms_per_month=5.0, min_rows=50)
NONE = empty(BINS)


def block(rng: np.random.Generator, shift: float = 0.0, n: int = 40, score: float = 0.0) -> Profile:
    inputs = {"x": rng.normal(shift, 1, n).astype(np.float32), "z": rng.normal(0, 1, n).astype(np.float32)}
    return fold(BINS, inputs, 1 / (1 + np.exp(-rng.normal(score, 1, n))))


def reference(rng: np.random.Generator, hours: int = 30 * 24) -> Reference:
    return Reference(BINS, HOUR_S, tuple((i * HOUR_S, block(rng)) for i in range(hours)), ())


def hours(
    known: Reference, blocks: list[Profile], before: Inputs | None = None
) -> tuple[Inputs, list[tuple[int, Any]]]:
    """Where it stands after these blocks, and which alarmed about what; it begins anew after each."""
    now: Inputs | None = None
    alarms: list[tuple[int, Any]] = []
    for i, one in enumerate(blocks):
        now, enough = look(PLAN, known, now, 1, one, one, (i + 1) * HOUR_S)
        if enough:
            alarms.append((i, enough))
            now = gathering.anew(now, now.features, (i + 1) * HOUR_S)
    assert now is not None
    return now, alarms


@pytest.fixture(scope="module")
def known() -> Reference:
    return reference(np.random.default_rng(0))


def test_a_large_change_is_seen_before_its_window_ends_and_named_with_its_beginning(known: Reference) -> None:
    rng = np.random.default_rng(1)
    now, alarms = hours(known, [block(rng) for _ in range(48)])
    assert not alarms
    before = json.loads(json.dumps(now.to_dict()))
    now = Inputs.from_dict(before)
    assert json.loads(json.dumps(now.to_dict())) == before
    for i in range(48, 52):
        one = block(rng, 1.0)
        now, enough = look(PLAN, known, now, 1, one, one, (i + 1) * HOUR_S)
        if enough:
            break
    assert enough == ("x",)  # of 24 hours of its window not four
    assert 46 * HOUR_S <= now.features["x"].began <= 50 * HOUR_S


def test_a_small_change_adds_up_over_windows(known: Reference) -> None:
    rng = np.random.default_rng(2)
    _, alarms = hours(known, [block(rng, 0.15) for _ in range(5 * 24)])
    assert alarms
    assert alarms[0][1][0] == "x"


def test_moved_scores_are_seen_as_scores(known: Reference) -> None:
    rng = np.random.default_rng(3)
    _, alarms = hours(known, [block(rng, score=1.0) for _ in range(12)])
    assert alarms[0][1] == (SCORES,)


def test_quiet_hours_alarm_within_the_budget(known: Reference) -> None:
    """Of five alarms a month drift has 2.45; a month, and three standard deviations."""
    rng = np.random.default_rng(4)
    _, alarms = hours(known, [block(rng) for _ in range(30 * 24)])
    assert len(alarms) <= 2.45 + 3 * 2.45**0.5


def test_a_block_with_more_rows_than_the_reference_knows_counts_as_its_largest(known: Reference) -> None:
    rng = np.random.default_rng(5)
    one = block(rng, 0.1, n=100_000)
    now, _ = look(PLAN, known, None, 1, one, one, HOUR_S)
    assert now.features["x"].total < now.features["x"].limit


def test_it_begins_anew_for_another_version_and_another_budget(known: Reference) -> None:
    rng = np.random.default_rng(6)
    one = block(rng, 1.0)
    now, _ = look(PLAN, known, None, 1, one, one, 2 * HOUR_S)
    assert now.features["x"].total > 0
    other, _ = look(PLAN, known, now, 2, NONE, NONE, 3 * HOUR_S)
    assert (other.version, other.n_rows, other.features["x"].total) == (2, 0, 0.0)
    tight = PLAN.model_copy(update={"false_alarms_per_month": 3.0})
    again, _ = look(tight, known, now, 1, one, one, 3 * HOUR_S)
    assert again.n_rows == one.n
    assert again.features["x"].limit > now.features["x"].limit


def test_it_is_silent_while_warming_up_and_uncalibrated(known: Reference) -> None:
    rng = np.random.default_rng(7)
    one = block(rng, 3.0)
    now, enough = look(PLAN, known, None, 1, one, one, HOUR_S)
    assert (enough, now.why) == ((), "warming up: 40 rows of the version of 50")
    short = reference(rng, 30)
    now, enough = look(PLAN, short, None, 1, one, one, HOUR_S)
    assert enough == ()
    assert now.why.startswith("uncalibrated: the 30 blocks of the reference are too few")
    elsewhere = Reference(BINS, DAY_S, known.blocks, ())
    now, _ = look(PLAN, elsewhere, None, 1, one, one, HOUR_S)
    assert now.why == "uncalibrated: the version was trained with blocks of 86400 s"


def test_the_loop_calls_the_policy_about_inputs_between_windows(tmp_path: Any) -> None:
    story = Story(n_blocks=24, shifted=13)
    run = Run(story, f"sqlite:///{tmp_path}/state.db")
    run.tell()
    with run.world.store.read() as tx:
        windows, body = tx.windows("small"), read_body(tx, "small", NAME)
    found = [w for w in windows if "inputs" in w.result]
    assert body is not None
    assert body["version"] == 1
    assert found
    first = min(found, key=lambda w: w.end)
    assert first.result["inputs"]["why"].startswith(("x has changed since", "(scores) has changed since"))
    assert first.result["inputs"]["decision"]
