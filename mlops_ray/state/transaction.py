"""What one transaction can read and write."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import fields
from typing import Any, ClassVar, Protocol, TypeVar

from sqlalchemy import JSON, Connection, Select, Table, cast, func, select, type_coerce

from mlops_ray.errors import DataError, IllegalMove, LeaseLost, ModelNotFound
from mlops_ray.state.rows import (
    ApprovalRow,
    Cursor,
    Glimpse,
    Lease,
    ProjectRow,
    RetrainRow,
    RolloutRow,
    ServingRow,
    VersionRow,
    WindowRow,
)
from mlops_ray.state.tables import (
    APPROVALS,
    CURSORS,
    LEASES,
    PROFILES,
    PROJECTS,
    RETRAINS,
    ROLLOUTS,
    SERVING,
    VERSIONS,
    WINDOWS,
    canonical,
    insert_of,
    parsed,
    row_of,
    storable,
    stored,
)

T = TypeVar("T")


class Row(Protocol):
    """Any of the frozen row classes above."""

    __dataclass_fields__: ClassVar[dict[str, Any]]


class Tx:
    """One transaction; made by `Store.begin` (reads and writes) and `Store.read` (a consistent snapshot, no writes)."""

    def __init__(self, connection: Connection) -> None:
        self.connection = connection
        """For statements of other modules on their own tables."""

    # projects

    def save_project(self, name: str, config_text: str, now: float) -> ProjectRow:
        """Keep the project file's text under the project's name, replacing an older one."""
        config = storable(config_text, f"project file of {name}").encode()
        row = ProjectRow(name, config_text, hashlib.sha256(config).hexdigest(), now)
        self.save(PROJECTS, row)
        return row

    def forget_project(self, name: str) -> None:
        """Take the project file out: the project is no longer to be served. Versions, ledger and log stay."""
        self.connection.execute(PROJECTS.delete().where(PROJECTS.c.name == name))

    def project_text(self, name: str) -> str | None:
        """The project file as last saved, or None."""
        row = self._one(ProjectRow, select(PROJECTS).where(PROJECTS.c.name == name))
        return None if row is None else row.config_text

    def projects(self) -> list[ProjectRow]:
        """All projects, by name."""
        return self._all(ProjectRow, select(PROJECTS).order_by(PROJECTS.c.name))

    def glimpses(self) -> dict[str, Glimpse]:
        """Of every project, what tells whether somebody has something to do; cheap enough for ten times a second."""
        p, s, r = PROJECTS.c, SERVING.c, ROLLOUTS.c
        tables = PROJECTS.outerjoin(SERVING, p.name == s.project).outerjoin(
            ROLLOUTS, (p.name == r.project) & r.ended.is_(None)
        )
        found = self.connection.execute(
            select(p.name, p.config_sha256, s.fence, s.seq, r.id, r.state).select_from(tables).order_by(p.name)
        )
        return {
            name: Glimpse(sha256, (-1, -1) if seq is None else (fence, seq), rollout, parsed(state) if state else {})
            for name, sha256, fence, seq, rollout, state in found
        }

    # versions

    def save_version(self, row: VersionRow) -> None:
        """Insert or replace a version."""
        self.save(VERSIONS, row)

    def version(self, project: str, version: int) -> VersionRow:
        """Raises: ModelNotFound."""
        c = VERSIONS.c
        row = self._one(VersionRow, select(VERSIONS).where(c.project == project, c.version == int(version)))
        if row is None:
            raise ModelNotFound(project, str(version))
        return row

    def versions(self, project: str) -> list[VersionRow]:
        """All versions of a project, oldest first."""
        c = VERSIONS.c
        return self._all(VersionRow, select(VERSIONS).where(c.project == project).order_by(c.version))

    # serving

    def serving(self, project: str) -> ServingRow | None:
        """The wanted configuration, or None when nothing was ever served."""
        return self._one(ServingRow, select(SERVING).where(SERVING.c.project == project))

    def save_serving(self, project: str, spec: Mapping[str, Any], fence: int) -> ServingRow:
        """Want `spec` from now on. `seq` grows by one when the spec changes and stays when it does not.

        Raises: LeaseLost when a holder with a newer fence has saved since; replicas would ignore this one.
        """
        old = self.serving(project)
        if old is not None and fence < old.fence:
            raise LeaseLost(f"serving of {project}", f"the holder of fence {old.fence}")
        subject = f"serving configuration of {project}"
        body = canonical(spec, subject)
        seq = 1 if old is None else old.seq + (canonical(old.spec, subject) != body)
        row = ServingRow(project, seq, int(fence), json.loads(body))
        self.save(SERVING, row)
        return row

    # rollouts

    def save_rollout(self, row: RolloutRow) -> None:
        """Insert or replace a rollout.

        Raises: IllegalMove when another rollout of the project is still open.
        """
        if row.ended is None:
            other = self.open_rollout(row.project)
            if other is not None and other.id != row.id:
                raise IllegalMove("be followed by another", f"open ({other.id})", ("promote", "abort"))
        self.save(ROLLOUTS, row)

    def rollout(self, rollout_id: str) -> RolloutRow | None:
        """The rollout with this id, or None."""
        return self._one(RolloutRow, select(ROLLOUTS).where(ROLLOUTS.c.id == rollout_id))

    def rollouts(self, project: str) -> list[RolloutRow]:
        """All rollouts of a project, newest first."""
        c = ROLLOUTS.c
        return self._all(RolloutRow, select(ROLLOUTS).where(c.project == project).order_by(c.created.desc(), c.id))

    def open_rollout(self, project: str) -> RolloutRow | None:
        """The rollout that has not ended, or None; the database allows one at most."""
        c = ROLLOUTS.c
        return self._one(RolloutRow, select(ROLLOUTS).where(c.project == project, c.ended.is_(None)))

    # retrains

    def save_retrain(self, row: RetrainRow) -> None:
        """Insert or replace a retrain.

        Raises: DataError when another retrain of the project is still open.
        """
        if row.status in RetrainRow.OPEN:
            other = self.open_retrain(row.project)
            if other is not None and other.id != row.id:
                detail = f"{other.id} of {row.project} is still {other.status}; let it end or save its failure first"
                raise DataError(f"retrain {row.id}", detail)
        self.save(RETRAINS, row)

    def retrain(self, retrain_id: str) -> RetrainRow | None:
        """The retrain with this id, or None."""
        return self._one(RetrainRow, select(RETRAINS).where(RETRAINS.c.id == retrain_id))

    def retrains(self, project: str) -> list[RetrainRow]:
        """All retrains of a project, newest decision first."""
        c = RETRAINS.c
        return self._all(RetrainRow, select(RETRAINS).where(c.project == project).order_by(c.decided.desc(), c.id))

    def open_retrain(self, project: str) -> RetrainRow | None:
        """The retrain that is decided or submitted, or None; the database allows one at most."""
        c = RETRAINS.c
        return self._one(RetrainRow, select(RETRAINS).where(c.project == project, c.status.in_(RetrainRow.OPEN)))

    # approvals

    def save_approval(self, row: ApprovalRow) -> None:
        """Insert a subject's decision, or replace the one it had made."""
        self.save(APPROVALS, row)

    def approvals(self, project: str, version: int, rollout: str = "") -> list[ApprovalRow]:
        """The subjects' last decisions about a version, or about one rollout of it, oldest first."""
        c = APPROVALS.c
        where = (c.project == project, c.version == int(version), c.rollout == rollout)
        return self._all(ApprovalRow, select(APPROVALS).where(*where).order_by(c.at, c.subject))

    def all_approvals(self, project: str) -> list[ApprovalRow]:
        """The subjects' last decisions about all of a project's versions and rollouts, by version, oldest first."""
        c = APPROVALS.c
        query = select(APPROVALS).where(c.project == project).order_by(c.version, c.at, c.subject)
        return self._all(ApprovalRow, query)

    # monitoring

    def profile(self, project: str, version: int, block: float) -> dict[str, Any] | None:
        """The profile of one block of time (named by its start), or None."""
        c = PROFILES.c
        where = (c.project == project, c.version == int(version), c.block == float(block))
        body = self.connection.execute(select(c.body).where(*where)).scalar_one_or_none()
        return None if body is None else parsed(body)

    def save_profile(self, project: str, version: int, block: float, body: Mapping[str, Any]) -> None:
        """Insert or replace the profile of one block."""
        self.upsert(PROFILES, {"project": project, "version": version, "block": block, "body": dict(body)})

    def first_block(self, project: str) -> float | None:
        """Start of the earliest block that has a profile, or None."""
        c = PROFILES.c
        found = self.connection.execute(select(func.min(c.block)).where(c.project == project)).scalar_one()
        return None if found is None else float(found)

    def last_block(self, project: str) -> float | None:
        """Start of the latest block that has a profile, or None."""
        c = PROFILES.c
        found = self.connection.execute(select(func.max(c.block)).where(c.project == project)).scalar_one()
        return None if found is None else float(found)

    def traffic(self, project: str, since: float) -> list[tuple[int, float, int]]:
        """(version, block, rows) of the blocks that start at `since` or later, by block, then version.

        The database takes the number out of the profile: of the rest, a hundred times as much, nothing is read."""
        c = PROFILES.c
        body = cast(c.body, JSON) if self.connection.dialect.name == "postgresql" else type_coerce(c.body, JSON)
        query = select(c.version, c.block, body["n"].as_float()).where(c.project == project, c.block >= since)
        return [(v, block, int(n)) for v, block, n in self.connection.execute(query.order_by(c.block, c.version))]

    def profiles(
        self, project: str, since: float, until: float, version: int | None = None
    ) -> list[tuple[int, float, dict[str, Any]]]:
        """(version, block, body) of the blocks that start in [since, until), by block, then version."""
        c = PROFILES.c
        query = select(c.version, c.block, c.body).where(c.project == project, c.block >= since, c.block < until)
        if version is not None:
            query = query.where(c.version == int(version))
        found = self.connection.execute(query.order_by(c.block, c.version))
        return [(v, block, parsed(body)) for v, block, body in found]

    def save_window(self, row: WindowRow) -> None:
        """Insert or replace the judgement of one window of one version."""
        self.save(WINDOWS, row)

    def windows(self, project: str, limit: int = 100) -> list[WindowRow]:
        """The last `limit` windows, newest first."""
        c = WINDOWS.c
        query = select(WINDOWS).where(c.project == project).order_by(c.start.desc(), c.end.desc(), c.version)
        return self._all(WindowRow, query.limit(limit))

    def n_windows(self, project: str) -> int:
        """How many judgements of windows there are."""
        query = select(func.count()).select_from(WINDOWS).where(WINDOWS.c.project == project)
        return int(self.connection.execute(query).scalar_one())

    def cursor(self, project: str, name: str) -> Cursor:
        """Where this reader stands; `Cursor()` when it never was saved."""
        c = CURSORS.c
        return self._one(Cursor, select(c.number, c.at).where(c.project == project, c.name == name)) or Cursor()

    def cursors(self, project: str, prefix: str) -> dict[str, Cursor]:
        """All readers' places whose names begin with `prefix`, by the rest of their names."""
        c = CURSORS.c
        query = select(c.name, c.number, c.at).where(c.project == project, c.name.startswith(prefix, autoescape=True))
        found = self.connection.execute(query.order_by(c.name))
        return {name.removeprefix(prefix): Cursor(number, at) for name, number, at in found}

    def save_cursor(self, project: str, name: str, number: int, at: float) -> None:
        """Set a reader's place, in the transaction of what it has read."""
        self.upsert(CURSORS, {"project": project, "name": name, "number": number, "at": at})

    def save_cursors(self, project: str, places: Mapping[str, Cursor]) -> None:
        """Set several readers' places in one statement."""
        if not places:
            return
        rows = [
            {n: stored(CURSORS, n, v) for n, v in ({"project": project, "name": name} | vars(place)).items()}
            for name, place in places.items()
        ]
        new = insert_of(CURSORS, self.connection.dialect.name).values(rows)
        changed = {name: new.excluded[name] for name in ("number", "at")}
        self.connection.execute(new.on_conflict_do_update(index_elements=["project", "name"], set_=changed))

    # leases

    def lease(self, name: str) -> Lease | None:
        """The lease as it stands (its holder is "" after a release), or None when nobody ever took it."""
        return self._one(Lease, select(LEASES).where(LEASES.c.name == name))

    def guard(self, lease: Lease) -> None:
        """Return if `lease` is still the newest; time plays no part: a holder that is late but unrivalled may go on.

        Call it in the write transaction that acts under the lease: until that commits, nobody can take it.
        Raises: LeaseLost.
        """
        now_held = self.lease(lease.name)
        if now_held is None or (now_held.fence, now_held.holder) != (lease.fence, lease.holder):
            raise LeaseLost(lease.name, (now_held.holder if now_held else "") or "nobody")

    # how

    def save(self, table: Table, row: Row) -> None:
        """Insert or replace the row with this one's primary key. Raises: as `upsert`."""
        self.upsert(table, {f.name: getattr(row, f.name) for f in fields(row)})

    def upsert(self, table: Table, values: Mapping[str, Any]) -> None:
        """Insert or replace the row with these values' primary key. Args: values: by column, JSON bodies as dicts.

        Raises: DataError for what both databases would not keep alike."""
        kept = {name: stored(table, name, value) for name, value in values.items()}
        keys = [column.name for column in table.primary_key]
        new = insert_of(table, self.connection.dialect.name).values(kept)
        changed = {name: new.excluded[name] for name in kept if name not in keys}
        self.connection.execute(new.on_conflict_do_update(index_elements=keys, set_=changed))

    def _one(self, kind: Callable[..., T], query: Select[Any]) -> T | None:
        found = self.connection.execute(query).mappings().one_or_none()
        return None if found is None else row_of(kind, found)

    def _all(self, kind: Callable[..., T], query: Select[Any]) -> list[T]:
        return [row_of(kind, found) for found in self.connection.execute(query).mappings()]
