"""Flights as live traffic: one HTTP request per departure hour (or per flight), labels when the flights have landed.

The replay is the source of the event watermark: after each day it posts one, and the next day goes out only when
`acknowledge` has returned. How fast the machine is, or how fast the replay is asked to run, changes no decision.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import httpx
import polars as pl
import pyarrow as pa

from mlops_ray.config import DAY_S

Acknowledge = Callable[[float], Awaitable[None]]

# Connections at a time; one hour of flights is one request, so this matters for `per_flight` only.
_CONNECTIONS = 8


@dataclass
class Tally:
    """Requests sent and failed, by month of the flights ("2013-03")."""

    sent: dict[str, int] = field(default_factory=dict)
    failed: dict[str, int] = field(default_factory=dict)
    troubles: list[str] = field(default_factory=list)

    def count(self, month: str, trouble: str | None) -> None:
        """One request of `month`, and why it failed, if it did."""
        self.sent[month] = self.sent.get(month, 0) + 1
        if trouble is not None:
            self.failed[month] = self.failed.get(month, 0) + 1
            self.troubles.append(trouble)


@dataclass(frozen=True)
class Hour:
    """One hour of the replay: requests (id, rows) of flights that depart, and labels of flights that landed in it."""

    start: float
    requests: tuple[tuple[str, list[dict[str, Any]]], ...]
    labels: list[dict[str, Any]]


def days(
    flights: pa.Table, columns: list[str], since: float, until: float, *, per_flight: bool
) -> Iterator[list[Hour]]:
    """The replay's hours, day by day (UTC) in [since, until). Times in seconds since the epoch.

    Args: flights: as `demo.flights.flights()`; columns: what a request carries. A flight's prediction id is known
        beforehand, because the request's id is given by the client (Idempotency-Key).
    """
    hour = pl.col("event_time").dt.truncate("1h")
    rows = (
        pl.DataFrame(pl.from_arrow(flights))
        .filter(pl.col("event_time").dt.epoch("us").is_between(round(since * 1e6), round(until * 1e6), closed="left"))
        .sort("event_time", "flight_key")
        .with_columns(hour=hour)
        .with_columns(place=pl.int_range(pl.len()).over("hour"))
    )
    request_id = (
        pl.col("flight_key")
        if per_flight
        else pl.concat_str(pl.lit("hour-"), pl.col("hour").dt.strftime("%Y-%m-%dT%H"))
    )
    rows = rows.with_columns(request_id=request_id).with_columns(
        prediction_id=pl.concat_str("request_id", pl.lit(":"), pl.lit(0) if per_flight else pl.col("place"))
    )
    labels = rows.filter(pl.col("landed").is_not_null() & pl.col("late").is_not_null()).with_columns(
        landing_hour=pl.col("landed").dt.truncate("1h")
    )
    by_hour = {key[0]: part for key, part in rows.partition_by("hour", as_dict=True).items()}
    landed = {
        key[0]: part.sort("landed", "prediction_id")
        for key, part in labels.partition_by("landing_hour", as_dict=True).items()
    }
    for start in range(int(since), int(until), int(DAY_S)):
        yield [
            _hour(at, by_hour.get(moment), landed.get(moment), columns)
            for at in range(start, min(start + int(DAY_S), int(until)), 3600)
            if (moment := datetime.fromtimestamp(at, UTC)) is not None
        ]


def _hour(start: int, departing: pl.DataFrame | None, landed: pl.DataFrame | None, columns: list[str]) -> Hour:
    requests = []
    if departing is not None:
        text = departing.with_columns(pl.col("event_time").dt.strftime("%Y-%m-%dT%H:%M:%SZ"))
        for (request_id,), part in text.partition_by("request_id", as_dict=True, maintain_order=True).items():
            requests.append((request_id, part.select(columns).to_dicts()))
    labels = []
    if landed is not None:
        labels = (
            landed.select(
                "prediction_id",
                label=pl.col("late"),
                time=pl.col("landed").dt.epoch("us") / 1e6,
            )
        ).to_dicts()
    return Hour(float(start), tuple(requests), labels)


async def replay(
    url: str,
    hours_by_day: Iterator[list[Hour]],
    acknowledge: Acknowledge,
    *,
    tally: Tally,
    speed: float | None = None,
    on_day: Callable[[float], None] = lambda at: None,
) -> None:
    """Play all days against the project at `url`.

    Args: speed: seconds of flights per second of the machine; None for as fast as it goes. on_day: called with the
        end of each day, after it was acknowledged.
    """
    limits = httpx.Limits(max_connections=_CONNECTIONS)
    async with httpx.AsyncClient(base_url=url, timeout=30.0, limits=limits) as client:
        for day in hours_by_day:
            began, first = time.monotonic(), day[0].start
            for hour in day:
                if speed is not None:
                    await asyncio.sleep(max(0.0, began + (hour.start - first) / speed - time.monotonic()))
                await _play(client, hour, tally)
            end = first + DAY_S
            await _post(client, "/watermark", {"time": end}, tally, _month(first))
            await acknowledge(end)
            on_day(end)


async def _play(client: httpx.AsyncClient, hour: Hour, tally: Tally) -> None:
    month = _month(hour.start)
    posts = [_post(client, "/predict", {"rows": rows}, tally, month, key) for key, rows in hour.requests]
    if hour.labels:
        posts.append(_post(client, "/feedback", {"labels": hour.labels}, tally, month))
    await asyncio.gather(*posts)


async def _post(
    client: httpx.AsyncClient, path: str, body: dict[str, Any], tally: Tally, month: str, key: str | None = None
) -> None:
    try:
        response = await client.post(path, json=body, headers={"Idempotency-Key": key} if key else {})
        trouble = None if response.is_success else f"{path} {key}: {response.status_code} {response.text[:200]}"
    except httpx.HTTPError as exc:
        trouble = f"{path} {key}: {exc!r}"
    tally.count(month, trouble)


def _month(time_s: float) -> str:
    return datetime.fromtimestamp(time_s, UTC).strftime("%Y-%m")
