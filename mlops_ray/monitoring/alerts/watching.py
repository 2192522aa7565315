"""One look at the state database: what holds now becomes alerts and messages, in one transaction."""

from __future__ import annotations

from collections.abc import Callable

from mlops_ray.config import Project
from mlops_ray.monitoring.alerts import book
from mlops_ray.monitoring.alerts.alerting import Step, grouped, step
from mlops_ray.monitoring.alerts.observed import Conditions, Observer
from mlops_ray.state import Store, Tx


class Watcher:
    """Looks at one project."""

    def __init__(self, store: Store, project: Project, others: Conditions, *, new_id: Callable[[], str]) -> None:
        """Args: others: conditions that rooms further down know. new_id: gives an id each time it is asked."""
        self._store, self._project, self._others, self._new_id = store, project, others, new_id
        self._observer = Observer(project)

    def look(self, machine_now: float) -> bool:
        """Bring the alerts up to what holds at `machine_now` (seconds since the epoch); whether anything changed.

        Level-triggered: whatever was missed, by a crash or by nobody looking, is seen now. A look that finds nothing
        new writes nothing.
        """
        with self._store.read() as tx:
            found = self._step(tx, machine_now)
        if found:
            self._store.run(lambda tx: self._save(tx, machine_now))
        return bool(found)

    def _step(self, tx: Tx, now: float) -> Step:
        project, name = self._project, self._project.project
        return step(
            project.alerts.in_force,
            project.alerts.channels,
            [*self._observer.observe(tx, now), *self._others(tx, project, now)],
            book.opened(tx, name),
            book.silences(tx, name, now),
            new_id=self._new_id,
            now=now,
        )

    def _save(self, tx: Tx, now: float) -> None:
        """Looks again: somebody may have acknowledged since."""
        name, found = self._project.project, self._step(tx, now)
        book.save_step(tx, name, found, grouped(found.notices, new_id=self._new_id), now)
        book.forget_old(tx, name, now)
