from __future__ import annotations

from pathlib import Path
from typing import Any

import hypothesis.strategies as st
import pyarrow as pa
from hypothesis import given

from mlops_ray.data import lake
from mlops_ray.monitoring.labels import addressed, arrived, joined
from mlops_ray.serving.log.tables import label_schema
from tests import fakes

_TIME = pa.timestamp("us", tz="UTC")


def predictions(*rows: tuple[str, float, float, float]) -> pa.Table:
    """Rows of (id, at, event time, score)."""
    schema = pa.schema(
        [("prediction_id", pa.string()), ("at", _TIME), ("event_time", _TIME), ("stable_score", pa.float64())]
    )
    ids, at, event, score = zip(*rows, strict=True) if rows else ((), (), (), ())
    return pa.Table.from_arrays(
        [pa.array(ids, pa.string()), _us(at), _us(event), pa.array(score, pa.float64())], schema=schema
    )


def labels(*rows: tuple[str, float, float, float]) -> pa.Table:
    """Rows of (id, at, known at, label)."""
    return by_key(*((i, None, at, time, label) for i, at, time, label in rows))


def by_key(*rows: tuple[str | None, str | None, float, float, float]) -> pa.Table:
    """Rows of (id, key, at, known at, label)."""
    ids, keys, at, time, label = zip(*rows, strict=True) if rows else ((), (), (), (), ())
    day = pa.array(["1970-01-01"] * len(ids), pa.string())
    texts = [pa.array(ids, pa.string()), pa.array(keys, pa.string()), day]
    return pa.Table.from_arrays(
        [*texts, _us(at), _us(time), pa.array(label, pa.float64())], schema=label_schema(fakes.project())
    )


def _us(seconds: Any) -> pa.Array:
    return pa.array([round(s * 1e6) for s in seconds], pa.int64()).cast(_TIME)


def found(table: pa.Table) -> dict[str, float | None]:
    return dict(zip(table["prediction_id"].to_pylist(), table["label"].to_pylist(), strict=True))


TWO = predictions(("a", 1, 10, 0.1), ("b", 1, 5, 0.2))


def test_every_prediction_once_ordered_by_event_time() -> None:
    table = joined(TWO, labels(("a", 30, 30, 1)), known_by=100)
    assert table["prediction_id"].to_pylist() == ["b", "a"]
    assert table["label"].to_pylist() == [None, 1.0]
    assert [t and t.timestamp() for t in table["label_time"].to_pylist()] == [None, 30.0]
    assert table.column_names == [*TWO.column_names, "label", "label_time"]
    assert table["label"].type == pa.float64()


def test_a_label_is_not_seen_before_it_is_known() -> None:
    late = labels(("a", 30, 30, 1))
    assert found(joined(TWO, late, known_by=29.999999)) == {"a": None, "b": None}
    assert found(joined(TWO, late, known_by=30)) == {"a": 1.0, "b": None}


def test_a_correction_changes_what_is_known_but_not_what_came_first() -> None:
    both = labels(("a", 40, 40, 0), ("a", 30, 30, 1))
    assert found(joined(TWO, both, known_by=35))["a"] == 1.0
    assert found(joined(TWO, both, known_by=50))["a"] == 0.0
    assert found(joined(TWO, both, known_by=50, take="first"))["a"] == 1.0


def test_of_labels_of_one_time_the_one_that_arrived_last_is_known() -> None:
    both = labels(("a", 50, 30, 0), ("a", 40, 30, 1))
    assert found(joined(TWO, both, known_by=60))["a"] == 0.0
    assert found(joined(TWO, both, known_by=60, take="first"))["a"] == 1.0


def test_a_label_sent_twice_is_one_label() -> None:
    once, twice = labels(("a", 30, 30, 1)), labels(("a", 30, 30, 1), ("a", 31, 30, 1))
    assert joined(TWO, once, known_by=99).equals(joined(TWO, twice, known_by=99))


def test_the_first_prediction_of_an_id_counts() -> None:
    table = joined(predictions(("a", 2, 10, 0.9), ("a", 1, 10, 0.1)), labels(("a", 30, 30, 1)), known_by=99)
    assert table["stable_score"].to_pylist() == [0.1]


def test_labels_of_unknown_predictions_are_left_out() -> None:
    assert found(joined(TWO, labels(("zebra", 3, 3, 1)), known_by=99)) == {"a": None, "b": None}


def test_empty_tables() -> None:
    assert joined(predictions(), labels(("a", 3, 3, 1)), known_by=99).num_rows == 0
    assert found(joined(TWO, labels(), known_by=99)) == {"a": None, "b": None}


ids = st.sampled_from(["a", "b", "c"])
time = st.integers(0, 20).map(float)
some_predictions = st.lists(st.tuples(ids, time, time, st.floats(0, 1)), max_size=8)
some_labels = st.lists(st.tuples(ids, time, time, st.sampled_from([0.0, 1.0])), max_size=8)


@given(some_predictions, some_labels, time, st.randoms())
def test_against_plain_python(rows: Any, given_labels: Any, known_by: float, random: Any) -> None:
    """And the order in which files hold the rows does not matter."""
    shuffled = random.sample(given_labels, len(given_labels))
    for take in ("known", "first"):
        table = joined(predictions(*rows), labels(*shuffled), known_by=known_by, take=take)  # type: ignore[arg-type]
        order = (lambda r: (r[2], r[1], r[3])) if take == "known" else (lambda r: (r[1], r[2], r[3]))
        arrived = sorted((r for r in given_labels if r[2] <= known_by), key=order)
        chosen = {r[0]: r[3] for r in (arrived if take == "known" else arrived[::-1])}
        assert found(table) == {r[0]: chosen.get(r[0]) for r in rows}
        assert table.num_rows == len({r[0] for r in rows})


# --- by entity key ---


def visits(*rows: tuple[str, str, float]) -> pa.Table:
    """Rows of (id, key, event time)."""
    made = predictions(*((i, 1, event, 0.5) for i, _, event in rows))
    return made.append_column("key", pa.array([key for _, key, _ in rows], pa.string()))


VISITS = visits(("a", "ann", 10), ("b", "ann", 20), ("c", "bob", 15), ("d", "ann", 30))


def test_a_label_by_key_is_the_newest_predictions_before_it() -> None:
    table = joined(VISITS, by_key((None, "ann", 25, 25, 1)), known_by=100)
    assert found(table) == {"a": None, "b": 1.0, "c": None, "d": None}
    assert found(joined(VISITS, by_key((None, "ann", 30, 30, 1)), known_by=100))["d"] == 1.0  # of the same instant


def test_a_label_by_key_before_any_prediction_waits_for_one() -> None:
    early = by_key((None, "ann", 5, 5, 1), (None, "eve", 50, 50, 1))
    assert addressed(early, VISITS).num_rows == 0
    later = pa.concat_tables([VISITS, visits(("e", "eve", 40), ("z", "ann", 4))])  # committed after the labels
    assert found(joined(later, early, known_by=100)) | {} == {
        "a": None, "b": None, "c": None, "d": None, "e": 1.0, "z": 1.0,
    }  # fmt: skip


def test_corrections_by_key_and_by_id_meet() -> None:
    many = by_key((None, "ann", 25, 25, 1), ("b", None, 26, 26, 0), (None, "ann", 27, 27, 1), (None, "bob", 28, 28, 0))
    assert found(joined(VISITS, many, known_by=100)) == {"a": None, "b": 1.0, "c": 0.0, "d": None}
    assert found(joined(VISITS, many, known_by=26.5))["b"] == 0.0
    assert found(joined(VISITS, many, known_by=100, take="first"))["b"] == 1.0


def test_labels_by_key_of_a_part_of_the_versions_are_addressed_before_the_cut() -> None:
    """A rollout looks at its own rows; a label is the key's newest row's, whichever version that was."""
    late = by_key((None, "ann", 35, 35, 1))
    part = VISITS.slice(0, 2)
    assert found(joined(part, addressed(late, VISITS), known_by=100)) == {"a": None, "b": None}


@given(
    st.lists(st.tuples(st.sampled_from("xyz"), st.integers(0, 30)), max_size=12, unique=True),
    st.lists(st.tuples(st.sampled_from("xyz"), st.integers(0, 30)), max_size=8),
)
def test_addresses_are_what_a_search_finds(rows: list[tuple[str, int]], sent: list[tuple[str, int]]) -> None:
    made = visits(*((f"p{i}", key, time) for i, (key, time) in enumerate(rows)))
    got = addressed(by_key(*((None, key, time, time, 1) for key, time in sent)), made)
    expected = []
    for key, time in sent:
        before = [(when, f"p{i}") for i, (k, when) in enumerate(rows) if k == key and when <= time]
        expected += [max(before)[1]] if before else []
    assert sorted(got["prediction_id"].to_pylist()) == sorted(expected)


def test_labels_that_arrived_since_are_counted(tmp_path: Path) -> None:
    uri, day = str(tmp_path / "labels"), 86_400.0
    assert arrived(uri, 0.0) == 0
    times = [1.0, 5.0, 5.0, day + 1, day + 2, 3 * day]
    table = labels(*((str(i), t, t, 1.0) for i, t in enumerate(times)))
    days = pa.array([f"1970-01-0{1 + int(t // day)}" for t in times])
    table = table.set_column(table.schema.get_field_index("day"), "day", days)
    lake.append_once(uri, table.slice(0, 4), "spool", 0, ("day",))
    lake.append_once(uri, table.slice(4), "spool", 1, ("day",))
    for since in (0.0, 1.0, 4.9, 5.0, day, day + 1, 2 * day, 3 * day, 9 * day):
        assert arrived(uri, since) == sum(t > since for t in times), since
    assert lake.rows_by_day(uri) == {"1970-01-01": 3, "1970-01-02": 2, "1970-01-04": 1}
