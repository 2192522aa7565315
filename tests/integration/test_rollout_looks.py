"""A look at the evidence in a real prediction log; no cluster runs."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from mlops_ray.config import Project
from mlops_ray.rollout import orders
from mlops_ray.rollout.canary import Arm, CanaryState, Phase
from mlops_ray.rollout.looks import due, look, read
from mlops_ray.serving.log import tables as log
from mlops_ray.serving.places import labels_uri, log_uri, shadow_uri
from mlops_ray.serving.records import Scored, Trial
from mlops_ray.state import RolloutRow, Store
from mlops_ray.training.gates.verdict import Verdict
from tests import fakes, logs
from tests.logs import DAY_S, START, micros

N = 1500
TRIAL = "small-v2-r1"


class Logged:
    """A project whose log holds `N` keys of a rollout: the canary is as good as stable, but for `off` nats or so."""

    def __init__(self, folder: Path, store: Store, **plan: Any) -> None:
        self.store = store
        self.project: Project = fakes.project(
            storage={"root": str(folder / "root")},
            rollout={"step_min_s": 0, **plan},
            monitoring={"label_horizon_s": DAY_S},
        )
        body = self.project.rollout.model_dump(mode="json")
        state = CanaryState(Phase.RAMPING, 0, START)
        self.row = RolloutRow(TRIAL, "small", 2, 1, body, state.to_dict(), START)

    def write(self, *, worse: float = 0.0, as_shadow: bool = False, labelled: bool = True) -> None:
        rng = np.random.default_rng(7)
        truth = rng.uniform(0.1, 0.9, N)
        label = (rng.uniform(size=N) < truth).astype(float)
        theirs = np.clip(truth + worse * np.where(label > 0, -1, 1), 0.02, 0.98)
        ids, at = [f"q:{i}" for i in range(N)], [START + 3600 + i for i in range(N)]
        rows: dict[str, Any] = {
            "prediction_id": ids,
            "day": [log.day_of(START)] * N,
            "at": micros(at),
            "event_time": micros(at),
            "key": [f"k{i}" for i in range(N)],
            "stable": [1] * N,
            "stable_score": truth,
            "share": [0.1] * N,
        }
        if as_shadow:
            seen = {name: rows[name] for name in ("prediction_id", "day", "at", "stable", "stable_score")}
            seen |= {"version": [2] * N, "shadow_score": theirs, "rollout": [TRIAL] * N}
            logs.append(shadow_uri(self.project), filled(seen, log.shadow_schema(self.project)), 0)
        else:
            rows |= {"canary": [2] * N, "canary_score": theirs, "rollout": [TRIAL] * N}
        logs.append(log_uri(self.project), filled(rows, log.prediction_schema(self.project)), 0)
        if labelled:
            known = logs.labels(self.project, list(ids), label.tolist(), at=START + 2 * 3600)
            logs.append(labels_uri(self.project), known, 0)

    def write_arms(self) -> None:
        """Every third key is arm 2's, which knows more than stable, every third arm 3's, which knows less."""
        rng = np.random.default_rng(7)
        truth = rng.uniform(0.05, 0.95, N)
        label = (rng.uniform(size=N) < truth).astype(float)
        arm = np.arange(N) % 3 + 1
        stable = np.clip(truth + rng.normal(0, 0.25, N), 0.02, 0.98)
        theirs = np.where(arm == 2, truth, np.clip(1 - stable, 0.02, 0.98))
        ids, at = [f"q:{i}" for i in range(N)], [START + 3600 + i for i in range(N)]
        rows: dict[str, Any] = {
            "prediction_id": ids,
            "day": [log.day_of(START)] * N,
            "at": micros(at),
            "event_time": micros(at),
            "key": [f"k{i}" for i in range(N)],
            "stable": [1] * N,
            "stable_score": stable,
            "canary": pa.array(arm, mask=arm == 1),
            "canary_score": pa.array(theirs, mask=arm == 1),
            "share": pa.array([1 / 3] * N, mask=arm == 1),
            "rollout": pa.array([TRIAL] * N, mask=arm == 1),
        }
        logs.append(log_uri(self.project), filled(rows, log.prediction_schema(self.project)), 0)
        known = logs.labels(self.project, list(ids), label.tolist(), at=START + 2 * 3600)
        logs.append(labels_uri(self.project), known, 0)
        state = CanaryState(Phase.RAMPING, 0, START, arms=(Arm(2), Arm(3)))
        self.row = replace(self.row, state=state.to_dict())

    def look(self, at: float) -> Any:
        plan = orders.plan_of(self.row)
        return look(self.store, self.project, self.row, plan, read(self.project, self.row, plan, at))


def filled(rows: dict[str, Any], schema: pa.Schema) -> pa.Table:
    return pa.Table.from_pydict({f.name: rows.get(f.name, pa.nulls(N, f.type)) for f in schema}, schema=schema)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    opened = Store.open(f"sqlite:///{tmp_path}/state.db")
    yield opened
    opened.close()


EARLY, LATE = START + 3 * 3600, START + 3 * DAY_S
EASY = {"analyses": [{"metric": "log_loss", "margin": 0.3, "clip": 0.05}, {"metric": "failures", "margin": 0.05}]}


@pytest.mark.parametrize("as_shadow", [False, True])
def test_a_canary_and_a_shadow_are_judged_on_the_same_rows_as_stable(
    as_shadow: bool, tmp_path: Path, store: Store
) -> None:
    mode = {"mode": "shadow" if as_shadow else "canary"}
    good = Logged(tmp_path / "good", store, **mode, **EASY)
    good.write(as_shadow=as_shadow)
    found = good.look(EARLY)
    assert [m.name for m in found.metrics] == ["log_loss", "failures"]
    assert (found.verdict, found.n_requests, found.metrics[0].n_keys) == (Verdict.PASS, N, N)
    bad = Logged(tmp_path / "bad", store, **mode, **EASY)
    bad.write(worse=0.3, as_shadow=as_shadow)
    assert bad.look(EARLY).verdict is Verdict.FAIL


def test_what_was_not_known_at_a_look_is_not_looked_at(tmp_path: Path, store: Store) -> None:
    logged = Logged(tmp_path, store, **EASY)
    assert logged.look(EARLY).verdict is Verdict.INCONCLUSIVE  # nothing was ever logged
    logged.write()
    assert logged.look(START + 3600).n_requests == 0
    before_labels = logged.look(START + 2 * 3600 - 60)
    assert before_labels.n_requests == N
    assert before_labels.metrics[0].n_keys == 0
    assert before_labels.verdict is Verdict.INCONCLUSIVE


def test_rows_are_exhausted_only_when_their_labels_had_time_to_come(tmp_path: Path, store: Store) -> None:
    logged = Logged(tmp_path, store, max_requests=1000)
    logged.write(labelled=False)
    early, late = logged.look(EARLY), logged.look(LATE)
    assert (early.n_requests, early.exhausted) == (1000, False)
    assert (late.verdict, late.exhausted) == (Verdict.INCONCLUSIVE, True)


def test_looks_lie_on_multiples_of_their_span() -> None:
    assert (due(60.0, 179.9), due(60.0, 180.0)) == (120.0, 180.0)


@pytest.mark.parametrize("affects", [False, True])
def test_each_arm_is_compared_with_stable_by_its_own_rows(tmp_path: Path, store: Store, affects: bool) -> None:
    """Two arms on a log: one that knows more than stable wins, one that knows less is worse."""
    of = Logged(tmp_path, store, mode="ab", ab={"share": 1 / 3}, prediction_affects_outcome=affects)
    of.write_arms()
    found = of.look(START + DAY_S)
    better, worse = found.arms
    assert (better.version, worse.version, worse.verdict, worse.won) == (2, 3, Verdict.FAIL, False)
    assert better.gain > 0.02
    assert worse.gain < -0.1
    assert (better.n_requests, worse.n_requests) == (500, 500)
    assert better.won or affects  # by assignment so few keys prove the larger difference alone
    assert {(m.arm, m.name) for m in found.metrics} == {(v, n) for v in (2, 3) for n in ("log_loss", "failures")}


@pytest.mark.parametrize(("every", "verdict"), [(5, Verdict.FAIL), (None, Verdict.INCONCLUSIVE)])
def test_a_version_that_fails_as_stable_while_it_bakes_is_found_out(
    tmp_path: Path, store: Store, every: int | None, verdict: Verdict
) -> None:
    """From what a replica records: the version before answers what this one fails, and has seen no other copy."""
    logged = Logged(tmp_path, store, bake_s=DAY_S)
    logged.row = replace(logged.row, state=CanaryState(Phase.BAKING, 0, START).to_dict())
    records = []
    for i in range(300):
        fails = every is not None and i % every == 0
        at, failure = START + 3600 + i, Trial(2, TRIAL, None, np.arange(1), None, "error")
        shown = {"keys": (f"k{i}",), "times": np.array([at]), "columns": {}, "scores": np.array([0.5])}
        trials, stable = ((failure,), 1) if fails else ((), 2)
        records.append(Scored(id=f"q{i}", at=at, stable=stable, score_us=9.0, trials=trials, **shown))
    logs.append(log_uri(logged.project), log.arrivals(logged.project, records).predictions, 0)
    found = logged.look(START + 2 * 3600)
    (failures,) = (metric for metric in found.metrics if metric.name == "failures")
    assert found.verdict is verdict
    if every is not None:
        assert (failures.n_keys, failures.n_baking, failures.estimate) == (300, 300, pytest.approx(1 / every))
