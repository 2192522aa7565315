"""Rollouts and approvals over HTTP: what `mlops-ray rollout` and `mlops-ray approve` do, for programs elsewhere.

Each request is some queries of the state database, in threads of their own: the event loop, on which predictions are
answered, never waits for a database. An order is saved with its entry in the ledger before the answer leaves. Sent
again with the same Idempotency-Key it changes nothing and is answered as it was. Without a key it is a new order, which
the phase may allow or not: a second `promote` ends the baking.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Literal, TypeVar

import orjson
from sqlalchemy.exc import SQLAlchemyError

from mlops_ray.config import Project
from mlops_ray.endpoint import board, described, orders
from mlops_ray.endpoint.orders import ROLLOUT_ID
from mlops_ray.errors import (
    ApprovalPending,
    ApprovalRefused,
    BackendUnavailable,
    BadRequest,
    DataError,
    IllegalMove,
    KeyReused,
    ModelNotFound,
    NothingWaits,
)
from mlops_ray.governance import approvals
from mlops_ray.rollout import steering
from mlops_ray.rollout.canary import Move
from mlops_ray.serving.access import Role
from mlops_ray.serving.exchange import Reply
from mlops_ray.serving.web.calls import Call, Extension, Handler, Route, demand_json
from mlops_ray.state import Store

T = TypeVar("T")

# Threads that wait for the database at once.
_THREADS = 4


def extension(project: Project, store: Store) -> Extension:
    """The routes of a project, which has this state database."""
    desk = _Desk(project, store)
    read = [
        ("/rollouts", desk.history),
        ("/rollouts/{rollout}", desk.status),
        ("/rollouts/{rollout}/decisions", desk.decisions),
    ]
    decide: tuple[Literal["approve", "reject"], ...] = ("approve", "reject")
    return Extension(
        routes=(
            *(Route("GET", path, Role.READ, handler, order=True) for path, handler in read),
            Route("POST", "/rollouts", Role.OPERATE, desk.start, order=True),
            *(Route("POST", f"/rollouts/{{rollout}}/{m}", Role.OPERATE, desk.move(m), order=True) for m in Move),
            *(Route("POST", f"/versions/{{version}}/{d}", Role.APPROVE, desk.decide(d), order=True) for d in decide),
            *board.routes(project, store),
        ),
        tags=described.TAGS,
        operations=described.operations(),
    )


class _Desk:
    """Handlers of one replica. What they raise is answered as problem details."""

    def __init__(self, project: Project, store: Store) -> None:
        self._project, self._store = project, store
        self._threads = ThreadPoolExecutor(_THREADS, "operation")

    async def history(self, call: Call) -> Reply:
        """`GET /rollouts`"""
        return _json(await self._run(lambda: steering.history(self._store, self._project)))

    async def status(self, call: Call) -> Reply:
        """`GET /rollouts/{rollout}`"""
        of, now = _rollout(call), call.now
        found = await self._run(lambda: steering.status(self._store, self._project, of=of, machine_now=now))
        if found["rollout"] is None:
            says = "no rollout is open" if of == steering.OPEN else f"there is no rollout {of!r}"
            raise BadRequest(404, "no such rollout", f"{says}; GET /rollouts lists what there were")
        return _json(found)

    async def decisions(self, call: Call) -> Reply:
        """`GET /rollouts/{rollout}/decisions`"""
        of = _rollout(call)
        try:
            return _json(await self._run(lambda: steering.explain(self._store, self._project, of)))
        except DataError as exc:
            raise BadRequest(404, "no such rollout", str(exc)) from exc

    async def start(self, call: Call) -> Reply:
        """`POST /rollouts`"""
        demand_json(call)
        asked, who, now = orders.start(call.body), call.demand(Role.OPERATE), call.now
        request = orders.request(_key(call), asked, "start")
        found = await self._ordered(
            lambda: steering.start(
                self._store,
                self._project,
                asked.versions,
                supersede=asked.supersede,
                who=who,
                why=asked.why,
                machine_now=now,
                request=request,
            )
        )
        location = f"/{self._project.project}/rollouts/{found['rollout']}"
        return Reply(orjson.dumps(found), status=201, headers=(("Location", location),))

    def move(self, order: Move) -> Handler:
        """`POST /rollouts/{rollout}/<order>`"""

        async def handler(call: Call) -> Reply:
            demand_json(call)
            asked, of = orders.move(call.body, which=described.WHICH.get(order)), _rollout(call)
            who, now = call.demand(Role.OPERATE), call.now
            request = orders.request(_key(call), asked, f"{order} of {of}")
            return _json(
                await self._ordered(
                    lambda: steering.move(
                        self._store,
                        self._project,
                        order,
                        of=of,
                        to=asked.which if order is Move.ROLLBACK else None,
                        version=asked.which if order is Move.PROMOTE else None,
                        who=who,
                        why=asked.why,
                        machine_now=now,
                        request=request,
                    )
                )
            )

        return handler

    def decide(self, decision: Literal["approve", "reject"]) -> Handler:
        """`POST /versions/{version}/<decision>`"""

        async def handler(call: Call) -> Reply:
            if self._project.serving.auth == "off":
                says = (
                    "serving.auth is off, so nobody who asks is known; set `serving.auth: token`, or use `mlops-ray "
                    f"{decision}` on the machine of the state database"
                )
                raise BadRequest(403, "nobody is authenticated", says)
            demand_json(call)
            reason, version = orders.reason(call.body), orders.version(_param(call, "version"))
            who, now = call.demand(Role.APPROVE), call.now
            return _json(
                await self._ordered(
                    lambda: approvals.decide(
                        self._store, self._project, version, decision, who=who, why=reason, now=now
                    )
                )
            )

        return handler

    async def _ordered(self, work: Callable[[], T]) -> T:
        """An order's work. Raises: BadRequest with what is possible instead."""
        try:
            return await self._run(work)
        except ModelNotFound as exc:
            raise BadRequest(404, "no such version", str(exc)) from exc
        except IllegalMove as exc:
            raise BadRequest(409, "not possible now", str(exc), {"expected": list(exc.legal)}) from exc
        except KeyReused as exc:
            raise BadRequest(422, "Idempotency-Key is already used", str(exc)) from exc
        except (ApprovalPending, DataError, NothingWaits) as exc:
            raise BadRequest(409, "not possible now", str(exc)) from exc
        except ApprovalRefused as exc:
            raise BadRequest(403, "not yours to decide", str(exc)) from exc

    async def _run(self, work: Callable[[], T]) -> T:
        """Raises: BackendUnavailable when the database is; what `work` raises."""
        try:
            return await asyncio.get_running_loop().run_in_executor(self._threads, work)
        except SQLAlchemyError as exc:
            raise BackendUnavailable("the state database", f"{type(exc).__name__}; try again shortly") from exc


def _key(call: Call) -> str | None:
    """The client's Idempotency-Key."""
    return call.id if call.repeatable else None


def _rollout(call: Call) -> str:
    """The rollout that the path names. Raises: BadRequest (404) for what cannot be an id."""
    found = _param(call, "rollout")
    if re.fullmatch(ROLLOUT_ID, found) is None:
        raise BadRequest(
            404, "no such rollout", f"{found[:40]!r} is no rollout's id; GET /rollouts lists what there were"
        )
    return found


def _param(call: Call, name: str) -> str:
    assert call.params is not None, "a path with parameters has them"
    return call.params[name]


def _json(content: object) -> Reply:
    return Reply(orjson.dumps(content))
