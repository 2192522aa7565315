"""What the exposition says of the state database beyond the newest window: metric families as plain values. Pure.

Label sets are bounded: versions are those that serve and the last few (`shown`); reasons, states, phases and metrics
are words of this code or of the project file. Names follow https://prometheus.io/docs/practices/naming/: base units,
`_total` for what only grows; `_seconds` is a span or decision time, `_timestamp_seconds` the machine's clock.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from mlops_ray.monitoring.folding import COUNTED
from mlops_ray.serving.log.collecting import PENDING
from mlops_ray.serving.log.tally import SCORE_S
from mlops_ray.state import Cursor, Lease, RetrainRow, RolloutRow, ServingRow, Tx, VersionRow, WindowRow

STATES = ("ok", "alarm", "uncalibrated", "silent")
"""Of a detector at its newest window. `silent`: too few rows or labels, or a task that it does not judge."""
LAST_VERSIONS = 5
"""How many of the newest versions are shown although they serve nobody: what an operator still compares with."""
_WINDOWS = 60
_ORDERED = ("manual", "code")  # retrains that somebody ordered do not count for the breaker
_ENDED = ("failed", "rejected", "succeeded")
_HELD = ("stable", "canary", "warm", "arms")

Samples = Sequence[tuple[Mapping[str, str], float]]


@dataclass(frozen=True)
class Family:
    """One metric: its samples are (labels without the project's, value); of a histogram (labels, (buckets, sum)), with
    buckets as (upper bound, rows up to it)."""

    name: str
    kind: Literal["gauge", "counter", "histogram"]
    title: str
    samples: Sequence[tuple[Mapping[str, str], Any]]


@dataclass(frozen=True)
class Facts:
    """Rows of the state database that the families are made of."""

    counted: Mapping[str, Cursor]
    decided: Cursor
    pending: Cursor
    seen: Cursor
    lease: Lease | None
    n_windows: int
    windows: Sequence[WindowRow]
    rollouts: Sequence[RolloutRow]
    retrains: Sequence[RetrainRow]
    shown: frozenset[str]


def gather(tx: Tx, project: str) -> Facts:
    """The rows of one project, in one snapshot."""
    return Facts(
        counted=tx.cursors(project, COUNTED),
        decided=tx.cursor(project, "decision time"),
        pending=tx.cursor(project, PENDING),
        seen=tx.cursor(project, "seen"),
        lease=tx.lease(f"rollout:{project}"),
        n_windows=tx.n_windows(project),
        windows=tx.windows(project, _WINDOWS),
        rollouts=tx.rollouts(project),
        retrains=tx.retrains(project),
        shown=frozenset(map(str, shown(tx.serving(project), tx.versions(project)))),
    )


def shown(serving: ServingRow | None, versions: Sequence[VersionRow]) -> list[int]:
    """The versions that have samples of their own: those that serve, are on trial or kept warm, and the last few.

    Args: versions: oldest first."""
    found = {row.version for row in versions[-LAST_VERSIONS:]}
    spec = serving.spec if serving else {}
    for role in _HELD:
        held = spec.get(role) or []
        for one in held if isinstance(held, list) else [held]:
            found.add(one["version"] if isinstance(one, dict) else int(one))
    return sorted(found)


def families(facts: Facts) -> Iterator[Family]:
    """All of them; those that nothing is known of yet have no samples."""
    yield from _times(facts)
    yield from _counts(facts)
    yield from _detectors(facts)
    yield from _rollouts(facts.rollouts)
    yield from _retrains(facts.retrains)


def _times(facts: Facts) -> Iterator[Family]:
    yield _gauge("decision_time_seconds", "Decision time up to which windows were judged", _at(facts.decided))
    pending = "Newest time that rows or watermarks stood for; the watermark follows when all nodes were passed"
    yield _gauge("pending_seconds", pending, _at(facts.pending))
    yield _gauge("arrival_timestamp_seconds", "When captured rows or a watermark last arrived", _at(facts.seen))
    lease = [] if facts.lease is None else [({"lease": "controller"}, facts.lease.expires)]
    yield _gauge("lease_expiry_timestamp_seconds", "When the lease ends unless its holder renews it", lease)


def _counts(facts: Facts) -> Iterator[Family]:
    counted = {tuple(name.split(":")): c.number for name, c in facts.counted.items()}
    by_reason = [({"reason": rest[0]}, n) for (kind, *rest), n in counted.items() if kind == "uncaptured"]
    yield _counter("uncaptured_rows", "Rows that were answered and not recorded", by_reason)
    labels = facts.counted.get("labels")
    yield _counter("labels", "Labels that have arrived", [] if labels is None else [({}, labels.number)])
    newest = Cursor() if labels is None else labels
    yield _gauge("label_seconds", "Decision time at which the newest label became known", _at(newest))
    tried = [({"version": v[0]}, n) for (kind, *v), n in counted.items() if kind == "tried" and v[0] in facts.shown]
    yield _counter("canary_rows", "Rows that a version on trial was asked", tried)
    failed = [
        ({"version": rest[0], "reason": rest[1]}, n)
        for (kind, *rest), n in counted.items()
        if kind == "failed" and rest[0] in facts.shown
    ]
    yield _counter("canary_failures", "Rows that a version on trial failed, which stable answered", failed)
    scored = []
    timed = {rest[0] for kind, *rest in counted if kind == "score_us" and rest[0] in facts.shown}
    for version in sorted(timed, key=int):
        total, buckets = 0, []
        for place, bound in enumerate((*SCORE_S, float("inf"))):
            total += counted.get(("score", version, str(place)), 0)
            buckets.append((bound, total))
        scored.append(({"version": version}, (buckets, counted["score_us", version] / 1e6)))
    yield Family("mlops_ray_score_seconds", "histogram", "Time in the predictor, for each row", scored)


def _detectors(facts: Facts) -> Iterator[Family]:
    newest: dict[str, tuple[WindowRow, Mapping[str, Any]]] = {}
    for window in facts.windows:
        for detector, entry in window.result.items():
            if isinstance(entry, Mapping) and "alarm" in entry:
                newest.setdefault(detector, (window, entry))
    states = [
        ({"detector": detector, "state": state}, float(state == standing(entry)))
        for detector, (_, entry) in sorted(newest.items())
        for state in STATES
    ]
    yield _gauge("detector_state", "1 for the state of the detector at its newest window, 0 for the others", states)
    ends = [({"detector": detector}, window.end) for detector, (window, _) in sorted(newest.items())]
    yield _gauge("detector_window_end_seconds", "End of the newest window that the detector judged", ends)
    yield _counter("windows", "Judgements of windows, by version", [({}, facts.n_windows)] if facts.n_windows else [])


def standing(entry: Mapping[str, Any]) -> str:
    """Which of `STATES` a detector's entry in a window's result says."""
    if entry["alarm"]:
        return "alarm"
    why = str(entry.get("why", ""))
    if "uncalibrated" in why:
        return "uncalibrated"
    is_judged = entry.get("limit") is not None or bool(entry.get("features"))
    return "ok" if is_judged else "silent"


def _rollouts(rollouts: Sequence[RolloutRow]) -> Iterator[Family]:
    row = next((r for r in rollouts if r.ended is None), None)
    state = row.state if row is not None else {}
    version = {} if row is None else {"version": str(row.version)}
    since = [(version | {"phase": str(state["phase"])}, float(state["since"]))] if "since" in state else []
    yield _gauge("rollout_since_seconds", "Decision time at which the open rollout's phase or step began", since)
    step = [(version, float(state["step"]))] if "step" in state else []
    yield _gauge("rollout_step", "Step of the open rollout, from 0", step)
    look = state.get("look") or {}
    looked = [(version, float(look["at"]))] if look else []
    yield _gauge("rollout_looked_seconds", "Decision time of the last look at the open rollout's evidence", looked)
    metrics = look.get("analysis", {}).get("metrics", [])
    for suffix, name, title in (
        ("", "estimate", "Canary less stable at the last look; above 0 is worse"),
        ("_low", "low", "Lower end of the difference's confidence sequence"),
        ("_high", "high", "Upper end of the difference's confidence sequence"),
        ("_margin", "margin", "Difference that the plan tolerates"),
    ):
        found = [(_of(metric, version), metric[name]) for metric in metrics if metric.get(name) is not None]
        yield _gauge(f"rollout_difference{suffix}", title, found)
    evidence = [
        (_of(metric, version) | {"hypothesis": of}, metric[f"evidence_{of}"])
        for metric in metrics
        for of in ("worse", "fine")
    ]
    yield _gauge("rollout_evidence", "Capital of the gambler who bets that the canary is worse, or fine", evidence)
    ended: dict[str, float] = {}
    for each in rollouts:
        if each.ended is not None:
            phase = str(each.state["phase"])
            ended[phase] = max(ended.get(phase, each.ended), each.ended)
    ends = [({"phase": phase}, at) for phase, at in sorted(ended.items())]
    yield _gauge("rollout_end_seconds", "Decision time at which the newest rollout with this end ended", ends)


def _of(metric: Mapping[str, Any], version: Mapping[str, str]) -> dict[str, str]:
    arm = metric.get("arm")
    return {**version, "metric": str(metric["name"])} | ({} if arm is None else {"version": str(arm)})


def _retrains(retrains: Sequence[RetrainRow]) -> Iterator[Family]:
    updated: dict[str, float] = {}
    for row in retrains:
        updated[row.status] = max(updated.get(row.status, row.updated), row.updated)
    changed = [({"status": status}, at) for status, at in sorted(updated.items())]
    title = "When the newest retrain with this status got it"
    yield _gauge("retrain_updated_timestamp_seconds", title, changed)
    newest: Mapping[str, float] = next((row.outcome["seconds"] for row in retrains if row.outcome.get("seconds")), {})
    spent = [({"stage": stage}, float(s)) for stage, s in sorted(newest.items())]
    yield _gauge("retrain_seconds", "What the stages of the newest measured retrain took", spent)
    endings = [r.status for r in retrains if r.trigger not in _ORDERED and r.status in _ENDED]
    failures = next((i for i, status in enumerate(endings) if status == "succeeded"), len(endings))
    in_a_row: list[tuple[dict[str, str], float]] = [({}, float(failures))] if endings else []
    title = "The policy's retrains that failed or were rejected since one succeeded"
    yield _gauge("retrain_failures", title, in_a_row)


def _at(cursor: Cursor) -> list[tuple[dict[str, str], float]]:
    return [] if cursor.number < 0 else [({}, cursor.at)]


def _gauge(name: str, title: str, samples: Samples) -> Family:
    return Family(f"mlops_ray_{name}", "gauge", title, samples)


def _counter(name: str, title: str, samples: Samples) -> Family:
    return Family(f"mlops_ray_{name}", "counter", title, samples)
