"""Records of keys: whatever the shards, each key's rows are seen together."""

from __future__ import annotations

import itertools
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlops_ray.data.rules import keys
from mlops_ray.data.rules.keys import KeyFile, Records

MASK = np.uint64(2**64 - 1)


def lanes(names: list[int]) -> tuple[keys.Lanes, keys.Lanes]:
    """Hash lanes of small numbers, spread over all buckets."""
    spread = np.array(names, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    return spread, spread ^ MASK


def shard(folder: Path, number: int, names: list[int], payload: list[int] | None = None) -> KeyFile:
    chosen = np.array(payload or [0] * len(names), dtype=np.uint64)
    return keys.write(str(folder), f"{number}.keys", [keys.records(lanes(names), chosen)])


def seen(files: list[KeyFile]) -> list[tuple[int, int]]:
    """(file, row) of every record that shares its key, over all ranges."""
    found: list[tuple[int, int]] = []
    for first, end in keys.ranges(files):
        records, owner = keys.read(files, first, end)
        found += list(zip(owner.tolist(), records["row"].tolist(), strict=True))
    return found


@settings(max_examples=40, deadline=None)
@given(st.lists(st.lists(st.integers(0, 12), max_size=8), min_size=1, max_size=4))
def test_every_row_whose_key_is_not_alone_is_found_once(
    tmp_path_factory: pytest.TempPathFactory, shards: list[list[int]]
) -> None:
    folder = tmp_path_factory.mktemp("keys")
    files = [shard(folder, i, names) for i, names in enumerate(shards)]
    times = Counter(name for names in shards for name in names)
    wanted = [(i, row) for i, names in enumerate(shards) for row, name in enumerate(names) if times[name] > 1]
    assert sorted(seen(files)) == wanted


def test_ranges_split_many_records_and_cover_every_bucket(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = [shard(tmp_path, 0, list(range(500))), shard(tmp_path, 1, list(range(250, 750)))]
    whole = sorted(seen(files))
    monkeypatch.setattr(keys, "RECORDS_PER_RANGE", 100)
    parts = keys.ranges(files)
    assert len(parts) > 5
    assert [parts[0][0], parts[-1][1]] == [0, keys.BUCKETS]
    assert all(a[1] == b[0] for a, b in itertools.pairwise(parts))
    assert sorted(seen(files)) == whole
    assert len(whole) == 500


def test_the_smallest_payload_comes_first_then_the_first_file_and_row(tmp_path: Path) -> None:
    files = [shard(tmp_path, 0, [7, 7, 3], [9, 5, 1]), shard(tmp_path, 1, [7, 3], [5, 1])]
    records, owner = keys.read(files, 0, keys.BUCKETS)
    groups: list[list[tuple[int, int]]] = []
    for starts, i, row in zip(keys.starts_group(records), owner.tolist(), records["row"].tolist(), strict=True):
        if starts:
            groups.append([])
        groups[-1].append((i, row))
    assert sorted(groups) == [[(0, 1), (1, 0), (0, 0)], [(0, 2), (1, 1)]]


def test_rows_keep_their_place_over_several_batches_of_a_shard(tmp_path: Path) -> None:
    nothing = np.zeros(2, dtype=np.uint64)
    made: list[Records] = [keys.records(lanes([1, 2]), nothing), keys.records(lanes([2, 3]), nothing, first_row=2)]
    file = keys.write(str(tmp_path), "a.keys", made)
    assert file.n_rows == 4
    assert seen([file]) == [(0, 1), (0, 2)]


def test_no_records_is_no_trouble(tmp_path: Path) -> None:
    assert seen([keys.write(str(tmp_path), "none.keys", [])]) == []
    assert seen([]) == []
