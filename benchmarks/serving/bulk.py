"""Ten thousand rows at a time: an Arrow stream over HTTP, against ONNX Runtime on the arrays in memory."""

from __future__ import annotations

import io
import statistics
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from benchmarks.serving import load, workload
from benchmarks.serving.contestants import Contestant

ROWS = 10_000
_DIRECT = "ONNX Runtime on the arrays, one thread"
MEDIA_TYPE = "application/vnd.apache.arrow.stream"


def body(table: workload.Table) -> bytes:
    """The rows, with their keys, as an Arrow IPC stream: numbers float32, as the model takes them."""
    arrays = {name: pa.array(table[name], pa.float32()) for name in workload.NUMBERS}
    arrays |= {name: pa.array(table[name]) for name in (workload.KEY, *workload.CATEGORIES)}
    batch = pa.table(arrays)
    sink = io.BytesIO()
    with pa.ipc.new_stream(sink, batch.schema) as stream:
        stream.write_table(batch)
    return sink.getvalue()


def directly(graph: Path, table: workload.Table) -> Callable[[], float]:
    """Rows per second of ONNX Runtime on the arrays, in this process, one thread: a function that measures it."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    session = onnxruntime.InferenceSession(str(graph), options, providers=["CPUExecutionProvider"])
    feed = {
        "numeric": np.array([table[name] for name in workload.NUMBERS], dtype=np.float32).T.copy(),
        "categorical": np.array([table[name] for name in workload.CATEGORIES], dtype=object).T.copy(),
    }
    n = len(table[workload.KEY])

    def measured() -> float:
        took = []
        for _ in range(20):
            began = time.perf_counter()
            session.run(["probabilities"], feed)
            took.append(time.perf_counter() - began)
        return n / statistics.median(took)

    return measured


def samples(
    contestants: Mapping[str, Contestant], graph: Path, folder: Path, *, rounds: int, seconds: float
) -> dict[str, Any]:
    """Rows per second, medians of interleaved rounds: of ONNX Runtime itself, and over HTTP by 1 and 2 connections.

    Args: contestants: with the name of our ingress among them."""
    table = workload.rows(ROWS, seed=11)
    direct = directly(graph, table)
    script = load.script(folder / "bulk.lua", [body(table)], MEDIA_TYPE)
    ours = contestants["mlops_ray"]
    rates: dict[str, list[float]] = {}
    broken = 0
    for at in range(rounds + 1):
        found = {_DIRECT: direct()}
        for connections in (1, 2):
            sample = load.run(ours.url, script, connections=connections, seconds=seconds, processes=list)
            broken += sample.refused + sample.broken
            found[_named(connections)] = sample.per_s * ROWS
        if at:  # the first round warms
            for name, rate in found.items():
                rates.setdefault(name, []).append(rate)
    return {
        "rows_per_s": {name: statistics.median(each) for name, each in rates.items()},
        # One request at a time: two at once have two cores, and ONNX Runtime has one thread.
        "ratios": [over / bare for over, bare in zip(rates[_named(1)], rates[_DIRECT], strict=True)],
        "errors": broken,
    }


def _named(connections: int) -> str:
    return f"mlops_ray, Arrow over HTTP, {connections} at a time"
