"""One look at the state database: what holds now becomes alerts and messages, in one transaction."""

from __future__ import annotations

from collections.abc import Callable

from mlops_ray.config import Project
from mlops_ray.monitoring.alerts import book
from mlops_ray.monitoring.alerts.alerting import Step, grouped, step
from mlops_ray.monitoring.alerts.observed import Conditions, observe
from mlops_ray.state import Store, Tx


def look(store: Store, project: Project, others: Conditions, machine_now: float, *, new_id: Callable[[], str]) -> bool:
    """Bring the alerts up to what holds at `machine_now` (seconds since the epoch); whether anything changed.

    Level-triggered: whatever was missed, by a crash or by nobody looking, is seen now. A look that finds nothing new
    writes nothing. Args: others: conditions that rooms further down know. new_id: gives an id each time it is asked.
    """

    def looked(tx: Tx) -> Step:
        return step(
            project.alerts.in_force,
            project.alerts.channels,
            [*observe(tx, project, machine_now), *others(tx, project, machine_now)],
            book.opened(tx, project.project),
            book.silences(tx, project.project, machine_now),
            new_id=new_id,
            now=machine_now,
        )

    def save(tx: Tx) -> None:
        # Again: somebody may have acknowledged since.
        found = looked(tx)
        messages = grouped(found.notices, new_id=new_id)
        book.save_step(tx, project.project, found, messages, machine_now)
        book.forget_old(tx, project.project, machine_now)

    with store.read() as tx:
        found = looked(tx)
    if found:
        store.run(save)
    return bool(found)
