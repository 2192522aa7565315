"""What is counted of committed rows: every row once, whoever answered it, and what failed."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlops_ray.serving.log import tables as log
from mlops_ray.serving.log.tally import SCORE_S, tally
from mlops_ray.serving.records import Uncaptured
from tests import fakes
from tests.spooling import labelled, scored, trial

PROJECT = fakes.project()


def counted(*records: object) -> dict[str, tuple[int, float]]:
    found = log.arrivals(PROJECT, records)  # type: ignore[arg-type]
    return tally(found.predictions, found.labels, found.uncaptured)


def test_rows_by_version_and_span_of_their_scoring() -> None:
    assert counted(scored("a", 2, score_us=60.0), scored("b", 1, score_us=3e7)) == {
        "score:10:1": (2, 0.0),  # 30 microseconds a row
        f"score:10:{len(SCORE_S)}": (1, 0.0),  # above all bounds
        "score_us:10": (30_000_060, 0.0),
    }


def test_a_row_that_the_canary_answered_took_the_canarys_time_and_one_that_it_failed_took_stables() -> None:
    both = (trial([0], [0.6], row_us=400.0), trial([1], None, "deadline"))
    assert counted(scored("a", 3, score_us=60.0, trials=both)) == {
        "score:10:0": (2, 0.0),
        "score_us:10": (40, 0.0),
        "score:20:4": (1, 0.0),
        "score_us:20": (400, 0.0),
        "tried:20": (2, 0.0),
        "failed:20:deadline": (1, 0.0),
    }


def test_labels_with_the_newest_time_and_what_was_not_captured() -> None:
    told = labelled(("a:0", "", 1.0, 5.0), ("", "k1", 0.0, 6.5))
    assert counted(told, Uncaptured(2e9, "disk", 4), Uncaptured(2e9, "disk", 1)) == {
        "labels": (2, 6.5),
        "uncaptured:disk": (5, 0.0),
    }


def test_nothing_counts_nothing() -> None:
    assert counted() == {}


@given(st.lists(st.tuples(st.integers(1, 5), st.floats(1.0, 1e8)), max_size=6), st.integers(0, 6))
def test_parts_counted_apart_add_up_to_the_whole(requests: list[tuple[int, float]], cut: int) -> None:
    records = [scored(f"r{i}", n, score_us=us) for i, (n, us) in enumerate(requests)]
    whole = Counter({name: n for name, (n, _) in counted(*records).items()})
    apart: Counter[str] = Counter()
    for part in (records[:cut], records[cut:]):
        apart.update({name: n for name, (n, _) in counted(*part).items()})
    assert sum(n for name, n in whole.items() if name.startswith("score:")) == sum(n for n, _ in requests)
    sums = {name for name in whole if name.startswith("score_us")}
    assert {n: v for n, v in apart.items() if n not in sums} == {n: v for n, v in whole.items() if n not in sums}
    assert all(apart[name] == pytest.approx(whole[name], abs=1) for name in sums)  # rounded to microseconds
