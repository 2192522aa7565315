"""Housekeeping of the prediction log: few large files, a short table log, no rows older than they may be, no litter.

One process at a time, by lease. Nothing here stands in the way of commits: a compaction that loses against an append is
tried at the next turn, an append that loses against a compaction is repeated at once.
"""

from __future__ import annotations

from typing import Any

from mlops_ray.config import DAY_S, Project
from mlops_ray.data import lake
from mlops_ray.errors import LeaseLost
from mlops_ray.serving.log import tables as log
from mlops_ray.serving.places import labels_uri, log_uri, shadow_uri, uncaptured_uri, values_uri
from mlops_ray.serving.spool import claims
from mlops_ray.state import Store

# Longer than any turn takes; a holder that was killed keeps the next one waiting for so long.
_LEASE_S = 900.0
# After so long no client repeats a request under the same id.
_CLAIMS_S = 7 * DAY_S
# Files that no version names any more stay for as long as Delta's own default: whoever reads an older version, or was
# stopped between writing a file and committing it, is done by then or never will be.
_LITTER_S = 7 * DAY_S


class Maintenance:
    """Housekeeping of one project's log, as one process does it."""

    every_s = 3600.0
    """A day of commits every 5 s makes 17,280 files; an hour's 720 are still read in seconds."""

    def __init__(self, project: Project, store: Store, holder: str) -> None:
        """Args: holder: unique to this process's life."""
        self._project, self._store, self._holder = project, store, holder

    def run(self, now: float) -> dict[str, Any]:
        """One turn; by table, how many files were merged, days deleted and files removed. Empty when another process is
        at it. Args: now: seconds since the epoch."""
        name = self._project.project
        try:
            lease = self._store.acquire(f"log:{name}", self._holder, _LEASE_S, now)
        except LeaseLost:
            return {}
        try:
            before = self._keep_from()
            done = {
                uri.rpartition("/")[2]: lake.tidy(uri, before_day=before, litter_s=_LITTER_S)
                for place in (log_uri, labels_uri, values_uri, shadow_uri, uncaptured_uri)
                if lake.exists(uri := place(self._project))
            }
            self._store.run(lambda tx: claims.forget(tx, name, now - _CLAIMS_S))
            return done
        finally:
            self._store.release(lease)

    def _keep_from(self) -> str | None:
        """The first day that is kept, by decision time: a replay of the past keeps its rows; None keeps all."""
        days = self._project.capture.keep_days
        with self._store.read() as tx:
            now = tx.cursor(self._project.project, "decision time").at
        return log.day_of(now - days * DAY_S) if days is not None and now > days * DAY_S else None
