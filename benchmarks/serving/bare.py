"""The least that can answer: one row of JSON in, the graph's score out. No validation, no record, no errors.

As an application of Ray Serve it is what our ingress is measured against; under uvicorn, with a process to itself, it
is the ceiling: `python -m benchmarks.serving.bare GRAPH PORT`.
"""

from __future__ import annotations

import sys
from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from typing import Any

import numpy as np
import orjson

from benchmarks.serving.workload import CATEGORIES, NUMBERS

Send = Callable[[dict[str, Any]], Awaitable[None]]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
_TEXTS = tuple(CATEGORIES)


class Bare:
    """An ASGI application."""

    def __init__(self, graph: str) -> None:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        self._session = onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])

    async def __call__(self, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        body, more = b"", True
        while more:
            message = await receive()
            body += message.get("body", b"")
            more = message.get("more_body", False)
        rows = orjson.loads(body)["rows"]
        feed = {
            "numeric": np.array([[row[name] for name in NUMBERS] for row in rows], dtype=np.float32),
            "categorical": np.array([[row[name] for name in _TEXTS] for row in rows], dtype=object),
        }
        scores = self._session.run(["probabilities"], feed)[0][:, 1]
        answer = orjson.dumps({"predictions": [{"probability": p} for p in scores.tolist()]})
        headers = [(b"content-type", b"application/json"), (b"content-length", str(len(answer)).encode())]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": answer})


def application(args: Mapping[str, Any]) -> Any:
    """Serve's application builder: an ordinary ASGI ingress."""
    from ray import serve

    @serve.deployment(
        name="Bare",
        ray_actor_options={"num_cpus": 0.1},
        logging_config={"enable_access_log": False},
        max_ongoing_requests=64,
    )
    @serve.ingress(lambda: Bare(args["graph"]))
    class Ingress:
        pass

    return Ingress.bind()  # type: ignore[attr-defined]


def main() -> None:
    import uvicorn

    graph, port = sys.argv[1:]
    uvicorn.run(Bare(graph), port=int(port), access_log=False, log_level="error", lifespan="off")


if __name__ == "__main__":
    main()
