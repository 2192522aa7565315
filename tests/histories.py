"""The history of a small project in a state database, told by the project's own code: what a dashboard can be shown.

Three months of traffic: version 1 serves, drifts, is retrained; version 2's canary passes and is promoted; version 3's
is under way.
"""

from __future__ import annotations

import functools
from dataclasses import replace
from typing import Any

import numpy as np

from mlops_ray import ledger
from mlops_ray.config import Project
from mlops_ray.data.distance import psi
from mlops_ray.data.profile import Bins, Profile, empty, fold
from mlops_ray.monitoring.folding import rows_cursor
from mlops_ray.monitoring.record import ENTRY
from mlops_ray.retraining.deciding import close
from mlops_ray.retraining.on_ray import decided
from mlops_ray.rollout import orders, traffic
from mlops_ray.rollout.analysis import Analysis, Metric
from mlops_ray.rollout.canary import Arm, CanaryState, Phase, Reason
from mlops_ray.state import RolloutRow, Store, Tx, VersionRow, WindowRow
from mlops_ray.training.gates.verdict import Verdict
from tests import fakes

DAY = 86_400.0
WEEK = 7 * DAY
BEGAN = 2_000 * WEEK  # windows begin at multiples of their length
BINS = Bins({"x": (-1.0, 0.0, 1.0), "n": (0.0, 1.0), "flag": (0.5,)}, {})
PLAN: dict[str, Any] = {
    "shares": [0.2, 0.5],
    "look_s": DAY,
    "step_min_s": DAY,
    "min_keys": 20,
    "analyses": [{"metric": "log_loss", "margin": 0.02}, {"metric": "failures", "margin": 0.01}],
}
MONITORING = {"window_s": WEEK, "block_s": DAY, "false_alarms_per_month": 2, "min_rows": 100, "min_blocks": 8}


def project(**blocks: Any) -> Project:
    """What the history is of."""
    return fakes.project(rollout=PLAN, monitoring=MONITORING, **blocks)


def day(number: int, *, shift: float = 0.0, n: int = 120) -> Profile:
    """One day's rows."""
    rng = np.random.default_rng(number)
    columns = {
        "x": rng.normal(shift, 1, n).astype(np.float32),
        "n": rng.normal(0, 1, n).astype(np.float32),
        "flag": rng.integers(0, 2, n).astype(np.float32),
    }
    return fold(BINS, columns, np.full(n, 0.3))


def version(of: Project, number: int, at: float, **tags: Any) -> VersionRow:
    """A registered version."""
    name = of.project
    found = {"dataset.content_hash": f"{number:x}" * 64} | tags
    return VersionRow(
        name,
        number,
        f"run{number}",
        f"/m/{number}",
        f"{number}" * 64,
        f"/data/{name}@{number}",
        "registered",
        at,
        found,
    )


def register(store: Store, of: Project, number: int, at: float, **tags: Any) -> None:
    store.run(lambda tx: tx.save_version(version(of, number, at, **tags)))


def serve(store: Store, of: Project) -> None:
    """Version 1 is the first."""
    register(store, of, 1, BEGAN - WEEK)
    orders.first_version(store, of, now=BEGAN)


def live(store: Store, of: Project, first: int, last: int, *shares: tuple[int, float], shift: float = 0.0) -> None:
    """Days `first` to `last` of traffic, answered by these versions with these shares; decision time moves on."""

    def run(tx: Tx) -> None:
        for number in range(first, last):
            at = BEGAN + number * DAY
            for who, share in shares:
                profile = day(number, shift=shift, n=round(700 * share))
                tx.save_profile(of.project, who, at, profile.to_dict())
                rows = max(0, tx.cursor(of.project, rows_cursor(who)).number)
                tx.save_cursor(of.project, rows_cursor(who), rows + profile.n, 0.0)
        clock(tx, of, BEGAN + last * DAY)

    store.run(run)


def clock(tx: Tx, of: Project, at: float) -> None:
    """Decision time is `at`; the machine has never been idle."""
    tx.save_cursor(of.project, "watermark", 0, at)
    tx.save_cursor(of.project, "seen", 0, 1e11)


LIMITS = {"x": 0.12, "n": 0.06, "flag": 0.03}
"""Of the population stability index, in nats."""


@functools.cache
def trained_on() -> Profile:
    """Eight weeks."""
    return sum((day(9000 + k) for k in range(56)), empty(BINS))


def judge(
    store: Store, of: Project, week: int, by: int, *, loss: float, mature: bool = True, shift: float = 0.0
) -> None:
    """The judgement of one week by the reference of version `by`, in the keys that the monitor has always saved.

    loss: estimated; what is realised, where it is `mature`, is a hundredth more."""
    start, window = BEGAN + week * WEEK, sum((day(week * 7 + k, shift=shift, n=700) for k in range(7)), empty(BINS))
    found = [
        {"feature": name, "psi": float(psi(trained_on().counts[name], window.counts[name])), "limit": limit}
        for name, limit in LIMITS.items()
    ]
    alarms = [each for each in found if each["psi"] > each["limit"]]  # type: ignore[operator]
    why = "; ".join(f"{f['feature']}: PSI {f['psi']:.3f} against a limit of {f['limit']:.3f}" for f in alarms or found)
    drift = {"alarm": bool(alarms), "why": why, "at": start + WEEK, "decision": "nothing to do", "features": found}
    result: dict[str, Any] = {"drift": drift | {"rows": window.n}}
    metrics = {"log_loss": {"value": loss, "low": loss - 0.02, "high": loss + 0.02}}
    result[ENTRY] = {
        "at": start + WEEK,
        "rows": window.n,
        "why": f"log_loss {loss:.4f} ({loss - 0.02:.4f} to {loss + 0.02:.4f}) estimated from {window.n} rows",
        "direct": {"metrics": metrics, "why": "30 blocks of the holdout"},
        "weighted": {"metrics": {}, "why": "nothing to weigh"},
        "record": {m: {"windows": week, "trust": week / (week + 2), "rmse": None} for m in ("direct", "weighted")},
        "alarm": False,
    }
    if mature:
        result["quality"] = {
            "alarm": loss + 0.01 > 0.57,
            "why": f"log-loss {loss + 0.01:.4f} against a limit of 0.5700 (4855 labelled rows)",
            "at": start + WEEK + 2 * DAY,
            "log_loss": loss + 0.01,
            "limit": 0.57,
            "n_rows": 4900,
            "n_labelled": 4855,
            "coverage": 4855 / 4900,
            "roc_auc": 0.71,
        }
    store.run(lambda tx: tx.save_window(WindowRow(of.project, start, start + WEEK, by, result)))


def retrained(store: Store, of: Project, at: float, number: int | None, *, planted: bool = False) -> str:
    """A retrain because of drift; `number` passes, None is refused."""
    row = decided(
        of.project, "drift", "x: PSI 0.412 against a limit of 0.121 (mean from 0.01 to 0.6)", at, planted=planted
    )

    def run(tx: Tx) -> None:
        tx.save_retrain(row)
        ledger.append(tx, of.project, "retrain decided", row.id, "mlops_ray", row.reason, {}, at)

    store.run(run)
    if number is None:
        check = {"name": "limit.roc_auc", "verdict": "fail", "detail": "0.51 is below 0.55"}
        gates = {"verdict": "fail", "checks": [{"name": "slices", "verdict": "pass", "detail": "fine"}, check]}
        store.run(
            lambda tx: close(
                tx, row, "rejected", row.outcome | {"gates": gates}, "candidate rejected", "roc_auc", machine_now=at
            )
        )
        return row.id
    register(store, of, number, at, decision=row.id)
    outcome = {"version": number}
    why = f"v{number} passed its gates"
    store.run(lambda tx: close(tx, row, "succeeded", outcome, "retrain succeeded", why, machine_now=at))
    return row.id


def started(store: Store, of: Project, number: int, at: float) -> str:
    """A rollout whose replica is up: its first step."""

    def run(tx: Tx) -> str:
        rollout = orders.begin(
            tx, of, number, supersede=False, who="mlops_ray", why="it passed its gates", now=at, machine_now=at
        )
        row = row_of(tx, rollout)
        move(tx, of, row, CanaryState(Phase.RAMPING, 0, at), f"rollout ramping at {PLAN['shares'][0]:g}", None)
        return rollout

    return store.run(run)


def side_by_side(store: Store, numbers: tuple[int, ...], at: float) -> str:
    """A rollout of these versions at a fifth of the keys each, of which the last was dropped."""
    of = fakes.project(rollout={"mode": "ab", "ab": {"share": 0.2}}, monitoring=MONITORING)

    def run(tx: Tx) -> str:
        first, *beside = numbers
        given = {"who": "ann", "why": "three kinds", "now": at, "machine_now": at}
        rollout = orders.begin(tx, of, first, beside=beside, supersede=False, **given)
        arms = (*(Arm(number) for number in numbers[:-1]), Arm(numbers[-1], Reason.EVIDENCE, at))
        move(tx, of, row_of(tx, rollout), CanaryState(Phase.RAMPING, 0, at, arms=arms), "rollout ramping", None)
        return rollout

    return store.run(run)


def won(store: Store, rollout: str, number: int, at: float) -> None:
    """The evidence has decided for this one, and every replica answers with it."""

    def run(tx: Tx) -> None:
        row = row_of(tx, rollout)
        state = replace(
            CanaryState.from_dict(row.state), phase=Phase.PROMOTING, since=at, reason=Reason.EVIDENCE, chosen=number
        )
        of = fakes.project()
        move(tx, of, row, state, "rollout promoting", None)
        traffic.flip(tx, rollout)
        move(tx, of, row_of(tx, rollout), replace(state, phase=Phase.PROMOTED), "rollout promoted", None)

    store.run(run)


def row_of(tx: Tx, rollout: str) -> RolloutRow:
    row = tx.rollout(rollout)
    assert row is not None
    return row


def move(tx: Tx, of: Project, row: RolloutRow, after: CanaryState, kind: str, seen: dict[str, Any] | None) -> None:
    """What the controller saves."""
    evidence = {} if seen is None else {"analysis": seen["analysis"]}
    orders.transition(
        tx,
        row,
        after,
        kind=kind,
        who=orders.US,
        why="the evidence",
        machine_now=after.since,
        evidence=evidence,
        look=seen,
    )
    orders.save_wanted(tx, of.project, now=after.since)


def seen(
    at: float, n_keys: int, estimate: float, half: float, verdict: Verdict = Verdict.INCONCLUSIVE
) -> dict[str, Any]:
    """A look."""
    needed = None if verdict is Verdict.PASS else max(1, 900 - n_keys)
    loss = Metric(
        "log_loss", 0.02, n_keys, estimate, 0.5, 7.0, verdict, low=estimate - half, high=estimate + half, needed=needed
    )
    failures = Metric("failures", 0.01, 4 * n_keys, 0.0, 0.1, 40.0, Verdict.PASS, low=-0.002, high=0.004)
    return {"at": at, "analysis": Analysis(verdict, (loss, failures), 4 * n_keys).to_dict()}


def look(store: Store, rollout: str, told: dict[str, Any]) -> None:
    """A look that changes nothing."""
    store.run(lambda tx: orders.keep_look(tx, row_of(tx, rollout), told))


def promote(store: Store, of: Project, rollout: str, at: float) -> None:
    """The evidence has decided, and every replica answers with the version."""

    def run(tx: Tx) -> None:
        last = seen(at, 950, -0.006, 0.012, Verdict.PASS)
        move(
            tx, of, row_of(tx, rollout), CanaryState(Phase.PROMOTING, 1, at, Reason.EVIDENCE), "rollout promoting", last
        )
        traffic.flip(tx, rollout)
        row = row_of(tx, rollout)
        move(tx, of, row, replace(CanaryState.from_dict(row.state), phase=Phase.PROMOTED), "rollout promoted", None)

    store.run(run)


def history(store: Store, of: Project) -> str:
    """All of it; the id of the rollout that is under way."""
    serve(store, of)
    live(store, of, 0, 30, (1, 1.0))
    for week, loss in enumerate((0.52, 0.53, 0.53, 0.55)):
        judge(store, of, week, 1, loss=loss, shift=0.9 if week == 3 else 0.0)
    retrained(store, of, BEGAN + 28 * DAY, 2)
    first = started(store, of, 2, BEGAN + 30 * DAY)
    for number, half in enumerate((0.9, 0.2, 0.08, 0.04, 0.02)):
        look(store, first, seen(BEGAN + (31 + number) * DAY, 150 * (number + 1), -0.004, half))
    live(store, of, 30, 36, (1, 0.8), (2, 0.2))
    promote(store, of, first, BEGAN + 36 * DAY)
    live(store, of, 36, 80, (2, 1.0))
    for week, loss in enumerate((0.50, 0.51, 0.50, 0.52, 0.52, 0.53), start=5):
        judge(store, of, week, 2, loss=loss, mature=week < 10)
    retrained(store, of, BEGAN + 55 * DAY, None, planted=True)
    retrained(store, of, BEGAN + 78 * DAY, 3)
    second = started(store, of, 3, BEGAN + 80 * DAY)
    live(store, of, 80, 83, (2, 0.8), (3, 0.2))
    for number, (keys, half) in enumerate(((130, 0.12), (270, 0.04), (412, 0.0075))):
        look(store, second, seen(BEGAN + (81 + number) * DAY, keys, 0.0035, half))
    return second
