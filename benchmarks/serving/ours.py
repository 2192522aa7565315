"""Our side: a project that is trained and brought up by the command, a second one with a canary, and their variants."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import joblib
import requests
import yaml

from benchmarks.serving import workload
from benchmarks.serving.contestants import Contestant, await_answer, server
from mlops_ray.cluster import on_ray as cluster
from mlops_ray.cluster import processes
from mlops_ray.cluster.processes import free_port
from mlops_ray.config import Project, load_project, portable
from mlops_ray.state import Store
from mlops_ray.training.artifact import model
from mlops_ray.training.artifact.model import Model

ROOT = Path(__file__).parents[2]
CANARY = f"{workload.NAME}_canary"
_CANARY_SHARE = 0.1
# Applications and replicas start one after the other on two busy cores.
_START_S = 180.0
_TRAINING_ROWS = 20_000


@dataclass(frozen=True)
class Trained:
    """What training left: the project file, the loaded version, and the pipeline as a file for the peers."""

    file: Path
    model: Model
    pipeline: Path

    @cached_property
    def project(self) -> Project:
        return load_project([self.file], env={})

    @property
    def graph(self) -> Path:
        return self.model.folder / "model.onnx"

    @property
    def text(self) -> str:
        """The project as replicas are handed it."""
        return portable([self.file])


def train(folder: Path) -> Trained:
    """The project, trained in `folder` by the command; what is there already stays."""
    file, root = folder / "project.yaml", folder / "root"
    if not file.exists():
        workload.write_source(folder / "rows.parquet", _TRAINING_ROWS, seed=1)
        content = workload.project(folder / "rows.parquet", root, http_port=free_port(), metrics_port=free_port())
        file.write_text(yaml.safe_dump(content), encoding="utf-8")
        command("prepare", "-c", file)
        command("train", "-c", file)
    project = load_project([file], env={})
    store = Store.open(project.storage.state)
    with store.read() as tx:
        row = tx.versions(project.project)[0]
    store.close()
    loaded = model.load(row.artifact, row.sha256)
    pipeline = folder / "pipeline.joblib"
    joblib.dump(loaded.pipeline(), pipeline)
    return Trained(file, loaded, pipeline)


def command(*arguments: str | Path) -> dict[str, Any]:
    """What the command printed as JSON. Raises: RuntimeError with its errors."""
    words = [sys.executable, "-m", "mlops_ray", *map(str, arguments), "--json"]
    done = subprocess.run(words, env=_environment(), capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{' '.join(words)}: {done.stderr[-2000:] or done.stdout[-2000:]}")
    said: dict[str, Any] = json.loads(done.stdout)
    return said


def _environment() -> dict[str, str]:
    # The cluster's processes import this checkout: the package, and the variants.
    path = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
    return {**os.environ, "PYTHONPATH": path, "RAY_AUTH_MODE": "disabled"}


@contextlib.contextmanager
def served(trained: Trained, folder: Path, rows: workload.Table) -> Iterator[dict[str, Contestant]]:
    """The project, the one with a canary, the one without its log and the bare ingress on one cluster, and the two
    applications under uvicorn; by name."""
    second = _second(trained)
    bodies = workload.requests(rows)
    with contextlib.ExitStack() as stack:
        command("up", "-c", trained.file)
        stack.callback(command, "down", "-c", trained.file)
        command("up", "-c", second)
        found = cluster.find(trained.project)
        assert found is not None, "`up` has just started it"
        beside = {
            "uncaptured": ("benchmarks.serving.variants:uncaptured", {"text": trained.text}),
            "bare": ("benchmarks.serving.bare:application", {"graph": str(trained.graph)}),
        }
        _deploy(found.dashboard, beside)
        if not _rolling(trained.project):
            command("rollout", "start", "-c", second, "1", "--why", "an equal canary")
        here = partial(processes.marked, found.id)
        all_of = {
            label: Contestant(label, f"{found.http}/{name}/predict", bodies, _probability, here)
            for label, name in (
                ("mlops_ray", workload.NAME),
                ("canary", CANARY),
                ("uncaptured", "uncaptured"),
                ("bare Serve", "bare"),
            )
        }
        text = folder / "project.text"
        text.write_text(trained.text, encoding="utf-8")
        for label, module, what in (
            ("bare uvicorn", "bare", trained.graph),
            ("our app, uvicorn", "variants", text),
        ):
            port, log = free_port(), folder / f"{module}.log"
            words = (sys.executable, "-m", f"benchmarks.serving.{module}", str(what), str(port))
            running = stack.enter_context(server(words, log, env=_environment()))
            url = f"http://127.0.0.1:{port}/predict"
            all_of[label] = Contestant(label, url, bodies, _probability, running)
            await_answer(all_of[label], log)
        _await_canary(all_of["canary"])
        yield all_of


def _probability(said: Any) -> float:
    return float(said["predictions"][0]["probability"])


def _second(trained: Trained) -> Path:
    """A project file like the first one's, in the same state, with its version twice: as stable and as canary."""
    file = trained.file.with_name("canary.yaml")
    content = yaml.safe_load(trained.file.read_text(encoding="utf-8"))
    content |= {"project": CANARY, "rollout": {"shares": [_CANARY_SHARE]}}
    content["monitoring"] = {"metrics_port": free_port()}
    if not file.exists():
        file.write_text(yaml.safe_dump(content), encoding="utf-8")
    store = Store.open(trained.project.storage.state)
    with store.read() as tx:
        row, there = tx.versions(trained.project.project)[-1], tx.versions(CANARY)
    if not there:
        _register(trained.project, row.run_id, row.artifact)
        for version in (1, 2):
            store.run(lambda tx, version=version: tx.save_version(replace(row, project=CANARY, version=version)))
    store.close()
    return file


def _rolling(project: Project) -> bool:
    """Whether an earlier run has left its rollout open: it goes on as soon as the project is up again."""
    store = Store.open(project.storage.state)
    with store.read() as tx:
        found = tx.open_rollout(CANARY)
    store.close()
    return found is not None


def _register(project: Project, run_id: str, artifact: str) -> None:
    """The registry knows both versions too: the controller moves aliases there."""
    import mlflow

    client = mlflow.MlflowClient(project.storage.tracking)
    client.create_registered_model(CANARY)
    for _ in range(2):
        client.create_model_version(CANARY, artifact, run_id)


def _deploy(dashboard: str, wanted: Mapping[str, tuple[str, Mapping[str, Any]]]) -> None:
    """Further applications beside those that Serve runs. Raises: RuntimeError when they do not come up."""
    url, deadline = f"{dashboard}/api/serve/applications/", time.monotonic() + _START_S
    ours = [
        {"name": name, "route_prefix": f"/{name}", "import_path": path, "args": dict(args)}
        for name, (path, args) in wanted.items()
    ]
    while True:
        found = requests.get(url, timeout=30).json()
        states = {name: each["status"] for name, each in found["applications"].items()}
        if all(states.get(name) == "RUNNING" for name in wanted):
            return
        if (
            not wanted.keys() <= states.keys()
        ):  # at first, and when our own controller wrote between reading and writing
            kept = [each["deployed_app_config"] for each in found["applications"].values()]
            body = {"proxy_location": "EveryNode", "http_options": _listening(found), "applications": [*kept, *ours]}
            requests.put(url, json=body, timeout=60).raise_for_status()
        if time.monotonic() > deadline or "DEPLOY_FAILED" in {states.get(name) for name in wanted}:
            raise RuntimeError(f"Serve does not bring up {sorted(wanted)}: {json.dumps(found['applications'])[:4000]}")
        time.sleep(0.5)  # Serve has no event to wait for: its status is polled


def _listening(found: Mapping[str, Any]) -> dict[str, Any]:
    options = found["http_options"]
    return {"host": options["host"], "port": options["port"]}


def _await_canary(contestant: Contestant) -> None:
    """Until the canary answers its share: one row of ten. Raises: RuntimeError when it does not."""
    deadline = time.monotonic() + _START_S
    while _canary_rows(contestant, contestant.bodies) == 0:
        if time.monotonic() > deadline:
            raise RuntimeError(f"{contestant.name}: no row is answered by the canary")
        time.sleep(0.5)  # a rollout's start has no event for clients


def _canary_rows(contestant: Contestant, bodies: Sequence[bytes]) -> int:
    """How many of these the canary answers. Raises: RuntimeError with an answer that is none."""
    n = 0
    for body in bodies:
        answer = requests.post(contestant.url, body, headers={"Content-Type": "application/json"})
        if not answer.ok:
            raise RuntimeError(f"{contestant.url}: {answer.status_code} {answer.text[:500]}")
        n += answer.json()["predictions"][0]["variant"] == "canary"
    return n
