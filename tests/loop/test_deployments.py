"""`mlflow deployments` from nothing to a project that is up, another version on its way, and down again."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from mlops_ray import verbs
from mlops_ray.cluster import on_ray as cluster
from tests.loop.conftest import overlay
from tests.mlflow_command import mlflow

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(600)]


def test_a_deployment_is_made_described_and_taken_down(tmp_path: Path, clean_environment: None) -> None:
    paths = overlay(tmp_path)
    project = verbs.load(paths, os.environ).project
    verbs.prepare(paths, os.environ)
    first, second = (verbs.train(paths, os.environ)["version"] for _ in range(2))
    assert second != first
    target = "mlops-ray:" + ",".join(map(str, paths))

    def command(verb: str, *words: str) -> str:
        done = mlflow("deployments", verb, "-t", target, *words, folder=tmp_path)
        assert done.returncode == 0, done.stderr
        return done.stdout

    try:
        assert "flights is created" in command("create", "--name", "flights", "-m", f"models:/flights/{first}")
        told = command("get", "--name", "flights")
        assert f"stable: {first}" in told
        assert "status: READY" in told
        assert "'name': 'flights'" in command("list")
        command("update", "--name", "flights", "-m", f"models:/flights/{second}")
        assert f"rollout: flights-v{second}-r1" in command("get", "--name", "flights")
        assert "is deleted" in command("delete", "--name", "flights")
        assert cluster.find(project) is None
        assert "[]" in command("list")
    finally:
        verbs.down(paths, os.environ)
