"""A block of rows shown to the detector of inputs, and its alarm to the policy, in one transaction."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import numpy as np
import pyarrow as pa

from mlops_ray.config import Project
from mlops_ray.data.profile import Profile, empty
from mlops_ray.monitoring import captured, gathering, heeded, standing
from mlops_ray.monitoring.brain import Decide
from mlops_ray.monitoring.cause import cause
from mlops_ray.monitoring.drift import SCORES
from mlops_ray.monitoring.due import ENTRIES, Due, Kind, is_judged
from mlops_ray.monitoring.sources import JUDGED, Sources, Yardstick, stable_of
from mlops_ray.serving.log import tables as log
from mlops_ray.state import Store, Tx, VersionRow, WindowRow

NAME = "inputs"
"""Of the detector, in the state database."""
_SAID = 3
"""Features that an alarm names."""


@dataclass(frozen=True)
class Looked:
    """One block looked at: where the detector of `stable` stands now, and the entry of its alarm, if it raised one."""

    due: Due
    stable: VersionRow
    now: gathering.Inputs
    alarm: Mapping[str, Any] | None


def look(store: Store, project: Project, sources: Sources, due: Due) -> Looked | None:
    """What the detector makes of the block, which changes nothing yet; None where no version is stable."""
    name, plan = project.project, project.monitoring
    with store.read() as tx:
        stable, body = stable_of(tx, name), standing.read_body(tx, name, NAME)
        blocks = tx.profiles(name, due.start, due.end)
    if stable is None:
        return None
    known = sources.yardstick(stable)
    profiles = _fitting(known, blocks)
    none = empty(known.reference.bins)
    now, enough = gathering.look(
        plan,
        known.reference,
        None if body is None else gathering.Inputs.from_dict(body),
        stable.version,
        sum((profile for _, profile in profiles), none),
        sum((profile for version, profile in profiles if version == stable.version), none),
        due.end,
    )
    if not enough:
        return Looked(due, stable, now, None)
    ignored = [feature for feature in enough if not _heeded(project, sources, known, stable, now, feature, due)]
    about = [feature for feature in enough if feature not in ignored]
    if not about:
        return Looked(due, stable, gathering.anew(now, ignored, due.end), None)
    began = min(now.features[feature].began for feature in about)
    with store.read() as tx:
        since = sum((profile for _, profile in _fitting(known, tx.profiles(name, began, due.end))), none)
    total = known.reference.total
    why = "; ".join(_because(feature, now.features[feature], cause(feature, total, since)) for feature in about[:_SAID])
    of = {feature: {"nats": now.features[feature].total, "limit": now.features[feature].limit} for feature in about}
    entry = {"alarm": True, "why": why, "at": due.at, "began": began, "evidence": of, "ignored": ignored}
    return Looked(due, stable, gathering.anew(now, now.features, due.end), entry)


def conclude(tx: Tx, project: Project, decide: Decide, looked: Looked) -> None:
    """Save where the detector stands, with what the policy makes of its alarm, once: the cursor tells."""
    due, stable = looked.due, looked.stable
    if is_judged(due, tx.cursor(project.project, JUDGED)):
        return
    standing.save_body(tx, project.project, NAME, looked.now.to_dict())
    tx.save_cursor(project.project, JUDGED, due.kind, due.at)
    if looked.alarm is None:
        return
    where = (project.project, looked.alarm["began"], due.end, stable.version)
    known = next((w.result for w in tx.windows(project.project) if (w.project, w.start, w.end, w.version) == where), {})
    entry = dict(looked.alarm)
    result = known | {ENTRIES[Kind.INPUTS]: entry}
    tx.save_window(WindowRow(*where, result))
    entry["decision"] = decide(tx, project, stable, due.at, result)
    tx.save_window(WindowRow(*where, result))


def _fitting(known: Yardstick, blocks: list[tuple[int, float, dict[str, Any]]]) -> list[tuple[int, Profile]]:
    """Version and profile of those that were counted over the reference's features."""
    none = empty(known.reference.bins)
    of_all = [(version, Profile.from_dict(body)) for version, _, body in blocks]
    return [one for one in of_all if one[1].fits(none)]


def _heeded(
    project: Project,
    sources: Sources,
    known: Yardstick,
    stable: VersionRow,
    now: gathering.Inputs,
    feature: str,
    due: Due,
) -> bool:
    """Whether the answers hang on what moved about the feature; where nobody can be asked, it counts."""
    if feature == SCORES or known.score is None:
        return True
    start = max(now.features[feature].began, due.end - project.monitoring.window_s)
    rows = captured.scored_by(stable.version, sources.rows(start, due.end, due.at, inputs=True))
    if not len(rows):
        return True
    rng = np.random.default_rng([project.seed, int(due.end), 4])
    columns = log.inputs(project, rows.take(pa.array(np.sort(rng.permutation(len(rows))[: heeded.MOST_ROWS]))))
    change = heeded.change(known.score, known.reference.bins, known.reference.total, columns, feature, rng)
    return change >= heeded.IGNORED


def _because(name: str, one: gathering.Feature, causes: tuple[str, ...]) -> str:
    began = f"{datetime.fromtimestamp(one.began, UTC):%Y-%m-%d %H:%M} UTC"
    said = (
        f"{name} has changed since about {began}: evidence of {one.total:.1f} nats against a limit of {one.limit:.1f}"
    )
    return f"{said} ({', '.join(causes)})" if causes else said
