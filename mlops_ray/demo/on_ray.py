"""The demonstration: the loop on a year of flights, from an empty directory to a table by month."""

from __future__ import annotations

import asyncio
import itertools
import shutil
import time
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import ray

from mlops_ray import ledger, verbs
from mlops_ray.cluster import on_ray as cluster
from mlops_ray.config import Project
from mlops_ray.data import lake
from mlops_ray.demo import replay
from mlops_ray.demo.flights import flights
from mlops_ray.errors import BackendUnavailable, DataError
from mlops_ray.monitoring.labels import joined
from mlops_ray.monitoring.on_ray import monitor_name
from mlops_ray.monitoring.performance import quality
from mlops_ray.retraining.deciding import MANUAL
from mlops_ray.retraining.on_ray import decided
from mlops_ray.rollout.on_ray import controller_name
from mlops_ray.serving.artifacts import local
from mlops_ray.serving.log import tables as log
from mlops_ray.serving.log.on_collectors import flush
from mlops_ray.serving.places import labels_uri, log_uri
from mlops_ray.state import RetrainRow, Store

# The overlay gives the demonstration a directory of its own, which it empties first.
CONFIG = (Path("configs/flights.yaml"), Path("configs/overlays/demo.yaml"))
# Machine time within which an acknowledged day must have settled; a retrain has its own limit on top.
_SETTLE_S = 180.0


def run_demo(
    env: Mapping[str, str],
    *,
    fast: bool = False,
    speed: float | None = None,
    per_flight: bool = False,
    config: Sequence[Path] = CONFIG,
    until: str | None = None,
    on_progress: verbs.Progress = lambda stage, done, total: None,
) -> dict[str, Any]:
    """Train, serve, replay, take down; the summary as a JSON-friendly dict.

    Args: config: project file and overlays. fast: March and April only. speed: seconds of flights per second.
        until: first day that is not replayed.
    Raises: BackendUnavailable when a port is taken or the loop does not settle.
    """
    if not config[0].exists():
        raise DataError(str(config[0]), "not found; run the demonstration in a checkout of the project")
    began = time.monotonic()
    project = verbs.load(config, env).project
    verbs.down(config, env)
    shutil.rmtree(project.storage.path(), ignore_errors=True)
    since = _seconds("2013-03-01")
    end = _seconds(until or ("2013-05-01" if fast else "2013-10-01"))
    try:
        first = verbs.run(config, env, on_progress)
        store = verbs.open_store(project)
        tally = replay.Tally()
        with cluster.connected(project):
            loop = Loop(project, store, on_progress, plant_at=since + (end - since) / 2)
            hours = replay.days(
                flights(), [c.name for c in project.columns_in("serving")], since, end, per_flight=per_flight
            )
            n_days = round((end - since) / 86_400)
            progress = itertools.count(1)
            on_progress("days of flights", 0, n_days)
            asyncio.run(
                replay.replay(
                    first["deploy"]["url"],
                    hours,
                    loop.acknowledge,
                    tally=tally,
                    speed=speed,
                    on_day=lambda at: on_progress("days of flights", next(progress), n_days),
                )
            )
            summary = summarise(project, store, tally, since, end)
    finally:
        verbs.down(config, env)
    return summary | {
        "broken_promises": broken_promises(summary),
        "seconds": round(time.monotonic() - began, 1),
        "machine": {"speed": speed, "fast": fast},
    }


def broken_promises(summary: Mapping[str, Any]) -> list[str]:
    """What every run must show, whatever the evidence leads to, and this one does not; empty when all is well."""
    promises = {
        "requests failed": summary["failed_requests"] == 0,
        "the planted candidate was not refused": summary["rejections_planted"] == 1,
        "the ledger is broken": summary["ledger_ok"],
        "a retrain was left open": summary["open_retrain"] is None,
    }
    return [words for words, kept in promises.items() if not kept]


class Loop:
    """The loop as the replay sees it: a day is acknowledged when capture, monitor and controller have settled on it."""

    def __init__(self, project: Project, store: Store, on_progress: verbs.Progress, *, plant_at: float | None) -> None:
        self._project, self._store, self._on_progress = project, store, on_progress
        self._plant_at = plant_at
        name = project.project
        self._monitor, self._controller = (
            ray.get_actor(actor, cluster.NAMESPACE) for actor in (monitor_name(name), controller_name(store))
        )

    async def acknowledge(self, watermark: float) -> None:
        """Returns when everything up to `watermark` is committed, judged, decided and applied.

        Raises: BackendUnavailable when that does not happen in time."""
        await asyncio.to_thread(flush, self._project.project)
        await self._monitor.tick.remote()
        if self._plant_at is not None and watermark >= self._plant_at and self._plant(watermark):
            self._plant_at = None
        deadline = time.monotonic() + _SETTLE_S
        while (await self._monitor.tick.remote())["open_retrain"]:
            self._on_progress("retraining; the flights wait", 0, 0)
            deadline = time.monotonic() + _SETTLE_S  # a job has its own time-out
            await asyncio.sleep(0.25)  # a Ray Job announces its end to nobody: its status is polled
        while not (seen := await self._controller.tick.remote(self._project.project))["settled"]:
            if time.monotonic() > deadline:
                raise BackendUnavailable("the loop", f"did not settle within {_SETTLE_S:g} s: {seen['trouble']}")
            await asyncio.sleep(0.05)

    def _plant(self, at: float) -> bool:
        """Order one deliberately bad candidate, once nothing else is under way."""
        name = self._project.project
        with self._store.read() as tx:
            if tx.open_retrain(name) or tx.open_rollout(name):
                return False
        why = "planted: a candidate trained on a shuffled target"
        row = decided(name, MANUAL, why, at, planted=True)

        def order(tx: Any) -> None:
            tx.save_retrain(row)
            ledger.append(tx, name, "retrain decided", row.id, "demo", why, {"planted": True}, at)

        self._store.run(order)
        return True


def summarise(project: Project, store: Store, tally: replay.Tally, since: float, until: float) -> dict[str, Any]:
    """What happened, by month: requests, versions, realised quality, and the first version's on the same requests."""
    name = project.project
    with store.read() as tx:
        retrains, rollouts = tx.retrains(name), tx.rollouts(name)
        entries, first = ledger.entries(tx, name), tx.versions(name)[0]
        verified = ledger.verify(tx, name)
    predictions = lake.scan(log_uri(project), log.day_of(since), log.day_of(until), log.prediction_schema(project))
    labels = lake.scan(labels_uri(project), log.day_of(since), "9999-12-31", log.label_schema(project))
    rows = joined(predictions, labels, known_by=1e11)
    versions, scores = log.answered(rows)
    baseline = local(first.artifact, first.sha256, trusted=project.features.trusted_types).score(
        log.inputs(project, rows)
    )
    label = rows["label"].to_numpy(zero_copy_only=False).astype(np.float64)
    months = pl.Series(pl.from_arrow(rows["event_time"])).dt.strftime("%Y-%m").to_numpy()

    def measured(mask: Any) -> dict[str, Any]:
        ours, theirs = quality(label[mask], scores[mask]), quality(label[mask], baseline[mask])
        return {
            "predictions": ours.n_rows,
            "labelled": ours.n_labelled,
            "roc_auc": ours.roc_auc,
            "log_loss": ours.log_loss,
            "roc_auc_never_retrained": theirs.roc_auc,
            "log_loss_never_retrained": theirs.log_loss,
        }

    planted = [r for r in retrains if r.outcome.get("planted")]
    loop = [r for r in retrains if not r.outcome.get("planted")]
    return {
        "requests": sum(tally.sent.values()),
        "failed_requests": sum(tally.failed.values()),
        "troubles": tally.troubles[:10],
        **measured(np.ones(len(label), dtype=bool)),
        "retrains": len(loop),
        "retrains_failed": sum(r.status == "failed" for r in loop),
        "promotions": sum(r.state["phase"] == "promoted" for r in rollouts),
        "rollbacks": sum(r.state["phase"] == "rolled back" for r in rollouts),
        "rejections": sum(r.status == "rejected" for r in loop),
        "rejections_planted": sum(r.status == "rejected" for r in planted),
        "ledger_entries": verified.n,
        "ledger_ok": verified.ok,
        "months": [
            {
                "month": month,
                "requests": tally.sent.get(month, 0),
                "failed_requests": tally.failed.get(month, 0),
                "versions": sorted(set(versions[months == month].tolist())),
                **measured(months == month),
                "decisions": [_line(e) for e in entries if _month(e.at) == month and e.at >= since],
            }
            for month in sorted(tally.sent)
        ],
        "decisions": [{"at": e.at, "kind": e.kind, "subject": e.subject, "why": e.why} for e in entries],
        "open_retrain": next((r.id for r in retrains if r.status in RetrainRow.OPEN), None),
    }


def _line(entry: ledger.Entry) -> str:
    subject = "" if entry.kind.startswith(("retrain", "candidate")) else f" {entry.subject}"
    return f"{datetime.fromtimestamp(entry.at, UTC):%m-%d} {entry.kind}{subject}"


def _month(time_s: float) -> str:
    return datetime.fromtimestamp(time_s, UTC).strftime("%Y-%m")


def _seconds(day: str) -> float:
    return datetime.fromisoformat(day).replace(tzinfo=UTC).timestamp()
