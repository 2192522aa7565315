"""Target `mlops-ray` of `mlflow deployments`: MLflow's commands over our verbs, and predictions over HTTP.

It stands among the verbs because it is one more caller of them, like the command. Errors of ours become MLflow's.
"""

from __future__ import annotations

import json
import os
import re
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import quote

import requests
from mlflow.deployments import BaseDeploymentClient, PredictionsResponse
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import (
    INTERNAL_ERROR,
    INVALID_PARAMETER_VALUE,
    INVALID_STATE,
    PERMISSION_DENIED,
    REQUEST_LIMIT_EXCEEDED,
    RESOURCE_DOES_NOT_EXIST,
    TEMPORARILY_UNAVAILABLE,
    UNAUTHENTICATED,
)

from mlops_ray import verbs
from mlops_ray.config import Project
from mlops_ray.config.operation import Cluster
from mlops_ray.errors import (
    ApprovalPending,
    BackendUnavailable,
    ConfigError,
    DataError,
    IllegalMove,
    MlopsRayError,
    ModelNotFound,
)
from mlops_ray.verbs import rollout as rollouts
from mlops_ray.verbs.subjects import TOKEN_VARIABLE

TARGET = "mlops-ray"
"""Environment variable with the bearer token of projects that ask for one."""

_URI = re.compile(r"models:/([A-Za-z0-9_.-]+)/([1-9][0-9]{0,8})")
_TABLES = ("dataframe_split", "dataframe_records", "instances", "inputs")
# Longer than a request may take by default, and long enough for a connection over a slow network.
_TIMEOUT_S = 60.0
_LOOK_S = 5.0

_CODES: tuple[tuple[type[MlopsRayError], int], ...] = (
    (ConfigError, INVALID_PARAMETER_VALUE),
    (ModelNotFound, RESOURCE_DOES_NOT_EXIST),
    (IllegalMove, INVALID_STATE),
    (ApprovalPending, INVALID_STATE),
    (BackendUnavailable, TEMPORARILY_UNAVAILABLE),
)
_HTTP_CODES = {
    401: UNAUTHENTICATED,
    403: PERMISSION_DENIED,
    404: RESOURCE_DOES_NOT_EXIST,
    429: REQUEST_LIMIT_EXCEEDED,
    503: TEMPORARILY_UNAVAILABLE,
}

_HELP = f"""Serve a version of a project's registered model with mlops-ray, on Ray Serve.

A deployment is a project: its name is the project's name. The target names the project file, with overlays behind
commas, or it is the address of a cluster that serves already, which is enough to predict:

  mlflow deployments create  -t {TARGET}:configs/flights.yaml --name flights -m models:/flights/1
  mlflow deployments create  -t {TARGET} --name flights -m models:/flights/1 -C config=configs/flights.yaml
  mlflow deployments predict -t {TARGET}:http://127.0.0.1:8000 --name flights -I rows.json

  create   where nothing is served yet: brings the project up with that version as stable. Where something is: makes
           sure that it is up, and starts a rollout of that version (shadow or canary, as `rollout:` says).
  update   -m models:/flights/2 starts a rollout; without -m the project file is applied again.
  get      who answers, whether a rollout is open, and whether the deployment is ready. list: the same of all projects
           of that state database which answer.
  predict  the body of /invocations: a table (JSON that pandas reads), or a dict with dataframe_split,
           dataframe_records, instances or inputs, and params. pandas reads "007" in a JSON file as the number 7, which
           a text column refuses: send such rows to /invocations yourself.
  delete   takes the project down: its own cluster ends, or its applications leave a joined one. Versions, log and
           ledger stay.

Model URIs are models:/<project>/<version>. Other configuration belongs into the project file.
Environment: {TOKEN_VARIABLE}, the bearer token for `serving.auth: token` (role predict; read for get and list)."""


def target_help() -> str:
    """What `mlflow deployments help -t mlops-ray` prints."""
    return _HELP


def run_local(name: str, model_uri: str, flavor: str | None = None, config: Mapping[str, Any] | None = None) -> None:
    """Serve a version on a cluster of this machine, which stays until `delete`. Raises: MlflowException."""
    client = DeploymentClient(TARGET)
    project = client.project(name, config)
    if project.cluster.address is not None:
        says = f"project {name!r} joins the cluster at {project.cluster.address}, which is not local; use create"
        raise MlflowException(says, INVALID_PARAMETER_VALUE)
    created = client.create_deployment(name, model_uri, flavor, dict(config or {}))
    print(f"{name} is served at {created['url']}; `mlflow deployments delete -t {TARGET}` ends it")


class DeploymentClient(BaseDeploymentClient):
    """What `mlflow.deployments.get_deploy_client("mlops-ray:...")` returns. Every method raises MlflowException."""

    def __init__(self, target_uri: str) -> None:
        super().__init__(target_uri)  # type: ignore[no-untyped-call]  # MLflow's has no types
        rest = target_uri.partition(":")[2]
        self._address = rest.rstrip("/") if rest.startswith(("http://", "https://")) else None
        self._files = [] if self._address else [part for part in rest.split(",") if part]

    # bringing up and down

    def create_deployment(
        self,
        name: str,
        model_uri: str,
        flavor: str | None = None,
        config: Mapping[str, Any] | None = None,
        endpoint: str | None = None,
    ) -> dict[str, Any]:
        """Serve `models:/<name>/<version>`: at once where nothing is served yet, else by a rollout.

        Returns: name, flavor, url, stable (the version that answers) and rollout (its id, or None).
        """
        _nothing_else(flavor, endpoint)
        project, paths = self.project(name, config), self._paths(config)
        version = _version(model_uri, name)
        from mlops_ray.rollout.orders import first_version

        with _ours():
            first_version(verbs.open_store(project), project, now=time.time(), version=version)
            return self._up(name, paths, version, "mlflow deployments create")

    def update_deployment(
        self,
        name: str,
        model_uri: str | None = None,
        flavor: str | None = None,
        config: Mapping[str, Any] | None = None,
        endpoint: str | None = None,
    ) -> dict[str, Any]:
        """Start a rollout of another version; without `model_uri`, apply the project file again."""
        _nothing_else(flavor, endpoint)
        self.project(name, config)
        paths = self._paths(config)
        version = None if model_uri is None else _version(model_uri, name)
        with _ours():
            _standing(name, paths)
            return self._up(name, paths, version, "mlflow deployments update")

    def delete_deployment(
        self, name: str, config: Mapping[str, Any] | None = None, endpoint: str | None = None
    ) -> None:
        """Take the project down; one that is down stays so. Its versions, log and ledger stay."""
        _nothing_else(None, endpoint)
        self.project(name, config)
        with _ours():
            verbs.down(self._paths(config), os.environ)

    def _up(self, name: str, paths: list[Path], version: int | None, why: str) -> dict[str, Any]:
        """The project is up; a version that is not stable is on its way."""
        up = verbs.up(paths, os.environ)
        if up["stable"] is None:
            raise MlflowException(f"project {name!r}: {up['hint']}", RESOURCE_DOES_NOT_EXIST)
        rollout = None
        if version is not None and version != up["stable"]:
            rollout = rollouts.start(paths, os.environ, version, why)["rollout"]
        return {"name": name, "flavor": TARGET, "url": up["url"], "stable": up["stable"], "rollout": rollout}

    # looking

    def list_deployments(self, endpoint: str | None = None) -> list[dict[str, Any]]:
        """Every project of the state database that answers."""
        _nothing_else(None, endpoint)
        project = self._any_project()
        with _ours():
            try:
                store = verbs.known_store(project)
            except DataError:  # nothing was ever run there, so nothing is deployed
                return []
            with store.read() as tx:
                served = {row.name: tx.serving(row.name) for row in tx.projects()}
        found = [_described(name, _url(project.cluster, name), row.spec) for name, row in served.items() if row]
        return [deployment for deployment in found if deployment["status"] != "DOWN"]

    def get_deployment(self, name: str, endpoint: str | None = None) -> dict[str, Any]:
        """Name, URL, stable and canary version, the canary's share, the open rollout, READY or STARTING."""
        _nothing_else(None, endpoint)
        with _ours():
            if self._address is not None:
                return self._asked(name)
            project = self.project(name, None)
            status = _standing(name, self._paths(None))
        spec = {"stable": {"version": status["stable"]}, "canary": status["canary"], "share": status["share"]}
        found = _described(name, _url(project.cluster, name), spec)
        if found["status"] == "DOWN":
            raise _absent(name)
        return found | {"rollout": status["rollout"] and status["rollout"]["id"]}

    def _asked(self, name: str) -> dict[str, Any]:
        """What the server itself tells, where only its address is known."""
        url = f"{self._address}/{quote(name)}"
        answer = _sent("GET", f"{url}/v2/models/{quote(name)}")
        versions = [int(version) for version in answer.json().get("versions", ())]
        return {"name": name, "flavor": TARGET, "url": url, "versions": versions, "status": _status(url)}

    # predicting

    def predict(
        self, deployment_name: str | None = None, inputs: Any = None, endpoint: str | None = None
    ) -> PredictionsResponse:
        """The answer of `POST /invocations`: a DataFrame, an array or a list of rows, or a dict."""
        _nothing_else(None, endpoint)
        if deployment_name is None:
            raise MlflowException("name the deployment: its name is the project's", INVALID_PARAMETER_VALUE)
        if self._address is not None:
            url = f"{self._address}/{quote(deployment_name)}"
        elif self._files:
            url = _url(self.project(deployment_name, None).cluster, deployment_name)
        else:
            url = _url(Cluster(), deployment_name)
        with _ours():
            answer = _sent("POST", f"{url}/invocations", _body(inputs))
        return PredictionsResponse(answer.json())

    # which project

    def project(self, name: str, config: Mapping[str, Any] | None) -> Project:
        """The project of the target's or the configuration's files, which must be the deployment's."""
        paths = self._paths(config)
        with _ours():
            project = verbs.load(paths, os.environ).project
        if project.project != name:
            says = f"deployment {name!r} is not the project of {', '.join(map(str, paths))}: {project.project!r}"
            raise MlflowException(says, INVALID_PARAMETER_VALUE)
        return project

    def _any_project(self) -> Project:
        with _ours():
            return verbs.load(self._paths(None), os.environ).project

    def _paths(self, config: Mapping[str, Any] | None) -> list[Path]:
        given = dict(config or {})
        files = given.pop("config", None)
        if given:
            says = f"config key {sorted(given)[0]!r} is not known; give config=FILE, and the rest in the project file"
            raise MlflowException(says, INVALID_PARAMETER_VALUE)
        paths = [part for part in str(files).split(",") if part] if files is not None else self._files
        if not paths:
            says = f"name the project file: -t {TARGET}:configs/flights.yaml, or -C config=configs/flights.yaml"
            raise MlflowException(says, INVALID_PARAMETER_VALUE)
        return [Path(path) for path in paths]


# Ours and MLflow's ---------------------------------------------------------------------------------------------------


@contextmanager
def _ours() -> Iterator[None]:
    """Errors of ours, as MLflow's."""
    try:
        yield
    except MlopsRayError as exc:
        code = next((code for kind, code in _CODES if isinstance(exc, kind)), INTERNAL_ERROR)
        raise MlflowException(str(exc), code) from exc


def _absent(name: str) -> MlflowException:
    return MlflowException(f"there is no deployment {name!r}; `create` makes it", RESOURCE_DOES_NOT_EXIST)


def _standing(name: str, paths: list[Path]) -> dict[str, Any]:
    """Where a deployment stands. Raises: MlflowException for one that was never created, or was withdrawn."""
    try:
        status = verbs.status(paths, os.environ)
    except DataError as exc:  # nothing was ever run there
        raise _absent(name) from exc
    if status["stable"] is None:
        raise _absent(name)
    return status


def _nothing_else(flavor: str | None, endpoint: str | None) -> None:
    if flavor not in (None, TARGET):
        says = f"flavor {flavor!r}: a version of mlops-ray is served as it was trained; leave the flavor out"
        raise MlflowException(says, INVALID_PARAMETER_VALUE)
    if endpoint is not None:
        says = f"endpoint {endpoint!r}: each project is an endpoint of its own; give its name as the deployment"
        raise MlflowException(says, INVALID_PARAMETER_VALUE)


def _version(model_uri: str, name: str) -> int:
    found = _URI.fullmatch(model_uri)
    if found is None or found[1] != name:
        says = f"model URI {model_uri!r}: expected models:/{name}/<version>, a version of the project's own model"
        raise MlflowException(says, INVALID_PARAMETER_VALUE)
    return int(found[2])


def _url(cluster: Cluster, name: str) -> str:
    return f"http://{cluster.host}:{cluster.http_port}/{quote(name)}"


def _described(name: str, url: str, spec: Mapping[str, Any]) -> dict[str, Any]:
    about = {"stable": spec["stable"]["version"], "canary": spec["canary"], "share": spec["share"]}
    return {"name": name, "flavor": TARGET, "url": url, **about, "status": _status(url)}


# HTTP ----------------------------------------------------------------------------------------------------------------


def _headers() -> dict[str, str]:
    token = os.environ.get(TOKEN_VARIABLE)
    return {"Content-Type": "application/json"} | ({"Authorization": f"Bearer {token}"} if token else {})


def _status(url: str) -> str:
    """READY; STARTING while it answers and has no version loaded; DOWN when nothing of ours answers there."""
    try:
        answer = requests.get(f"{url}/v2/health/ready", headers=_headers(), timeout=_LOOK_S)
    except requests.RequestException:
        return "DOWN"
    if answer.status_code in (401, 403):
        says = f"{url} asks for a token with the role read; set {TOKEN_VARIABLE}"
        raise MlflowException(says, PERMISSION_DENIED)
    if answer.status_code == 404:  # the proxy is up, and the project is not behind it
        return "DOWN"
    return "READY" if answer.ok else "STARTING"


def _sent(method: str, url: str, body: str | None = None) -> requests.Response:
    """The answer. Raises: MlflowException with the server's own words; BackendUnavailable when it does not answer."""
    try:
        data = None if body is None else body.encode()
        answer = requests.request(method, url, data=data, headers=_headers(), timeout=_TIMEOUT_S)
    except requests.RequestException as exc:
        raise BackendUnavailable(url, f"{type(exc).__name__}; is the project up?") from exc
    if answer.ok:
        return answer
    try:
        problem = answer.json()
        says = f"{problem['title']}: {problem['detail']}"
    except (ValueError, KeyError, TypeError):  # not ours: a proxy's
        says = answer.text[:300]
    code = _HTTP_CODES.get(answer.status_code, INVALID_PARAMETER_VALUE if answer.status_code < 500 else INTERNAL_ERROR)
    raise MlflowException(f"HTTP {answer.status_code} from {url}: {says}", code)


def _body(inputs: Any) -> str:
    """What `predict` was given, as the JSON of /invocations; missing values of DataFrames become null."""
    import numpy as np
    import pandas as pd

    if isinstance(inputs, pd.DataFrame):
        table = inputs.to_json(orient="split", index=False, date_format="iso", date_unit="us", double_precision=15)
        return f'{{"dataframe_split":{table}}}'
    if isinstance(inputs, np.ndarray):
        inputs = inputs.tolist()
    if isinstance(inputs, Mapping) and inputs.keys() & set(_TABLES):
        document = dict(inputs)
        for field in _TABLES:
            if isinstance(document.get(field), pd.DataFrame):
                document = {k: v for k, v in document.items() if k != field}
                document["dataframe_split"] = json.loads(_body(inputs[field]))["dataframe_split"]
    elif isinstance(inputs, Mapping | list):
        document = {"inputs": inputs}
    else:
        says = f"inputs must be a DataFrame, an array, a list or a dict, not {type(inputs).__name__}"
        raise MlflowException(says, INVALID_PARAMETER_VALUE)
    try:
        return json.dumps(document, default=_listed, allow_nan=False)
    except (TypeError, ValueError) as exc:
        says = f"inputs cannot be sent as JSON ({exc}); give None for what is missing"
        raise MlflowException(says, INVALID_PARAMETER_VALUE) from exc


def _listed(value: Any) -> Any:
    """Arrays and NumPy's numbers as lists and numbers, times as ISO 8601."""
    for method in ("tolist", "isoformat"):
        if hasattr(value, method):
            return getattr(value, method)()
    raise TypeError(f"{type(value).__name__} is no JSON")
