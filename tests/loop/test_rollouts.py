"""Rollouts under load by the controller that is up: good versions get through, others are found out by their metric."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from mlops_ray import ledger
from mlops_ray.cluster import on_ray as cluster
from mlops_ray.serving.log import on_collectors
from mlops_ray.serving.on_apply import replica_status
from mlops_ray.serving.versions import Wanted
from mlops_ray.training.on_registry import Registry
from tests import side_by_side, trials
from tests.load import eventually
from tests.loop.conftest import ROOT, Live, brought_up, in_the_log
from tests.trials import NAME, Ended, Trial

pytestmark = [pytest.mark.ray, pytest.mark.timeout(600)]


@pytest.fixture(scope="module")
def live(tmp_path_factory: pytest.TempPathFactory, clean_environment: None) -> Iterator[Live]:
    with pytest.MonkeyPatch.context() as env:
        # The cluster's processes import this checkout: the versions' type stands in it.
        env.setenv("PYTHONPATH", os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH")))))
        with brought_up(trials.project(tmp_path_factory.mktemp("rollouts"))) as found, cluster.connected(found.project):
            yield found


def tried(live: Live, kind: str, folder: Path) -> tuple[Trial, Ended]:
    trial = trials.trial(live, trials.KINDS[kind], folder / "version")
    (ended,) = trial.ended
    print(f"{kind}: {ended}, {trial.delay_s(ended):.2f} s from the commit to the last answer")
    unharmed(live, trial)
    return trial, ended


def unharmed(live: Live, trial: Trial) -> None:
    """No client saw an error, and each row that was answered is recorded once."""
    assert trial.failed == 0, trial.load.failed
    on_collectors.flush(NAME)
    in_the_log(live.project, trial.load.acknowledged)


def found_out(live: Live, kind: str, folder: Path) -> None:
    """It is rolled back on the evidence of the metric that is for it and no other, and answers nobody any more."""
    before = trials.wanted(live).stable
    trial, ended = tried(live, kind, folder)
    by = (trials.KINDS[kind].by,)
    assert (ended.phase, ended.reason, ended.failed) == ("rolled back", "evidence", by)
    with live.store.read() as tx:
        entry = next(e for e in reversed(ledger.entries(tx, NAME)) if e.kind == "rollout rolled back")
    assert entry.evidence["rollout"] == ended.rollout
    assert trials.failed(entry.evidence["analysis"]) == by
    assert before is not None
    assert trials.wanted(live).stable == before
    assert answering(trial, ended) == {("stable", before.version)}


def answering(trial: Trial, ended: Ended) -> set[tuple[str, int]]:
    """Variants and versions of what was sent after every replica had heard of the end."""
    return {(a.variant, a.version) for a in trial.traffic.answers if a.sent > ended.told}


def test_a_good_version_is_promoted(live: Live, tmp_path: Path) -> None:
    before = trials.wanted(live).stable
    assert before is not None
    trial, ended = tried(live, "equal", tmp_path)
    assert (ended.phase, ended.reason) == ("promoted", "evidence")
    after = trials.wanted(live)
    assert after.stable is not None
    assert after.stable.version == ended.version
    assert after.warm == (before,)
    assert all({before.version, ended.version} <= set(r["loaded"]) for r in replica_status(NAME, Wanted()))
    assert answering(trial, ended) == {("stable", ended.version)}
    registry = Registry(live.project, live.store)
    eventually(lambda: registry.alias("champion") == ended.version and registry.alias("challenger") is None, 30.0)


def test_a_quietly_worse_version_is_found_out_by_late_labels(live: Live, tmp_path: Path) -> None:
    """Its log-loss is six per cent worse; it answers every row in time, and five of six as stable does."""
    found_out(live, "quietly worse", tmp_path)


def test_a_version_whose_rollout_was_broken_off_is_tried_again(live: Live) -> None:
    """Its first application is gone, and every replica has spoken with that one."""
    trial = trials.tried_again(live)
    (ended,) = trial.ended
    unharmed(live, trial)
    assert (ended.phase, ended.reason) == ("promoted", "evidence")


def baked(live: Live, turns: str, folder: Path, *, bake_s: float) -> tuple[Trial, Ended]:
    trial = trials.baked(live, turns, folder / "version", bake_s=bake_s)
    (ended,) = trial.ended
    print(f"turns {turns or 'nothing'}: {ended}")
    unharmed(live, trial)
    return trial, ended


@pytest.mark.slow
@pytest.mark.parametrize(("turns", "by"), [("constant", {"log_loss", "disagreement"}), ("raise", {"failures"})])
def test_a_version_that_turns_bad_as_stable_is_taken_back_by_evidence_while_it_bakes(
    live: Live, tmp_path: Path, turns: str, by: set[str]
) -> None:
    """Where it fails requests, the version before it answers them: no client hears of it."""
    before = trials.wanted(live).stable
    trial, ended = baked(live, turns, tmp_path, bake_s=120.0)
    assert (ended.phase, ended.reason) == ("rolled back", "evidence")
    assert set(ended.failed) & by
    with live.store.read() as tx:
        entry = next(e for e in reversed(ledger.entries(tx, NAME)) if e.kind == "rollout rolled back")
    worse = [m for m in entry.evidence["analysis"]["metrics"] if m["verdict"] == "fail"]
    assert all(m["n_baking"] >= 20 for m in worse)
    assert before is not None
    assert trials.wanted(live).stable == before
    assert answering(trial, ended) == {("stable", before.version)}
    assert ("stable", ended.version) in {(a.variant, a.version) for a in trial.traffic.answers}


@pytest.mark.slow
def test_a_good_version_bakes_through_and_is_heard_meanwhile(live: Live, tmp_path: Path) -> None:
    trial, ended = baked(live, "", tmp_path, bake_s=6.0)
    assert (ended.phase, ended.reason) == ("promoted", "evidence")
    assert answering(trial, ended) == {("stable", ended.version)}
    with live.store.read() as tx:
        entry = next(e for e in reversed(ledger.entries(tx, NAME)) if e.kind == "rollout promoted")
    assert min(m["n_baking"] for m in entry.evidence["analysis"]["metrics"]) > 100


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("by_command", [False, True])
def test_of_three_versions_side_by_side_the_better_one_wins_and_the_others_go(
    live: Live, tmp_path: Path, by_command: bool
) -> None:
    """Stable is worse than it could be; of the arms one is better, one answers a constant, one throws."""
    worse, better, *bad = trials.registered(live, tmp_path, "shift", "", "constant", "raise")
    trials.promoted_at_once(live, worse, tmp_path)
    found = side_by_side.experiment(live, [better, *bad], tmp_path, by_command=better if by_command else None)
    print(found.ended, found.dropped, found.shares, found.n_keys, found.gone_s, dict(found.load.statuses))
    assert (found.chosen, found.ended.phase) == (better, "promoted")
    assert found.ended.reason == ("operator" if by_command else "evidence")
    assert found.dropped == dict.fromkeys(bad, "evidence")
    assert found.wrong == 0
    tolerated = 4 * math.sqrt(0.2 * 0.8 / found.n_keys)
    assert {v: share for v, share in found.shares.items() if abs(share - 0.2) > tolerated} == {}
    assert found.gone_s.keys() == set(bad)
    stable = trials.wanted(live).stable
    assert stable is not None
    assert stable.version == better
    assert set(found.load.statuses) == {"200"}, found.load.failed
    assert set(found.traffic.feedback) == {"202"}


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["slow", "throws", "constant"])
def test_a_version_that_misbehaves_is_found_out_before_a_label_has_come(live: Live, tmp_path: Path, kind: str) -> None:
    found_out(live, kind, tmp_path)


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_of_twenty_equal_versions_none_is_rolled_back_on_evidence(live: Live) -> None:
    trial = trials.equals(live, 20)
    assert len(trial.ended) == 20
    assert not [e for e in trial.ended if (e.phase, e.reason) == ("rolled back", "evidence")]
    unharmed(live, trial)
