"""What a process does again and again beside its calls: ticks, looks, commits."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable

_log = logging.getLogger(__name__)


def keep_doing(work: Callable[[], object], *, every_s: float, what: str) -> None:
    """Do `work` every `every_s` seconds of machine time, the first time after so long, in a thread of its own that ends
    with the process.

    What a turn raises is logged, and the next one tries again: state is saved before anything acts on it, so that a
    turn which was cut off costs time and nothing else. Args: what: names the thread and begins its warnings.
    """

    def turns() -> None:
        pause = threading.Event()
        while not pause.wait(every_s):
            try:
                work()
            except Exception as exc:  # noqa: BLE001 - outermost loop of a thread: were it to end, nobody would notice
                _log.warning("%s: %s", what, exc)

    threading.Thread(target=turns, name=what, daemon=True).start()
