"""Columns derived from inputs: beside pandas, beside scikit-learn's hashers, alone and in a batch."""

from __future__ import annotations

from datetime import datetime
from typing import Any
from zoneinfo import ZoneInfo

import hypothesis.strategies as st
import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from sklearn.base import clone
from sklearn.decomposition import PCA
from sklearn.feature_extraction import FeatureHasher
from sklearn.feature_extraction.text import HashingVectorizer
from sklearn.utils import murmurhash3_32

from mlops_ray.config import Features
from mlops_ray.data.features.derive import derive, murmur3
from mlops_ray.data.features.matrix import transformed
from mlops_ray.data.features.statistics import fold, to_columns, to_frame
from mlops_ray.data.features.transformer import bins, transformer
from mlops_ray.errors import DataError

PARTS = ["year", "month", "day", "weekday", "hour", "minute", "dayofyear", "is_weekend"]


def of(**blocks: Any) -> Features:
    return Features.model_validate(blocks)


@given(st.lists(st.text(max_size=20), max_size=20))
@settings(max_examples=30)
def test_the_hash_is_scikit_learns(texts: list[str]) -> None:
    texts = [text.encode("utf-8", "ignore").decode() for text in texts]
    assert murmur3(texts).tolist() == [murmurhash3_32(text.encode(), 0) for text in texts]


@pytest.mark.parametrize("zone", ["UTC", "America/New_York", "Asia/Kathmandu", "Australia/Lord_Howe"])
@given(times=st.lists(st.integers(-2_000_000_000, 4_000_000_000), min_size=1, max_size=8))
@settings(max_examples=15)
def test_parts_of_times_are_those_of_the_zones_clock(zone: str, times: list[int]) -> None:
    times += [1362898799, 1362898800, 1383458399]  # New York's clocks are moved at the second
    features = of(datetime={"columns": ["t"], "parts": PARTS, "zone": zone})
    found = derive(features, {"t": np.array(times, dtype=np.float64)})
    for i, time in enumerate(times):
        local = datetime.fromtimestamp(time, ZoneInfo(zone))
        expected = [local.year, local.month, local.day, local.weekday(), local.hour, local.minute]
        expected += [local.timetuple().tm_yday, float(local.weekday() >= 5)]
        assert [found[f"t_{part}"][i] for part in PARTS] == expected


def test_cycles_and_spans() -> None:
    block = {"columns": ["t"], "cyclic": ["hour", "month"], "elapsed_since": "2020-01-01T00:00:00Z"}
    features = of(datetime=[block, {"columns": ["u"], "elapsed_since": "t"}])
    midnight = datetime(2020, 1, 11, tzinfo=ZoneInfo("UTC")).timestamp()
    found = derive(features, {"t": np.array([midnight, midnight + 6 * 3600, np.nan]), "u": np.full(3, midnight)})
    np.testing.assert_allclose(found["t_hour_sin"], [0, 1, np.nan], atol=1e-7)
    np.testing.assert_allclose(found["t_hour_cos"], [1, 0, np.nan], atol=1e-7)
    np.testing.assert_allclose(found["t_month_sin"], [0, 0, np.nan], atol=1e-7)
    np.testing.assert_allclose(found["t_elapsed_days"], [10, 10.25, np.nan])
    np.testing.assert_allclose(found["u_elapsed_days"], [0, -0.25, np.nan])
    assert features.inputs == ("t", "u")


TEXTS = np.array(["Late  again, the CREW late", "", "ünïcode x", "a", "crew"], dtype=object)


@pytest.mark.parametrize("signed", [True, False])
@pytest.mark.parametrize(("tokens", "ngrams"), [("words", (1, 1)), ("words", (1, 2)), ("chars", (2, 4))])
def test_hashed_texts_are_those_of_scikit_learns_vectorizer(tokens: str, ngrams: Any, signed: bool) -> None:
    features = of(text={"columns": ["s"], "n_buckets": 16, "tokens": tokens, "ngrams": ngrams, "signed": signed})
    found = derive(features, {"s": TEXTS})
    analyzer = {"words": "word", "chars": "char"}[tokens]
    theirs = HashingVectorizer(
        n_features=16, norm=None, analyzer=analyzer, ngram_range=ngrams, alternate_sign=signed, token_pattern=r"\w+"
    )
    np.testing.assert_array_equal(
        np.stack([found[n] for n in features.derived], axis=1), theirs.transform(TEXTS).toarray()
    )


def test_hashed_categories_are_those_of_scikit_learns_hasher() -> None:
    features = of(categorical={"columns": ["s"], "encode": "hash", "n_buckets": 8})
    found = derive(features, {"s": TEXTS})
    theirs = FeatureHasher(8, input_type="string").transform([[t] if t else [] for t in TEXTS]).toarray()
    np.testing.assert_array_equal(np.stack([found[n] for n in features.derived], axis=1), theirs)


def test_expressions_take_their_columns_for_what_they_use_them_as() -> None:
    features = of(
        numeric={"columns": ["speed", "a"]},
        expressions={"speed": "a / (b + 1)", "far": "origin == 'JFK' and a > 1", "noon": "hour(t) == 12", "on": "flag"},
    )
    assert features.kinds == {"a": "number", "b": "number", "flag": "number", "origin": "string", "t": "time"}
    assert features.numbers == ("speed", "a", "far", "noon", "on")
    inputs = {
        "a": np.array([1, 2, np.nan, 4], dtype=np.float32),
        "b": np.array([1, -1, 1, 0], dtype=np.float32),
        "flag": np.array([0, 1, 1, np.nan], dtype=np.float32),
        "origin": np.array(["JFK", "JFK", "EWR", ""], dtype=object),
        "t": np.array([12 * 3600, 0.0, np.nan, 1.0]),
    }
    found = derive(features, inputs)
    np.testing.assert_array_equal(found["speed"], np.array([0.5, np.nan, np.nan, 4], dtype=np.float32))
    np.testing.assert_array_equal(found["far"], np.array([0, 1, 0, np.nan], dtype=np.float32))
    np.testing.assert_array_equal(found["noon"], np.array([1, 0, np.nan, 0], dtype=np.float32))
    assert derive(features, found) is found


KINDS = {
    "numeric": [
        {"columns": ["a", "b"], "impute": "median", "indicator": True},
        {"columns": ["ratio", "t_weekday"], "scale": "robust"},
        {"columns": ["a"], "log": True, "clip": [0, 50], "bins": {"n": 3}},
    ],
    "categorical": [
        {"columns": ["origin"]},
        {"columns": ["carrier"], "encode": "target"},
        {"columns": ["tail"], "encode": "hash", "n_buckets": 4},
    ],
    "datetime": {"columns": ["t"], "parts": ["weekday"], "cyclic": ["hour"], "zone": "America/New_York"},
    "text": {"columns": ["note"], "n_buckets": 4},
    "expressions": {"ratio": "a / (b + 1)"},
    "custom": {"transformer": "sklearn.decomposition:PCA", "params": {"n_components": 1}, "columns": ["z", "ratio2"]},
}


def rows(n: int = 300) -> pa.Table:
    rng = np.random.default_rng(0)
    return pa.table(
        {
            "a": pa.array(rng.exponential(10, n), mask=rng.random(n) < 0.1),
            "b": rng.integers(0, 5, n),
            "z": rng.normal(size=n),
            "ratio2": rng.normal(size=n),
            "origin": rng.choice(["EWR", "JFK"], n),
            "carrier": pa.array(rng.choice(["UA", "AA", "DL"], n), mask=rng.random(n) < 0.1),
            "tail": [f"N{i % 97}" for i in range(n)],
            "t": pa.array(rng.integers(1_300_000_000, 1_400_000_000, n) * 1_000_000).cast(pa.timestamp("us", tz="UTC")),
            "note": rng.choice(["late crew", "weather", ""], n),
            "key": [f"k{i}" for i in range(n)],
            "y": rng.integers(0, 2, n),
        }
    )


def test_all_kinds_at_once_alone_and_in_a_batch() -> None:
    features, table = Features.model_validate(KINDS), rows()
    parts = [fold(features, table.slice(a, 100), target="y", key="key") for a in (200, 0, 100)]
    partial = parts[0] + parts[1] + parts[2]
    fitted = transformer(features, partial)
    columns = to_columns(features, table)
    matrix = np.asarray(fitted.transform(to_frame(features, columns)), float)
    assert matrix.shape == (300, len(fitted.get_feature_names_out()))
    for i in (0, 17, 299):
        one = fitted.transform(to_frame(features, {name: values[i : i + 1] for name, values in columns.items()}))
        alone = np.asarray(one, float)[0]
        np.testing.assert_array_equal(alone[:-1], matrix[i, :-1])
        np.testing.assert_allclose(alone[-1], matrix[i, -1], rtol=1e-12)  # BLAS sums a batch in another order
    own = PCA(1).fit(np.stack([columns["z"], columns["ratio2"]], axis=1).astype(float))
    np.testing.assert_allclose(abs(fitted.named_transformers_["custom_1"].components_), abs(own.components_), rtol=1e-9)
    found = bins(features, partial)
    assert set(found.numeric) == {"a", "b", "z", "ratio2"}
    assert set(found.categorical) == {"origin", "carrier"}


def test_a_custom_transformer_that_fails_is_said_in_a_sentence() -> None:
    custom = {"transformer": "sklearn.decomposition:PCA", "params": {"n_components": 9}, "columns": ["z"]}
    features = of(custom=custom)
    with pytest.raises(DataError, match=r"features.custom sklearn.decomposition:PCA: cannot be fitted: ValueError"):
        transformer(features, fold(features, rows()))
    odd = of(custom={**custom, "params": {"parts": 1}})
    with pytest.raises(DataError, match=r"cannot be made: .* fix the path or its params"):
        transformer(odd, fold(odd, rows()))


DOMAINS = [
    {"transformer": "sklearn.preprocessing:OrdinalEncoder", "columns": ["origin"], "kind": "categorical"},
    {"transformer": "sklearn.preprocessing:OrdinalEncoder", "columns": ["b"]},
    {"transformer": "sklearn.preprocessing:PowerTransformer", "params": {"method": "box-cox"}, "columns": ["pos"]},
    {
        "transformer": "sklearn.preprocessing:SplineTransformer",
        "params": {"extrapolation": "error"},
        "columns": ["pos"],
    },
]


@pytest.mark.parametrize("custom", DOMAINS, ids=lambda each: f"{each['transformer'][22:]} of {each['columns'][0]}")
def test_a_custom_transformer_sees_no_made_up_rows(custom: dict[str, Any]) -> None:
    """Neither zeros nor "" need be among what it can transform."""
    features = of(custom=custom, numeric={"columns": ["z"]})
    table = rows().append_column("pos", pa.array(np.random.default_rng(1).uniform(5, 6, 300).astype(np.float32)))
    fitted = transformer(features, fold(features, table))
    frame = to_frame(features, to_columns(features, table))
    own = clone(fitted).fit(frame)
    assert fitted.output_indices_ == own.output_indices_
    np.testing.assert_allclose(transformed(features, fitted, table), own.transform(frame), rtol=1e-9, atol=1e-6)


def test_a_sparse_custom_transformer_is_refused_with_the_way_out() -> None:
    features = of(
        custom={"transformer": "sklearn.preprocessing:OneHotEncoder", "columns": ["origin"], "kind": "categorical"}
    )
    with pytest.raises(DataError, match=r"OneHotEncoder: gives a sparse matrix; .*sparse_output: false"):
        transformer(features, fold(features, rows()))
