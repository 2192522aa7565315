"""One project's rollouts, carried: look, advance the state, save it, then make the world agree with it.

Level-triggered: every tick derives the wanted serving configuration from the saved state and applies it, so a lost
call, a killed controller or a restarted Serve heal at the next tick. A `turn` is a tick where there may be something
to do, and costs next to nothing where there is not. What is decided, and what follows from it, is decided elsewhere
(`canary`, `schedule`, `approval`, `traffic`, `orders`); here it is carried.
"""

from __future__ import annotations

import math
import os
import threading
import time
import uuid
from collections.abc import Callable, Collection
from enum import StrEnum
from typing import Any, TypeVar

from mlops_ray import ledger
from mlops_ray.config import Project
from mlops_ray.data.following import Following
from mlops_ray.errors import LeaseLost
from mlops_ray.rollout import orders, steps, traffic
from mlops_ray.rollout.analysis import Analysis
from mlops_ray.rollout.canary import CanaryState, Phase
from mlops_ray.rollout.looks import due, look, read
from mlops_ray.rollout.steps import Known, Looked, Replicas, compares, following, look_at
from mlops_ray.serving import applications
from mlops_ray.serving.on_apply import application_states, live_replicas, replica_status, try_apply
from mlops_ray.serving.versions import Wanted
from mlops_ray.state import Lease, ServingRow, Store, Tx
from mlops_ray.training.on_registry import Registry

T = TypeVar("T")

# Machine time between two ticks that nothing asked for: while something is on its way, and at rest. What is on its way
# in Serve and in replicas tells nobody; at rest a tick keeps the lease, which lives for longer than two of them.
_TICK_S = 2.0
_REST_S = 8.0
_LEASE_S = 20.0
# Machine time between two turns while a version is on trial: for so long data that decide wait, at most.
_TRIAL_S = 0.25
# Machine time for which Serve is taken to agree with what it was seen to agree with, at rest.
_AGREED_S = 30.0
# Machine time after which a version that is unwell, or cannot be loaded, counts as crashed; and one that never starts.
_UNHEALTHY_S = 30.0
_START_S = 300.0
# Deaths of the canary's process after which it is taken out: it was restarted as often.
_DEATHS = 3
# Machine time between two checks that the registry's aliases say what the state database says.
_ALIAS_S = 60.0
# Phases in which nothing is on its way that a tick could wait for.
_SETTLED = (None, Phase.PENDING, Phase.SHADOWING, Phase.RAMPING, Phase.PAUSED, Phase.BAKING)


class Point(StrEnum):
    """Where a controller may be killed: before, between and after all of its steps. Tests kill it at each."""

    LEASED = "it has the lease and has read nothing"
    DECIDING = "it knows what follows from approvals, schedule and evidence, and has saved nothing"
    COMMITTING = "something is written in a transaction that is not committed"
    COMMITTED = "something is saved that nobody has heard of"
    APPLIED = "Serve was told"
    OBSERVED = "it has seen the replicas and has saved nothing"
    ALIASING = "the registry's aliases are about to be put back"
    DONE = "the tick is done"


def _no_fault(point: Point) -> None:
    """Nothing happens."""


class Controller:
    """Steers one project's rollouts, a look at a time; the lease keeps a second controller waiting. It is plain, and
    does nothing between calls."""

    def __init__(
        self, project: Project, store: Store, dashboard: str, *, fault: Callable[[Point], None] = _no_fault
    ) -> None:
        """Args: store: the project's state database. dashboard: of the cluster.

        fault: called at each `Point`; a test kills the controller there."""
        self._project, self._name = project, project.project
        self._store, self._dashboard, self._fault = store, dashboard, fault
        self._holder = f"controller-{os.getpid()}-{uuid.uuid4().hex[:8]}"
        self._lease: Lease | None = None
        self._registry: Registry | None = None
        self._aliases_checked = -math.inf
        self._aliased: tuple[int | None, int | None] | None = None
        self._since: dict[str, float] = {}
        self._agreed = (-1, -math.inf)  # the sequence that Serve was last seen to agree with, and when
        self._busy = threading.Lock()
        self._replicas: dict[str, set[str]] = {}  # of a rollout's canary, as far as they were seen
        self._rollout: str | None = None  # what the following is about
        self._on_trial = False
        self._log: Following | None = None  # what was read for it, from its first look on
        self._seen: object = None  # what the last tick found, as far as it can change what the next one does
        self._ticked, self._rest_s = -math.inf, _TICK_S

    @property
    def pause_s(self) -> float:
        """Machine time until the next turn."""
        return _TRIAL_S if self._on_trial else self._rest_s

    def turn(self) -> None:
        """A tick, unless nothing has happened that it could act on, and the last one was not long ago."""
        if time.monotonic() - self._ticked >= self._rest_s or self._glance() != self._seen or self._has_news():
            self.tick()

    def tick(self) -> dict[str, Any]:
        """One look. Returns phase, step, `settled` (Serve agrees with the saved state) and what is in the way."""
        with self._busy:
            self._ticked = time.monotonic()
            self._seen = self._glance()
            try:
                told = self._look(self._held())
            except LeaseLost as exc:  # at the start, or in the middle: another has taken over, and nothing was saved
                self._lease = None
                told = {"phase": None, "settled": False, "trouble": str(exc)}
            self._rest_s = _REST_S if told["settled"] and told["phase"] is None else _TICK_S
            return told

    def leave(self) -> None:
        """Give the lease up, so that the next controller need not wait for its end. No tick comes after."""
        with self._busy:
            if self._lease is not None:
                self._store.release(self._lease)

    def _held(self) -> Lease:
        """The lease, for some time yet. It is written when half of it is over. Raises: LeaseLost."""
        now = time.time()
        if self._lease is None or not _LEASE_S / 2 <= self._lease.expires - now <= _LEASE_S:
            self._lease = self._store.acquire(f"rollout:{self._name}", self._holder, _LEASE_S, now)
        return self._lease

    def _glance(self) -> object:
        """What a tick depends on and the state database tells, for comparison: serving, the rollout, the look due."""
        with self._store.read() as tx:
            row, served = tx.open_rollout(self._name), tx.serving(self._name)
            order = (served.fence, served.seq) if served else None
            if row is None:
                return order, None
            state, at = CanaryState.from_dict(row.state), None
            if state.is_looked_at:
                at = due(orders.plan_of(row).look_s, orders.decision_time(tx, self._project, time.time()))
        return order, (row.id, state, at)

    def _has_news(self) -> bool:
        """Whether the log of the version on trial has grown since the last look."""
        return self._on_trial and self._log is not None and self._log.has_news()

    def _look(self, lease: Lease) -> dict[str, Any]:
        self._fault(Point.LEASED)
        with self._store.read() as tx:
            row, served, now = (
                tx.open_rollout(self._name),
                tx.serving(self._name),
                orders.decision_time(tx, self._project, time.time()),
            )
        if served is None:
            return {"phase": None, "settled": True, "trouble": None}
        if row is None or row.id != self._rollout:
            self._forget(row.id if row else None)
        if row is not None:
            self._hear(row.id, now, lease)
            self._judge(row.id, now, lease)
        trouble = self._make_so(self._want(now, lease), _AGREED_S if row is None else _TICK_S)
        self._fault(Point.APPLIED)
        if row is not None:
            trouble = self._observe(row.id, now, lease) or trouble
        self._put_back_aliases(lease)
        with self._store.read() as tx:
            open_row = tx.open_rollout(self._name)
        phase = CanaryState.from_dict(open_row.state).phase if open_row else None
        self._fault(Point.DONE)
        return {"phase": phase and str(phase), "settled": trouble is None and phase in _SETTLED, "trouble": trouble}

    def _forget(self, rollout: str | None) -> None:
        """Another rollout is open now, or none: let go of what was kept for the last one."""
        self._rollout, self._on_trial, self._log = rollout, False, None
        for kept in (self._since, self._replicas):
            kept.clear()

    # deciding

    def _hear(self, rollout: str, now: float, lease: Lease) -> None:
        """See what a rollout that waits is waiting for: people's approval, the schedule."""
        with self._store.read() as tx:
            row = tx.rollout(rollout)
            if row is None or Phase(row.state["phase"]) not in (Phase.PENDING, Phase.STARTING):
                return
            said = orders.standing(tx, row, machine_now=time.time())
        plan, before = orders.plan_of(row), CanaryState.from_dict(row.state)
        while (step := following(plan, before, Known(said=said), now=now))[0] != before:
            after, why = step
            self._save(rollout, before, after, lease, why=why)
            before = after

    def _judge(self, rollout: str, now: float, lease: Lease) -> None:
        """Look at the evidence when a look is due, and save what was seen and what follows from it.

        Rows and labels that come after the look that they belong to are looked at as soon as they are there, by the
        same look once more: it may take a version back, and hurries no step."""
        with self._store.read() as tx:
            row, looked = tx.rollout(rollout), tx.cursor(self._name, look_name(rollout))
        if row is None:
            return
        plan, before = orders.plan_of(row), CanaryState.from_dict(row.state)
        at = look_at(plan, before, created=row.created, now=now)
        self._on_trial = compares(plan, before)
        if at is None:
            return
        log, again = self._log or Following(), at <= looked.at
        self._log = log
        if again and not log.has_news():
            return
        seen = read(self._project, row, plan, at, scan=log.scan)
        n = seen.n_known
        if again and n == looked.number:
            return
        analysis = look(self._store, self._project, row, plan, seen)
        after, why = following(plan, before, Known(looked=Looked(analysis, at, again)), now=now)
        self._save(rollout, before, after, lease, why=why, analysis=analysis, looked=(at, n))

    def _save(
        self,
        rollout: str,
        before: CanaryState,
        after: CanaryState,
        lease: Lease,
        *,
        why: str,
        analysis: Analysis | None = None,
        looked: tuple[float, int] | None = None,
    ) -> None:
        """Save a look and the transition that follows, with its entry in the ledger, unless somebody else's came first.

        Args: looked: decision time of the look, and how many rows of the log it took in. why: for the ledger."""
        self._fault(Point.DECIDING)

        def save(tx: Tx) -> None:
            row = tx.rollout(rollout)
            if row is None or CanaryState.from_dict(row.state) != before:
                return
            seen = None
            if looked is not None:
                tx.save_cursor(self._name, look_name(rollout), looked[1], looked[0])
            if looked is not None and analysis is not None:
                seen = {"at": looked[0], "analysis": analysis.to_dict()}
            if after == before:
                orders.keep_look(tx, row, seen)
                return
            kind = steps.kind(orders.plan_of(row), after)
            evidence = {} if seen is None else {"analysis": seen["analysis"]}
            orders.transition(
                tx, row, after, kind=kind, who=orders.US, why=why, machine_now=time.time(), evidence=evidence, look=seen
            )

        self._guarded(lease, save)

    # making it so

    def _make_so(self, wanted: ServingRow | None, agreed_s: float) -> str | None:
        """Have Serve agree with what is wanted, unless it did so within `agreed_s`; what is in the way, or None."""
        sequence = wanted.seq if wanted else 0
        if self._agreed[0] == sequence and time.monotonic() - self._agreed[1] < agreed_s:
            return None
        trouble = try_apply(self._store, self._dashboard, holder=self._holder, project=self._name)
        if trouble is None:
            self._agreed = sequence, time.monotonic()
        return trouble

    def _want(self, now: float, lease: Lease) -> ServingRow | None:
        """Save the serving configuration that follows from the open rollout, or from there being none."""
        with self._store.read() as tx:
            served, wanted = tx.serving(self._name), traffic.wanted_configuration(tx, self._name, now=now)
        if served is not None and wanted == Wanted.of(served) and served.fence >= lease.fence:
            return served

        def save(tx: Tx) -> ServingRow | None:
            orders.save_wanted(tx, self._name, now=now, fence=lease.fence)
            return tx.serving(self._name)

        return self._guarded(lease, save)

    def _observe(self, rollout: str, now: float, lease: Lease) -> str | None:
        """What Serve shows of the rollout, taken into its state; what is in the way, or None."""
        with self._store.read() as tx:
            row, served = tx.rollout(rollout), tx.serving(self._name)
        if row is None or served is None:
            return None
        plan, before, wanted = orders.plan_of(row), CanaryState.from_dict(row.state), Wanted.of(served)
        seen, trouble = Replicas(), None
        if before.phase is Phase.PROMOTING:
            replicas = replica_status(self._name, wanted)
            if self._persists(rollout, any(str(row.version) in r["failed"] for r in replicas), _UNHEALTHY_S):
                seen = Replicas(trouble=f"stable's replicas cannot load v{row.version}")
            elif wanted.stable is None or wanted.stable.version != row.version:
                if replicas and all(row.version in r["loaded"] for r in replicas):
                    self._fault(Point.OBSERVED)
                    self._guarded(lease, lambda tx: traffic.flip(tx, rollout))
                trouble = f"stable's replicas are loading v{row.version}"
            else:
                seen = Replicas(answering=bool(replicas) and all(r["stable"] == row.version for r in replicas))
                trouble = None if seen.answering else f"stable's replicas are flipping to v{row.version}"
        elif before.phase is Phase.BAKING:
            status, message = application_states(self._dashboard).get(self._name, ("absent", ""))
            if self._persists(f"{rollout} bakes", status in ("UNHEALTHY", "DEPLOY_FAILED"), _UNHEALTHY_S):
                seen = Replicas(trouble=f"stable's replicas do not live with it: {message[-200:]}")
        elif before.phase is Phase.STARTING or before.on_trial is not None:
            versions = before.live if before.arms else (row.version,)
            seen, trouble = self._see(rollout, versions, starts=before.phase is Phase.STARTING)
        after, why = following(plan, before, Known(replicas=seen), now=now)
        if after != before:
            self._fault(Point.OBSERVED)
            self._save(rollout, before, after, lease, why=why)
            return f"the rollout is {after.phase} now"  # one more tick applies what follows from it
        return trouble

    def _see(self, rollout: str, versions: Collection[int], *, starts: bool) -> tuple[Replicas, str | None]:
        """What the applications of the versions on trial show, and what is in the way, or None."""
        states, ready, crashed, troubles = application_states(self._dashboard), set(), set(), []
        for version in versions:
            name = applications.version_application(self._name, version)
            status, message = states.get(name, ("absent", ""))
            sick = self._persists(f"{rollout} {name}", status == "UNHEALTHY", _UNHEALTHY_S)
            stuck = self._persists(f"{rollout} {name} starts", starts and status != "RUNNING", _START_S)
            if status == "DEPLOY_FAILED" or sick or stuck or self._keeps_dying(f"{rollout} {name}", name):
                crashed.add(version)
            elif status == "RUNNING":
                ready.add(version)
            else:
                troubles.append(f"{name} is {status}: {message[-200:]}")
        return Replicas(ready, crashed), "; ".join(troubles) or None

    def _keeps_dying(self, rollout: str, application: str) -> bool:
        """Whether the canary's process was replaced too often: Serve does so for ever, and calls it running between."""
        alive = live_replicas(self._dashboard, application)
        seen = self._replicas.setdefault(rollout, set())
        seen |= alive
        return len(seen - alive) >= _DEATHS

    def _persists(self, what: str, so: bool, limit_s: float) -> bool:
        """Whether something has been so at every look for `limit_s` of machine time: one bad look ends nothing."""
        if not so:
            self._since.pop(what, None)
            return False
        return time.monotonic() - self._since.setdefault(what, time.monotonic()) > limit_s

    def _put_back_aliases(self, lease: Lease) -> None:
        """Registry aliases are derived: `champion` is stable, `challenger` the canary. Put back what was moved."""
        with self._store.read() as tx:
            served = tx.serving(self._name)
        if served is None or not served.spec.get("stable"):
            return
        wanted = (served.spec["stable"]["version"], served.spec.get("canary"))
        if wanted == self._aliased and time.monotonic() - self._aliases_checked < _ALIAS_S:
            return
        self._fault(Point.ALIASING)
        with self._store.read() as tx:
            tx.guard(lease)  # what was read before a stall may be old by now
        if self._registry is None:
            self._registry = Registry(self._project, self._store)
        for alias, version in zip(("champion", "challenger"), wanted, strict=True):
            if self._registry.alias(alias) != version:
                moved = self._aliased == wanted
                if version is None:
                    self._registry.delete_alias(alias)
                else:
                    self._registry.set_alias(alias, version)
                if moved:
                    why = f"alias {alias!r} was moved by hand; put back to {version}"
                    self._guarded(
                        lease,
                        lambda tx, alias=alias, why=why: ledger.append(  # type: ignore[misc]
                            tx, self._name, "alias put back", alias, orders.US, why, {}, time.time()
                        ),
                    )
        self._aliased, self._aliases_checked = wanted, time.monotonic()

    def _guarded(self, lease: Lease, work: Callable[[Tx], T]) -> T:
        """A write transaction that fails when another controller has taken over. Raises: LeaseLost."""

        def run(tx: Tx) -> T:
            tx.guard(lease)
            result = work(tx)
            self._fault(Point.COMMITTING)
            return result

        result = self._store.run(run)
        self._fault(Point.COMMITTED)
        return result


def look_name(rollout: str) -> str:
    """Cursor of a rollout's last look: its decision time, and how many rows of the log it took in."""
    return f"look:{rollout}"
