"""Rollouts under load by the controller that is up: good versions get through, others are found out by their metric."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from benchmarks.serving import troubled
from mlops_ray import ledger
from mlops_ray.cluster import on_ray as cluster
from mlops_ray.serving.log import on_collectors
from mlops_ray.serving.on_apply import replica_status
from mlops_ray.serving.versions import Wanted
from mlops_ray.training.on_registry import Registry
from tests import trials
from tests.load import Load, eventually
from tests.loop.conftest import ROOT, Live, brought_up, in_the_log
from tests.trials import NAME, Ended, Traffic

pytestmark = [pytest.mark.ray, pytest.mark.timeout(600)]


@dataclass(frozen=True)
class Trial:
    """A rollout that is over, and the load that it was under."""

    ended: Ended
    traffic: Traffic
    load: Load


@pytest.fixture(scope="module")
def live(tmp_path_factory: pytest.TempPathFactory, clean_environment: None) -> Iterator[Live]:
    with pytest.MonkeyPatch.context() as env:
        # The cluster's processes import this checkout: the versions' type stands in it.
        env.setenv("PYTHONPATH", os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH")))))
        with brought_up(trials.project(tmp_path_factory.mktemp("rollouts"))) as found, cluster.connected(found.project):
            yield found


def tried(live: Live, version: int, **of_traffic: float) -> Trial:
    """No client sees an error, and what is answered is recorded, whatever the version does."""
    traffic, ended = Traffic(live, f"try-v{version}", **of_traffic), list[Ended]()
    load = traffic.run(lambda: ended.append(trials.tried(live, version)))
    print(ended[0], f"{trials.delay_s(ended[0], traffic.answers):.2f} s from the commit to the last answer")
    unharmed(live, traffic, load)
    return Trial(ended[0], traffic, load)


def unharmed(live: Live, traffic: Traffic, load: Load) -> None:
    assert load.statuses.keys() == {"200"}, load.failed
    assert load.statuses["200"] * trials.N_ROWS == len(load.acknowledged)
    assert traffic.feedback.keys() <= {"202"}  # none, where labels come later than the end
    on_collectors.flush(NAME)
    in_the_log(live.project, load.acknowledged)


def troubled_version(live: Live, folder: Path, trouble: str) -> int:
    version = troubled.register(live.project, live.store, folder / "artifact", folder / "trouble")
    (folder / "trouble").write_text(trouble, encoding="utf-8")
    return version


def stable(live: Live) -> Wanted:
    with live.store.read() as tx:
        served = tx.serving(NAME)
    assert served is not None
    return Wanted.of(served)


def found_out(live: Live, trial: Trial, by: str, before: Wanted) -> None:
    """It was rolled back on the evidence of this metric and no other, and has answered nobody since."""
    ended = trial.ended
    assert (ended.phase, ended.reason, ended.failed) == ("rolled back", "evidence", (by,))
    with live.store.read() as tx:
        entry = next(e for e in reversed(ledger.entries(tx, NAME)) if e.kind == "rollout rolled back")
    assert entry.evidence["rollout"] == ended.rollout
    assert trials.failed(entry.evidence["analysis"]) == (by,)
    assert before.stable is not None
    assert stable(live).stable == before.stable
    assert stable(live).canary is None
    later = [a for a in trial.traffic.answers if a.sent > ended.told]
    assert later
    assert {(a.variant, a.version) for a in later} == {("stable", before.stable.version)}


def test_a_good_version_is_promoted(live: Live) -> None:
    before = stable(live)
    assert before.stable is not None
    trial = tried(live, version := troubled.again(live.project, live.store), late_s=1.0)
    assert (trial.ended.phase, trial.ended.reason) == ("promoted", "evidence")
    after = stable(live)
    assert after.stable is not None
    assert after.stable.version == version
    assert after.warm == (before.stable,)
    assert all({before.stable.version, version} <= set(r["loaded"]) for r in replica_status(NAME, Wanted()))
    assert {(a.variant, a.version) for a in trial.traffic.answers if a.sent > trial.ended.told} == {("stable", version)}
    registry = Registry(live.project, live.store)
    eventually(lambda: registry.alias("champion") == version and registry.alias("challenger") is None, 30.0)


def test_a_quietly_worse_version_is_found_out_by_late_labels(live: Live, tmp_path: Path) -> None:
    """Its log-loss is six per cent worse; it answers every row in time, and like stable."""
    before = stable(live)
    trial = tried(live, troubled_version(live, tmp_path, "shift"), late_s=3.0)
    found_out(live, trial, "log_loss", before)


@pytest.mark.slow
@pytest.mark.parametrize(("trouble", "by"), [("slow", "latency"), ("raise", "failures"), ("constant", "disagreement")])
def test_a_version_that_misbehaves_is_found_out_by_the_metric_that_is_for_it(
    live: Live, tmp_path: Path, trouble: str, by: str
) -> None:
    """Before a label has come. A slow version is asked few enough rows to answer each before its deadline."""
    before = stable(live)
    trial = tried(live, troubled_version(live, tmp_path, trouble), late_s=60.0, requests_per_s=20.0)
    found_out(live, trial, by, before)


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_of_twenty_equal_versions_none_is_rolled_back_on_evidence(live: Live) -> None:
    ended: list[Ended] = []

    def during() -> None:
        for _ in range(20):
            began = time.monotonic()
            ended.append(trials.tried(live, troubled.again(live.project, live.store)))
            print(ended[-1], f"{time.monotonic() - began:.1f} s")

    traffic = Traffic(live, "equal", late_s=1.0, requests_per_s=100.0)
    load = traffic.run(during)
    unharmed(live, traffic, load)
    assert not [e for e in ended if (e.phase, e.reason) == ("rolled back", "evidence")]
