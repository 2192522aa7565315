"""Trained versions kept between runs of a benchmark: the same rows, settings and code give the same version."""

from __future__ import annotations

import ast
import functools
import hashlib
import json
import pickle
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pyarrow as pa

import mlops_ray
from mlops_ray.config import Project
from mlops_ray.simulation import training
from mlops_ray.simulation.training import Candidate
from mlops_ray.training import recipe
from mlops_ray.training.artifact import model
from mlops_ray.training.artifact.model import Model

_SHAPING = ("data", "training", "simulation/training.py")
"""What of the package says which version comes out of rows and settings."""


@dataclass
class Kept:
    """Trains as `simulation.training.train` does, and reads from `folder` what was trained before.

    seconds: that training took when it was done, summed over what was asked for; saved: of that, what was read."""

    folder: Path
    seconds: float = 0.0
    saved: float = 0.0

    def train(self, project: Project, table: pa.Table, *, folder: Path, rival: Model | None, **given: Any) -> Candidate:
        """See `simulation.training.train`; artifacts go to where versions are kept, not to `folder`."""
        said = [
            recipe.shaping(project),
            project.gates.model_dump(mode="json"),
            project.monitoring.block_s,
            project.serving.threshold,
            None if rival is None else rival.sha256,
            repr(sorted(given.items())),
            _hash(_code()),
            _hash(_buffers(table)),
        ]
        place = self.folder / _hash([json.dumps(said, sort_keys=True).encode()])[:24]
        file = place / "candidate.pickle"
        if file.is_file():
            bare, address, sha256 = pickle.loads(file.read_bytes())  # this class wrote it
            loaded = model.load(address, sha256, trusted=project.features.trusted_types)
            found: Candidate = replace(bare, model=loaded)
            self.saved += found.seconds["train"]
        else:
            place.mkdir(parents=True, exist_ok=True)
            found = training.train(project, table, folder=place, rival=rival, **given)
            bare = replace(found, model=None)  # type: ignore[arg-type]
            file.write_bytes(pickle.dumps((bare, str(found.model.folder), found.model.sha256)))
        self.seconds += found.seconds["train"]
        return found


def _buffers(table: pa.Table) -> Iterator[bytes]:
    for column in table.combine_chunks().columns:
        for chunk in column.chunks:
            yield from (b"" if buffer is None else buffer.to_pybytes() for buffer in chunk.buffers())


@functools.cache
def _code() -> tuple[bytes, ...]:
    """What the code says, without comments and docstrings."""
    root, found = Path(mlops_ray.__file__).parent, []
    for part in _SHAPING:
        for file in sorted((root / part).rglob("*.py")) if (root / part).is_dir() else [root / part]:
            tree = ast.parse(file.read_bytes())
            for node in ast.walk(tree):
                if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
                    node.value.value = ""
            found.append(ast.dump(tree).encode())
    return tuple(found)


def _hash(parts: Any) -> str:
    sink = hashlib.sha256()
    for part in parts:
        sink.update(part)
    return sink.hexdigest()
