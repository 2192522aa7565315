"""What the monitor is given: who decides about what it saw, and who carries the decisions out."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

from mlops_ray.config import Project
from mlops_ray.monitoring.alerts.observed import Conditions
from mlops_ray.state import RetrainRow, Tx, VersionRow


class Launcher(Protocol):
    """Starts and follows the job of a retrain."""

    def launch(self, row: RetrainRow) -> None:
        """Submit the job; again is harmless."""

    def ended(self, row: RetrainRow) -> str | None:
        """Why the job has ended, or None."""

    def stop(self, row: RetrainRow) -> None:
        """Stop the job."""


Decide = Callable[[Tx, Project, VersionRow, float, dict[str, Any]], str]
"""(tx, project, stable version, decision time, a window's result): the reason in words; a retrain is saved when there
is to be one."""


@dataclass(frozen=True)
class Brain:
    """The policy, and the means to carry it out.

    consider(tx, project, decision time, labels since the last decision): as `decide`, windowless. conditions: of
    retrains and rollouts, for alerts.
    """

    decide: Decide
    consider: Callable[[Tx, Project, float, int], None]
    close_failed: Callable[[Tx, RetrainRow, str], None]
    launcher: Launcher
    conditions: Conditions = lambda tx, project, machine_now: ()
