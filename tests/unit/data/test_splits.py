from __future__ import annotations

import json
from dataclasses import replace

import hypothesis.strategies as st
import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings

from mlops_ray.config import Split
from mlops_ray.data import splits
from mlops_ray.data.splits import HOLDOUT, TRAIN, VALIDATION, HashCut, TimeCut
from mlops_ray.errors import DataError

DAY_US = 86_400_000_000


def flights(n: int, seed: int = 0) -> pa.Table:
    draw = np.random.default_rng(seed)
    columns = {
        "key": pa.array([f"flight-{i}" for i in range(n)]),
        "tail": pa.array([f"N{i}" for i in draw.integers(0, 400, n)]),
        "day": pa.array(draw.integers(0, 30, n)),
        "at": pa.array(draw.integers(0, 90, n) * DAY_US).cast(pa.timestamp("us", "UTC")),
    }
    return pa.table(columns)


def cut_of(split: Split, table: pa.Table, salt: str = "flights") -> splits.Cut:
    times = table["at"].cast(pa.int64()).to_numpy()
    return splits.cut(split, event_time="at", key="key", salt=salt, times=times)


EACH = [Split(), Split(by="hash"), Split(by="group", group=("tail", "day")), Split(by="group", group=("tail",))]


@pytest.mark.parametrize("split", EACH, ids=lambda s: "+".join((s.by, *s.group)))
@given(seed=st.integers(0, 2**32 - 1), at=st.integers(0, 300))
@settings(max_examples=8, deadline=None)
def test_a_rows_side_hangs_on_neither_order_nor_sharding(split, seed, at):
    table = flights(300, seed)
    cut = cut_of(split, table)
    sides = splits.assign(cut, table)
    assert sides.dtype == np.int8
    assert set(sides) <= {TRAIN, VALIDATION, HOLDOUT}
    order = np.random.default_rng(seed).permutation(300)
    assert cut_of(split, table.take(pa.array(order))) == cut
    assert (splits.assign(cut, table.take(pa.array(order))) == sides[order]).all()
    shards = [splits.assign(cut, table.slice(0, at)), splits.assign(cut, table.slice(at))]
    assert (np.concatenate(shards) == sides).all()
    for name in cut.columns:
        coded = table.set_column(table.schema.get_field_index(name), name, table[name].dictionary_encode())
        if split.by != "time":
            assert (splits.assign(cut, coded) == sides).all()


@pytest.mark.parametrize("split", EACH[1:], ids=lambda s: "+".join((s.by, *s.group)))
def test_rows_that_share_a_group_share_a_side_and_shares_are_kept(split):
    table = flights(20_000)
    cut = cut_of(split, table)
    sides = splits.assign(cut, table)
    groups = list(zip(*(table[name].to_pylist() for name in cut.columns), strict=True))
    seen: dict[object, int] = {}
    assert all(seen.setdefault(group, side) == side for group, side in zip(groups, sides.tolist(), strict=True))
    # Four standard deviations of a binomial over the groups.
    slack = 4 * np.sqrt(0.2 * 0.8 / len(seen)) + 0.01
    assert (sides == HOLDOUT).mean() == pytest.approx(0.2, abs=slack)
    assert (sides == VALIDATION).mean() == pytest.approx(0.2, abs=slack)


def test_another_salt_is_another_split_and_a_larger_holdout_keeps_its_rows():
    table = flights(5_000)
    small, large = Split(by="hash", holdout_share=0.1), Split(by="hash", holdout_share=0.3)
    first, second = (splits.assign(cut_of(s, table), table) for s in (small, large))
    assert (second[first == HOLDOUT] == HOLDOUT).all()
    other = splits.assign(cut_of(small, table, "another"), table)
    both = ((first == HOLDOUT) & (other == HOLDOUT)).mean()
    assert both == pytest.approx(0.01, abs=0.006)  # independent draws meet in a tenth of a tenth


@given(st.lists(st.integers(0, 40), min_size=1, max_size=120), st.floats(0.05, 0.6), st.floats(0.05, 0.35))
@settings(max_examples=60, deadline=None)
def test_time_never_splits_an_instant(instants, holdout, validation):
    split = Split(holdout_share=holdout, validation_share=validation)
    table = pa.table({"at": pa.array(instants, pa.timestamp("us", "UTC"))})
    try:
        cut = splits.cut(split, event_time="at", key="key", salt="", times=instants)
    except DataError:
        return
    sides, times = splits.assign(cut, table), np.array(instants)
    assert all((sides == side).any() for side in (TRAIN, VALIDATION, HOLDOUT))
    assert times[sides == TRAIN].max() < times[sides == VALIDATION].min()
    assert times[sides == VALIDATION].max() < times[sides == HOLDOUT].min()
    assert (sides == HOLDOUT).sum() >= round(len(instants) * holdout)


def test_rows_of_one_instant_cannot_be_split_by_time():
    with pytest.raises(DataError, match="cannot be split in three"):
        splits.cut(Split(), event_time="at", key="key", salt="", times=np.zeros(100))


def test_times_of_any_unit_meet_the_same_cut():
    cut = TimeCut("at", 2_000_000, 4_000_000)
    seconds = pa.array([1, 2, 3, 4, 5], pa.timestamp("s", "UTC"))
    for unit in ("s", "ms", "us", "ns"):
        assert splits.assign(cut, pa.table({"at": seconds.cast(pa.timestamp(unit, "UTC"))})).tolist() == [0, 1, 1, 2, 2]
    with pytest.raises(DataError, match="1 rows have none"):
        splits.assign(cut, pa.table({"at": pa.array([1, None], pa.timestamp("us", "UTC"))}))


def test_a_cut_is_recorded_whole():
    for split in EACH:
        cut = cut_of(split, flights(300))
        record = json.loads(json.dumps(cut.to_dict()))
        assert record["by"] == split.by
        if isinstance(cut, HashCut):
            again = replace(cut, **{k: record[k] for k in ("salt", "validation_share", "holdout_share")})
            assert (again, record["columns"]) == (cut, list(cut.columns))
        else:
            assert TimeCut(record["column"], record["validation_us"], record["holdout_us"]) == cut


@pytest.mark.parametrize("split", EACH, ids=lambda s: "+".join((s.by, *s.group)))
def test_folds_deal_every_row_before_the_holdout_to_one_part(split):
    table = flights(4000)
    cut = cut_of(split, table)
    folds = splits.fold_cut(cut, 4, times=table["at"].cast(pa.int64()).to_numpy())
    parts, sides = splits.assign(folds, table), splits.assign(cut, table)
    assert ((parts == -1) == (sides == HOLDOUT)).all()
    assert set(parts) == {-1, *range(folds.n)}
    sizes = np.bincount(parts[parts >= 0])
    assert sizes.min() > 0.5 * sizes.max()
    half = [splits.assign(folds, table.slice(0, 1500)), splits.assign(folds, table.slice(1500))]
    assert (np.concatenate(half) == parts).all()
    assert len(folds.fits) == 4
    times = table["at"].cast(pa.int64()).to_numpy()
    for train, validation in folds.fits:
        assert validation not in train
        if split.by == "time":
            assert times[np.isin(parts, train)].max() < times[parts == validation].min()
        else:
            assert sorted((*train, validation)) == list(range(4))
    if split.by == "group":
        groups = table.select(list(split.group)).to_pandas().apply(tuple, axis=1)
        assert (groups.groupby(groups).transform(lambda g: len(set(parts[g.index]))) == 1).all()


def test_more_folds_than_instants_are_refused():
    table = flights(300).slice(0, 40)
    cut = cut_of(Split(), table)
    with pytest.raises(DataError, match="20 folds need more than"):
        splits.fold_cut(cut, 20, times=np.repeat([0, DAY_US, 2 * DAY_US, 80 * DAY_US], 10))
