"""Rollouts and approvals over HTTP, on a real state database; nobody decides and no Ray is there."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from mlops_ray import ledger
from mlops_ray.config import Project
from mlops_ray.endpoint import operation
from mlops_ray.rollout import orders
from mlops_ray.rollout.canary import CanaryState, Phase
from mlops_ray.serving.access import Access, Grant, Role, new_token
from mlops_ray.serving.service import Service, Wanted
from mlops_ray.serving.web.calls import Extension
from mlops_ray.serving.web.http import Application, routes
from mlops_ray.state import Store, Tx, VersionRow
from tests import fakes

PROJECT = fakes.project(serving={"auth": "token", "request_timeout_s": 20.0})
PREDICT = {"rows": [fakes.row()]}


class Up:
    """A project with a stable version and two more, its state database, and who may ask what."""

    def __init__(self, folder: Path, project: Project = PROJECT) -> None:
        self.project, self.name = project, project.project
        self.store = Store.open(f"sqlite:///{folder}/state.db")
        stable = Wanted(stable=fakes.held(1))
        with self.store.begin() as tx:
            for version, status in ((1, "registered"), (2, "registered"), (3, "registered"), (4, VersionRow.PENDING)):
                tx.save_version(
                    VersionRow(self.name, version, "run", f"/m/{version}", "0" * 64, "d@1", status, 1.0, {})
                )
            tx.save_serving(self.name, stable.spec(), 0)
        self.grants: list[Grant] = []
        self.tokens = {name: self._token(name) for name in ("ann", "ben", "eve")}
        self.service = Service(project, fakes.FakeLog(), fakes.FakeLoader(), fakes.no_canary, first=stable)
        extension = operation.extension(project, self.store)
        self.application = Application(lambda: self.service, lambda: Access(self.grants), extension)

    def _token(self, name: str) -> str:
        token, grant = new_token(name, tuple(Role), now=0.0, expires=None)
        self.grants.append(grant)
        return token

    def ask(self, method: str, path: str, who: str = "ann", **more: Any) -> httpx.Response:
        async def run() -> httpx.Response:
            async with self.client(who) as client:
                return await client.request(method, path, **more)

        return asyncio.run(run())

    def client(self, who: str = "ann") -> httpx.AsyncClient:
        headers = {"Authorization": f"Bearer {self.tokens[who]}"}
        transport = httpx.ASGITransport(self.application)
        return httpx.AsyncClient(transport=transport, base_url="http://replica", headers=headers)

    def post(self, path: str, body: Any = None, who: str = "ann") -> httpx.Response:
        return self.ask("POST", path, who, json={} if body is None else body)

    def step(self, phase: Phase, origin: Phase = Phase.RAMPING) -> None:
        """What the controller saves."""

        def save(tx: Tx) -> None:
            row = tx.open_rollout(self.name)
            assert row is not None
            after = CanaryState(phase, 0, 2.0, origin=origin)
            orders.transition(
                tx, row, after, kind=f"rollout {phase}", who="mlops_ray", why="a test", machine_now=2.0, evidence={}
            )
            orders.save_wanted(tx, self.name, now=2.0)

        self.store.run(save)

    def entries(self) -> list[tuple[str, str, str]]:
        with self.store.read() as tx:
            return [(e.kind, e.who, e.why) for e in ledger.entries(tx, self.name)]


@pytest.fixture
def up(tmp_path: Path) -> Iterator[Up]:
    found = Up(tmp_path)
    yield found
    found.store.close()


def test_a_rollout_over_http_from_start_to_the_way_back(up: Up) -> None:
    assert up.ask("GET", "/rollouts").json() == {"rollouts": []}
    assert up.ask("GET", "/rollouts/open").status_code == 404
    started = up.post("/rollouts", {"version": 2, "why": "the one from Tuesday"})
    rollout = started.json()["rollout"]
    assert (started.status_code, started.headers["location"]) == (201, f"/{up.name}/rollouts/{rollout}")
    assert up.ask("GET", f"/rollouts/{rollout}").json()["outlook"]["phase"] == "starting"

    again = up.post("/rollouts", {"version": 3})
    assert again.status_code == 409
    assert rollout in again.json()["detail"]
    assert again.json()["errors"][0]["expected"] == ["abort", "start --supersede"]
    refused = up.post("/rollouts/open/promote")
    assert (refused.status_code, refused.json()["errors"][0]["expected"]) == (409, ["abort"])

    up.step(Phase.RAMPING)
    assert up.post(f"/rollouts/{rollout}/pause", {"why": "holiday"}, who="ben").json() == {
        "rollout": rollout,
        "phase": "paused",
        "step": 0,
        "reason": "operator",
    }
    assert up.post(f"/rollouts/{rollout}/pause").status_code == 409  # sent again, it harms nothing
    assert up.ask("POST", f"/rollouts/{rollout}/resume").status_code == 200  # a body is not needed
    other = up.post("/rollouts/small-v9-r9/abort")
    assert other.status_code == 409
    assert rollout in other.json()["detail"]
    assert up.post("/rollouts/open/abort", {"why": "enough"}).json()["phase"] == "aborted"
    assert up.ask("GET", "/rollouts/open").status_code == 404
    assert up.ask("GET", f"/rollouts/{rollout}").json()["rollout"]["state"]["phase"] == "aborted"
    assert [row["id"] for row in up.ask("GET", "/rollouts").json()["rollouts"]] == [rollout]
    assert up.entries() == [
        ("rollout started", "ann", "the one from Tuesday"),
        ("rollout ramping", "mlops_ray", "a test"),
        ("rollout pause", "ben", "holiday"),
        ("rollout resume", "ann", "ordered over HTTP"),
        ("rollout abort", "ann", "enough"),
    ]
    told = up.ask("GET", f"/rollouts/{rollout}/decisions").json()
    assert (told["rollout"], [entry["kind"] for entry in told["entries"]]) == (rollout, [k for k, _, _ in up.entries()])
    assert up.ask("GET", "/rollouts/nothing/decisions").status_code == 404


def test_a_newer_version_takes_the_place_where_it_is_told_to(up: Up) -> None:
    up.post("/rollouts", {"version": 2})
    newer = up.post("/rollouts", {"version": 3, "supersede": True}).json()["rollout"]
    assert up.ask("GET", "/rollouts/open").json()["rollout"]["id"] == newer


def test_the_way_back_is_over_http_too(up: Up) -> None:
    up.post("/rollouts", {"version": 2})
    up.step(Phase.PROMOTED)
    with up.store.begin() as tx:
        tx.save_serving(up.name, Wanted(stable=fakes.held(2), warm=(fakes.held(1),)).spec(), 0)
    never = up.post("/rollouts/open/rollback", {"to": 3})
    assert never.status_code == 409
    assert "never was stable" in never.json()["detail"]
    assert up.post("/rollouts/open/rollback", {"why": "complaints"}).json()["phase"] == "rolled back"
    with up.store.read() as tx:
        served = tx.serving(up.name)
    assert served is not None
    assert served.spec["stable"]["version"] == 1


def test_an_order_that_comes_again_under_its_key_is_answered_as_it_was(up: Up) -> None:
    """A client that heard no answer sends again; a promotion must not end its own baking by that."""

    def post(path: str, body: Any, key: str, who: str = "ann") -> httpx.Response:
        return up.ask("POST", path, who, json=body, headers={"Idempotency-Key": key})

    started = [post("/rollouts", {"version": 2, "why": "new"}, "start-1") for _ in range(2)]
    assert [(r.status_code, r.json(), r.headers["location"]) for r in started[:1] * 2] == [
        (r.status_code, r.json(), r.headers["location"]) for r in started
    ]
    up.step(Phase.RAMPING)
    first = post("/rollouts/open/promote", {"why": "enough"}, "promote-1")
    assert first.json()["phase"] == "promoting"
    up.step(Phase.BAKING)
    n = len(up.entries())
    again = post("/rollouts/open/promote", {"why": "enough"}, "promote-1")
    assert (again.status_code, again.json()) == (200, first.json())
    assert len(up.entries()) == n
    assert up.ask("GET", "/rollouts/open").json()["outlook"]["phase"] == "baking"
    for path, body in (("/rollouts/open/promote", {"why": "other"}), ("/rollouts/open/rollback", {"why": "enough"})):
        other = post(path, body, "promote-1")
        assert (other.status_code, other.json()["title"]) == (422, "Idempotency-Key is already used")
        assert "rollout promote v2" in other.json()["detail"]
    assert post("/rollouts/open/promote", {"why": "enough"}, "promote-1", who="ben").json()["phase"] == "promoted"
    assert post("/rollouts/open/promote", {"why": "enough"}, "promote-1").json() == first.json()


def test_one_key_sent_by_many_at_once_is_one_order(up: Up) -> None:
    async def run() -> list[httpx.Response]:
        async with up.client() as client:
            headers = {"Idempotency-Key": "k"}
            sends = [client.post("/rollouts", json={"version": 2}, headers=headers) for _ in range(8)]
            return await asyncio.gather(*sends)

    answers = asyncio.run(run())
    assert {(r.status_code, r.json()["rollout"]) for r in answers} == {(201, f"{up.name}-v2-r1")}
    assert len(up.entries()) == 1


def test_a_refused_order_leaves_its_key_free(up: Up) -> None:
    headers = {"Idempotency-Key": "k"}
    assert up.ask("POST", "/rollouts", json={"version": 1}, headers=headers).status_code == 409
    assert up.ask("POST", "/rollouts", json={"version": 2}, headers=headers).status_code == 201


@pytest.mark.parametrize("why", ["a\x1b[2Jb", "two\nlines", "a\u202eb", "a\u009bb", "a\u0000b", " ", "x" * 1001])
def test_a_reason_is_a_sentence_in_one_line(up: Up, why: str) -> None:
    refused = up.post("/rollouts", {"version": 2, "why": why})
    assert refused.status_code == 422
    assert refused.json()["errors"][0]["field"] == "why"


def test_what_is_wrong_with_a_nested_body_is_told(up: Up) -> None:
    nested = up.post("/rollouts", {"version": {"a": 1, "b": [{"c": 2}]}})
    assert (nested.status_code, nested.json()["title"]) == (422, "wrong value")
    assert "version: expected a version's number" in nested.json()["detail"]
    twice = up.ask(
        "POST", "/rollouts", content=b'{"version": {"a": 1, "a": 2}}', headers={"Content-Type": "application/json"}
    )
    assert "names a member twice" in twice.json()["detail"]


def test_a_rejection_where_nothing_waits_is_a_conflict(up: Up) -> None:
    refused = up.post("/versions/2/reject", {"reason": "no"})
    assert (refused.status_code, refused.json()["title"]) == (409, "not possible now")
    assert up.post("/versions/2/approve", {"reason": "yes"}).json()["says"] == "in need of no approval"


def test_who_proposed_a_version_once_never_approves_it(tmp_path: Path) -> None:
    """Also not in a rollout that a colleague starts afterwards."""
    up = Up(tmp_path, fakes.project(serving={"auth": "token"}, rollout={"approval": "before_start"}))
    up.post("/rollouts", {"version": 2})
    assert up.post("/rollouts/open/abort").status_code == 200
    second = up.post("/rollouts", {"version": 2}, who="ben").json()["rollout"]
    assert second.endswith("r2")
    for name in ("ann", "ben"):
        refused = up.post("/versions/2/approve", {"reason": "mine"}, who=name)
        assert (refused.status_code, refused.json()["title"]) == (403, "not yours to decide")
    assert up.post("/versions/2/approve", {"reason": "read it"}, who="eve").json()["approved"] is True


def test_approvers_are_who_their_tokens_say_and_never_proposers(tmp_path: Path) -> None:
    up = Up(tmp_path, fakes.project(serving={"auth": "token"}, rollout={"approval": "before_promotion"}))
    assert up.post("/rollouts", {"version": 4}).status_code == 409
    assert up.post("/versions/4/approve", {"reason": "read its card"}, who="ben").json() == {
        "version": 4,
        "rollout": None,
        "status": "registered",
        "who": "ben",
        "already": False,
        "approved": True,
        "approvers": ["ben"],
        "rejecters": [],
        "missing": 0,
        "says": "approved by ben",
    }
    assert up.post("/rollouts", {"version": 4}).status_code == 201
    up.step(Phase.RAMPING)
    assert up.post("/rollouts/open/promote", {"why": "seen enough"}, who="eve").json()["phase"] == "pending"
    for proposer in ("ann", "eve"):  # who started it, and who ordered its promotion
        refused = up.post("/versions/4/approve", {"reason": "mine"}, who=proposer)
        assert refused.status_code == 403
        assert f"{proposer} proposed it" in refused.json()["detail"]
    assert up.post("/versions/4/approve", {"reason": "fine"}, who="ben").json()["approvers"] == ["ben"]
    assert up.post("/versions/9/approve", {"reason": "fine"}).status_code == 404
    up.store.close()


def test_without_tokens_nobody_approves_but_orders_are_taken(tmp_path: Path) -> None:
    up = Up(tmp_path, fakes.project())
    refused = up.post("/versions/4/approve", {"reason": "fine"})
    assert refused.status_code == 403
    assert "serving.auth: token" in refused.json()["detail"]
    up.application = Application(lambda: up.service, extension=operation.extension(up.project, up.store))
    assert up.post("/rollouts", {"version": 2}).status_code == 201
    assert up.entries() == [("rollout started", "anonymous", "ordered over HTTP")]
    up.store.close()


@pytest.mark.parametrize(
    ("path", "body", "status", "says"),
    [
        ("/rollouts", {"version": 9}, 404, "no version '9'"),
        ("/rollouts", {"version": 1}, 409, "against itself"),
        ("/rollouts", {}, 422, "give either version or versions"),
        ("/rollouts", {"version": 2, "versions": [3]}, 422, "give either version or versions"),
        ("/rollouts", {"version": None}, 422, "version: expected a version's number, got null"),
        ("/rollouts", {"versions": []}, 422, "versions: expected a list of 1 to 20"),
        ("/rollouts", {"versions": [2, "3"]}, 422, "versions: expected a version's number, got '3'"),
        ("/rollouts", {"versions": [2, 3]}, 409, "ab"),
        ("/rollouts/open/promote", {"to": 2}, 422, "'to' is not a field"),
        ("/rollouts/open/promote", {"version": "2"}, 422, "version: expected a version's number"),
        ("/rollouts", {"version": "2"}, 422, "version: expected a version's number, got '2'"),
        ("/rollouts", {"version": True}, 422, "got true"),
        ("/rollouts", {"version": 0}, 422, "got 0"),
        ("/rollouts", {"version": 2, "supersede": 1}, 422, "supersede: expected true or false"),
        ("/rollouts", {"version": 2, "why": ""}, 422, "why: expected a sentence"),
        ("/rollouts", {"version": 2, "why": "a\0b"}, 422, "none of them NUL"),
        ("/rollouts", {"version": 2, "why": "x" * 1001}, 422, "1 to 1,000 characters"),
        ("/rollouts", {"version": 2, "why": "x" + " " * 1000}, 422, "1 to 1,000 characters"),
        ("/rollouts", {"version": 2, "who": "boss"}, 422, "'who' is not a field of this order"),
        ("/rollouts", [], 422, "must be an object"),
        ("/rollouts/open/pause", {"why": "x"}, 409, "not there"),
        ("/rollouts/a.b/pause", {"why": "x"}, 404, "'a.b' is no rollout's id"),
        ("/rollouts/open/pause", {"to": 1}, 422, "'to' is not a field"),
        ("/rollouts/open/rollback", {"to": "one"}, 422, "to: expected a version's number"),
        ("/versions/4/approve", {}, 422, "reason: expected a sentence"),
        ("/versions/4/approve", {"reason": "x", "who": "ben"}, 422, "'who' is not a field"),
        ("/versions/four/approve", {"reason": "x"}, 404, "'four' is no version's number"),
        ("/versions/2/reject", {"reason": "x"}, 409, "waits for no approval"),
        ("/rollouts", {"version": 2, "why": "x" * 70_000}, 413, ""),
    ],
)
def test_what_is_not_understood_or_not_possible_says_the_way_out(
    up: Up, path: str, body: Any, status: int, says: str
) -> None:
    answer = up.post(path, body)
    assert (answer.status_code, answer.headers["content-type"]) == (status, "application/problem+json")
    assert says in answer.json()["detail"]
    assert up.entries() == []


@pytest.mark.parametrize(
    ("content", "media_type", "status"),
    [(b"", "application/json", 400), (b"{", "application/json", 400), (b"version=2", "text/plain", 415)],
)
def test_a_body_that_is_no_json(up: Up, content: bytes, media_type: str, status: int) -> None:
    assert up.ask("POST", "/rollouts", content=content, headers={"Content-Type": media_type}).status_code == status


def test_each_route_asks_for_its_own_role(up: Up) -> None:
    extension: Extension = operation.extension(up.project, up.store)
    known = {(r.method, r.path) for r in routes()}
    assert known.isdisjoint((r.method, r.path) for r in extension.routes)
    assert [(r.method, r.path) for r in extension.routes if r.role is None] == [("GET", "/dashboard")]
    for route in extension.routes:
        if route.role is None:
            continue
        path = route.path.format(rollout="open", version="4")
        assert up.ask(route.method, path, headers={"Authorization": ""}).status_code == 401
        for role in Role:
            token, grant = new_token("one", (role,), now=0.0, expires=None)
            up.grants.append(grant)
            status = up.ask(route.method, path, headers={"Authorization": f"Bearer {token}"}, content=b"{").status_code
            assert (status == 403) == (role is not route.role), (route, role)


def test_a_database_that_hangs_holds_up_its_own_requests_only(up: Up, monkeypatch: pytest.MonkeyPatch) -> None:
    """Twenty ask for the history while the database does not answer: predictions are answered, and so is health."""
    may = threading.Event()
    read = up.store.read
    monkeypatch.setattr(up.store, "read", lambda: (may.wait(30), read())[1])

    async def run() -> tuple[list[int], list[httpx.Response]]:
        async with up.client() as client:
            asked = [asyncio.create_task(client.get("/rollouts")) for _ in range(20)]
            refused, _ = await asyncio.wait(asked, return_when=asyncio.FIRST_COMPLETED)
            around = [await client.post("/predict", json=PREDICT), await client.get("/readyz")]
            assert all(not task.done() for task in asked if task not in refused)
            may.set()
            answers = await asyncio.gather(*asked)
            return [answer.status_code for answer in around], answers

    around, answers = asyncio.run(run())
    assert around == [200, 200]
    statuses = [answer.status_code for answer in answers]
    assert statuses.count(503) == 4  # sixteen are in hand at most
    assert statuses.count(200) == 16


def test_a_database_that_is_away_is_not_available(up: Up, monkeypatch: pytest.MonkeyPatch) -> None:
    from sqlalchemy.exc import OperationalError

    def away() -> Any:
        raise OperationalError("select", {}, Exception("no route to host"))

    monkeypatch.setattr(up.store, "read", away)
    answer = up.ask("GET", "/rollouts")
    assert (answer.status_code, answer.headers["retry-after"]) == (503, "1")
    assert "the state database" in answer.json()["detail"]
