"""What a version on trial that hangs, dies or fails costs those who did not ask it: nothing."""

from __future__ import annotations

import asyncio
import os
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import polars as pl
import pytest

from benchmarks.serving import troubled
from mlops_ray.cluster import on_ray as cluster
from mlops_ray.data import lake
from mlops_ray.serving.log import on_collectors
from mlops_ray.serving.log import tables as log
from mlops_ray.serving.on_apply import replica_status
from mlops_ray.serving.places import log_uri, shadow_uri, uncaptured_uri
from mlops_ray.serving.routing import to_canary
from mlops_ray.verbs import rollout as rollouts
from tests.load import Load, eventually, steady
from tests.loop.conftest import ROOT, Live, brought_up, overlay
from tests.loop.test_live import ROW

pytestmark = [pytest.mark.ray, pytest.mark.timeout(600)]

# 60 rows a second for the canary: more than a replica may have in hand where each of them waits for its deadline.
RATE, SHARE = 200.0, 0.3


@dataclass(frozen=True)
class Trial:
    """A project that is up with a rollout under way, whose version is troubled as the file says."""

    live: Live
    version: int
    rollout: str
    file: Path

    def try_on(self, share: float, *, shadow: bool = False) -> None:
        """Returns when every replica has heard of it."""
        wanted = troubled.try_on(self.live.store, self.rollout, share, shadow=shadow)
        eventually(lambda: all(r["sequence"] >= wanted.sequence for r in self.replicas()), 10.0)

    def replicas(self) -> list[dict[str, Any]]:
        return replica_status("flights", self.wanted())

    def wanted(self) -> troubled.Wanted:
        with self.live.store.read() as tx:
            served = tx.serving("flights")
        assert served is not None
        return troubled.Wanted.of(served)

    def phase(self) -> str:
        with self.live.store.read() as tx:
            row = tx.rollout(self.rollout)
        assert row is not None
        return str(row.state["phase"])

    def healthy(self) -> None:
        """Returns when the version answers a row that is its, with its trouble gone."""
        self.file.unlink(missing_ok=True)

        def answers() -> bool:
            load = asyncio.run(steady(self.live.url, row, rate=50, name=str(time.time()), during=bool, around_s=0.2))
            return load.answered["canary", self.version] > 0

        eventually(answers, 60.0)


@pytest.fixture(scope="module")
def trial(tmp_path_factory: pytest.TempPathFactory, clean_environment: None) -> Iterator[Trial]:
    folder = tmp_path_factory.mktemp("isolation")
    paths = overlay(
        folder,
        features={"trusted_types": [troubled.TRUSTED]},
        capture={"commit_s": 1.0, "commit_idle_s": 2.0},
        rollout={"shares": [SHARE], "step_max_s": 1e9},
        serving={"shadow_rows": 10},
    )
    with pytest.MonkeyPatch.context() as env:
        # The cluster's processes import this checkout: the version's type stands in it.
        env.setenv("PYTHONPATH", os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH")))))
        with brought_up(paths) as live:
            file = folder / "trouble"
            version = troubled.register(live.project, live.store, folder / "troubled", file)
            rollout = rollouts.start(paths, os.environ, version, "test")["rollout"]
            with cluster.connected(live.project):
                trial = Trial(live, version, rollout, file)
                eventually(lambda: trial.wanted().share == SHARE, 120.0)
                yield trial


def row(i: int) -> dict[str, Any]:
    return ROW | {"flight_key": f"flight-{i}"}


def run(trial: Trial, name: str, during: Callable[[], Any]) -> Load:
    """No client sees an error, and none is asked to come again."""
    load = asyncio.run(steady(trial.live.url, row, rate=RATE, name=name, during=during, retry=False, around_s=0.2))
    print(f"{name}: {dict(load.statuses)}, {dict(load.answered)}, p99 {load.latency_s(0.99):.3f} s")
    assert load.statuses == {"200": len(load.acknowledged)}
    assert all(load.assigned.values())
    return load


def failures(trial: Trial, name: str) -> Counter[str]:
    """Of a load's rows that were the canary's, as the log has them: why the canary did not answer, or ''."""
    on_collectors.flush("flights")
    schema = log.prediction_schema(trial.live.project)
    rows = pl.DataFrame(pl.from_arrow(lake.scan(log_uri(trial.live.project), "2013-02-27", "2013-03-01", schema)))
    mine = rows.filter(pl.col("prediction_id").str.starts_with(f"{name}-") & (pl.col("canary") == trial.version))
    answered = mine["canary_score"].is_not_null()
    assert (answered == (mine["failure"].fill_null("") == "")).all()
    assert mine["stable_score"].is_not_null().all()
    found = Counter(mine["failure"].fill_null("").to_list())
    print(f"{name}: {dict(found)}")
    return found


@pytest.mark.parametrize(("trouble", "why"), [("sleep", "deadline"), ("raise", "error")])
def test_a_canary_that_hangs_or_fails_is_answered_for_by_stable(trial: Trial, trouble: str, why: str) -> None:
    trial.try_on(SHARE)
    trial.healthy()
    load = run(trial, trouble, lambda: (trial.file.write_text(trouble, encoding="utf-8"), time.sleep(3.0)))
    logged = failures(trial, trouble)
    assert logged[why] > 0
    assert logged[""] == load.answered["canary", trial.version]
    assert logged.total() == len(load.assigned["canary"])
    assert load.answered["canary", 1] == logged.total() - logged[""]
    assert load.answered["stable", 1] == len(load.assigned["stable"])
    if trouble == "raise":  # seven calls of ten it does answer, and never fails often enough to be asked no more
        assert logged[""] > logged["error"]
        assert logged["open"] == 0


def test_a_shadow_that_hangs_costs_only_its_own_evidence(trial: Trial) -> None:
    trial.try_on(SHARE)
    trial.healthy()
    trial.try_on(SHARE, shadow=True)
    waiting: list[int] = []

    def during() -> None:
        time.sleep(1.0)
        trial.file.write_text("sleep", encoding="utf-8")
        for _ in range(10):
            time.sleep(0.3)
            status = httpx.get(f"{trial.live.url}/readyz").json()
            waiting.append(status["shadow"]["rows_waiting"])

    load = asyncio.run(steady(trial.live.url, row, rate=RATE, name="shadow", during=during, retry=False, around_s=0.2))
    assert load.statuses == {"200": len(load.acknowledged)}
    assert set(load.answered) == {("stable", 1)}
    assert 0 < max(waiting) <= trial.live.project.serving.shadow_rows
    trial.file.unlink()
    eventually(lambda: not any(sum(r["shadow"].values()) for r in trial.replicas()), 20.0)
    on_collectors.flush("flights")
    project = trial.live.project
    compared = pl.DataFrame(
        pl.from_arrow(lake.scan(shadow_uri(project), "2000-01-01", "2999-01-01", log.shadow_schema(project)))
    ).filter(pl.col("prediction_id").str.starts_with("shadow-"))
    seen = compared.filter(pl.col("shadow_score").is_not_null())
    assert len(seen) > 0
    assert (seen["shadow_score"] - seen["stable_score"]).abs().max() < 1e-5
    uncaptured = lake.scan(uncaptured_uri(project), "2000-01-01", "2999-01-01", log.UNCAPTURED_SCHEMA).to_pylist()
    dropped = sum(each["n_rows"] for each in uncaptured if each["why"] == "shadow")
    print(f"compared {len(seen)}, failed {len(compared) - len(seen)}, dropped {dropped}, waiting {waiting}")
    keys = [f"flight-{i}" for i in range(len(load.acknowledged))]
    assert dropped > 0
    assert len(compared) + dropped == int(to_canary(keys, trial.rollout, SHARE).sum())


def test_a_canary_that_dies_is_answered_for_by_stable(trial: Trial) -> None:
    """Short form: a death and a process of Serve's that takes its place."""
    trial.try_on(SHARE)
    trial.healthy()
    load = run(trial, "exit", lambda: (trial.file.write_text("exit", encoding="utf-8"), time.sleep(3.0)))
    logged = failures(trial, "exit")
    assert logged["error"] > 0
    assert logged.total() == len(load.assigned["canary"])
    assert load.answered["canary", 1] == logged.total() - logged[""]


@pytest.mark.slow
def test_a_canary_that_dies_again_and_again_is_taken_out(trial: Trial) -> None:
    """Runs last: its rollout ends."""
    trial.try_on(SHARE)
    trial.file.write_text("exit", encoding="utf-8")
    run(trial, "dies", lambda: eventually(lambda: trial.phase() == "rolled back", 120.0))
