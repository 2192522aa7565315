"""The rows of the state database that the dashboard shows, read in one snapshot: bounded, however long a project lives.

Nothing else is asked: no cluster, no log, no MLflow. So it costs the same wherever it is read.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from mlops_ray import ledger
from mlops_ray.config import Project
from mlops_ray.config.alerts import SEVERITIES
from mlops_ray.ledger import Entry
from mlops_ray.monitoring.alerts import book
from mlops_ray.monitoring.alerts.alerting import Alert
from mlops_ray.monitoring.clock import decision_now
from mlops_ray.monitoring.folding import rows_cursor
from mlops_ray.rollout import orders
from mlops_ray.rollout.approval import Policy, Standing
from mlops_ray.rollout.outlook import Outlook, outlook
from mlops_ray.state import RetrainRow, RolloutRow, ServingRow, Store, Tx, VersionRow, WindowRow

# What a screen can show, and a phone can be sent: a year of weekly windows, four months of days.
MOST_WINDOWS, MOST_BLOCKS = 60, 120
MOST_VERSIONS, MOST_ROLLOUTS, MOST_RETRAINS = 20, 12, 20
MOST_ENTRIES, MOST_ALERTS = 400, 50
# Decision time is told in steps of so many seconds: where nothing else has changed, the document stays the same.
_STEP_S = 10.0


@dataclass(frozen=True)
class Gathered:
    """Rows of one project. Lists are newest first, but for `windows` and `entries`, oldest first.

    now: decision time, seconds since the epoch; None before any traffic. rows: answered by each version so far.
    traffic: (version, start of the block of time, rows). outlook: of the open rollout. n_entries: of the whole ledger,
    whose last MOST_ENTRIES are `entries`; head: the hash of the last. alerts: those that are open, worst first.
    """

    project: Project
    now: float | None
    first_block: float | None
    serving: ServingRow | None
    versions: tuple[VersionRow, ...]
    rows: Mapping[int, int]
    traffic: tuple[tuple[int, float, int], ...]
    windows: tuple[WindowRow, ...]
    rollouts: tuple[RolloutRow, ...]
    outlook: Outlook | None
    retrains: tuple[RetrainRow, ...]
    entries: tuple[Entry, ...]
    n_entries: int
    head: str
    alerts: tuple[Alert, ...] = ()

    @property
    def stable(self) -> int | None:
        """The version that answers most traffic."""
        held = self.serving.spec.get("stable") if self.serving else None
        return int(held["version"]) if held else None

    @property
    def open_rollout(self) -> RolloutRow | None:
        """The rollout that has not ended."""
        return next((row for row in self.rollouts if row.ended is None), None)

    @property
    def open_retrain(self) -> RetrainRow | None:
        """The retrain that has not ended."""
        return next((row for row in self.retrains if row.status in RetrainRow.OPEN), None)


def gather(store: Store, project: Project, *, machine_now: float) -> Gathered:
    """What the database says at the machine's time `machine_now`. Raises: BackendUnavailable."""
    with store.read() as tx:
        return _gathered(tx, project, machine_now)


def _gathered(tx: Tx, project: Project, machine_now: float) -> Gathered:
    name, block_s = project.project, project.monitoring.block_s
    now = decision_now(tx, project, machine_now)
    now = None if now is None else now // _STEP_S * _STEP_S
    versions = tuple(reversed(tx.versions(name)))
    last = tx.last_block(name)
    since = 0.0 if last is None else last - (MOST_BLOCKS - 1) * block_s
    n_entries, head = ledger.head(tx, name)
    row = tx.open_rollout(name)
    return Gathered(
        project=project,
        now=now,
        first_block=tx.first_block(name),
        serving=tx.serving(name),
        versions=versions[:MOST_VERSIONS],
        rows={v.version: max(0, tx.cursor(name, rows_cursor(v.version)).number) for v in versions[:MOST_VERSIONS]},
        traffic=tuple(tx.traffic(name, since)),
        windows=tuple(reversed(tx.windows(name, MOST_WINDOWS))),
        rollouts=tuple(tx.rollouts(name)[:MOST_ROLLOUTS]),
        outlook=None if row is None else _outlook(tx, row, machine_now if now is None else now, machine_now),
        retrains=tuple(tx.retrains(name)[:MOST_RETRAINS]),
        entries=tuple(ledger.entries(tx, name, max(0, n_entries - MOST_ENTRIES))),
        n_entries=n_entries,
        head=head,
        alerts=tuple(sorted(book.opened(tx, name), key=lambda a: -SEVERITIES.index(a.severity))[:MOST_ALERTS]),
    )


def _outlook(tx: Tx, row: RolloutRow, now: float, machine_now: float) -> Outlook:
    """Who has approved is looked up only where somebody must: it takes the whole ledger."""
    asked = Policy.of_plan(row.plan) is not None
    nobody = Standing(approved=True, rejected=False, missing=0)
    said = orders.standing(tx, row, machine_now=machine_now) if asked else nobody
    return outlook(row, said=said, now=now)
