"""A mature block of labelled rows shown to the sequential detector, and its alarm to the policy, in one transaction."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from mlops_ray.config import Project
from mlops_ray.monitoring import standing, watching
from mlops_ray.monitoring.brain import Decide
from mlops_ray.monitoring.due import ENTRIES, Due, Kind, is_judged
from mlops_ray.monitoring.performance import row_losses
from mlops_ray.monitoring.sources import JUDGED, Sources, labelled, stable_of
from mlops_ray.state import Store, Tx, VersionRow, WindowRow


@dataclass(frozen=True)
class Looked:
    """One block looked at: where the detector of `stable` stands now, and its alarm, if it raised one."""

    due: Due
    stable: VersionRow
    now: standing.Standing
    alarm: watching.Alarm | None


def look(store: Store, project: Project, sources: Sources, due: Due) -> Looked | None:
    """What the detector makes of the block, which changes nothing yet; None where no version is stable."""
    with store.read() as tx:
        stable, before = stable_of(tx, project.project), standing.read(tx, project.project)
    if stable is None:
        return None
    known = watching.scale(project.monitoring, sources.yardstick(stable).reference)
    losses = np.empty(0)
    if not isinstance(known, str):  # what nobody can judge need not be read
        labels, scores = labelled(project, sources, sources.rows(due.start, due.end, due.at), stable)
        losses = row_losses(labels, scores, project.task)
        losses = losses[~np.isnan(losses)]
    now, alarm = watching.look(project.monitoring, known, before, stable.version, losses, due.end)
    return Looked(due, stable, now, alarm)


def conclude(tx: Tx, project: Project, decide: Decide, looked: Looked) -> None:
    """Save where the detector stands, with what the policy makes of its alarm, once: the cursor tells."""
    due, stable, alarm = looked.due, looked.stable, looked.alarm
    if is_judged(due, tx.cursor(project.project, JUDGED)):
        return
    standing.save(tx, project.project, looked.now)
    tx.save_cursor(project.project, JUDGED, due.kind, due.at)
    if alarm is None:
        return
    where = (project.project, alarm.began, due.end, stable.version)
    known = next((w.result for w in tx.windows(project.project) if (w.project, w.start, w.end, w.version) == where), {})
    entry = {"alarm": True, "why": alarm.why, "at": due.at, "began": alarm.began}
    result = known | {ENTRIES[Kind.SEQUENTIAL]: entry}
    tx.save_window(WindowRow(*where, result))
    entry["decision"] = decide(tx, project, stable, due.at, result)
    tx.save_window(WindowRow(*where, result))
