"""Looking at one version: where it comes from, what it is worth, whether it can be made again; taking it elsewhere."""

from __future__ import annotations

import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from mlops_ray.config import Project
from mlops_ray.errors import ModelNotFound
from mlops_ray.texts import reason
from mlops_ray.verbs import Env, Paths, Progress, _silent, known_store, load
from mlops_ray.verbs.subjects import TOKEN_VARIABLE

if TYPE_CHECKING:
    from mlops_ray.governance.lineage import Lineage
    from mlops_ray.state import Store, VersionRow


def reproduce(
    paths: Paths, env: Env, version: int, on_progress: Progress = _silent, *, search: bool = False
) -> dict[str, Any]:
    """Train a version again from its recipe and compare the predictions on the holdout.

    Args: search: repeat the whole search as well, and say whether it finds the same winner.
    Raises: ModelNotFound; DataError when its dataset version is gone; ArtifactRefused.
    """
    from mlops_ray.cluster.on_ray import connected
    from mlops_ray.training.on_reproduce import reproduce as again

    project = load(paths, env).project
    row = _version(known_store(project), project, version)
    with connected(project, start_local=True):
        return again(project, row, search=search, on_progress=on_progress).to_dict()


def lineage(paths: Paths, env: Env, version: int) -> Lineage:
    """Where a version comes from. Raises: ModelNotFound, BackendUnavailable."""
    from mlops_ray.governance.lineage import lineage as traced
    from mlops_ray.governance.on_mlflow import gather

    project = load(paths, env).project
    return traced(gather(project, known_store(project), version))


def card(paths: Paths, env: Env, version: int) -> dict[str, str]:
    """A version's model card, as `html` and `markdown`. Raises: ModelNotFound, BackendUnavailable."""
    from mlops_ray.config import About
    from mlops_ray.governance.card import card as made
    from mlops_ray.governance.on_mlflow import gather

    project = load(paths, env).project
    found = made(gather(project, known_store(project), version, plots=True), project.about or About())
    return {"html": found.html(), "markdown": found.markdown()}


def export(
    paths: Paths, env: Env, version: int, into: Path, *, onnx: bool, dockerfile: bool, conda: bool, requirements: bool
) -> dict[str, Any]:
    """Write a folder that serves or embeds a version elsewhere. Raises: ModelNotFound, ArtifactRefused, DataError."""
    from mlops_ray.training.artifact import model
    from mlops_ray.training.artifact.export import export as written

    project = load(paths, env).project
    row = _version(known_store(project), project, version)
    wanted: dict[str, bool] = {"onnx": onnx, "dockerfile": dockerfile, "conda": conda, "requirements": requirements}
    with tempfile.TemporaryDirectory() as cache:
        folder = model.fetch(row.artifact, Path(cache), row.sha256)
        loaded = model.load(folder, row.sha256, trusted=project.features.trusted_types)
        files = written(loaded, into, threshold=project.serving.threshold, **wanted)
    return {"version": version, "folder": str(into), "files": sorted(str(f.relative_to(into)) for f in files)}


def approve(paths: Paths, env: Env, version: int, why: str, *, token_env: str = TOKEN_VARIABLE) -> dict[str, Any]:
    """Approve a version that waits, or its open rollout; `already` when that changed nothing. token_env: the
    environment variable with the approver's token.

    Raises: ModelNotFound; ApprovalRefused for who may not approve it."""
    return _decided(paths, env, "approve", version, why, token_env)


def reject(paths: Paths, env: Env, version: int, why: str, *, token_env: str = TOKEN_VARIABLE) -> dict[str, Any]:
    """Reject a version that waits, or its open rollout. Raises: as `approve`, and where nothing waits."""
    return _decided(paths, env, "reject", version, why, token_env)


def _decided(
    paths: Paths, env: Env, decision: Literal["approve", "reject"], version: int, why: str, token_env: str
) -> dict[str, Any]:
    from mlops_ray.governance import approvals
    from mlops_ray.verbs.subjects import approver

    why = reason(why)
    project = load(paths, env).project
    store = known_store(project)
    who = approver(project, store, env, token_env)
    return approvals.decide(store, project, version, decision, who=who, why=why, now=time.time())


def _version(store: Store, project: Project, version: int) -> VersionRow:
    with store.read() as tx:
        row = tx.version(project.project, version)
    if row is None:
        raise ModelNotFound(project.project, str(version))
    return row
