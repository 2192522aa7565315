"""What the state database says that rules may ask about: judged windows, and traffic that stays away."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from mlops_ray.config import Project
from mlops_ray.monitoring.alerts.alerting import Condition
from mlops_ray.monitoring.clock import decision_now
from mlops_ray.monitoring.due import ENTRIES, Kind
from mlops_ray.monitoring.record import ENTRY
from mlops_ray.monitoring.sources import JUDGED, TOLD
from mlops_ray.state import Tx, WindowRow

Conditions = Callable[[Tx, Project, float], Sequence[Condition]]
"""(tx, project, machine time): what holds, as rooms further down know it."""

_ENTRIES = {
    "drift": ENTRIES[Kind.DRIFT],
    "quality": ENTRIES[Kind.QUALITY],
    "estimated_quality": ENTRY,
    "multivariate": ENTRIES[Kind.MULTIVARIATE],
}
"""What rules call it, and its key in a window's result."""
# Windows that are looked at: quality lags behind drift by the label horizon, and rules ask for runs of up to 20.
_N_WINDOWS = 60


class Observer:
    """Of one project. It remembers what windows said until one is judged anew: to read them takes 20 ms."""

    def __init__(self, project: Project) -> None:
        self._project = project
        self._read: tuple[object, list[Condition]] = (None, [])

    def observe(self, tx: Tx, machine_now: float) -> list[Condition]:
        """All conditions of windows and of traffic that hold. Args: machine_now: seconds since the epoch."""
        name = self._project.project
        serving = tx.serving(name)
        stable = serving.spec["stable"]["version"] if serving and serving.spec.get("stable") else None
        key = (tx.cursor(name, JUDGED), tx.cursor(name, TOLD), stable)
        if key != self._read[0]:
            self._read = key, [] if stable is None else of_windows(tx.windows(name, _N_WINDOWS), stable)
        return [*self._read[1], *_no_traffic(tx, self._project, machine_now)]


def of_windows(windows: Sequence[WindowRow], stable: int) -> list[Condition]:
    """The newest runs of alarms of the stable version, one condition each. Args: windows: newest first.

    A window that could not be judged (too few rows, no calibration) neither alarms nor says that all is well, so it
    is passed over: an alert waits for a window that says something.
    """
    found = []
    for when, key in _ENTRIES.items():
        judged = [w.result[key] for w in windows if w.version == stable and _says_something(w.result.get(key))]
        n = next((i for i, entry in enumerate(judged) if not entry["alarm"]), len(judged))
        if n:
            found.append(Condition(when, f"v{stable}", judged[0]["why"], n))
    if (alarm := sequential_alarm(windows, stable)) is not None:
        found.append(Condition("sequential", f"v{stable}", alarm["why"]))
    flights = [entry for w in windows if w.version == stable and (entry := _flight(w)) is not None]
    n = next((i for i, entry in enumerate(flights) if not entry["findings"]), len(flights))
    if n:
        found.append(Condition("data_quality", f"v{stable}", flights[0]["why"], n))
    return found


def sequential_alarm(windows: Sequence[WindowRow], stable: int) -> Mapping[str, Any] | None:
    """The newest alarm of the sequential detector about the stable version, while it stands. Args: windows: newest
    first.

    The detector says nothing else, and begins anew after an alarm. So one stands until the realised quality of a whole
    window after it is judged to be well; what lasts alarms again."""
    mine, key = [w for w in windows if w.version == stable], ENTRIES[Kind.SEQUENTIAL]
    last = max((w for w in mine if key in w.result), key=lambda w: w.end, default=None)
    if last is None:
        return None
    since = [w.result[ENTRIES[Kind.QUALITY]] for w in mine if w.start >= last.end and ENTRIES[Kind.QUALITY] in w.result]
    if any(_says_something(entry) and not entry["alarm"] for entry in since):
        return None
    found: Mapping[str, Any] = last.result[key]
    return found


def _flight(window: WindowRow) -> Mapping[str, Any] | None:
    """What the window says of data quality in flight, or None where it could not be judged."""
    found: Mapping[str, Any] | None = window.result.get(ENTRIES[Kind.DRIFT], {}).get("in_flight")
    return found


def _says_something(entry: Mapping[str, Any] | None) -> bool:
    """Whether a window's entry comes of a judgement: one has a limit, of the whole or of each feature, or an AUC."""
    if entry is None:
        return False
    return bool(entry.get("alarm") or entry.get("features")) or any(entry.get(k) is not None for k in ("limit", "auc"))


def _no_traffic(tx: Tx, project: Project, machine_now: float) -> list[Condition]:
    name, idle_s = project.project, project.monitoring.idle_s
    newest, decision_time = tx.cursor(name, "watermark").at, decision_now(tx, project, machine_now)
    if decision_time is None or decision_time <= newest:
        return []
    # While a retrain is open, what was last heard counts as heard now: it neither begins nor ends anything here.
    if machine_now - tx.cursor(name, "seen").at <= idle_s and tx.open_retrain(name) is None:
        return []
    last = datetime.fromtimestamp(newest, UTC)
    why = f"no rows since {last:%Y-%m-%d %H:%M} UTC by their event time, for longer than monitoring.idle_s ({idle_s:g})"
    return [Condition("no_traffic", name, why)]
