"""Whether a classifier tells live rows from the holdout's: asked on schedule, and answered when the answer is there.

Some hundred fits take longer than a tick may, so they are carried out elsewhere and looked for at later ticks. Until
the answer is saved its instant stays due: what was lost with a monitor is asked anew.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from mlops_ray.config import Project
from mlops_ray.data.profile import codes
from mlops_ray.monitoring import budget, captured, drift
from mlops_ray.monitoring.brain import Decide
from mlops_ray.monitoring.due import ENTRIES, Due, Kind, told_apart
from mlops_ray.monitoring.multivariate import Told
from mlops_ray.monitoring.sources import JUDGED, TOLD, Sources, stable_of
from mlops_ray.serving.log import tables as log
from mlops_ray.state import Cursor, Store, Tx, VersionRow, WindowRow


@dataclass(frozen=True)
class Asked:
    """What was asked of `stable`'s rows. told: the answer, or None while there is none."""

    due: Due
    stable: VersionRow
    n_rows: int
    told: Callable[[], Told | None]


def pending(store: Store, project: Project, now: float) -> Due | None:
    """What is to be asked next by the decision time `now`, or None."""
    name = project.project
    with store.read() as tx:
        first, cursor = tx.first_block(name), tx.cursor(name, TOLD)
    if first is None or project.monitoring.multivariate_s is None:
        return None
    if cursor.number < 0:
        cursor = store.run(lambda tx: _begun(tx, name))
    found = told_apart(project.monitoring, first=first, told=cursor, now=now)
    return found[0] if found else None


def _begun(tx: Tx, name: str) -> Cursor:
    """What the release before has judged with the windows is not asked again."""
    tx.save_cursor(name, TOLD, Kind.MULTIVARIATE, tx.cursor(name, JUDGED).at)
    return tx.cursor(name, TOLD)


def ask(store: Store, project: Project, sources: Sources, due: Due) -> Asked | None:
    """Ask, which changes nothing yet; None where no version is stable."""
    with store.read() as tx:
        stable = stable_of(tx, project.project)
    if stable is None:
        return None
    plan, reference = project.monitoring, sources.yardstick(stable).reference
    known = reference.calibration
    if known is None:
        why = "uncalibrated: the version was trained by a release that kept no sample of its holdout"
        return Asked(due, stable, 0, lambda: Told(None, None, False, why))
    rows = captured.scored_by(stable.version, sources.rows(due.start, due.end, due.at, inputs=True))
    times = rows["event_time"].cast(pa.int64()).to_numpy() / 1e6
    told = sources.ask(
        known.sample.codes,
        known.sample.block,
        codes(reference.bins, log.inputs(project, rows)),
        np.floor(times / plan.block_s).astype(np.int64),
        alarm_level=drift.level(budget.share(plan, "multivariate"), due.end - due.start),
        min_rows=plan.min_rows,
        rng=np.random.default_rng([project.seed, int(due.end), 3]),
    )
    return Asked(due, stable, len(rows), told)


def conclude(tx: Tx, project: Project, decide: Decide, asked: Asked, told: Told) -> None:
    """Save the answer with what the policy makes of it, once: the cursor tells. An answer about a version that is not
    stable any more is kept, and asks for nothing."""
    due, name, version = asked.due, project.project, asked.stable.version
    if due.at <= tx.cursor(name, TOLD).at:
        return
    tx.save_cursor(name, TOLD, Kind.MULTIVARIATE, due.at)
    where = (name, due.start, due.end, version)
    known = next((w.result for w in tx.windows(name) if (w.project, w.start, w.end, w.version) == where), {})
    entry = {"alarm": told.alarm, "why": told.why, "at": due.at}
    entry |= {"auc": told.auc, "p": told.p, "rows": asked.n_rows}
    result = known | {ENTRIES[Kind.MULTIVARIATE]: entry}
    tx.save_window(WindowRow(*where, result))
    stable = stable_of(tx, name)
    if stable is None or stable.version != version:
        entry["decision"] = f"v{version} is not stable any more"
    else:
        entry["decision"] = decide(tx, project, stable, due.at, result)
    tx.save_window(WindowRow(*where, result))
