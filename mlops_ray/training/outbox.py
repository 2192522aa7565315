"""Records on their way to a server that may be slow or away: written in order, by one thread, until they arrive."""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable

from mlops_ray.errors import BackendUnavailable

_log = logging.getLogger(__name__)


class Outbox:
    """Work that may wait: `put` returns at once, `drain` waits until all is done.

    Work that raises BackendUnavailable is repeated, so it must be harmless to repeat; pauses double up to `pause_s`.
    Work that raises anything else is left out, with a warning: a record that nobody takes must not hold up the others.
    """

    def __init__(self, name: str, *, pause_s: float = 15.0) -> None:
        self._name, self._pause_s = name, pause_s
        self._waiting: deque[tuple[str, Callable[[], None]]] = deque()
        self._changed = threading.Condition()
        self._trouble: Exception | None = None
        self._hurry = self._busy = self._last_try = False
        self._thread: threading.Thread | None = None

    def put(self, what: str, work: Callable[[], None]) -> None:
        """Queue `work`; `what` it is about stands in messages."""
        with self._changed:
            self._waiting.append((what, work))
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name=self._name, daemon=True)
                self._thread.start()
            self._changed.notify_all()

    def drain(self, within_s: float) -> None:
        """Wait until everything queued is done.

        Raises: BackendUnavailable when something is not after `within_s`; it stays queued."""
        ends = time.monotonic() + within_s
        with self._changed:
            self._hurry = True
            self._changed.notify_all()
            try:
                self._changed.wait_for(lambda: not self._waiting, max(0.0, ends - time.monotonic()))
                left, trouble = len(self._waiting), self._trouble
            finally:
                self._hurry = False
        if left:
            said = str(trouble) if trouble is not None else "it is slow"
            raise BackendUnavailable(self._name, f"{left} records still wait after {within_s:g} s; {said}") from trouble

    def clear(self) -> int:
        """Forget what still waits; how many records that are. What is being done at this moment is not repeated."""
        with self._changed:
            kept = 1 if self._busy else 0
            self._last_try = self._busy
            gone = len(self._waiting) - kept
            while len(self._waiting) > kept:
                self._waiting.pop()
            self._changed.notify_all()
        return gone

    def _run(self) -> None:
        """Forever: the thread ends with its process."""
        pause = 1.0
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._waiting)
                what, work = self._waiting[0]
                self._busy = True
            done = self._done(what, work)
            with self._changed:
                self._busy, over = False, done or self._last_try
                if over:
                    pause, self._trouble, self._last_try = 1.0, None, False
                    self._waiting.popleft()
                    self._changed.notify_all()
                    continue
                self._changed.wait_for(lambda: self._hurry or not self._waiting, pause)
                self._changed.wait(0.2)  # also in a hurry: a server that refuses connections does so at once
            pause = min(2 * pause, self._pause_s)

    def _done(self, what: str, work: Callable[[], None]) -> bool:
        try:
            work()
        except BackendUnavailable as exc:
            if self._trouble is None:
                _log.warning("%s waits for %s and is tried again; the work goes on", what, exc)
            self._trouble = exc
            return False
        except Exception as exc:  # noqa: BLE001 - outermost loop of its thread
            _log.warning("%s is not recorded: %s", what, exc)
        return True
