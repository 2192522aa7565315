"""Steady traffic from an open-loop client: requests leave by the clock, however slowly answers come."""

from __future__ import annotations

import asyncio
import itertools
import json
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import aiohttp

# A client of 200 requests a second that waits ten seconds has two thousand of them under way. httpx looks through its
# whole pool at each of them, and then the client is what is slow.
_TIMEOUT = aiohttp.ClientTimeout(60)
_RETRIES = 30
_PAUSE_S = 0.2


@dataclass
class Load:
    """What became of the requests of one run. Times are seconds since it began."""

    statuses: Counter[str] = field(default_factory=Counter)
    """The last outcome of each request: a status, or the name of the client's error."""
    failed: list[tuple[float, str]] = field(default_factory=list)
    """Attempts that did not end with 200, by when they ended; more than there are requests where these were retried."""
    acknowledged: list[str] = field(default_factory=list)
    """Prediction ids of the answers."""
    canary: list[float] = field(default_factory=list)
    """When answers of a canary came."""
    latencies_s: list[float] = field(default_factory=list)
    assigned: dict[str, list[float]] = field(default_factory=lambda: {"stable": [], "canary": []})
    """Latencies of the answers, by the variant that their key was assigned to."""
    answered: Counter[tuple[str, int]] = field(default_factory=Counter)
    """Answers by that variant and by the version that answered."""
    began: float = 0.0
    """Of `time.monotonic`."""

    def outage_s(self, since: float, until: float) -> float:
        """From the first failed attempt between two times to the last."""
        times = [at for at, _ in self.failed if since <= at < until]
        return max(times) - min(times) if times else 0.0

    def kinds(self, since: float = 0.0, until: float = float("inf")) -> dict[str, int]:
        """Failed attempts between two times by what they were."""
        return dict(Counter(kind for at, kind in self.failed if since <= at < until))

    def latency_s(self, share: float) -> float:
        """A quantile of the latencies, retries and their pauses included."""
        return quantile(self.latencies_s, share)


def quantile(values: Sequence[float], share: float) -> float:
    """The value that `share` of them are below."""
    return sorted(values)[min(len(values) - 1, int(len(values) * share))]


def eventually(condition: Callable[[], bool], within_s: float) -> float:
    """Wait for other processes to get there, which tell nobody when; how long it took, in seconds."""
    began = time.monotonic()
    while not condition():
        assert time.monotonic() - began < within_s, "it never came about"
        time.sleep(0.02)
    return time.monotonic() - began


async def steady(
    url: str,
    row: Callable[[int], Mapping[str, Any]],
    *,
    rate: float,
    name: str,
    during: Callable[[], Any],
    retry: bool = True,
    around_s: float = 1.0,
    n_rows: int = 1,
    heard: Callable[[Mapping[str, Any]], None] = lambda prediction: None,
) -> Load:
    """Send `n_rows` rows per request, each with an Idempotency-Key of its own, while `during` runs in a thread.

    Args: retry: connection errors and 503 are tried again with the same key, as a client of an idempotent service does.
        around_s: for how long before and after it. heard: called with each prediction as soon as it is there.
    """
    load = Load()
    connector = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(connector=connector, timeout=_TIMEOUT) as client, asyncio.TaskGroup() as tasks:

        async def happen() -> None:
            await asyncio.sleep(around_s)
            await asyncio.to_thread(during)
            await asyncio.sleep(around_s)

        load.began, happening = time.monotonic(), tasks.create_task(happen())
        for i in itertools.count():
            if happening.done():
                break
            await asyncio.sleep(max(0.0, load.began + i / rate - time.monotonic()))
            rows = [row(n_rows * i + k) for k in range(n_rows)]
            tasks.create_task(_one(client, url, rows, f"{name}-{i}", load, retry, heard))
    return load


async def _one(
    client: aiohttp.ClientSession,
    url: str,
    rows: Sequence[Mapping[str, Any]],
    key: str,
    load: Load,
    retry: bool,
    heard: Callable[[Mapping[str, Any]], None],
) -> None:
    began = time.monotonic()
    for _ in range(_RETRIES if retry else 1):
        try:
            headers = {"Idempotency-Key": key}
            async with client.post(f"{url}/predict", json={"rows": rows}, headers=headers) as answer:
                body, outcome = await answer.read(), str(answer.status)
        except (aiohttp.ClientError, TimeoutError) as exc:
            outcome = type(exc).__name__
        if outcome == "200":
            break
        load.failed.append((time.monotonic() - load.began, outcome))
        if outcome.isdigit() and outcome != "503":
            break
        if retry:
            await asyncio.sleep(_PAUSE_S)
    load.statuses[outcome] += 1
    load.latencies_s.append(time.monotonic() - began)
    for prediction in json.loads(body)["predictions"] if outcome == "200" else ():
        heard(prediction)
        load.acknowledged.append(prediction["prediction_id"])
        load.assigned[prediction["variant"]].append(load.latencies_s[-1])
        load.answered[prediction["variant"], prediction["version"]] += 1
        if prediction["variant"] == "canary":
            load.canary.append(time.monotonic() - load.began)
