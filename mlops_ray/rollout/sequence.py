"""A recorded canary over time: each metric's confidence sequence, when it was decided, and whether keys were assigned
as the log says.

Every key is heard once, and a mixture of fixed bets only adds up. So one pass over the keys gives the evidence of every
look there could have been, and what a look says is exactly what `analysis` would have said then.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mlops_ray.config import LogPlan
from mlops_ray.config.recorded import compared_on_the_same_row
from mlops_ray.rollout.analysis import LEAST, MISMATCH, Bars, Metric, Sample, first_rows, judged, shown
from mlops_ray.rollout.evidence import Differences, evidence_at, log_capitals, lower_bounds, split
from mlops_ray.rollout.outcomes import Outcomes
from mlops_ray.rollout.recorded import Recorded, samples
from mlops_ray.training.gates.verdict import Verdict, combine

LOOKS = 60
"""About so many points a sequence is drawn with."""


@dataclass(frozen=True)
class Look:
    """What was known of a metric at a time: see `analysis.Metric`."""

    at: float
    n_keys: int
    estimate: float
    low: float
    high: float
    evidence_worse: float
    evidence_fine: float


@dataclass(frozen=True)
class Course:
    """A metric over time. decided: when the verdict was reached, held from then on; None while it is inconclusive.

    What was proven worse stays so, whatever came later: a rollout would have ended there.
    """

    metric: Metric
    same_row: bool
    looks: tuple[Look, ...]
    decided: float | None


@dataclass(frozen=True)
class Assignment:
    """Whether the canary got the share of keys that the log says (a sample ratio mismatch, if not).

    stated: mean over keys of the share in force at each key's first row. realised: share of keys whose first row was
    the canary's. evidence: most that a gambler on "another share" ever held. decided: when it was a mismatch.
    """

    n_keys: int
    stated: float
    realised: float
    evidence: float
    decided: float | None


@dataclass(frozen=True)
class Report:
    """All that a recorded log says. decided: when the verdict was reached. assignment: None where it cannot be tested.
    bars: what each metric's gamblers must hold."""

    verdict: Verdict
    decided: float | None
    courses: tuple[Course, ...]
    assignment: Assignment | None
    bars: Bars
    n_requests: int
    warnings: tuple[str, ...]

    def in_words(self) -> str:
        """Why the verdict is what it is, in one sentence."""
        metrics = [c.metric for c in self.courses]
        if self.verdict is Verdict.FAIL:
            return f"Proven worse: {', '.join(m.name for m in metrics if m.verdict is Verdict.FAIL)}."
        if self.verdict is Verdict.PASS:
            return "No metric is worse by its margin."
        waits = [f"{m.name} ({_to_go(m)})" for m in metrics if m.verdict is Verdict.INCONCLUSIVE]
        return (
            f"Not proven yet: {', '.join(waits)}."
            if waits
            else "The shares that were realised must be explained first."
        )

    def to_dict(self) -> dict[str, Any]:
        """As JSON."""
        courses = [
            {**asdict(c.metric), "verdict": c.metric.verdict.value, "same_row": c.same_row, "decided": c.decided}
            | {"looks": [asdict(look) for look in c.looks]}
            for c in self.courses
        ]
        head: dict[str, Any] = {"verdict": self.verdict.value, "decided": self.decided, "says": self.in_words()}
        bars = {name: round(math.exp(bar), 9) for name, bar in (("worse", self.bars.worse), ("fine", self.bars.fine))}
        head |= {"n_requests": self.n_requests, "bars": bars}
        assignment = None if self.assignment is None else asdict(self.assignment) | {"bar": 1 / MISMATCH}
        return head | {"warnings": list(self.warnings), "assignment": assignment, "metrics": courses}


def _to_go(metric: Metric) -> str:
    if not metric.n_keys:
        return "no outcomes"
    if metric.needed is None:
        return "no number of keys decides it at the present estimate"
    return f"about {metric.needed:,} more keys" if metric.needed else "more of the canary's rows"


def report(plan: LogPlan, recorded: Recorded) -> Report:
    """The analysis of a checked log at its end, and at the looks before it."""
    seen = recorded.outcomes if plan.max_requests is None else recorded.outcomes.until(plan.max_requests)
    asked = np.sort(seen.seen[seen.canary])
    courses = tuple(
        course(one.title, one.margin, found, plan, asked, same_row=compared_on_the_same_row(plan, one))
        for one, found in zip(plan.analyses, samples(plan, seen), strict=True)
    )
    verdict, tested = combine([c.metric.verdict for c in courses]), assignment(seen, plan.look_s)
    warnings = list(recorded.warnings)
    if recorded.both_sides:
        warnings.append(
            f"{recorded.both_sides:,} keys were in both variants while one share was in force: assignment is not "
            "sticky by this key, and each counts where its first row was"
        )
    if tested is not None and tested.decided is not None:
        warnings.append(
            f"the canary got {tested.realised:.2%} of {tested.n_keys:,} keys where the shares say {tested.stated:.2%} "
            "(sample ratio mismatch): rows are missing, or keys were assigned otherwise. What is compared by "
            "assignment is suspect, and nothing passes until this is explained"
        )
        verdict = Verdict.INCONCLUSIVE if verdict is Verdict.PASS else verdict
    warnings += [
        f"{c.metric.name}: outcomes are known more often of one variant than keys were its, so what is missing may be "
        "what they differ in; nothing is said of it until that is explained"
        for c in courses
        if c.metric.lopsided
    ]
    if len(seen.keys) < len(recorded.outcomes.keys):
        left = len(recorded.outcomes.keys) - len(seen.keys)
        warnings.append(f"{left:,} rows after the canary's {plan.max_requests:,}th were not looked at (max_requests)")
    bars = Bars.of(len(plan.analyses), alpha=plan.alpha, min_keys=plan.min_keys)
    return Report(verdict, _decided(verdict, courses), courses, tested, bars, len(asked), tuple(warnings))


def _decided(verdict: Verdict, courses: Sequence[Course]) -> float | None:
    times = [c.decided for c in courses if c.decided is not None and c.metric.verdict is verdict]
    if not times or verdict is Verdict.INCONCLUSIVE:
        return None
    return min(times) if verdict is Verdict.FAIL else max(times)


def course(
    title: str, margin: float | None, sample: Sample | None, plan: LogPlan, asked: NDArray[np.int64], *, same_row: bool
) -> Course:
    """A metric over time. Args: asked: looks of the canary's rows, rising."""
    of, waits = len(plan.analyses), len(asked) < plan.min_requests
    now = judged(title, margin, sample, alpha=plan.alpha, of=of, min_keys=plan.min_keys, waits=waits)
    if sample is None or margin is None or not now.n_keys:
        return Course(now, same_row, (), None)
    x, bars = sample.differences, Bars.of(of, alpha=plan.alpha, min_keys=plan.min_keys)
    looks, ends = _ends(sample.looks)
    worse, fine = log_capitals(x, sample.tolerated, ends), log_capitals(-x, -margin, ends)
    failed = (worse >= bars.worse) & (ends >= LEAST)
    asked_by_then = np.searchsorted(asked, looks, side="right")
    passed = (fine >= bars.fine) & (ends >= bars.min_keys) & (asked_by_then >= plan.min_requests) & ~failed
    reached = None
    if now.lopsided or not sample.is_of_both:
        failed[:] = False
    if failed.any():
        now, reached = replace(now, verdict=Verdict.FAIL, needed=0), int(failed.argmax())
    elif now.verdict is Verdict.PASS:
        reached = int(np.flatnonzero(~passed)[-1]) + 1 if not passed.all() else 0
        reached = min(reached, len(looks) - 1)
    drawn = _drawn(looks, reached)
    points = tuple(_points(x, sample.tolerated, margin, plan.alpha, looks[drawn] * plan.look_s, ends[drawn]))
    return Course(now, same_row, points, None if reached is None else float(looks[reached] * plan.look_s))


def _ends(looks: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Distinct looks, and how many keys each knew of."""
    last = np.append(np.flatnonzero(np.diff(looks)), len(looks) - 1)
    return looks[last], last + 1


def _drawn(looks: NDArray[np.int64], reached: int | None) -> NDArray[np.int64]:
    """Places of some `LOOKS` looks, even in time; the last, and the one that decided, are among them."""
    even = np.searchsorted(looks, np.linspace(looks[0], looks[-1], LOOKS))
    return np.unique(np.append(even, [len(looks) - 1] if reached is None else [len(looks) - 1, reached]))


def _points(
    x: Differences, tolerated: float, margin: float, alpha: float, times: Any, ends: NDArray[np.int64]
) -> Sequence[Look]:
    upto = ends.tolist()
    worse, fine = evidence_at(x, tolerated, upto), evidence_at(-x, -margin, upto)
    low, high = lower_bounds(x, tolerated, alpha / 2, upto), -lower_bounds(-x, -margin, alpha / 2, upto)
    means = np.cumsum(x.value)[ends - 1] / ends
    return [
        Look(float(at), n, float(mean) + 0.0, float(a), float(b), shown(w.log_capital), shown(f.log_capital))
        for at, n, mean, a, b, w, f in zip(times, upto, means, low, high, worse, fine, strict=True)
    ]


def assignment(outcomes: Outcomes, look_s: float) -> Assignment | None:
    """Whether each key's first row is the canary's with the probability that was in force.

    Two gamblers with half a coin each, on "more often" and on "less often": together they ever hold 1 / `MISMATCH` with
    probability at most `MISMATCH` where the keys were assigned as stated, through all steps of a ramp. None where a
    variant has no rows at all: what it was sent stands in another log.
    Source: Lindon and Malek, "Anytime-valid inference for multinomial count data" (NeurIPS 2022), whose first example
    this is; on what mismatches mean, Fabijan et al., "Diagnosing sample ratio mismatch" (KDD 2019).
    """
    first = first_rows(outcomes.keys, outcomes.seen)
    first = first[~np.isnan(outcomes.share[first])]
    first = first[np.argsort(outcomes.seen[first], kind="stable")]
    if not len(first) or outcomes.canary.all() or not outcomes.canary.any():
        return None
    canary, share = outcomes.canary[first], outcomes.share[first]
    looks, ends = _ends(outcomes.seen[first])
    x = split(canary, share)
    held = np.logaddexp(log_capitals(x, 0.0, ends), log_capitals(-x, 0.0, ends)) - np.log(2)
    off = held >= -np.log(MISMATCH)
    decided = float(looks[off.argmax()] * look_s) if off.any() else None
    return Assignment(len(first), float(share.mean()), float(canary.mean()), shown(float(held.max())), decided)
