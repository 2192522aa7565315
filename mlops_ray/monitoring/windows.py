"""A window from the state database and the log to its judgement, and that to the policy, in one transaction.

Where rows and versions come from is handed in, so a simulation in virtual time judges by the same code as the monitor.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache, partial
from typing import Any

import numpy as np
import pyarrow as pa

from mlops_ray.config import Project
from mlops_ray.data.profile import Profile, codes, empty
from mlops_ray.monitoring import captured, heeded, judgement, realised, record
from mlops_ray.monitoring.brain import Decide
from mlops_ray.monitoring.due import ENTRIES, Due, Kind, Window, by_rows, is_judged, is_side_by_side
from mlops_ray.monitoring.sources import JUDGED, Sources, Yardstick, labelled, stable_of
from mlops_ray.serving.log import tables as log
from mlops_ray.state import Store, Tx, VersionRow, WindowRow


@dataclass(frozen=True)
class Judged:
    """One window judged against `stable`; `estimates`: entries of its versions that changed with it."""

    due: Due
    stable: VersionRow
    found: judgement.Judgement
    estimates: dict[int, record.Entry]


def judge(store: Store, project: Project, sources: Sources, due: Due) -> Judged | None:
    """The judgement of what is due, which changes nothing yet; None where no version is stable."""
    span_s = due.end - due.start
    with store.read() as tx:
        stable = stable_of(tx, project.project)
        blocks = tx.profiles(project.project, due.start - span_s, due.end) if due.kind is Kind.DRIFT else []
        windows = tx.windows(project.project)
    if stable is None:
        return None
    plan, reference = project.monitoring, sources.yardstick(stable).reference
    if due.kind is Kind.DRIFT:
        return _drifted(project, sources, stable, blocks, windows, due)
    rows = sources.rows(due.start, due.end, due.at)
    labels, scores = labelled(project, sources, rows, stable)
    found = judgement.judge_quality(plan, reference, labels, scores, project.task, span_s=span_s)
    mine, threshold = captured.scored_by(stable.version, rows), sources.yardstick(stable).threshold
    found.detail.update(realised.shown(project, reference, threshold, mine, labels, scores))
    return Judged(due, stable, found, _scored(store, project, sources, windows, rows, due))


def _drifted(
    project: Project,
    sources: Sources,
    stable: VersionRow,
    blocks: list[tuple[int, float, dict[str, Any]]],
    windows: list[WindowRow],
    due: Due,
) -> Judged:
    """Drift of the window and, where it is one of those side by side, the quality to expect of it.

    Args: blocks: (version, start, profile) of the window and of the one before."""
    plan, known = project.monitoring, sources.yardstick(stable)
    none = empty(known.reference.bins)
    of_all = [(version, block, Profile.from_dict(body)) for version, block, body in blocks]
    profiles = [one for one in of_all if one[2].fits(none)]
    now = [(version, profile) for version, block, profile in profiles if block >= due.start]
    rows = cache(lambda: captured.scored_by(stable.version, sources.rows(due.start, due.end, due.at, inputs=True)))
    found = judgement.judge_drift(
        plan,
        known.reference,
        sum((profile for _, profile in now), none),
        start=due.start,
        end=due.end,
        own=sum((profile for version, profile in now if version == stable.version), none),
        previous=sum((profile for _, block, profile in profiles if block < due.start), none),
        first=not any(w.version == stable.version and w.end < due.end for w in windows),
        change=None if known.score is None else partial(_change, project, known, rows, int(due.end)),
    )
    if left_out := sum(p.n for _, block, p in of_all if block >= due.start and not p.fits(none)):
        why = f"{found.why}; {left_out} rows were counted over other features, and are left out"
        found = replace(found, why=why, detail=found.detail | {"left_out": left_out})
    if not is_side_by_side(plan, (due.start, due.end)):
        return Judged(due, stable, found, {})
    return Judged(due, stable, found, {stable.version: _estimated(project, known, stable, windows, rows(), due)})


def _change(project: Project, known: Yardstick, rows: Callable[[], pa.Table], seed: int, feature: str) -> float:
    """By how much the answers to the window's rows hang on what moved about the feature; without rows it counts."""
    some, score = rows(), known.score
    if score is None or not len(some):
        return math.inf
    rng = np.random.default_rng([project.seed, seed, 2])
    kept = np.sort(rng.permutation(len(some))[: heeded.MOST_ROWS])
    columns = log.inputs(project, some.take(pa.array(kept)))
    return heeded.change(score, known.reference.bins, known.reference.total, columns, feature, rng)


def filled(tx: Tx, project: Project, first: float, now: float) -> list[Window]:
    """Windows by rows that have closed by the decision time `now`: those judged already, and those after them.

    Args: first: start of the first block that has rows."""
    known = [(w.start, w.end) for w in tx.windows(project.project) if ENTRIES[Kind.DRIFT] in w.result]
    known.sort()
    rows: dict[float, int] = {}
    for _, block, body in tx.profiles(project.project, known[-1][1] if known else first, now):
        rows[block] = rows.get(block, 0) + int(body["n"])
    return known + by_rows(project.monitoring, sorted(rows.items()), now)


def conclude(tx: Tx, project: Project, decide: Decide, judged: Judged) -> None:
    """Save the judgement with what the policy makes of it, once: the cursor tells."""
    due, stable, found = judged.due, judged.stable, judged.found
    if is_judged(due, tx.cursor(project.project, JUDGED)):
        return
    known = {w.version: w.result for w in tx.windows(project.project) if (w.start, w.end) == (due.start, due.end)}
    results = {v: known.get(v, {}) | {record.ENTRY: entry} for v, entry in judged.estimates.items()}
    entry = {"alarm": found.alarm, "why": found.why, "at": due.at, **found.detail}
    mine = results.get(stable.version, known.get(stable.version, {}))
    results[stable.version] = mine | {ENTRIES[due.kind]: entry}
    for version, result in results.items():
        tx.save_window(WindowRow(project.project, due.start, due.end, version, result))
    tx.save_cursor(project.project, JUDGED, due.kind, due.at)
    entry["decision"] = decide(tx, project, stable, due.at, results[stable.version])
    tx.save_window(WindowRow(project.project, due.start, due.end, stable.version, results[stable.version]))


def _estimated(
    project: Project, known: Yardstick, stable: VersionRow, windows: list[WindowRow], mine: pa.Table, due: Due
) -> record.Entry:
    """What the quality of stable's rows of the window, `mine`, will turn out to be."""
    rng = np.random.default_rng([project.seed, int(due.end), 1])
    before = sorted((w for w in windows if w.version == stable.version and w.end < due.end), key=lambda w: w.end)
    entry = record.estimated(
        project.monitoring,
        known.reference.calibration,
        captured.scores(project, mine),
        codes(known.reference.bins, log.inputs(project, mine)),
        threshold=known.threshold,
        before=[w.result[record.ENTRY] for w in before if record.ENTRY in w.result],
        at=due.at,
        rng=rng,
    )
    span_s = due.end - due.start
    found = judgement.judge_estimate(project.monitoring, project.task, known.reference, entry, span_s=span_s)
    return entry | {"alarm": found.alarm, "why": found.why, **found.detail}


def _scored(
    store: Store, project: Project, sources: Sources, windows: list[WindowRow], rows: pa.Table, due: Due
) -> dict[int, record.Entry]:
    """The estimates of the window, of whatever versions, with what became of its `rows`."""
    found = {}
    for window in windows:
        if (window.start, window.end) != (due.start, due.end) or record.ENTRY not in window.result:
            continue
        with store.read() as tx:
            version = tx.version(project.project, window.version)
        found[window.version] = record.scored(
            window.result[record.ENTRY],
            project.monitoring,
            project.task,
            *labelled(project, sources, rows, version),
            threshold=sources.yardstick(version).threshold,
        )
    return found
