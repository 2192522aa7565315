"""Live rollouts of several versions side by side, in the world of `trials`."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl

from mlops_ray.data import lake
from mlops_ray.rollout.canary import CanaryState
from mlops_ray.serving.applications import version_application
from mlops_ray.serving.log import on_collectors
from mlops_ray.serving.on_apply import application_states
from mlops_ray.serving.places import log_uri
from mlops_ray.serving.routing import spread
from mlops_ray.state import RolloutRow
from mlops_ray.verbs import rollout as rollouts
from tests import trials
from tests.load import Load, eventually
from tests.loop.conftest import Live

RATE = 20.0
"""Requests a second, of eight rows each."""
STEP_MAX_S = 300.0


@dataclass(frozen=True)
class Experiment:
    """Versions that were tried side by side, and the load that they were under. gone_s: from the drop of each that was
    dropped until its application was gone; wrong: rows of the log that another version answered than their key says."""

    ended: trials.Ended
    chosen: int | None
    dropped: Mapping[int, str]
    gone_s: Mapping[int, float]
    shares: Mapping[int, float]
    n_keys: int
    wrong: int
    traffic: trials.Traffic
    load: Load


def experiment(live: Live, versions: Sequence[int], folder: Path, *, by_command: int | None = None) -> Experiment:
    """A rollout of these versions side by side, each a fifth of the keys, until it has ended. Ray must be connected.

    Args: by_command: who is promoted by command, as soon as the others were dropped; None: the winner by itself."""
    winner = "automatic" if by_command is None else "by_command"
    # The objective comes first. Latency is for the tests of one canary: these share the machine with two others.
    analyses = [trials.ANALYSES[2], trials.ANALYSES[0], trials.ANALYSES[3]]
    ab = {"share": 0.2, "winner": winner}
    paths = trials.planned(live, folder / f"{winner}.yaml", mode="ab", ab=ab, analyses=analyses, step_max_s=STEP_MAX_S)
    # Stable is served by scikit-learn, and so are two arms: a third of the other trials' load keeps two cores as busy.
    traffic = trials.Traffic(live, f"ab-{versions[0]}", late_s=1.0, requests_per_s=RATE)
    ended = list[trials.Ended]()
    gone: dict[int, float] = {}

    def during() -> None:
        with ThreadPoolExecutor(1) as looking:
            watched = looking.submit(_watched, live, versions, gone, by_command, paths)
            ended.append(trials.tried(live, versions[0], beside=versions[1:], paths=paths, within_s=STEP_MAX_S + 200))
            watched.result()

    load = traffic.run(during)
    state = CanaryState.from_dict(trials.row_of(live, ended[0].rollout).state)
    on_collectors.flush(trials.NAME)
    return Experiment(
        ended[0],
        state.chosen,
        {arm.version: str(arm.out) for arm in state.arms if arm.out},
        gone,
        *_assigned(live, ended[0].rollout, versions),
        traffic,
        load,
    )


def _watched(
    live: Live, versions: Sequence[int], gone: dict[int, float], by_command: int | None, paths: list[Path]
) -> None:
    """Until the experiment is decided: when a dropped arm's application is gone, and the order, once it is due."""
    dropped: dict[int, float] = {}
    ordered = False
    eventually(lambda: _open(live) is not None, 60.0)
    while (row := _open(live)) is not None or dropped.keys() - gone.keys():
        state = CanaryState.from_dict(row.state) if row is not None else None
        for arm in state.arms if state else ():
            if arm.out:
                dropped.setdefault(arm.version, time.monotonic())
        if state and by_command and not ordered and set(dropped) == set(versions) - {by_command}:
            rollouts.move(paths, os.environ, "promote", "it is the one", version=by_command)
            ordered = True
        there = application_states(live.dashboard)
        for version in dropped.keys() - gone.keys():
            if version_application(trials.NAME, version) not in there:
                gone[version] = time.monotonic() - dropped[version]
        time.sleep(0.1)  # neither Serve nor a database tells


def _open(live: Live) -> RolloutRow | None:
    with live.store.read() as tx:
        return tx.open_rollout(trials.NAME)


def _assigned(live: Live, rollout: str, versions: Sequence[int]) -> tuple[dict[int, float], int, int]:
    """The share of keys that each arm had while all were there, of how many, and how many rows were assigned otherwise
    than their keys say."""
    rows = pl.DataFrame(pl.from_arrow(lake.scan(log_uri(live.project), "0", "9", ["key", "at", "canary", "rollout"])))
    theirs = rows.filter(pl.col("rollout") == rollout)
    spans = [(0.2 * place, 0.2 * place + 0.2) for place in range(len(versions))]
    expected = np.full(len(theirs), -1)
    for version, places in zip(versions, spread(theirs["key"].to_list(), rollout, spans), strict=True):
        expected[places] = version
    wrong = int((theirs["canary"].to_numpy() != expected).sum())
    # All arms were there until the first of them answered its last row.
    until = theirs.group_by("canary").agg(pl.col("at").max())["at"].min()
    span = rows.filter(pl.col("at").is_between(theirs["at"].min(), until))
    n = span["key"].n_unique()
    counted = span.filter(pl.col("rollout") == rollout).group_by("canary").agg(pl.col("key").n_unique())
    return {int(v): k / n for v, k in counted.iter_rows()}, n, wrong
