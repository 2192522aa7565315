"""From tables of the log to arrays: what a row, its label and its share are taken to be."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from mlops_ray.config.analyses import LogLoss
from mlops_ray.errors import DataError
from mlops_ray.rollout.analysis import sample
from mlops_ray.rollout.outcomes import Among, Outcomes, Reads, from_log

TIME = pa.timestamp("us", tz="UTC")
FLOAT = pa.float64()
LIST = pa.list_(FLOAT)


def at(seconds: float | None) -> datetime | None:
    return None if seconds is None else datetime.fromtimestamp(seconds, UTC)


def predictions(*rows: dict[str, Any], multiclass: bool = False) -> pa.Table:
    """Rows as {id, t, key, stable, canary, rollout, share, ...}; what is not given is null."""
    scores = [("stable_scores", LIST), ("canary_scores", LIST)] if multiclass else []
    schema = pa.schema(
        [
            ("prediction_id", pa.string()),
            ("at", TIME),
            ("event_time", TIME),
            ("key", pa.string()),
            ("x_carrier", pa.string()),
            ("x_distance", pa.float32()),
            ("stable_score", pa.float64()),
            ("score_us", pa.float32()),
            ("canary_score", pa.float64()),
            ("canary_score_us", pa.float32()),
            *scores,
            ("stable", pa.int64()),
            ("canary", pa.int64()),
            ("rollout", pa.string()),
            ("share", pa.float64()),
        ]
    )
    filled = [
        {
            "prediction_id": row["id"],
            "at": at(row.get("at", row["t"])),
            "event_time": at(row["t"]),
            "key": row.get("key", row["id"]),
            **{
                name: row.get(name) for name in schema.names if name not in ("prediction_id", "at", "event_time", "key")
            },
        }
        for row in rows
    ]
    return pa.Table.from_pylist(filled, schema=schema)


def labels(*rows: tuple[str | None, str | None, float, Any], kind: pa.DataType = FLOAT) -> pa.Table:
    """Rows as (prediction id, key, time, label)."""
    schema = pa.schema(
        [("prediction_id", pa.string()), ("key", pa.string()), ("at", TIME), ("time", TIME), ("label", kind)]
    )
    columns = [[r[0] for r in rows], [r[1] for r in rows], *[[at(r[2]) for r in rows]] * 2, [r[3] for r in rows]]
    return pa.Table.from_arrays([pa.array(c, f.type) for c, f in zip(columns, schema, strict=True)], schema=schema)


def read(table: pa.Table, known: pa.Table | None = None, **changes: Any) -> Outcomes:
    settings: dict[str, Any] = {"task": "binary", "rollout": "r", "look_s": 10.0, "known_by": 100.0} | changes
    return from_log(table, labels() if known is None else known, **settings)


def canary(name: str, t: float, **given: Any) -> dict[str, Any]:
    return {"id": name, "t": t, "stable_score": 0.2, "canary_score": 0.6, "rollout": "r", "share": 0.1, **given}


def test_rows_of_the_canary_with_their_looks_labels_and_failures() -> None:
    table = predictions(
        canary("b:0", 25, key="k", score_us=80, canary_score_us=120, x_carrier="AA", x_distance=1.5),
        canary("a:0", 5, key="k"),
        canary("c:0", 30, key="j", canary_score=None),
        canary("d:0", 100),  # is not before the look
        {"id": "e:0", "t": 6, "stable_score": 0.5},
        canary("f:0", 7, rollout="another"),
    )
    found = read(table, labels(("b:0", None, 41, 1.0), ("b:0", None, 50, 0.0), ("c:0", None, 101, 1.0)))
    assert found.keys.tolist() == [2, 2, 1]  # a, b, c; j sorts before k
    assert found.seen.tolist() == [1, 3, 3]
    assert found.labelled.tolist() == [0, 5, 0]
    np.testing.assert_array_equal(found.label, [np.nan, 1.0, np.nan])  # the first to arrive, and none from later
    np.testing.assert_array_equal(found.stable.predicted, [0, 0, 0])
    np.testing.assert_array_equal(found.candidate.predicted, [1, 1, np.nan])
    np.testing.assert_allclose(found.candidate.of_label, [np.nan, 0.6, np.nan])
    np.testing.assert_allclose(found.stable.squares, 0.04 + 0.64)
    assert found.failed.tolist() == [False, False, True]
    assert (found.stable.us[1], found.candidate.us[1]) == (80, 120)
    assert found.columns["carrier"].tolist() == ["", "AA", ""]
    assert found.columns["distance"][1] == 1.5
    assert found.paired
    assert found.canary.all()


def test_a_versions_own_threshold_says_what_it_predicts() -> None:
    found = read(predictions(canary("a", 5)), stable=Reads(threshold=0.1), canary=Reads(threshold=0.7))
    assert (found.stable.predicted.tolist(), found.candidate.predicted.tolist()) == ([1], [0])


def test_by_assignment_stables_rows_have_the_share_that_was_in_force() -> None:
    table = predictions(
        {"id": "before", "t": 1, "stable_score": 0.5},
        canary("a", 2, share=0.1),
        {"id": "b", "t": 3, "stable_score": 0.5},
        canary("c", 4, share=0.5),
        {"id": "d", "t": 5, "stable_score": 0.5},
        canary("e", 6, share=0.5),
        canary("other", 7, rollout="another"),
    )
    found = read(table, prediction_affects_outcome=True)
    assert found.share.tolist() == [0.1, 0.1, 0.5, 0.5, 0.5]
    assert found.canary.tolist() == [True, False, True, False, True]
    assert not found.paired


def test_by_assignment_nobody_is_stables_once_nothing_is_the_canarys_any_more() -> None:
    """After the promotion every answer is the new version's, and no assignment is made."""
    after = [{"id": f"z{i}", "t": 10 + i, "stable_score": 0.6} for i in range(3)]
    table = predictions({"id": "a", "t": 1, "stable_score": 0.5}, canary("b", 2), *after)
    assert read(table, prediction_affects_outcome=True).canary.tolist() == [True]
    assert len(read(predictions(*after), prediction_affects_outcome=True).keys) == 0


def test_labels_by_key_find_the_row_that_they_are_about() -> None:
    table = predictions(canary("a", 5, key="k"), {"id": "b", "t": 8, "key": "k", "stable_score": 0.5})
    assert np.isnan(read(table, labels((None, "k", 9, 1.0))).label).all()  # about b, which was stable's
    assert read(table, labels((None, "k", 7, 1.0))).label.tolist() == [1.0]


def test_classes_of_two_versions_that_know_different_ones() -> None:
    table = predictions(
        canary("a", 1, stable_score=0.7, stable_scores=[0.7, 0.3], canary_score=0.5, canary_scores=[0.3, 0.2, 0.5]),
        canary("b", 2, stable_score=0.6, stable_scores=[0.4, 0.6], canary_score=0.8, canary_scores=[0.1, 0.8, 0.1]),
        canary("c", 3, stable_score=0.6, stable_scores=[0.4, 0.6], canary_score=None),
        canary("d", 4, stable_score=0.6, stable_scores=[0.4, 0.6], canary_score=0.8, canary_scores=[0.1, 0.8, 0.1]),
        multiclass=True,
    )
    known = labels(
        ("a", None, 5, "cat"), ("b", None, 5, "eel"), ("c", None, 5, "dog"), ("d", None, 5, "yak"), kind=pa.string()
    )
    settings: dict[str, Any] = {"stable": Reads(classes=("cat", "dog")), "canary": Reads(classes=("dog", "eel", "cat"))}
    found = read(table, known, task="multiclass", **settings)
    assert found.stable.of_label.tolist() == [0.7, 0.0, 0.6, 0.0]
    np.testing.assert_array_equal(found.candidate.of_label, [0.5, 0.8, np.nan, 0.0])
    assert found.stable.predicted.tolist() == [0, 1, 1, 1]
    np.testing.assert_array_equal(found.candidate.predicted, [0, 2, np.nan, 2])
    assert found.label.tolist() == [0, 2, 1, 3]
    with pytest.raises(DataError, match="stable_scores are not of the version's 3 classes"):
        read(table, known, task="multiclass", stable=Reads(classes=("a", "b", "c")), canary=settings["canary"])


def test_a_regressions_scores_are_its_predictions() -> None:
    found = read(predictions(canary("a", 5, stable_score=7.5)), labels(("a", None, 6, 8.0)), task="regression")
    assert (found.stable.predicted.tolist(), found.label.tolist()) == ([7.5], [8.0])
    assert np.isnan(found.stable.of_label).all()


def test_a_shadows_answers_stand_where_a_canarys_would() -> None:
    table = predictions(
        {"id": "a", "t": 5, "stable_score": 0.2}, {"id": "b", "t": 6, "stable_score": 0.2}, canary("c", 7)
    )
    schema = pa.schema(
        [("prediction_id", pa.string()), ("at", TIME), ("shadow_score", pa.float64()), ("rollout", pa.string())]
    )
    rows = [("a", 0.9, "r"), ("a", 0.1, "another"), ("b", None, "r"), ("c", 0.9, "another")]
    shadow = pa.Table.from_pylist(
        [{"prediction_id": i, "at": at(9), "shadow_score": s, "rollout": r} for i, s, r in rows], schema=schema
    )
    found = read(table, labels(("a", None, 8, 1.0)), shadow=shadow)
    np.testing.assert_allclose(found.candidate.of_label, [0.9, np.nan, np.nan])
    assert found.failed.tolist() == [False, True, False]
    np.testing.assert_array_equal(found.share, [np.nan, np.nan, 0.1])  # nobody was assigned to a shadow


def copies(*rows: tuple[str, int, float | None]) -> pa.Table:
    """What the version before stable said of rows, as (prediction id, who answered, score)."""
    schema = pa.schema(
        [
            ("prediction_id", pa.string()),
            ("at", TIME),
            ("stable", pa.int64()),
            ("shadow_score", FLOAT),
            ("shadow_score_us", pa.float32()),
            ("rollout", pa.string()),
        ]
    )
    found = [
        {"prediction_id": i, "at": at(9), "stable": v, "shadow_score": s, "shadow_score_us": 7.0, "rollout": "r"}
        for i, v, s in rows
    ]
    return pa.Table.from_pylist(found, schema=schema)


def test_while_it_bakes_the_roles_are_exchanged() -> None:
    """Version 2 was the canary of row a, and is stable in b to d; version 1 saw copies of b and c, and failed c."""
    table = predictions(
        canary("a", 5, canary=2, score_us=10, canary_score_us=20),
        {"id": "b", "t": 6, "stable_score": 0.9, "score_us": 30},
        {"id": "c", "t": 7, "stable_score": 0.9},
        {"id": "d", "t": 8, "stable_score": 0.9},
    )
    known = labels(*((name, None, 8, 1.0) for name in "abcd"))
    found = read(table, known, shadow=copies(("b", 2, 0.3), ("c", 2, None)), promoted=2)
    np.testing.assert_allclose(found.stable.of_label, [0.2, 0.3, np.nan])
    np.testing.assert_allclose(found.candidate.of_label, [0.6, 0.9, 0.9])
    np.testing.assert_allclose(found.stable.us, [10, 7, 7])
    np.testing.assert_allclose(found.candidate.us, [20, 30, np.nan])
    assert found.baking.tolist() == [False, True, True]
    assert found.asked.tolist() == [True, False, False]
    np.testing.assert_array_equal(found.share, [0.1, np.nan, np.nan])  # nobody is assigned to the version before


def test_what_it_fails_as_stable_while_it_bakes_is_its_failure() -> None:
    """Version 2 failed row a on trial, and c as stable; 1 answered both. Of b it saw a copy, of d, e and f none: e was
    answered before there was any of baking, and f by version 1, which was stable still in that replica."""
    table = predictions(
        canary("a", 1, canary=2, canary_score=None),
        {"id": "e", "t": 2, "stable": 2, "stable_score": 0.9},
        {"id": "f", "t": 4, "stable": 1, "stable_score": 0.9},
        {"id": "b", "t": 5, "stable": 2, "stable_score": 0.9},
        canary("c", 6, canary=2, canary_score=None, share=None, stable=1),
        {"id": "d", "t": 7, "stable": 2, "stable_score": 0.9, "score_us": 30},
    )
    found = read(table, shadow=copies(("b", 2, 0.3)), promoted=2)
    assert found.baking.tolist() == [False, True, True, True]
    assert found.failed.tolist() == [True, False, True, False]
    assert found.canary.all()
    np.testing.assert_allclose(found.stable.squares, [0.68, 0.58, 0.68, np.nan])
    np.testing.assert_allclose(found.candidate.us, [np.nan, np.nan, np.nan, 30])
    nothing = read(table, shadow=copies(), promoted=2)
    assert nothing.failed.tolist() == [True, True, False]  # the first that is heard of baking is a failure
    affected = read(table, shadow=copies(("b", 2, 0.3)), promoted=2, prediction_affects_outcome=True)
    np.testing.assert_array_equal(affected.share, [0.1, np.nan, np.nan, np.nan])


def test_a_shadow_that_was_promoted_is_heard_in_both_roles() -> None:
    table = predictions(*({"id": name, "t": 5, "stable_score": 0.2} for name in "ab"))
    found = read(table, shadow=copies(("a", 1, 0.7), ("b", 2, 0.7)), promoted=2)
    assert found.baking.tolist() == [False, True]
    np.testing.assert_allclose(found.stable.squares, [0.68, 0.58])
    np.testing.assert_allclose(found.candidate.squares, [0.58, 0.68])


def test_by_assignment_nothing_is_assigned_while_it_bakes() -> None:
    table = predictions(
        canary("a", 5, canary=2),
        {"id": "b", "t": 6, "stable_score": 0.2},
        canary("c", 7, canary=2),
        {"id": "d", "t": 8, "stable_score": 0.9},
    )
    found = read(table, shadow=copies(("d", 2, 0.3)), promoted=2, prediction_affects_outcome=True)
    np.testing.assert_array_equal(found.share, [0.1, 0.1, 0.1, np.nan])
    assert found.baking.tolist() == [False, False, False, True]


def test_the_winner_of_several_is_heard_while_it_bakes() -> None:
    table = predictions(
        canary("a", 1, key="k1", canary=2, share=0.2),
        canary("b", 2, key="k2", canary=3, share=0.2),
        {"id": "c", "t": 8, "key": "k2", "stable_score": 0.9},
    )
    found = read(table, shadow=copies(("c", 2, 0.3)), promoted=2, among=Among(2, 0.2, 2))
    assert found.baking.tolist() == [False, True]


def test_what_bakes_does_not_count_among_the_most_requests() -> None:
    table = predictions(*(canary(n, 5, canary=2) for n in "ab"), {"id": "c", "t": 6, "stable_score": 0.9})
    found = read(table, shadow=copies(("c", 2, 0.3)), promoted=2)
    assert found.until(1).baking.tolist() == [False, True]


def test_numbers_that_feedback_sends_by_name() -> None:
    table = predictions(
        canary("a", 1, share=0.1), {"id": "b", "t": 2, "stable_score": 0.5, "key": "k"}, canary("c", 3, share=0.1)
    )
    schema = pa.schema(
        [
            ("prediction_id", pa.string()),
            ("key", pa.string()),
            ("at", TIME),
            ("time", TIME),
            ("name", pa.string()),
            ("value", pa.float64()),
        ]
    )
    rows = [("a", None, 12, "clicks", 3.0), ("a", None, 25, "clicks", 9.0), (None, "k", 31, "revenue", 7.5)]
    told = pa.Table.from_pylist(
        [{"prediction_id": i, "key": k, "at": at(t), "time": at(t), "name": n, "value": v} for i, k, t, n, v in rows],
        schema=schema,
    )
    found = read(table, feedback=told)
    np.testing.assert_array_equal(found.feedback["clicks"].value, [3.0, np.nan, np.nan])
    np.testing.assert_array_equal(found.feedback["revenue"].value, [np.nan, 7.5, np.nan])
    assert (found.feedback["clicks"].look[0], found.feedback["revenue"].look[1]) == (2, 4)
    assert found.paired  # labels are still compared on the same row
    assert found.share.tolist() == [0.1, 0.1, 0.1]


def test_rows_up_to_a_number_of_the_canarys() -> None:
    table = predictions(
        canary("a", 1),
        {"id": "b", "t": 2, "stable_score": 0.5},
        canary("c", 3),
        {"id": "d", "t": 4, "stable_score": 0.5},
    )
    found = read(table, prediction_affects_outcome=True)
    assert found.until(1).canary.tolist() == [True]
    assert found.until(2).canary.tolist() == [True, False, True]
    assert found.until(3).canary.tolist() == found.canary.tolist()


def test_a_log_without_rows_has_no_outcomes() -> None:
    found = read(predictions(), labels())
    assert len(found.keys) == len(found.label) == 0


def test_rows_of_one_arm_are_compared_with_stables_own() -> None:
    """Arms 2 and 3 have a fifth of the keys each; 3 gives its keys back at second 6. Stable has 3 of 4, then 4 of 5."""
    table = predictions(
        canary("a", 1, key="k1", canary=2, share=0.2),
        canary("b", 2, key="k2", canary=3, share=0.2),
        {"id": "c", "t": 3, "key": "k3", "stable_score": 0.5},
        {"id": "d", "t": 8, "key": "k2", "stable_score": 0.5},  # was the other arm's: nobody's now
        canary("e", 9, key="k1", canary=2, share=0.2),
        {"id": "f", "t": 10, "key": "k4", "stable_score": 0.5},
        canary("g", 11, key="k1", canary=2, share=0.2),
    )
    found = read(table, prediction_affects_outcome=True, among=Among(2, 0.2, 2, (6.0,)))
    assert found.canary.tolist() == [True, False, True, False, True]
    # Key k1 was assigned while both arms were there, and comes again.
    np.testing.assert_allclose(found.share, [0.25, 0.25, 0.25, 0.2, 0.25])
    paired = read(table, among=Among(3, 0.2, 2, (6.0,)))
    assert (len(paired.keys), paired.canary.all()) == (1, True)


def test_keys_that_come_again_after_an_arm_was_dropped_are_compared_as_they_were_assigned() -> None:
    """Two arms with 0.2 each; the other is dropped halfway. Every key comes in both halves but for new ones, and only
    what came in the second half has an outcome: the arm's part of these keys is as their shares say."""
    rng, n = np.random.default_rng(4), 4000
    points, rows = rng.random(n), []
    for i, point in enumerate(points):
        mine = {"key": f"k{i}", "stable_score": 0.3, "score_us": 1.0}
        arm = 2 if point < 0.2 else 3 if point < 0.4 else None
        given = {"canary": arm, "rollout": "r", "share": 0.2, "canary_score": 0.3} if arm else {}
        if i < n // 2:
            rows.append({"id": f"a{i}", "t": 1 + i / n, **mine, **given})
        if arm == 3:
            given = {}
        rows.append({"id": f"b{i}", "t": 10 + i / n, **mine, **given})
    rows.append(canary("last", 20, key="last", canary=2, share=0.2))
    told = labels(*((row["id"], None, 30.0, float(rng.random() < 0.3)) for row in rows if row["id"].startswith("b")))
    found = read(predictions(*rows), told, prediction_affects_outcome=True, among=Among(2, 0.2, 2, (5.0,)))
    heard = sample(LogLoss(margin=0.02), found)
    assert heard is not None
    assert heard.split is not None
    assert len(heard.split) > 3000
    assert not heard.is_lopsided
    assert abs(heard.split.value.mean()) < 3 * 0.5 / np.sqrt(len(heard.split))
