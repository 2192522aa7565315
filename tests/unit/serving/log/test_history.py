from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import pytest

from mlops_ray.config import Project
from mlops_ray.errors import DataError
from mlops_ray.monitoring.labels import addressed
from mlops_ray.serving.log import history
from mlops_ray.serving.log.history import History, Question
from mlops_ray.serving.places import labels_uri, log_uri, values_uri
from tests import fakes
from tests.logs import DAY_S, START, append, labels, predictions, values


@pytest.fixture
def project(tmp_path: Path) -> Project:
    """Three days; r2 was the canary's; r1:0 is labelled and corrected, `b` by its key."""
    project = fakes.project(storage={"root": str(tmp_path / "root")})
    uri, known = log_uri(project), labels_uri(project)
    append(uri, predictions(project, "r1", ["a", "b"], at=START), 0)
    append(uri, predictions(project, "r2", ["a"], at=START + DAY_S, canary=True), 1)
    append(uri, predictions(project, "r3", ["c", "b"], at=START + 2 * DAY_S, canary=True, failed=True), 2)
    append(uri, predictions(project, "r1", ["a", "b"], at=START), 3)  # the same request, recorded twice
    append(known, labels(project, ["r1:0"], [0.0], at=START + DAY_S), 0)
    append(known, labels(project, [None], [1.0], at=START + DAY_S, keys=["b"]), 1)
    append(known, labels(project, ["r1:0"], [1.0], at=START + 3 * DAY_S), 2)
    append(known, labels(project, [None], [0.0], at=START + 4 * DAY_S, keys=["b"]), 3)
    return project


def asked(project: Project, **question: Any) -> list[dict[str, Any]]:
    return History(project, addressed).newest(Question(**question)).to_pylist()


def ids(rows: list[dict[str, Any]]) -> list[str]:
    return [row["prediction_id"] for row in rows]


def test_newest_first_each_once_with_who_answered(project: Project) -> None:
    rows = asked(project)
    assert ids(rows) == ["r3:1", "r3:0", "r2:0", "r1:1", "r1:0"]
    assert [(r["version"], r["variant"], r["score"]) for r in rows[1:3]] == [(1, "canary", 0.1), (2, "canary", 0.9)]


def test_the_label_that_became_known_last_counts_and_all_are_kept(project: Project) -> None:
    rows = {row["prediction_id"]: (row["label"], row["n_labels"]) for row in asked(project)}
    assert rows == {"r1:0": (1.0, 2), "r1:1": (1.0, 1), "r3:1": (0.0, 1), "r2:0": (None, 0), "r3:0": (None, 0)}
    told = History(project, addressed)
    came = told.labels(told.newest(Question(prediction="r1:0")))
    assert came["label"].to_pylist() == [0.0, 1.0]


def test_business_numbers_are_told_by_id_and_by_key_in_the_order_in_which_they_came(project: Project) -> None:
    uri = values_uri(project)
    assert History(project, addressed).values(History(project, addressed).newest(Question())).num_rows == 0
    append(uri, values(["r1:1", None], "revenue", [3.0, 4.0], at=START + 3 * DAY_S, keys=[None, "b"]), 0)
    append(uri, values([None], "revenue", [5.0], at=START + DAY_S, keys=["b"]), 1)
    told = History(project, addressed)
    of_b = told.values(told.newest(Question(keys=("b",))))
    found = zip(of_b["prediction_id"].to_pylist(), of_b["value"].to_pylist(), strict=True)
    assert list(found) == [("r1:1", 5.0), ("r1:1", 3.0), ("r3:1", 4.0)]


@pytest.mark.parametrize(
    ("question", "found"),
    [
        ({"keys": ("a",)}, ["r2:0", "r1:0"]),
        ({"keys": ("a", "c")}, ["r3:0", "r2:0", "r1:0"]),
        ({"prediction": "r1:1"}, ["r1:1"]),
        ({"since": "2026-01-02"}, ["r3:1", "r3:0", "r2:0"]),
        ({"until": "2026-01-02"}, ["r2:0", "r1:1", "r1:0"]),
        ({"since": "2026-01-02", "until": "2026-01-02"}, ["r2:0"]),
        ({"version": 2}, ["r2:0"]),
        ({"variant": "canary"}, ["r3:1", "r3:0", "r2:0"]),
        ({"variant": "stable", "limit": 1}, ["r1:1"]),
        ({"limit": 3}, ["r3:1", "r3:0", "r2:0"]),
        ({"keys": ("nobody",)}, []),
    ],
)
def test_questions(project: Project, question: dict[str, Any], found: list[str]) -> None:
    assert ids(asked(project, **question)) == found


def test_a_label_by_key_is_not_the_older_predictions_whatever_days_are_asked_for(project: Project) -> None:
    """The last label of `b` is about r3:1, also where only r1:1 is asked for."""
    assert [r["n_labels"] for r in asked(project, keys=("b",), until="2026-01-01")] == [1]


def test_days_that_are_not_asked_for_are_not_opened(project: Project) -> None:
    for file in Path(log_uri(project), "day=2026-01-01").glob("*.parquet"):
        file.write_bytes(b"not read")
    assert ids(asked(project, limit=3)) == ["r3:1", "r3:0", "r2:0"]
    assert ids(asked(project, since="2026-01-02")) == ["r3:1", "r3:0", "r2:0"]


def test_a_log_without_rows_is_empty(tmp_path: Path) -> None:
    project = fakes.project(storage={"root": str(tmp_path / "root")})
    assert asked(project) == []
    done = history.export(History(project, addressed), Question(), tmp_path / "out.parquet", (), on_progress=print)
    assert done["rows"] == 0
    assert pq.read_table(tmp_path / "out.parquet").column_names[-1] == "n_labels"


def exported(project: Project, output: Path, columns: tuple[str, ...] = (), **question: Any) -> dict[str, Any]:
    def silent(stage: str, done: int, total: int) -> None:
        assert done <= total

    return history.export(History(project, addressed), Question(**question), output, columns, on_progress=silent)


def test_an_export_is_the_whole_log_as_a_query_has_it(project: Project, tmp_path: Path) -> None:
    assert exported(project, tmp_path / "log.parquet")["rows"] == 5
    rows = pq.read_table(tmp_path / "log.parquet").sort_by([("event_time", "descending")])
    assert rows.to_pylist() == asked(project)
    exported(project, tmp_path / "log.csv", ("key", "score", "label"))
    assert pa.csv.read_csv(tmp_path / "log.csv").to_pydict()["key"] == ["c", "b", "a", "a", "b"]
    exported(project, tmp_path / "log", since="2026-01-02")
    assert sorted(p.name for p in (tmp_path / "log").iterdir()) == ["2026-01-02.parquet", "2026-01-03.parquet"]
    assert not list(tmp_path.glob("*.part"))
    assert not list(tmp_path.glob(".*.part"))


def test_one_day_at_a_time_gives_the_same(project: Project, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    exported(project, tmp_path / "at-once.parquet")
    monkeypatch.setattr(history, "_AT_ONCE", 1)
    exported(project, tmp_path / "by-day.parquet")
    assert pq.read_table(tmp_path / "at-once.parquet") == pq.read_table(tmp_path / "by-day.parquet")


def test_an_export_that_fails_leaves_what_was_there(project: Project, tmp_path: Path) -> None:
    output = tmp_path / "log.parquet"
    output.write_bytes(b"before")
    day = next(Path(log_uri(project), "day=2026-01-01").glob("*.parquet"))
    snapshot = History(project, addressed)
    day.unlink()
    with pytest.raises(DataError, match="run again"):
        history.export(snapshot, Question(), output, (), on_progress=lambda *_: None)
    assert output.read_bytes() == b"before"
    assert [p.name for p in tmp_path.iterdir() if p.is_file()] == ["log.parquet"]


def test_unknown_columns_and_taken_folders_are_named(project: Project, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="the log has no 'colour'; it has prediction_id, at"):
        exported(project, tmp_path / "log.csv", ("colour",))
    (tmp_path / "taken").mkdir()
    with pytest.raises(DataError, match="is there already"):
        exported(project, tmp_path / "taken")


def test_classes_and_their_scores(tmp_path: Path) -> None:
    project = fakes.project(storage={"root": str(tmp_path / "root")}, task="multiclass")
    rows = predictions(project, "r1", ["a"], at=START)
    at = rows.schema.get_field_index("stable_scores")
    append(log_uri(project), rows.set_column(at, rows.schema.field(at), pa.array([[0.1, 0.9]])), 0)
    append(labels_uri(project), labels(project, ["r1:0"], ["red"], at=START), 0)
    (row,) = asked(project)
    assert (row["label"], row["stable_scores"]) == ("red", [0.1, 0.9])
    exported(project, tmp_path / "log.csv", ("stable_scores", "label"))
    assert (tmp_path / "log.csv").read_text() == '"stable_scores","label"\n"[0.1, 0.9]","red"\n'
