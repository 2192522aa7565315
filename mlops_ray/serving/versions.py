"""Which versions a replica is to have, and has: what is wanted arrives at any time, a thread loads it, then it flips.

`want` only stores. A version answers after it was loaded and its golden requests replayed; until then, and for good
when it cannot be loaded, the replica keeps answering with what it has, and says so in `status`.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from mlops_ray.config import Task
from mlops_ray.data.profile import Columns
from mlops_ray.state import ServingRow
from mlops_ray.training.artifact.model import Reference

_log = logging.getLogger(__name__)

# How long after a failed load it is tried again: a store that was away for a moment must not end a promotion.
_RETRY_S = 2.0


class Scorer(Protocol):
    """A loaded version; `training.artifact.model.Model` is one. `score` may be called from several threads."""

    @property
    def engine(self) -> str:
        """`onnx`, which scores a row in microseconds, or `sklearn`, which takes milliseconds."""
        ...

    @property
    def task(self) -> Task:
        """What it predicts."""
        ...

    @property
    def classes(self) -> tuple[Any, ...]:
        """The classes of a multiclass task, in the order of the scores' columns."""
        ...

    @property
    def threshold(self) -> float | None:
        """Probability from which a binary label is 1; None where the project's file decides."""
        ...

    @property
    def reference(self) -> Reference:
        """What it was trained on; read at the first ask."""
        ...

    def score(self, columns: Columns) -> NDArray[np.float64]:
        """Binary P(1), shape (n,); multiclass P(class), shape (n, classes); regression the prediction, shape (n,)."""
        ...


@dataclass(frozen=True)
class Held:
    """Where a version's artifact stands, and the hash of its manifest."""

    version: int
    artifact: str
    sha256: str


@dataclass(frozen=True)
class Arm:
    """A version that answers the `share` of keys whose points lie from `low` on: one of several that are compared with
    stable."""

    version: int
    low: float
    share: float

    @property
    def span(self) -> tuple[float, float]:
        """Its points, [low, high)."""
        return self.low, self.low + self.share


@dataclass(frozen=True)
class Before:
    """The version that stable took the place of. While stable bakes, it sees copies of the rows of this `share` of the
    keys, and answers nobody. It is one of those kept warm: replicas score it themselves."""

    version: int
    share: float
    salt: str


Load = Callable[[Held], Scorer]


@dataclass(frozen=True)
class Wanted:
    """The serving configuration of a project, as the state database has it. (`fence`, `sequence`) only grows.

    share: of the keys whose rows go to the canary, or to all arms together; where the canary is a `shadow`, whose rows
    it sees copies of. arms: versions on trial side by side, in place of one canary. before: what stable is compared
    with while it bakes.
    """

    sequence: int = -1
    stable: Held | None = None
    canary: int | None = None
    share: float = 0.0
    salt: str = ""
    warm: tuple[Held, ...] = ()
    fence: int = 0
    shadow: bool = False
    arms: tuple[Arm, ...] = ()
    before: Before | None = None

    @classmethod
    def parse(cls, spec: Mapping[str, Any], sequence: int, fence: int = 0) -> Wanted:
        """From the state database's JSON."""
        return cls(
            sequence=sequence,
            stable=Held(**spec["stable"]) if spec.get("stable") else None,
            canary=spec.get("canary"),
            share=spec.get("share", 0.0),
            salt=spec.get("salt", ""),
            warm=tuple(Held(**held) for held in spec.get("warm", ())),
            fence=fence,
            shadow=spec.get("shadow", False),
            arms=tuple(Arm(**arm) for arm in spec.get("arms", ())),
            before=Before(**spec["before"]) if "before" in spec else None,
        )

    @classmethod
    def of(cls, row: ServingRow) -> Wanted:
        """From the state database's row."""
        return cls.parse(row.spec, row.seq, row.fence)

    def spec(self) -> dict[str, Any]:
        """As JSON for the state database: everything but what orders it. A key that says nothing is left out, so that
        a specification which was stored before the key existed is still the same one."""
        return {
            "stable": vars(self.stable) if self.stable else None,
            "canary": self.canary,
            "share": self.share,
            "salt": self.salt,
            "warm": [vars(held) for held in self.warm],
            **({"shadow": True} if self.shadow else {}),
            **({"arms": [vars(arm) for arm in self.arms]} if self.arms else {}),
            **({"before": vars(self.before)} if self.before else {}),
        }

    @property
    def held(self) -> tuple[Held, ...]:
        """Every version that a replica must have loaded."""
        return ((self.stable,) if self.stable else ()) + self.warm

    @property
    def on_trial(self) -> tuple[int, ...]:
        """Every version that lives apart from stable's replicas, to be compared with it."""
        return tuple(arm.version for arm in self.arms) if self.canary is None else (self.canary,)

    @property
    def copies(self) -> bool:
        """Whether what stable is compared with answers nobody and sees copies."""
        return self.shadow or self.before is not None

    @property
    def order(self) -> tuple[int, int]:
        """Of two configurations the one with the larger order is in force."""
        return self.fence, self.sequence


@dataclass(frozen=True)
class Answering:
    """The version that answers, and the configuration under which it does: one value, so that both change at once."""

    wanted: Wanted
    version: int
    scorer: Scorer


class Versions:
    """What one replica has loaded. `want`, `status` and the properties may be used from any thread."""

    def __init__(self, load: Load, first: Wanted | None = None) -> None:
        """With `first`, its stable version is loaded before this returns. Raises what `load` raises."""
        self._load = load
        self._wanted = first or Wanted()
        self._scorers: dict[int, Scorer] = {}
        self._failed: dict[int, str] = {}
        self._answering: Answering | None = None
        self._writing = threading.Lock()
        self._changed = threading.Event()
        if first and first.stable:
            scorer = self._scorers[first.stable.version] = load(first.stable)
            self._answering = Answering(first, first.stable.version, scorer)
        self._changed.set()
        threading.Thread(target=self._keep_loaded, name="loader", daemon=True).start()

    @property
    def answering(self) -> Answering | None:
        """What answers now; None before the first version is loaded."""
        return self._answering

    @property
    def wanted(self) -> Wanted:
        """The newest configuration that was heard of."""
        return self._wanted

    @property
    def loaded(self) -> Mapping[int, Scorer]:
        """Every version that is loaded, by number."""
        return self._scorers

    def want(self, wanted: Wanted) -> None:
        """Store a newer configuration; an older one is ignored. Returns at once and never raises."""
        with self._writing:  # held for microseconds, never while something loads
            if wanted.order <= self._wanted.order:
                return
            self._wanted = wanted
            now = self._answering
            # The share and the salt need no loading: they hold from here on.
            if now is not None:
                self._answering = Answering(wanted, now.version, now.scorer)
        self._changed.set()

    def status(self) -> dict[str, Any]:
        """What this replica has and does: `fence`, `sequence`, `stable` (who answers), `loaded`, `failed`."""
        answering, wanted = self._answering, self._wanted
        return {
            "fence": wanted.fence,
            "sequence": wanted.sequence,
            "stable": answering.version if answering else None,
            "loaded": sorted(self._scorers),
            "failed": {str(v): why for v, why in list(self._failed.items())},
        }

    def _keep_loaded(self) -> None:
        """The loader thread: brings what is loaded to what is wanted, then flips, then lets go of the rest."""
        while True:
            self._changed.wait(_RETRY_S if self._failed else None)
            self._changed.clear()
            wanted = self._wanted
            for held in wanted.held:
                if held.version not in self._scorers:
                    self._try(held)
            with self._writing:
                stable = self._wanted.stable
                if stable and stable.version in self._scorers:
                    self._answering = Answering(self._wanted, stable.version, self._scorers[stable.version])
                keep = {held.version for held in self._wanted.held}
                if self._answering:
                    keep.add(self._answering.version)
                # A new dictionary: whoever reads the old one goes on reading it whole.
                self._scorers = {v: scorer for v, scorer in self._scorers.items() if v in keep}
                self._failed = {v: why for v, why in self._failed.items() if v in keep}

    def _try(self, held: Held) -> None:
        try:
            scorer = self._load(held)
        except Exception as exc:  # noqa: BLE001 - outermost loop: a bad artifact must not end the thread
            _log.warning("version %s cannot be loaded: %s", held.version, exc)
            self._failed = self._failed | {held.version: str(exc)}
        else:
            self._scorers = self._scorers | {held.version: scorer}
            self._failed = {v: why for v, why in self._failed.items() if v != held.version}
