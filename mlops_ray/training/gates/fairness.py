"""Do groups of people get equal decisions, and equally right ones?

Rates are fairlearn's: *demographic parity* compares how often each group is decided for, *equalised odds* how often
those with and those without the outcome are (true and false positive rates). Of several classes each is judged against
the rest, and the worst counts.

The difference between the extremes of noisy rates is too large on average, the more so the smaller the groups are.
Hence: a value within the limit passes; one above it fails only where the difference of *some* pair of groups is surely
above, its bound being shared over all pairs, rates and classes (Bonferroni); the rest is inconclusive. A rate is
measured in groups of `min_rows` rows that it concerns (a false positive rate: negatives) and of at least five blocks;
other groups are shown and not judged, and where fewer than two are left, nothing is known, which is no pass.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mlops_ray.config import FairnessGate, Gates
from mlops_ray.training.evaluation.intervals import Blocks, Estimate, Floats, resample
from mlops_ray.training.evaluation.slices import Partition, partition
from mlops_ray.training.gates.case import Case
from mlops_ray.training.gates.comparison import MIN_BLOCKS
from mlops_ray.training.gates.quality import of_inflated
from mlops_ray.training.gates.verdict import CheckResult, Verdict, plain

Mask = NDArray[np.bool_]
RATES = ("selection_rate", "true_positive_rate", "false_positive_rate")
MEASURES = {"demographic_parity": RATES[:1], "equalized_odds": RATES[1:]}


@dataclass(frozen=True)
class _Rate:
    """One rate of one class per group, shape (groups,) each; `judged` says where it counts."""

    name: str
    place: int
    rates: Floats
    n: NDArray[np.int64]
    n_blocks: NDArray[np.int64]
    judged: Mask
    se: Floats
    """Of each difference between two groups, shape (groups, groups); NaN where blocks are too few."""

    @property
    def pairs(self) -> int:
        """Differences in either direction."""
        k = int(self.judged.sum())
        return k * (k - 1)


def fairness(
    gate: FairnessGate, gates: Gates, case: Case, grouped: Blocks, rng: np.random.Generator
) -> tuple[CheckResult, ...]:
    """Two checks per sensitive column, of the measures whose limit the gate gives; classification only.

    Bounds: Student's t times the standard error of the block bootstrap, degrees of freedom by the blocks of the group
    that has fewer."""
    wanted = {"demographic_parity": gate.max_demographic_parity, "equalized_odds": gate.max_equalized_odds}
    limits = {name: most for name, most in wanted.items() if most is not None}
    return tuple(check for name in gate.columns for check in _checks(gate, gates, case, name, limits, grouped, rng))


def _checks(
    gate: FairnessGate,
    gates: Gates,
    case: Case,
    column: str,
    limits: Mapping[str, float],
    grouped: Blocks,
    rng: np.random.Generator,
) -> Iterator[CheckResult]:
    if column not in case.groups:
        says = f"the dataset version has no column {column!r}; prepare one that has, or remove it from gates.fairness"
        for measure in limits:
            yield CheckResult(f"fairness.{column}.{measure}", Verdict.INCONCLUSIVE, says)
        return
    groups = partition(column, case.groups[column])
    weights = resample(len(grouped), gates.resamples, rng)
    names = [name for measure in limits for name in MEASURES[measure]]
    found = list(_rates(gate, names, case, groups, grouped, weights))
    table = _table(case, groups, found)
    for measure, most in limits.items():
        title = f"fairness.{column}.{measure}"
        yield _judged(title, measure, most, gates.alpha, gate.min_rows, case, groups, found, table)


def _rates(
    gate: FairnessGate, names: Sequence[str], case: Case, groups: Partition, grouped: Blocks, weights: Floats
) -> Iterator[_Rate]:
    for place in (1,) if case.task == "binary" else range(len(case.classes)):
        hit = decided(case) == place
        actual = case.y == place
        for name, concerned in zip(RATES, (np.ones(len(actual), dtype=bool), actual, ~actual), strict=True):
            if name in names:
                yield _rate(name, place, hit, actual, concerned, groups, grouped, weights, gate.min_rows)


def decided(case: Case) -> NDArray[np.int64]:
    """What is decided for each row, shape (n,): the place of a class."""
    if case.task == "binary":
        return np.asarray(case.scores >= case.threshold, dtype=np.int64)
    return np.asarray(np.argmax(case.scores, axis=1), dtype=np.int64)


def _rate(
    name: str,
    place: int,
    hit: Mask,
    actual: Mask,
    concerned: Mask,
    groups: Partition,
    grouped: Blocks,
    weights: Floats,
    min_rows: int,
) -> _Rate:
    from fairlearn import metrics as fairlearn

    k, n_blocks = len(groups.labels), len(grouped)
    inside = concerned & (groups.codes >= 0)
    cells = groups.codes[inside] * n_blocks + grouped.index[inside]
    n = np.bincount(cells, minlength=k * n_blocks).reshape(k, n_blocks)
    hits = np.bincount(cells, weights=hit[inside].astype(float), minlength=k * n_blocks).reshape(k, n_blocks)
    rates = np.full(k, np.nan)
    if inside.any():
        frame = fairlearn.MetricFrame(
            metrics=getattr(fairlearn, name),
            y_true=actual[inside].astype(int),
            y_pred=hit[inside].astype(int),
            sensitive_features=groups.codes[inside],
        )
        rates[frame.by_group.index.to_numpy(dtype=int)] = frame.by_group.to_numpy(dtype=float)
    present = (n > 0).sum(axis=1)
    judged = (n.sum(axis=1) >= min_rows) & (present >= MIN_BLOCKS)
    se = _errors(weights @ hits[judged].T, weights @ n[judged].T, n_blocks)
    full = np.full((k, k), np.nan)
    full[np.ix_(judged, judged)] = se
    return _Rate(name, place, rates, n.sum(axis=1), present, judged, full)


def _errors(hits: Floats, n: Floats, n_blocks: int) -> Floats:
    """Standard errors of the groups' differences, (groups, groups), from resamples (resamples, groups)."""
    whole: Mask = np.all(n > 0, axis=1)
    if hits.shape[1] < 2 or 2 * whole.sum() < len(whole):
        return np.full((hits.shape[1],) * 2, np.nan)
    covariance = np.cov(hits[whole] / n[whole], rowvar=False)
    variances = np.diag(covariance)
    squares = variances[:, None] + variances[None, :] - 2 * covariance
    return np.asarray(np.sqrt(np.maximum(squares, 0.0) * n_blocks / (n_blocks - 1)), dtype=np.float64)


def _judged(
    title: str,
    measure: str,
    most: float,
    alpha: float,
    min_rows: int,
    case: Case,
    groups: Partition,
    found: Sequence[_Rate],
    table: Sequence[Mapping[str, Any]],
) -> CheckResult:
    mine = [rate for rate in found if rate.name in MEASURES[measure]]
    shared = sum(rate.pairs for rate in mine)
    estimate, worst = _extreme(mine, alpha, shared)
    silent = [rate for rate in mine if rate.pairs == 0]
    evidence: dict[str, Any] = {"value": estimate.value, "lower": estimate.low, "upper": estimate.high, "max": most}
    evidence |= {"alpha": alpha, "pairs": shared, "groups": list(table)}
    what = measure.replace("_", " ").replace("equalized", "equalised") + " difference"
    verdict, says = of_inflated(estimate, most, what)
    if worst is not None:
        rate, a, b = worst
        of = "" if case.task == "binary" else f" of class {case.classes[rate.place]}"
        evidence |= {"rate": rate.name, "class": str(case.classes[rate.place])}
        evidence |= {"highest": groups.labels[a], "lowest": groups.labels[b]}
        says += (
            f"; {rate.name.replace('_', ' ')}{of} {rate.rates[a]:.3f} where {groups.column} {groups.labels[a]}, "
            f"{rate.rates[b]:.3f} where {groups.column} {groups.labels[b]}"
        )
    if silent and verdict is not Verdict.FAIL:
        verdict = Verdict.INCONCLUSIVE
        says = _unmeasured(silent, min_rows, case, groups) + (f"; {says}" if worst is not None else "")
    aside = [(rate, int(i)) for rate in mine for i in np.flatnonzero(~rate.judged)]
    if aside and not silent:
        says += f"; too small to judge ({_asked(min_rows)}): {_few(_size(*one, case, groups) for one in aside)}"
    return CheckResult(title, verdict, says, plain(evidence))


def _unmeasured(silent: Sequence[_Rate], min_rows: int, case: Case, groups: Partition) -> str:
    """Which rates cannot be compared, what each group has of what they are measured by, and the way out."""
    lacks = []
    for name in dict.fromkeys(rate.name for rate in silent):
        mine = [rate for rate in silent if rate.name == name]
        by = _few(_size(rate, i, case, groups) for rate in mine for i in range(len(groups.labels)))
        lacks.append(f"{name.replace('_', ' ')} by ({by})")
    return (
        f"fewer than two groups of {groups.column} have {_asked(min_rows)} to measure {' and '.join(lacks)}; "
        "lower gates.fairness.min_rows or give more rows"
    )


def _asked(min_rows: int) -> str:
    return f"{min_rows:,} rows in {MIN_BLOCKS} blocks"


def _size(rate: _Rate, group: int, case: Case, groups: Partition) -> str:
    """A group with the rows that a rate concerns, and their blocks where those are too few."""
    if case.task == "binary":
        what = {RATES[0]: "rows", RATES[1]: "positives", RATES[2]: "negatives"}[rate.name]
    else:
        label = case.classes[rate.place]
        what = {RATES[0]: "rows", RATES[1]: f"of class {label}", RATES[2]: f"not of class {label}"}[rate.name]
    blocks = f" in {rate.n_blocks[group]} blocks" if rate.n_blocks[group] < MIN_BLOCKS else ""
    return f"{groups.labels[group]}: {rate.n[group]:,} {what}{blocks}"


def _few(told: Iterable[str]) -> str:
    """The first ten, each once."""
    once = list(dict.fromkeys(told))
    return ", ".join(once[:10]) + (f" and {len(once) - 10} more" if len(once) > 10 else "")


def _extreme(rates: Sequence[_Rate], alpha: float, shared: int) -> tuple[Estimate, tuple[_Rate, int, int] | None]:
    """The largest difference over all rates with its bounds, and where it stands: rate, highest and lowest group.

    The lower bound is the largest of all pairs' lower bounds, of level alpha / `shared` each; the upper one the largest
    of their upper bounds, of level alpha each, among which is that of the pair that truly differs most."""
    from scipy import stats

    nan = float("nan")
    value, low, high, where = nan, nan, nan, None
    for rate in rates:
        for a in np.flatnonzero(rate.judged):
            for b in np.flatnonzero(rate.judged):
                between = float(rate.rates[a] - rate.rates[b])
                if a == b or between < 0:
                    continue
                if not value >= between:
                    value, where = between, (rate, int(a), int(b))
                freedom = min(rate.n_blocks[a], rate.n_blocks[b]) - 1
                error = float(rate.se[a, b])
                low = np.fmax(low, between - stats.t.isf(alpha / shared, freedom) * error)
                high = np.fmax(high, between + stats.t.isf(alpha, freedom) * error)
    n = 0 if where is None else int(where[0].n.sum())
    blocks = 0 if where is None else int(where[0].n_blocks.max())
    return Estimate(value, float(np.fmax(low, 0.0)) if np.isfinite(low) else nan, float(high), n, blocks), where


def _table(case: Case, groups: Partition, found: Sequence[_Rate]) -> list[dict[str, Any]]:
    """One row per class and group: how many rows, and each rate with the rows that it concerns."""
    rows = []
    for place in sorted({rate.place for rate in found}):
        for i, label in enumerate(groups.labels):
            row: dict[str, Any] = {"group": f"{groups.column} {label}", "n": int(groups.rows(i).sum())}
            if case.task != "binary":
                row["class"] = str(case.classes[place])
            for rate in (r for r in found if r.place == place):
                row[rate.name] = {"rate": plain(rate.rates[i]), "n": int(rate.n[i]), "judged": bool(rate.judged[i])}
            rows.append(row)
    return rows
