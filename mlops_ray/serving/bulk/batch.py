"""A batch to score: what was asked for, what is written down on the way, and how it ends.

Below the output stands, out of sight of readers (`_mlops_ray/score-<id>/`), the plan, a record per finished block, and
last the manifest. A block's file has a name that its number alone decides, and its record is written after it: a block
without a record is done again, over whatever it had left.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import pyarrow as pa
import pyarrow.fs as fs
from deltalake import CommitProperties, DeltaTable, Schema, Transaction
from deltalake.transaction import AddAction

from mlops_ray.data import lake
from mlops_ray.data.lake import DataFile
from mlops_ray.data.profile import Bins, Profile, empty
from mlops_ray.data.sources.shards import absolute, filesystem_of
from mlops_ray.errors import DataError


@dataclass(frozen=True)
class Plan:
    """One batch to score. at: event time of rows that have none, seconds since the epoch.

    source: the block of a project file that describes the input, without secrets. shards: what tells each block of it
    from another one, in the source's order. `id` follows from these, the version and the project, so the same batch has
    the same name whenever it is scored.
    """

    project: str
    version: int
    artifact: str
    sha256: str
    source: str
    shards: tuple[str, ...]
    at: float

    @property
    def id(self) -> str:
        """12 hexadecimal digits."""
        told = json.dumps([self.project, self.version, self.sha256, self.source, self.shards])
        return hashlib.sha256(told.encode()).hexdigest()[:12]

    @classmethod
    def parse(cls, content: bytes) -> Plan:
        """The plan that was written down."""
        body = json.loads(content)
        return cls(**{**body, "shards": tuple(body["shards"])})


@dataclass(frozen=True)
class Block:
    """What became of one block. file: of its scores, None where no row had any; rejects: its bad rows by rule."""

    number: int
    n_read: int
    n_scored: int
    n_rejected: int
    rejects: Mapping[str, int]
    file: DataFile | None
    profile: Profile

    def to_dict(self) -> dict[str, Any]:
        """As its record has it."""
        return {**asdict(replace(self, profile=None)), "profile": self.profile.to_dict()}  # type: ignore[arg-type]

    @classmethod
    def parse(cls, content: bytes) -> Block:
        """The block that its record tells of."""
        body = json.loads(content)
        file = DataFile(**body["file"]) if body["file"] else None
        return cls(**{**body, "file": file, "profile": Profile.from_dict(body["profile"])})


@dataclass(frozen=True)
class Output:
    """Where scores go: a folder of Parquet files, or a Delta table, which gets them all in one commit."""

    uri: str
    delta: bool

    @classmethod
    def parse(cls, text: str) -> Output:
        """A folder, or `delta:` and a table's path or address."""
        delta = text.startswith("delta:")
        place = text.removeprefix("delta:")
        return cls(absolute(place).rstrip("/"), delta)

    def aside(self, plan: str, name: str) -> str:
        """Path of what is written down about a plan, below `uri`."""
        return f"{lake.ASIDE}/score-{plan}/{name}"

    def part(self, plan: str, number: int) -> str:
        """Path of a block's scores, below `uri`."""
        return f"score-{plan}/part-{number:05d}.parquet" if self.delta else f"part-{number:05d}.parquet"

    def read(self, plan: str, name: str) -> bytes | None:
        """What `write` wrote, or None."""
        filesystem, root = filesystem_of(self.uri)
        try:
            with filesystem.open_input_stream(f"{root}/{self.aside(plan, name)}") as file:
                content: bytes = file.read()
                return content
        except FileNotFoundError:
            return None

    def write(self, plan: str, name: str, body: Mapping[str, Any]) -> None:
        """Writes something down about a plan; all at once."""
        filesystem, root = filesystem_of(self.uri)
        lake.put(filesystem, f"{root}/{self.aside(plan, name)}", json.dumps(body).encode())


def begun(output: Output, plan: Plan, *, resume: bool) -> Plan:
    """The plan to carry out: this one, written down, or the one that was begun before.

    Raises: DataError for an output that was begun when nothing is to be resumed, that was begun with another input or
        version, or that holds other files.
    """
    known = output.read(plan.id, "plan.json")
    if known is not None:
        if not resume:
            raise DataError(output.uri, f"batch {plan.id} was begun there; add --resume, or name another output")
        return Plan.parse(known)
    filesystem, root = filesystem_of(output.uri)
    there = filesystem.get_file_info(fs.FileSelector(root, allow_not_found=True))
    if there and not output.delta:
        what = "input or version is another one than was begun there" if resume else "is there already"
        raise DataError(output.uri, f"{what}; name another output")
    output.write(plan.id, "plan.json", asdict(plan))
    return plan


def done(output: Output, plan: Plan) -> dict[int, Block]:
    """The blocks that are finished, by number."""
    filesystem, root = filesystem_of(output.uri)
    folder = f"{root}/{output.aside(plan.id, 'blocks')}"
    found = filesystem.get_file_info(fs.FileSelector(folder, allow_not_found=True))
    blocks = {}
    for info in found:
        if info.is_file and not info.base_name.startswith("."):
            content = output.read(plan.id, f"blocks/{info.base_name}")
            if content is not None:
                block = Block.parse(content)
                blocks[block.number] = block
    return blocks


def finished(
    output: Output, plan: Plan, blocks: Sequence[Block], schema: pa.Schema, bins: Bins, *, resumed: int = 0
) -> tuple[dict[str, Any], Profile]:
    """Commits the blocks, all of them there, and writes the manifest last. Again it changes nothing.

    Args: schema: of the scores; bins: of their profiles. resumed: how many blocks an earlier run had finished.
    Returns: the manifest, and the profile of all rows.
    """
    files = [block.file for block in sorted(blocks, key=lambda b: b.number) if block.file is not None]
    _clean(output, plan, {file.path for file in files})
    if output.delta:
        _commit(output, plan, files, schema)
    rejects: Counter[str] = sum((Counter(block.rejects) for block in blocks), Counter())
    profile = sum((block.profile for block in blocks), empty(bins))
    manifest = {
        "batch": plan.id,
        "version": plan.version,
        "output": output.uri,
        "read": sum(block.n_read for block in blocks),
        "scored": sum(block.n_scored for block in blocks),
        "rejected": sum(block.n_rejected for block in blocks),
        "rejects": dict(sorted(rejects.items())),
        "blocks": len(blocks),
        "resumed": resumed,
        "files": [asdict(file) for file in files],
    }
    if output.read(plan.id, "manifest.json") is None:
        output.write(plan.id, "manifest.json", manifest)
    return manifest, profile


def _commit(output: Output, plan: Plan, files: Sequence[DataFile], schema: pa.Schema) -> None:
    """One commit with all files, unless that batch was committed before: its id stands with it."""
    app = f"score-{plan.id}"
    arrow = Schema.from_arrow(schema)
    with lake.exclusive(output.uri):
        table = DeltaTable.create(output.uri, arrow, mode="ignore")
        if lake.committed(output.uri, app) >= 1:
            return
        if missing := [f for f in schema.names if f not in {field.name for field in table.schema().fields}]:
            raise DataError(output.uri, f"the table has no column {missing[0]!r}; name another one")
        stats = [json.dumps({"numRecords": file.n_rows}) for file in files]
        adds = [AddAction(file.path, file.size, {}, 0, True, s) for file, s in zip(files, stats, strict=True)]
        marks = CommitProperties(app_transactions=[Transaction(app, 1)])
        table.create_write_transaction([*adds], "append", table.schema(), commit_properties=marks)


def _clean(output: Output, plan: Plan, named: Collection[str]) -> None:
    """Removes what killed workers left half-written, and scores of blocks that are none any more."""
    filesystem, root = filesystem_of(output.uri)
    folders = (output.part(plan.id, 0).rpartition("/")[0], output.aside(plan.id, "rejects"))
    for folder in folders:
        place = f"{root}/{folder}".rstrip("/")
        for info in filesystem.get_file_info(fs.FileSelector(place, allow_not_found=True)):
            name = info.path.removeprefix(f"{root}/")
            half = info.base_name.startswith(".")
            if info.is_file and name.endswith(".parquet") and (half or (folder == folders[0] and name not in named)):
                filesystem.delete_file(info.path)
