from __future__ import annotations

import tempfile
from collections import Counter
from pathlib import Path

import hypothesis.strategies as st
import pyarrow as pa
from deltalake import DeltaTable
from hypothesis import example, given, settings

from mlops_ray.data import lake
from mlops_ray.data.following import Following

COLUMNS = pa.schema([("day", pa.string()), ("key", pa.string()), ("label", pa.int64()), ("newer", pa.float32())])
DAYS = ("2013-01-01", "2013-01-02", "2013-01-03")

appends = st.tuples(st.just("append"), st.sampled_from(DAYS), st.integers(1, 3), st.booleans())
"""Rows of a day, of a writer that knows the newer column or does not; a label is corrected by one more row."""
others = st.sampled_from([("compact",), ("tidy",), ("forget",), ("expire",), ("scan",)])


def bag(rows: pa.Table) -> Counter[tuple[object, ...]]:
    return Counter(tuple(row.values()) for row in rows.to_pylist())


def act(uri: str, number: int, what: tuple) -> None:
    kind, *args = what
    if kind == "append":
        day, n, knows_newer = args
        columns = {"day": [day] * n, "key": [f"k{number % 3}"] * n, "label": list(range(number, number + n))}
        rows = pa.table(columns)
        if knows_newer:
            rows = rows.append_column("newer", pa.array([0.5] * n, pa.float32()))
        assert lake.append_once(uri, rows, "spool", number, ("day",))
    elif not lake.exists(uri):
        return
    elif kind == "compact":
        DeltaTable(uri).optimize.compact()
    elif kind == "tidy":
        lake.tidy(uri, before_day=None, litter_s=0)
    elif kind == "forget":
        DeltaTable(uri).delete("key = 'k1'")
    elif kind == "expire":
        lake.tidy(uri, before_day=DAYS[1], litter_s=0)


def version(uri: str) -> int:
    return DeltaTable(uri).version() if lake.exists(uri) else -1


MANY = [("append", DAYS[1], 1, False)] * 9


@settings(deadline=None, max_examples=40)
@given(
    st.lists(st.one_of(appends, others), max_size=14),
    st.sampled_from(DAYS),
    st.sampled_from(DAYS),
)
@example([("scan",), ("append", DAYS[0], 2, False), ("scan",), ("append", DAYS[0], 1, True)], DAYS[0], DAYS[2])
@example([*MANY, ("scan",), ("tidy",), ("scan",), ("forget",), ("tidy",), ("append", DAYS[1], 1, True)], *DAYS[:2])
def test_what_is_followed_is_what_stands_in_the_log(done, since, until):
    with tempfile.TemporaryDirectory() as folder:
        uri, log = str(Path(folder, "log")), Following()
        assert log.has_news()
        for number, what in enumerate(done):
            if what == ("scan",):
                assert bag(log.scan(uri, since, until, COLUMNS)) == bag(lake.scan(uri, since, until, COLUMNS))
                assert not log.has_news()
            else:
                before, had = version(uri), log.has_news()
                act(uri, number, what)
                assert log.has_news() or (version(uri) == before and not had)
        found = log.scan(uri, since, until, COLUMNS)
        assert found.schema == COLUMNS
        assert bag(found) == bag(lake.scan(uri, since, until, COLUMNS))
        assert not log.has_news()


def test_rows_of_a_log_that_is_read_as_it_was_are_not_read_again(tmp_path: Path):
    uri, log = str(tmp_path / "log"), Following()
    act(uri, 0, ("append", DAYS[0], 3, True))
    first = log.scan(uri, DAYS[0], DAYS[2], COLUMNS)
    act(uri, 1, ("append", DAYS[1], 2, False))
    for file in Path(uri, f"day={DAYS[0]}").iterdir():
        file.unlink()  # whoever opened it again would fail
    assert log.scan(uri, DAYS[0], DAYS[2], COLUMNS).num_rows == 5
    assert log.scan(uri, DAYS[0], DAYS[0], COLUMNS).equals(first)
