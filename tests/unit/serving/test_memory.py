"""A replica's memory does not grow with the requests that it has answered."""

from __future__ import annotations

import asyncio
import gc
import itertools
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import psutil
import pytest

from mlops_ray.errors import DataError
from mlops_ray.serving.service import Service
from mlops_ray.serving.spool.capture import Capture
from mlops_ray.serving.versions import Wanted
from mlops_ray.serving.web.http import Application
from tests import fakes
from tests.fakes import FakeLoader, canary, held, row

KEYS = 1_000


def replica(folder: Path) -> Application:
    """With all that holds on to something: a canary, remembered ids, the spool."""
    wanted = Wanted(1, held(10), canary=20, share=0.1, salt="r1")
    project = fakes.project()
    log = Capture(project, folder, None)
    service = Service(project, log, FakeLoader(), canary(lambda n: np.full(n, 0.2)), first=wanted)
    return Application(lambda: service)


async def ask(application: Application, count: int, ids: Any) -> None:
    """A tenth of them repeat an id, a tenth are refused."""
    bodies = [orjson.dumps({"rows": [row(f"k{i}", n="two" if i % 10 == 0 else 2)]}) for i in range(KEYS)]
    sent: list[Any] = []

    async def send(message: Any) -> None:
        sent.append(message["type"])

    for i in range(count):
        body = bodies[i % KEYS]

        async def receive(body: bytes = body) -> Any:
            return {"type": "http.request", "body": body, "more_body": False}

        key = f"id-{next(ids)}" if i % 3 == 0 else f"again-{i % KEYS}"
        headers = [(b"content-type", b"application/json")]
        headers += [(b"idempotency-key", key.encode())] if i % 2 else []
        scope = {"type": "http", "method": "POST", "path": "/predict", "headers": headers}
        await application(scope, receive, send)
        assert len(sent) == 2
        sent.clear()


def test_the_heap_stays_flat_over_thousands_of_requests(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mlops_ray.serving.repeats._ANSWERS", 256)  # so that it is full soon

    async def run() -> list[int]:
        application, ids, sizes = replica(tmp_path), itertools.count(), []
        tracemalloc.start()
        try:
            for _ in range(3):
                await ask(application, 2_000, ids)
                gc.collect()
                sizes.append(tracemalloc.get_traced_memory()[0])
        finally:
            tracemalloc.stop()
        return sizes

    _, second, third = asyncio.run(run())
    assert third - second < 50_000, f"{(third - second) / 2_000:.0f} bytes a request"


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_process_stays_flat_over_a_million_requests(tmp_path: Path) -> None:
    async def run() -> list[int]:
        application, ids, sizes = replica(tmp_path), itertools.count(), []
        for _ in range(10):
            await ask(application, 100_000, ids)
            gc.collect()
            sizes.append(psutil.Process().memory_info().rss)
        return sizes

    sizes = asyncio.run(run())
    assert sizes[-1] - sizes[1] < 10 * 2**20, [size // 2**20 for size in sizes]


def test_requests_leave_no_cycles_behind(tmp_path: Path) -> None:
    """Nor do those that fail: a replica looks for garbage rarely, and a cycle would hold a request's body till then."""

    class Refuses(fakes.FakeScorer):
        def score(self, columns: Any) -> Any:
            raise DataError("request", "x is infinite")

    async def run() -> int:
        log = Capture(fakes.project(), tmp_path, None)
        lines = fakes.no_canary
        service = Service(fakes.project(), log, lambda held: Refuses(0.5), lines, first=Wanted(1, held(10)))
        application, sent = Application(lambda: service), list[int]()

        async def send(message: Any) -> None:
            sent.extend([message["status"]] if "status" in message else [])

        async def post(key: str) -> None:
            async def receive() -> Any:
                return {"type": "http.request", "body": orjson.dumps({"rows": [row()]}), "more_body": False}

            headers = [(b"content-type", b"application/json"), (b"idempotency-key", key.encode())]
            await application({"type": "http", "method": "POST", "path": "/predict", "headers": headers}, receive, send)

        await post("warm")
        gc.collect()
        gc.disable()
        try:
            for i in range(100):
                await asyncio.gather(post(f"id-{i}"), post(f"id-{i}"))  # the second waits for the first
            return gc.collect() if set(sent) == {422} else -1
        finally:
            gc.enable()

    assert 0 <= asyncio.run(run()) < 100  # 54 for each request when there were cycles
