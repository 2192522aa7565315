"""The fitted scikit-learn transformer that merged statistics make, and the bins of profiles.

What it holds equals scikit-learn's own fit on the same rows (`to_frame(features, to_columns(features, table))`):
counts, categories, lowest and highest values and target encodings exactly; means and variances to 1e-9; what comes from
quantiles, and the power scale, exactly where a feature has at most `MAX_VALUES` distinct values, else within
`ValueCounts.rank_error`. Steps are scikit-learn's own classes, so that any MLflow user can load a version; what has no
such class is derived before it (`derive.py`). One encoding differs on purpose, see `known_categories`.
"""

from __future__ import annotations

import functools
import importlib
import re
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from mlops_ray.config import Features
from mlops_ray.config.features import Categorical, Custom, Numeric, Quantiles
from mlops_ray.data.features.matrix import transformed
from mlops_ray.data.features.statistics import (
    FOLDS,
    NumericStats,
    Partial,
    TargetStats,
    ValueCounts,
    changed,
    is_changed,
    limits_of,
    to_frame,
    view,
)
from mlops_ray.data.profile import Bins, Columns, Moments
from mlops_ray.errors import DataError

if TYPE_CHECKING:
    import pandas as pd
    from sklearn.compose import ColumnTransformer

N_BINS = 10
"""Bins of a profile, about equally full. Fewer hide a shift, more make small windows noisy."""
MIN_BIN_SHARE = 0.01
"""No bin is set up for fewer rows: one row in a hundred is the least that windows of 500 rows can still compare."""
MAX_CATEGORIES = 50
"""Categories that a profile counts one by one; rarer ones share the bin `other`."""
N_QUANTILES = 1000
"""Of `scale: quantile`, scikit-learn's own default."""
Floats = npt.NDArray[np.float64]


def transformer(features: Features, partial: Partial) -> ColumnTransformer:
    """The fitted ColumnTransformer over the model's columns.

    A numeric feature without any value is filled with 0. A missing, rare or unseen category becomes a row of zeros
    (one_hot), -1 (ordinal) or the mean of the target (target; there a missing one is a category of its own).
    Raises: DataError when there are no rows, when a feature has no value or category to go by, or a custom transformer
    fails.
    """
    # Imported here: workers that only fold need no scikit-learn, and importing it costs a second each.
    from sklearn.compose import ColumnTransformer
    from sklearn.preprocessing import FunctionTransformer

    if partial.n == 0:
        raise DataError("features", "there are no rows to fit on")
    parts: list[tuple[str, Any, list[str]]] = []
    settle: dict[str, Any] = {}
    for label, block in _numeric_parts(features):
        facts = [_facts(block, name, partial) for name in block.columns]
        pipeline, set_up = _numeric(block, facts)
        if pipeline is not None:
            parts.append((label, pipeline, list(block.columns)))
            settle[label] = set_up
        if block.indicator:
            parts.append((f"{label}_missing", _indicator(), list(block.columns)))
    known = {name: c for block in _categorical_blocks(features) for name, c in categories(features, partial).items()}
    for i, one in enumerate(_categorical_blocks(features)):
        label = "categorical" if i == 0 else f"categorical_{i + 1}"
        found = [known_categories(one, name, partial) for name in one.columns]
        parts.append((label, _encoder(one, found), list(one.columns)))
        if one.encode == "target":
            stats = [partial.targets[name] for name in one.columns]
            settle[label] = functools.partial(_set_target, block=one, known=found, stats=stats)
    for i, custom in enumerate(features.custom_blocks):
        parts.append((f"custom_{i + 1}", FunctionTransformer(feature_names_out="one-to-one"), list(custom.columns)))
    # A few rows let scikit-learn set up its bookkeeping (names, positions); what it learnt from them is then replaced
    # by the statistics of all rows. Target encoding wants each label once per fold.
    labels = np.tile([0, 1], FOLDS)
    rows: dict[str, Any] = {name: np.zeros(len(labels), dtype=np.float32) for name in features.numbers}
    rows |= {name: np.full(len(labels), known.get(name, ("",))[0], dtype=object) for name in features.texts}
    frame = to_frame(features, rows)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # equal rows are constant, and fewer than any number of quantiles
        fitted = ColumnTransformer(parts, sparse_threshold=0).fit(frame, labels)
    for label, set_up in settle.items():
        set_up(fitted.named_transformers_[label])
    examples = {label: frame[list(columns)] for label, _, columns in fitted.transformers_ if label != "remainder"}
    for i, custom in enumerate(features.custom_blocks):
        made, own, examples[f"custom_{i + 1}"] = _custom(custom, partial.rows[i])
        _put(fitted, f"custom_{i + 1}", made, own)
    _measure(fitted, examples)
    return fitted


def _numeric_parts(features: Features) -> list[tuple[str, Numeric]]:
    """The numeric blocks by label; one that clips at quantiles is one part per column, for each has its own limits."""
    parts = []
    for label, block in features.numeric_parts:
        if isinstance(block.clip, Quantiles) and len(block.columns) > 1:
            # Numbers after a dot, for a column may be called as another block's label ends: "2", or "missing".
            parts += [
                (f"{label}.{i + 1}", block.model_copy(update={"columns": (name,)}))
                for i, name in enumerate(block.columns)
            ]
        else:
            parts.append((label, block))
    return parts


def _categorical_blocks(features: Features) -> list[Categorical]:
    return [block for block in features.categorical_blocks if block.columns and block.encode != "hash"]


def _measure(fitted: ColumnTransformer, examples: Mapping[str, pd.DataFrame]) -> None:
    """Output positions as the replaced steps have them; `examples` are rows that each step can transform."""
    start = 0
    positions = dict(fitted.output_indices_)
    for name, step, _ in fitted.transformers_:
        if name == "remainder":
            continue
        width = np.asarray(step.transform(examples[name])).shape[1]
        positions[name] = slice(start, start + width)
        start += width
    fitted.output_indices_ = positions


# Numbers --------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class _Facts:
    """One column as the last step of its block sees it: clipped, logarithm taken, and filled.

    `values` float64, rising, with `counts`; `moments`; `n` rows, missing or not, as scikit-learn counts them; `fill` or
    None."""

    name: str
    values: Floats
    counts: npt.NDArray[np.int64]
    moments: Moments
    n: int
    fill: float | None
    limits: tuple[float, float | None] | None

    @property
    def low(self) -> float:
        return float(self.values[0])

    @property
    def high(self) -> float:
        return float(self.values[-1])

    def at(self, place: npt.NDArray[np.int64]) -> Floats:
        """The values of these ranks, counted from 0."""
        ends = np.cumsum(self.counts)
        return np.asarray(self.values[np.searchsorted(ends, np.clip(place, 0, ends[-1] - 1), "right")])

    def quantiles(self, shares: Sequence[float] | Floats) -> Floats:
        """Linear interpolation between ranks, NumPy's default (Hyndman and Fan 1996, type 7), and its rounding."""
        place = (self.counts.sum() - 1) * np.asarray(shares, dtype=np.float64)
        before = np.floor(place)
        share = place - before
        low, high = self.at(before.astype(np.int64)), self.at(before.astype(np.int64) + 1)
        return np.asarray(np.where(share >= 0.5, high - (high - low) * (1 - share), low + (high - low) * share))

    def stepped(self, shares: Floats) -> Floats:
        """NumPy's `averaged_inverted_cdf` (type 2), which KBinsDiscretizer takes."""
        place = self.counts.sum() * shares - 1
        before = np.floor(place).astype(np.int64)
        low, high = self.at(before), self.at(np.where(place < 0, 0, before + 1))
        return np.where(place == before, low + (high - low) * 0.5, high)


def _facts(block: Numeric, name: str, partial: Partial) -> _Facts:
    stats = partial.numeric[name]
    if block.log and stats.low < 0 and not isinstance(block.clip, tuple):
        raise DataError(name, f"log: true takes values of at least 0, the lowest is {stats.low:g}; clip it, or scale")
    limits = limits_of(block)
    values, counts = stats.values.middle, stats.values.counts
    if values.size:  # the ends of the outermost buckets are known
        values = np.concatenate([[stats.low], values[1:-1], [stats.high]]) if values.size > 1 else values
    n = stats.moments.n + stats.missing
    raw = _Facts(name, values, counts, stats.moments, n, None, None)
    if isinstance(block.clip, Quantiles) and values.size:
        low, high = raw.quantiles(block.clip.quantiles).tolist()
        limits = (low, high)
    if limits is not None:
        values = np.clip(values, *limits)
    if block.log:
        values = np.log1p(values)
    if is_changed(block):
        moments = partial.changed[view(block, name)]
    elif limits is not None:
        moments = _counted_moments(values, counts)
    else:
        moments = stats.moments
    fill = _fill(block, name, values, counts, moments, stats)
    if fill is None and not values.size and block.scaling != "none":
        raise DataError(name, f"has no value to fit `scale: {block.scaling}` to; impute it, or take it out")
    if fill is not None and stats.missing:
        place = int(np.searchsorted(values, fill))
        values, counts = np.insert(values, place, fill), np.insert(counts, place, stats.missing)
        moments += Moments(stats.missing, fill, 0.0)
    return _Facts(name, values, counts, moments, n, fill, limits)


def _fill(
    block: Numeric, name: str, values: Floats, counts: npt.NDArray[np.int64], moments: Moments, stats: NumericStats
) -> float | None:
    """What stands in for a missing value, or None; in the unit that clip and logarithm leave."""
    if block.impute == "none":
        return None
    if block.impute == "constant":
        given = np.array([block.fill_value], dtype=np.float64)
        return float(changed(block, given)[0])
    if not values.size:
        return 0.0
    if block.impute == "mean":
        return moments.mean
    if block.impute == "median":
        return float(_Facts(name, values, counts, moments, moments.n, None, None).quantiles([0.5])[0])
    if stats.values.level:
        raise DataError(
            name, f"has more than {stats.values.most} distinct values; none is the most frequent: impute the median"
        )
    distinct, place = np.unique(values, return_inverse=True)
    return float(distinct[np.argmax(np.bincount(place, weights=counts))])


def _counted_moments(values: Floats, counts: npt.NDArray[np.int64]) -> Moments:
    if not values.size:
        return Moments()
    mean = float(np.average(values, weights=counts))
    return Moments(int(counts.sum()), mean, float(np.sum(counts * (values - mean) ** 2)))


def _indicator() -> Any:
    from sklearn.impute import MissingIndicator

    # All columns, not only those with gaps now: a version's width must not hang on one month's gaps.
    return MissingIndicator(features="all", error_on_new=False)


def _numeric(block: Numeric, facts: Sequence[_Facts]) -> tuple[Any, Any]:
    """The block's unfitted pipeline, and a function that gives its fitted form what all rows say."""
    from sklearn import preprocessing as sk
    from sklearn.impute import SimpleImputer
    from sklearn.pipeline import Pipeline

    steps: list[tuple[str, Any]] = []
    settle: list[tuple[str, Any]] = []
    limits = facts[0].limits
    if limits is not None:
        given = {"a_min": limits[0], "a_max": limits[1]}
        steps.append(("clip", sk.FunctionTransformer(np.clip, kw_args=given, feature_names_out="one-to-one")))
    if block.log:
        steps.append(("log", sk.FunctionTransformer(np.log1p, feature_names_out="one-to-one")))
    if block.impute != "none":
        constant = facts[0].fill if block.impute == "constant" else None
        steps.append(("impute", SimpleImputer(strategy=block.impute, fill_value=constant, keep_empty_features=True)))
        if block.impute != "constant":  # a constant is no statistic, and stands there already
            settle.append(("impute", _set_imputer))
    if block.bins is not None:
        encode = {"onehot": "onehot-dense", "ordinal": "ordinal"}[block.bins.encode]
        binner = sk.KBinsDiscretizer(
            block.bins.n,
            encode=encode,
            strategy=block.bins.strategy,
            subsample=None,
            quantile_method="averaged_inverted_cdf",
        )
        steps.append(("bins", binner))
        settle.append(("bins", _set_bins))
    else:
        scaler: tuple[Any, Any] | None = {
            "standard": (sk.StandardScaler(), _set_standard),
            "robust": (sk.RobustScaler(), _set_robust),
            "min_max": (sk.MinMaxScaler(), _set_min_max),
            "quantile": (
                sk.QuantileTransformer(n_quantiles=N_QUANTILES, output_distribution=block.output, subsample=None),
                _set_quantile,
            ),
            "power": (sk.PowerTransformer(), _set_power),
        }.get(block.scaling)
        if scaler is not None:
            steps.append(("scale", scaler[0]))
            settle.append(("scale", scaler[1]))
    if not steps:
        return Pipeline([("as_is", sk.FunctionTransformer(feature_names_out="one-to-one"))]), lambda fitted: None

    def set_up(fitted: Any) -> None:
        for name, settler in settle:
            settler(fitted.named_steps[name], facts)

    return Pipeline(steps), set_up


def _set_imputer(imputer: Any, facts: Sequence[_Facts]) -> None:
    imputer.statistics_ = np.array([each.fill for each in facts], dtype=np.float64)


def _is_constant(moments: Moments) -> bool:
    """Whether a variance is no more than the rounding error of a variance over n rows: scikit-learn's own bound
    (`_is_constant_feature`), Chan, Golub and LeVeque 1983."""
    n, eps = moments.n, float(np.finfo(np.float64).eps)
    return moments.variance <= n * eps * moments.variance + (n * moments.mean * eps) ** 2


def _set_standard(scaler: Any, facts: Sequence[_Facts]) -> None:
    _set_moments(scaler, [each.moments for each in facts])


def _set_moments(scaler: Any, moments: Sequence[Moments]) -> None:
    scaler.mean_ = np.array([m.mean for m in moments], dtype=np.float64)
    scaler.var_ = np.array([m.variance for m in moments], dtype=np.float64)
    # A constant column is scaled by 1.
    scaler.scale_ = np.array([1.0 if _is_constant(m) else np.sqrt(m.variance) for m in moments], dtype=np.float64)
    seen = np.array([m.n for m in moments], dtype=np.int64)
    scaler.n_samples_seen_ = seen[0] if np.ptp(seen) == 0 else seen


def _without_zeros(scale: Floats) -> Floats:
    """As scikit-learn's `_handle_zeros_in_scale`: what does not vary is scaled by 1."""
    return np.where(scale < 10 * np.finfo(np.float64).eps, 1.0, scale)


def _set_robust(scaler: Any, facts: Sequence[_Facts]) -> None:
    quartiles = np.array([each.quantiles([0.25, 0.5, 0.75]) for each in facts])
    scaler.center_ = quartiles[:, 1]
    scaler.scale_ = _without_zeros(quartiles[:, 2] - quartiles[:, 0])


def _set_min_max(scaler: Any, facts: Sequence[_Facts]) -> None:
    scaler.data_min_ = np.array([each.low for each in facts])
    scaler.data_max_ = np.array([each.high for each in facts])
    scaler.data_range_ = scaler.data_max_ - scaler.data_min_
    scaler.scale_ = 1.0 / _without_zeros(scaler.data_range_)
    scaler.min_ = 0.0 - scaler.data_min_ * scaler.scale_
    scaler.n_samples_seen_ = facts[0].n


def _set_quantile(scaler: Any, facts: Sequence[_Facts]) -> None:
    scaler.n_quantiles_ = min(N_QUANTILES, facts[0].n)
    scaler.references_ = np.linspace(0, 1, scaler.n_quantiles_, endpoint=True)
    shares = scaler.references_ * 100 / 100  # scikit-learn asks for percentiles; the rounding is its own
    found = np.stack([each.quantiles(shares) for each in facts], axis=1)
    scaler.quantiles_ = np.maximum.accumulate(found, axis=0)


def _set_power(scaler: Any, facts: Sequence[_Facts]) -> None:
    from scipy import stats

    lambdas = []
    for each in facts:
        try:
            lambdas.append(1.0 if _is_constant(each.moments) else yeo_johnson(each.values, each.counts))
        except ValueError as exc:
            raise DataError(each.name, f"`scale: power`: {exc}; give it another scale") from exc
    scaler.lambdas_ = np.array(lambdas)
    moments = [
        _counted_moments(stats.yeojohnson(each.values, power), each.counts)
        for each, power in zip(facts, scaler.lambdas_.tolist(), strict=True)
    ]
    _set_moments(scaler._scaler, moments)


def yeo_johnson(values: Floats, counts: npt.NDArray[np.int64]) -> float:
    """The power that makes `values`, each standing for `counts` rows, most like a normal distribution.

    Maximises the log-likelihood by Brent's method, as SciPy does on single rows. Source: Yeo and Johnson 2000.
    Raises: ValueError when there is no such power, for values that vary by less than float64 can square, say.
    """
    from scipy import optimize, stats

    n = counts.sum()
    slope = float(np.sum(counts * np.sign(values) * np.log1p(np.abs(values))))

    def loss(power: float) -> float:
        with np.errstate(over="ignore", invalid="ignore"):
            spread = _counted_moments(stats.yeojohnson(values, power), counts).variance
        if not np.finfo(np.float64).tiny < spread < np.inf:
            return float("inf")
        return float(n / 2 * np.log(spread) - (power - 1) * slope)

    try:
        return float(optimize.brent(loss, brack=(-2, 2), tol=1.48e-08))
    except RuntimeError as exc:  # the search found no bracket
        raise ValueError("no power makes its values more normal") from exc


def _set_bins(binner: Any, facts: Sequence[_Facts]) -> None:
    from sklearn.preprocessing import OneHotEncoder

    edges = np.zeros(len(facts), dtype=object)
    for i, each in enumerate(facts):
        shares = np.linspace(0, 100, binner.n_bins + 1) / 100
        if each.low == each.high:
            edges[i] = np.array([-np.inf, np.inf])
        elif binner.strategy == "uniform":
            edges[i] = np.linspace(each.low, each.high, binner.n_bins + 1)
        else:
            found = each.stepped(shares)
            edges[i] = found[np.ediff1d(found, to_begin=np.inf) > 1e-8]  # scikit-learn's own bound of a bin's width
            if len(edges[i]) < 2:
                raise DataError(
                    each.name,
                    "its values are within 1e-8 of each other, too close for bins at quantiles; give it bins of "
                    "`strategy: uniform`, or multiply it in an expression",
                )
    binner.bin_edges_ = edges
    binner.n_bins_ = np.array([len(each) - 1 for each in edges])
    if binner.encode == "onehot-dense":
        encoder = OneHotEncoder(
            categories=[np.arange(n) for n in binner.n_bins_], sparse_output=False, dtype=binner._encoder.dtype
        )
        binner._encoder = encoder.fit(np.zeros((1, len(facts))))


# Categories -----------------------------------------------------------------------------------------------------------


def categories(features: Features, partial: Partial) -> dict[str, tuple[str, ...]]:
    """Per categorical feature the categories that its (last) encoder knows, sorted.

    Raises: DataError when a feature has none.
    """
    return {
        name: known_categories(block, name, partial)
        for block in _categorical_blocks(features)
        for name in block.columns
    }


def known_categories(block: Categorical, name: str, partial: Partial) -> tuple[str, ...]:
    """The categories with enough rows, sorted; for a target encoding "" (missing) may be one.

    Rows of any other category count in no encoding but in the target's mean. scikit-learn's TargetEncoder, given the
    same list, counts them in its first category, whose encoding would then be of rows that it never stands for.

    Raises: DataError when there are none."""
    counts = dict(partial.categorical[name])
    missing = partial.n - sum(counts.values())
    if block.encode == "target" and missing:
        counts[""] = missing
    least = max(block.min_share * partial.n, block.min_frequency)
    found = sorted((c for c, n in counts.items() if n >= least), key=lambda c: (-counts[c], c))
    if not any(found):
        raise DataError(
            name, f"no category has {least:g} rows or more; lower features.categorical.min_share or drop the column"
        )
    return tuple(sorted(found[: block.max_categories]))


def _encoder(block: Categorical, known: Sequence[tuple[str, ...]]) -> Any:
    from sklearn import preprocessing as sk

    listed = [np.array(each, dtype=object) for each in known]
    if block.encode == "ordinal":
        return sk.OrdinalEncoder(categories=listed, handle_unknown="use_encoded_value", unknown_value=-1)
    if block.encode == "target":
        return sk.TargetEncoder(categories=listed, target_type="binary", smooth=block.smooth, cv=FOLDS)
    return sk.OneHotEncoder(categories=listed, handle_unknown="ignore", sparse_output=False)


def _set_target(
    encoder: Any, block: Categorical, known: Sequence[tuple[str, ...]], stats: Sequence[TargetStats]
) -> None:
    whole = [(each.n.sum(axis=1), each.positives.sum(axis=1)) for each in stats]
    encoder.target_mean_ = _mean(*whole[0])
    encoder.encodings_ = [
        _encodings(block, _picked(each, names, n, positives), n, positives)
        for each, names, (n, positives) in zip(stats, known, whole, strict=True)
    ]


def _mean(n: npt.NDArray[np.int64], positives: npt.NDArray[np.int64]) -> np.float64:
    rows = n.sum()
    return np.float64(positives.sum() / rows) if rows else np.float64(0.0)


def _picked(
    stats: TargetStats, names: Sequence[str], n: npt.NDArray[np.int64], positives: npt.NDArray[np.int64]
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Rows and positives of the known categories, in their order."""
    at = np.searchsorted(stats.categories, np.array(names, dtype=object))
    return n[at], positives[at]


def _encodings(
    block: Categorical,
    picked: tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]],
    n: npt.NDArray[np.int64],
    positives: npt.NDArray[np.int64],
) -> Floats:
    """Encoding per known category. Source: Micci-Barreca 2001, equations 5 to 7, as scikit-learn's TargetEncoder."""
    rows, sums = (each.astype(np.float64) for each in picked)
    mean = float(_mean(n, positives))
    with np.errstate(invalid="ignore", divide="ignore"):
        if block.smooth != "auto":
            weight = rows + block.smooth
            return np.where(weight == 0, mean, (sums + block.smooth * mean) / weight)
        means = sums / rows
        spread = rows * means * (1 - means)  # of labels 0 and 1
        trust = mean * (1 - mean) * rows / (mean * (1 - mean) * rows + spread / rows)
        return np.asarray(np.where(np.isnan(trust), mean, trust * means + (1 - trust) * mean))


def training_matrix(
    features: Features,
    partial: Partial,
    fitted: ColumnTransformer,
    columns: Columns,
    fold_of: npt.NDArray[np.int64] | None,
) -> Floats:
    """What an estimator trains on, shape (n, width): as `fitted` transforms it, but target encodings cross-fitted.

    Each row's encoding comes from the rows of the other folds, so that no row is told its own label.
    Args: partial: the statistics that `fitted` came from, of these very rows; columns: their inputs; fold_of: the fold
    of each row (see `folds`), needed when there is a target encoding; -1 for rows that are not in `partial`.
    Source: Pargent et al. 2022.
    """
    matrix = transformed(features, fitted, columns)
    for i, block in enumerate(_categorical_blocks(features)):
        if block.encode != "target" or fold_of is None:
            continue
        first = fitted.output_indices_["categorical" if i == 0 else f"categorical_{i + 1}"].start
        for j, name in enumerate(block.columns):
            names, stats = known_categories(block, name, partial), partial.targets[name]
            place = {category: at for at, category in enumerate(names)}
            codes = np.fromiter((place.get(c, len(names)) for c in columns[name]), np.int64, len(columns[name]))
            for k in range(FOLDS):
                inside = fold_of == k
                n, positives = (np.delete(each, k, axis=1).sum(axis=1) for each in (stats.n, stats.positives))
                known = _encodings(block, _picked(stats, names, n, positives), n, positives)
                matrix[inside, first + j] = np.append(known, _mean(n, positives))[codes[inside]]
    return matrix


# Custom ---------------------------------------------------------------------------------------------------------------


def _custom(block: Custom, blocks: Sequence[npt.NDArray[Any]]) -> tuple[Any, Any, pd.DataFrame]:
    """The block's transformer, unfitted and fitted on all rows: in an order that does not hang on the shards'; and one
    of these rows, for no made-up one need be in its domain."""
    import pandas as pd
    from scipy import sparse
    from sklearn.base import clone

    module, name = re.split(r"[.:](?=\w+$)", block.transformer)
    where = f"features.custom {block.transformer}"
    try:
        made = getattr(importlib.import_module(module), name)(**block.params)
    except (ImportError, AttributeError, TypeError, ValueError) as exc:
        raise DataError(where, f"cannot be made: {exc}; fix the path or its params") from exc
    rows = np.concatenate(list(blocks))
    rows = rows[np.lexsort(rows.T[::-1])]
    try:
        fitted = clone(made).fit(pd.DataFrame(rows, columns=list(block.columns)))
    except Exception as exc:
        raise DataError(where, f"cannot be fitted: {type(exc).__name__}: {exc}") from exc
    example = pd.DataFrame(rows[:1], columns=list(block.columns))
    try:
        answer = fitted.transform(example)
    except Exception as exc:
        raise DataError(where, f"cannot transform a row that it was fitted on: {type(exc).__name__}: {exc}") from exc
    if sparse.issparse(answer):
        raise DataError(where, "gives a sparse matrix; set its params to give a dense one (often sparse_output: false)")
    if np.ndim(answer) != 2 or len(answer) != 1:
        raise DataError(where, f"makes shape {np.shape(answer)} of one row; it must be (1, outputs)")
    return made, fitted, example


def _put(transformer: ColumnTransformer, label: str, made: Any, fitted: Any) -> None:
    transformer.transformers = [
        (name, made if name == label else step, columns) for name, step, columns in transformer.transformers
    ]
    transformer.transformers_ = [
        (name, fitted if name == label else step, columns) for name, step, columns in transformer.transformers_
    ]


# Profiles -------------------------------------------------------------------------------------------------------------


def bins(features: Features, partial: Partial) -> Bins:
    """Bins for profiles of the inputs: about ten equally full ones per number, the top 50 categories otherwise.

    A value that alone fills a bin (no rain at all, say) gets one of its own, so that the rest is still seen. Times and
    hashed texts have none: time always drifts, and a text is hardly ever seen twice.
    """
    numeric = {name: _edges(partial.numeric[name].values) for name in features.raw_numbers}
    categorical = {}
    for name in features.counted:
        ranked = sorted(partial.categorical[name].items(), key=lambda item: (-item[1], item[0]))
        categorical[name] = tuple(c for c, _ in ranked[:MAX_CATEGORIES])
    return Bins(numeric, categorical)


def _edges(values: ValueCounts) -> tuple[float, ...]:
    """Inner edges, each the smallest value of the bin that it opens: float32, as the values that will be compared."""
    total = int(values.counts.sum())
    full, least = total / N_BINS, total * MIN_BIN_SHARE
    edges: list[float] = []
    inside = passed = 0
    for low, count in zip(values.lowest.tolist(), values.counts.tolist(), strict=True):
        closes = inside >= full or (count >= full and inside >= least)
        if closes and total - passed >= least:
            edges.append(low)
            inside = 0
        inside += count
        passed += count
    return tuple(edges)
