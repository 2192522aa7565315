"""What collectors push, folded into profiles and decision time, each push once."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mlops_ray.data.profile import Profile
from mlops_ray.serving.log import collecting
from mlops_ray.state import Cursor, Tx


def fold(tx: Tx, project: str, pushed: Mapping[str, Any], now: float) -> bool:
    """Fold one push, unless it was folded before; whether it was the next one of its spool.

    Args: now: seconds since the epoch. pushed: `spool`, `base` (the last segment folded before), `number` of its last
        segment, `profiles` as (version, block, body); `watermark` and `newest` event time that came with them (seconds
        since the epoch; None without). `node`: whose spools have been passed since everything up to `passed` was
        pending; `nodes`: those alive then. `counted`: of `tally`; absent from collectors of the release before.
    """
    spool = collecting.cursor_name(pushed["spool"])
    if tx.cursor(project, spool).number != pushed["base"]:
        return False
    _note_time(tx, project, pushed, now)
    for version, block, body in pushed["profiles"]:
        found, known = Profile.from_dict(body), tx.profile(project, version, block)
        before = Profile.from_dict(known) if known else None
        if before is not None and before.fits(found):
            found = found + before
        # Over other features nothing adds up: the block then holds what came since they changed, and time goes on.
        tx.save_profile(project, version, block, found.to_dict())
        rows = tx.cursor(project, rows_cursor(version)).number
        tx.save_cursor(project, rows_cursor(version), max(rows, 0) + body["n"], 0.0)
    _count(tx, project, pushed.get("counted", {}), now)
    tx.save_cursor(project, spool, pushed["number"], 0.0)
    return True


def _count(tx: Tx, project: str, counted: Mapping[str, tuple[int, float]], now: float) -> None:
    if not counted:
        return
    known = tx.cursors(project, COUNTED)
    before = {name: known.get(name, Cursor(0)) for name in counted}
    tx.save_cursors(
        project,
        {
            COUNTED + name: Cursor(before[name].number + n, max(before[name].at, min(at, now)))
            for name, (n, at) in counted.items()
        },
    )


def _note_time(tx: Tx, project: str, pushed: Mapping[str, Any], now: float) -> None:
    """A mark of time is pending until every living node's spools have been passed since: see `collecting`."""
    # No row from the future may move decision time ahead of the clock.
    marks = [min(m, now) for m in (pushed["watermark"], pushed["newest"]) if m is not None]
    if marks:
        pending = tx.cursor(project, collecting.PENDING).at
        tx.save_cursor(project, collecting.PENDING, 0, max(pending, *marks))
        tx.save_cursor(project, "seen", 0, now)
    if pushed["passed"] is None:
        return
    tx.save_cursor(project, collecting.passed_name(pushed["node"]), 0, pushed["passed"])
    alive = {pushed["node"], *pushed["nodes"]}
    # A node whose collector has not come up yet has no cursor: its rows come late rather than hold up the others.
    found = [tx.cursor(project, collecting.passed_name(node)) for node in alive]
    counted, watermark = min(c.at for c in found if c.number >= 0), tx.cursor(project, "watermark")
    if counted > watermark.at:
        tx.save_cursor(project, "watermark", 0, counted)


COUNTED = "counted:"
"""Begins the names of the cursors that add up what `tally` counts."""


def rows_cursor(version: int) -> str:
    """Name of the cursor that counts the rows which a version answered."""
    return f"rows:v{version}"
