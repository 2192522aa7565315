"""The rollout controller: looks, advances the state, saves it, then makes the world agree with it.

Level-triggered: every tick derives the wanted serving configuration from the saved state and applies it, so a lost
call, a killed controller or a restarted Serve heal at the next tick. What is decided, and what follows from it, is
decided elsewhere (`canary`, `schedule`, `approval`, `traffic`, `orders`); here it is carried.
"""

from __future__ import annotations

import math
import os
import threading
import time
import uuid
from collections.abc import Callable
from enum import StrEnum
from typing import Any, TypeVar

import ray

from mlops_ray import ledger
from mlops_ray.cluster.background import keep_doing
from mlops_ray.config import RolloutPlan, parse_portable
from mlops_ray.errors import LeaseLost
from mlops_ray.monitoring.on_ray import monitor_name
from mlops_ray.rollout import canary, experiment, orders, schedule, traffic
from mlops_ray.rollout.analysis import Analysis
from mlops_ray.rollout.canary import CanaryState, Phase
from mlops_ray.rollout.looks import due, look
from mlops_ray.serving import applications
from mlops_ray.serving.log.on_collectors import ensure_collectors
from mlops_ray.serving.on_apply import application_states, live_replicas, replica_status, try_apply
from mlops_ray.serving.versions import Wanted
from mlops_ray.state import Lease, ServingRow, Store, Tx
from mlops_ray.training.on_registry import Registry

T = TypeVar("T")

# Machine time between looks of the actor's own loop, and the life of its lease.
_TICK_S = 2.0
_LEASE_S = 20.0
# Machine time after which a version that is unwell, or cannot be loaded, counts as crashed; and one that never starts.
_UNHEALTHY_S = 30.0
_START_S = 300.0
# Machine time between two looks at the collectors: for so long a new node's records wait at most.
_COLLECTORS_S = 5.0
# Machine time after which live replicas have heard of what was saved, at most.
_GLANCE_S = 0.1
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
    does nothing between calls: `RunningController` keeps looking, `ControllerActor` is that on Ray."""

    def __init__(self, text: str, dashboard: str, *, fault: Callable[[Point], None] = _no_fault) -> None:
        """Args: text: the project file, as `portable` wrote it. dashboard: of the cluster.

        fault: called at each `Point`; a test kills the controller there."""
        self._text, self._project = text, parse_portable(text, env=os.environ)
        self._name = self._project.project
        self._dashboard, self._fault = dashboard, fault
        self._store = Store.open(self._project.storage.state)
        self._holder = f"controller-{os.getpid()}-{uuid.uuid4().hex[:8]}"
        self._registry: Registry | None = None
        self._aliases_checked = -math.inf
        self._aliased: tuple[int | None, int | None] | None = None
        self._since: dict[str, float] = {}
        self._agreed = (-1, -math.inf)  # the sequence that Serve was last seen to agree with, and when
        self._busy = threading.Lock()
        self._replicas: dict[str, set[str]] = {}  # of a rollout's canary, as far as they were seen

    def tick(self) -> dict[str, Any]:
        """One look. Returns phase, step, `settled` (Serve agrees with the saved state) and what is in the way."""
        with self._busy:
            try:
                lease = self._store.acquire(f"rollout:{self._name}", self._holder, _LEASE_S, time.time())
                return self._look(lease)
            except LeaseLost as exc:  # at the start, or in the middle: another has taken over, and nothing was saved
                return {"phase": None, "settled": False, "trouble": str(exc)}

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
        if row is not None:
            self._hear(row.id, now, lease)
            self._judge(row.id, now, lease)
        trouble = self._make_so(self._want(now, lease))
        self._fault(Point.APPLIED)
        if row is not None:
            trouble = self._observe(row.id, now, lease) or trouble
        self._put_back_aliases(lease)
        with self._store.read() as tx:
            open_row = tx.open_rollout(self._name)
        phase = CanaryState.from_dict(open_row.state).phase if open_row else None
        self._fault(Point.DONE)
        return {"phase": phase and str(phase), "settled": trouble is None and phase in _SETTLED, "trouble": trouble}

    # deciding

    def _hear(self, rollout: str, now: float, lease: Lease) -> None:
        """See what a rollout that waits is waiting for: people's approval, the schedule."""
        with self._store.read() as tx:
            row = tx.rollout(rollout)
            if row is None:
                return
            said = orders.standing(tx, row, now)
        plan, before = orders.plan_of(row), CanaryState.from_dict(row.state)
        shut = schedule.closed(plan.schedule, now)
        now = max(now, before.since)
        after = canary.heard(plan, before, approved=said.approved, rejected=said.rejected, may_go=shut is None, now=now)
        if after != before:
            asked = plan.approval != "none" and before.phase is Phase.PENDING
            self._save(rollout, before, after, lease, why=str(said) if asked else "the schedule is open")
        decided = canary.at_once(plan, after)
        if decided != after:
            self._save(rollout, after, decided, lease, why="the plan compares nothing: `mode: immediate`")

    def _judge(self, rollout: str, now: float, lease: Lease) -> None:
        """Look at the evidence when a look is due, and save what was seen and what follows from it."""
        with self._store.read() as tx:
            row, looked = tx.rollout(rollout), tx.cursor(self._name, f"look:{rollout}").at
        if row is None:
            return
        plan, before = orders.plan_of(row), CanaryState.from_dict(row.state)
        at = due(plan.look_s, now)
        if not before.is_looked_at or (plan.mode == "immediate" and before.phase is not Phase.BAKING):
            return
        if at <= max(looked, row.created):
            return
        analysis = look(self._store, self._project, row, plan, at)
        may_go, why = schedule.closed(plan.schedule, at) is None, None
        if before.arms:
            after = experiment.advance(plan, before, analysis, now=at, may_go=may_go)
            why = experiment.in_words(before, after, analysis)
        else:
            after = canary.advance(plan, before, analysis.verdict, now=at, may_go=may_go, exhausted=analysis.exhausted)
        self._save(rollout, before, after, lease, why=why, analysis=analysis, looked=at)

    def _save(
        self,
        rollout: str,
        before: CanaryState,
        after: CanaryState,
        lease: Lease,
        *,
        why: str | None = None,
        analysis: Analysis | None = None,
        looked: float | None = None,
    ) -> None:
        """Save a look and the transition that follows, with its entry in the ledger, unless somebody else's came first.

        Args: looked: decision time of the look. why: for the ledger; None: the reason, or what the analysis says."""
        self._fault(Point.DECIDING)

        def save(tx: Tx) -> None:
            row = tx.rollout(rollout)
            if row is None or CanaryState.from_dict(row.state) != before:
                return
            seen = None
            if looked is not None:
                tx.save_cursor(self._name, f"look:{rollout}", 0, looked)
            if analysis is not None:
                seen = {"at": looked, "analysis": analysis.to_dict()}
            if after == before:
                orders.keep_look(tx, row, seen)
                return
            share = canary.canary_share(orders.plan_of(row), after)
            orders.transition(
                tx,
                row,
                after,
                kind=f"rollout {after.phase}" + (f" at {share:g}" if share and after.phase is Phase.RAMPING else ""),
                who=orders.US,
                why=why or _in_words(after, analysis),
                evidence={} if seen is None else {"analysis": seen["analysis"]},
                look=seen,
            )

        self._guarded(lease, save)

    # making it so

    def _make_so(self, wanted: ServingRow | None) -> str | None:
        """Have Serve agree with what is wanted, unless it was just seen to; what is in the way, or None."""
        sequence = wanted.seq if wanted else 0
        if self._agreed[0] == sequence and time.monotonic() - self._agreed[1] < _TICK_S:
            return None
        trouble = try_apply(self._store, self._dashboard, holder=self._holder)
        if trouble is None:
            self._agreed = sequence, time.monotonic()
        return trouble

    def _want(self, now: float, lease: Lease) -> ServingRow | None:
        """Save the serving configuration that follows from the open rollout, or from there being none."""

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
        after, why, trouble = before, None, None
        if before.phase is Phase.PROMOTING:
            replicas = replica_status(self._name, wanted)
            if self._persists(rollout, any(str(row.version) in r["failed"] for r in replicas), _UNHEALTHY_S):
                after, why = canary.fell(before, now=now), f"stable's replicas cannot load v{row.version}"
            elif wanted.stable is None or wanted.stable.version != row.version:
                if replicas and all(row.version in r["loaded"] for r in replicas):
                    self._fault(Point.OBSERVED)
                    self._guarded(lease, lambda tx: traffic.flip(tx, rollout))
                trouble = f"stable's replicas are loading v{row.version}"
            else:
                answering = bool(replicas) and all(r["stable"] == row.version for r in replicas)
                after, why = canary.flipped(plan, before, answering=answering, now=now), "every replica answers with it"
                trouble = None if answering else f"stable's replicas are flipping to v{row.version}"
        elif before.phase is Phase.BAKING:
            status, message = application_states(self._dashboard).get(self._name, ("absent", ""))
            if self._persists(f"{rollout} bakes", status in ("UNHEALTHY", "DEPLOY_FAILED"), _UNHEALTHY_S):
                after, why = canary.fell(before, now=now), f"stable's replicas do not live with it: {message[-200:]}"
        elif before.arms and (before.phase is Phase.STARTING or before.on_trial is not None):
            after, trouble = self._see_arms(rollout, plan, before, now)
            why = experiment.in_words(before, after)
        elif before.phase is Phase.STARTING or before.on_trial is not None:
            name = applications.version_application(self._name, row.version)
            status, message = application_states(self._dashboard).get(name, ("absent", ""))
            sick = self._persists(rollout, status == "UNHEALTHY", _UNHEALTHY_S)
            stuck = self._persists(f"{rollout} starts", before.phase is Phase.STARTING, _START_S)
            crashed = status == "DEPLOY_FAILED" or sick or stuck or self._keeps_dying(rollout, name)
            after = canary.started(plan, before, ready=status == "RUNNING", crashed=crashed, now=now)
            trouble = f"{name} is {status}: {message[-200:]}" if after == before and status != "RUNNING" else None
        if after != before:
            self._fault(Point.OBSERVED)
            self._save(rollout, before, after, lease, why=why)
            return f"the rollout is {after.phase} now"  # one more tick applies what follows from it
        return trouble

    def _see_arms(
        self, rollout: str, plan: RolloutPlan, before: CanaryState, now: float
    ) -> tuple[CanaryState, str | None]:
        """The state after a look at each arm's application, and what is in the way, or None."""
        states, ready, crashed, troubles = application_states(self._dashboard), set(), set(), []
        starts = before.phase is Phase.STARTING
        for version in before.live:
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
        after = experiment.started(plan, before, ready=ready, crashed=crashed, now=now)
        return after, "; ".join(troubles) or None

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


class RunningController(Controller):
    """A controller that looks by itself, sees to the collectors, and tells replicas at once what was saved."""

    def __init__(self, text: str, dashboard: str) -> None:
        super().__init__(text, dashboard)
        self._told = (-1, -1)
        keep_doing(self.tick, every_s=_TICK_S, what=f"controller of {self._name}")
        keep_doing(self._see_to_collectors, every_s=_COLLECTORS_S, what=f"collectors of {self._name}")
        keep_doing(self._tell, every_s=_GLANCE_S, what=f"controller of {self._name}, telling replicas")

    def ping(self) -> int:
        """Process id."""
        return os.getpid()

    def text(self) -> str:
        """The project file that this actor was made with."""
        return self._text

    def _see_to_collectors(self) -> None:
        """Nodes come and go, and collectors may hang: see to them beside the rollout, which must not wait for that."""
        ensure_collectors(self._text, self._project, monitor_name(self._name))

    def _tell(self) -> None:
        """Tell live replicas what is wanted as soon as it is saved, whoever saved it and whatever a tick is busy with:
        an operator's `abort` must not wait for an analysis. A database tells nobody that it has changed."""
        with self._store.read() as tx:
            row = tx.serving(self._name)
        wanted = Wanted.of(row) if row else Wanted()
        if wanted.order > self._told and replica_status(self._name, wanted):
            self._told = wanted.order


def _in_words(after: CanaryState, analysis: Analysis | None) -> str:
    """Why a transition was made, for the ledger."""
    if analysis is not None:
        return "; ".join(metric.in_words() for metric in analysis.metrics)
    return str(after.reason) or "the canary is ready"


ControllerActor = ray.remote(num_cpus=0, max_restarts=-1, max_task_retries=-1)(RunningController)


def controller_name(project: str) -> str:
    """Name of the project's rollout controller in our namespace."""
    return f"controller:{project}"
