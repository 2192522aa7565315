"""What a replica does: through its HTTP surface where a client could see it, and directly where it could not."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from mlops_ray.errors import BackendUnavailable
from mlops_ray.serving import protocol
from mlops_ray.serving.capture import SpoolWriter
from mlops_ray.serving.http import application
from mlops_ray.serving.routing import to_canary
from mlops_ray.serving.service import Held, Service, Wanted
from tests import fakes
from tests.fakes import FakeLoader, FakeScorer, canary, eventually, held, row, spooled

# A deadline that a busy machine keeps, and one that nobody waits for.
PROJECT = fakes.project(serving={"canary_deadline_s": 30.0})
HASTY = fakes.project(serving={"canary_deadline_s": 0.05})
STABLE = Wanted(sequence=1, stable=held(10))
ON_TRIAL = Wanted(sequence=1, stable=held(10), canary=20, share=0.5, salt="r1")
KEYS = [f"k{i}" for i in range(20)]
CHOSEN = to_canary(KEYS, "r1", 0.5)
ROWS = {"rows": [row(k) for k in KEYS]}
JSON = {"Content-Type": "application/json"}

Client = httpx.AsyncClient


def make(
    folder: Path, first: Wanted | None = STABLE, call: Any = None, load: Any = None, project: Any = PROJECT
) -> Service:
    return Service(
        project, SpoolWriter(folder, fsync=False), load or FakeLoader(), call or fakes.no_canary(), first=first
    )


def client_of(service: Service) -> Client:
    return Client(transport=httpx.ASGITransport(application(lambda: service)), base_url="http://replica")


def visit(service: Service, talk: Callable[[Client], Awaitable[Any]]) -> Any:
    async def run() -> Any:
        async with client_of(service) as client:
            return await talk(client)

    return asyncio.run(run())


def post(service: Service, path: str = "/predict", **options: Any) -> httpx.Response:
    return visit(service, lambda client: client.post(path, **options))  # type: ignore[no-any-return]


def batch(*keys: str) -> protocol.Batch:
    return protocol.parse_predict({"rows": [row(k) for k in keys]}, protocol.Form.of(PROJECT), now=2e9)


def problem(response: httpx.Response, status: int) -> dict[str, Any]:
    """The response's problem details, which must be in order."""
    assert response.status_code == status
    assert response.headers["content-type"] == "application/problem+json"
    found: dict[str, Any] = response.json()
    assert found["status"] == status
    assert found["type"] == "about:blank"
    assert found["title"]
    assert found["detail"]
    assert found["instance"].startswith("/")
    return found


# --- stable ---


def test_an_answer_and_its_record(tmp_path: Path) -> None:
    answer = post(make(tmp_path), json={"rows": [row("a"), row("b", x=None)]}, headers={"Idempotency-Key": "id-1"})
    assert answer.status_code == 200
    assert answer.json() == {
        "request_id": "id-1",
        "predictions": [
            {"prediction_id": f"id-1:{i}", "probability": 0.1, "label": 0, "version": 10, "variant": "stable"}
            for i in range(2)
        ],
    }
    (record,) = spooled(tmp_path)
    assert record["score_us"] > 0
    assert record["at"] > 1.7e9
    del record["score_us"], record["at"]
    assert record == {
        "kind": "predict",
        "id": "id-1",
        "keys": ["a", "b"],
        "times": [1e9, 1e9],
        "columns": {"x": [0.5, None], "n": [2, 2], "flag": [1, 1], "c": ["red"] * 2, "d": ["blue"] * 2},
        "stable": 10,
        "scores": [0.1, 0.1],
    }


def test_the_label_follows_the_threshold(tmp_path: Path) -> None:
    project = fakes.project(serving={"threshold": 0.1})
    (prediction,) = post(make(tmp_path, project=project), json={"rows": [row()]}).json()["predictions"]
    assert prediction["label"] == 1


def test_every_request_without_a_key_is_a_prediction_of_its_own(tmp_path: Path) -> None:
    service = make(tmp_path)
    ids = {post(service, json={"rows": [row()]}).json()["request_id"] for _ in range(3)}
    assert len(ids) == 3
    assert {r["id"] for r in spooled(tmp_path)} == ids


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_nobody_is_on_trial_at_share_zero(tmp_path: Path, share: float) -> None:
    calls: list[int] = []
    wanted = Wanted(sequence=1, stable=held(10), canary=20, share=share, salt="r1")
    post(make(tmp_path, wanted, canary(lambda n: np.full(n, 0.2), calls)), json=ROWS)
    assert calls == ([] if share == 0 else [20])
    assert ("canary" in spooled(tmp_path)[0]) == (share > 0)


# --- the canary ---


def test_the_canary_answers_its_share_and_stable_scores_all(tmp_path: Path) -> None:
    service = make(tmp_path, ON_TRIAL, canary(lambda n: np.linspace(0.6, 0.9, n)))
    predictions = post(service, json=ROWS).json()["predictions"]
    assert [p["variant"] == "canary" for p in predictions] == CHOSEN.tolist()
    assert [p["version"] for p in predictions] == np.where(CHOSEN, 20, 10).tolist()
    theirs = [p["probability"] for p in predictions if p["variant"] == "canary"]
    assert theirs == np.linspace(0.6, 0.9, CHOSEN.sum()).tolist()
    assert {p["probability"] for p in predictions if p["variant"] == "stable"} == {0.1}
    (record,) = spooled(tmp_path)
    assert record["scores"] == [0.1] * 20
    assert record["rows"] == np.flatnonzero(CHOSEN).tolist()
    assert record["canary_scores"] == theirs
    assert (record["canary"], record["rollout"], record["share"]) == (20, "r1", 0.5)


FAILURES: dict[str, Any] = {
    "raises": RuntimeError("the canary's process died"),
    "is cancelled": asyncio.CancelledError(),
    "hangs": None,
    "nan": lambda n: np.full(n, np.nan),
    "one infinite": lambda n: np.append(np.full(n - 1, 0.5), np.inf),
    "above one": lambda n: np.full(n, 1.5),  # found: was answered, and then stopped the collector
    "below zero": lambda n: np.full(n, -0.1),
    "too many": lambda n: np.full(n + 1, 0.5),
    "too wide": lambda n: np.full((n, 2), 0.5),
    "a scalar": lambda n: 0.5,
    "text": lambda n: "0.5",
    "nothing": lambda n: None,
}


@pytest.mark.parametrize("failure", FAILURES)
def test_stable_answers_for_a_canary_that_fails(tmp_path: Path, failure: str) -> None:
    project = HASTY if failure in ("hangs", "is cancelled") else PROJECT
    response = post(make(tmp_path, ON_TRIAL, canary(FAILURES[failure]), project=project), json=ROWS)
    assert response.status_code == 200
    predictions = response.json()["predictions"]
    assert {(p["probability"], p["version"]) for p in predictions} == {(0.1, 10)}
    assert [p["variant"] == "canary" for p in predictions] == CHOSEN.tolist()
    (record,) = spooled(tmp_path)
    assert record["canary"] == 20
    assert record["rows"] == np.flatnonzero(CHOSEN).tolist()
    assert record["canary_scores"] is None


def test_rows_of_concurrent_requests_travel_together(tmp_path: Path) -> None:
    calls: list[int] = []
    service = make(tmp_path, ON_TRIAL, canary(lambda n: np.linspace(0.5, 0.9, n), calls))

    async def many(client: Client) -> list[httpx.Response]:
        return await asyncio.gather(*(client.post("/predict", json={"rows": [row(k)]}) for k in KEYS))

    answers = [r.json()["predictions"][0] for r in visit(service, many)]
    assert sum(calls) == CHOSEN.sum()
    assert len(calls) < CHOSEN.sum()
    theirs = [a["probability"] for a in answers if a["variant"] == "canary"]
    assert len(set(theirs)) == len(theirs)  # each got a part of its own
    for record in spooled(tmp_path):  # and it is the part that stands in its record
        answered = next(a["probability"] for a in answers if a["prediction_id"] == f"{record['id']}:0")
        assert answered == record.get("canary_scores", record["scores"])[0]


# --- one request, one prediction ---


def test_a_retry_is_one_prediction_with_the_same_answer(tmp_path: Path) -> None:
    service = make(tmp_path, ON_TRIAL, canary(lambda n: np.random.default_rng().uniform(size=n)))
    first, second = (post(service, json=ROWS, headers={"Idempotency-Key": "again"}) for _ in range(2))
    assert first.content == second.content
    assert len(spooled(tmp_path)) == 1


def test_concurrent_retries_are_one_prediction(tmp_path: Path) -> None:
    calls: list[int] = []
    service = make(tmp_path, ON_TRIAL, canary(lambda n: np.random.default_rng().uniform(size=n), calls))

    async def many(client: Client) -> list[httpx.Response]:
        same = {"Idempotency-Key": "at once"}
        return await asyncio.gather(*(client.post("/predict", json=ROWS, headers=same) for _ in range(10)))

    answers = visit(service, many)
    assert {r.status_code for r in answers} == {200}
    assert len({r.content for r in answers}) == 1
    assert len(calls) == len(spooled(tmp_path)) == 1


def test_a_retry_survives_that_the_first_client_hung_up(tmp_path: Path) -> None:
    """Found: the retry was cancelled along with the request that it repeats."""
    service = make(tmp_path, ON_TRIAL, canary(lambda n: np.full(n, 0.2)))

    async def run() -> list[Any]:
        first = asyncio.create_task(service.predict("id", batch(*KEYS)))
        await asyncio.sleep(0)
        retries = [asyncio.create_task(service.predict("id", batch(*KEYS))) for _ in range(2)]
        await asyncio.sleep(0)
        first.cancel()
        return [*await asyncio.gather(*retries), await asyncio.gather(first, return_exceptions=True)]

    one, other, first = asyncio.run(run())
    assert one == other
    assert isinstance(first[0], asyncio.CancelledError)
    assert len(spooled(tmp_path)) == 1


def test_a_waiting_retry_may_itself_hang_up(tmp_path: Path) -> None:
    service = make(tmp_path, ON_TRIAL, canary(lambda n: np.full(n, 0.2)))

    async def run() -> dict[str, Any]:
        first = asyncio.create_task(service.predict("id", batch(*KEYS)))
        await asyncio.sleep(0)
        retry = asyncio.create_task(service.predict("id", batch(*KEYS)))
        await asyncio.sleep(0)
        retry.cancel()
        with pytest.raises(asyncio.CancelledError):
            await retry
        return await first

    assert asyncio.run(run())["request_id"] == "id"


def test_a_failed_request_may_be_retried(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spool = SpoolWriter(tmp_path, fsync=False)
    service = Service(PROJECT, spool, FakeLoader(), fakes.no_canary(), first=STABLE)
    key = {"Idempotency-Key": "id"}
    with monkeypatch.context() as full:
        full.setattr(spool, "append", lambda record: (_ for _ in ()).throw(OSError(28, "No space left on device")))
        post(service, json=ROWS, headers=key)
    assert post(service, json=ROWS, headers=key).status_code == 200
    assert len(spooled(tmp_path)) == 1


# --- what is wanted ---


def answering(service: Service) -> int | None:
    found: int | None = service.status()["stable"]
    return found


def test_a_newer_configuration_wins_and_an_older_one_is_ignored(tmp_path: Path) -> None:
    load = FakeLoader()
    service = make(tmp_path, load=load)
    service.want(Wanted(sequence=3, stable=held(30)))
    eventually(lambda: answering(service) == 30)
    service.want(Wanted(sequence=2, stable=held(20)))
    service.want(Wanted(sequence=3, stable=held(40)))
    service.want(Wanted(sequence=4, stable=held(50)))
    eventually(lambda: answering(service) == 50)
    assert load.loaded == [10, 30, 50]
    assert service.status()["sequence"] == 4
    eventually(lambda: service.status()["loaded"] == [50])


def test_a_warm_version_is_loaded_but_does_not_answer(tmp_path: Path) -> None:
    load = FakeLoader()
    service = make(tmp_path, load=load)
    service.want(Wanted(sequence=2, stable=held(10), warm=(held(20),)))
    eventually(lambda: service.status()["loaded"] == [10, 20])
    assert answering(service) == 10
    service.want(Wanted(sequence=3, stable=held(20), warm=(held(10),)))
    eventually(lambda: answering(service) == 20)
    assert load.loaded == [10, 20]  # the flip loads nothing


def test_a_version_that_cannot_be_loaded_leaves_the_old_one_answering(tmp_path: Path) -> None:
    load = FakeLoader(broken=(20,))
    service = make(tmp_path, load=load)
    service.want(Wanted(sequence=2, stable=held(20)))
    eventually(lambda: "20" in service.status()["failed"])
    assert "torn" in service.status()["failed"]["20"]
    assert service.ready()
    assert post(service, json={"rows": [row()]}).json()["predictions"][0]["version"] == 10
    load.broken = ()
    service.want(Wanted(sequence=3, stable=held(20)))
    eventually(lambda: answering(service) == 20)
    assert service.status()["failed"] == {}


def test_want_does_not_wait_for_loading(tmp_path: Path) -> None:
    may_load = threading.Event()

    def load(version: Held) -> FakeScorer:
        if version.version != 10:
            assert may_load.wait(30)
        return FakeLoader()(version)

    service = make(tmp_path, load=load)
    service.want(Wanted(sequence=2, stable=held(20)))
    assert post(service, json={"rows": [row()]}).json()["predictions"][0]["version"] == 10
    may_load.set()
    eventually(lambda: answering(service) == 20)


def test_a_first_version_that_cannot_be_loaded_raises(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="torn"):
        make(tmp_path, load=FakeLoader(broken=(10,)))


def test_the_swap_is_atomic_under_concurrent_requests(tmp_path: Path) -> None:
    """Each answer comes whole from one version, is labelled with it, and nobody goes without."""
    service = make(tmp_path)

    async def run() -> list[Any]:
        async def ask(i: int) -> Any:
            await asyncio.sleep(0.0002 * i)
            if i % 20 == 0:
                service.want(Wanted(sequence=2 + i, stable=held(10 + (i // 20) % 2 * 40)))
            return await service.predict(f"r{i}", batch("a", "b", "c"))

        return await asyncio.gather(*(ask(i) for i in range(400)))

    seen = set()
    for answer in asyncio.run(run()):
        ((version, probability),) = {(p["version"], p["probability"]) for p in answer["predictions"]}
        assert probability == version / 100
        seen.add(version)
    assert seen == {10, 50}
    assert all(r["scores"] == [r["stable"] / 100] * 3 for r in spooled(tmp_path))


@pytest.mark.parametrize("wanted", [Wanted(), STABLE, ON_TRIAL, Wanted(3, held(1), warm=(held(2), held(3)))])
def test_a_configuration_survives_the_state_database(wanted: Wanted) -> None:
    assert Wanted.parse(wanted.spec(), wanted.sequence) == wanted


# --- trouble, as problem details ---


def test_before_a_version_is_loaded(tmp_path: Path) -> None:
    service = make(tmp_path, first=None)
    response = post(service, json=ROWS)
    assert "no version is loaded" in problem(response, 503)["detail"]
    assert response.headers["retry-after"] == "1"
    assert visit(service, lambda c: c.get("/readyz")).status_code == 503
    assert visit(service, lambda c: c.get("/healthz")).json() == {"status": "ok"}
    service.want(STABLE)
    eventually(service.ready)
    ready = visit(service, lambda c: c.get("/readyz"))
    assert (ready.status_code, ready.json()["stable"]) == (200, 10)


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/predict", ROWS),
        ("/feedback", {"labels": [{"prediction_id": "p", "label": 1}]}),
        ("/watermark", {"time": 5}),
    ],
)
def test_what_cannot_be_recorded_is_not_acknowledged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, path: str, body: Any
) -> None:
    spool = SpoolWriter(tmp_path, fsync=False)
    monkeypatch.setattr(spool, "append", lambda record: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    response = post(Service(PROJECT, spool, FakeLoader(), fakes.no_canary(), first=STABLE), path, json=body)
    assert "No space left" in problem(response, 503)["detail"]
    assert "probability" not in response.text


@pytest.mark.parametrize("scores", [np.array([np.nan]), np.array([2.0]), np.array([0.5, 0.5])])
def test_nonsense_from_stable_is_neither_answered_nor_recorded(tmp_path: Path, scores: Any) -> None:
    class Mad:
        def score(self, columns: Any) -> Any:
            return scores

    problem(post(make(tmp_path, load=lambda version: Mad()), json={"rows": [row()]}), 503)
    assert spooled(tmp_path) == []


def test_a_bug_is_a_500_without_a_traceback(tmp_path: Path) -> None:
    class Broken:
        def score(self, columns: Any) -> Any:
            raise KeyError("secret path /home/x")

    response = post(make(tmp_path, load=lambda version: Broken()), json={"rows": [row()]})
    problem(response, 500)
    assert "secret" not in response.text


@pytest.mark.parametrize(
    ("request_", "status", "named"),
    [
        ({"content": b"", "headers": JSON}, 400, "rows"),
        ({"content": b"{", "headers": JSON}, 400, "line 1"),
        ({"json": {"rows": [row(n="x")]}}, 422, "row 0, column 'n'"),
        ({"content": b"a,b\n1,2\n", "headers": {"Content-Type": "text/csv"}}, 415, "text/csv"),
        ({"content": b"\x1f\x8b", "headers": JSON | {"Content-Encoding": "gzip"}}, 415, "uncompressed"),
        ({"json": ROWS, "headers": {"Idempotency-Key": "a:b"}}, 400, "':'"),
        ({"json": ROWS, "headers": {"Idempotency-Key": ""}}, 400, "1 to 200"),
        ({"json": ROWS, "headers": {"Idempotency-Key": "x" * 201}}, 400, "1 to 200"),
        ({"json": {"rows": [row(c="y" * 3000)]}}, 413, "limit"),
    ],
)
def test_bad_requests(tmp_path: Path, request_: dict[str, Any], status: int, named: str) -> None:
    service = make(tmp_path, project=fakes.project(serving={"max_body_mb": 3000 / 2**20}))
    assert named in problem(post(service, **request_), status)["detail"]
    assert spooled(tmp_path) == []


def test_a_body_in_pieces_is_counted_too(tmp_path: Path) -> None:
    async def pieces() -> Any:
        for _ in range(100):
            yield b" " * 100

    service = make(tmp_path, project=fakes.project(serving={"max_body_mb": 3000 / 2**20}))
    problem(post(service, content=pieces(), headers=JSON), 413)


@pytest.mark.parametrize(("method", "path", "status"), [("GET", "/predict", 405), ("POST", "/nothing", 404)])
def test_wrong_doors(tmp_path: Path, method: str, path: str, status: int) -> None:
    response = visit(make(tmp_path), lambda client: client.request(method, path))
    assert path in problem(response, status)["detail"]
    assert (response.headers.get("allow") is not None) == (status == 405)


def test_feedback_and_watermarks_are_recorded(tmp_path: Path) -> None:
    service = make(tmp_path)
    answer = post(service, "/feedback", json={"labels": [{"prediction_id": "a:0", "label": 1, "time": 7}]})
    assert (answer.status_code, answer.json()) == (202, {"accepted": 1})
    assert post(service, "/watermark", json={"time": 8}).status_code == 202
    problem(post(service, "/feedback", json={"labels": []}), 422)
    label, watermark = spooled(tmp_path)
    assert (label["kind"], label["ids"], label["labels"], label["times"]) == ("label", ["a:0"], [1.0], [7.0])
    assert (watermark["kind"], watermark["time"]) == ("watermark", 8)


def test_answers_are_remembered_within_bounds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mlops_ray.serving.service._REMEMBERED", 2)
    service = make(tmp_path)

    async def run() -> None:
        for request_id in ("a", "b", "c", "a", "c"):
            await service.predict(request_id, batch("k"))

    asyncio.run(run())
    assert [r["id"] for r in spooled(tmp_path)] == ["a", "b", "c", "a"]


def test_trouble_reaches_every_concurrent_retry(tmp_path: Path) -> None:
    service = make(tmp_path, first=None)

    async def run() -> list[Any]:
        tasks = [service.predict("id", batch("k")) for _ in range(3)]
        return await asyncio.gather(*tasks, return_exceptions=True)

    assert [type(e) for e in asyncio.run(run())] == [BackendUnavailable] * 3


def test_a_key_used_for_another_body_is_refused(tmp_path: Path) -> None:
    """And not answered with what somebody else asked."""
    service, key = make(tmp_path), {"Idempotency-Key": "k"}
    first = post(service, json={"rows": [row("a")]}, headers=key)
    other = post(service, json={"rows": [row("b")]}, headers=key)
    assert first.status_code == 200
    assert other.status_code == 422
    assert "Idempotency-Key used twice" in other.text
