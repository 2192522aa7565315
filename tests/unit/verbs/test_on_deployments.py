"""The target `mlops-ray` of `mlflow deployments`: predictions over a real connection, orders to the verbs."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import yaml
from mlflow.deployments import get_deploy_client
from mlflow.deployments.interface import plugin_store
from mlflow.exceptions import MlflowException

from mlops_ray import verbs
from mlops_ray.serving.versions import Held, Wanted
from mlops_ray.state import Store, VersionRow
from mlops_ray.verbs import on_deployments
from tests import fakes
from tests.mlflow_command import mlflow
from tests.unit.serving.clients.conftest import STABLE, TOKEN, WARM, Served, every

__all__ = ["every"]

ROWS = [fakes.row(), fakes.row("k2", n=7, x=None)]
FRAME = pd.DataFrame(ROWS)


@pytest.fixture(autouse=True)
def registered() -> None:
    """What the entry point does where the package is installed."""
    plugin_store.register("mlops-ray", "mlops_ray.verbs.on_deployments")


@contextmanager
def refused(code: str, says: str) -> Iterator[None]:
    with pytest.raises(MlflowException) as caught:
        yield
    assert says in caught.value.message
    assert caught.value.error_code == code


# --- predicting, over a real connection ---


@pytest.fixture
def binary(every: dict[str, Served]) -> Served:
    return every["small"]


@pytest.fixture
def remote(binary: Served) -> Any:
    """A client that knows an address and no project file."""
    return get_deploy_client(f"mlops-ray:{binary.url.rsplit('/', 1)[0]}")


@pytest.mark.parametrize(
    "inputs",
    [
        FRAME,
        FRAME.assign(at=pd.to_datetime(FRAME["at"], unit="s")),
        ROWS,
        {name: [row[name] for row in ROWS] for name in ROWS[0]},
        {"dataframe_records": ROWS},
        {"instances": FRAME},
        {"inputs": {name: np.array(FRAME[name].tolist()) for name in FRAME if name != "x"} | {"x": [0.5, None]}},
    ],
    ids=["frame", "times", "rows", "columns", "records", "frame in a field", "arrays"],
)
def test_predictions_come_back_whatever_the_rows_are_in(remote: Any, binary: Served, inputs: Any) -> None:
    answer = remote.predict("small", inputs)
    assert answer.get_predictions()[0].tolist() == [0, 1]
    assert answer["versions"] == [STABLE, STABLE]
    logged = binary.logged()
    assert np.isnan(logged.columns["x"]).tolist() == [False, True]
    assert logged.times.tolist() == [1e9, 1e9]


def test_an_array_is_the_features_in_their_order(every: dict[str, Served]) -> None:
    client = get_deploy_client(f"mlops-ray:{every['plain'].url.rsplit('/', 1)[0]}")
    assert client.predict("plain", np.array([[2, 2], [5, 7]])).get_predictions("ndarray").tolist() == [0.2, 0.7]


def test_params_go_with_a_table(remote: Any) -> None:
    answer = remote.predict("small", {"dataframe_split": FRAME, "params": {"threshold": 0.1, "version": WARM}})
    assert answer["predictions"] == [1, 1]
    assert answer["versions"] == [WARM, WARM]


def test_a_mistake_comes_back_in_the_servers_words(remote: Any) -> None:
    with refused("INVALID_PARAMETER_VALUE", "row 0, column 'n': expected int, got 2.5"):
        remote.predict("small", FRAME.assign(n=[2.5, 7]))
    with refused("INVALID_PARAMETER_VALUE", "not str"):
        remote.predict("small", "rows")
    with refused("INVALID_PARAMETER_VALUE", "give None for what is missing"):
        remote.predict("small", {"x": [float("nan")]})
    with refused("INVALID_PARAMETER_VALUE", "give its name as the deployment"):
        remote.predict(endpoint="small", inputs=FRAME)
    with refused("INVALID_PARAMETER_VALUE", "name the deployment"):
        remote.predict(inputs=FRAME)
    with refused("TEMPORARILY_UNAVAILABLE", "is the project up?"):
        get_deploy_client("mlops-ray:http://127.0.0.1:9").predict("small", FRAME)


def test_a_deployment_behind_an_address_is_described_by_the_server(remote: Any, binary: Served) -> None:
    found = remote.get_deployment("small")
    expected = {
        "name": "small",
        "flavor": "mlops-ray",
        "url": binary.url,
        "versions": [WARM, STABLE],
        "status": "READY",
    }
    assert found == expected
    with refused("INVALID_PARAMETER_VALUE", "name the project file"):
        remote.list_deployments()


def test_a_project_with_tokens_asks_for_the_one_of_the_environment(
    every: dict[str, Served], monkeypatch: pytest.MonkeyPatch
) -> None:
    client = get_deploy_client(f"mlops-ray:{every['guarded'].url.rsplit('/', 1)[0]}")
    monkeypatch.delenv(on_deployments.TOKEN_VARIABLE, raising=False)
    with refused("UNAUTHENTICATED", "no token"):
        client.predict("guarded", FRAME)
    with refused("UNAUTHENTICATED", "no token"):
        client.get_deployment("guarded")
    monkeypatch.setenv(on_deployments.TOKEN_VARIABLE, TOKEN)
    assert client.predict("guarded", FRAME)["predictions"] == [0, 1]
    assert client.get_deployment("guarded")["status"] == "READY"
    with refused("PERMISSION_DENIED", "operate"):
        client.predict("guarded", {"dataframe_split": FRAME, "params": {"version": WARM}})


def test_mlflows_own_command_predicts(binary: Served, tmp_path: Path) -> None:
    rows, out = tmp_path / "rows.json", tmp_path / "out.json"
    rows.write_text(json.dumps(ROWS), encoding="utf-8")
    target = f"mlops-ray:{binary.url.rsplit('/', 1)[0]}"
    words = ["deployments", "predict", "-t", target, "--name", "small", "-I", str(rows), "-O", str(out)]
    done = mlflow(*words, folder=tmp_path)
    assert done.returncode == 0, done.stderr
    assert json.loads(out.read_text(encoding="utf-8"))["predictions"] == [0, 1]


# --- orders ---


class Cluster:
    """In place of the verbs that need one: what they were asked for, and a stable version from the state database."""

    def __init__(self, store: Store) -> None:
        self.store, self.asked = store, list[Any]()

    def up(self, paths: list[Path], env: Any) -> dict[str, Any]:
        self.asked.append("up")
        with self.store.read() as tx:
            served = tx.serving("small")
        stable = served.spec["stable"]["version"] if served else None
        return {"stable": stable, "url": "http://127.0.0.1:8000/small", "hint": "no version is registered yet"}

    def down(self, paths: list[Path], env: Any) -> dict[str, Any]:
        self.asked.append("down")
        return {"ended_processes": 3}


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """The project's file, its storage beside it."""
    body = fakes.project().model_dump(mode="json", exclude_defaults=True)
    body |= {"storage": {"root": str(tmp_path / "root")}, "cluster": {"http_port": 9}}
    found = tmp_path / "small.yaml"
    found.write_text(yaml.safe_dump(body), encoding="utf-8")
    return found


@pytest.fixture
def cluster(file: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Cluster]:
    """Versions 1 and 2 are registered, 3 waits for its approval, and none serves."""
    store = verbs.open_store(verbs.load([file], {}).project)
    found = Cluster(store)
    with store.begin() as tx:
        for version, status in ((1, VersionRow.REGISTERED), (2, VersionRow.REGISTERED), (3, VersionRow.PENDING)):
            tx.save_version(VersionRow("small", version, "run", f"/models/{version}", "sha", "d@1", status, 0.0, {}))
    monkeypatch.setattr(verbs, "up", found.up)
    monkeypatch.setattr(verbs, "down", found.down)
    yield found
    store.close()


@pytest.fixture
def local(file: Path) -> Any:
    return get_deploy_client(f"mlops-ray:{file}")


def rollouts(cluster: Cluster) -> list[int]:
    with cluster.store.read() as tx:
        return [row.version for row in tx.rollouts("small")]


def serving(cluster: Cluster, version: int) -> None:
    with cluster.store.begin() as tx:
        spec = Wanted(stable=Held(version, f"/models/{version}", "sha")).spec()
        tx.save_serving("small", spec, 0)


def test_the_first_deployment_serves_the_version_that_was_named(local: Any, cluster: Cluster) -> None:
    created = local.create_deployment("small", "models:/small/1")
    assert (created["name"], created["stable"], created["rollout"]) == ("small", 1, None)
    assert cluster.asked == ["up"]
    assert rollouts(cluster) == []


def test_another_version_goes_through_a_rollout(local: Any, cluster: Cluster) -> None:
    serving(cluster, 1)
    created = local.create_deployment("small", "models:/small/2")
    assert (created["stable"], created["rollout"]) == (1, "small-v2-r1")
    assert rollouts(cluster) == [2]
    with refused("INVALID_STATE", "cannot"):
        local.update_deployment("small", "models:/small/2")


def test_an_update_starts_a_rollout_or_applies_the_file_again(local: Any, cluster: Cluster) -> None:
    with refused("RESOURCE_DOES_NOT_EXIST", "no deployment 'small'"):
        local.update_deployment("small", "models:/small/2")
    serving(cluster, 1)
    assert local.update_deployment("small")["rollout"] is None
    assert local.update_deployment("small", "models:/small/1")["rollout"] is None
    assert local.update_deployment("small", "models:/small/2")["rollout"] == "small-v2-r1"
    assert cluster.asked == ["up"] * 3


def test_a_version_that_may_not_serve_is_refused_before_anything_comes_up(local: Any, cluster: Cluster) -> None:
    with refused("INVALID_STATE", "not approved"):
        local.create_deployment("small", "models:/small/3")
    with refused("RESOURCE_DOES_NOT_EXIST", "no version"):
        local.create_deployment("small", "models:/small/9")
    assert cluster.asked == []


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ({"model_uri": "runs:/1/model"}, "expected models:/small/<version>"),
        ({"model_uri": "models:/other/1"}, "expected models:/small/<version>"),
        ({"model_uri": "models:/small@champion"}, "expected models:/small/<version>"),
        ({"flavor": "sklearn"}, "leave the flavor out"),
        ({"endpoint": "e"}, "give its name as the deployment"),
        ({"config": {"replicas": 2}}, "the rest in the project file"),
        ({"config": {"config": "absent.yaml"}}, "absent.yaml"),
        ({"name": "other"}, "is not the project of"),
    ],
)
def test_an_order_that_cannot_be_meant_is_refused(
    local: Any, cluster: Cluster, words: dict[str, Any], says: str
) -> None:
    with refused("INVALID_PARAMETER_VALUE", says):
        local.create_deployment(**({"name": "small", "model_uri": "models:/small/1"} | words))
    assert cluster.asked == []


def test_the_project_file_may_stand_in_the_target_or_in_the_configuration(file: Path, cluster: Cluster) -> None:
    bare = get_deploy_client("mlops-ray")
    with refused("INVALID_PARAMETER_VALUE", "name the project file"):
        bare.create_deployment("small", "models:/small/1")
    assert bare.create_deployment("small", "models:/small/1", config={"config": str(file)})["stable"] == 1


def test_what_is_down_is_no_deployment(local: Any, cluster: Cluster) -> None:
    assert local.list_deployments() == []
    with refused("RESOURCE_DOES_NOT_EXIST", "`create` makes it"):
        local.get_deployment("small")
    serving(cluster, 1)  # wanted, and nothing answers at its port
    assert local.list_deployments() == []
    with refused("RESOURCE_DOES_NOT_EXIST", "`create` makes it"):
        local.get_deployment("small")
    for _ in range(2):
        local.delete_deployment("small")
    assert cluster.asked == ["down", "down"]


def test_what_answers_is_listed_and_described(file: Path, cluster: Cluster, binary: Served) -> None:
    host, _, port = binary.place.partition("/")[0].partition(":")
    body = yaml.safe_load(file.read_text(encoding="utf-8")) | {"cluster": {"host": host, "http_port": int(port)}}
    file.write_text(yaml.safe_dump(body), encoding="utf-8")
    with cluster.store.begin() as tx:
        tx.save_project("small", file.read_text(encoding="utf-8"), 0.0)
    serving(cluster, 1)
    client = get_deploy_client(f"mlops-ray:{file}")
    (listed,) = client.list_deployments()
    assert (listed["name"], listed["stable"], listed["status"]) == ("small", 1, "READY")
    client.update_deployment("small", "models:/small/2")
    found = client.get_deployment("small")
    assert (found["stable"], found["rollout"], found["url"]) == (1, "small-v2-r1", binary.url)
    assert client.predict("small", FRAME)["predictions"] == [0, 1]


def test_run_local_is_for_a_cluster_of_this_machine(file: Path, cluster: Cluster, capsys: Any) -> None:
    on_deployments.run_local("small", "models:/small/1", config={"config": str(file)})
    assert "is served at http://127.0.0.1:8000/small" in capsys.readouterr().out
    body = yaml.safe_load(file.read_text(encoding="utf-8"))
    file.write_text(yaml.safe_dump(body | {"cluster": {"address": "10.0.0.1:6379"}}), encoding="utf-8")
    with refused("INVALID_PARAMETER_VALUE", "which is not local"):
        on_deployments.run_local("small", "models:/small/1", config={"config": str(file)})


def test_the_help_teaches_every_command() -> None:
    says = on_deployments.target_help()
    for word in ("create", "update", "get", "list", "predict", "delete", "config=", "MLOPS_RAY_TOKEN", "models:/"):
        assert word in says
