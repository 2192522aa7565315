"""What a process does again and again beside its calls: ticks, looks, commits."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable

_log = logging.getLogger(__name__)


class Doing:
    """What `keep_doing` has begun."""

    def __init__(self, work: Callable[[], object], every_s: Callable[[], float], what: str) -> None:
        self._work, self._every_s, self._what = work, every_s, what
        self._wake, self._over = threading.Event(), False
        self._thread = threading.Thread(target=self._turns, name=what, daemon=True)
        self._thread.start()

    def soon(self) -> None:
        """The next turn comes now, or right after the one under way."""
        self._wake.set()

    def end(self, wait_s: float = 0.0) -> bool:
        """No further turn comes; whether the one under way ended within `wait_s`."""
        self._over = True
        self._wake.set()
        self._thread.join(wait_s)
        return not self._thread.is_alive()

    def _turns(self) -> None:
        while True:
            self._wake.wait(self._every_s())
            if self._over:
                return
            self._wake.clear()  # before the work: what is asked for meanwhile is not in it
            try:
                self._work()
            except Exception as exc:  # noqa: BLE001 - outermost loop of a thread: were it to end, nobody would notice
                _log.warning("%s: %s", self._what, exc)


def keep_doing(work: Callable[[], object], *, every_s: float | Callable[[], float], what: str) -> Doing:
    """Do `work` every `every_s` seconds of machine time, the first time after so long, in a thread of its own that ends
    with the process, or when it is told to.

    What a turn raises is logged, and the next one tries again: state is saved before anything acts on it, so that a
    turn which was cut off costs time and nothing else.
    Args: every_s: or who says so, asked before each turn. what: names the thread and begins its warnings.
    """
    return Doing(work, every_s if callable(every_s) else lambda: every_s, what)
