from __future__ import annotations

import asyncio
import re
from types import SimpleNamespace
from typing import Any

import httpx
import orjson
import pyarrow as pa
import pytest

from mlops_ray.config import DAY_S
from mlops_ray.demo import replay as replay_module
from mlops_ray.demo.replay import Hour, Tally, days, replay

_TIME = pa.timestamp("us", tz="UTC")
HOUR = 3600.0
COLUMNS = ["flight_key", "event_time", "origin"]


def flights(*rows: tuple[str, float, float | None, int | None]) -> pa.Table:
    """Rows of (key, departure, landing, late), times in hours."""

    def times(hours: Any) -> pa.Array:
        return pa.array([None if h is None else round(h * HOUR * 1e6) for h in hours], pa.int64()).cast(_TIME)

    key, departs, lands, late = zip(*rows, strict=True)
    return pa.table(
        {
            "flight_key": pa.array(key),
            "event_time": times(departs),
            "landed": times(lands),
            "late": pa.array(late, pa.int64()),
            "origin": pa.array(["JFK"] * len(key)),
        }
    )


FLIGHTS = flights(
    ("c", 5.5, 8.25, 1),
    ("a", 5.0, 5.9, 0),  # lands within the hour of its departure
    ("b", 5.0, 30.0, 1),  # lands the next day
    ("d", 23.99, 24.5, 0),
    ("e", 26.0, None, None),  # never lands
    ("f", -0.01, 3.0, 0),  # before the replay
    ("g", 48.0, 49.0, 0),  # after it
)


def played(*, per_flight: bool = False, until: float = 48 * HOUR) -> list[list[Hour]]:
    return list(days(FLIGHTS, COLUMNS, 0.0, until, per_flight=per_flight))


def test_every_hour_of_every_day_is_there() -> None:
    starts = [[hour.start for hour in day] for day in played()]
    assert starts == [[d * DAY_S + h * HOUR for h in range(24)] for d in range(2)]
    assert [len(day) for day in played(until=30 * HOUR)] == [24, 6]


def test_one_request_per_departure_hour() -> None:
    first, second = played()
    requests = {key: rows for day in (first, second) for hour in day for key, rows in hour.requests}
    assert {key: [r["flight_key"] for r in rows] for key, rows in requests.items()} == {
        "hour-1970-01-01T05": ["a", "b", "c"],  # by departure, then key
        "hour-1970-01-01T23": ["d"],
        "hour-1970-01-02T02": ["e"],
    }
    assert requests["hour-1970-01-01T05"][2] == {
        "flight_key": "c",
        "event_time": "1970-01-01T05:30:00Z",
        "origin": "JFK",
    }


def test_labels_come_in_the_hour_of_landing_under_the_id_that_the_answer_will_have() -> None:
    labels = {hour.start / HOUR: hour.labels for day in played() for hour in day if hour.labels}
    assert labels == {
        5.0: [{"prediction_id": "hour-1970-01-01T05:0", "label": 0, "time": 5.9 * HOUR}],
        8.0: [{"prediction_id": "hour-1970-01-01T05:2", "label": 1, "time": 8.25 * HOUR}],
        24.0: [{"prediction_id": "hour-1970-01-01T23:0", "label": 0, "time": 24.5 * HOUR}],
        30.0: [{"prediction_id": "hour-1970-01-01T05:1", "label": 1, "time": 30.0 * HOUR}],
    }


def test_one_request_per_flight() -> None:
    hour = played(per_flight=True)[0][5]
    assert [(key, len(rows)) for key, rows in hour.requests] == [("a", 1), ("b", 1), ("c", 1)]
    assert [label["prediction_id"] for label in hour.labels] == ["a:0"]


@pytest.mark.parametrize("per_flight", [False, True])
def test_every_label_belongs_to_a_row_that_was_asked_for(per_flight: bool) -> None:
    hours = [hour for day in played(per_flight=per_flight) for hour in day]
    asked = {f"{key}:{i}" for hour in hours for key, rows in hour.requests for i in range(len(rows))}
    labelled = [label["prediction_id"] for hour in hours for label in hour.labels]
    assert set(labelled) < asked
    assert len(set(labelled)) == len(labelled) == len(asked) - 1  # all but the one that never landed


class Server:
    """Notes what is posted, in order; refuses predictions whose key holds `bad`."""

    def __init__(self, bad: str = "nothing") -> None:
        self.bad, self.seen = bad, list[tuple[str, Any, str | None]]()

    def answer(self, request: httpx.Request) -> httpx.Response:
        key = request.headers.get("idempotency-key")
        self.seen.append((request.url.path, orjson.loads(request.content), key))
        if key and re.search(self.bad, key):
            return httpx.Response(503, text="no")
        if key and "T23" in key and self.bad == "lost":
            raise httpx.ConnectError("connection refused")
        return httpx.Response(200, json={})


def run(server: Server, monkeypatch: pytest.MonkeyPatch, acknowledge: Any = None, **options: Any) -> Tally:
    real, tally = httpx.AsyncClient, Tally()

    def client(**arguments: Any) -> httpx.AsyncClient:
        return real(**arguments | {"transport": httpx.MockTransport(server.answer)})

    async def nothing(at: float) -> None:
        return None

    hours = days(FLIGHTS, COLUMNS, 0.0, 2 * DAY_S, per_flight=False)
    with monkeypatch.context() as patched:
        patched.setattr(replay_module.httpx, "AsyncClient", client)
        asyncio.run(replay("http://host/small", hours, acknowledge or nothing, tally=tally, **options))
    return tally


def test_each_day_ends_with_its_watermark_and_waits_for_the_acknowledgement(monkeypatch: pytest.MonkeyPatch) -> None:
    server, ended = Server(), list[float]()

    async def acknowledge(at: float) -> None:
        assert server.seen[-1][:2] == ("/small/watermark", {"time": at})
        before = len(server.seen)
        await asyncio.sleep(0.01)
        assert len(server.seen) == before  # nothing of the next day went out meanwhile

    tally = run(server, monkeypatch, acknowledge, on_day=ended.append)
    assert ended == [DAY_S, 2 * DAY_S]
    paths = [path.removeprefix("/small") for path, *_ in server.seen]
    day = ["/predict", "/feedback", "/feedback", "/predict", "/watermark"]
    assert paths == [*day, "/feedback", "/predict", "/feedback", "/watermark"]
    assert tally.sent == {"1970-01": 9}
    assert tally.failed == {}


def test_failures_are_counted_and_told_and_the_replay_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    refused = run(Server(bad="T05"), monkeypatch)
    assert (refused.sent, refused.failed) == ({"1970-01": 9}, {"1970-01": 1})
    assert refused.troubles == ["/predict hour-1970-01-01T05: 503 no"]
    lost = run(Server(bad="lost"), monkeypatch)
    assert lost.failed == {"1970-01": 1}
    assert "ConnectError" in lost.troubles[0]


def test_speed_stretches_the_hours(monkeypatch: pytest.MonkeyPatch) -> None:
    slept: list[float] = []

    async def sleep(seconds: float) -> None:
        slept.append(seconds)

    # The module's own name for it: servers of other tests sleep in threads of this process.
    monkeypatch.setattr(replay_module, "asyncio", SimpleNamespace(**{**vars(asyncio), "sleep": sleep}))
    run(Server(), monkeypatch, speed=3600.0)
    assert len(slept) == 48
    assert 22 < slept[23] <= 23  # the day's last hour is due 23 s after its first
    assert slept[24] <= 0.001
