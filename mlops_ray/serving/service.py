"""What one ingress replica does with a request, without Ray: the split, the scores, the record, the answer.

The stable version is scored here, in-process. A canary is a function handed in (`CallCanary`), awaited under a
deadline: when it fails or is late, stable's score answers and the row counts as the canary's failure. Each canary row
is scored by stable too, so that the log holds paired evidence.

Configuration arrives through `want`, which only stores it: a thread loads what is missing, and a version answers only
after its golden requests replayed. Until then the replica keeps answering with what it has.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from mlops_ray.config import Project
from mlops_ray.data.profile import Columns
from mlops_ray.errors import BackendUnavailable, BadRequest
from mlops_ray.serving import exchange
from mlops_ray.serving.capture import Capture
from mlops_ray.serving.protocol import Batch, Form, Labels
from mlops_ray.serving.records import Labelled, Scored, Trial, Watermark
from mlops_ray.serving.routing import to_canary

_log = logging.getLogger(__name__)

# Request ids whose answers a replica remembers, so that a client's retry is one prediction.
_REMEMBERED = 4096
# How long after a failed load it is tried again: a store that was away for a moment must not end a promotion.
_RETRY_S = 2.0
# How long rows for the canary wait for company: its hop costs more than its model.
_COALESCE_S = 0.003


class Scorer(Protocol):
    """A loaded version."""

    def score(self, columns: Columns) -> NDArray[np.float64]:
        """Probability of label 1 for each row, shape (n,)."""


CallCanary = Callable[[int, Columns], Awaitable[NDArray[np.float64]]]
Load = Callable[["Held"], Scorer]


@dataclass(frozen=True)
class Held:
    """Where a version's artifact stands, and the hash of its manifest."""

    version: int
    artifact: str
    sha256: str


@dataclass(frozen=True)
class Wanted:
    """The serving configuration of a project, as the state database has it. `sequence` only grows."""

    sequence: int = -1
    stable: Held | None = None
    canary: int | None = None
    share: float = 0.0
    salt: str = ""
    warm: tuple[Held, ...] = ()

    @classmethod
    def parse(cls, spec: Mapping[str, Any], sequence: int) -> Wanted:
        """From the state database's JSON."""
        return cls(
            sequence=sequence,
            stable=Held(**spec["stable"]) if spec.get("stable") else None,
            canary=spec.get("canary"),
            share=spec.get("share", 0.0),
            salt=spec.get("salt", ""),
            warm=tuple(Held(**held) for held in spec.get("warm", ())),
        )

    def spec(self) -> dict[str, Any]:
        """As JSON for the state database: everything but the sequence."""
        return {
            "stable": vars(self.stable) if self.stable else None,
            "canary": self.canary,
            "share": self.share,
            "salt": self.salt,
            "warm": [vars(held) for held in self.warm],
        }

    @property
    def held(self) -> tuple[Held, ...]:
        """Every version that a replica must have loaded."""
        return ((self.stable,) if self.stable else ()) + self.warm


@dataclass
class _Waiting:
    """Rows of several requests on their way to the canary in one call."""

    columns: list[Columns] = field(default_factory=list)
    futures: list[asyncio.Future[NDArray[np.float64] | None]] = field(default_factory=list)


class Service:
    """One replica's state and work. All methods but `want` and `status` run on the replica's event loop."""

    def __init__(
        self, project: Project, capture: Capture, load: Load, call_canary: CallCanary, *, first: Wanted | None = None
    ) -> None:
        """With `first`, its stable version is loaded before this returns. Raises what `load` raises."""
        self.project, self._capture, self._load, self._call_canary = project, capture, load, call_canary
        self.form = Form.of(project)
        self._scorers: dict[int, Scorer] = {}
        self._failed: dict[int, str] = {}
        self._wanted = first or Wanted()
        self._answering: tuple[int, Scorer] | None = None
        self._changed = threading.Event()
        self._answered: OrderedDict[str, tuple[int, dict[str, Any]]] = OrderedDict()
        self._under_way: dict[str, asyncio.Future[dict[str, Any]]] = {}
        self._waiting: dict[int, _Waiting] = {}
        if first and first.stable:
            scorer = self._scorers[first.stable.version] = load(first.stable)
            self._answering = first.stable.version, scorer
        self._changed.set()
        threading.Thread(target=self._keep_loaded, name="loader", daemon=True).start()

    def want(self, wanted: Wanted) -> None:
        """Store a newer configuration; an older one is ignored. Returns at once and never raises."""
        if wanted.sequence > self._wanted.sequence:
            self._wanted = wanted
            self._changed.set()

    def status(self) -> dict[str, Any]:
        """What this replica has and does: `sequence`, `stable` (the version that answers), `loaded`, `failed`."""
        return {
            "sequence": self._wanted.sequence,
            "stable": self._answering[0] if self._answering else None,
            "loaded": sorted(self._scorers),
            "failed": {str(v): why for v, why in list(self._failed.items())},
        }

    def ready(self) -> bool:
        """Whether predictions can be answered."""
        return self._answering is not None

    async def predict(self, request_id: str, batch: Batch, body: int = 0) -> dict[str, Any]:
        """Score, record, answer. The same `request_id` again gets the same answer, and is one prediction.

        Args: body: a hash of what was asked, so that another question under the same id is noticed.
        Raises: BadRequest (422) for one; BackendUnavailable when no version is loaded yet, or when the record cannot be
            written.
        """
        while (other := self._under_way.get(request_id)) is not None:
            try:
                return await asyncio.shield(other)
            except asyncio.CancelledError:
                if not other.cancelled():
                    raise
                # That client hung up before its answer was recorded: this one, its retry, does the work.
        if request_id in self._answered:
            asked, answer = self._answered[request_id]
            if asked != body:
                detail = f"{request_id!r} was used for another body; give each request a key of its own"
                raise BadRequest(422, "Idempotency-Key used twice", detail)
            return answer
        future: asyncio.Future[dict[str, Any]] = asyncio.get_running_loop().create_future()
        self._under_way[request_id] = future
        try:
            answer = await self._predict(request_id, batch)
        except asyncio.CancelledError:
            future.cancel()
            raise
        except BaseException as exc:
            future.set_exception(exc)
            future.exception()  # mark as seen: often nobody else waits
            raise
        finally:
            del self._under_way[request_id]
        future.set_result(answer)
        self._answered[request_id] = body, answer
        if len(self._answered) > _REMEMBERED:
            self._answered.popitem(last=False)
        return answer

    async def _predict(self, request_id: str, batch: Batch) -> dict[str, Any]:
        wanted, answering = self._wanted, self._answering
        if answering is None:
            raise BackendUnavailable(f"project {self.project.project!r}", "no version is loaded yet; try again shortly")
        version, scorer = answering
        started = time.perf_counter()
        scores = scorer.score(batch.columns)
        score_us = (time.perf_counter() - started) * 1e6
        if not _are_probabilities(scores, batch.n_rows):
            raise BackendUnavailable(f"version {version}", "it answered with something that is no probability")
        answers, versions, variants = scores, [version] * batch.n_rows, ["stable"] * batch.n_rows
        record = Scored(
            request_id,
            time.time(),
            batch.keys,
            batch.times,
            dict(batch.columns),
            version,
            scores,
            score_us,
            repeatable=True,
        )
        if wanted.canary is not None and wanted.share > 0:
            chosen = np.flatnonzero(to_canary(batch.keys, wanted.salt, wanted.share))
            if len(chosen):
                rows = {name: values[chosen] for name, values in batch.columns.items()}
                theirs = await self._canary_scores(wanted.canary, rows)
                trial = Trial(
                    wanted.canary, wanted.salt, wanted.share, chosen, theirs, "" if theirs is not None else "error"
                )
                record = replace(record, canary=trial)
                answers = scores.copy()
                for at, row in enumerate(chosen):
                    variants[row] = "canary"
                    if theirs is not None:
                        answers[row] = theirs[at]
                        versions[row] = wanted.canary
        self._capture.append(record)
        await self._capture.durable()
        threshold = self.project.serving.threshold
        return {
            "request_id": request_id,
            "predictions": [
                {
                    "prediction_id": f"{request_id}:{i}",
                    "probability": float(p),
                    "label": int(p >= threshold),
                    "version": v,
                    "variant": variant,
                }
                for i, (p, v, variant) in enumerate(zip(answers, versions, variants, strict=True))
            ],
        }

    def feedback(self, labels: Labels) -> int:
        """Record late labels; returns how many. Raises: BackendUnavailable when they cannot be written."""
        late = exchange.Labels(
            tuple(labels.ids), ("",) * len(labels.ids), np.asarray(labels.values, np.float64), np.asarray(labels.times)
        )
        self._capture.append(Labelled(time.time(), late))
        return len(labels.ids)

    def watermark(self, time_s: float) -> None:
        """Record that nothing older than `time_s` will come. Raises: BackendUnavailable when it cannot be written."""
        self._capture.append(Watermark(time.time(), time_s))

    async def _canary_scores(self, version: int, columns: Columns) -> NDArray[np.float64] | None:
        """The canary's scores for these rows, one each; None when it failed, was late or answered nonsense."""
        loop = asyncio.get_running_loop()
        future: asyncio.Future[NDArray[np.float64] | None] = loop.create_future()
        waiting = self._waiting.get(version)
        if waiting is None:
            waiting = self._waiting[version] = _Waiting()
            loop.call_later(_COALESCE_S, lambda: loop.create_task(self._send(version)))
        waiting.columns.append(columns)
        waiting.futures.append(future)
        try:
            return await asyncio.wait_for(future, self.project.serving.canary_deadline_s)
        except TimeoutError:
            return None

    async def _send(self, version: int) -> None:
        waiting = self._waiting.pop(version)
        names = waiting.columns[0].keys()
        together = {name: np.concatenate([c[name] for c in waiting.columns]) for name in names}
        sizes = [len(next(iter(c.values()))) for c in waiting.columns]
        scores = await self._guarded(version, together, sum(sizes))
        parts = [None] * len(sizes) if scores is None else np.split(scores, np.cumsum(sizes)[:-1])
        for future, part in zip(waiting.futures, parts, strict=True):
            if not future.done():
                future.set_result(part)

    async def _guarded(self, version: int, columns: Columns, n: int) -> NDArray[np.float64] | None:
        try:
            call = self._call_canary(version, columns)
            scores = np.asarray(await asyncio.wait_for(call, self.project.serving.canary_deadline_s), dtype=np.float64)
        except Exception:  # noqa: BLE001 - whatever a canary does, stable answers and the row counts against it
            return None
        return scores if _are_probabilities(scores, n) else None

    def _keep_loaded(self) -> None:
        """The loader thread: brings what is loaded to what is wanted, then flips, then lets go of the rest."""
        while True:
            self._changed.wait(_RETRY_S if self._failed else None)
            self._changed.clear()
            wanted = self._wanted
            for held in wanted.held:
                if held.version in self._scorers:
                    continue
                try:
                    self._scorers[held.version] = self._load(held)
                    self._failed.pop(held.version, None)
                except Exception as exc:  # noqa: BLE001 - outermost loop: a bad artifact must not end the thread
                    _log.warning("version %s cannot be loaded: %s", held.version, exc)
                    self._failed[held.version] = str(exc)
            if wanted.stable and wanted.stable.version in self._scorers:
                self._answering = wanted.stable.version, self._scorers[wanted.stable.version]
            keep = {held.version for held in wanted.held}
            for version in [v for v in self._scorers if v not in keep]:
                del self._scorers[version]


def _are_probabilities(scores: NDArray[np.float64], n: int) -> bool:
    """Whether there is one number in [0, 1] for each row: anything else would stop the collector later."""
    return scores.shape == (n,) and bool(((scores >= 0) & (scores <= 1)).all())
