"""What a version's answers meant on its holdout, kept in its artifact: from it quality is estimated before labels come.

Rows fall into cells. Per block of time a cell has its rows and what became of them, so that all that is asked of it
(rates, and how far they hang on single blocks) is a function of sums, and needs no data of training.

| task | cells | outcome of a row in a cell |
|---|---|---|
| binary, multiclass | per class, spans of its score between which its share rises | 1 where the row is of the class |
| regression | leaves of a small tree over the prediction and the bins of the inputs | absolute error, squared error |

The spans are the blocks of an isotonic regression (Zadrozny and Elkan 2002): a monotone map from score to probability.
The model of a regression's loss is a tree and no boosting: it is plain JSON that nobody has to unpickle, and means of
leaves have a sampling error in closed form.

A `Sample` of the rows themselves, as numbers of bins, is kept to weigh them by how much a window resembles them.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from mlops_ray.config import Task
from mlops_ray.data import profile
from mlops_ray.data.profile import Bins, Columns
from mlops_ray.training.evaluation.intervals import Blocks, Floats

if TYPE_CHECKING:  # serving loads artifacts, and does without what these import
    from mlops_ray.training.target import Labels, Scores

Indices = NDArray[np.int64]

MAX_BLOCKS = 64
"""Longer holdouts are kept in so many spans of neighbouring blocks."""
MAX_CELLS = 2048
"""Over all classes; cells times blocks times two numbers of JSON are some 1 MB then."""
_CLASS_CELLS = 256
_CELL_ROWS = 25
"""Least rows of a cell: the isotonic regression's own blocks end in single rows of rate 0 or 1."""
_LEAVES = 64
_LEAF_SHARE = 0.01
"""Least share of the rows in a leaf."""
_SAMPLE_ROWS = 5000
_SAMPLE_CELLS = 500_000
"""Numbers in a sample at most, 1 MB of them: of more features or classes it has fewer rows."""


@dataclass(frozen=True, eq=False)
class Cells:
    """Sums per block and cell. Weights are all 1 unless rows were weighed.

    n: weights; squares: their squares, shape (blocks, cells). sums: weighted outcomes, shape (outcomes, blocks, cells);
    second: their squares, over all blocks, shape (outcomes, cells)."""

    n: Floats
    squares: Floats
    sums: Floats
    second: Floats

    @property
    def rates(self) -> Floats:
        """Mean outcome of each cell, shape (outcomes, cells); 0 in a cell without rows."""
        return np.asarray(self.sums.sum(axis=1) / self._rows)

    @property
    def variances(self) -> Floats:
        """Variance of one row's outcome in each cell, shape (outcomes, cells)."""
        return np.asarray(np.maximum(self.second / self._rows - self.rates**2, 0.0))

    @property
    def _rows(self) -> Floats:
        return np.asarray(np.maximum(self.n.sum(axis=0), np.finfo(float).tiny))


@dataclass(frozen=True, eq=False)
class Tree:
    """A binary tree over columns of numbers: node i sends a row left where column `feature[i]` <= `threshold[i]`.

    leaf: its number among the leaves, -1 in an inner node. orders: per feature of the bins, by its place, the number
    that stands for each of its bins. All shape (nodes,); children come after their parents."""

    feature: Indices
    threshold: Floats
    left: Indices
    right: Indices
    leaf: Indices
    orders: Mapping[int, Floats]

    def leaves(self, predictions: Scores, codes: NDArray[np.uint16]) -> Indices:
        """Leaf of each row, shape (n,). Args: codes: (n, features), as `profile.codes` gives them."""
        matrix = _ordered(predictions, codes, self.orders)
        rows, node = np.arange(len(matrix)), np.zeros(len(matrix), dtype=np.int64)
        while (inner := self.leaf[node] < 0).any():
            here, at = rows[inner], node[inner]
            goes_left = matrix[here, self.feature[at]] <= self.threshold[at]
            node[inner] = np.where(goes_left, self.left[at], self.right[at])
        return self.leaf[node]


@dataclass(frozen=True, eq=False)
class Sample:
    """Rows of the holdout, evenly spread: block (n,), labels or absolute errors (n,), cells (n, maps), bins of the
    inputs (n, features)."""

    block: Indices
    outcome: Floats
    cells: Indices
    codes: NDArray[np.uint16]


@dataclass(frozen=True, eq=False)
class Calibration:
    """See the module. edges: per class with a map, the scores at which its next cell begins; tree: of a regression.

    A binary task has one map, of class 1; a multiclass task one for each class."""

    task: Task
    edges: tuple[Floats, ...]
    tree: Tree | None
    cells: Cells
    sample: Sample

    @property
    def n_blocks(self) -> int:
        """Blocks of time that the holdout is kept in."""
        return len(self.cells.n)

    @property
    def offsets(self) -> Indices:
        """First cell of each map, and where the last one ends."""
        widths = [len(edges) + 1 for edges in self.edges] if self.tree is None else [self.cells.n.shape[1]]
        return np.concatenate([[0], np.cumsum(widths)])

    def place(self, scores: Scores, codes: NDArray[np.uint16]) -> Indices:
        """Cell of each row in each map, shape (n, maps). Args: scores as in `target`; codes: (n, features)."""
        if self.tree is not None:
            return self.tree.leaves(scores, codes)[:, None]
        return _placed(self.edges, scores)

    def reweighted(self, weights: Floats) -> Calibration:
        """The same cells, filled with the sample's rows by these `weights`, shape (n,)."""
        kept = self.sample
        outcomes = _outcomes(self.task, kept.outcome, kept.cells.shape[1])
        cells = _cells(kept.block, kept.cells, outcomes, weights, self.cells.n.shape)
        if self.tree is None:
            cells = _risen(cells, self.offsets)
        return Calibration(self.task, self.edges, self.tree, cells, kept)

    def to_dict(self) -> dict[str, Any]:
        """JSON-friendly."""
        cells, kept, tree = self.cells, self.sample, self.tree
        body: dict[str, Any] = {
            "task": self.task,
            "edges": [edges.tolist() for edges in self.edges],
            "n": _plain(cells.n),
            "sums": _plain(cells.sums),
            "second": _plain(cells.second),
            "sample": {
                "block": kept.block.tolist(),
                "outcome": _plain(kept.outcome),
                "cells": kept.cells.tolist(),
                "features": kept.codes.shape[1],
                "codes": base64.b64encode(kept.codes.astype("<u2").tobytes()).decode("ascii"),
            },
        }
        if tree is not None:
            nodes = {name: getattr(tree, name).tolist() for name in ("feature", "threshold", "left", "right", "leaf")}
            body["tree"] = nodes | {"orders": {str(k): v.tolist() for k, v in tree.orders.items()}}
        return body

    @staticmethod
    def from_dict(body: Mapping[str, Any], bins: Bins) -> Calibration:
        """The calibration that `to_dict` described, of inputs in these `bins`.

        Raises: ValueError when its parts do not fit together."""
        n = np.array(body["n"], dtype=np.float64)
        cells = Cells(n, n, np.array(body["sums"], dtype=np.float64), np.array(body["second"], dtype=np.float64))
        kept, found = body["sample"], body.get("tree")
        block, features = np.array(kept["block"], dtype=np.int64), int(kept["features"])
        codes = np.frombuffer(base64.b64decode(kept["codes"], validate=True), dtype="<u2").astype(np.uint16)
        sample = Sample(
            block,
            np.array(kept["outcome"], dtype=np.float64),
            np.array(kept["cells"], dtype=np.int64).reshape(len(block), -1),
            codes.reshape(len(block), features),
        )
        tree = None
        if found is not None:
            tree = Tree(
                np.array(found["feature"], dtype=np.int64),
                np.array(found["threshold"], dtype=np.float64),
                np.array(found["left"], dtype=np.int64),
                np.array(found["right"], dtype=np.int64),
                np.array(found["leaf"], dtype=np.int64),
                {int(k): np.array(v, dtype=np.float64) for k, v in found["orders"].items()},
            )
        edges = tuple(np.array(e, dtype=np.float64) for e in body["edges"])
        return _checked(Calibration(body["task"], edges, tree, cells, sample), list(bins.widths.values()))


def fit(task: Task, y: Labels, scores: Scores, times: Blocks, bins: Bins, columns: Columns) -> Calibration:
    """The calibration of these rows of the holdout.

    Args: y: labels (n,); scores as in `target`, given by a model that did not see the rows; times: their blocks, in
        order of time; columns: their inputs, as `profile.fold` takes them."""
    n_blocks = min(len(times), MAX_BLOCKS)
    block = times.index * n_blocks // len(times)
    codes = profile.codes(bins, columns).reshape(len(y), -1)
    edges: tuple[Floats, ...] = ()
    tree = None
    if task == "regression":
        outcome = np.abs(np.asarray(y, dtype=np.float64) - scores)
        tree = _grown(outcome, scores, codes, bins)
        placed, n_cells = tree.leaves(scores, codes)[:, None], int(tree.leaf.max()) + 1
    else:
        outcome = np.asarray(y, dtype=np.float64)
        wide = _wide(task, scores)
        most = max(2, min(_CLASS_CELLS, MAX_CELLS // wide.shape[1]))
        hits = _outcomes(task, outcome, wide.shape[1])[0]
        edges = tuple(_spans(wide[:, k], hits[:, k], most) for k in range(wide.shape[1]))
        placed, n_cells = _placed(edges, scores), sum(len(e) + 1 for e in edges)
    outcomes = _outcomes(task, outcome, placed.shape[1])
    cells = _cells(block, placed, outcomes, np.ones(len(y)), (n_blocks, n_cells))
    most_rows = min(_SAMPLE_ROWS, _SAMPLE_CELLS // (codes.shape[1] + placed.shape[1]))
    some = np.unique(np.linspace(0, len(y) - 1, min(len(y), most_rows)).astype(np.int64))
    sample = Sample(block[some], outcome[some], placed[some], codes[some])
    return Calibration(task, edges, tree, cells, sample)


def _wide(task: Task, scores: Scores) -> Scores:
    """Scores by map, shape (n, maps)."""
    return scores[:, None] if task == "binary" else scores


def _outcomes(task: Task, outcome: Floats, n_maps: int) -> Floats:
    """Outcomes of each row in each map, shape (outcomes, n, maps)."""
    if task == "regression":
        return np.stack([outcome, outcome**2])[:, :, None]
    classes = np.ones(1) if task == "binary" else np.arange(n_maps)
    return np.asarray(outcome[:, None] == classes, dtype=np.float64)[None]


def _placed(edges: tuple[Floats, ...], scores: Scores) -> Indices:
    wide, start, placed = scores.reshape(len(scores), len(edges)), 0, []
    for k, inner in enumerate(edges):
        placed.append(start + np.searchsorted(inner, wide[:, k], "right"))
        start += len(inner) + 1
    return np.stack(placed, axis=1)


def _cells(block: Indices, placed: Indices, outcomes: Floats, weights: Floats, shape: tuple[int, ...]) -> Cells:
    """Sums of rows that fall to `block` (n,) and to the cells `placed` (n, maps), by `weights` (n,)."""
    n_blocks, n_cells = shape
    maps = placed.shape[1]
    where, weight = (block[:, None] * n_cells + placed).ravel(), np.repeat(weights, maps)

    def summed(values: Floats) -> Floats:
        return np.bincount(where, values, n_blocks * n_cells).reshape(n_blocks, n_cells).astype(np.float64, copy=False)

    flat = outcomes.reshape(len(outcomes), -1)
    return Cells(
        summed(weight),
        summed(weight**2),
        np.stack([summed(weight * each) for each in flat]),
        np.stack([summed(weight * each**2).sum(axis=0) for each in flat]),
    )


def _spans(scores: Floats, hits: Floats, most: int) -> Floats:
    """Scores at which the next cell begins: the isotonic regression's blocks, joined until each has rows enough."""
    levels, index = np.unique(scores, return_inverse=True)
    n, yes = np.bincount(index).astype(np.float64), np.bincount(index, hits)
    fitted = _isotonic(yes / n, n)
    starts = np.concatenate([[0], np.flatnonzero(np.diff(fitted)) + 1])
    rows = np.add.reduceat(n, starts)
    least = float(_CELL_ROWS)
    while len(kept := _joined(rows, least)) > most:
        least *= 2
    first = starts[kept][1:]
    return np.asarray((levels[first - 1] + levels[first]) / 2)


def _joined(rows: Floats, least: float) -> Indices:
    """Numbers of the blocks that begin a cell, when each takes in its successors until it has `least` rows."""
    kept, held = [0], 0.0
    for i, n in enumerate(rows):
        if held >= least:
            kept.append(i)
            held = 0.0
        held += n
    if held < least and len(kept) > 1:
        kept.pop()
    return np.array(kept, dtype=np.int64)


def _isotonic(values: Floats, weights: Floats) -> Floats:
    """The nearest rising sequence by weighted squares (pool adjacent violators)."""
    from scipy.optimize import isotonic_regression  # here: serving loads artifacts, and does without

    return np.asarray(isotonic_regression(values, weights=weights).x)


def _risen(cells: Cells, offsets: Indices) -> Cells:
    """The same cells with their outcomes moved so that the rates of each map rise."""
    n, rates = cells.n.sum(axis=0), cells.rates[0]
    # Cells that no weight fell into take the rate that their neighbours pull them to.
    weights = np.maximum(n, 1e-9 * max(float(n.max()), 1.0))
    risen = np.concatenate([_isotonic(rates[a:b], weights[a:b]) for a, b in pairwise(offsets)])
    sums = cells.sums + (risen - rates) * cells.n
    return Cells(cells.n, cells.squares, sums, sums.sum(axis=1))


def _grown(errors: Floats, predictions: Scores, codes: NDArray[np.uint16], bins: Bins) -> Tree:
    """The tree of a regression's absolute errors."""
    from sklearn.tree import DecisionTreeRegressor  # here: serving loads artifacts, and does without

    orders = {}
    for place, name in enumerate(bins.widths):
        if name in bins.categorical:
            # By mean error, so that one split tells the best two groups of categories apart (Fisher 1958).
            n = np.bincount(codes[:, place], minlength=bins.widths[name])
            total = np.bincount(codes[:, place], errors, bins.widths[name])
            orders[place] = np.where(n > 0, total / np.maximum(n, 1), errors.mean())
    least = max(_CELL_ROWS, round(_LEAF_SHARE * len(errors)))
    grown = DecisionTreeRegressor(max_leaf_nodes=_LEAVES, min_samples_leaf=least, random_state=0)
    found = grown.fit(_ordered(predictions, codes, orders), errors).tree_
    # scikit-learn grows the best leaf first, so that children come after their parents.
    leaf = np.where(found.children_left < 0, 0, -1)
    leaf[leaf == 0] = np.arange(int((leaf == 0).sum()))
    split = leaf < 0
    return Tree(
        np.where(split, found.feature, 0).astype(np.int64),
        np.where(split, found.threshold, 0.0),
        np.where(split, found.children_left, 0).astype(np.int64),
        np.where(split, found.children_right, 0).astype(np.int64),
        leaf.astype(np.int64),
        orders,
    )


def _ordered(predictions: Scores, codes: NDArray[np.uint16], orders: Mapping[int, Floats]) -> NDArray[np.float32]:
    """What the tree looks at, in single precision as scikit-learn does: the prediction, then each feature."""
    columns = [orders[i][codes[:, i]] if i in orders else codes[:, i] for i in range(codes.shape[1])]
    return np.column_stack([predictions, *columns]).astype(np.float32)


def _plain(values: Floats) -> Any:
    """As lists, whole numbers without their point: counts of hits are half of the file."""
    whole = bool((values == np.floor(values)).all() and (np.abs(values) < 2**53).all())
    return values.astype(np.int64).tolist() if whole else values.tolist()


def _checked(found: Calibration, widths: list[int]) -> Calibration:
    """The same, when its parts fit together and into `widths`, the bins of each input: it is anybody's until then."""
    cells, kept, tree, task = found.cells, found.sample, found.tree, found.task
    if task not in ("binary", "multiclass", "regression"):
        raise ValueError(f"the calibration knows no task {task!r}")
    shape, n_outcomes = cells.n.shape, 2 if task == "regression" else 1
    sums = cells.n.ndim == 2 and cells.n.size > 0 and cells.sums.shape == (n_outcomes, *shape)
    if not sums or cells.second.shape != (n_outcomes, shape[1]):
        raise ValueError("the calibration's sums do not fit together")
    n_maps = {"binary": len(found.edges) == 1, "multiclass": len(found.edges) > 1, "regression": not found.edges}
    if not n_maps[task] or (tree is None) == (task == "regression"):
        raise ValueError(f"the calibration is none of a {task} model")
    if int(found.offsets[-1]) != shape[1] or any((np.diff(inner) < 0).any() for inner in found.edges):
        raise ValueError("the calibration's cells do not follow each other")
    if tree is not None:
        _check_tree(tree, shape[1], widths)
    n = len(kept.block)
    same = kept.outcome.shape == (n,) and kept.cells.shape == (n, max(len(found.edges), 1))
    if not same or not _within(kept.block, shape[0]) or not _within(kept.cells, shape[1]):
        raise ValueError("the calibration's sample does not fit its cells")
    if kept.codes.shape != (n, len(widths)) or (kept.codes >= np.array(widths, dtype=np.int64)).any():
        raise ValueError("the calibration's sample does not fit the bins of the inputs")
    return found


def _check_tree(tree: Tree, n_cells: int, widths: list[int]) -> None:
    n = len(tree.leaf)
    if n == 0 or {len(tree.feature), len(tree.threshold), len(tree.left), len(tree.right)} != {n}:
        raise ValueError("the calibration's tree has no nodes, or other parts of them")
    split, after = tree.leaf < 0, np.arange(n) + 1
    if not _within(tree.leaf[~split], n_cells) or not _within(tree.feature, len(widths) + 1):
        raise ValueError("the calibration's tree has other leaves than cells, or other columns than inputs")
    # Children after their parents: whatever a row holds, its way ends.
    if any(((child < after) | (child >= n))[split].any() for child in (tree.left, tree.right)):
        raise ValueError("the calibration's tree does not lead to a leaf")
    if any(i not in range(len(widths)) or len(order) != widths[i] for i, order in tree.orders.items()):
        raise ValueError("the calibration's tree orders other bins than the inputs have")


def _within(numbers: Indices, stop: int) -> bool:
    return bool(((numbers >= 0) & (numbers < stop)).all())
