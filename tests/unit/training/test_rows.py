from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from mlops_ray.config import Project
from mlops_ray.data import lake, splits
from mlops_ray.data.features import statistics
from mlops_ray.data.lake import DatasetVersion
from mlops_ray.data.schema import conform
from mlops_ray.data.splits import HOLDOUT, TRAIN, VALIDATION
from mlops_ray.errors import DataError
from mlops_ray.training import rows as rows_of

DAY_US = 86_400_000_000


def project(root: Path, task: str = "binary", **blocks: Any) -> Project:
    dtype = {"binary": "int", "multiclass": "string", "regression": "float"}[task]
    return Project.model_validate(
        {
            "project": "small",
            "task": task,
            "target": "y",
            "key": "id",
            "event_time": "at",
            "storage": {"root": str(root)},
            "source": {"kind": "parquet", "path": "nowhere"},
            "columns": [
                {"name": "y", "dtype": dtype},
                {"name": "id", "dtype": "string"},
                {"name": "at", "dtype": "timestamp"},
                {"name": "x", "dtype": "float", "nullable": True},
                {"name": "w", "dtype": "float", "nullable": True},
                {"name": "shop", "dtype": "string"},
            ],
            "features": {"numeric": {"columns": ["x"]}},
            "search": {"candidates": ["linear"], **blocks.pop("search", {})},
            **blocks,
        }
    )


def table(y: Any, n: int = 100, **columns: Any) -> pa.Table:
    """Rows a day apart, newest first."""
    rng = np.random.default_rng(0)
    return pa.table(
        {
            "y": y,
            "id": [f"k{i}" for i in range(n)],
            "at": pa.array((n - np.arange(n)) * DAY_US).cast(pa.timestamp("us", "UTC")),
            "x": rng.normal(size=n),
            "w": rng.uniform(size=n),
            "shop": rng.choice(["a", "b"], n),
            **columns,
        }
    )


def stored(made: Project, rows: pa.Table, without: str = "", n_files: int = 1) -> DatasetVersion:
    kept, _ = conform(rows, [column for column in made.columns if column.name != without])
    uri, step = made.storage.path("data", made.project), -(-kept.num_rows // n_files)
    parts = [kept.slice(i * step, step) for i in range(n_files)]
    files = [lake.write_file(uri, f"files/part-{i}.parquet", part) for i, part in enumerate(parts)]
    return lake.commit(uri, files, kept.schema, "0" * 32, {})


def test_rows_come_oldest_first_with_their_sides_labels_and_weights(tmp_path: Path) -> None:
    made = project(
        tmp_path, search={"sample_weight": "w"}, gates={"fairness": {"columns": ["shop"]}, "block_group": "shop"}
    )
    found = rows_of.read(made, stored(made, table(np.arange(100) % 2)))
    assert (np.diff(found.times) == 86_400).all()
    assert [len(found.of(part)) for part in (TRAIN, VALIDATION, HOLDOUT)] == [60, 20, 20]
    assert found.y[:4].tolist() == [1, 0, 1, 0]
    assert found.classes == (0, 1)
    assert found.weights is not None
    assert found.weights.shape == (100,)
    assert found.shown == ("shop",)
    assert set(found.groups(found.of(HOLDOUT))["shop"]) == {"a", "b"}


@pytest.mark.parametrize("most", [7, 1000])
@pytest.mark.parametrize(("task", "by"), [("binary", "time"), ("multiclass", "hash"), ("regression", "group")])
def test_a_part_is_the_holdout_and_an_even_sample_of_all_else(tmp_path: Path, task: str, by: str, most: int) -> None:
    y: Any = {"binary": np.arange(100) % 2, "multiclass": ["a", "b", "c", "d"] * 25, "regression": np.arange(100.0)}[
        task
    ]
    split = {"by": by, "group": ["shop"]} if by == "group" else {"by": by}
    features = {"numeric": {"columns": ["x"]}, "categorical": {"columns": ["shop"]}}
    blocks: dict[str, Any] = {"features": features, "gates": {"slices": {"columns": ["shop"]}}}
    made = project(tmp_path, task, split=split, search={"sample_weight": "w"}, **blocks)
    dataset = stored(made, table(y, shop=[f"s{i % 20}" for i in range(100)]), n_files=3)
    whole, part = rows_of.read(made, dataset), rows_of.read_part(made, dataset, ["id"], most=most)
    assert (part.cut, part.classes, part.counts) == (whole.cut, whole.classes, whole.counts)
    assert whole.counts == tuple(len(whole.of(side)) for side in (TRAIN, VALIDATION, HOLDOUT))
    seen = whole.of(TRAIN, VALIDATION)
    assert len(part.of(TRAIN, VALIDATION)) == min(most, len(seen))
    kept = np.sort(np.concatenate([rows_of.even(seen, most), whole.of(HOLDOUT)]))
    for name in ("times", "y", "sides", "weights"):
        assert getattr(part, name).tolist() == getattr(whole, name)[kept].tolist()
    assert part.table.select(whole.table.column_names) == whole.table.take(pa.array(kept))
    assert part.inputs(np.arange(len(kept)))["x"].tolist() == whole.inputs(kept)["x"].tolist()
    if most < len(seen):
        assert part.times[part.of(TRAIN, VALIDATION)][[0, -1]].tolist() == whole.times[seen[[0, -1]]].tolist()


def test_the_classes_of_a_part_are_those_of_all_rows_before_the_holdout(tmp_path: Path) -> None:
    made = project(tmp_path, "multiclass")
    rare = stored(made, table([*"ab" * 25, "rare", *"ab" * 24, "b"]), n_files=2)
    assert rows_of.read_part(made, rare, most=2).classes == ("a", "b", "rare")


@pytest.mark.parametrize(
    ("task", "y", "blocks", "says"),
    [
        ("binary", pa.array([None, *[0, 1] * 49, 1]), {}, "1 rows of .* have none; run prepare again"),
        ("binary", np.r_[2, np.arange(99) % 2], {}, "labels must be 0 or 1"),
        ("multiclass", ["a"] * 100, {}, "all rows are of class 'a'"),
        (
            "multiclass",
            ["new"] + ["a", "b"] * 49 + ["a"],
            {},
            r"y: class 'new' is in the holdout only \(1 rows\), .* prepare more rows",
        ),
        ("regression", np.arange(100.0), {"key": "shop", "split": {"by": "hash"}}, "no row of .* falls to"),
    ],
)
def test_a_part_is_refused_as_the_whole_is(
    tmp_path: Path, task: str, y: Any, blocks: dict[str, Any], says: str
) -> None:
    made = project(tmp_path, task, **blocks)
    dataset = stored(made, table(y, shop=["a"] * 100), n_files=2)
    for read in (rows_of.read, lambda *given: rows_of.read_part(*given, most=10)):
        with pytest.raises(DataError, match=says):
            read(made, dataset)


def test_shuffled_labels_are_those_of_the_rows_before_the_holdout(tmp_path: Path) -> None:
    made = project(tmp_path)
    rows = rows_of.read(made, stored(made, table(np.arange(100) % 2)))
    mixed = rows.shuffled(np.random.default_rng(0))
    seen, held = rows.of(TRAIN, VALIDATION), rows.of(HOLDOUT)
    assert mixed.y[held].tolist() == rows.y[held].tolist()
    assert mixed.y[seen].tolist() != rows.y[seen].tolist()
    assert sorted(mixed.y[seen]) == sorted(rows.y[seen])


@pytest.mark.parametrize("by", ["time", "hash"])
def test_each_fold_is_seen_by_a_transform_of_its_own_rows(tmp_path: Path, by: str) -> None:
    made = project(tmp_path, search={"cross_validation": {"folds": 4}}, split={"by": by})
    rows = rows_of.read(made, stored(made, table(np.arange(100) % 2)))
    cut = rows.search_cut(made)
    assert isinstance(cut, splits.FoldCut)
    parts = splits.assign(cut, rows.table)
    partials = {
        part: statistics.fold(made.features, rows.table.filter(pa.array(parts == part))) for part in range(cut.n)
    }
    folds = rows.folds(made, cut, rows.y, partials)
    assert len(folds) == 4
    held = len(rows.of(HOLDOUT))
    for fold in folds:
        assert fold.matrix.shape == (len(fold.y), 1)
        assert 0 < fold.n_train < len(fold.y)
        # Standardised by the rows that train, and by no others.
        assert fold.matrix[: fold.n_train].mean() == pytest.approx(0, abs=1e-9)
    validated = sum(len(fold.y) - fold.n_train for fold in folds)
    assert validated == (100 - held if by == "hash" else 64)


@pytest.mark.parametrize(
    ("task", "y", "says"),
    [
        ("binary", np.zeros(100, dtype=int), "all 60 rows of the train side have one class, 0"),
        ("binary", np.r_[np.ones(40, dtype=int), np.zeros(60, dtype=int)], "have one class"),
        ("binary", np.r_[2, np.arange(99) % 2], "labels must be 0 or 1"),
        ("regression", np.full(100, 1.5), "have one value"),
        ("regression", np.r_[np.nan, np.arange(99.0)], "none|finite"),
        ("multiclass", ["a"] * 100, "all rows are of class 'a'"),
        (
            "multiclass",
            ["new"] + ["a", "b"] * 49 + ["a"],
            r"y: class 'new' is in the holdout only \(1 rows\), .* prepare more rows",
        ),
    ],
)
def test_labels_that_cannot_be_learnt_are_refused(tmp_path: Path, task: str, y: Any, says: str) -> None:
    made = project(tmp_path, task)
    with pytest.raises(DataError, match=says):
        rows_of.read(made, stored(made, table(y)))


@pytest.mark.parametrize("weights", [np.r_[-1.0, np.ones(99)], np.zeros(100), pa.array([None, *[1.0] * 99])])
def test_weights_that_are_none_are_refused(tmp_path: Path, weights: Any) -> None:
    made = project(tmp_path, search={"sample_weight": "w"})
    with pytest.raises(DataError, match=r"w: (a weight is|all weights are 0).* search.sample_weight"):
        rows_of.read(made, stored(made, table(np.arange(100) % 2, w=weights)))


def test_a_column_that_this_version_lacks_is_not_shown_to_the_gates(tmp_path: Path) -> None:
    """As in a retrain, whose rows come from the log: a column that is no feature is not logged."""
    made = project(tmp_path, gates={"slices": {"columns": ["shop"]}})
    dataset = stored(made, table(np.arange(100) % 2), without="shop")
    assert rows_of.read(made, dataset).shown == ()


def test_older_rows_count_for_less_times_their_own_weight(tmp_path: Path) -> None:
    ages = np.arange(40.0)[::-1] * 86_400
    table = pa.table(
        {
            "y": np.arange(40) % 2,
            "id": [f"r{i}" for i in range(40)],
            "at": pa.array((np.arange(40) * DAY_US).astype(np.int64)).cast(pa.timestamp("us", tz="UTC")),
            "x": np.arange(40.0),
            "w": np.full(40, 3.0),
            "shop": ["a"] * 40,
        }
    )
    plain = project(tmp_path)
    for weighed, factor in ((None, 1.0), ("w", 3.0)):
        faded = plain.search.model_copy(update={"half_life_s": 10 * 86_400.0, "sample_weight": weighed})
        rows = rows_of.of_table(plain.model_copy(update={"search": faded}), table, (), named="rows")
        assert rows.weights is not None
        np.testing.assert_allclose(rows.weights, factor * 0.5 ** (ages / (10 * 86_400)))
    assert rows_of.of_table(plain, table, (), named="rows").weights is None
