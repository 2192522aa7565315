"""A project's state written to one file, and put back from it."""

from __future__ import annotations

import json
import math
import shutil
import tempfile
import time
from collections.abc import Iterable
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlops_ray.errors import DataError
from mlops_ray.verbs import Env, Paths, Progress, _silent, known_store, load, make_root, open_store
from mlops_ray.verbs.subjects import orderer

if TYPE_CHECKING:
    from mlops_ray.config import Project
    from mlops_ray.governance.backup import Contents
    from mlops_ray.state import ServingRow, Store, Tx, VersionRow

_TABLES = ("data", "quarantine", "log")
"""Folders below `storage.root` whose subfolder of the project's name holds Delta tables."""


def backup(
    paths: Paths,
    env: Env,
    output: str | Path,
    on_progress: Progress = _silent,
    *,
    models: bool = True,
    data: bool = False,
) -> dict[str, Any]:
    """Write a backup to the new file `output`, or into that folder; the project may run meanwhile.

    Args: models: with the artifacts of all versions. data: with the Delta tables below a local `storage.root`.
    Raises: DataError when the file is there already or cannot be written; ArtifactRefused for artifacts that are not
        the registered ones; BackendUnavailable.
    """
    from mlops_ray.governance import backup as file
    from mlops_ray.governance.on_backup import registry_of

    project = load(paths, env).project
    store, now = known_store(project), time.time()
    target = _target(Path(output), project, now)
    if data and project.storage.is_remote:
        raise DataError(project.storage.root, "its tables are not copied: let the object store keep versions of them")
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=".backup-") as temporary:
        folder = Path(temporary)
        on_progress("state", 0, 1)
        rows, head, versions = _save_rows(store, project, folder / file.STATE)
        on_progress("registry", 0, 1)
        registry = registry_of(project, versions)
        (folder / file.REGISTRY).write_text(json.dumps(registry, sort_keys=True), encoding="utf-8")
        artifacts = _save_models(project, versions, folder / file.MODELS, on_progress) if models else 0
        tables = list(_local_tables(project)) if data else []
        for n, table in enumerate(tables):
            on_progress("tables", n, len(tables))
            file.copy_table(table, folder / file.TABLES / table.relative_to(project.storage.path()))
        on_progress("file", 0, 1)
        written = file.pack(folder, target, project=project.project, created=now, head=head, rows=rows)
    return {
        "file": str(target),
        "bytes": target.stat().st_size,
        "head": list(written.head),
        "rows": rows,
        "versions": len(versions),
        "models": artifacts,
        "tables": len(tables),
    }


def restore(
    paths: Paths,
    env: Env,
    source: str | Path,
    on_progress: Progress = _silent,
    *,
    force: bool = False,
    why: str = "restored from a backup",
) -> dict[str, Any]:
    """Put a backup back: artifacts and tables that are missing, MLflow's versions and aliases, then all rows of the
    state in one transaction, which ends with the verified ledger or leaves no trace.

    Args: force: replace a state that is there. why: for the ledger.
    Raises: DataError for a file that is no whole backup of this project, for a state that is there, and while the
        project is up; ArtifactRefused; BackendUnavailable.
    """
    from mlops_ray import ledger
    from mlops_ray.governance import backup as file
    from mlops_ray.governance.on_backup import put_back_registry
    from mlops_ray.state import Store
    from mlops_ray.training.on_registry import CHALLENGER, CHAMPION, anchors

    project = load(paths, env).project
    name, now = project.project, time.time()
    make_root(project)
    place = None if project.storage.is_remote else project.storage.path()
    with tempfile.TemporaryDirectory(dir=place, prefix=".restore-") as temporary:
        folder = Path(temporary)
        on_progress("file", 0, 1)
        contents = file.unpack(Path(source), folder)
        if contents.project != name:
            raise DataError("backup", f"{source} is of {contents.project!r}, and the project file is of {name!r}")
        saved = Store.open(f"sqlite:///{folder / file.STATE}")  # migrates what an earlier release has written
        target = open_store(project)
        try:
            with saved.read() as tx:
                served, versions = tx.serving(name), tx.versions(name)
                found = ledger.verify(tx, name, contents.head)
            if not found.ok:
                raise DataError("backup", f"{source}: {found}")
            with target.read() as tx:
                _demand_vacant(tx, project, force=force, now=now)
            kept = anchors(project)
            models = _put_models(project, versions, folder / file.MODELS, on_progress)
            tables = list(_put_tables(project, contents, folder / file.TABLES))
            on_progress("registry", 0, 1)
            body = json.loads((folder / file.REGISTRY).read_text(encoding="utf-8"))
            aliases = _aliases(served, stable=CHAMPION, canary=CHALLENGER)
            registry = put_back_registry(project, body, aliases)
            on_progress("state", 0, 1)
            who = orderer(project, target, env)

            def put(tx: Tx) -> dict[str, Any]:
                _demand_vacant(tx, project, force=force, now=now)
                with saved.read() as source_tx:
                    return file.put_back(source_tx, tx, name, who=who, why=why, now=now, since=kept)

            evidence = target.run(put)
        finally:
            saved.close()
    with target.read() as tx:
        # Whoever restores has just accepted the loss of what came after the backup.
        lost = [(seq, sealed) for seq, sealed in evidence[ledger.GAVE_UP]]
        verified = ledger.verify(tx, name, *kept, accepted=lost)
    return {
        "project": name,
        "created": contents.created,
        "head": list(contents.head),
        "gave_up": len(evidence[ledger.GAVE_UP]),
        "rows": contents.rows,
        "models": models,
        "tables": tables,
        "registry": registry,
        "ok": verified.ok,
        "says": str(verified),
    }


def _target(output: Path, project: Project, now: float) -> Path:
    """The file to write: `output`, or one named by project and time where that is a folder."""
    if output.is_dir():
        stamp = datetime.fromtimestamp(now, UTC).strftime("%Y%m%dT%H%M%SZ")
        output = output / f"{project.project}-{stamp}.tar.gz"
    if output.exists():
        raise DataError(str(output), "is there already, and a backup replaces nothing; name another file")
    if not output.parent.is_dir():
        raise DataError(str(output), f"there is no directory {output.parent}; make it first")
    return output.absolute()


def _save_rows(
    store: Store, project: Project, target: Path
) -> tuple[dict[str, int], tuple[int, str], list[VersionRow]]:
    """Copy the project's rows, all of one instant, to a state database of their own; counts, ledger's head, versions.

    Raises: DataError when the ledger is broken: what cannot be verified is not worth a backup."""
    from mlops_ray import ledger
    from mlops_ray.governance.backup import copy_rows
    from mlops_ray.state import Store

    copy = Store.open(f"sqlite:///{target}")
    try:
        with store.read() as source, copy.begin() as tx:
            rows = copy_rows(source, tx, project.project)
        with copy.read() as tx:
            found, versions = ledger.verify(tx, project.project), tx.versions(project.project)
    finally:
        copy.close()
    if not found.ok:
        raise DataError(project.project, f"{found}; look at `mlops-ray ledger verify` first")
    _one_file(target)
    return rows, found.head, versions


def _one_file(database: Path) -> None:
    """Put what SQLite keeps beside a database into it, and take the other files away."""
    import sqlite3

    connection = sqlite3.connect(database)
    connection.execute("PRAGMA journal_mode = DELETE")
    connection.close()
    for suffix in ("-wal", "-shm", ".lock"):
        database.with_name(database.name + suffix).unlink(missing_ok=True)


def _save_models(project: Project, versions: Iterable[VersionRow], into: Path, on_progress: Progress) -> int:
    """Copy the artifacts of the versions, each once and whole; how many. Raises: ArtifactRefused."""
    from mlops_ray.training.artifact import model

    rows = {row.sha256: row for row in versions}
    with tempfile.TemporaryDirectory() as cache:
        for n, row in enumerate(rows.values()):
            on_progress("models", n, len(rows))
            folder = model.fetch(row.artifact, Path(cache), row.sha256)
            model.load(folder, row.sha256, trusted=project.features.trusted_types)
            shutil.copytree(folder, into / row.sha256)
    return len(rows)


def _put_models(project: Project, versions: Iterable[VersionRow], saved: Path, on_progress: Progress) -> int:
    """Put artifacts where versions look for them and nothing lies; how many were put. Raises: ArtifactRefused."""
    from mlops_ray.training.artifact import model

    rows, n_put = {row.artifact: row for row in versions}, 0
    trusted = project.features.trusted_types
    for n, row in enumerate(rows.values()):
        on_progress("models", n, len(rows))
        if not (saved / row.sha256).is_dir():
            continue
        with tempfile.TemporaryDirectory() as cache:
            if _lies_at(row.artifact):
                model.load(model.fetch(row.artifact, Path(cache), row.sha256), row.sha256, trusted=trusted)
                continue
        model.load(saved / row.sha256, row.sha256, trusted=trusted)
        ready = saved / f"{row.sha256}-{n}"
        shutil.copytree(saved / row.sha256, ready)
        model.publish(ready, row.artifact)
        n_put += 1
    return n_put


def _lies_at(address: str) -> bool:
    from mlops_ray.training.artifact.files import vacant

    return vacant(address) != address


def _local_tables(project: Project) -> Iterable[Path]:
    for folder in _TABLES:
        root = Path(project.storage.path(folder, project.project))
        yield from sorted(log.parent for log in root.rglob("_delta_log"))


def _put_tables(project: Project, contents: Contents, saved: Path) -> Iterable[str]:
    """Put back tables where there is none; names of those put. One that is there may have gone on since, and stays."""
    root = Path(project.storage.path())
    for log in sorted(saved.rglob("_delta_log")):
        name = str(log.parent.relative_to(saved))
        if project.storage.is_remote:
            raise DataError(project.storage.root, f"the backup's table {name} belongs below a local storage.root")
        if not (root / name).exists():
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            log.parent.rename(root / name)
            yield name


def _aliases(served: ServingRow | None, *, stable: str, canary: str) -> dict[str, int]:
    """Which version each alias names that follows from what is served."""
    spec = served.spec if served is not None else {}
    found = {stable: (spec.get("stable") or {}).get("version"), canary: spec.get("canary")}
    return {alias: int(number) for alias, number in found.items() if number is not None}


def _demand_vacant(tx: Tx, project: Project, *, force: bool, now: float) -> None:
    """Raises: DataError while a controller acts, or for a state that is there without `force`."""
    from mlops_ray.governance.backup import is_empty

    lease = tx.lease(f"rollout:{project.project}")
    if lease is not None and lease.holder and lease.expires > now:
        says = f"is up: {lease.holder} acts on it; `mlops-ray down` first, and wait {math.ceil(lease.expires - now)} s"
        raise DataError(project.project, says)
    if not force and not is_empty(tx, project.project):
        says = "has a state already; --force replaces it, and its ledger goes: `mlops-ray backup` it first"
        raise DataError(project.project, says)
