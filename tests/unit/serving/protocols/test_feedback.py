from __future__ import annotations

from typing import Any

import hypothesis.strategies as st
import numpy as np
import orjson
import pytest
from hypothesis import example, given

from mlops_ray.errors import BadRequest
from mlops_ray.serving.exchange import Labels
from mlops_ray.serving.log.tables import day_of
from mlops_ray.serving.protocols import feedback
from mlops_ray.serving.protocols.form import Form
from tests import fakes
from tests.unit.serving.protocols.test_form import WITH_NUMBER, anything, or_refusal, scalars

FORM = Form.of(fakes.project())
MULTICLASS = Form.of(fakes.project(task="multiclass"))
REGRESSION = Form.of(fakes.project(task="regression"))
NOW = 1_700_000_000.0
SALES = [
    {"metric": "business", "name": name, "low": 0, "high": 100, "better": "higher", "margin": 1, **where}
    for name, where in (
        ("revenue", {}),
        ("revenue", {"where": {"column": "c", "values": ["red"]}}),
        ("page/views", {}),
    )
]
BUSINESS = Form.of(fakes.project(rollout={"analyses": SALES}))
CLASSES_TOO = Form.of(fakes.project(task="multiclass", rollout={"analyses": SALES}))


def sent(labels: Any, form: Form = FORM, **kwargs: Any) -> Labels:
    return feedback.parse(orjson.dumps({"labels": labels}), form, now=NOW, **kwargs)


def refused(labels: Any, form: Form = FORM, **kwargs: Any) -> BadRequest:
    with pytest.raises(BadRequest) as caught:
        sent(labels, form, **kwargs)
    return caught.value


def test_labels_by_prediction_id_and_by_key() -> None:
    labels = sent(
        [
            {"prediction_id": "a:0", "label": 1, "time": 5},
            {"prediction_id": "a:1", "label": 0.0},
            {"key": "visit-7", "label": True, "time": None},
            {"key": "visit-8", "label": False, "time": "1970-01-01T00:00:09Z"},
        ]
    )
    assert labels.ids == ("a:0", "a:1", "", "")
    assert labels.keys == ("", "", "visit-7", "visit-8")
    assert labels.values.tolist() == [1.0, 0.0, 1.0, 0.0]
    assert labels.times.tolist() == [5.0, NOW, NOW, 9.0]


def test_a_key_that_is_a_number_comes_as_one_or_as_text() -> None:
    assert sent([{"key": k, "label": 1} for k in (7, 7.0, "7")], WITH_NUMBER).keys == ("7", "7", "7")
    for wrong in (7.5, True, 1e300, None, ""):
        assert "labels[0].key" in refused([{"key": wrong, "label": 1}], WITH_NUMBER).detail
    assert "labels[0].key" in refused([{"key": 7, "label": 1}]).detail


@pytest.mark.parametrize("field", ["prediction_id", "key"])
def test_ids_and_keys_have_a_bound(field: str) -> None:
    assert sent([{field: "k" * 1_000, "label": 1}]).values.tolist() == [1.0]
    assert "1 to 1,000 characters" in refused([{field: "k" * 1_001, "label": 1}]).detail


def test_classes() -> None:
    labels = [{"prediction_id": "p", "label": "fox"}, {"prediction_id": "p", "label": "dog"}]
    assert sent(labels, MULTICLASS, classes=("dog", "fox")).values.tolist() == ["fox", "dog"]
    assert sent(labels, MULTICLASS).values.dtype == object  # no version is loaded yet
    assert "one of 'dog', 'cat', got 'fox'" in refused(labels, MULTICLASS, classes=("dog", "cat")).detail
    numbers = [{"prediction_id": "p", "label": 2}]
    assert sent(numbers, MULTICLASS, classes=(1, 2)).values.tolist() == [2]
    assert type(sent([{"key": "k", "label": 2.0}], MULTICLASS, classes=(1, 2)).values[0]) is int
    for wrong in (True, "2", 2.5, None):
        assert refused([{"prediction_id": "p", "label": wrong}], MULTICLASS, classes=(1, 2)).status == 422
    for wrong in (1.5, None, [], {}):
        assert "a class" in refused([{"prediction_id": "p", "label": wrong}], MULTICLASS).detail


def test_numbers() -> None:
    labels = [{"prediction_id": "p", "label": v} for v in (-1.5, 20, 0, 2**63)]
    assert sent(labels, REGRESSION).values.tolist() == [-1.5, 20.0, 0.0, 2.0**63]
    for wrong in ("1", None, True, []):
        assert "a number" in refused([{"prediction_id": "p", "label": wrong}], REGRESSION).detail


GOOD = {"prediction_id": "p", "label": 1}


@pytest.mark.parametrize(
    ("document", "named"),
    [
        (None, ["labels"]),
        ([], ["labels"]),
        ({}, ["labels"]),
        ({"labels": []}, ["labels"]),
        ({"labels": {}}, ["labels"]),
        ({"labels": [GOOD], "more": 1}, ["labels"]),
        ({"labels": [GOOD, 5]}, ["labels[1]", "integer"]),
        ({"labels": [GOOD | {"extra": 1}]}, ["labels[0]", "'extra'"]),
        ({"labels": [{"label": 1}]}, ["labels[0]", "prediction_id or a key"]),
        ({"labels": [GOOD | {"key": "k"}]}, ["labels[0]", "prediction_id or a key"]),
        ({"labels": [GOOD | {"prediction_id": ""}]}, ["labels[0].prediction_id"]),
        ({"labels": [GOOD | {"prediction_id": 5}]}, ["labels[0].prediction_id", "5"]),
        ({"labels": [{"prediction_id": "p"}]}, ["labels[0].label", "null"]),
        ({"labels": [GOOD | {"values": {"revenue": 1}}]}, ["labels[0].values", "'revenue'", "no business metric"]),
        ({"labels": [GOOD, GOOD | {"label": 2}]}, ["labels[1].label", "2"]),
        ({"labels": [GOOD | {"label": 0.5}]}, ["labels[0].label", "0.5"]),
        ({"labels": [GOOD | {"label": "1"}]}, ["labels[0].label", "'1'"]),
        ({"labels": [GOOD | {"time": "soon"}]}, ["labels[0].time", "'soon'"]),
        ({"labels": [GOOD | {"time": -5}]}, ["labels[0].time", "-5"]),
        ({"labels": [GOOD | {"time": NOW + 2 * 86_400}]}, ["labels[0].time", "tomorrow"]),
    ],
)
def test_malformed_feedback_is_told_what_and_where(document: Any, named: list[str]) -> None:
    with pytest.raises(BadRequest) as caught:
        feedback.parse(orjson.dumps(document), FORM, now=NOW)
    assert caught.value.status == 422
    for part in named:
        assert part in caught.value.detail


def test_a_deep_label_is_shown_in_short() -> None:
    body = b'{"labels": [{"prediction_id": "p", "label": %b%b}]}' % (b"[" * 1000, b"]" * 1000)
    with pytest.raises(BadRequest, match="expected 0 or 1, got an array"):
        feedback.parse(body, FORM, now=NOW)


def test_a_refusal_points_to_the_entry() -> None:
    assert refused([GOOD, GOOD | {"label": 2}]).members == {
        "pointer": "#/labels/1/label",
        "field": "labels[1].label",
        "expected": "0 or 1",
        "received": "2",
    }


def test_too_many_labels_and_repeated_members() -> None:
    form = Form.of(fakes.project(serving={"max_rows": 2}))
    assert refused([GOOD] * 3, form).status == 413
    twice = b'{"labels": [{"prediction_id": "p", "label": 1, "label": 0}]}'
    with pytest.raises(BadRequest, match="repeated member"):
        feedback.parse(twice, FORM, now=NOW)


@pytest.mark.parametrize(
    ("written", "seconds"), [("2013-03-01T12:30:00Z", 1362141000.0), ("2013-03-01", 1362096000.0), (0, 0.0)]
)
def test_a_watermark(written: Any, seconds: float) -> None:
    assert feedback.parse_watermark(orjson.dumps({"time": written}), now=NOW) == seconds


@pytest.mark.parametrize(
    "document",
    [None, {}, {"time": None}, {"time": "x"}, {"time": 1, "more": 2}, [1], {"time": True}, {"time": NOW + 2 * 86_400}],
)
def test_a_malformed_watermark_is_refused(document: Any) -> None:
    with pytest.raises(BadRequest) as caught:
        feedback.parse_watermark(orjson.dumps(document), now=NOW)
    assert caught.value.status == 422


def test_business_numbers_beside_and_instead_of_labels() -> None:
    told = sent(
        [
            {"prediction_id": "a:0", "label": 1, "values": {"revenue": 12.5}, "time": 5},
            {"key": "visit-7", "values": {"page/views": 3, "revenue": -2}},
            GOOD,
        ],
        BUSINESS,
    )
    assert (told.ids, told.keys) == (("a:0", "", "p"), ("", "visit-7", ""))
    np.testing.assert_array_equal(told.values, [1.0, np.nan, 1.0])
    assert told.numbers.keys() == {"revenue", "page/views"}
    np.testing.assert_array_equal(told.numbers["revenue"], [12.5, -2.0, np.nan])
    np.testing.assert_array_equal(told.numbers["page/views"], [np.nan, 3.0, np.nan])
    assert told.times.tolist() == [5.0, NOW, NOW]
    assert sent([GOOD], BUSINESS).numbers == {}
    alone = sent([{"prediction_id": "p", "values": {"revenue": 0}}], CLASSES_TOO, classes=("dog",))
    assert (alone.values.tolist(), alone.values.dtype) == ([None], np.dtype(object))


ALONE = {"prediction_id": "p"}


@pytest.mark.parametrize(
    ("entry", "pointer", "named"),
    [
        (ALONE | {"values": {"revenu": 1}}, "/values/revenu", ["'revenu'", "known: 'revenue', 'page/views'"]),
        (ALONE | {"values": {"page/views": "3"}}, "/values/page~1views", ["values.page/views", "finite number", "'3'"]),
        (ALONE | {"values": {"revenue": True}}, "/values/revenue", ["a finite number, got true"]),
        (ALONE | {"values": {"revenue": None}}, "/values/revenue", ["a finite number, got null"]),
        (ALONE | {"values": {"revenue": [1]}}, "/values/revenue", ["a finite number, got an array"]),
        (ALONE | {"values": {}}, "/values", ["at least one number by name"]),
        (ALONE | {"values": 12.5}, "/values", ["an object", "12.5"]),
        (ALONE | {"values": None, "label": 1}, "/values", ["an object", "null"]),
        (ALONE | {"values": {"revenue": 1}, "label": None}, "/label", ["0 or 1", "null"]),
        ({"values": {"revenue": 1}}, "", ["prediction_id or a key"]),
    ],
)
def test_refused_business_numbers_are_told_what_and_where(entry: Any, pointer: str, named: list[str]) -> None:
    error = refused([GOOD, entry], BUSINESS)
    assert (error.status, error.members["pointer"]) == (422, f"#/labels/1{pointer}")
    for part in named:
        assert part in error.detail


def test_a_number_that_is_none_is_refused() -> None:
    for number in ("NaN", "Infinity", "-Infinity", "1e400"):
        with pytest.raises(BadRequest) as caught:
            feedback.parse(
                b'{"labels": [{"key": "k", "values": {"revenue": %b}}]}' % number.encode(), BUSINESS, now=NOW
            )
        assert caught.value.status in (400, 422)


def test_a_request_takes_so_many_business_numbers() -> None:
    form = Form.of(fakes.project(serving={"max_rows": 3}, rollout={"analyses": SALES}))
    both = {"key": "k", "values": {"revenue": 1, "page/views": 2}}
    assert sent([both, GOOD], form).numbers["revenue"][0] == 1
    error = refused([both, both], form)
    assert (error.status, error.members) == (413, {"expected": 3, "received": 4})
    twice = b'{"labels": [{"key": "k", "values": {"revenue": 1, "revenue": 2}}]}'
    with pytest.raises(BadRequest, match="repeated member"):
        feedback.parse(twice, BUSINESS, now=NOW)


names = st.sampled_from(["prediction_id", "key", "label", "values", "time"])
told = st.dictionaries(st.sampled_from(["revenue", "page/views", "other"]), scalars, max_size=3)
entries = st.lists(st.dictionaries(names, scalars | told, max_size=3) | anything, max_size=3)


@given(entries | anything, st.sampled_from([FORM, MULTICLASS, REGRESSION, WITH_NUMBER, BUSINESS, CLASSES_TOO]))
@example([GOOD], FORM)
@example([ALONE | {"values": {"revenue": 1}}], CLASSES_TOO)
@example([{"key": 1e300, "label": 1}], WITH_NUMBER)
def test_any_json_is_feedback_or_a_bad_request(labels: Any, form: Form) -> None:
    body = orjson.dumps({"labels": labels}, default=str)
    found = or_refusal(lambda: feedback.parse(body, form, now=NOW))
    if isinstance(found, BadRequest):
        assert found.status in (400, 422)
        return
    assert len(found.ids) == len(found.keys) == len(found.values) == len(found.times) > 0
    assert all(len(told) == len(found.ids) for told in found.numbers.values())
    assert all(bool(a) != bool(b) for a, b in zip(found.ids, found.keys, strict=True))
    assert all(day_of(t) for t in found.times)


@given(st.binary(max_size=60))
def test_any_bytes_are_feedback_or_a_bad_request(body: bytes) -> None:
    assert isinstance(or_refusal(lambda: feedback.parse(body, FORM, now=NOW)), Labels | BadRequest)
    assert isinstance(or_refusal(lambda: feedback.parse_watermark(body, now=NOW)), float | BadRequest)
