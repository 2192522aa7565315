"""One look at the state database: what holds now becomes alerts and messages, in one transaction."""

from __future__ import annotations

from mlops_ray.config import Project
from mlops_ray.monitoring.alerts import book
from mlops_ray.monitoring.alerts.alerting import Step, step
from mlops_ray.monitoring.alerts.observed import Conditions, observe
from mlops_ray.state import Store, Tx


def look(store: Store, project: Project, others: Conditions, machine_now: float) -> bool:
    """Bring the alerts up to what holds at `machine_now` (seconds since the epoch); whether anything changed.

    Level-triggered: whatever was missed, by a crash or by nobody looking, is seen now. A look that finds nothing new
    writes nothing. Args: others: conditions that rooms further down know.
    """

    def looked(tx: Tx) -> Step:
        return step(
            project.alerts.in_force,
            project.alerts.channels,
            [*observe(tx, project, machine_now), *others(tx, project, machine_now)],
            book.opened(tx, project.project),
            book.silences(tx, project.project, machine_now),
            project=project.project,
            now=machine_now,
        )

    def save(tx: Tx) -> None:
        # Again: somebody may have acknowledged since.
        book.save_step(tx, project.project, looked(tx), machine_now)
        book.forget_old(tx, project.project, machine_now)

    with store.read() as tx:
        found = looked(tx)
    if found:
        store.run(save)
    return bool(found)
