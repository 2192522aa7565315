"""A log that was recorded elsewhere: what is read from it, and every way in which it is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from mlops_ray.config import LogPlan
from mlops_ray.errors import LogRefused
from mlops_ray.rollout.recorded import checked, read

ERRORS = {"metric": "errors", "column": "failed", "margin": 0.1}
ROWS = {
    "time": [0.0, 30.0, 61.0, 120.0],
    "key": ["a", "b", "a", "c"],
    "variant": ["stable", "canary", "stable", "canary"],
    "failed": [0, 1, 0, 0],
    "ms": [10.0, 20.0, 30.0, 40.0],
    "label": [0, 1, None, 1],
    "score": [0.1, 0.9, 0.2, 0.4],
}
BRIER = {"columns": {"label": "label", "score": "score"}, "analyses": [{"metric": "brier"}]}


def plan(**fields: Any) -> LogPlan:
    return LogPlan.model_validate({"share": 0.5, "analyses": [ERRORS]} | fields)


def rows(**columns: Any) -> pl.DataFrame:
    return pl.DataFrame(ROWS | columns, strict=False)


def write(frame: pl.DataFrame, path: Path) -> Path:
    {
        ".csv": frame.write_csv,
        ".parquet": frame.write_parquet,
        ".pq": frame.write_parquet,
        ".jsonl": frame.write_ndjson,
        ".ndjson": frame.write_ndjson,
    }[path.suffix](path)
    return path


@pytest.mark.parametrize("suffix", [".csv", ".parquet", ".pq", ".jsonl", ".ndjson"])
def test_every_format_says_the_same(suffix: str, tmp_path: Path) -> None:
    asked = plan(**BRIER)
    found = checked("log", read(write(rows(), tmp_path / f"log{suffix}"), asked), asked)
    outcomes = found.outcomes
    assert outcomes.canary.tolist() == [False, True, False, True]
    assert outcomes.seen.tolist() == [0, 1, 2, 2]
    assert (found.n_keys, found.since, found.until, found.shares) == (3, 0.0, 120.0, ((0.0, 0.5),))
    np.testing.assert_array_equal(outcomes.label, [0, 1, np.nan, 1])
    np.testing.assert_allclose(outcomes.stable.of_label, [0.9, np.nan, np.nan, np.nan])
    np.testing.assert_allclose(outcomes.candidate.of_label, [np.nan, 0.9, np.nan, 0.4])


def test_scores_of_both_are_compared_on_the_same_row() -> None:
    columns = {"label": "label", "stable_score": "ms", "canary_score": "score"}
    frame = rows(ms=[0.5, 0.6, 0.7, 0.8])
    assert checked("log", frame, plan(**BRIER | {"columns": columns})).outcomes.paired
    affected = plan(**BRIER | {"columns": columns, "prediction_affects_outcome": True})
    assert not checked("log", frame, affected).outcomes.paired


@pytest.mark.parametrize(
    "times",
    [
        ["1970-01-01T00:00:00Z", "1970-01-01T00:00:30Z", "1970-01-01T00:01:01Z", "1970-01-01T00:02:00Z"],
        [f"1970-01-01T01:{at}+01:00" for at in ("00:00", "00:30", "01:01", "02:00")],
        ["0", "30", "61", "120"],
    ],
)
def test_times_may_be_text(times: list[str]) -> None:
    assert checked("log", rows(time=times), plan()).outcomes.seen.tolist() == [0, 1, 2, 2]


def test_a_ramp_names_its_shares_and_a_key_on_both_sides() -> None:
    ramp = LogPlan.model_validate({"analyses": [ERRORS]})
    found = checked("log", rows(share=[0.1, 0.1, 0.5, 0.5], key=["a", "a", "a", "c"]), ramp)
    assert found.shares == ((0.0, 0.1), (61.0, 0.5))
    assert found.both_sides == 1


def test_as_it_stood_earlier() -> None:
    assert checked("log", rows(), plan(), at=61.0).outcomes.seen.tolist() == [0, 1]
    with pytest.raises(LogRefused, match="name a later time"):
        checked("log", rows(), plan(), at=-1.0)


@pytest.mark.parametrize(
    ("columns", "fields", "says"),
    [
        ({"time": ["0", "x", "61", "120"]}, {}, "row 2, column time: 'x' is no time; write 2026-05-01T12:00:00Z"),
        ({"time": [0.0, 1.0, 0.5, 2.0]}, {}, "row 3, column time: 0.5 is before the row above it; sort the log"),
        ({"time": [1.78e12] * 4}, {}, "divide milliseconds by 1,000 (4 such rows)"),
        ({"key": ["a", "", "c", "d"]}, {}, "row 2, column key: '' is no key; give each row the key"),
        ({"key": ["a", "b", None, "d"]}, {}, "row 3, column key: an empty cell is no key"),
        ({"variant": ["stable", "blue", "x", "canary"]}, {}, "row 2, column variant: 'blue' is neither 'stable' nor"),
        ({"failed": ["0", "maybe", "0", "1"]}, {}, "row 2, column failed: 'maybe' is no number; leave it empty"),
        ({"failed": [0, 2, 0, 1]}, {}, "row 2, column failed: 2 is not 0 or 1"),
        ({"share": [0.5, 0.5, 1.0, 0.5]}, {"share": None}, "row 3, column share: 1.0 is no share between 0 and 1"),
        ({"label": [0, 1, 7, 1]}, BRIER, "row 3, column label: 7 is not 0 or 1; for numbers use `absolute_error`"),
        ({"score": [0.1, 0.2, 1.5, 0.1]}, BRIER, "row 3, column score: 1.5 is no probability; it must lie in [0, 1]"),
        (
            {"ms": [1.0, -2.0, 3.0, 4.0]},
            {"analyses": [{"metric": "latency", "column": "ms", "above_ms": 5}]},
            "row 2, column ms: -2.0 is no number of milliseconds",
        ),
    ],
)
def test_wrong_cells_are_named(columns: dict[str, Any], fields: dict[str, Any], says: str) -> None:
    with pytest.raises(LogRefused) as refused:
        checked("canary.csv", rows(**columns), plan(**fields))
    assert str(refused.value).startswith("canary.csv: 1 problem\n")
    assert says in str(refused.value)
    assert refused.value.exit_code == 2


def test_everything_wrong_is_said_at_once() -> None:
    with pytest.raises(LogRefused) as refused:
        checked("log", rows(time=[0.0, 2.0, 1.0, 3.0], variant=["x"] * 4), plan())
    assert len(refused.value.problems) == 2


def test_a_number_outside_its_bounds_is_warned_of() -> None:
    money = {"metric": "business", "name": "ms", "low": 0, "high": 25, "better": "higher", "margin": 1}
    (warning,) = checked("log", rows(), plan(analyses=[money])).warnings
    assert "2 values outside [0, 25] count as the nearer end; the first is 30 in row 3" in warning


def test_a_log_of_one_variant_is_warned_of() -> None:
    (warning,) = checked("log", rows(variant=["stable"] * 4), plan()).warnings
    assert "no row is of 'canary'" in warning


def test_files_and_columns_that_are_not_there(tmp_path: Path) -> None:
    for path, says in (
        (tmp_path / "log.csv", "there is no such file; check --log"),
        (tmp_path / "log.xlsx", "name one of these"),
    ):
        with pytest.raises(LogRefused, match=says):
            read(path, plan())
    path = write(rows().rename({"failed": "faild"}), tmp_path / "log.csv")
    with pytest.raises(LogRefused, match=r"column failed \(analyses of the plan\) is missing; did you mean 'faild'"):
        read(path, plan())
    with pytest.raises(LogRefused, match="a log of one share needs none: say `share:` in the plan"):
        read(write(rows(), path), plan(share=None))
    (tmp_path / "broken.parquet").write_bytes(b"no parquet")
    with pytest.raises(LogRefused, match="cannot be read"):
        read(tmp_path / "broken.parquet", plan())
    with pytest.raises(LogRefused, match="holds no rows"):
        checked("log", rows().clear(), plan())


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("stable,0\n1,b,canary\n2,c\n", "line 3: 3 fields for 4 columns; nothing stands for failed (2 such lines)"),
        ("canary,0\n1,b,canary,1,\n", "line 3: 5 fields for 4 columns (time, key, variant, failed); put a value that"),
        ("canary,0\n\n1,b,canary,1\n", "line 3: no fields for 4 columns; nothing stands for time, key, variant"),
        ('"stable",0\n1,"b\n,x",canary,0\n2,c\n', "line 5: 2 fields for 4 columns; nothing stands for variant"),
    ],
)
def test_lines_with_more_or_fewer_fields_than_the_header_are_named(text: str, says: str, tmp_path: Path) -> None:
    """A reader that fills them up would take a file that was cut off for one without outcomes."""
    path = tmp_path / "log.csv"
    path.write_text(f"time,key,variant,failed\n0,a,{text}")
    with pytest.raises(LogRefused) as refused:
        read(path, plan())
    assert str(refused.value).startswith(f"{path}: 1 problem")
    assert says in str(refused.value)
    path.write_bytes(b'\xef\xbb\xbf\ntime,key,variant,failed\r\n0,a,stable,0\r\n1,"b,c",canary,1')
    assert len(read(path, plan())) == 2


@pytest.mark.parametrize("limit", [1e300, 1e13, float("inf"), float("nan")])
def test_limits_that_no_test_can_square_are_refused(limit: float) -> None:
    money = {"metric": "business", "name": "ms", "low": 0, "high": limit, "better": "higher", "margin": 1}
    with pytest.raises(ValueError, match="high"):
        plan(analyses=[money])
    miss = {"metric": "absolute_error", "margin": 1, "bound": limit}
    with pytest.raises(ValueError, match="bound"):
        plan(**BRIER | {"analyses": [miss]})
