"""A project's state as one file: rows of the state database, MLflow's versions and aliases, artifacts, tables.

The rows lie in it as a state database of their own (SQLite), copied from one snapshot, whichever database they come
from: a later release migrates that file as it migrates any other, and a restore may go to the other kind of database.
The snapshot is the truth; what else is in the file belongs to the versions that it names.

    backup.json     what is in it: project, time, head of the ledger, SHA-256 of every other file
    state.db        the project's rows, of all tables but the leases, which are of processes that will have ended
    registry.json   versions and aliases in MLflow
    models/<hash>/  artifacts, by the hash of their manifest
    tables/<path>   Delta tables, by their path below `storage.root`
"""

from __future__ import annotations

import hashlib
import os
import shutil
import tarfile
import zlib
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationError
from sqlalchemy import ColumnElement, Table, delete, insert, select, update

from mlops_ray import ledger
from mlops_ray.config.base import Config
from mlops_ray.errors import DataError
from mlops_ray.monitoring import standing
from mlops_ray.monitoring.alerts import book
from mlops_ray.serving import tokens
from mlops_ray.serving.spool import claims
from mlops_ray.state import HEAD, LEASES, METADATA, PROJECTS, SERVING, Tx

ABOUT, STATE, REGISTRY, MODELS, TABLES = "backup.json", "state.db", "registry.json", "models", "tables"

_AT_ONCE = 500  # rows of an INSERT
_MAX_ABOUT = 64 << 20  # bytes of backup.json: some 400,000 files
# Known to METADATA once their modules are imported.
_DECLARED = (ledger.LEDGER, tokens.TOKENS, claims.REQUEST_IDS, book.ALERTS, standing.DETECTORS)

Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class Listed(Config):
    """A file of a backup."""

    sha256: Sha256
    bytes: Annotated[int, Field(ge=0)]


class Contents(Config):
    """What `backup.json` says. `created`: seconds since the epoch; `head`: the ledger's, (seq, hash)."""

    format: Literal[1] = 1
    project: str
    created: float
    schema_revision: str = HEAD
    head: tuple[int, Sha256]
    rows: dict[str, int]
    files: dict[str, Listed]


def tables() -> list[Table]:
    """The tables whose rows belong to projects."""
    assert all(table.metadata is METADATA for table in _DECLARED)
    return [table for table in METADATA.sorted_tables if table is not LEASES]


def is_empty(tx: Tx, project: str) -> bool:
    """Whether the database holds nothing of the project."""
    return all(tx.connection.execute(select(t).where(_mine(t, project)).limit(1)).first() is None for t in tables())


def copy_rows(source: Tx, target: Tx, project: str) -> dict[str, int]:
    """Copy the project's rows from one database to another that has none of them; the count by table.

    Texts and numbers go over as they stand, so that hashes of the ledger hold on either kind of database."""
    counts = {}
    for table in tables():
        counts[table.name] = 0
        query = select(table).where(_mine(table, project)).execution_options(yield_per=_AT_ONCE)
        for rows in source.connection.execute(query).mappings().partitions():
            target.connection.execute(insert(table), [dict(row) for row in rows])
            counts[table.name] += len(rows)
    return counts


def put_back(
    source: Tx, target: Tx, project: str, *, who: str, why: str, now: float, since: Iterable[ledger.Anchor]
) -> dict[str, Any]:
    """Replace the project's rows in `target` (a write transaction) by those of `source`, and say so in the ledger.

    The serving configuration gets a higher number than the one it replaces: whoever holds that one would ignore it
    otherwise. Args: since: anchors kept elsewhere; those after the backup's head are named as given up, and so are all
    entries of the ledger that is replaced. now: seconds since the epoch.
    Returns: the evidence of the ledger's new entry.
    Raises: DataError when the ledger does not hold afterwards: let the transaction end with it.
    """
    was, head = target.serving(project), ledger.head(source, project)
    replaced = [(entry.seq, entry.hash) for entry in ledger.entries(target, project, since_seq=head[0])]
    lost = sorted({*replaced, *(anchor for anchor in since if anchor[0] > head[0])})
    for table in tables():
        target.connection.execute(delete(table).where(_mine(table, project)))
    counts = copy_rows(source, target, project)
    restored = target.serving(project)
    if was is not None and restored is not None:
        number = max(restored.seq, was.seq + (was.spec != restored.spec))
        values = {"seq": number, "fence": max(restored.fence, was.fence)}
        target.connection.execute(update(SERVING).where(SERVING.c.project == project).values(values))
    evidence = {"head": list(head), "rows": counts, ledger.GAVE_UP: [list(anchor) for anchor in lost]}
    ledger.append(target, project, ledger.RESTORED, "backup", who, why, evidence, now)
    found = ledger.verify(target, project, head)
    if not found.ok:
        raise DataError(f"backup of {project}", f"{found}; nothing was restored")
    return evidence


def _mine(table: Table, project: str) -> ColumnElement[bool]:
    return (table.c.name if table is PROJECTS else table.c.project) == project


# the file


def pack(
    folder: Path, output: Path, *, project: str, created: float, head: ledger.Anchor, rows: dict[str, int]
) -> Contents:
    """Write what lies in `folder` to the new file `output`, for its user alone: whole, or not at all.

    Raises: DataError when it cannot be written."""
    names = sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())
    files = {name: Listed(sha256=_digest(folder / name), bytes=(folder / name).stat().st_size) for name in names}
    contents = Contents(project=project, created=created, head=head, rows=rows, files=files)
    partial = output.with_name(f".{output.name}.{os.getpid()}")
    try:
        (folder / ABOUT).write_text(contents.model_dump_json(), encoding="utf-8")
        with os.fdopen(os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as out:
            with tarfile.open(fileobj=out, mode="w:gz", compresslevel=3) as archive:
                for name in (ABOUT, *names):
                    archive.add(folder / name, name, recursive=False)
            out.flush()
            os.fsync(out.fileno())
        partial.rename(output)
    except OSError as exc:
        raise DataError(str(output), f"cannot be written ({exc.strerror}); name another file") from exc
    finally:
        partial.unlink(missing_ok=True)
    return contents


def unpack(file: Path, folder: Path) -> Contents:
    """Take the files of a backup out into the empty `folder`, each checked against its hash.

    Raises: DataError when it is no backup, is damaged, or holds what its list does not."""
    said = f"{file} is no backup of this package"
    try:
        with tarfile.open(file, mode="r:gz") as archive:
            first = archive.next()
            if first is None or first.name != ABOUT or not first.isreg() or first.size > _MAX_ABOUT:
                raise DataError("backup", f"{said}: it does not begin with {ABOUT}")
            about = archive.extractfile(first)
            assert about is not None
            contents = Contents.model_validate_json(about.read())
            for member in archive:
                listed = contents.files.get(member.name)
                if listed is None:
                    if member.name == ABOUT:
                        continue
                    raise DataError("backup", f"{file} holds {member.name!r}, which its list does not name")
                if not member.isreg() or member.size != listed.bytes:
                    raise DataError("backup", f"{file} is damaged: {member.name!r} is not as its list says")
                archive.extract(member, folder, filter="data")
    except ValidationError as exc:
        wrong = exc.errors(include_url=False)[0]
        place = ".".join(map(str, wrong["loc"]))
        raise DataError("backup", f"{said}, or of a newer one: {ABOUT}: {place}: {wrong['msg']}") from exc
    except (tarfile.TarError, EOFError, OSError, zlib.error) as exc:
        raise DataError("backup", f"{said}, or is damaged: {exc}") from exc
    for name, listed in contents.files.items():
        if not (folder / name).is_file() or _digest(folder / name) != listed.sha256:
            raise DataError("backup", f"{file} is damaged: {name!r} is missing, or its SHA-256 is another")
    return contents


def copy_table(table: Path, into: Path) -> None:
    """Copy a Delta table that others may append to: its log first, so that all files which the copy names are there.

    Raises: DataError when files were removed meanwhile."""
    try:
        log = table / "_delta_log"
        if log.is_dir():
            # The hint at the newest checkpoint before the checkpoints: it may be older than they are, never newer.
            names = sorted(
                (path for path in log.rglob("*") if path.is_file()), key=lambda p: p.name != "_last_checkpoint"
            )
            for path in names:
                _copy(path, into / path.relative_to(table))
        for path in sorted(table.rglob("*")):
            if path.is_file() and "_delta_log" not in path.relative_to(table).parts:
                _copy(path, into / path.relative_to(table))
    except FileNotFoundError as exc:
        raise DataError(str(table), f"{exc.filename} was removed while it was copied; run the backup again") from exc


def _copy(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(source, target)


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
