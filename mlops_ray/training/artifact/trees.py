"""Fitted trees of scikit-learn, XGBoost and LightGBM as flat arrays, and those as one ONNX operator in float64.

The libraries differ in how a value chooses its branch, and a value that equals a threshold (boosting takes many from
the rows) must stay on its side:

| library | compares | missing values |
|---|---|---|
| histogram gradient boosting | float64 `x <= t` | a side per split |
| forests, single trees | float32 x, float64 t: `x <= t` | a side per split |
| XGBoost | float32 `x < t` | a side per split |
| LightGBM | float64 `x <= t` | a side per split; as 0 where training saw none |

The operator is `TreeEnsemble` of ai.onnx.ml 5, which compares and adds in float64; for XGBoost in float32, as it does
itself, in its own order, or a target of 100,000 ± 5 would differ by thousandths of its spread. It has one output per
leaf, so a forest with several classes takes `TreeEnsembleRegressor` of ai.onnx.ml 3, which answers in float32.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]
Flags = NDArray[np.bool_]


@dataclass(frozen=True, eq=False)
class Tree:
    """One tree; all arrays have shape (nodes,), the root comes first.

    left, right: places of the children, where a row goes left if `x <= split` (`x < split` where `Ensemble.strict`), or
    where x is missing and `missing_left`. values: (nodes,), what a leaf adds to output `target`; or (nodes, outputs).
    """

    feature: Integers
    split: Floats
    left: Integers
    right: Integers
    leaf: Flags
    missing_left: Flags
    values: Floats
    target: int = 0


@dataclass(frozen=True, eq=False)
class Ensemble:
    """Trees whose leaves are added up, beginning with `base`, shape (outputs,).

    single: features are rounded to float32 first; strict: `x < split`, and all is float32 (XGBoost)."""

    trees: tuple[Tree, ...]
    base: Floats
    single: bool = False
    strict: bool = False

    @property
    def vector(self) -> bool:
        """Whether a leaf has several outputs."""
        return self.trees[0].values.ndim == 2


def tolerant(ensemble: Ensemble, rough: NDArray[np.bool_]) -> Ensemble:
    """The ensemble, whose splits of the features `rough`, shape (features,), lie higher by a 10^-12 of the largest one.

    Those are powers and logarithms, which differ between libraries in the last of 53 bits; a row whose value became a
    split must go left all the same. As inputs are float32, other rows' values differ by a 10^-7. Other features come
    out to the bit, and stay exact: sin 0 and sin pi are two values to boosting."""
    largest = np.zeros(len(rough))
    for tree in ensemble.trees:
        inner = ~tree.leaf & np.isfinite(tree.split)  # infinite where only missing values go right
        np.maximum.at(largest, tree.feature[inner], np.abs(tree.split[inner]))
    more = np.where(rough, 1e-12 * largest, 0.0)
    return replace(ensemble, trees=tuple(replace(t, split=t.split + more[t.feature]) for t in ensemble.trees))


# Libraries ------------------------------------------------------------------------------------------------------------


def of_forest(estimator: Any) -> Ensemble:
    """A forest or single tree; the mean of its trees. Classifiers of two classes: P(1) only, shape (1,).

    Raises: NotImplementedError for several targets."""
    trees = getattr(estimator, "estimators_", [estimator])
    if estimator.n_outputs_ != 1:
        raise NotImplementedError("trees with several targets")
    classes = len(getattr(estimator, "classes_", ()))
    found = []
    for each in trees:
        tree = each.tree_
        values = tree.value[:, 0, :] / len(trees)
        found.append(
            Tree(
                feature=tree.feature.astype(np.int64),
                split=tree.threshold.astype(np.float64),
                left=tree.children_left.astype(np.int64),
                right=tree.children_right.astype(np.int64),
                leaf=tree.children_left == -1,
                missing_left=tree.missing_go_to_left.astype(bool),
                values=values if classes > 2 else values[:, 1 if classes == 2 else 0],
            )
        )
    return Ensemble(tuple(found), np.zeros(classes if classes > 2 else 1), single=True)


def of_histogram(estimator: Any) -> Ensemble:
    """scikit-learn's histogram gradient boosting, before its link.

    Raises: NotImplementedError where it treats columns as categories."""
    if estimator._preprocessor is not None or (
        estimator.is_categorical_ is not None and np.any(estimator.is_categorical_)
    ):
        raise NotImplementedError("categorical_features of histogram gradient boosting")
    found = []
    for iteration in estimator._predictors:
        for target, predictor in enumerate(iteration):
            nodes = predictor.nodes
            found.append(
                Tree(
                    feature=nodes["feature_idx"].astype(np.int64),
                    split=nodes["num_threshold"].astype(np.float64),
                    left=nodes["left"].astype(np.int64),
                    right=nodes["right"].astype(np.int64),
                    leaf=nodes["is_leaf"].astype(bool),
                    missing_left=nodes["missing_go_to_left"].astype(bool),
                    values=nodes["value"].astype(np.float64),
                    target=target,
                )
            )
    return Ensemble(tuple(found), np.asarray(estimator._baseline_prediction, dtype=np.float64).ravel())


_XGBOOST_LINKS = {
    "binary:logistic": "sigmoid",
    "reg:logistic": "sigmoid",
    "multi:softprob": "softmax",
    "multi:softmax": "softmax",
    "reg:squarederror": "none",
    "reg:absoluteerror": "none",
    "reg:pseudohubererror": "none",
    "reg:quantileerror": "none",
    "count:poisson": "exp",
    "reg:gamma": "exp",
    "reg:tweedie": "exp",
}


def of_xgboost(estimator: Any) -> tuple[Ensemble, str]:
    """An XGBoost model before its link, and the link: none, sigmoid, softmax or exp.

    Read from the library's own JSON. The stored base score is on the scale of the answers.
    Raises: NotImplementedError for linear boosters, categories, leaves of several outputs and other objectives."""
    learner = json.loads(bytes(estimator.get_booster().save_raw("json")))["learner"]
    objective, booster = learner["objective"]["name"], learner["gradient_booster"]
    if objective not in _XGBOOST_LINKS or booster["name"] not in ("gbtree", "dart"):
        raise NotImplementedError(f"XGBoost's {objective} with booster {booster['name']}")
    body = booster["gbtree"]["model"] if booster["name"] == "dart" else booster["model"]
    weights = booster.get("weight_drop", [1.0] * len(body["trees"]))
    n = _xgboost_rounds(estimator, body)
    trees = []
    for tree, target, weight in zip(body["trees"][:n], body["tree_info"], weights, strict=False):
        if int(tree["tree_param"]["size_leaf_vector"]) > 1 or any(tree["split_type"]):
            raise NotImplementedError("XGBoost's vector leaves and categorical splits")
        left, split = np.array(tree["left_children"]), np.array(tree["split_conditions"], dtype=np.float32)
        trees.append(
            Tree(
                feature=np.array(tree["split_indices"], dtype=np.int64),
                split=split.astype(np.float64),
                left=left.astype(np.int64),
                right=np.array(tree["right_children"], dtype=np.int64),
                leaf=left == -1,
                missing_left=np.array(tree["default_left"], dtype=bool),
                values=split.astype(np.float64) * weight,
                target=int(target),
            )
        )
    link = _XGBOOST_LINKS[objective]
    stored = learner["learner_model_param"]["base_score"]
    base = np.atleast_1d(np.array(json.loads(stored), dtype=np.float64))
    if link in ("sigmoid", "exp"):
        base = np.log(base) if link == "exp" else np.log(base) - np.log1p(-base)
    outputs = max(1, int(learner["learner_model_param"]["num_class"]))
    start = np.broadcast_to(base, (outputs,)).astype(np.float32)
    return Ensemble(_starting(trees, start), np.zeros(outputs), single=True, strict=True), link


def _starting(trees: Sequence[Tree], base: NDArray[np.float32]) -> tuple[Tree, ...]:
    """The trees, of which each output's first has `base` added to its leaves: where XGBoost's sums begin."""
    first = {tree.target: i for i, tree in reversed(list(enumerate(trees)))}
    return tuple(
        replace(tree, values=(tree.values.astype(np.float32) + base[tree.target]).astype(np.float64))
        if first[tree.target] == i
        else tree
        for i, tree in enumerate(trees)
    )


def _xgboost_rounds(estimator: Any, body: Any) -> int:
    """How many trees answer: those up to the best round where early stopping kept one."""
    try:
        last = int(estimator.best_iteration) + 1
    except AttributeError:
        return len(body["trees"])
    return int(body["iteration_indptr"][last])


_LIGHTGBM_LINKS = {
    "binary": "sigmoid",
    "cross_entropy": "sigmoid",
    "multiclass": "softmax",
    "regression": "none",
    "regression_l1": "none",
    "huber": "none",
    "fair": "none",
    "quantile": "none",
    "mape": "none",
    "poisson": "exp",
    "gamma": "exp",
    "tweedie": "exp",
}
_LIGHTGBM_CATEGORY, _LIGHTGBM_LEFT, _LIGHTGBM_ZERO, _LIGHTGBM_NAN = 1, 2, 4, 8  # bits of `decision_type`


def of_lightgbm(estimator: Any) -> tuple[Ensemble, str]:
    """A LightGBM model before its link, and the link: none, sigmoid, softmax or exp.

    Read from the library's own text, which writes numbers so that they come back exactly.
    Raises: NotImplementedError for categories, linear leaves, zeros as missing values, random forest mode and other
    objectives."""
    text = estimator.booster_.model_to_string()
    head, *sections = text.partition("\nend of trees")[0].split("\nTree=")
    fields = dict(line.split("=", 1) for line in head.splitlines() if "=" in line)
    objective, *options = fields.get("objective", "none").split(" ")
    plain = all(option.split(":")[0] in ("sigmoid", "num_class") for option in options)
    if objective not in _LIGHTGBM_LINKS or not plain or "average_output" in head.splitlines():
        raise NotImplementedError(f"LightGBM's objective {fields.get('objective')!r} or averaged output")
    steepness = float(dict(o.split(":") for o in options).get("sigmoid", 1.0))
    outputs = int(fields["num_tree_per_iteration"])
    trees = [
        _lightgbm_tree(dict(line.split("=", 1) for line in section.splitlines()[1:] if "=" in line), i % outputs)
        for i, section in enumerate(sections)
    ]
    if steepness != 1.0:
        trees = [replace(tree, values=tree.values * steepness) for tree in trees]
    return Ensemble(tuple(trees), np.zeros(outputs)), _LIGHTGBM_LINKS[objective]


def _lightgbm_tree(fields: dict[str, str], target: int) -> Tree:
    if fields.get("num_cat", "0") != "0" or fields.get("is_linear", "0") != "0":
        raise NotImplementedError("LightGBM's categorical splits and linear leaves")

    def numbers(name: str, dtype: Any) -> NDArray[Any]:
        return np.array(fields.get(name, "").split(), dtype=dtype)

    values = numbers("leaf_value", np.float64)
    if int(fields["num_leaves"]) == 1:
        return _lone(float(values[0]), target)
    kind, split = numbers("decision_type", np.int64), numbers("threshold", np.float64)
    if (kind & (_LIGHTGBM_CATEGORY | _LIGHTGBM_ZERO)).any():
        raise NotImplementedError("LightGBM's categorical splits and zeros as missing values")
    # Where training saw no missing value one counts as 0.
    missing_left = np.where(kind & _LIGHTGBM_NAN, (kind & _LIGHTGBM_LEFT) > 0, split >= 0)
    inner, leaves = len(split), len(values)

    def places(name: str) -> Integers:
        found = numbers(name, np.int64)
        return np.where(found >= 0, found, inner + ~found)  # leaf i is written as -1 - i

    fill = np.zeros(leaves)
    return Tree(
        feature=np.append(numbers("split_feature", np.int64), fill.astype(np.int64)),
        split=np.append(split, fill),
        left=np.append(places("left_child"), fill.astype(np.int64)),
        right=np.append(places("right_child"), fill.astype(np.int64)),
        leaf=np.arange(inner + leaves) >= inner,
        missing_left=np.append(missing_left, fill.astype(bool)),
        values=np.append(np.zeros(inner), values),
        target=target,
    )


def _lone(value: float, target: int) -> Tree:
    nothing = np.zeros(1, dtype=np.int64)
    no = np.zeros(1, dtype=bool)
    return Tree(nothing, np.zeros(1), nothing, nothing, ~no, no, np.array([value]), target)


# The operator ---------------------------------------------------------------------------------------------------------


def operator(ensemble: Ensemble, name: str, out: str) -> Any:
    """The ensemble's sum without `base` as one node from `name` (n, features) to `out` (n, outputs).

    Both are float64; float32 where `strict`, and `out` where leaves have several outputs."""
    grown = [_grown(tree) for tree in ensemble.trees]
    return (_old if ensemble.vector else _new)(ensemble, grown, name, out)


def _grown(tree: Tree) -> Tree:
    """A root that is a leaf becomes a split with that leaf on both sides: the operators want one."""
    if not tree.leaf[0]:
        return tree
    zeros, yes = np.zeros(2, dtype=np.int64), np.array([False, True])
    values = np.stack([tree.values[0], tree.values[0]])
    return Tree(zeros, np.zeros(2), zeros + 1, zeros + 1, yes, np.zeros(2, dtype=bool), values, tree.target)


def _joined(trees: Sequence[Tree], name: str) -> NDArray[Any]:
    return np.concatenate([getattr(tree, name) for tree in trees])


def _new(ensemble: Ensemble, trees: Sequence[Tree], name: str, out: str) -> Any:
    from onnx import helper, numpy_helper

    leaf = _joined(trees, "leaf")
    sizes = np.array([len(tree.leaf) for tree in trees])
    starts = np.cumsum(sizes) - sizes
    offset = np.repeat(starts, sizes)
    # The operator numbers splits and leaves apart, over all trees.
    number = np.where(leaf, np.cumsum(leaf), np.cumsum(~leaf)) - 1
    left, right = ((_joined(trees, side) + offset)[~leaf] for side in ("left", "right"))
    node = helper.make_node("TreeEnsemble", [name], [out], domain="ai.onnx.ml")
    _put(
        node,
        n_targets=len(ensemble.base),
        aggregate_function=1,  # the sum
        post_transform=0,  # none
        tree_roots=number[starts],
        nodes_featureids=_joined(trees, "feature")[~leaf],
        nodes_truenodeids=number[left],
        nodes_trueleafs=leaf[left],
        nodes_falsenodeids=number[right],
        nodes_falseleafs=leaf[right],
        nodes_missing_value_tracks_true=_joined(trees, "missing_left")[~leaf],
        leaf_targetids=np.repeat([tree.target for tree in trees], sizes)[leaf],
    )
    modes = np.full(int((~leaf).sum()), 1 if ensemble.strict else 0, dtype=np.uint8)  # 0: <=, 1: <
    dtype = np.float32 if ensemble.strict else np.float64
    tensors = {
        "nodes_modes": modes,
        "nodes_splits": _joined(trees, "split")[~leaf].astype(dtype),
        "leaf_weights": _joined(trees, "values")[leaf].astype(dtype),
    }
    for label, values in tensors.items():
        node.attribute.append(helper.make_attribute(label, numpy_helper.from_array(values)))
    return node


def _old(ensemble: Ensemble, trees: Sequence[Tree], name: str, out: str) -> Any:
    from onnx import helper, numpy_helper

    leaf = _joined(trees, "leaf")
    sizes = np.array([len(tree.leaf) for tree in trees])
    of_tree = np.repeat(np.arange(len(trees)), sizes)
    place = np.concatenate([np.arange(size) for size in sizes])
    values = _joined(trees, "values")[leaf]
    rows, targets = np.nonzero(values)
    node = helper.make_node("TreeEnsembleRegressor", [name], [out], domain="ai.onnx.ml")
    _put(
        node,
        n_targets=len(ensemble.base),
        nodes_treeids=of_tree,
        nodes_nodeids=place,
        nodes_featureids=np.where(leaf, 0, _joined(trees, "feature")),
        nodes_truenodeids=np.where(leaf, 0, _joined(trees, "left")),
        nodes_falsenodeids=np.where(leaf, 0, _joined(trees, "right")),
        nodes_missing_value_tracks_true=_joined(trees, "missing_left") & ~leaf,
        target_treeids=of_tree[leaf][rows],
        target_nodeids=place[leaf][rows],
        target_ids=targets,
    )
    modes = helper.make_attribute("nodes_modes", np.where(leaf, "LEAF", "BRANCH_LEQ").tolist())
    node.attribute.append(modes)
    tensors = {
        "nodes_values_as_tensor": np.where(leaf, 0.0, _joined(trees, "split")),
        "target_weights_as_tensor": values[rows, targets],
    }
    for label, numbers in tensors.items():
        node.attribute.append(helper.make_attribute(label, numpy_helper.from_array(numbers)))
    return node


def _put(node: Any, **attributes: Any) -> None:
    """Whole numbers as attributes: `helper.make_attribute` looks at each of millions."""
    from onnx import AttributeProto

    for name, value in attributes.items():
        made = node.attribute.add(name=name)
        if np.ndim(value):
            made.type = AttributeProto.INTS
            made.ints.extend(np.asarray(value, dtype=np.int64).tolist())
        else:
            made.type = AttributeProto.INT
            made.i = int(value)
