"""How a replica has a loaded version score rows without holding up its other requests.

ONNX Runtime scores a few rows between two requests, since each takes it microseconds. Many rows, and whatever
scikit-learn scores, go to a bounded pool of threads: the engines let go of Python's lock while they compute.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mlops_ray.config import Project
from mlops_ray.data.profile import Columns
from mlops_ray.errors import BackendUnavailable, BadRequest, DataError
from mlops_ray.serving import explain
from mlops_ray.serving.scores import sound
from mlops_ray.serving.versions import Scorer

# Rows that ONNX Runtime scores between two requests. A thread's detour costs 100 microseconds, and 400 rows of a
# 100-tree graph take a millisecond, which is what the other requests may be held up for.
INLINE_ROWS = 400
# scikit-learn's own threads use the other cores.
_THREADS = min(4, os.cpu_count() or 1)


class Scoring:
    """The pool, and what explaining needs to know of each version. Methods run on one event loop."""

    def __init__(self, project: Project) -> None:
        self._kinds = project.features.kinds
        self._pool = ThreadPoolExecutor(_THREADS, "scorer")
        self._ordinary: tuple[Scorer, dict[str, Any]] | None = None

    async def scored(self, version: int, scorer: Scorer, columns: Columns, n: int) -> tuple[NDArray[np.float64], float]:
        """The version's scores of `n` rows, in its task's shape, and the microseconds that they took.

        Raises: BadRequest (422) for rows that it cannot score, BackendUnavailable for what is no prediction.
        """
        try:
            if scorer.engine == "onnx" and n <= INLINE_ROWS:
                scores, took_s = timed(scorer, columns)
            else:
                loop = asyncio.get_running_loop()
                scores, took_s = await loop.run_in_executor(self._pool, timed, scorer, columns)
        except DataError as exc:
            raise BadRequest(422, "cannot be scored", str(exc)) from exc
        if not sound(scores, scorer.task, n, len(scorer.classes)):
            raise BackendUnavailable(f"version {version}", "it answered with something that is no prediction")
        return scores, took_s * 1e6

    async def ordinary(self, scorer: Scorer) -> dict[str, Any]:
        """The row that explanations compare with (`explain.baseline`), worked out once per version.

        Raises: ArtifactRefused when the version's reference cannot be read."""
        known = self._ordinary
        if known is None or known[0] is not scorer:
            work = asyncio.get_running_loop().run_in_executor(self._pool, _baseline, scorer, self._kinds)
            known = self._ordinary = scorer, await work
        return known[1]


def timed(scorer: Scorer, columns: Columns) -> tuple[NDArray[np.float64], float]:
    """The scores, and the seconds that the scoring took, without the wait for a thread."""
    started = time.perf_counter()
    scores = scorer.score(columns)
    return scores, time.perf_counter() - started


def _baseline(scorer: Scorer, kinds: Mapping[str, str]) -> dict[str, Any]:
    return explain.baseline(scorer.reference, kinds)
