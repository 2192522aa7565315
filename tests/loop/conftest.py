"""A real cluster of our own (`ray start --head`, HAProxy) with the flights' first version serving on it."""

from __future__ import annotations

import contextlib
import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml

from mlops_ray import verbs
from mlops_ray.cluster import on_ray as cluster
from mlops_ray.cluster.processes import free_port
from mlops_ray.config import Project
from mlops_ray.data import lake
from mlops_ray.serving.places import log_uri
from mlops_ray.state import Store
from tests.load import eventually

ROOT = Path(__file__).parents[2]
FLIGHTS = ROOT / "configs" / "flights.yaml"


@dataclass(frozen=True)
class Live:
    """A project that is up: its files, its state, its URL, and the pid of each actor."""

    paths: list[Path]
    project: Project
    store: Store
    url: str
    dashboard: str

    def actors(self) -> dict[str, int]:
        """Process ids of monitor, collector and controller, by actor name."""
        found: dict[str, int] = verbs.monitor(self.paths, os.environ)["actors"]
        return found


def overlay(folder: Path, **blocks: object) -> list[Path]:
    """The flights' project with its storage in `folder`, ports that are free, and a search of two trials."""
    logistic = {
        "estimator": "sklearn.linear_model:LogisticRegression",
        "params": {"max_iter": 200},
        "space": {"C": {"kind": "log_uniform", "low": 0.001, "high": 0.1}},
    }
    content = {
        "storage": {"root": str(folder / "root")},
        "cluster": {"http_port": free_port()},
        "monitoring": {"metrics_port": free_port()},
        "rollout": {"shares": [0.3, 0.5]},
        "search": {"trials": 2, "candidates": [logistic]},
        **blocks,
    }
    # In a folder of its own: jobs are sent what lies beside it, and what a project that is up writes would change
    # while it is packed.
    file = folder / "files" / "overlay.yaml"
    file.parent.mkdir()
    file.write_text(yaml.safe_dump(content), encoding="utf-8")
    return [FLIGHTS, file]


@pytest.fixture(scope="session")
def clean_environment(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """No token file and no RAY_ADDRESS of the person who runs the tests gets in."""
    with pytest.MonkeyPatch.context() as env:
        env.setenv("HOME", str(tmp_path_factory.mktemp("home")))
        env.delenv("RAY_ADDRESS", raising=False)
        env.setenv("RAY_AUTH_MODE", "disabled")
        yield


@contextlib.contextmanager
def brought_up(paths: list[Path]) -> Iterator[Live]:
    """`mlops-ray run` of these files; taken down afterwards."""
    project = verbs.load(paths, os.environ).project
    try:
        result = verbs.run(paths, os.environ)
        found = cluster.find(project)
        assert found is not None
        yield Live(paths, project, verbs.open_store(project), result["deploy"]["url"], found.dashboard)
    finally:
        verbs.down(paths, os.environ)


def in_the_log(project: Project, ids: list[str], within_s: float = 60.0) -> None:
    """Every acknowledged prediction stands in the log exactly once."""
    assert len(set(ids)) == len(ids)

    def found() -> Counter[str]:
        return Counter(lake.scan(log_uri(project), "0", "9", ["prediction_id"])["prediction_id"].to_pylist())

    eventually(lambda: not set(ids) - found().keys(), within_s)
    counts = found()
    assert {i: counts[i] for i in ids if counts[i] != 1} == {}


@pytest.fixture(scope="module")
def live(tmp_path_factory: pytest.TempPathFactory, clean_environment: None) -> Iterator[Live]:
    """The flights with their first version, up."""
    with brought_up(overlay(tmp_path_factory.mktemp("live"))) as found:
        yield found
