"""What a closed window says: drift of its inputs, the quality to expect of it, and the realised one once its labels
have had time to come. Pure.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from mlops_ray.config import Monitoring, Task
from mlops_ray.data.profile import Profile
from mlops_ray.monitoring import budget, drift, performance
from mlops_ray.monitoring.against import against
from mlops_ray.monitoring.cause import cause
from mlops_ray.monitoring.flight import in_flight
from mlops_ray.monitoring.heeded import IGNORED
from mlops_ray.training.artifact.model import Reference

LOSS = {"binary": "log_loss", "multiclass": "log_loss", "regression": "mse"}
"""What the limit of realised quality is about, by task."""
_SAID = {"log_loss": "log-loss", "mse": "mean squared error"}
Trigger = Literal["drift", "performance", "estimated_performance"]
ESTIMATED: Trigger = "estimated_performance"


@dataclass(frozen=True)
class Judgement:
    """One window judged for one trigger. `alarm` is False whenever data or calibration is missing."""

    trigger: Trigger
    alarm: bool
    why: str
    detail: dict[str, Any]


def judge_drift(
    plan: Monitoring,
    reference: Reference,
    window: Profile,
    *,
    start: float,
    end: float,
    own: Profile | None = None,
    previous: Profile | None = None,
    first: bool = False,
    change: Callable[[str], float] | None = None,
) -> Judgement:
    """Inputs of the window [start, end), and the scores of the stable version, against that version's reference.

    Args: own: of the rows that the version answered; previous: the window before, which is compared with for people to
        see, and alarms nobody; first: whether no window was held against this version before; change: by how much the
        answers hang on what moved about a feature (`heeded.change`): one that the model ignores alarms nobody.
    """
    detail: dict[str, Any] = {"features": [], "scores": None, "rows": window.n}
    if window.n < plan.min_rows:
        return _silent("drift", f"{window.n} rows; {plan.min_rows} are needed", detail)
    held = against(plan, reference, start, end)
    detail["in_flight"] = in_flight(reference, held.tiling, window, first=first)
    limits = held.thresholds.limits
    if limits is None:
        return _silent("drift", f"uncalibrated: {held.thresholds.why}", detail)
    drifts = drift.compare(held.total, window, limits)
    detail["features"] = [vars(d) for d in drifts]
    if previous is not None and previous.n >= plan.min_rows:
        detail["previous"] = {d.feature: d.psi for d in drift.compare(previous, window, limits)}
    if drift.SCORES in limits and own is not None:
        detail["scores"] = {"why": f"warming up: {own.n} rows of the version of {plan.min_rows}"}
        if own.scores.sum() >= plan.min_rows:
            moved = drift.compare_scores(held.total, own, window.n, limits[drift.SCORES])
            detail["scores"] = {"psi": moved.psi, "limit": moved.limit, "why": drift.in_words(moved)}
            drifts = tuple(sorted((*drifts, moved), key=lambda d: d.psi / d.limit, reverse=True))
    alarming = [d for d in drifts if d.alarm]
    if change is not None:
        ignored = [d.feature for d in alarming if d.feature != drift.SCORES and change(d.feature) < IGNORED]
        detail["ignored"] = ignored
        alarming = [d for d in alarming if d.feature not in ignored]
    if not alarming:
        why = "; ".join(drift.in_words(d) for d in drifts[:3])
        if detail.get("ignored"):
            why += f"; the model's answers do not change with {', '.join(detail['ignored'])}"
    else:
        why = "; ".join(_because(d, cause(d.feature, held.total, window)) for d in alarming[:3])
    if held.phase:
        why = f"{why}, against {held.phase} alone"
        detail["phase"] = held.phase
    return Judgement("drift", bool(alarming), why, detail)


def _because(found: drift.Drift, causes: tuple[str, ...]) -> str:
    return f"{drift.in_words(found)} ({', '.join(causes)})" if causes else drift.in_words(found)


def judge_quality(
    plan: Monitoring,
    reference: Reference,
    labels: NDArray[np.float64],
    scores: NDArray[np.float64],
    task: Task = "binary",
    *,
    span_s: float | None = None,
) -> Judgement:
    """Realised quality of stable over a mature cohort. Args: labels: shape (n,), as in `target`, NaN where not known;
    scores: as in `target`; span_s: how long the window was, `window_s` where it is not given."""
    found, metric = performance.quality(labels, scores, task), LOSS[task]
    detail: dict[str, Any] = vars(found) | {"metric": metric, "coverage": found.coverage, "limit": None}
    if found.loss is None or found.n_labelled < plan.min_rows:
        return _silent("performance", f"warming up: {found.n_labelled} labelled rows of {plan.min_rows}", detail)
    limit = _limit(plan, reference, span_s)
    if limit is None:
        return _silent("performance", f"uncalibrated: the holdout has {len(reference.holdout)} blocks", detail)
    why = f"{_SAID[metric]} {found.loss:.4f} against a limit of {limit:.4f} ({found.n_labelled} labelled rows)"
    return Judgement("performance", found.loss > limit, why, detail | {"limit": limit})


def judge_estimate(
    plan: Monitoring,
    task: Task,
    reference: Reference,
    entry: Mapping[str, Any],
    *,
    span_s: float | None = None,
) -> Judgement:
    """A window's estimated loss against the limit of the realised one. Args: entry: as `record.estimated` makes it;
    span_s: as in `judge_quality`.

    The better trusted method speaks, and by as much as it is trusted: half its interval is divided by the trust, and
    alarms when the lower end still lies above the limit. Without a record nothing alarms."""
    name = LOSS[task]
    said = {m: entry[m]["metrics"].get(name) for m in entry["record"]}
    able = [m for m, each in said.items() if each is not None and each["low"] is not None]
    if not able:
        return _silent(ESTIMATED, entry["why"], {"limit": None})
    method = max(able, key=lambda m: entry["record"][m]["trust"])
    trust, each = entry["record"][method]["trust"], said[method]
    if trust <= 0:
        return _silent(ESTIMATED, f"{entry['why']}; no estimate has proved true yet", {"limit": None})
    highest = _limit(plan, reference, span_s)
    if highest is None:
        why = f"{entry['why']}; uncalibrated: the holdout has {len(reference.holdout)} blocks"
        return _silent(ESTIMATED, why, {"limit": None})
    least = each["value"] - (each["value"] - each["low"]) / trust
    why = (
        f"{name} estimated at {each['value']:.4f}, by a trust of {trust:.2f} at least {max(least, 0.0):.4f}, "
        f"against a limit of {highest:.4f}"
    )
    return Judgement(ESTIMATED, least > highest, why, {"limit": highest})


def _limit(plan: Monitoring, reference: Reference, span_s: float | None) -> float | None:
    """Of the realised loss of a window: a longer one strays less, and of longer ones there are fewer a month."""
    span_s = plan.window_s if span_s is None else span_s
    return performance.limit(
        reference.holdout,
        max(1, round(span_s / reference.block_s)),
        drift.level(budget.share(plan, "quality"), span_s),
        min_blocks=plan.min_blocks,
    )


def _silent(trigger: Trigger, why: str, detail: dict[str, Any]) -> Judgement:
    return Judgement(trigger, False, why, detail)
