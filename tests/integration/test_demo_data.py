from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

import pyarrow.compute as pc
import pytest

from mlops_ray.config import load_project
from mlops_ray.data.features.statistics import fold
from mlops_ray.data.features.transformer import bins, transformer
from mlops_ray.data.rules.expectations import check
from mlops_ray.demo.flights import flights, history
from mlops_ray.demo.quickstart import samples
from mlops_ray.errors import DataError

CONFIGS = Path(__file__).parents[2] / "configs"


def test_all_flights_of_the_year_are_there_once_and_in_order():
    table = flights()
    assert table.num_rows == 336_776
    assert pc.count_distinct(table["flight_key"]).as_py() == table.num_rows
    assert table["late"].null_count == 9_430  # cancelled and diverted flights
    assert table["landed"].null_count == 9_430
    times = table["event_time"].to_numpy()
    assert (times[1:] >= times[:-1]).all()


def test_the_first_flight_by_hand():
    # 5:15 in Newark is 10:15 UTC; scheduled into Houston at 8:19 Central time, 14:19 UTC, and 11 minutes late.
    first = flights().slice(0, 1).to_pylist()[0]
    assert first["flight_key"] == "2013-01-01-UA1545-EWR-0515"
    assert first["event_time"] == datetime(2013, 1, 1, 10, 15, tzinfo=UTC)
    assert first["landed"] == datetime(2013, 1, 1, 14, 30, tzinfo=UTC)
    assert (first["late"], first["sched_dep_min"], first["sched_arr_min"]) == (0, 315, 499)
    assert (first["day_of_week"], first["temp"], first["wind_gust"]) == (1, 39.02, None)


def test_summer_time_is_in_the_instants():
    july = flights().filter(pc.equal(flights()["flight_key"], "2013-07-01-US1431-EWR-0500"))
    assert july["event_time"].to_pylist() == [datetime(2013, 7, 1, 9, 0, tzinfo=UTC)]


def test_labels_are_known_after_departure_and_within_two_days():
    lag_us = pc.min_max(pc.subtract(flights()["landed"], flights()["event_time"]).cast("int64")).as_py()
    assert timedelta(0) < timedelta(microseconds=lag_us["min"])
    assert timedelta(microseconds=lag_us["max"]) < timedelta(days=2)


def test_history_is_labelled_and_half_open():
    table = history("2013-01-01", "2013-03-01")
    assert table.num_rows == 49_855
    assert table["late"].null_count == 0
    assert "landed" not in table.column_names
    span = pc.min_max(table["event_time"]).as_py()
    assert datetime(2013, 1, 1, tzinfo=UTC) <= span["min"]
    assert span["max"] < datetime(2013, 3, 1, tzinfo=UTC)
    assert history("2013-03-01", "2013-03-01").num_rows == 0


def test_says_how_to_get_the_flights(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    flights.cache_clear()
    with pytest.raises(DataError, match=r"pip install 'mlops-ray\[demo\]'"):
        flights()


def test_the_flights_keep_their_rules_all_year():
    project = load_project(CONFIGS / "flights.yaml", env={})
    report = check(project, history("2013-01-01", "2014-01-02")).report
    assert (report.n_read, report.n_quarantined) == (327_346, 0), str(report)


def test_the_quickstart_fits_its_file():
    project = load_project(CONFIGS / "quickstart.yaml", env={})
    table = samples()
    assert table.equals(samples())
    report = check(project, table).report
    assert (report.n_read, report.n_quarantined) == (569, 0), str(report)
    partial = fold(project.features, table)
    assert transformer(project.features, partial).named_transformers_["categorical"].categories_[0].tolist() == [
        "large",
        "medium",
        "small",
    ]
    assert set(bins(project.features, partial).numeric) == set(project.features.numeric.columns)
