"""One request, one prediction: what a replica remembers of the requests whose id their client chose.

Bounded by what the answers hold, since one request may have a hundred thousand rows. Across replicas, and after an
answer was forgotten, the log sorts it out: there the first record of an id counts.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Awaitable, Callable

from mlops_ray.errors import BadRequest
from mlops_ray.serving.exchange import Answer

# Answers, and numbers that they hold together: 8 MB of scores.
_ANSWERS, _CELLS = 4_096, 1_000_000


class Repeats:
    """Answers by request id. All methods run on one event loop."""

    def __init__(self) -> None:
        self._answered: OrderedDict[str, tuple[int, Answer]] = OrderedDict()
        self._under_way: dict[str, tuple[int, asyncio.Future[Answer]]] = {}
        self._n_cells = 0

    async def once(self, request_id: str, fingerprint: int, answer: Callable[[], Awaitable[Answer]]) -> Answer:
        """What `answer()` gives; the same again for a request that was answered before, or is being answered.

        Args: fingerprint: a hash of what is asked.
        Raises: BadRequest (422) when the id was used for something else; what `answer` raises.
        """
        while (found := self._under_way.get(request_id)) is not None:
            _demand_same(request_id, fingerprint, found[0])
            other = found[1]
            try:
                return await asyncio.shield(other)
            except asyncio.CancelledError:
                if not other.cancelled():
                    raise
                # That client hung up before its answer was recorded: this one, its retry, does the work.
            finally:
                del found, other  # an error's traceback holds this frame, and the future holds the error
        if (known := self._answered.get(request_id)) is not None:
            _demand_same(request_id, fingerprint, known[0])
            return known[1]
        future: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        self._under_way[request_id] = fingerprint, future
        try:
            given = await answer()
        except asyncio.CancelledError:
            future.cancel()
            raise
        except BaseException as exc:
            future.set_exception(exc)
            future.exception()  # mark as seen: often nobody else waits
            del future  # likewise: a cycle would hold the request's body until the garbage collector comes
            raise
        finally:
            del self._under_way[request_id]
        future.set_result(given)
        self._remember(request_id, fingerprint, given)
        return given

    def _remember(self, request_id: str, fingerprint: int, answer: Answer) -> None:
        self._answered[request_id] = fingerprint, answer
        self._n_cells += _cells(answer)
        while len(self._answered) > _ANSWERS or self._n_cells > _CELLS:
            _, (_, oldest) = self._answered.popitem(last=False)
            self._n_cells -= _cells(oldest)


def _cells(answer: Answer) -> int:
    """Numbers that an answer holds: scores, versions and marks of each row, and its contributions."""
    contributions = sum(len(row) for row in answer.contributions or ())
    return answer.scores.size + 2 * answer.n_rows + 2 * contributions


def _demand_same(request_id: str, fingerprint: int, known: int) -> None:
    if fingerprint != known:
        detail = f"{request_id!r} was used for another body; give each request a key of its own"
        raise BadRequest(422, "Idempotency-Key used twice", detail)
