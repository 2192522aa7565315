"""Rows that share a key, found over all shards without holding the keys of all rows at once.

Each shard writes one small record per row, sorted by the hash of its key. Records with equal keys have equal hashes, so
whoever reads the same range of hashes from every shard sees each key's rows together.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from mlops_ray.data.sources.shards import filesystem_of

RECORD = np.dtype([("key", "<u8"), ("more", "<u4"), ("row", "<u4"), ("payload", "<u8")])
"""96 bits of the key's hash, the row's place in its shard's file, and 64 bits that the rule wants to know. Among 50
million rows two different keys share 96 bits with a probability of 2e-14."""
RECORDS_PER_RANGE = 4_000_000
"""Records looked at together: 100 MB, three times that while they are sorted."""
BUCKETS = 256

Records = npt.NDArray[np.void]
Lanes = npt.NDArray[np.uint64]


@dataclass(frozen=True)
class KeyFile:
    """Records of one shard below the folder `uri`; bucket b stands at `starts[b]:starts[b + 1]`."""

    uri: str
    path: str
    starts: tuple[int, ...]

    @property
    def n_rows(self) -> int:
        """Records in the file."""
        return self.starts[-1]


def records(keys: tuple[Lanes, Lanes], payload: Lanes, first_row: int = 0) -> Records:
    """Records of rows that stand from `first_row` on in their file; all arrays have shape (n,)."""
    made = np.empty(len(payload), dtype=RECORD)
    made["key"], made["more"] = keys[0], keys[1].astype(np.uint32)
    made["row"] = np.arange(first_row, first_row + len(payload), dtype=np.uint32)
    made["payload"] = payload
    return made


def write(uri: str, path: str, made: Sequence[Records]) -> KeyFile:
    """Writes the records of one shard, in any order, as the file `path` below the folder `uri`."""
    every = np.concatenate([np.empty(0, dtype=RECORD), *made])
    every = every[np.argsort(every["key"], kind="stable")]
    bounds = np.arange(1, BUCKETS, dtype=np.uint64) << np.uint64(56)
    starts = (0, *every["key"].searchsorted(bounds).tolist(), len(every))
    filesystem, root = filesystem_of(uri)
    full = f"{root}/{path}"
    filesystem.create_dir(full.rpartition("/")[0], recursive=True)
    with filesystem.open_output_stream(full) as stream:
        stream.write(every.tobytes())
    return KeyFile(uri, path, starts)


def ranges(files: Sequence[KeyFile]) -> list[tuple[int, int]]:
    """Ranges of buckets, first and one past the last, with about `RECORDS_PER_RANGE` records each; they cover all."""
    sizes = np.sum([np.diff(file.starts) for file in files], axis=0) if files else np.zeros(BUCKETS)
    cuts = [0]
    held = 0
    for bucket, size in enumerate(sizes.tolist()):
        if held and held + size > RECORDS_PER_RANGE:
            cuts.append(bucket)
            held = 0
        held += size
    return list(pairwise([*cuts, BUCKETS]))


def read(files: Sequence[KeyFile], first: int, end: int) -> tuple[Records, npt.NDArray[np.int64]]:
    """Records of the buckets [first, end) of all `files` that share their key with another one, sorted by key.

    Returns: the records and the number of each one's file, both of shape (n,); records of one key stand in the order of
    payload, file and row.
    """
    parts, owners = [], []
    for number, file in enumerate(files):
        parts.append(_stored(file, first, end))
        owners.append(np.full(len(parts[-1]), number, dtype=np.int64))
    every = np.concatenate([np.empty(0, dtype=RECORD), *parts])
    owner = np.concatenate([np.empty(0, dtype=np.int64), *owners])
    order = np.argsort(every["key"], kind="stable")
    key = every["key"][order]
    twin = np.zeros(len(key), dtype=bool)  # most keys are alone: only the others are worth a full sort
    same = key[1:] == key[:-1]
    twin[1:] |= same
    twin[:-1] |= same
    every, owner = every[order[twin]], owner[order[twin]]
    order = np.lexsort((every["row"], owner, every["payload"], every["more"], every["key"]))
    return every[order], owner[order]


def payloads(file: KeyFile, without: npt.NDArray[np.int64], first: int = 0, end: int = BUCKETS) -> Lanes:
    """Payloads of all records of the buckets [first, end) of one file, in no order that means anything.

    Args: without: rows of the file to leave out, sorted.
    """
    stored = _stored(file, first, end)
    payload: Lanes = stored["payload"]
    return payload[~np.isin(stored["row"], without)] if without.size else payload


def _stored(file: KeyFile, first: int, end: int) -> Records:
    filesystem, root = filesystem_of(file.uri)
    start, stop = file.starts[first], file.starts[end]
    with filesystem.open_input_file(f"{root}/{file.path}") as stream:
        return np.frombuffer(stream.read_at((stop - start) * RECORD.itemsize, start * RECORD.itemsize), RECORD)


def starts_group(found: Records) -> npt.NDArray[np.bool_]:
    """Which of the records, sorted by key, is the first of its key; shape (n,)."""
    first = np.ones(len(found), dtype=bool)
    first[1:] = (found["key"][1:] != found["key"][:-1]) | (found["more"][1:] != found["more"][:-1])
    return first
