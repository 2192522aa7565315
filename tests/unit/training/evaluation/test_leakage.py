from __future__ import annotations

import json

import numpy as np
import pytest
from scipy import stats
from sklearn import metrics as sk

from mlops_ray.errors import DataError
from mlops_ray.training.evaluation import leakage


def rng() -> np.random.Generator:
    return np.random.default_rng(7)


def strengths(found: tuple[leakage.Probe, ...], what: str = "value") -> dict[str, float]:
    return {p.column: p.strength for p in found if p.what == what}


def test_numbers_have_their_auc_up_or_down() -> None:
    random = rng()
    y = random.integers(0, 2, 2000)
    x = np.round(y + random.normal(size=2000), 1)
    x[:100] = np.nan
    found = strengths(leakage.probes("binary", {"x": x, "down": -x, "none": random.normal(size=2000)}, y, rng=random))
    auc = sk.roc_auc_score(y[100:], x[100:])
    assert found["x"] == pytest.approx(auc)
    assert found["down"] == pytest.approx(auc)
    assert found["none"] < 0.54


def test_a_number_may_know_without_rising() -> None:
    random = rng()
    code = random.integers(0, 8, 4000).astype(np.float32)
    y = np.isin(code, [1, 2, 5]).astype(int)
    wide = np.where(y == 1, 0, random.choice([-1.0, 1.0], 4000)) + random.normal(0, 0.1, 4000)
    found = strengths(leakage.probes("binary", {"code": code, "wide": wide}, y, rng=random))
    assert sk.roc_auc_score(y, code) < 0.6
    assert found["code"] == 1
    assert found["wide"] > 0.97


def test_a_key_is_not_leaky_and_a_copy_of_the_label_is() -> None:
    """Ordered by its own rows each key would know every label: 2,000 keys of one row, or of three, know none."""
    random = rng()
    y = random.integers(0, 2, 6000)
    unique = np.array([f"k{i}" for i in range(6000)], dtype=object)
    thrice = np.array([f"k{i}" for i in random.permutation(6000) % 2000], dtype=object)
    copy = np.where(y == 1, "late", "early").astype(object)
    found = strengths(leakage.probes("binary", {"unique": unique, "thrice": thrice, "copy": copy}, y, rng=random))
    assert found["unique"] == 0.5
    assert found["thrice"] < 0.55  # standard error 0.015
    assert found["copy"] == 1
    sums = {k: y[thrice == k].mean() for k in np.unique(thrice)}
    assert sk.roc_auc_score(y, [sums[k] for k in thrice]) > 0.8  # what in-sample means would have said


def test_a_key_that_knows_is_leaky() -> None:
    random = rng()
    group = np.arange(6000) % 600
    y = random.integers(0, 2, 600)[group]
    found = leakage.probes("binary", {"patient": np.array([f"p{g}" for g in group], dtype=object)}, y, rng=random)
    assert strengths(found)["patient"] > 0.99


def test_whether_a_value_is_missing_may_know() -> None:
    random = rng()
    y = random.integers(0, 2, 1000)
    columns = {
        "number": np.where(y == 1, np.nan, random.normal(size=1000)),
        "text": np.where(y == 1, "", "a").astype(object),
        "full": random.normal(size=1000),
    }
    found = leakage.probes("binary", columns, y, rng=random)
    missing = strengths(found, "missing")
    assert (missing["number"], missing["text"], missing["full"]) == (1, 1, 0.5)
    assert [p.column for p in found[:2]] == ["number", "text"]
    assert np.isnan(strengths(found)["number"])  # its values are all of one class
    assert found[-1].to_dict()["strength"] is None
    json.dumps([p.to_dict() for p in found], allow_nan=False)


def test_of_several_classes_the_one_that_stands_out() -> None:
    random = rng()
    y = random.integers(0, 3, 3000)
    y[:10] = 3  # too few to probe
    columns = {"x": (y == 2) + random.normal(0, 0.1, 3000), "c": np.array(list("abca"))[y].astype(object)}
    found = {p.column: p for p in leakage.probes("multiclass", columns, y, rng=random) if p.what == "value"}
    assert found["x"].label == 2
    assert found["x"].strength > 0.99
    assert found["c"].strength > 0.99


def test_regression_by_rank_correlation() -> None:
    random = rng()
    y = random.lognormal(size=2000)
    x = -np.log(y) + random.normal(size=2000)
    columns = {
        "x": x,
        "key": np.array([f"k{i}" for i in range(2000)], dtype=object),
        "band": np.digitize(y, [0.5, 1, 2]).astype(str).astype(object),
    }
    found = strengths(leakage.probes("regression", columns, y, rng=random))
    assert found["x"] == pytest.approx(abs(stats.spearmanr(x, y).statistic))
    assert found["key"] == 0
    assert found["band"] > 0.9


def test_probes_of_many_rows_take_a_sample_and_few_rows_say_nothing() -> None:
    random = rng()
    y = random.integers(0, 2, 5000)
    found = leakage.probes("binary", {"x": random.normal(size=5000)}, y, rng=random, max_rows=1000)
    assert {p.n for p in found} == {1000}
    few = leakage.probes("binary", {"x": np.arange(10.0)}, np.arange(10) % 2, rng=random)
    assert all(np.isnan(p.strength) for p in few)
    with pytest.raises(DataError, match="has 3 rows"):
        leakage.probes("binary", {"x": np.ones(3)}, [0, 1], rng=random)


def test_duplicates() -> None:
    train = {
        "x": np.array([1.0, 2.0, np.nan, -0.0], dtype=np.float32),
        "c": np.array(["a", "b", "", "d"], dtype=object),
    }
    holdout = {
        "c": np.array(["a", "b", "", "d", "a", "e", "e"], dtype=object),
        "x": np.array([1.0, 3.0, np.nan, 0.0, 2.0, 9.0, 9.0], dtype=np.float32),
    }
    found = leakage.duplicates(train, holdout)
    assert found == leakage.Duplicates(share=3 / 7, within=2 / 7, n=7, n_train=4)
    with pytest.raises(DataError, match="inputs differ"):
        leakage.duplicates({"x": np.ones(2)}, {"y": np.ones(2)})
    with pytest.raises(DataError, match="no rows"):
        leakage.duplicates({"x": np.ones(2)}, {"x": np.ones(0)})
    with pytest.raises(DataError, match="columns have"):
        leakage.duplicates({"x": np.ones(2), "y": np.ones(3)}, {"x": np.ones(2), "y": np.ones(2)})


def test_time_order() -> None:
    assert leakage.time_order([1.0, 5.0], [6.0, 9.0]) == leakage.TimeOrder(0, 0.0, 1.0)
    assert leakage.time_order([1.0, 5.0], [4.0, 5.0, 6.0, 7.0]) == leakage.TimeOrder(1, 0.25, -1.0)
    with pytest.raises(DataError, match="training side"):
        leakage.time_order([], [1.0])
    with pytest.raises(DataError, match="holdout side"):
        leakage.time_order([1.0], [np.nan])
