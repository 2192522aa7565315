"""Batch scoring on the cluster: the blocks of a source to scores, one task each, a model per worker process."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from mlops_ray.config import Project, Source
from mlops_ray.data.profile import Bins, Profile
from mlops_ray.data.sources.on_ray import numbered, open_source
from mlops_ray.data.sources.shards import fingerprint
from mlops_ray.serving.artifacts import local
from mlops_ray.serving.bulk import batch
from mlops_ray.serving.bulk import blocks as bulk
from mlops_ray.serving.bulk.batch import Block, Output, Plan
from mlops_ray.state import VersionRow
from mlops_ray.training.artifact.model import Model

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Scored:
    """What became of a batch: the manifest, and the profile of its inputs and scores over the project's bins."""

    manifest: dict[str, Any]
    profile: Profile
    bins: Bins


def score(
    project: Project,
    source: Source,
    row: VersionRow,
    output: Output,
    *,
    now: float,
    resume: bool = False,
    on_progress: Progress,
) -> Scored:
    """Scores the rows of `source` with a version. Ray must be running.

    A block is some million rows of a file, the whole of a CSV or JSON file, or what Ray Data makes one for sources that
    are no files; of these a batch that was cut off begins anew. Args: now: the event time of rows that have none.
    Raises: DataError for a source that cannot be read, an output that is not free, and another input than was begun
        with; ArtifactRefused.
    """
    model = _loaded(row.artifact, row.sha256, tuple(project.features.trusted_types))
    wanted = bulk.columns_of(project, model)
    opened = open_source(source, wanted)
    marks = tuple(fingerprint(shard) for part in opened.parts for shard in part.shards)
    said = json.dumps(source.public(), sort_keys=True, default=str)
    plan = Plan(project.project, row.version, row.artifact, row.sha256, said, marks, now)
    plan = batch.begun(output, plan, resume=resume)
    blocks = batch.done(output, plan) if resume else {}
    blocks = {number: block for number, block in blocks.items() if number < len(marks)}
    finished = frozenset(blocks)
    n_rows = sum(block.n_read for block in blocks.values())
    on_progress("rows", n_rows, opened.n_rows)
    work = functools.partial(_block, project, row.artifact, row.sha256, plan, output)
    for block in numbered(opened, work, without=finished):
        blocks[block.number] = block
        n_rows += block.n_read
        on_progress("rows", n_rows, opened.n_rows)
    bins, schema = model.reference.bins, bulk.output_schema(model)
    manifest, profile = batch.finished(output, plan, list(blocks.values()), schema, bins, resumed=len(finished))
    return Scored(manifest, profile, bins)


def _block(
    project: Project, artifact: str, sha256: str, plan: Plan, output: Output, number: int, batches: Iterator[pa.Table]
) -> Block:
    model = _loaded(artifact, sha256, tuple(project.features.trusted_types))
    return bulk.score(project, model, plan, output, number, batches)


@functools.lru_cache(maxsize=1)
def _loaded(artifact: str, sha256: str, trusted: tuple[str, ...]) -> Model:
    """Once per process: checked by hash and by its golden requests."""
    model = local(artifact, sha256, trusted=trusted)
    model.replay()
    return model
