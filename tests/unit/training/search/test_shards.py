from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mlops_ray.config import Features, Task
from mlops_ray.data import lake, splits
from mlops_ray.data.content import row_hash
from mlops_ray.data.features.statistics import fold, folds, to_columns
from mlops_ray.data.features.transformer import bins, training_matrix, transformer
from mlops_ray.data.lake import DataFile
from mlops_ray.data.profile import fold as profile_of
from mlops_ray.data.splits import HOLDOUT, TRAIN, VALIDATION, TimeCut
from mlops_ray.errors import DataError
from mlops_ray.training import target
from mlops_ray.training.search.references import Crossed, Folded, folded
from mlops_ray.training.search.shards import (
    Piece,
    Role,
    Shards,
    Survey,
    batches,
    class_factors,
    deal,
    survey,
)

HOUR_US = 3_600_000_000
FEATURES = {
    "plain": Features.model_validate({"numeric": {"columns": ["x"]}, "categorical": {"columns": ["kind"]}}),
    "target": Features.model_validate(
        {"numeric": {"columns": ["x"], "impute": "none"}, "categorical": {"columns": ["kind"], "encode": "target"}}
    ),
}
N = 1000


def table() -> pa.Table:
    """An hour per row, in order."""
    rng = np.random.default_rng(0)
    kind = rng.choice(["a", "b", "c"], N)
    return pa.table(
        {
            "y": (rng.random(N) < 0.3 + 0.3 * (kind == "a")).astype(np.int64),
            "id": [f"k{i}" for i in range(N)],
            "at": pa.array(np.arange(N) * HOUR_US).cast(pa.timestamp("us", "UTC")),
            "x": pa.array(rng.normal(size=N), mask=rng.random(N) < 0.1),
            "kind": kind,
            "w": rng.uniform(0.5, 2.0, N),
        }
    )


def shards(root: Path, whole: pa.Table, *, groups: Sequence[int] = (N,), features: str = "plain") -> Shards:
    """The rows as files, one for each of `groups` rows, the last with row groups of 100."""
    uri, files = str(root / "table"), []
    for i, (a, b) in enumerate(pairwise([0, *np.cumsum(groups).tolist()])):
        path = Path(uri, f"part-{i}.parquet")
        path.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(whole.slice(a, b - a), path, row_group_size=100 if i == len(groups) - 1 else None)
        files.append(DataFile(path.name, path.stat().st_size, b - a))
    dataset = lake.commit(uri, files, whole.schema, row_hash(whole).hex(), {})
    cut = TimeCut("at", 600 * HOUR_US, 800 * HOUR_US)
    train = whole.filter(pa.array(splits.assign(cut, whole) == TRAIN))
    partial = fold(FEATURES[features], train, target="y", key="id")
    fitted = transformer(FEATURES[features], partial)
    return Shards(dataset, cut, FEATURES[features], fitted, "y", "binary", (0, 1), key="id", partial=partial)


def surveyed(rows: Shards, workers: int) -> Survey:
    parts = [survey(rows, path, workers) for path in lake.files(rows.dataset)]
    return sum(parts[1:], parts[0])


@pytest.mark.parametrize("groups", [(N,), (50, 450, 500)])
@pytest.mark.parametrize("workers", [1, 2, 3])
@pytest.mark.parametrize("features", FEATURES)
def test_dealt_rows_are_the_rows_of_one_process(
    tmp_path: Path, groups: Sequence[int], workers: int, features: str
) -> None:
    whole = table()
    rows = replace(shards(tmp_path, whole, groups=groups, features=features), weight="w")
    seen = surveyed(rows, workers)
    assert (seen.n_fit, seen.n_judge, seen.per_class.sum()) == (600, 200, 600)
    dealt = deal(seen.pieces, workers)
    sides = splits.assign(rows.cut, whole)
    for role, side in (("fit", TRAIN), ("judge", VALIDATION)):
        mine = np.flatnonzero(sides == side)
        # Which rows were dealt is told by their weights, which differ.
        found = [list(batches(rows, pieces, role)) for pieces in dealt]  # type: ignore[arg-type]
        sizes = [sum(len(batch.y) for batch in each) for each in found]
        assert sum(sizes) == len(mine)
        assert max(sizes) - min(sizes) <= 0.3 * len(mine)
        weights = np.concatenate([b.weights for each in found for b in each if b.weights is not None])
        order, known = np.argsort(weights), whole["w"].to_numpy()[mine].astype(np.float32)
        assert (weights[order] == np.sort(known)).all()
        columns = {name: values[mine] for name, values in to_columns(rows.features, whole).items()}
        fold_of = folds(whole["id"])[mine] if role == "fit" else np.full(len(mine), -1)
        assert rows.partial is not None
        matrix = training_matrix(rows.features, rows.partial, rows.fitted, columns, fold_of).astype(np.float32)
        there = np.concatenate([b.matrix for each in found for b in each])[order]
        np.testing.assert_array_equal(there, matrix[np.argsort(known)])
        y = np.concatenate([b.y for each in found for b in each])[order]
        assert (y == whole["y"].to_numpy()[mine][np.argsort(known)]).all()


def test_row_groups_stay_whole_where_there_are_enough() -> None:
    pieces = [Piece("a", group, first, 10, 10) for group in range(8) for first in (0, 10)]
    dealt = deal(pieces, 2)
    assert [len(each) for each in dealt] == [8, 8]
    assert not {p.row_group for p in dealt[0]} & {p.row_group for p in dealt[1]}
    few = deal(pieces[:4], 2)
    assert {p.row_group for p in few[0]} == {p.row_group for p in few[1]} == {0, 1}


def test_loads_are_even_although_pieces_are_not() -> None:
    rng = np.random.default_rng(0)
    pieces = [Piece("a", i, 0, 0, int(n), int(n) // 3 if i > 30 else 0) for i, n in enumerate(rng.integers(1, 100, 40))]
    pieces += [Piece("b", i, 0, 50, 0, 0) for i in range(5)]  # the holdout's: nobody reads them
    dealt = deal(pieces, 4)
    assert sorted(p.row_group for each in dealt for p in each if p.path == "a") == list(range(40))
    assert not [p for each in dealt for p in each if p.path == "b"]
    loads = [sum(p.n_fit for p in each) for each in dealt]
    assert max(loads) - min(loads) <= 100


def test_labels_and_weights_that_are_none_are_found_by_the_survey(tmp_path: Path) -> None:
    whole = table()
    place = whole.column_names.index("w")
    wrong = whole.set_column(place, "w", pa.array(np.where(np.arange(N) == 5, -1.0, 1.0)))
    with pytest.raises(DataError, match="a weight is a finite number of at least 0"):
        surveyed(replace(shards(tmp_path / "a", wrong), weight="w"), 2)
    late = whole.set_column(0, "y", pa.array(np.where(np.arange(N) == 5, 7, 1)))
    with pytest.raises(DataError, match="labels must be 0 or 1; row 5 has 7"):
        surveyed(replace(shards(tmp_path / "b", whole), dataset=shards(tmp_path / "c", late).dataset), 2)


def test_class_weights_stand_for_the_rows_that_fit(tmp_path: Path) -> None:
    rows = shards(tmp_path, table())
    seen = surveyed(rows, 2)
    counts = seen.per_class
    assert class_factors(None, seen) == ()
    assert class_factors("balanced", seen) == pytest.approx((300 / counts[0], 300 / counts[1]))
    assert class_factors({1: 3.0}, seen) == (1.0, 3.0)
    weighed = replace(rows, class_weight=(1.0, 3.0))
    fit = next(batches(weighed, seen.pieces, "fit"))
    assert fit.weights is not None
    assert (fit.weights == np.where(fit.y == 1, 3.0, 1.0)).all()
    assert next(batches(weighed, seen.pieces, "judge")).weights is None


def test_target_encodings_need_their_statistics(tmp_path: Path) -> None:
    rows = shards(tmp_path, table(), features="target")
    with pytest.raises(ValueError, match="give both"):
        replace(rows, partial=None)


class Constant:
    """A model that says one thing."""

    def __init__(self, said: float) -> None:
        self.said = said

    def predict_proba(self, matrix: Any) -> Any:
        return np.tile([1 - self.said, self.said], (len(matrix), 1))


def test_a_reference_folded_in_parts_is_the_one_of_the_whole(tmp_path: Path) -> None:
    whole = table()
    rows = shards(tmp_path, whole)
    assert isinstance(rows.cut, TimeCut)
    cut = splits.fold_cut(rows.cut, 2, times=whole["at"].cast(pa.int64()).to_numpy())
    models = {part: Constant(0.1 + 0.2 * part) for part in range(cut.n)}
    score = Crossed(rows.features, rows.fitted, "binary", cut, models, Constant(0.9))
    parts = splits.assign(cut, whole)
    assert score(whole) == pytest.approx(np.where(parts < 0, 0.9, 0.1 + 0.2 * parts))
    assert rows.partial is not None
    edges = bins(rows.features, rows.partial)
    made = Folded()
    for a, b in pairwise([0, 0, 333, 334, 900, N]):
        made += folded(rows, whole.slice(a, b - a), edges, score, event_time="at", block_s=86_400.0)
    days = np.arange(N) // 24
    columns, scores, y = to_columns(rows.features, whole), score(whole), whole["y"].to_numpy()
    assert sorted(made.blocks) == [86_400.0 * day for day in range(days[-1] + 1)]
    for start, found in made.blocks.items():
        there = days == start / 86_400
        direct = profile_of(edges, {name: values[there] for name, values in columns.items()}, scores[there])
        assert found.to_bytes() == direct.to_bytes()
    held = splits.assign(rows.cut, whole) == HOLDOUT
    assert sum(n for n, _, _ in made.holdout.values()) == held.sum()
    assert sum(total for _, _, total in made.holdout.values()) == y[held].sum()
    lost = sum(loss for _, loss, _ in made.holdout.values())
    assert lost == pytest.approx(target.losses("binary", y[held], scores[held]).sum())


def test_roles_and_tasks_are_what_the_reader_knows() -> None:
    assert get_args(Role) == ("fit", "judge")
    assert set(get_args(Task)) == {"binary", "multiclass", "regression"}
