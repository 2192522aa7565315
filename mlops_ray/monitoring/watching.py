"""The sequential detector of the loss: after every mature block, where it stands, and when it calls somebody.

Rows are looked at once, in time order, with the labels known `label_horizon_s` after their block's end; a label that
comes later is in windows no more, and not here either. Pure; where it stands is kept by `standing`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

import numpy as np
from scipy import stats

from mlops_ray.config import Monitoring
from mlops_ray.monitoring import budget
from mlops_ray.monitoring.drift import MONTH_S
from mlops_ray.monitoring.performance import Block
from mlops_ray.monitoring.sequential import Watch, run_length, update_blocks
from mlops_ray.monitoring.standing import Standing
from mlops_ray.training.artifact.model import Reference
from mlops_ray.training.calibration import Calibration
from mlops_ray.training.evaluation.intervals import Floats
from mlops_ray.training.target import CLIP

# A loss counts as so many times the baseline at most: of a probability that is right on average, few rows lie beyond.
_BOUND = 10.0
# Bounds of what the holdout says are passed by the truth with this probability, each.
_DOUBT = 0.1


@dataclass(frozen=True)
class Scale:
    """What to look for, and the loss that counts as 1; rows beyond are clipped to it."""

    watch: Watch
    bound: float

    @property
    def baseline(self) -> float:
        """Highest mean loss that is still well."""
        return self.watch.baseline * self.bound


@dataclass(frozen=True)
class Alarm:
    """The loss has risen: since about `began` (seconds since the epoch), and `why` in words."""

    began: float
    why: str


def scale(plan: Monitoring, reference: Reference) -> Scale | str:
    """The scale of a version's losses, from its holdout; or in words why there is none."""
    if reference.calibration is None:
        return "uncalibrated: the version was trained by a release that kept no calibration"
    return measured(plan, reference.holdout, row_losses(reference.calibration))


def measured(plan: Monitoring, blocks: Sequence[Block], some: Floats) -> Scale | str:
    """The scale of losses by blocks of a holdout; or in words why there is none. Args: some: losses of some of its
    rows.

    The baseline is the upper end of the holdout's mean, by Student's t of its blocks; the design effect the upper end
    of the variance of block sums over that of as many independent rows, whatever runs of blocks show most of it.
    """
    needed = max(2, plan.min_blocks)
    if len(blocks) < needed:
        return f"uncalibrated: the holdout has {len(blocks)} blocks; {needed} are needed"
    rows, sums = np.array([b[1] for b in blocks], dtype=np.float64), np.array([b[2] for b in blocks])
    mean, n = float(sums.sum() / rows.sum()), len(blocks)
    strayed = sums - mean * rows
    error = np.sqrt((strayed**2).sum() * n / (n - 1)) / rows.sum()
    baseline = mean + float(stats.t.ppf(1 - _DOUBT, n - 1)) * float(error)
    bound = _BOUND * max(baseline, CLIP)
    alone = float(np.minimum(some, bound).var())
    effects = [_effect(strayed, rows, run, alone) for run in _runs(n, needed)]
    length = run_length(budget.share(plan, "losses"), MONTH_S / plan.block_s)
    return Scale(Watch(1 / _BOUND, length, max(1.0, *effects)), bound)


def row_losses(known: Calibration) -> Floats:
    """Losses of the holdout's sample, shape (n,): squared errors, or minus the logarithm (nats) of what the rows' cells
    say of their own class."""
    kept = known.sample
    if known.task == "regression":
        return np.asarray(kept.outcome**2)
    rates = known.cells.rates[0]
    if known.task == "binary":
        of_one = rates[kept.cells[:, 0]]
        said = np.where(kept.outcome == 1, of_one, 1 - of_one)
    else:
        said = rates[kept.cells[np.arange(len(kept.outcome)), kept.outcome.astype(np.int64)]]
    return np.asarray(-np.log(np.clip(said, CLIP, 1 - CLIP)))


def look(
    plan: Monitoring, known: Scale | str, before: Standing | None, version: int, losses: Floats, end: float
) -> tuple[Standing, Alarm | None]:
    """Where the detector stands after the block that ends at `end`, and whether it calls somebody.

    Args: before: None, or of whatever version: of another one, the detector begins anew; losses: of the block's
        labelled rows, shape (n,), in time order. After an alarm it begins anew too, so a change that stays alarms
        again. Below `min_rows` rows it is warming up, and an alarm waits for them.
    """
    if before is None or before.version != version:
        before = Standing(version, end - plan.block_s)
    if isinstance(known, str):
        return Standing(version, before.since, before.n_rows + len(losses), before.state, known), None
    state = update_blocks(known.watch, before.state, [np.minimum(losses / known.bound, 1.0)])
    n_rows = before.n_rows + len(losses)
    if n_rows < plan.min_rows:
        why = f"warming up: {n_rows} labelled rows of {plan.min_rows}"
        return Standing(version, before.since, n_rows, state, why), None
    calm = f"no evidence of a loss above {known.baseline:.4f} that lasts, in {n_rows} labelled rows"
    if state.alarm is None:
        return Standing(version, before.since, n_rows, state, calm), None
    began = end - (state.n - state.began + 1) * plan.block_s
    why = (
        f"the loss has risen since about {datetime.fromtimestamp(began, UTC):%Y-%m-%d %H:%M} UTC: above the "
        f"{known.baseline:.4f} that the holdout promised, by a detector that looks after every block"
    )
    return Standing(version, end, why="begun anew after an alarm"), Alarm(began, why)


def _runs(n: int, needed: int) -> list[int]:
    """Lengths of runs of blocks of which there are enough: 1, 2, 4 ..."""
    return [2**k for k in range(n.bit_length()) if n // 2**k >= needed]


def _effect(strayed: Floats, rows: Floats, run: int, alone: float) -> float:
    """Variance of the sums of runs of blocks over that of independent rows: the upper end of its interval."""
    n = len(strayed) // run
    sums = strayed[-n * run :].reshape(n, run).sum(axis=1)
    found = (sums**2).sum() / max(rows[-n * run :].sum() * alone, 1e-300)
    return float(found * n / stats.chi2.ppf(_DOUBT, n - 1))
