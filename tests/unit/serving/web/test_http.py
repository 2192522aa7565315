"""The application's outside: who may ask, how much, for how long, and what every answer carries."""

from __future__ import annotations

import asyncio
import contextlib
import gzip
import pickle
import socket
import threading
import zlib
from collections.abc import Iterator
from typing import Any

import httpx
import numpy as np
import orjson
import pytest
import uvicorn

from mlops_ray.errors import BackendUnavailable
from mlops_ray.serving.access import Access, Grant, Open, Role, new_token
from mlops_ray.serving.service import Service
from mlops_ray.serving.versions import Wanted
from mlops_ray.serving.web import admission
from mlops_ray.serving.web.admission import Ongoing
from mlops_ray.serving.web.http import Application, routes
from tests import fakes
from tests.fakes import FakeLoader, FakeLog, FakeScorer, eventually, held, row

LIMIT = 4_000
PROJECT = fakes.project(
    serving={
        "max_body_mb": LIMIT / 2**20,
        "max_ongoing_requests": 2,
        "request_timeout_s": 0.2,
        "key_header": "X-Customer",
    }
)
BODY = orjson.dumps({"rows": [row()]})
PACKED = gzip.compress(BODY, mtime=0)  # or the names of tests would tell the time
JSON = {"Content-Type": "application/json"}
METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "CONNECT")


class SlowScorer(FakeScorer):
    """Scores in a thread, once it may."""

    def __init__(self) -> None:
        super().__init__(0.1, engine="sklearn")
        self.may = threading.Event()

    def score(self, columns: Any) -> Any:
        assert self.may.wait(30)
        return super().score(columns)


def service(log: FakeLog | None = None, load: Any = None, wanted: Wanted | None = None) -> Service:
    first = wanted or Wanted(1, held(10))
    return Service(PROJECT, log or FakeLog(), load or FakeLoader(), fakes.no_canary, first=first)


def visit(made: Service, talk: Any, access: Any = None) -> Any:
    async def run() -> Any:
        application = Application(lambda: made, *([lambda: access] if access else []))
        transport = httpx.ASGITransport(application)
        async with httpx.AsyncClient(transport=transport, base_url="http://replica") as client:
            return await talk(client)

    return asyncio.run(run())


def post(made: Service | None = None, access: Any = None, path: str = "/predict", **options: Any) -> httpx.Response:
    options = {"content": BODY, **options, "headers": JSON | options.get("headers", {})}
    found: httpx.Response = visit(made or service(), lambda client: client.post(path, **options), access)
    return found


def bearer(*roles: Role) -> tuple[dict[str, str], Grant]:
    token, grant = new_token("test", roles, now=0.0, expires=None)
    return {"Authorization": f"Bearer {token}"}, grant


# --- who may ask ---


def paths() -> list[str]:
    return sorted({r.path.format(model="small", version="10") if "{" in r.path else r.path for r in routes()})


@pytest.mark.parametrize("path", paths())
def test_nothing_answers_without_a_token(path: str) -> None:
    async def talk(client: httpx.AsyncClient) -> set[int]:
        return {(await client.request(method, path, content=BODY, headers=JSON)).status_code for method in METHODS}

    assert visit(service(), talk, Access([])) <= {401, 405}


@pytest.mark.parametrize("route", routes(), ids=lambda r: f"{r.method} {r.path}")
def test_each_route_asks_for_its_own_role(route: Any) -> None:
    path = route.path.format(model="small", version="10") if "{" in route.path else route.path
    for role in Role:
        headers, grant = bearer(role)

        async def talk(client: httpx.AsyncClient, sent: Any = headers) -> httpx.Response:
            return await client.request(route.method, path, content=BODY, headers=JSON | sent)

        status = visit(service(), talk, Access([grant])).status_code
        assert (status == 403) == (role is not route.role)
        assert status < 500 or path == "/readyz"


def test_401_says_how() -> None:
    assert post(access=Access([])).headers["www-authenticate"] == "Bearer"


@pytest.mark.parametrize(
    ("roles", "headers", "options", "status"),
    [
        ((Role.PREDICT,), {"X-Model-Version": "10"}, {}, 403),
        ((Role.PREDICT, Role.OPERATE), {"X-Model-Version": "10"}, {}, 200),
        ((Role.PREDICT,), {}, {"version": 10}, 403),
        ((Role.PREDICT, Role.OPERATE), {}, {"version": 10}, 200),
        ((Role.PREDICT, Role.OPERATE), {}, {"version": 20}, 200),  # kept warm
        ((Role.PREDICT, Role.OPERATE), {}, {"version": 99}, 404),
        ((Role.PREDICT, Role.OPERATE), {"X-Model-Version": "99"}, {}, 404),
        ((Role.PREDICT, Role.OPERATE), {"X-Model-Version": "-1"}, {}, 400),
        ((Role.PREDICT, Role.OPERATE), {"X-Model-Version": "latest"}, {}, 400),
        ((Role.OPERATE,), {"X-Model-Version": "10"}, {}, 403),
        ((Role.OPERATE,), {}, {"version": 10}, 403),
    ],
)
def test_operators_choose_the_version(roles: Any, headers: Any, options: Any, status: int) -> None:
    made = service(wanted=Wanted(1, held(10), warm=(held(20),)))
    eventually(lambda: made.status()["loaded"] == [10, 20])
    sent, grant = bearer(*roles)
    body = orjson.dumps({"rows": [row()]} | ({"options": options} if options else {}))
    found = post(made, Access([grant]), content=body, headers=sent | headers)
    assert found.status_code == status
    if status == 200:
        version = options.get("version", 10)
        assert found.headers["x-model-version"] == str(version)
        assert found.json()["predictions"][0]["probability"] == version / 100
    if status == 404:
        assert "10 (stable), 20 (warm)" in found.json()["detail"]


# --- what every answer carries ---


def test_every_answer_carries_an_id_and_the_security_headers() -> None:
    async def talk(client: httpx.AsyncClient) -> list[httpx.Response]:
        asked = [(m, p) for m in ("GET", "HEAD", "POST", "OPTIONS") for p in (*paths(), "/nothing", "/")]
        return [await client.request(m, p, content=BODY, headers=JSON) for m, p in asked]

    for answer in visit(service(), talk):
        assert len(answer.headers.get_list("x-request-id")) == 1
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert answer.headers["cache-control"] == "no-store"
        assert answer.headers["content-security-policy"]
        assert int(answer.headers["content-length"]) >= len(answer.content)


def test_an_answer_keeps_its_headers_when_it_is_pickled() -> None:
    """Serve's own proxy, to which requests go while no replica lives, gets answers so. Found: they had no headers."""
    made, sent = service(), list[dict[str, Any]]()

    async def send(message: Any) -> None:
        sent.append(pickle.loads(pickle.dumps(message)))

    async def receive() -> Any:
        return {"type": "http.request", "body": BODY, "more_body": False}

    scope = {"type": "http", "method": "POST", "path": "/predict", "root_path": "", "query_string": b""}
    scope["headers"] = [(b"content-type", b"application/json"), (b"content-length", str(len(BODY)).encode())]
    asyncio.run(Application(lambda: made, Open)(scope, receive, send))
    assert sent[0]["status"] == 200
    assert (b"content-type", b"application/json") in sent[0]["headers"]
    sent[0]["headers"] = []  # Serve's middlewares write there


@pytest.mark.parametrize(
    ("sent", "traced"),
    [
        ({"Idempotency-Key": "visit-1"}, "visit-1"),
        ({"X-Request-Id": "trace-1"}, "trace-1"),
        ({"Idempotency-Key": "visit-1", "X-Request-Id": "trace-1"}, "visit-1"),
        ({"X-Request-Id": "two words"}, None),
        ({"X-Request-Id": "x" * 129}, None),
        ({}, None),
    ],
)
def test_a_clients_id_comes_back(sent: dict[str, str], traced: str | None) -> None:
    found = post(headers=sent)
    identity = found.json()["request_id"]
    assert found.headers["x-request-id"] == (traced or identity)
    assert (identity == "visit-1") == ("Idempotency-Key" in sent)  # what traces a request does not name a prediction


def test_a_trace_that_repeats_is_no_retry() -> None:
    log = FakeLog()
    made = service(log)
    for _ in range(2):
        post(made, headers={"X-Request-Id": "trace-1"})
    assert len({r.id for r in log.records}) == 2  # type: ignore[union-attr]


def test_a_key_by_header() -> None:
    log = FakeLog()
    keyless = {k: v for k, v in row().items() if k != "who"}
    body = orjson.dumps({"rows": [keyless, keyless]})
    assert post(service(log), content=body, headers={"X-Customer": "c-7"}).status_code == 200
    assert post(service(log), headers={"X-Customer": "c-7"}).status_code == 200  # a key in the row is the row's
    assert post(service(log), content=body, headers={"X-Customer": ""}).status_code == 400
    assert post(service(log), content=body, headers={"X-Customer": "Zoë".encode()}).status_code == 200
    assert post(service(log), content=body, headers={"X-Customer": b"Zo\xeb"}).status_code == 400
    assert [r.keys for r in log.records] == [("c-7", "c-7"), ("k1",), ("Zoë", "Zoë")]  # type: ignore[union-attr]


# --- methods and paths ---


def test_head_is_get_without_a_body() -> None:
    async def talk(client: httpx.AsyncClient) -> Any:
        return [(await client.get(p), await client.head(p)) for p in ("/healthz", "/readyz", "/v2/models/small")]

    for get, head in visit(service(), talk):
        assert (head.status_code, head.content) == (get.status_code, b"")
        assert head.headers["content-length"] == get.headers["content-length"]


@pytest.mark.parametrize(("path", "allowed"), [("/predict", "POST"), ("/healthz", "GET, HEAD")])
def test_another_method_is_told_what_there_is(path: str, allowed: str) -> None:
    found = visit(service(), lambda client: client.options(path))
    assert (found.status_code, found.headers["allow"]) == (405, allowed)


def test_below_a_mount_paths_are_its_own() -> None:
    async def run() -> list[int]:
        application, statuses = Application(lambda: made), []
        transport = httpx.ASGITransport(application, root_path="/small")
        async with httpx.AsyncClient(transport=transport, base_url="http://replica") as client:
            for path in ("/small/healthz", "/small/nothing"):
                answer = await client.get(path)
                statuses.append(answer.status_code)
        assert answer.json()["instance"] == "/small/nothing"
        return statuses

    made = service()
    assert asyncio.run(run()) == [200, 404]


# --- how much ---


@pytest.mark.parametrize("size", [LIMIT + 1, 10 * LIMIT])
@pytest.mark.parametrize("whole", [True, False], ids=["stated", "in pieces"])
def test_a_large_body_is_refused_before_it_is_parsed(size: int, whole: bool) -> None:
    async def pieces() -> Any:
        for _ in range(0, size, 1000):
            yield b" " * min(1000, size)

    found = post(content=b" " * size if whole else pieces())
    assert (found.status_code, str(LIMIT) in found.json()["detail"]) == (413, True)


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (PACKED, 200),
        (gzip.compress(b" " * 10_000_000, mtime=0), 413),  # 10 kB that become 10 MB
        (gzip.compress(b" " * LIMIT * 100, mtime=0), 413),
        (PACKED[:-5], 400),
        (PACKED + b"more", 400),
        (PACKED + PACKED, 400),
        (zlib.compress(BODY), 400),
        (b"", 400),
        (b"\x1f\x8b", 400),
    ],
)
def test_gzip_is_inflated_up_to_the_limit(body: bytes, status: int) -> None:
    assert post(content=body, headers={"Content-Encoding": "gzip"}).status_code == status


@pytest.mark.parametrize(("n_bytes", "beside"), [(100_000, False), (900_000, True)])
def test_what_inflates_to_much_holds_up_nobody(monkeypatch: pytest.MonkeyPatch, n_bytes: int, beside: bool) -> None:
    """However small it came: a kilobyte may become a megabyte."""
    threads: list[threading.Thread] = []
    inflated = admission._inflated
    monkeypatch.setattr(admission, "_inflated", lambda *a: threads.append(threading.current_thread()) or inflated(*a))

    async def read() -> bytes:
        async def receive() -> dict[str, Any]:
            return {"type": "http.request", "body": gzip.compress(b" " * n_bytes)}

        return await admission.read({"content-encoding": "gzip"}, receive, 10**6)

    assert asyncio.run(read()) == b" " * n_bytes
    assert [thread is threading.main_thread() for thread in threads] == ([False] if beside else [])


def test_more_requests_than_a_replica_takes_are_turned_away_and_health_is_not() -> None:
    scorer = SlowScorer()

    async def talk(client: httpx.AsyncClient) -> None:
        inside = [asyncio.create_task(client.post("/predict", content=BODY, headers=JSON)) for _ in range(2)]
        await asyncio.sleep(0.02)
        refused = await client.post("/predict", content=b"not even JSON", headers=JSON)
        assert (refused.status_code, refused.headers["retry-after"]) == (503, "1")
        assert (await client.get("/healthz")).status_code == 200
        scorer.may.set()
        assert [(await task).status_code for task in inside] == [200, 200]
        assert (await client.post("/predict", content=BODY, headers=JSON)).status_code == 200

    visit(service(load=lambda version: scorer), talk)


def test_a_request_that_takes_too_long_is_answered_503() -> None:
    scorer = SlowScorer()

    async def talk(client: httpx.AsyncClient) -> None:
        late = await client.post("/predict", content=BODY, headers=JSON)
        assert (late.status_code, "0.2 s" in late.json()["detail"]) == (503, True)
        scorer.may.set()
        assert (await client.post("/predict", content=BODY, headers=JSON)).status_code == 200

    visit(service(load=lambda version: scorer), talk)


# --- beside requests ---


def test_lifespan_and_what_is_not_http() -> None:
    async def run() -> list[str]:
        application, sent = Application(lambda: service()), []
        stages = iter(("lifespan.startup", "lifespan.shutdown"))

        async def receive() -> Any:
            return {"type": next(stages)}

        async def send(message: Any) -> None:
            sent.append(message["type"])

        await application({"type": "lifespan"}, receive, send)
        await application({"type": "websocket"}, receive, send)
        return sent

    assert asyncio.run(run()) == ["lifespan.startup.complete", "lifespan.shutdown.complete", "websocket.close"]


# --- over a socket ---


@pytest.fixture(scope="module")
def served() -> Iterator[int]:
    made = service()
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        server = uvicorn.Server(uvicorn.Config(Application(lambda: made), log_level="warning", lifespan="off"))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]}, daemon=True)
        thread.start()
        eventually(lambda: server.started)
        yield listening.getsockname()[1]
        server.should_exit = True
        thread.join(30)


def talked(port: int, *parts: bytes) -> bytes:
    """What a client gets that only listens once it has sent everything."""
    with socket.create_connection(("127.0.0.1", port), timeout=10) as client:
        for part in parts:
            client.sendall(part)
        client.shutdown(socket.SHUT_WR)
        found = b""
        while part := client.recv(65_536):
            found += part
        return found


HEAD = b"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"


def test_a_client_that_sends_a_large_body_to_its_end_gets_413(served: int) -> None:
    size = 5_000_000
    stated = talked(served, HEAD + b"Content-Length: %d\r\n\r\n" % size, *[b" " * 500_000] * 10)
    assert stated.startswith(b"HTTP/1.1 413 ")
    piece = b"%x\r\n" % 500_000 + b" " * 500_000 + b"\r\n"
    chunked = talked(served, HEAD + b"Transfer-Encoding: chunked\r\n\r\n", *[piece] * 10, b"0\r\n\r\n")
    assert chunked.startswith(b"HTTP/1.1 413 ")


def test_a_connection_is_good_for_more_after_413(served: int) -> None:
    with httpx.Client(base_url=f"http://127.0.0.1:{served}") as client:
        assert client.post("/predict", content=b" " * 300_000, headers=JSON).status_code == 413
        assert client.post("/predict", content=BODY, headers=JSON).status_code == 200


def test_a_client_that_asks_first_need_not_send_a_large_body(served: int) -> None:
    with socket.create_connection(("127.0.0.1", served), timeout=10) as client:
        client.sendall(HEAD + b"Content-Length: 5000000\r\nExpect: 100-continue\r\n\r\n")
        assert client.recv(100).startswith(b"HTTP/1.1 413 ")


def test_a_client_that_hangs_up_halfway_disturbs_nobody(served: int) -> None:
    for _ in range(5):
        with socket.create_connection(("127.0.0.1", served), timeout=10) as client:
            client.sendall(HEAD + b"Content-Length: 500\r\n\r\n{")
    assert httpx.post(f"http://127.0.0.1:{served}/predict", content=BODY, headers=JSON).status_code == 200


def test_bodies_that_do_not_end_take_nobodys_place(served: int) -> None:
    slow = [socket.create_connection(("127.0.0.1", served), timeout=10) for _ in range(5)]  # two are worked on at most
    try:
        for client in slow:
            client.sendall(HEAD + b"Content-Length: 500\r\n\r\n{")
        for _ in range(3):
            assert httpx.post(f"http://127.0.0.1:{served}/predict", content=BODY, headers=JSON).status_code == 200
        assert {client.recv(100)[:13] for client in slow} == {b"HTTP/1.1 408 "}
    finally:
        for client in slow:
            client.close()


def test_a_late_request_that_ends_in_its_own_way_leaves_no_cancellation_behind() -> None:
    """Else whoever waits next in that task would take it for a cancellation of his own."""

    async def one() -> int:
        task = asyncio.current_task()
        assert task is not None
        with Ongoing().one(0.01), contextlib.suppress(asyncio.CancelledError):
            await asyncio.Event().wait()
        return task.cancelling()

    assert asyncio.run(one()) == 0


def test_unfinished_bodies_are_bounded_together() -> None:
    ongoing = Ongoing()

    async def one() -> None:
        with ongoing.one(60.0) as turn:
            turn.hold(60, 100)
            await asyncio.sleep(0)

    async def two() -> None:
        with pytest.raises(BackendUnavailable, match="unfinished"):
            await asyncio.gather(one(), one())

    asyncio.run(two())
    assert ongoing.held == 0


def test_a_version_is_told_where_one_answered() -> None:
    """And not where two did."""
    wanted = Wanted(1, held(10), canary=20, share=0.5, salt="r1")
    lines = fakes.canary(lambda n: np.full(n, 0.2))
    made = Service(PROJECT, FakeLog(), FakeLoader(), lines, first=wanted)
    several = orjson.dumps({"rows": [row(f"k{i}") for i in range(12)]})
    assert "x-model-version" not in post(made, content=several).headers
    versions = {
        post(made, content=orjson.dumps({"rows": [row(f"k{i}")]})).headers["x-model-version"] for i in range(12)
    }
    assert versions == {"10", "20"}
