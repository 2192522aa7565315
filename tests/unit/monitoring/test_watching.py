"""The sequential detector over blocks whose rows are as alike as rows of a day are."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

from mlops_ray.config import Monitoring, Task
from mlops_ray.data.profile import Bins
from mlops_ray.monitoring.standing import Standing
from mlops_ray.monitoring.watching import look, row_losses, scale
from mlops_ray.training import calibration, target
from mlops_ray.training.artifact.model import Reference
from mlops_ray.training.evaluation.intervals import blocks

DAY_S = 86_400.0
PLAN = Monitoring(min_rows=300, false_alarms_per_month=1.0)


class World:
    """Days of 100 rows with a common effect of size `common`; the scores know neither that nor `worse`."""

    def __init__(self, seed: int, *, task: Task = "binary", common: float = 0.0) -> None:
        self.rng, self.task, self.common = np.random.default_rng(seed), task, common

    def day(self, worse: float = 0.0, n: int = 100) -> tuple[Any, Any]:
        """Labels and scores."""
        x, shift = self.rng.normal(0, 1, n), self.common * self.rng.normal()
        if self.task == "regression":
            return x + shift + (1 + worse) * self.rng.normal(0, 1, n), x
        p = 1 / (1 + np.exp(-(2 * x + shift + worse)))
        said = 1 / (1 + np.exp(-2 * x))
        y = (self.rng.random(n) < p).astype(np.int64)
        return (y, np.stack([1 - said, said], axis=1)) if self.task == "multiclass" else (y, said)

    def reference(self, days: int) -> Reference:
        y, scores = (np.concatenate(part) for part in zip(*(self.day() for _ in range(days)), strict=True))
        day = np.repeat(np.arange(days), 100) * DAY_S
        sums = np.bincount((day / DAY_S).astype(int), target.losses(self.task, y, scores))
        holdout = tuple((i * DAY_S, 100, float(loss), 0.0) for i, loss in enumerate(sums))
        bins = Bins({}, {})
        known = calibration.fit(self.task, y, scores, blocks(day, DAY_S), bins, {})
        return Reference(bins, DAY_S, (), holdout, known)

    def losses(self, **of: Any) -> Any:
        return target.losses(self.task, *self.day(**of))


def watched(world: World, known: Any, days: int, **of: Any) -> tuple[list[int], Standing | None]:
    """Days of the alarms, and where the detector stands after so many days."""
    now, alarms = None, []
    for day in range(days):
        now, alarm = look(PLAN, known, now, 1, world.losses(**of), (day + 1) * DAY_S)
        alarms += [day] if alarm else []
    return alarms, now


@pytest.mark.parametrize("task", ["binary", "multiclass", "regression"])
def test_the_losses_of_the_sample_are_like_those_of_the_holdout(task: Task) -> None:
    reference = World(0, task=task).reference(40)
    assert reference.calibration is not None
    mean = sum(b[2] for b in reference.holdout) / sum(b[1] for b in reference.holdout)
    assert row_losses(reference.calibration).mean() == pytest.approx(mean, rel=0.1)


def test_rows_that_are_alike_have_a_design_effect() -> None:
    alone, alike = scale(PLAN, World(0).reference(60)), scale(PLAN, World(0, common=1.5).reference(60))
    assert not isinstance(alone, str)
    assert not isinstance(alike, str)
    assert 1 <= alone.watch.design_effect < 2.5
    assert alike.watch.design_effect > 4


@pytest.mark.parametrize("common", [0.0, 1.5])
def test_quiet_months_raise_no_more_alarms_than_their_part_of_the_budget(common: float) -> None:
    """20 holdouts of 40 days, a year after each: 240 months at 0.04 alarms each are 9.6."""
    alarms = 0
    for seed in range(20):
        world = World(seed, common=common)
        alarms += len(watched(world, scale(PLAN, world.reference(40)), 365)[0])
    assert alarms <= 1.25 * 240 * 0.04


def test_a_loss_that_rises_is_seen_and_its_beginning_is_told() -> None:
    world = World(3)
    known = scale(PLAN, world.reference(60))
    alarms, now = watched(world, known, 60)
    assert alarms == []
    found = None
    for day in range(60, 90):
        now, alarm = look(PLAN, known, now, 1, world.losses(worse=2.0), (day + 1) * DAY_S)
        found = found or (alarm and (day, alarm))
    assert found
    day, alarm = found
    assert day < 66
    assert abs(alarm.began / DAY_S - 60) <= 2
    assert alarm.why.startswith("the loss has risen since about 1970-0")


def test_another_version_begins_anew_and_warms_up() -> None:
    world = World(4)
    known = scale(PLAN, world.reference(60))
    _, now = watched(world, known, 10)
    assert now is not None
    assert now.why.startswith("no evidence of a loss above")
    assert now.n_rows == 1000
    now, alarm = look(PLAN, known, now, 2, world.losses(worse=9.0), 11 * DAY_S)
    assert (now.version, now.since, now.why, alarm) == (2, 10 * DAY_S, "warming up: 100 labelled rows of 300", None)
    for day in (12, 13):
        now, alarm = look(PLAN, known, now, 2, world.losses(worse=9.0), day * DAY_S)
    assert alarm  # the evidence of the first days is not lost
    assert (now.n_rows, now.state.n) == (0, 0)


def test_where_nothing_is_known_of_the_holdout_nobody_is_called() -> None:
    world = World(5)
    short = scale(PLAN, world.reference(7))
    assert short == "uncalibrated: the holdout has 7 blocks; 8 are needed"
    old = scale(PLAN, Reference(Bins({}, {}), DAY_S, (), world.reference(40).holdout))
    assert isinstance(old, str)
    assert watched(world, short, 30, worse=5.0)[0] == []


def test_a_standing_is_kept_without_loss() -> None:
    world = World(6)
    _, now = watched(world, scale(PLAN, world.reference(20)), 5, worse=0.3)
    assert now is not None
    assert Standing.from_dict(json.loads(json.dumps(now.to_dict()))) == now


def test_a_block_without_labels_is_a_step_without_evidence() -> None:
    world = World(7)
    known = scale(PLAN, world.reference(20))
    _, before = watched(world, known, 5)
    now, alarm = look(PLAN, known, before, 1, np.empty(0), 6 * DAY_S)
    assert before is not None
    assert now.state.evidence == tuple(max(e, 0.0) for e in before.state.evidence)
    assert (now.state.n, now.n_rows, alarm) == (before.state.n + 1, before.n_rows, None)
