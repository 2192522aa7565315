"""What a version was made of: training again from it must give the same model.

The recipe lies in the artifact, under its hash, so that a version can be proven without a tracking server.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np

from mlops_ray.config import Project, Task
from mlops_ray.errors import ArtifactRefused, ConfigError
from mlops_ray.training.search.candidates import Choice
from mlops_ray.training.target import Scores

BLOCKS = ("project", "task", "target", "key", "event_time", "seed", "columns", "split", "features", "search")
"""Blocks of the project file that shape a model. Where state lives, how it is served and watched does not."""

TOLERANCE = 1e-6
"""Largest difference of two predictions that are still the same model: sums of floats in another order. Regression: as
a share of the predictions' spread."""


@dataclass(frozen=True)
class Recipe:
    """Everything that made a version, but for the code and the environment, which are named.

    project: the blocks that shape a model; dataset: uri, version and content hash; choice: the winner of the search;
    score: its validation score. commit: of the code, None outside a checkout; dirty: whether tracked files differed.
    scores_sha256: of the scikit-learn pipeline's answers to the holdout, see `digest`. refit: whether it learnt from
    the holdout's rows as well, see `retraining.refit`.
    """

    project: dict[str, Any]
    uri: str
    version: int
    content_hash: str
    choice: dict[str, Any]
    score: float
    shuffle_target: bool
    commit: str | None
    dirty: bool | None
    scores_sha256: str
    refit: bool = False

    def to_dict(self) -> dict[str, Any]:
        """The recipe as JSON-friendly values."""
        return asdict(self)

    @staticmethod
    def from_dict(body: Mapping[str, Any], artifact: str) -> Recipe:
        """The recipe that `to_dict` described. Raises: ArtifactRefused when it is none."""
        try:
            return Recipe(**body)
        except TypeError as exc:
            raise ArtifactRefused(artifact, f"its recipe is not readable ({exc}); train the version again") from exc

    @property
    def winner(self) -> Choice:
        """The choice as the search's value."""
        return Choice(self.choice["candidate"], self.choice["estimator"], self.choice["params"])

    def project_of(self, today: Project) -> Project:
        """`today`'s project as it was then: its own storage and cluster, the recorded blocks for everything else. It
        alerts nobody: what a dump holds of channels lacks their secrets.

        Raises: ConfigError when this release does not understand the recorded blocks any more."""
        body = today.model_dump(mode="json", exclude={*BLOCKS, "alerts"}) | self.project
        try:
            return Project.model_validate(body)
        except ValueError as exc:
            raise ConfigError("recorded project", (f"this release reads it otherwise: {exc}",)) from exc


def shaping(project: Project) -> dict[str, Any]:
    """The blocks of `project` that shape a model, JSON-friendly. Not the callbacks of others: they may hold secrets."""
    body = project.model_dump(mode="json", include=set(BLOCKS))
    body["search"] = body["search"] | {"callbacks": []}
    return body


def made_of(project: Project, code: tuple[str, str | None] | None) -> str:
    """Fingerprint (SHA-256) of what shapes a model besides its rows: the project file's blocks, and the code: its
    commit and the hash of what is not committed (None: nothing), or None outside a checkout."""
    return hashlib.sha256(json.dumps([shaping(project), code], sort_keys=True).encode()).hexdigest()


def digest(scores: Scores) -> str:
    """SHA-256 of the float64 bytes of `scores`, little-endian, row by row."""
    return hashlib.sha256(np.ascontiguousarray(scores, dtype="<f8").tobytes()).hexdigest()


Sameness = Literal["bit-equal", "equal within tolerance", "different"]


@dataclass(frozen=True)
class Reproduction:
    """What became of training a version again.

    same: of the predictions on the holdout; max_gap: largest difference, over `n_rows` rows. differences: what is
    not as it was (code, environment, project file), a sentence each. search: with a repeated search, what it found.
    """

    version: int
    same: Sameness
    max_gap: float
    n_rows: int
    differences: tuple[str, ...]
    search: dict[str, Any] | None

    def to_dict(self) -> dict[str, Any]:
        """The result as JSON-friendly values."""
        return asdict(self)


def compare(task: Task, recorded: str, then: Scores, now: Scores) -> tuple[Sameness, float]:
    """Sameness of predictions and the largest difference.

    Args: recorded: digest of the answers when the version was made; then: the stored pipeline's answers today; now: the
        answers of the pipeline trained again; equal shapes."""
    if then.shape != now.shape:
        return "different", float("inf")
    gap = float(np.abs(then - now).max())
    if digest(now) == recorded:
        return "bit-equal", gap
    allowed = TOLERANCE * (float(np.std(then)) if task == "regression" else 1.0)
    return ("equal within tolerance" if gap <= allowed else "different"), gap


def project_differences(then: Mapping[str, Any], today: Project) -> tuple[str, ...]:
    """Blocks of the project file that are not as they were when the version was made, a sentence each."""
    now = shaping(today)
    return tuple(
        f"the project file's `{name}` is not what it was; the recorded one was used"
        for name in BLOCKS
        if then.get(name) != now[name]
    )


def changed(then: Recipe, today: Project, code: tuple[str, bool] | None) -> tuple[str, ...]:
    """What shapes a model besides its rows and is not as it was, a phrase each; code (commit and dirtiness) is not
    compared where it runs, or ran, outside a checkout."""
    now = shaping(today)
    said = [f"`{name}` of the project file" for name in BLOCKS if then.project.get(name) != now[name]]
    if code is None or then.commit is None:
        return tuple(said)
    if code[0] != then.commit:
        said.append(f"the code, from {then.commit[:12]} to {code[0][:12]}")
    if code[1] or then.dirty:
        said.append("uncommitted changes of the code")
    return tuple(said)


def code_differences(commit: str | None, dirty: bool | None, now: tuple[str, bool] | None) -> tuple[str, ...]:
    """How the code that runs (`now`: commit and dirtiness) differs from the one that made the version."""
    if commit is None:
        return ("which code made the version is not recorded: it ran outside a checkout",)
    said = [f"the version was made with uncommitted changes over {commit[:12]}"] if dirty else []
    if now is None:
        return (*said, f"the code runs outside a checkout; the version was made at {commit[:12]}")
    if now[0] != commit:
        said.append(
            f"the code is at {now[0][:12]}, the version was made at {commit[:12]}; `git checkout {commit[:12]}`"
        )
    if now[1]:
        said.append("the code that runs has uncommitted changes")
    return tuple(said)
