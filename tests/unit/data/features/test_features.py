from __future__ import annotations

import functools
import itertools
import pickle

import hypothesis.strategies as st
import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from sklearn.base import clone

from mlops_ray.config import Features
from mlops_ray.data.features.statistics import (
    MAX_VALUES,
    Partial,
    ValueCounts,
    fold,
    rough,
    to_columns,
    to_frame,
)
from mlops_ray.data.features.transformer import bins, transformer
from mlops_ray.data.profile import fold as fold_profile
from mlops_ray.errors import DataError

FEATURES = Features.model_validate(
    {"numeric": {"columns": ["x", "n", "flag"]}, "categorical": {"columns": ["c", "d"], "min_share": 0.05}}
)


def table(n: int = 400, seed: int = 0) -> pa.Table:
    rng = np.random.default_rng(seed)
    x = rng.lognormal(3, 1, n)
    c = rng.choice(["a", "b", "c", "rare"], n, p=[0.5, 0.3, 0.19, 0.01])
    return pa.table(
        {
            "x": pa.array(np.where(rng.random(n) < 0.2, np.nan, x), from_pandas=True),
            "n": pa.array(rng.integers(0, 5, n)),
            "flag": pa.array(rng.random(n) < 0.5),
            "c": pa.array(np.where(rng.random(n) < 0.1, None, c.astype(object))),
            "d": pa.array(rng.choice(["é", "z"], n)),
        }
    )


def sharded(rows: pa.Table, cuts: list[int], features: Features = FEATURES) -> Partial:
    edges = [0, *sorted(cuts), rows.num_rows]
    parts = [fold(features, rows.slice(a, b - a)) for a, b in itertools.pairwise(edges)]
    return functools.reduce(lambda a, b: a + b, parts)


@settings(deadline=None, max_examples=25)
@given(st.lists(st.integers(0, 400), max_size=6), st.randoms(use_true_random=False))
def test_edges_categories_and_counts_do_not_depend_on_sharding_or_order(cuts, random):
    rows = table()
    order = list(range(rows.num_rows))
    random.shuffle(order)
    one, other = fold(FEATURES, rows), sharded(rows.take(order), cuts)
    assert bins(FEATURES, one) == bins(FEATURES, other)
    assert one.categorical == other.categorical
    assert [(s.missing, s.low, s.high) for s in one.numeric.values()] == [
        (s.missing, s.low, s.high) for s in other.numeric.values()
    ]


@pytest.mark.parametrize("cuts", [[], [200], [1, 2, 399], [0, 0, 400, 100]])
@pytest.mark.parametrize(
    "numeric",
    [{}, {"impute": "constant", "fill_value": -7.5}, {"scale": "none"}, {"impute": "constant", "scale": "none"}],
)
def test_transformer_equals_scikit_learns_own_fit(cuts, numeric):
    features = FEATURES.model_copy(update={"numeric": FEATURES.numeric.model_copy(update=numeric)})
    rows = table()
    ours = transformer(features, sharded(rows, cuts, features))
    frame = to_frame(features, to_columns(features, rows))
    own = clone(ours).fit(frame)
    for step in ("impute", "scale") if numeric.get("scale") != "none" else ("impute",):
        mine = ours.named_transformers_["numeric"].named_steps[step]
        theirs = own.named_transformers_["numeric"].named_steps[step]
        learnt = {k for k in vars(theirs) if k.endswith("_") and not k.startswith("_")}
        assert learnt == {k for k in vars(mine) if k.endswith("_") and not k.startswith("_")}
        for name in learnt - {"indicator_", "feature_names_in_"}:
            if np.asarray(getattr(theirs, name)).dtype == object:  # a constant to fill in
                assert getattr(mine, name).tolist() == getattr(theirs, name).tolist()
                continue
            np.testing.assert_allclose(getattr(mine, name), getattr(theirs, name), rtol=1e-9, err_msg=name)
    for mine, theirs in zip(
        ours.named_transformers_["categorical"].categories_,
        own.named_transformers_["categorical"].categories_,
        strict=True,
    ):
        assert mine.tolist() == theirs.tolist()
    assert ours.get_feature_names_out().tolist() == own.get_feature_names_out().tolist()
    unseen = to_frame(features, to_columns(features, rows.set_column(3, "c", pa.array(["new"] * rows.num_rows))))
    for data in (frame, unseen, frame.iloc[:1]):
        np.testing.assert_allclose(ours.transform(data), own.transform(data), rtol=1e-9, atol=1e-12)


def test_rare_missing_and_unseen_categories_are_rows_of_zeros():
    fitted = transformer(FEATURES, fold(FEATURES, table()))
    assert [c.tolist() for c in fitted.named_transformers_["categorical"].categories_] == [["a", "b", "c"], ["z", "é"]]
    rows = table(3).set_column(3, "c", pa.array(["rare", None, "unseen"]))
    encoded = fitted.transform(to_frame(FEATURES, to_columns(FEATURES, rows)))
    assert encoded[:, 3:6].sum() == 0


def test_constant_and_empty_numeric_columns():
    features = Features.model_validate({"numeric": {"columns": ["one", "none"]}})
    rows = pa.table({"one": [0.1] * 50, "none": pa.array([None] * 50, pa.float64())})
    ours = transformer(features, sharded(rows, [7, 20], features))
    frame = to_frame(features, to_columns(features, rows))
    np.testing.assert_allclose(ours.transform(frame), clone(ours).fit(frame).transform(frame), atol=1e-12)
    assert ours.named_transformers_["numeric"].named_steps["scale"].scale_.tolist() == [1.0, 1.0]
    assert bins(features, fold(features, rows)).numeric == {"one": (), "none": ()}


def filled_with(impute: str) -> Features:
    return FEATURES.model_copy(update={"numeric": FEATURES.numeric.model_copy(update={"impute": impute})})


@pytest.mark.parametrize("impute", ["mean", "constant"])
def test_transformer_survives_clone_pickle_and_skops(impute):
    import skops.io

    fitted = transformer(filled_with(impute), fold(FEATURES, table()))
    frame = to_frame(FEATURES, to_columns(FEATURES, table(50, seed=1)))
    expected = fitted.transform(frame)
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(fitted)).transform(frame), expected)
    packed = skops.io.dumps(fitted)
    assert skops.io.get_untrusted_types(data=packed) == ["numpy.dtype"]
    np.testing.assert_array_equal(skops.io.loads(packed, trusted=["numpy.dtype"]).transform(frame), expected)
    assert repr(clone(fitted)) == repr(fitted)


@pytest.mark.parametrize("impute", ["mean", "constant"])
def test_skl2onnx_converts_the_transformer(impute):
    import onnxruntime
    from skl2onnx import to_onnx
    from skl2onnx.common.data_types import FloatTensorType, StringTensorType

    fitted = transformer(filled_with(impute), fold(FEATURES, table()))
    columns = to_columns(FEATURES, table(50, seed=1))
    kinds = [(name, FloatTensorType([None, 1])) for name in FEATURES.numeric.columns]
    kinds += [(name, StringTensorType([None, 1])) for name in FEATURES.categorical.columns]
    graph = to_onnx(fitted, initial_types=kinds).SerializeToString()
    session = onnxruntime.InferenceSession(graph, providers=["CPUExecutionProvider"])
    answer = session.run(None, {name: values.reshape(-1, 1) for name, values in columns.items()})[0]
    np.testing.assert_allclose(answer, fitted.transform(to_frame(FEATURES, columns)), rtol=1e-4, atol=1e-5)


def test_bins_are_about_equally_full_and_isolate_a_heavy_value():
    features = Features.model_validate({"numeric": {"columns": ["x", "rain"]}})
    rng = np.random.default_rng(3)
    rain = np.where(rng.random(5000) < 0.93, 0.0, rng.random(5000))
    rows = pa.table({"x": rng.normal(size=5000), "rain": rain})
    found = bins(features, fold(features, rows))
    profile = fold_profile(found, to_columns(features, rows))
    shares = profile.counts["x"] / 5000
    assert shares.size == 11
    assert shares[-1] == 0
    assert (np.abs(shares[:-1] - 0.1) < 0.011).all()
    assert len(found.numeric["rain"]) == 1
    assert profile.counts["rain"][0] == (rain == 0).sum()


def test_quantile_error_of_many_distinct_values_is_within_one_bucket():
    features = Features.model_validate({"numeric": {"columns": ["x"]}})
    values = np.random.default_rng(5).normal(1000, 5, 60_000)
    stats = fold(features, pa.table({"x": values})).numeric["x"].values
    assert stats.level > 0
    assert stats.keys.size <= MAX_VALUES
    largest = stats.counts.max() / 60_000
    edges = bins(features, fold(features, pa.table({"x": values}))).numeric["x"]
    ranks = [(values < e).mean() for e in edges]
    assert np.abs(np.diff([0, *ranks, 1]) - 0.1).max() < 10 * largest < 0.1


@given(st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), max_size=200))
def test_value_counts_keep_order_and_values(values):
    found = ValueCounts.of(np.array(values, dtype=np.float32))
    expected, counts = np.unique(np.array(values, dtype=np.float32), return_counts=True)
    assert found.level == 0
    np.testing.assert_array_equal(found.lowest, expected)
    assert found.counts.tolist() == counts.tolist()


def test_batches_have_the_contracts_dtypes():
    columns = to_columns(FEATURES, table())
    assert [columns[k].dtype for k in FEATURES.columns] == [np.float32] * 3 + [object] * 2
    assert np.isnan(columns["x"]).sum() == table()["x"].null_count
    assert (columns["c"] == "").sum() == table()["c"].null_count
    frame = to_frame(FEATURES, columns)
    assert list(frame.columns) == list(FEATURES.columns)
    assert [str(t) for t in frame.dtypes] == ["float64"] * 3 + ["object"] * 2


def test_says_what_is_wrong():
    with pytest.raises(DataError, match=r"\['d'\] are missing"):
        to_columns(FEATURES, table().drop_columns(["d"]))
    with pytest.raises(DataError, match="no rows"):
        transformer(FEATURES, fold(FEATURES, table().slice(0, 0)))
    blank = table().set_column(3, "c", pa.nulls(400, pa.string()))
    with pytest.raises(DataError, match="c: no category"):
        transformer(FEATURES, fold(FEATURES, blank))
    other = Features.model_validate({"numeric": {"columns": ["x"]}})
    with pytest.raises(DataError, match="different features"):
        _ = fold(FEATURES, table()) + fold(other, table())


def test_features_with_rough_quantiles_are_named():
    features = Features.model_validate({"numeric": {"columns": ["x", "mixed"]}})
    rng = np.random.default_rng(5)
    mixed = np.where(rng.random(50_000) < 0.7, rng.normal(20_000, 5, 50_000), rng.normal(0, 0.01, 50_000))
    found = rough(fold(features, pa.table({"x": rng.normal(size=50_000), "mixed": mixed})))
    assert found == {"mixed": pytest.approx(0.7, abs=0.01)}
