"""Rules over rows that share a key: repeated keys and rows, conflicting labels, holdout rows that training knows.

No batch can judge them, for the other row may lie in any shard. Each batch yields hashes of its keys and 64 bits of
payload per row (`keyed`); whoever gathers the rows of equal keys asks `breaks` which of them break the rule.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from mlops_ray.config import Project
from mlops_ray.config.expectations import ConflictingLabels, DuplicateRows, Leakage, Unique
from mlops_ray.data.content import row_hashes
from mlops_ray.data.schema import Mask

UNIQUE = "unique"
"""Id of the rule of `validation.unique`."""
NO_LABEL = np.uint64(2**64 - 1)
"""Payload of a row without label."""

Lanes = npt.NDArray[np.uint64]


@dataclass(frozen=True)
class KeyRule:
    """A rule over rows with equal cells in `columns`.

    `drops`: rows that break it go to quarantine; else they are counted. `needs_cut`: it can only be judged once the
    holdout's beginning is known.
    """

    id: str
    kind: Literal["unique", "no_duplicate_rows", "no_conflicting_labels", "no_leakage"]
    columns: tuple[str, ...]
    drops: bool
    label: str
    """The project's target, which conflicts are about."""
    time: str
    """The project's event time, by which the holdout is cut off."""

    @property
    def needs_cut(self) -> bool:
        """Whether `breaks` wants to know where the holdout begins."""
        return self.kind == "no_leakage"


def key_rules(project: Project) -> tuple[KeyRule, ...]:
    """The rules of `validation.unique` and of the expectations that compare rows, in the file's order."""
    ends = (project.target, project.event_time)
    rules = [KeyRule(UNIQUE, "unique", project.validation.unique, True, *ends)] if project.validation.unique else []
    every = tuple(column.name for column in project.columns)
    for expectation in project.validation.expectations:
        if isinstance(expectation, Unique):
            rules.append(KeyRule(expectation.name, "unique", expectation.columns, True, *ends))
        elif isinstance(expectation, DuplicateRows):
            rules.append(KeyRule(expectation.name, expectation.expect, every, True, *ends))
        elif isinstance(expectation, ConflictingLabels):
            columns = expectation.columns or project.features.inputs
            rules.append(KeyRule(expectation.name, expectation.expect, columns, expectation.quarantine, *ends))
        elif isinstance(expectation, Leakage):
            columns = expectation.columns or project.features.inputs
            rules.append(KeyRule(expectation.name, expectation.expect, columns, False, *ends))
    return tuple(rules)


def keyed(rule: KeyRule, good: pa.Table, content: Lanes | None = None) -> tuple[tuple[Lanes, Lanes], Lanes]:
    """Both lanes of each row's key hash, and what the rule wants to know of the row; shape (n,) each.

    Args: content: first lane of the rows' content hashes (`row_hashes(good)[0]`), where it is known already.
    Of `unique` the payload is the content hash, of conflicts the label (`NO_LABEL` for none), of leakage the event time
    in microseconds since the epoch (as the bits of an int64).
    """
    if rule.kind == "no_duplicate_rows":
        lanes = row_hashes(good.select(list(rule.columns)))
        return lanes, np.zeros(good.num_rows, dtype=np.uint64)
    lanes = row_hashes(good.select(list(rule.columns)))
    if rule.kind == "unique":
        return lanes, row_hashes(good)[0] if content is None else content
    if rule.kind == "no_conflicting_labels":
        cells = good[rule.label]
        bits = pc.fill_null(cells.cast(pa.float64(), safe=False), 0.0).to_numpy() + 0.0
        return lanes, np.where(cells.is_null().to_numpy(), NO_LABEL, bits.view(np.uint64))
    time = good[rule.time].cast(pa.int64())
    return lanes, pc.fill_null(time, 0).to_numpy().view(np.uint64)


def breaks(rule: KeyRule, first: Mask, payload: Lanes, cut: int | None = None) -> Mask:
    """Which rows break the rule, shape (n,), among rows that stand key by key.

    Args: first: which row is the first of its key; payload: of `keyed`, shape (n,). Within a key, rows must stand in
    the order of payload and then of the source, so that of repeated keys the row with the smallest content hash stays,
    whatever the shards were. Rows whose key nobody shares may be left out: they break nothing. cut: of leakage, where
    the holdout begins (a row is in the holdout when its payload, as an int64, is at least `cut`).
    Raises: ValueError when a rule needs a cut and there is none.
    """
    if rule.kind in ("unique", "no_duplicate_rows"):
        return ~first
    group = np.cumsum(first) - 1
    if not group.size:
        return np.zeros(0, dtype=bool)
    n = int(group[-1]) + 1
    if rule.kind == "no_conflicting_labels":
        labelled = payload != NO_LABEL
        starts = np.flatnonzero(first)
        # A row without label takes the place of the smallest (or largest) and so changes nothing.
        lowest = np.minimum.reduceat(np.where(labelled, payload, NO_LABEL), starts)
        highest = np.maximum.reduceat(np.where(labelled, payload, np.uint64(0)), starts)
        return np.asarray(labelled & (lowest < highest)[group] & (lowest != NO_LABEL)[group])
    if cut is None:
        raise ValueError(f"{rule.id}: no cut between training and holdout is given")
    held = in_holdout(payload, cut)
    known = np.zeros(n, dtype=bool)
    known[group[~held]] = True
    return np.asarray(held & known[group])


def in_holdout(payload: Lanes, cut: int) -> Mask:
    """Which rows' times (as `keyed` gives them for leakage) lie in the holdout, shape (n,)."""
    return payload.view(np.int64) >= cut
