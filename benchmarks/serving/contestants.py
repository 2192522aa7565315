"""Servers on trial, each a process of its own or an application on our cluster, and the peers among them."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from benchmarks.serving import workload
from benchmarks.serving.environments import python_of
from mlops_ray.cluster.processes import free_port

JSON = "application/json"
_PEERS = Path(__file__).parent / "peers"
# scikit-learn's trees take a thread per core even for one row, and those wait for each other in busy loops: beside any
# other process the peers fall to a few requests per second. One thread is what a careful user would set.
_ONE_THREAD = {"OMP_NUM_THREADS": "1"}
# A server that imports scikit-learn and MLflow on two busy cores takes half a minute.
_START_S = 180.0


@dataclass(frozen=True)
class Contestant:
    """A server to be loaded: where, with what, and which processes answer.

    probability: the first row's score out of an answer, so that all are seen to serve the same model."""

    name: str
    url: str
    bodies: Sequence[bytes]
    probability: Callable[[Any], float]
    processes: Callable[[], Sequence[psutil.Process]]
    media_type: str = JSON

    def ask(self, body: bytes) -> float:
        """The score of one request's row. Raises: URLError, HTTPError."""
        request = urllib.request.Request(self.url, body, {"Content-Type": self.media_type})
        with urllib.request.urlopen(request, timeout=30) as answer:
            return float(self.probability(json.loads(answer.read())))


def family(pid: int) -> Callable[[], list[psutil.Process]]:
    """The process and its descendants, whenever it is asked."""

    def now() -> list[psutil.Process]:
        try:
            head = psutil.Process(pid)
            return [head, *head.children(recursive=True)]
        except psutil.NoSuchProcess:
            return []

    return now


@contextlib.contextmanager
def server(
    command: Sequence[str], log: Path, *, cwd: Path | None = None, env: Mapping[str, str] | None = None
) -> Iterator[Callable[[], list[psutil.Process]]]:
    """A server process and its children, ended with the block."""
    with log.open("wb") as out:
        process = subprocess.Popen(
            list(command),
            cwd=cwd,
            env={**os.environ, **_ONE_THREAD, **(env or {})},
            stdout=out,
            stderr=subprocess.STDOUT,
        )
    try:
        yield family(process.pid)
    finally:
        left = family(process.pid)()
        for each in left:
            with contextlib.suppress(psutil.NoSuchProcess):
                each.terminate()
        _, alive = psutil.wait_procs(left, timeout=10)
        for each in alive:
            with contextlib.suppress(psutil.NoSuchProcess):
                each.kill()
        process.wait()


def await_answer(contestant: Contestant, log: Path) -> float:
    """The answer to its first request, as soon as it gives one. Raises: RuntimeError with the end of its log."""
    deadline = time.monotonic() + _START_S
    while True:
        try:
            return contestant.ask(contestant.bodies[0])
        except (urllib.error.URLError, ConnectionError, TimeoutError) as exc:
            if time.monotonic() > deadline:
                tail = log.read_text(errors="replace")[-2000:]
                raise RuntimeError(f"{contestant.name} does not answer ({exc}): {tail}") from exc
        time.sleep(0.2)  # a server that starts tells nobody


@contextlib.contextmanager
def peers(root: Path, folder: Path, pipeline: Path, graph: Path, rows: workload.Table) -> Iterator[list[Contestant]]:
    """`mlflow models serve`, MLServer and BentoML with the pipeline, the last two with the graph too.

    Args: root: where environments are kept; folder: scratch; rows: one per request."""
    with contextlib.ExitStack() as stack:
        started = [_mlflow(stack, root, folder, pipeline, rows)]
        for kind, model in (("Pipeline", pipeline), ("Graph", graph)):
            started.append(_mlserver(stack, root, folder, kind, model, rows))
            started.append(_bentoml(stack, root, folder, kind, model, rows))
        for each, log in started:
            await_answer(each, log)
        yield [each for each, _ in started]


def _mlflow(
    stack: contextlib.ExitStack, root: Path, folder: Path, pipeline: Path, rows: workload.Table
) -> tuple[Contestant, Path]:
    python, port, log = python_of(root, "mlflow"), free_port(), folder / "mlflow.log"
    model = folder / "mlflow-model"
    subprocess.run([str(python), str(_PEERS / "mlflow_model.py"), str(pipeline), str(model)], check=True)
    command = [str(python), "-m", "mlflow", "models", "serve", "-m", str(model), "-p", str(port), "-h", "127.0.0.1"]
    # Its own interpreter, not another environment; and the server that it starts by name is the environment's.
    env = {"PATH": os.pathsep.join((str(python.parent), os.environ["PATH"])), "MLFLOW_DISABLE_TELEMETRY": "true"}
    running = stack.enter_context(server([*command, "--env-manager", "local"], log, cwd=folder, env=env))
    bodies = [json.dumps({"dataframe_records": [row]}).encode() for row in workload.records(rows)]
    url = f"http://127.0.0.1:{port}/invocations"
    # Its scikit-learn flavour answers labels: `predict`, and not the dearer `predict_proba` of the others.
    return Contestant("mlflow models serve", url, bodies, lambda said: said["predictions"][0], running), log


def _mlserver(
    stack: contextlib.ExitStack, root: Path, folder: Path, kind: str, model: Path, rows: workload.Table
) -> tuple[Contestant, Path]:
    python, port = python_of(root, "mlserver"), free_port()
    home, log = folder / f"mlserver-{kind}", folder / f"mlserver-{kind}.log"
    home.mkdir()
    ports = {"http_port": port, "grpc_port": free_port(), "metrics_port": free_port()}
    settings = {"host": "127.0.0.1", "parallel_workers": 0, "debug": False, **ports}
    (home / "settings.json").write_text(json.dumps(settings))
    parameters = {"uri": str(model), "extra": {"categories": list(workload.CATEGORIES)}}
    described = {"name": "bench", "implementation": f"mlserver_runtime.{kind}", "parameters": parameters}
    (home / "model-settings.json").write_text(json.dumps(described))
    running = stack.enter_context(
        server([str(python.with_name("mlserver")), "start", str(home)], log, cwd=home, env={"PYTHONPATH": str(_PEERS)})
    )
    kinds = {name: "BYTES" if name in workload.CATEGORIES else "FP64" for name in workload.INPUTS}
    bodies = [
        json.dumps(
            {
                "inputs": [
                    {"name": name, "shape": [1], "datatype": kind_, "data": [row[name]]}
                    for name, kind_ in kinds.items()
                ]
            }
        ).encode()
        for row in workload.records(rows)
    ]
    name = f"MLServer, {_named(kind)}"
    url = f"http://127.0.0.1:{port}/v2/models/bench/infer"
    return Contestant(name, url, bodies, lambda said: said["outputs"][0]["data"][0], running), log


def _bentoml(
    stack: contextlib.ExitStack, root: Path, folder: Path, kind: str, model: Path, rows: workload.Table
) -> tuple[Contestant, Path]:
    python, port, log = python_of(root, "bentoml"), free_port(), folder / f"bentoml-{kind}.log"
    target = ("serve", f"bentoml_service:{kind}", "--host", "127.0.0.1", "--port", str(port))
    env = {
        "BENCH_MODEL": str(model),
        "BENCH_CATEGORIES": ",".join(workload.CATEGORIES),
        "BENTOML_HOME": str(folder / f"bentoml-{kind}"),
        "BENTOML_DO_NOT_TRACK": "True",
        "PATH": os.pathsep.join((str(python.parent), os.environ["PATH"])),
    }
    running = stack.enter_context(server([str(python), "-m", "bentoml", *target], log, cwd=_PEERS, env=env))
    bodies = [json.dumps({"rows": [row]}).encode() for row in workload.records(rows)]
    url = f"http://127.0.0.1:{port}/predict"
    return Contestant(f"BentoML, {_named(kind)}", url, bodies, lambda said: said[0], running), log


def _named(kind: str) -> str:
    return "scikit-learn" if kind == "Pipeline" else "the same ONNX graph"
