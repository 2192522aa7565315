"""One look at a canary: each metric's evidence, interval and verdict, and what they add up to.

Every metric is a loss per key, canary minus stable: positive is worse. Two gamblers play per metric:

* worse: bets that the canary is worse than tolerated. At (number of metrics) / SPENT alpha the canary fails.
* fine: bets that it is better than worse by the margin. At 1 / SPENT alpha the metric passes; all must pass.

So P(FAIL at any look | no metric worse than tolerated) <= alpha, shared over the metrics, and
P(PASS at any look | some metric worse by its margin) <= alpha, each metric at full alpha: the one that is worse would
have to pass as well. Why the gamblers keep that however often one looks stands in `evidence`.

**Baking.** Once the version is stable, the one before it sees copies of its rows, so that keys are heard that the trial
did not hear: the same losses, with the roles exchanged. What the trial has lost on *worse* would take as long to be won
back, and a version that turns bad late must be found out soon. So where a plan bakes, the gambler on *worse* plays with
1 - `KEPT` of the coin from the start, and puts the rest on the keys that are first heard while the version bakes:

    M = (1 - KEPT) E(all keys) + KEPT E(keys first heard while it bakes),     M = (1 - KEPT) E(all keys) + KEPT before.

P(FAIL at any look of ramp and baking | no metric worse) <= alpha still. Proof: given all keys before it, a key that is
heard for the first time has a mean of at most what is tolerated, so E(all keys) is a nonnegative supermartingale. The
promotion is a stopping time, for it is decided by keys that were heard before. E(keys while it bakes) is 1 until then,
and multiplies by factors of conditional mean at most 1 afterwards (whether a key counts as heard while baking depends
on when its row was answered, not on what came of it): a nonnegative supermartingale too. A convex combination of
supermartingales that begin at 1 is one that begins at 1, and Ville's inequality bounds it; alpha is shared over metrics
as before. (Ramdas, Grünwald, Vovk and Shafer, "Game-theoretic statistics and safe anytime-valid inference", Statistical
Science 2023, on mixtures and on bets that begin late; Ville 1939.) A key that the trial has heard is not heard again:
given what it brought then, its mean is another, and E would be none. For fewer than 20 keys the second purse is counted
as 1 at most, which is below M.

The unit is the key, not the row: rows of a key are alike, and tests on rows reject equal canaries far too often. A key
enters once per metric. Compared on the same row, with the mean over the rows of the first look at which the metric
knew of the key; compared by assignment, with the first row whose outcome was known. Rows of later looks never change
what a key brought, because a bet on it has been settled.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mlops_ray.config import analyses as plans
from mlops_ray.rollout.evidence import Differences, Evidence, by_assignment, evidence, lower_bound, split, within
from mlops_ray.rollout.outcomes import Answers, Outcomes
from mlops_ray.training.gates.verdict import Verdict, combine

Floats = NDArray[np.float64]

SPENT = 0.8
"""Part of alpha that the gamblers may use up. The rest is for what their proof leaves out: a row that is committed
after the look that it belonged to may change the mean that its key has brought already."""
KEPT = 0.2
"""Part of the coin on "worse" that waits for the keys that are first heard while the version bakes. For it the trial's
bar is a quarter higher (0.22 in logarithms, of some 3), baking's own five times."""
LEAST = 20
"""Keys below which nothing is judged: one bad moment of a cold replica is no property of a version."""
_MOST = 1e9  # evidence beyond is written as this: JSON knows no infinity
MISMATCH = 0.01
"""How often outcomes that came of both versions as their shares say are taken for a mismatch."""
_WHERE_SAID = ("arm", "evidence_better", "better", "lopsided", "n_baking", "baking")
_LABELLED = (plans.LogLoss, plans.Brier, plans.Accuracy, plans.AbsoluteError)


@dataclass(frozen=True)
class Metric:
    """Evidence on one metric at one look. What analyses of earlier releases did not record is None.

    estimate: mean over keys of canary minus stable; positive is worse. low, high: a confidence sequence of it, which
    misses the truth at any look with probability at most alpha. largest_key: share of the rows that the heaviest key
    sent. evidence_worse, evidence_fine: the gamblers' capital. needed: how many more keys decide, if it goes on so.
    Of `mode: ab` alone: the arm; evidence_better: capital of the gambler on "better than stable" in the objective,
    and whether that is proven. lopsided: outcomes are missing more often from one version, so nothing is said.
    n_baking, baking: keys that were first heard while the version baked, and the mean difference over them; None
    before.
    """

    name: str
    margin: float
    n_keys: int
    estimate: float
    evidence_worse: float
    evidence_fine: float
    verdict: Verdict
    n_rows: int | None = None
    largest_key: float | None = None
    low: float | None = None
    high: float | None = None
    needed: int | None = None
    arm: int | None = None
    evidence_better: float | None = None
    better: bool | None = None
    lopsided: bool | None = None
    n_baking: int | None = None
    baking: float | None = None

    def in_words(self) -> str:
        """One line for people."""
        sequence = "" if self.low is None or self.high is None else f" in [{self.low:+.4f}, {self.high:+.4f}]"
        of_arm = "" if self.arm is None else f"v{self.arm} "
        better = "" if self.evidence_better is None else f", better {self.evidence_better:.3g}"
        baking = "" if self.baking is None else f", {self.baking:+.4f} over the {self.n_baking} heard while baking"
        why = " (outcomes are missing more often from one version)" if self.lopsided else ""
        keys = f"{self.n_keys} keys{baking} (margin {self.margin:g})"
        says = f"{self.verdict.value}{why}"
        return (
            f"{of_arm}{self.name}: {self.estimate:+.4f}{sequence} over {keys}, "
            f"evidence worse {self.evidence_worse:.3g}, fine {self.evidence_fine:.3g}{better}: {says}"
        )


@dataclass(frozen=True)
class OfArm:
    """What a look says of one arm. won: it is better than stable in the objective, and fine in all else.

    gain: what stable's objective is above its own, estimated."""

    version: int
    verdict: Verdict
    won: bool
    gain: float
    n_requests: int
    exhausted: bool


@dataclass(frozen=True)
class Analysis:
    """One look: the verdict over all metrics, and each metric; of `mode: ab` those of each arm.

    n_requests: rows that were the canary's. exhausted: `max_requests` of them were seen, and more will tell nothing.
    """

    verdict: Verdict
    metrics: tuple[Metric, ...]
    n_requests: int | None = None
    exhausted: bool = False
    arms: tuple[OfArm, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """As JSON for the ledger: exactly what was seen."""
        metrics = [
            {name: value for name, value in vars(m).items() if value is not None or name not in _WHERE_SAID}
            | {"verdict": m.verdict.value}
            for m in self.metrics
        ]
        body = vars(self) | {"verdict": self.verdict.value, "metrics": metrics}
        body["arms"] = [vars(arm) | {"verdict": arm.verdict.value} for arm in self.arms]
        return {name: value for name, value in body.items() if name != "arms" or value}

    @classmethod
    def from_dict(cls, body: Mapping[str, Any]) -> Analysis:
        """What `to_dict` wrote, of this release or the last."""
        metrics = tuple(Metric(**{**m, "verdict": Verdict(m["verdict"])}) for m in body["metrics"])
        arms = tuple(OfArm(**{**arm, "verdict": Verdict(arm["verdict"])}) for arm in body.get("arms", ()))
        return cls(**{**body, "verdict": Verdict(body["verdict"]), "metrics": metrics, "arms": arms})


def analyse(
    analyses: Sequence[plans.Analysis],
    outcomes: Outcomes,
    *,
    alpha: float,
    min_keys: int,
    min_requests: int = 0,
    max_requests: int | None = None,
    has_objective: bool = False,
    kept: float = 0.0,
) -> Analysis:
    """Verdict on the canary from all its outcomes so far.

    FAIL when any metric is proven worse, over 20 keys at least; PASS when every metric is proven no worse than its
    margin, over `min_keys` keys at least, and the canary was asked `min_requests` rows; else INCONCLUSIVE. Rows that
    were assigned after `max_requests` of the canary's are left out.
    Args: has_objective: whether a third gambler bets that the canary is better than stable in the first metric. kept:
        part of the coin on "worse" that is kept for baking, in [0, 1): `KEPT` where the plan bakes.
    """
    seen = outcomes if max_requests is None else outcomes.until(max_requests)
    n = int(seen.asked.sum())
    metrics = tuple(
        judged(
            a.title,
            a.margin,
            sample(a, seen),
            alpha=alpha,
            of=len(analyses),
            min_keys=min_keys,
            waits=n < min_requests,
            is_objective=has_objective and a is analyses[0],
            kept=kept,
        )
        for a in analyses
    )
    return Analysis(combine([m.verdict for m in metrics]), metrics, n, max_requests is not None and n >= max_requests)


@dataclass(frozen=True)
class Sample:
    """What a metric is judged by: one difference per key; the canary is worse above `tolerated`.

    looks: index of the look at which each difference was known, never falling. split: by assignment, of each key
    whether it was the canary's, less the share in force; None for comparisons on the same row. baking: of each key
    whether it was first heard while the version baked; None by assignment, where nothing is heard then.
    """

    differences: Differences
    looks: NDArray[np.int64]
    tolerated: float
    n_rows: int
    largest_key: float
    split: Differences | None = None
    baking: NDArray[np.bool_] | None = None

    @property
    def n_baking(self) -> int:
        """Keys that were first heard while the version baked."""
        return 0 if self.baking is None else int(self.baking.sum())

    @property
    def while_baking(self) -> Differences:
        """What those keys brought."""
        n = len(self.differences)
        return self.differences.at(np.flatnonzero(np.zeros(n, np.bool_) if self.baking is None else self.baking))

    @property
    def is_of_both(self) -> bool:
        """Whether outcomes of both versions are known in number."""
        if self.split is None:
            return True
        n_canary = int((self.split.value > 0).sum())
        return min(n_canary, len(self.split) - n_canary) >= LEAST

    @property
    def is_lopsided(self) -> bool:
        """Whether outcomes are known more often of one version than keys were its: then those that are missing may be
        what the versions differ in, and a comparison of the others tells nothing.

        Two gamblers with half a coin each, on "more often" and on "less often" (Lindon and Malek, NeurIPS 2022)."""
        if self.split is None:
            return False
        held = np.logaddexp(evidence(self.split, 0.0).log_capital, evidence(-self.split, 0.0).log_capital)
        return bool(held - math.log(2) >= -math.log(MISMATCH))


@dataclass(frozen=True)
class Bars:
    """What the gamblers of a metric must hold, as logarithms, and over how many keys."""

    worse: float
    fine: float
    min_keys: int

    @classmethod
    def of(cls, metrics: int, *, alpha: float, min_keys: int) -> Bars:
        """Args: metrics: how many share `alpha`."""
        return cls(math.log(metrics / (SPENT * alpha)), math.log(1 / (SPENT * alpha)), max(min_keys, LEAST))


def judged(
    title: str,
    margin: float | None,
    sample: Sample | None,
    *,
    alpha: float,
    of: int,
    min_keys: int,
    waits: bool,
    is_objective: bool = False,
    kept: float = 0.0,
) -> Metric:
    """A metric's verdict. Args: of: metrics that share `alpha`; waits: nothing passes yet; kept: see `analyse`."""
    if sample is None or margin is None or not len(sample.differences):
        return Metric(title, margin or 0.0, 0, 0.0, 1.0, 1.0, Verdict.INCONCLUSIVE, 0, 0.0)
    x, bars = sample.differences, Bars.of(of, alpha=alpha, min_keys=min_keys)
    worse, fine = Purses.of(sample, kept), evidence(-x, -margin)
    better = evidence(-x, 0.0) if is_objective else None
    lopsided = sample.is_lopsided
    comparable = sample.is_of_both and not lopsided
    verdict, enough = Verdict.INCONCLUSIVE, comparable and len(x) >= bars.min_keys and not waits
    if worse.log_capital >= bars.worse and comparable and len(x) >= LEAST:
        verdict = Verdict.FAIL
    elif fine.log_capital >= bars.fine and enough:
        verdict = Verdict.PASS
    has_won = better is not None and better.log_capital >= bars.fine and enough
    # In the objective to be fine is not enough.
    decided = verdict is not Verdict.INCONCLUSIVE if better is None else has_won or verdict is Verdict.FAIL
    to_come = [n for n in (worse.needed(bars.worse), (better or fine).needed(bars.fine)) if n is not None]
    needed = None
    if decided:
        needed = 0
    elif to_come and not lopsided:
        needed = max(min(to_come), bars.min_keys - len(x), 0)
    return Metric(
        name=title,
        margin=margin,
        n_keys=len(x),
        estimate=float(x.value.mean()),
        evidence_worse=shown(worse.log_capital),
        evidence_fine=shown(fine.log_capital),
        verdict=verdict,
        n_rows=sample.n_rows,
        largest_key=sample.largest_key,
        low=lower_bound(x, sample.tolerated, alpha / 2),
        high=-lower_bound(-x, -margin, alpha / 2),
        needed=needed,
        evidence_better=None if better is None else shown(better.log_capital),
        better=None if better is None else has_won,
        lopsided=lopsided or None,
        n_baking=sample.n_baking or None,
        baking=float(sample.while_baking.value.mean()) if sample.n_baking else None,
    )


@dataclass(frozen=True)
class Purses:
    """What the gambler on "worse" holds: of all keys, and of those that were first heard while the version baked.

    kept: part of the coin that was kept for these."""

    all: Evidence
    baking: Evidence
    kept: float

    @classmethod
    def of(cls, sample: Sample, kept: float) -> Purses:
        """Args: kept: in [0, 1)."""
        found = evidence(sample.differences, sample.tolerated)
        if not kept:
            return cls(found, Evidence(0, ()), 0.0)
        return cls(found, evidence(sample.while_baking, sample.tolerated), kept)

    @property
    def log_capital(self) -> float:
        """Logarithm of both together."""
        return self.all.log_capital if not self.kept else float(np.logaddexp(self._of_all, self._of_baking))

    def needed(self, log_capital: float) -> int | None:
        """See `Evidence.needed`, of the purse that gets there first."""
        waits = [self.all.needed(log_capital - math.log1p(-self.kept))]
        if self.kept:
            waits.append(self.baking.needed(log_capital - math.log(self.kept)))
        return min((n for n in waits if n is not None), default=None)

    @property
    def _of_all(self) -> float:
        return math.log1p(-self.kept) + self.all.log_capital

    @property
    def _of_baking(self) -> float:
        held = self.baking.log_capital
        return math.log(self.kept) + (held if self.baking.n >= LEAST else min(held, 0.0))


def shown(log_capital: float) -> float:
    """Capital as it is written down."""
    return math.exp(min(log_capital, math.log(_MOST)))


# What each metric looks at --------------------------------------------------------------------------------------------


def sample(analysis: plans.Analysis, outcomes: Outcomes) -> Sample | None:
    """The differences that an analysis is about; None where the project lacks what it takes to form them."""
    rows = of_slice(analysis.where, outcomes)
    if isinstance(analysis, plans.Business):
        return _business(analysis, rows)
    if isinstance(analysis, _LABELLED):
        return _labelled(analysis, rows)
    mine = rows.at(rows.canary)
    failed = mine.failed
    if isinstance(analysis, plans.Failures):
        return _paired(mine, mine.seen, failed.astype(np.float64), 0.0, 1.0, analysis.margin)
    if isinstance(analysis, plans.Disagreement):
        # Where the canary failed the client got stable's answer, which agrees with itself. While it bakes, the version
        # before it need not have said anything.
        other = (~failed & (mine.candidate.predicted != mine.stable.predicted)).astype(np.float64)
        known = ~np.isnan(mine.stable.predicted)
        return _paired(mine.at(known), mine.seen[known], other[known], 0.0, 1.0, analysis.margin)
    # A row that the canary did not answer was not answered within the limit. Its replica shares its machine with
    # others than stable's does, so it is called worse above the margin only.
    limit = 1000 * analysis.above_ms
    slow = (failed | (mine.candidate.us > limit)).astype(np.float64) - (mine.stable.us > limit)
    timed = ~np.isnan(mine.stable.us) & (failed | ~np.isnan(mine.candidate.us))
    return _paired(mine.at(timed), mine.seen[timed], slow[timed], -1.0, 1.0, analysis.margin)


def _labelled(analysis: plans.Analysis, rows: Outcomes) -> Sample | None:
    """Loss of labelled rows: paired, or of what clients got, by assignment."""
    if isinstance(analysis, plans.AbsoluteError):
        if analysis.bound is None:
            return None
        bound = analysis.bound
    else:
        bound = analysis.bound if isinstance(analysis, plans.LogLoss) else 1.0
    stable, canary = _loss(analysis, rows, rows.stable), _loss(analysis, rows, rows.candidate)
    served = np.where(rows.canary & ~rows.failed, canary, stable)
    if rows.paired:
        # Where the canary failed the client got stable's answer: no difference in loss, but one failure.
        known = rows.canary & ~np.isnan(stable)
        return _paired(rows.at(known), rows.labelled[known], (served - stable)[known], -bound, bound, 0.0)
    low = -math.log1p(-analysis.clip) if isinstance(analysis, plans.LogLoss) else 0.0
    return assigned(rows, rows.labelled, served, low, low + bound, sign=1, centre=_expected(analysis, rows))


def _expected(analysis: plans.Analysis, rows: Outcomes) -> Floats | None:
    """About what stable expected to lose on each row before it was assigned: it takes away noise (see `evidence`).

    None for losses of 0 and 1, whose test by counts is exact, and where nothing is known beforehand."""
    # A log that was recorded elsewhere may say of stable only what clients got: nothing of the canary's rows.
    if rows.canary.any() and np.isnan(rows.stable.squares[rows.canary]).all():
        return None
    if isinstance(analysis, plans.Brier):
        return (1 - rows.stable.squares) / 2
    return -np.log(rows.stable.squares) if isinstance(analysis, plans.LogLoss) else None


def _loss(analysis: plans.Analysis, rows: Outcomes, answers: Answers) -> Floats:
    """Loss of each row's answer, shape (n,); NaN without a label."""
    if isinstance(analysis, plans.LogLoss):
        return np.asarray(-np.log(np.clip(answers.of_label, analysis.clip, 1 - analysis.clip)))
    if isinstance(analysis, plans.Brier):
        return np.asarray((answers.squares - 2 * answers.of_label + 1) / 2)
    wrong = np.abs(answers.predicted - rows.label)
    if isinstance(analysis, plans.AbsoluteError):
        return np.asarray(np.minimum(wrong, analysis.bound or 0.0))
    return np.where(np.isnan(wrong), np.nan, (wrong != 0).astype(np.float64))


def _business(analysis: plans.Business, rows: Outcomes) -> Sample | None:
    if (told := rows.feedback.get(analysis.name)) is None:
        return None
    value = np.clip(told.value, analysis.low, analysis.high)
    sign = 1 if analysis.better == "lower" else -1
    return assigned(rows, told.look, value, analysis.low, analysis.high, sign=sign)


def of_slice(where: plans.Where | None, outcomes: Outcomes) -> Outcomes:
    """The rows that an analysis looks at."""
    return outcomes if where is None else outcomes.at(_holds(where, outcomes))


def _holds(where: plans.Where, rows: Outcomes) -> NDArray[np.bool_]:
    if (column := rows.columns.get(where.column)) is None:
        return np.zeros(len(rows.keys), np.bool_)
    if column.dtype == object:
        return np.isin(column.astype(str), [v if isinstance(v, str) else f"{v:g}" for v in where.values])
    # The log keeps numbers in single precision, as models take them.
    wanted = [float(v) for v in where.values if not isinstance(v, str)]
    return np.isin(column.astype(np.float32), np.array(wanted, np.float32))


# One value per key ----------------------------------------------------------------------------------------------------


def _paired(
    rows: Outcomes, looks: NDArray[np.int64], values: Floats, low: float, high: float, tolerated: float
) -> Sample:
    return Sample(
        within(per_key(rows.keys, looks, values), low, high),
        per_key(rows.keys, looks, looks.astype(np.float64)).astype(np.int64),
        tolerated,
        len(rows.keys),
        _largest_key(rows.keys),
        baking=None if rows.bakes is None else per_key(rows.keys, looks, rows.bakes.astype(np.float64)) == 1.0,
    )


def assigned(
    rows: Outcomes,
    looks: NDArray[np.int64],
    values: Floats,
    low: float,
    high: float,
    *,
    sign: int = 1,
    centre: Floats | None = None,
    tolerated: float = 0.0,
) -> Sample:
    """Keys of the canary against keys of stable.

    Args: values in [low, high], NaN where not known; sign: -1 where higher is better; centre: see `by_assignment`.
    """
    known = np.flatnonzero(~np.isnan(values) & ~np.isnan(rows.share))
    keys = rows.keys[known]
    chosen = known[first_rows(keys, looks[known])]
    chosen = chosen[np.argsort(looks[chosen], kind="stable")]
    found = by_assignment(
        values[chosen],
        rows.canary[chosen],
        rows.share[chosen],
        low=low,
        high=high,
        centre=None if centre is None else np.clip(centre[chosen], low, high),
    )
    whose = split(rows.canary[chosen], rows.share[chosen])
    return Sample(found if sign > 0 else -found, looks[chosen], tolerated, len(keys), _largest_key(keys), whose)


def _largest_key(keys: NDArray[Any]) -> float:
    return float(np.unique(keys, return_counts=True)[1].max() / len(keys)) if len(keys) else 0.0


def per_key(keys: NDArray[Any], looks: NDArray[np.int64], values: Floats) -> Floats:
    """One value per key, in the order in which keys were first seen: the mean over the rows of the key's first look.

    Args: all shape (n,). Returns: shape (number of keys,); ties of a look are ordered by key.
    """
    if not len(keys):
        return np.empty(0)
    unique, index = np.unique(keys, return_inverse=True)
    first = np.full(len(unique), np.iinfo(np.int64).max)
    np.minimum.at(first, index, looks)
    counted = looks == first[index]
    sums = np.bincount(index[counted], values[counted], len(unique))
    means = sums / np.bincount(index[counted], minlength=len(unique))
    return np.asarray(means[np.lexsort((unique, first))])


def first_rows(keys: NDArray[Any], looks: NDArray[np.int64]) -> NDArray[np.int64]:
    """Places of each key's first row: of its earliest look, and of that look the one that stands first."""
    order = np.argsort(looks, kind="stable")
    return np.asarray(np.sort(order[np.unique(keys[order], return_index=True)[1]]))
