"""`mlflow deployments` from nothing to a project that is up, another version on its way, and down again."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import tritonclient.grpc as triton
from tritonclient.utils import InferenceServerException

from mlops_ray import verbs
from mlops_ray.cluster import on_ray as cluster
from mlops_ray.cluster.processes import free_port
from tests.loop.conftest import overlay
from tests.loop.test_live import ROW
from tests.mlflow_command import mlflow

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(600)]


def answered_over_grpc(port: int, version: int) -> None:
    """Triton's client gets predictions and words over gRPC, through HAProxy to a replica."""
    application = {"application": "flights"}
    inputs = []
    for name, value in ROW.items():
        array = np.array([np.nan if value is None else value], dtype=object if isinstance(value, str) else None)
        inputs.append(triton.InferInput(name, [1], {"O": "BYTES", "f": "FP64", "i": "INT64"}[array.dtype.kind]))
        inputs[-1].set_data_from_numpy(array)
    with triton.InferenceServerClient(f"127.0.0.1:{port}") as client:
        assert client.is_server_live(headers=application)
        assert client.is_model_ready("flights", headers=application)
        assert client.get_model_metadata("flights", headers=application).versions == [str(version)]
        answer = client.infer("flights", inputs, request_id="a-7", headers=application)
        assert 0 < answer.as_numpy("probability")[0] < 1
        assert answer.as_numpy("version").tolist() == [version]
        with pytest.raises(InferenceServerException) as caught:
            client.infer("flights", inputs[:-1], headers=application)
    assert "INVALID_ARGUMENT" in caught.value.status()
    assert "column 'visib' (float) is missing" in caught.value.message()


def test_a_deployment_is_made_described_and_taken_down(tmp_path: Path, clean_environment: None) -> None:
    grpc_port = free_port()
    paths = overlay(tmp_path, cluster={"http_port": free_port(), "grpc_port": grpc_port})
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
        answered_over_grpc(grpc_port, first)
        command("update", "--name", "flights", "-m", f"models:/flights/{second}")
        assert f"rollout: flights-v{second}-r1" in command("get", "--name", "flights")
        assert "is deleted" in command("delete", "--name", "flights")
        assert cluster.find(project) is None
        assert "[]" in command("list")
    finally:
        verbs.down(paths, os.environ)
