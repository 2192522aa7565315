"""Every option of the transformer beside scikit-learn's own fit on the same rows."""

from __future__ import annotations

import functools
import itertools
import warnings
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from sklearn.base import clone
from sklearn.compose import ColumnTransformer
from sklearn.preprocessing import PowerTransformer, TargetEncoder

from mlops_ray.config import Features
from mlops_ray.data.features.matrix import transformed
from mlops_ray.data.features.statistics import FOLDS, Partial, TargetStats, fold, folds, to_columns, to_frame
from mlops_ray.data.features.transformer import training_matrix, transformer
from mlops_ray.demo.flights import flights
from mlops_ray.errors import DataError

N = 400
CUTS = ([], [1, 150, 150, 399])


@functools.cache
def generated(n: int = N, seed: int = 0) -> pa.Table:
    """Nulls, infinities, numbers beyond float32, rare categories, constants and a column without any value."""
    rng = np.random.default_rng(seed)
    x = rng.lognormal(1, 1, n)
    x[rng.random(n) < 0.1] = np.nan
    x[rng.random(n) < 0.02] = np.inf
    x[rng.random(n) < 0.02] = 1e39  # finite, but not in float32
    c = rng.choice(["a", "b", "c", "rare"], n, p=[0.5, 0.3, 0.19, 0.01]).astype(object)
    return pa.table(
        {
            "x": pa.array(x),
            "z": rng.normal(-3, 2, n),
            "n": rng.integers(0, 5, n),
            "flag": pa.array(rng.random(n) < 0.5),
            "one": np.full(n, 0.1),
            "none": pa.nulls(n, pa.float64()),
            "c": pa.array(np.where(rng.random(n) < 0.1, None, c)),
            "d": pa.array(rng.choice(["é", "z"], n)),
            "key": pa.array([f"key-{i}" for i in range(n)]),
            "y": (rng.random(n) < 0.3).astype(np.int64),
        }
    )


@functools.cache
def some_flights() -> pa.Table:
    """Real rows, with the project's names for what the tests take from `generated`."""
    table = flights().slice(0, 30_000).take(pa.array(np.arange(0, 30_000, 75)))
    late = np.nan_to_num(table["late"].cast(pa.float64()).to_numpy()).astype(np.int64)
    names = {"x": "wind_gust", "z": "temp", "n": "sched_dep_min", "flag": "precip", "one": "visib", "none": "pressure"}
    names |= {"c": "carrier", "d": "origin", "key": "flight_key"}
    return pa.table({**{ours: table[theirs] for ours, theirs in names.items()}, "y": late})


TABLES = {"generated": generated, "flights": some_flights}


def statistics(features: Features, table: pa.Table, cuts: list[int], *, shuffled: bool = False) -> Partial:
    if shuffled:
        table = table.take(pa.array(np.random.default_rng(7).permutation(table.num_rows)))
    edges = [0, *cuts, table.num_rows]
    parts = [fold(features, table.slice(a, b - a), target="y", key="key") for a, b in itertools.pairwise(edges)]
    return functools.reduce(lambda a, b: a + b, parts[::-1] if shuffled else parts)


def learnt(step: Any) -> dict[str, Any]:
    """What a fitted scikit-learn object knows, all the way down."""
    found: dict[str, Any] = {}
    for name, value in vars(step).items():
        if name in ("_scaler", "_encoder"):
            found |= {f"{name}.{k}": v for k, v in learnt(value).items()}
        elif name == "steps":
            for label, inner in value:
                found |= {f"{label}.{k}": v for k, v in learnt(inner).items()}
        elif name.endswith("_") and not name.startswith("_") and name != "feature_names_in_":
            found[name] = value
    return found


def same(name: str, mine: Any, theirs: Any, rtol: float) -> None:
    if isinstance(theirs, list) or (isinstance(theirs, np.ndarray) and theirs.dtype == object and theirs.ndim == 1):
        assert len(mine) == len(theirs), name
        for a, b in zip(mine, theirs, strict=True):
            same(name, a, b, rtol)
    elif isinstance(theirs, str) or theirs is None:
        assert mine == theirs, name
    elif not hasattr(theirs, "fit"):
        np.testing.assert_allclose(
            np.asarray(mine, float), np.asarray(theirs, float), rtol=rtol, atol=1e-12, err_msg=name
        )


def own_fit(ours: ColumnTransformer, frame: Any, y: Any) -> ColumnTransformer:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # constant columns, few rows for a thousand quantiles
        return clone(ours).fit(frame, y)


def compared(features: Features, table: pa.Table, *, rtol: float = 1e-9) -> ColumnTransformer:
    """Ours over several shardings and orders beside scikit-learn's; then both transform, whole and row by row."""
    columns = to_columns(features, table)
    frame = to_frame(features, columns)
    own = None
    for cuts, shuffled in itertools.product(CUTS, (False, True)):
        ours = transformer(features, statistics(features, table, cuts, shuffled=shuffled))
        own = own_fit(ours, frame, table["y"].to_numpy()) if own is None else own
        for (label, mine, _), (_, theirs, _) in zip(ours.transformers_, own.transformers_, strict=True):
            if label == "remainder":
                continue
            expected, found = learnt(theirs), learnt(mine)
            assert found.keys() == expected.keys(), label
            for name, value in expected.items():
                if name != "bins.n_bins_" and not name.endswith("features_"):
                    same(f"{label}.{name}", found[name], value, rtol)
    assert ours.get_feature_names_out().tolist() == own.get_feature_names_out().tolist()
    assert ours.output_indices_ == own.output_indices_
    matrix = np.asarray(ours.transform(frame), dtype=float)
    np.testing.assert_allclose(matrix, np.asarray(own.transform(frame), float), rtol=max(rtol, 1e-7), atol=1e-9)
    for row in (0, 5, N - 1):
        one = to_frame(features, {k: v[row : row + 1] for k, v in columns.items()})
        np.testing.assert_array_equal(np.asarray(ours.transform(one), float)[0], matrix[row])
    return ours


NUMERIC: list[dict[str, Any]] = [
    *({"impute": impute} for impute in ("mean", "median", "most_frequent", "none")),
    {"impute": "constant", "fill_value": 7.5},
    {"impute": "median", "indicator": True, "scale": "none"},
    *({"scale": scale} for scale in ("robust", "min_max", "quantile")),
    {"scale": "robust", "impute": "none"},
    {"scale": "min_max", "impute": "constant", "fill_value": -100},
    {"scale": "quantile", "output": "normal", "impute": "none"},
    {"clip": [0.5, 3], "log": True},
    {"clip": [0.5, 3], "impute": "constant", "fill_value": 2, "scale": "robust"},
    {"bins": {"n": 4}},
    {"bins": {"n": 4, "encode": "ordinal"}, "impute": "median"},
    {"bins": {"n": 6, "strategy": "uniform"}},
    {"impute": "none", "scale": "none"},
]


@pytest.mark.parametrize("rows", TABLES)
def test_numeric_options_equal_scikit_learns_own_fit(rows: str) -> None:
    """Each option as a block of its own, all in one transformer: a step is compared under its block's label."""
    columns = ["x", "z", "n", "flag", "one"]
    blocks = [
        {"columns": columns + (["none"] if options.get("impute") != "none" else []), **options} for options in NUMERIC
    ]
    compared(Features.model_validate({"numeric": blocks}), TABLES[rows]())


@pytest.mark.parametrize("rows", TABLES)
def test_logarithms_and_quantile_limits(rows: str) -> None:
    blocks = [
        {"columns": ["x", "n"], "log": True, "impute": "median"},
        {"columns": ["x", "z"], "clip": {"quantiles": [0.05, 0.9]}, "indicator": True},
    ]
    features = Features.model_validate({"numeric": blocks})
    ours = compared(features, TABLES[rows]())
    columns = to_columns(features, TABLES[rows]())
    for i, name in enumerate(("x", "z")):
        limits = ours.named_transformers_[f"numeric_2.{i + 1}"].named_steps["clip"].kw_args
        finite = columns[name][np.isfinite(columns[name])].astype(np.float64)
        np.testing.assert_allclose([limits["a_min"], limits["a_max"]], np.percentile(finite, [5, 90]), rtol=1e-12)


@pytest.mark.parametrize("rows", TABLES)
@pytest.mark.parametrize("impute", ["mean", "none"])
def test_power_scaling(rows: str, impute: str) -> None:
    features = Features.model_validate({"numeric": {"columns": ["x", "z", "n"], "scale": "power", "impute": impute}})
    compared(features, TABLES[rows](), rtol=1e-4)


def test_power_and_quantiles_of_many_distinct_values() -> None:
    n = 90_000
    rng = np.random.default_rng(1)
    # Far from 0 the power hangs on the third moment, which coarse counts miss.
    values = np.stack([rng.normal(1000, 5, n), rng.lognormal(2, 1, n)], axis=1).astype(np.float32)
    table = pa.table({"x": values[:, 0], "z": values[:, 1]})
    power = Features.model_validate({"numeric": {"columns": ["x", "z"], "scale": "power"}})
    partial = fold(power, table.slice(0, 9000)) + fold(power, table.slice(9000))
    ours = transformer(power, partial).named_transformers_["numeric"].named_steps["scale"]
    np.testing.assert_allclose(ours.lambdas_, PowerTransformer().fit(values.astype(float)).lambdas_, atol=1e-3)
    robust = Features.model_validate({"numeric": {"columns": ["x", "z"], "scale": "robust"}})
    coarse = functools.reduce(lambda a, b: a + b, [fold(robust, table.slice(i, 9000)) for i in range(0, n, 9000)])
    for features, counted in ((power, partial), (robust, coarse)):
        blocks = {"numeric": {"columns": ["x", "z"], "scale": "quantile" if features is power else "robust"}}
        fitted = transformer(Features.model_validate(blocks), counted).named_transformers_["numeric"][-1]
        for i, name in enumerate(("x", "z")):
            stats = counted.numeric[name].values
            assert stats.level > 0
            assert 0 < stats.rank_error < 0.01
            if features is power:
                shares, found = fitted.references_, fitted.quantiles_[:, i]
            else:
                shares, found = np.array([0.5]), fitted.center_[i]
            ranks = np.searchsorted(np.sort(values[:, i]), found) / n
            assert np.abs(ranks - shares).max() <= stats.rank_error + 2 / n


CATEGORICAL: list[dict[str, Any]] = [
    {"encode": "ordinal"},
    {"encode": "target"},
    {"encode": "target", "smooth": 5.0},
    {"encode": "target", "smooth": 0.0, "min_share": 0},
    {"min_frequency": 30},
    {"max_categories": 2},
    {"encode": "ordinal", "max_categories": 2},
    {"min_share": 0.01},
]


@pytest.mark.parametrize("rows", TABLES)
def test_categorical_options_equal_scikit_learns_own_fit(rows: str) -> None:
    features = Features.model_validate({"categorical": [{"columns": ["c", "d"], **each} for each in CATEGORICAL]})
    ours = compared(features, TABLES[rows]())
    unseen = {"c": np.array(["new", ""], dtype=object), "d": np.array(["new", ""], dtype=object)}
    assert np.isfinite(np.asarray(ours.transform(to_frame(features, unseen)), float)).all()


@pytest.mark.parametrize("smooth", ["auto", 10.0])
def test_training_rows_are_encoded_by_the_other_folds(smooth: Any) -> None:
    features = Features.model_validate({"categorical": {"columns": ["c", "d"], "encode": "target", "smooth": smooth}})
    table = generated()
    partial = statistics(features, table, [100])
    fitted = transformer(features, partial)
    columns, fold_of = to_columns(features, table), folds(table["key"])
    assert set(fold_of.tolist()) == set(range(FOLDS))
    shuffled = np.random.default_rng(0).permutation(N)
    np.testing.assert_array_equal(folds(table["key"].take(pa.array(shuffled))), fold_of[shuffled])
    matrix = training_matrix(features, partial, fitted, columns, fold_of)
    frame, y = to_frame(features, columns), table["y"].to_numpy()
    for k in range(FOLDS):
        rest = TargetEncoder(categories=fitted.named_transformers_["categorical"].categories, smooth=smooth)
        expected = rest.fit(frame[fold_of != k], y[fold_of != k]).transform(frame[fold_of == k])
        np.testing.assert_allclose(matrix[fold_of == k], expected, rtol=1e-12)
    outside = training_matrix(features, partial, fitted, columns, np.full(N, -1))
    np.testing.assert_array_equal(outside, fitted.transform(frame))
    # A label that flips changes nothing for the rows of its own fold.
    y2 = np.where(np.arange(N) == 3, 1 - y, y)
    other = statistics(features, table.set_column(9, "y", pa.array(y2)), [100])
    again = training_matrix(features, other, transformer(features, other), columns, fold_of)
    np.testing.assert_array_equal(again[fold_of == fold_of[3]], matrix[fold_of == fold_of[3]])


def test_what_float32_cannot_hold_is_missing() -> None:
    """Also where a clip would otherwise make it the upper limit, which the fit never saw."""
    blocks = [{"columns": ["x"], "impute": "median", "indicator": True}, {"columns": ["x"], "clip": [0, 5]}]
    features = Features.model_validate({"numeric": blocks})
    table = pa.table({"x": [1.0, 2.0, 6.0, 1e39, -1e300, np.inf, None]})
    columns = to_columns(features, table)
    np.testing.assert_array_equal(np.isnan(columns["x"]), [False] * 3 + [True] * 4)
    matrix = transformed(features, transformer(features, fold(features, table)), table)
    assert np.isfinite(matrix).all()
    assert matrix[:, 1].tolist() == [0.0] * 3 + [1.0] * 4
    assert (matrix[3:] == matrix[3]).all()


@pytest.mark.parametrize("rows", [150, 2000])
def test_quantiles_of_columns_with_gaps(rows: int) -> None:
    """scikit-learn counts all rows for the number of quantiles, and only those with a value for the quantiles."""
    rng = np.random.default_rng(2)
    x = pa.array(rng.normal(size=rows), mask=rng.random(rows) < 0.6)
    table = pa.table({"x": x, "z": pa.array(rng.normal(size=rows), mask=rng.random(rows) < 0.1)})
    blocks = [{"columns": ["x", "z"], "scale": scale, "impute": "none"} for scale in ("quantile", "min_max")]
    features = Features.model_validate({"numeric": [*blocks, {"columns": ["x"], "scale": "quantile"}]})
    frame = to_frame(features, to_columns(features, table))
    ours = transformer(features, fold(features, table))
    own = own_fit(ours, frame, None)
    for mine, theirs in zip(ours.named_transformers_.values(), own.named_transformers_.values(), strict=True):
        expected, found = learnt(theirs), learnt(mine)
        for name, value in expected.items():
            same(name, found[name], value, 1e-9)
    np.testing.assert_allclose(ours.transform(frame), own.transform(frame), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("least", [{"min_share": 0.05}, {"max_categories": 2, "min_share": 0}])
def test_an_excluded_category_changes_no_others_encoding(least: dict[str, Any]) -> None:
    """scikit-learn, told the same categories, would count its rows in the first one."""
    table = generated().filter(generated()["c"].is_valid())
    y = np.where(table["c"].to_numpy() == "rare", 1, table["y"].to_numpy())
    table = table.set_column(table.column_names.index("y"), "y", pa.array(y))
    features = Features.model_validate({"categorical": {"columns": ["c"], "encode": "target", **least}})
    ours = transformer(features, statistics(features, table, [100])).named_transformers_["categorical"]
    frame = to_frame(features, to_columns(features, table))
    free = TargetEncoder(target_type="binary").fit(frame, y)
    known = ours.categories[0].tolist()
    assert "rare" not in known
    at = [free.categories_[0].tolist().index(name) for name in known]
    np.testing.assert_allclose(ours.encodings_[0], free.encodings_[0][at], rtol=1e-12)
    told = clone(ours).fit(frame, y)
    assert told.encodings_[0][0] != pytest.approx(ours.encodings_[0][0], rel=1e-3)
    assert told.encodings_[0][1:] == pytest.approx(ours.encodings_[0][1:], rel=1e-12)
    rare = frame[frame["c"] == "rare"]
    assert ours.transform(rare)[:, 0] == pytest.approx(y.mean())


def test_columns_may_be_called_as_labels_end() -> None:
    clip = {"quantiles": [0.05, 0.9]}
    blocks = [
        {"columns": ["2", "missing"], "clip": clip, "indicator": True},
        {"columns": ["x", "z"], "indicator": True},
    ]
    features = Features.model_validate({"numeric": blocks})
    table = generated().rename_columns(
        [{"n": "2", "one": "missing"}.get(name, name) for name in generated().column_names]
    )
    compared(features, table)


def test_target_statistics_add() -> None:
    a = TargetStats(np.array(["", "b"], dtype=object), np.ones((2, FOLDS), int), np.zeros((2, FOLDS), int))
    b = TargetStats(np.array(["a", "b"], dtype=object), np.ones((2, FOLDS), int), np.ones((2, FOLDS), int))
    both = a + b
    assert both.categories.tolist() == ["", "a", "b"]
    assert both.n.sum(axis=1).tolist() == [FOLDS, FOLDS, 2 * FOLDS]
    assert both.positives.sum(axis=1).tolist() == [0, FOLDS, FOLDS]


def test_moments_of_ill_conditioned_values() -> None:
    """Means and variances beside exact sums, where a naive sum of squares has no digit right."""
    from fractions import Fraction

    rng = np.random.default_rng(0)
    values = (1e9 + rng.normal(0, 300, 3000)).astype(np.float32)
    features = Features.model_validate({"numeric": {"columns": ["x"]}})
    table = pa.table({"x": values})
    parts = [fold(features, table.slice(i, 70)) for i in range(0, 3000, 70)]
    found = functools.reduce(lambda a, b: a + b, parts).numeric["x"].moments
    exact = [Fraction(float(v)) for v in values]
    mean = sum(exact) / len(exact)
    variance = sum((v - mean) ** 2 for v in exact) / len(exact)
    assert found.mean == pytest.approx(float(mean), rel=1e-15)
    assert found.variance == pytest.approx(float(variance), rel=1e-9)


def test_says_what_cannot_be_fitted() -> None:
    def fit(block: dict[str, Any], table: pa.Table, kind: str = "numeric") -> None:
        features = Features.model_validate({kind: block})
        transformer(features, fold(features, table))

    many = pa.table({"x": np.random.default_rng(0).normal(5, 1, 6000)})
    with pytest.raises(DataError, match=r"x: has more than 4096 distinct values; .* impute the median"):
        fit({"columns": ["x"], "impute": "most_frequent"}, many)
    with pytest.raises(DataError, match="z: log: true takes values of at least 0, the lowest is -"):
        fit({"columns": ["z"], "log": True}, generated())
    with pytest.raises(DataError, match="none: has no value to fit `scale: robust`"):
        fit({"columns": ["none"], "scale": "robust", "impute": "none"}, generated())
    tiny = pa.table({"x": np.random.default_rng(0).uniform(0, 1e-9, 500)})
    with pytest.raises(DataError, match=r"x: its values are within 1e-8 of each other, .* `strategy: uniform`"):
        fit({"columns": ["x"], "bins": {"n": 4}}, tiny)
    fit({"columns": ["x"], "bins": {"n": 4, "strategy": "uniform"}}, tiny)
    denormal = pa.table({"x": np.random.default_rng(0).uniform(0, 1e-40, 500)})
    with pytest.raises(DataError, match="x: `scale: power`: no power makes its values more normal; give it another"):
        fit({"columns": ["x"], "scale": "power"}, denormal)
    with pytest.raises(DataError, match="needs the target's and the key's columns"):
        fit({"columns": ["c"], "encode": "target"}, generated(), "categorical")
