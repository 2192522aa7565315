"""Rows and scores as frames: over a real socket, in pieces, and as nonsense."""

from __future__ import annotations

import asyncio
import struct
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import uvloop
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from mlops_ray.errors import BackendUnavailable, DataError
from mlops_ray.serving import frames
from mlops_ray.serving.canary import Told

TEXTS = st.text(st.characters(exclude_categories=("Cs",)), max_size=20)


def objects(values: list[str]) -> Any:
    out = np.empty(len(values), dtype=object)
    out[:] = values
    return out


@given(
    st.integers(1, 5).flatmap(
        lambda n: st.fixed_dictionaries(
            {
                "x": hnp.arrays(np.float32, n),
                "t": hnp.arrays(np.float64, n),
                "y": hnp.arrays(np.float32, n),
                "c": st.lists(TEXTS, min_size=n, max_size=n).map(objects),
            }
        )
    )
)
def test_rows_arrive_as_they_were(columns: dict[str, Any]) -> None:
    found = frames.asked(frames.ask(columns))
    assert found.keys() == columns.keys()
    for name, values in columns.items():
        assert found[name].dtype == values.dtype
        np.testing.assert_array_equal(found[name], values)


@pytest.mark.parametrize(
    "told",
    [
        Told(np.array([0.25, 0.5]), (0, 1), 0.4),
        Told(np.array([[0.25, 0.75]]), ("a", "b")),
        Told(np.array([1e300]), (), None, 12.5),
        Told(np.array([[0.25, 0.75], [0.5, 0.5]]).T, ("a", "b")),
    ],
)
def test_scores_arrive_as_they_were(told: Told) -> None:
    found = frames.heard(frames.told(told))
    np.testing.assert_array_equal(found.scores, told.scores)
    assert (found.classes, found.threshold, found.row_us) == (told.classes, told.threshold, told.row_us)


def test_a_process_of_the_last_release_is_heard() -> None:
    """It does not say how long it took."""
    head = b'{"shape":[1],"classes":[0,1],"threshold":null}'
    told = frames.heard(struct.pack("<I", len(head)) + head + struct.pack("<d", 0.25))
    assert (told.scores.tolist(), told.row_us) == ([0.25], None)


@pytest.mark.parametrize("us", ["abc", [1], {}])
def test_a_time_that_is_none_is_an_error(us: object) -> None:
    with pytest.raises(DataError):
        frames.heard(frames._body({"shape": [1], "classes": [], "threshold": None, "us": us}, [bytes(8)]))


@given(st.binary(max_size=60))
def test_nonsense_is_an_error_of_ours(body: bytes) -> None:
    with pytest.raises(DataError):
        frames.asked(body)
    with pytest.raises((DataError, BackendUnavailable)):
        frames.heard(body)


ROWS = {"x": np.array([0.5, 0.25], dtype=np.float32)}


def double(columns: Any) -> Told:
    return Told(2.0 * columns["x"].astype(np.float64), (0, 1))


@pytest.fixture(autouse=True, params=[asyncio.new_event_loop, uvloop.new_event_loop], ids=["asyncio", "uvloop"])
def _loops(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ray Serve runs uvloop, whose transports are not asyncio's."""
    monkeypatch.setattr(asyncio.events, "new_event_loop", request.param)
    monkeypatch.setattr(asyncio.runners.events, "new_event_loop", request.param)


def over_a_socket(folder: Path, score: frames.Score, talk: Callable[[frames.Asking], Awaitable[Any]]) -> Any:
    async def run() -> Any:
        loop = asyncio.get_running_loop()
        path = str(folder / "s")
        server = await loop.create_unix_server(lambda: frames.Telling(score), path)
        _, asking = await loop.create_unix_connection(frames.Asking, path)
        try:
            return await talk(asking)
        finally:
            asking.close()
            await asking.lost
            server.close()
            await server.wait_closed()

    return asyncio.run(run())


def test_many_calls_at_once_get_their_own_answers(tmp_path: Path) -> None:
    async def later(columns: Any) -> Told:
        await asyncio.sleep(0.01 * float(columns["x"][0]))  # the first asked is the last told
        return double(columns)

    async def talk(asking: frames.Asking) -> list[Told]:
        rows = [{"x": np.full(1000 * i, 1.0 / i, dtype=np.float32)} for i in range(1, 30)]
        return await asyncio.gather(*map(asking.call, rows))

    found = over_a_socket(tmp_path, lambda c: asyncio.ensure_future(later(c)), talk)
    assert [len(told.scores) for told in found] == [1000 * i for i in range(1, 30)]
    assert all(np.allclose(told.scores, 2.0 / i) for i, told in enumerate(found, 1))


def test_what_a_model_raises_is_told(tmp_path: Path) -> None:
    def broken(columns: Any) -> Told:
        raise ValueError("no such feature")

    async def talk(asking: frames.Asking) -> None:
        with pytest.raises(BackendUnavailable, match="ValueError: no such feature"):
            await asking.call(ROWS)
        with pytest.raises(BackendUnavailable):  # and the line still stands
            await asking.call(ROWS)

    over_a_socket(tmp_path, broken, talk)


def test_a_process_that_dies_fails_whoever_waits(tmp_path: Path) -> None:
    async def run() -> None:
        loop = asyncio.get_running_loop()
        open_: list[Any] = []

        class Mute(asyncio.Protocol):
            def connection_made(self, transport: Any) -> None:
                open_.append(transport)

        server = await loop.create_unix_server(Mute, str(tmp_path / "s"))
        _, asking = await loop.create_unix_connection(frames.Asking, str(tmp_path / "s"))
        calls = [asking.call(ROWS) for _ in range(3)]
        await asyncio.sleep(0.01)
        open_[0].abort()
        found = await asyncio.gather(*calls, return_exceptions=True)
        assert [type(e) for e in found] == [ConnectionResetError] * 3
        with pytest.raises(ConnectionResetError):
            await asking.call(ROWS)
        server.close()

    asyncio.run(run())


def test_an_answer_that_nobody_waits_for_is_dropped(tmp_path: Path) -> None:
    async def talk(asking: frames.Asking) -> Told:
        given_up = asking.call(ROWS)
        given_up.cancel()
        return await asking.call(ROWS)

    assert over_a_socket(tmp_path, double, talk).scores.tolist() == [1.0, 0.5]


def test_a_frame_that_claims_gigabytes_ends_the_connection(tmp_path: Path) -> None:
    async def run() -> bytes:
        loop = asyncio.get_running_loop()
        server = await loop.create_unix_server(lambda: frames.Telling(double), str(tmp_path / "s"))
        reader, writer = await asyncio.open_unix_connection(str(tmp_path / "s"))
        writer.write(struct.pack("<II", 1, 2**31))
        try:
            return await reader.read()
        except ConnectionResetError:
            return b""
        finally:
            writer.close()
            server.close()

    assert asyncio.run(run()) == b""
