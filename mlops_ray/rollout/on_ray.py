"""The rollout controller: looks, advances the state, saves it, then makes the world agree with it.

Level-triggered: every tick derives the wanted serving configuration from the saved state and applies it, so a lost
call, a killed controller or a restarted Serve heal at the next tick.
"""

from __future__ import annotations

import logging
import math
import os
import threading
import time
import uuid
from dataclasses import replace
from typing import Any

import numpy as np
import polars as pl
import ray

from mlops_ray import ledger
from mlops_ray.config import Project, RolloutPlan, parse_portable
from mlops_ray.data import lake
from mlops_ray.errors import ApprovalPending, IllegalMove, LeaseLost
from mlops_ray.monitoring.labels import addressed, joined
from mlops_ray.monitoring.on_ray import decision_now, monitor_name
from mlops_ray.rollout import canary
from mlops_ray.rollout.analysis import Analysis, Outcomes, analyse
from mlops_ray.rollout.canary import CanaryState, Phase, Reason
from mlops_ray.serving import applications
from mlops_ray.serving.log import tables as log
from mlops_ray.serving.log.on_collectors import ensure_collectors
from mlops_ray.serving.on_apply import application_states, live_replicas, replica_status, try_apply
from mlops_ray.serving.places import labels_uri, log_uri
from mlops_ray.serving.versions import Held, Wanted
from mlops_ray.state import Lease, RolloutRow, ServingRow, Store, Tx, VersionRow
from mlops_ray.training.on_registry import Registry

_log = logging.getLogger(__name__)

# Machine time between looks of the actor's own loop, and the life of its lease.
_TICK_S = 2.0
_LEASE_S = 20.0
# Machine time after which a canary that is unwell, or cannot be loaded, counts as crashed; and one that never starts.
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


class Controller:
    """Plain class; `ControllerActor` is the same on Ray. One project; the lease keeps a second one waiting."""

    def __init__(self, text: str, dashboard: str) -> None:
        self._text, self._project = text, parse_portable(text, env=os.environ)
        self._name = self._project.project
        self._dashboard = dashboard
        self._store = Store.open(self._project.storage.state)
        self._holder = f"controller-{os.getpid()}-{uuid.uuid4().hex[:8]}"
        self._registry: Registry | None = None
        self._aliases_checked = -math.inf
        self._aliased: tuple[int | None, int | None] | None = None
        self._since: dict[str, float] = {}
        self._agreed = (-1, -math.inf)  # the sequence that Serve was last seen to agree with, and when
        self._busy = threading.Lock()
        self._replicas: dict[str, set[str]] = {}  # of a rollout's canary, as far as they were seen
        works = {"controller": self._keep_ticking, "collectors": self._keep_collectors, "teller": self._keep_telling}
        for name, work in works.items():
            threading.Thread(target=work, name=name, daemon=True).start()

    def ping(self) -> int:
        """Process id."""
        return os.getpid()

    def text(self) -> str:
        """The project file that this actor was made with."""
        return self._text

    def tick(self) -> dict[str, Any]:
        """One look. Returns phase, step, `settled` (Serve agrees with the saved state) and what is in the way."""
        with self._busy:
            try:
                lease = self._store.acquire(f"rollout:{self._name}", self._holder, _LEASE_S, time.time())
            except LeaseLost as exc:
                return {"phase": None, "settled": False, "trouble": str(exc)}
            return self._look(lease)

    def _keep_ticking(self) -> None:
        pause = threading.Event()
        while not pause.wait(_TICK_S):
            try:
                self.tick()
            except Exception as exc:  # noqa: BLE001 - outermost loop: state is saved, the next tick tries again
                _log.warning("controller of %s: %s", self._name, exc)

    def _keep_collectors(self) -> None:
        """Nodes come and go, and collectors may hang: see to them beside the rollout, which must not wait for that."""
        pause = threading.Event()
        while not pause.wait(_COLLECTORS_S):
            try:
                ensure_collectors(self._text, self._project, monitor_name(self._name))
            except Exception as exc:  # noqa: BLE001 - outermost loop: the next look tries again
                _log.warning("collectors of %s: %s", self._name, exc)

    def _keep_telling(self) -> None:
        """Tell live replicas what is wanted as soon as it is saved, whoever saved it and whatever a tick is busy with:
        an operator's `abort` must not wait for an analysis."""
        pause, told = threading.Event(), (-1, -1)
        while not pause.wait(_GLANCE_S):  # a database tells nobody that it has changed
            try:
                with self._store.read() as tx:
                    row = tx.serving(self._name)
                wanted = Wanted.of(row) if row else Wanted()
                if wanted.order > told and replica_status(self._name, wanted):
                    told = wanted.order
            except Exception as exc:  # noqa: BLE001 - outermost loop: the next tick tells them too
                _log.warning("controller of %s cannot tell its replicas: %s", self._name, exc)

    def _look(self, lease: Lease) -> dict[str, Any]:
        with self._store.read() as tx:
            row, served, now = tx.open_rollout(self._name), tx.serving(self._name), _now(tx, self._project)
        if served is None:
            return {"phase": None, "settled": True, "trouble": None}
        if row is not None:
            self._advance(row, now, lease)
        trouble = self._make_so(self._want(lease))
        if row is not None:
            trouble = self._observe(row.id, lease) or trouble
        self._put_back_aliases()
        with self._store.read() as tx:
            open_row = tx.open_rollout(self._name)
        state = CanaryState.from_dict(open_row.state) if open_row else None
        settled = trouble is None and (state is None or state.phase in (Phase.RAMPING, Phase.PAUSED))
        return {"phase": state and str(state.phase), "settled": settled, "trouble": trouble}

    # deciding

    def _advance(self, row: RolloutRow, now: float, lease: Lease) -> None:
        """Look at the evidence when a look is due, and save what follows from it."""
        plan, state = RolloutPlan.model_validate(row.plan), CanaryState.from_dict(row.state)
        at = math.floor(now / plan.look_s) * plan.look_s
        with self._store.read() as tx:
            looked = tx.cursor(self._name, f"look:{row.id}").at
        if state.phase is not Phase.RAMPING or at <= max(looked, row.created):
            return
        analysis = analyse(plan, self._outcomes(row, plan, at))
        after = canary.advance(plan, state, analysis.verdict, now=at)

        def save(tx: Tx) -> None:
            tx.save_cursor(self._name, f"look:{row.id}", 0, at)
            self._save(tx, row.id, state, after, at, analysis)

        self._guarded(lease, save)

    def _save(
        self, tx: Tx, rollout: str, before: CanaryState, after: CanaryState, at: float, analysis: Analysis | None
    ) -> None:
        """Save a transition and its entry in the ledger, unless somebody else's came first."""
        row = tx.rollout(rollout)
        if row is None or after == before or CanaryState.from_dict(row.state) != before:
            return
        ended = at if after.phase in canary.ENDED else None
        tx.save_rollout(replace(row, state=after.to_dict(), ended=ended))
        if after.phase is Phase.ROLLED_BACK:
            _back_to_stable(tx, row)
        evidence: dict[str, Any] = {"rollout": rollout, "state": after.to_dict()}
        why = str(after.reason) or "the canary is ready"
        if analysis is not None:
            evidence["analysis"] = analysis.to_dict()
            why = "; ".join(m.in_words() for m in analysis.metrics)
        share = canary.canary_share(RolloutPlan.model_validate(row.plan), after)
        kind = f"rollout {after.phase}" + (f" at {share:g}" if share else "")
        ledger.append(tx, self._name, kind, f"v{row.version}", "mlops_ray", why, evidence, at)

    def _outcomes(self, row: RolloutRow, plan: RolloutPlan, at: float) -> Outcomes:
        """Rows that this rollout's canary was assigned before `at`, with the labels known by then."""
        schema = log.prediction_schema(self._project)
        columns = ["prediction_id", "at", "event_time", "key", "stable_score", "canary_score", "rollout"]
        wanted = schema.empty_table().select(columns).schema
        since = log.day_of(row.created)
        predictions = lake.scan(log_uri(self._project), since, log.day_of(at), wanted)
        labels = lake.scan(labels_uri(self._project), since, log.day_of(at), log.label_schema(self._project))
        labels = addressed(labels, predictions)  # while the rows of all versions are there
        mine = predictions.filter(pl.Series(pl.from_arrow(predictions["rollout"])).eq_missing(row.id).to_arrow())
        rows = pl.DataFrame(pl.from_arrow(joined(mine, labels, known_by=at, take="first")))
        rows = rows.filter(pl.col("event_time").dt.epoch("us") < round(at * 1e6))

        def looks(column: str) -> np.ndarray[Any, np.dtype[np.int64]]:
            seconds = rows[column].dt.epoch("us").fill_null(0).to_numpy() / 1e6
            return np.ceil(seconds / plan.look_s).astype(np.int64)

        # Losses of other tasks are not compared yet: their canaries can fail, and be promoted by order only.
        known = rows["label"] if self._project.task == "binary" else pl.Series([None] * len(rows), dtype=pl.Float64)
        return Outcomes(
            keys=rows["key"].to_numpy(),
            seen=looks("event_time"),
            labelled=looks("label_time"),
            label=known.cast(pl.Float64).fill_null(float("nan")).to_numpy(),
            stable=rows["stable_score"].to_numpy(),
            canary=rows["canary_score"].cast(pl.Float64).fill_null(float("nan")).to_numpy(),
        )

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

    def _want(self, lease: Lease) -> ServingRow | None:
        """Save the serving configuration that follows from the open rollout, or from there being none."""

        def save(tx: Tx) -> ServingRow | None:
            served, row = tx.serving(self._name), tx.open_rollout(self._name)
            if served is None:
                return None
            wanted = wanted_configuration(Wanted.of(served), row, tx)
            return tx.save_serving(self._name, wanted.spec(), max(lease.fence, served.fence))

        found: ServingRow | None = self._guarded(lease, save)
        return found

    def _observe(self, rollout: str, lease: Lease) -> str | None:
        """What Serve shows of the rollout, taken into its state; what is in the way, or None."""
        with self._store.read() as tx:
            row, served = tx.rollout(rollout), tx.serving(self._name)
        if row is None or served is None:
            return None
        before, wanted = CanaryState.from_dict(row.state), Wanted.of(served)
        if before.phase in canary.ENDED:
            return None
        after, trouble = before, None
        if before.phase is Phase.PROMOTING:
            replicas = replica_status(self._name, wanted)
            if self._persists(rollout, any(str(row.version) in r["failed"] for r in replicas), _UNHEALTHY_S):
                after = replace(before, phase=Phase.ROLLED_BACK, reason=Reason.CRASH)
            elif wanted.stable is None or wanted.stable.version != row.version:
                if replicas and all(row.version in r["loaded"] for r in replicas):
                    self._guarded(lease, lambda tx: flip(tx, rollout))
                trouble = f"stable's replicas are loading v{row.version}"
            else:
                answering = bool(replicas) and all(r["stable"] == row.version for r in replicas)
                after = canary.flipped(before, answering=answering)
                trouble = None if answering else f"stable's replicas are flipping to v{row.version}"
        else:
            name = applications.version_application(self._name, row.version)
            status, message = application_states(self._dashboard).get(name, ("absent", ""))
            sick = self._persists(rollout, status == "UNHEALTHY", _UNHEALTHY_S)
            stuck = self._persists(f"{rollout} starts", before.phase is Phase.STARTING, _START_S)
            crashed = status == "DEPLOY_FAILED" or sick or stuck or self._keeps_dying(rollout, name)
            after = canary.started(before, ready=status == "RUNNING", crashed=crashed)
            trouble = f"{name} is {status}: {message[-200:]}" if after == before and status != "RUNNING" else None
        if after != before:
            at = row.created if before.phase is Phase.STARTING else before.since
            self._guarded(lease, lambda tx: self._save(tx, rollout, before, after, at, None))
            return f"the rollout is {after.phase} now"  # one more tick applies what follows from it
        return trouble

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

    def _put_back_aliases(self) -> None:
        """Registry aliases are derived: `champion` is stable, `challenger` the canary. Put back what was moved."""
        with self._store.read() as tx:
            served = tx.serving(self._name)
        if served is None or not served.spec.get("stable"):
            return
        wanted = (served.spec["stable"]["version"], served.spec.get("canary"))
        if wanted == self._aliased and time.monotonic() - self._aliases_checked < _ALIAS_S:
            return
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
                    self._store.run(
                        lambda tx, alias=alias, why=why: ledger.append(  # type: ignore[misc]
                            tx, self._name, "alias put back", alias, "mlops_ray", why, {}, time.time()
                        )
                    )
        self._aliased, self._aliases_checked = wanted, time.monotonic()

    def _guarded(self, lease: Lease, work: Any) -> Any:
        """A write transaction that fails when another controller has taken over."""

        def run(tx: Tx) -> Any:
            tx.guard(lease)
            return work(tx)

        return self._store.run(run)


def wanted_configuration(served: Wanted, row: RolloutRow | None, tx: Tx) -> Wanted:
    """Serving configuration that follows from the open rollout, or from there being none; reads versions only.

    It never decides which version is stable: that is written in the transaction that promotes or rolls back.
    """
    calm = replace(served, canary=None, share=0.0, salt="", shadow=False)
    if row is None:
        return calm
    plan, state = RolloutPlan.model_validate(row.plan), CanaryState.from_dict(row.state)
    if state.phase in (Phase.STARTING, Phase.RAMPING, Phase.PAUSED):
        share = canary.canary_share(plan, state)
        return replace(served, canary=row.version, share=share, salt=row.id, warm=())
    if state.phase is Phase.PROMOTING and row.version not in {h.version for h in served.held}:
        return replace(calm, warm=(_held(tx, row.project, row.version),))
    return calm


def flip(tx: Tx, rollout: str) -> None:
    """Want the promoted version as stable, the one before it warm, unless an operator has ended the rollout since.

    Orders are not given under the controller's lease, so the phase is looked at in the transaction that writes.
    """
    row = tx.rollout(rollout)
    served = tx.serving(row.project) if row else None
    if row is None or served is None or CanaryState.from_dict(row.state).phase is not Phase.PROMOTING:
        return
    wanted, target = Wanted.of(served), _held(tx, row.project, row.version)
    spec = replace(wanted, stable=target, warm=tuple(h for h in wanted.held if h != target)).spec()
    tx.save_serving(row.project, spec, served.fence)


def _held(tx: Tx, project: str, version: int) -> Held:
    found = tx.version(project, version)
    return Held(version, found.artifact, found.sha256)


def _back_to_stable(tx: Tx, row: RolloutRow) -> None:
    """When a rolled-back version had become stable already, the one before it is wanted again."""
    served = tx.serving(row.project)
    if served is None or served.spec["stable"]["version"] != row.version:
        return
    wanted = Wanted.of(served)
    spec = replace(wanted, stable=_held(tx, row.project, row.stable), warm=(), canary=None, share=0.0, salt="").spec()
    tx.save_serving(row.project, spec, served.fence)


def first_version(store: Store, project: Project, *, now: float, version: int | None = None) -> int | None:
    """The stable version; when there is none yet, `version` becomes it, or the newest that may serve.

    Returns: None where no version may serve. Raises: ModelNotFound, ApprovalPending for a `version` that may not.
    """

    def run(tx: Tx) -> int | None:
        served = tx.serving(project.project)
        versions = [row for row in tx.versions(project.project) if row.may_serve]
        if served is not None:
            return int(served.spec["stable"]["version"])
        if version is not None:
            versions = [tx.version(project.project, version)]
            if not versions[0].may_serve:
                raise ApprovalPending(project.project, version)
        if not versions:
            return None
        first = versions[-1]
        spec = Wanted(stable=Held(first.version, first.artifact, first.sha256)).spec()
        tx.save_serving(project.project, spec, 0)
        why = "the first version: there is no champion to compare it with"
        evidence = {"run_id": first.run_id, "sha256": first.sha256}
        ledger.append(tx, project.project, "promoted", f"v{first.version}", "mlops_ray", why, evidence, now)
        return first.version

    return store.run(run)


def begin(store: Store, project: Project, version: int, *, who: str, why: str) -> str:
    """Start a rollout of a registered version against stable; its id. The controller takes it from here.

    Raises: ModelNotFound; ApprovalPending; IllegalMove when another rollout is open, or nothing is served yet.
    """

    def run(tx: Tx) -> str:
        served, found = tx.serving(project.project), tx.version(project.project, version)
        if not found.may_serve:
            raise ApprovalPending(project.project, version)
        if served is None:
            raise IllegalMove("start", "not possible before a first version serves", ("up",))
        stable, at = served.spec["stable"]["version"], _now(tx, project)
        if version == stable:
            raise IllegalMove("start", f"against itself (v{version} is stable)", ())
        return save_start(tx, project, found, stable, at=at, who=who, why=why, evidence={"run_id": found.run_id})

    return store.run(run)


def save_start(
    tx: Tx,
    project: Project,
    version: VersionRow,
    stable: int,
    *,
    at: float,
    who: str,
    why: str,
    evidence: dict[str, Any],
) -> str:
    """Save a rollout that starts at decision time `at`, with its entry in the ledger; its id.

    Raises: ApprovalPending, IllegalMove."""
    if not version.may_serve:
        raise ApprovalPending(project.project, version.version)
    rollout = f"{project.project}-v{version.version}-r{len(tx.rollouts(project.project)) + 1}"
    state = CanaryState(Phase.STARTING, 0, at)
    plan = project.rollout.model_dump(mode="json")
    tx.save_rollout(RolloutRow(rollout, project.project, version.version, stable, plan, state.to_dict(), at))
    found = evidence | {"against": stable, "rollout": rollout}
    ledger.append(tx, project.project, "rollout started", f"v{version.version}", who, why, found, at)
    return rollout


def order(store: Store, project: Project, move: canary.Move, *, who: str, why: str) -> CanaryState:
    """An operator's order on the open rollout (or, for a rollback, the last one), saved with its ledger entry.

    What follows from it for serving is saved with it, so that replicas hear of it at once and not at the controller's
    next tick. Raises: IllegalMove.
    """

    def run(tx: Tx) -> CanaryState:
        row = tx.open_rollout(project.project) or _last_promotion(tx, project.project)
        if row is None:
            raise IllegalMove(move, "not there", ("start",))
        now = _now(tx, project)
        after = canary.move(CanaryState.from_dict(row.state), move, now=now)
        ended = now if after.phase in canary.ENDED else None
        tx.save_rollout(replace(row, state=after.to_dict(), ended=ended))
        if after.phase is Phase.ROLLED_BACK:
            _back_to_stable(tx, row)
        if (served := tx.serving(project.project)) is not None:
            wanted = wanted_configuration(Wanted.of(served), tx.open_rollout(project.project), tx)
            tx.save_serving(project.project, wanted.spec(), served.fence)
        evidence = {"rollout": row.id, "state": after.to_dict()}
        ledger.append(tx, project.project, f"rollout {move}", f"v{row.version}", who, why, evidence, now)
        return after

    return store.run(run)


def _last_promotion(tx: Tx, project: str) -> RolloutRow | None:
    """The rollout that made the present stable version stable, or None."""
    served = tx.serving(project)
    stable = served.spec["stable"]["version"] if served else None
    return next((r for r in tx.rollouts(project) if r.version == stable and r.state["phase"] == Phase.PROMOTED), None)


def _now(tx: Tx, project: Project) -> float:
    """Decision time; the machine's clock before any traffic."""
    machine_now = time.time()
    return decision_now(tx, project, machine_now) or machine_now


ControllerActor = ray.remote(num_cpus=0, max_restarts=-1, max_task_retries=-1)(Controller)


def controller_name(project: str) -> str:
    """Name of the project's rollout controller in our namespace."""
    return f"controller:{project}"
