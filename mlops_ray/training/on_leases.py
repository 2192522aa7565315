"""Which process drives a run: a lease in the state database, renewed by a heartbeat.

One mechanism for this machine and others. A driver of this machine is gone when its process is; one of another machine
when its lease has expired, which nothing but its own silence can bring about.
"""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field

from mlops_ray.errors import BackendUnavailable, LeaseLost
from mlops_ray.state import Lease, Store
from mlops_ray.training.on_machine import Driver, driver

LEASE_S = 120.0
"""How long a driver on another machine may be silent before what it drives counts as abandoned."""

_log = logging.getLogger(__name__)


@dataclass
class Hold:
    """What this process holds; `lost` says who has it, once it is another's."""

    lease: Lease
    lost: LeaseLost | None = None
    _ends: threading.Event = field(default_factory=threading.Event)

    def check(self) -> None:
        """Raises: LeaseLost when another process has taken over."""
        if self.lost is not None:
            raise self.lost

    def beat(self, store: Store) -> None:
        """Renew the lease until the hold ends or is lost."""
        while not self._ends.wait(LEASE_S / 6):
            try:
                self.lease = store.renew(self.lease, LEASE_S, time.time())
            except LeaseLost as exc:
                self.lost = exc
                return
            except BackendUnavailable as exc:
                _log.warning("the heartbeat of %s waits: %s", self.lease.name, exc)

    def end(self) -> None:
        """Stop the heartbeat."""
        self._ends.set()


@contextlib.contextmanager
def held(store: Store, key: str) -> Iterator[Hold]:
    """The lease `key`, this process's until the block ends; taken from a holder that is gone.

    Raises: LeaseLost, naming the holder, when it lives."""
    if is_gone(store, key) and (old := _lease(store, key)) is not None:
        store.release(old)
    hold = Hold(store.acquire(key, driver().text, LEASE_S, time.time()))
    heart = threading.Thread(target=hold.beat, args=(store,), name=f"heartbeat {key}", daemon=True)
    heart.start()
    try:
        yield hold
    finally:
        hold.end()
        heart.join()
        with contextlib.suppress(BackendUnavailable):  # then it expires
            store.release(hold.lease)


def is_gone(store: Store, key: str) -> bool:
    """Whether the lease `key` is on record and nobody who lives holds it."""
    lease = _lease(store, key)
    if lease is None:
        return False  # of another state database: nothing is known of its driver
    said, expired = Driver.parse(lease.holder), lease.expires <= time.time()
    lives = said.lives(expired=expired) if said is not None else None
    return expired if lives is None else not lives


def last_sign(store: Store, key: str) -> tuple[str, float | None]:
    """Who drove what the lease `key` is for, in words, and when it was last renewed (None when it was given up)."""
    lease = _lease(store, key)
    said = Driver.parse(lease.holder) if lease is not None else None
    if lease is None or said is None:
        return "its driver", None
    return f"its driver, {said},", lease.expires - LEASE_S


def _lease(store: Store, key: str) -> Lease | None:
    with store.read() as tx:
        return tx.lease(key)
