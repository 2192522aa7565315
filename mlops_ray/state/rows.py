"""The rows of the state database as frozen values. Times are float seconds since the epoch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar


@dataclass(frozen=True)
class ProjectRow:
    """A project file as it was last loaded; `config_sha256` is the hex digest of its text."""

    name: str
    config_text: str
    config_sha256: str
    updated: float


@dataclass(frozen=True)
class VersionRow:
    """One registered model: where its artifact lies, which hash it must have, what data it saw.

    `status` is `REGISTERED`, `PENDING` while it waits for approvals, or `REJECTED` when an approver refused it."""

    REGISTERED: ClassVar[str] = "registered"
    PENDING: ClassVar[str] = "pending"
    REJECTED: ClassVar[str] = "rejected"

    project: str
    version: int
    run_id: str
    artifact: str
    sha256: str
    dataset: str
    status: str
    created: float
    tags: dict[str, Any]

    @property
    def may_serve(self) -> bool:
        """Whether it may get traffic."""
        return self.status not in (self.PENDING, self.REJECTED)


@dataclass(frozen=True)
class ServingRow:
    """What a project should serve. (fence, seq) orders all configurations; who holds a higher one ignores this."""

    project: str
    seq: int
    fence: int
    spec: dict[str, Any]


@dataclass(frozen=True)
class RolloutRow:
    """One rollout of `version` against `stable`; open while `ended` is None."""

    id: str
    project: str
    version: int
    stable: int
    plan: dict[str, Any]
    state: dict[str, Any]
    created: float
    ended: float | None = None


@dataclass(frozen=True)
class Glimpse:
    """What changes of a project when there is something to do: its file, (fence, seq) of what it should serve (-1
    before anything), and its open rollout, None without one."""

    config_sha256: str
    order: tuple[int, int]
    rollout: str | None
    state: dict[str, Any]


@dataclass(frozen=True)
class RetrainRow:
    """One decision to retrain and what became of it; open while `status` is "decided" or "submitted"."""

    OPEN: ClassVar[tuple[str, ...]] = ("decided", "submitted")
    PROPOSED: ClassVar[str] = "proposed"
    """What a dry run would have decided: nobody acts on it."""

    id: str
    project: str
    trigger: str
    reason: str
    decided: float
    submission_id: str
    status: str
    outcome: dict[str, Any]
    updated: float


@dataclass(frozen=True)
class WindowRow:
    """The judgement of one window [start, end) of a version's traffic."""

    project: str
    start: float
    end: float
    version: int
    result: dict[str, Any]


@dataclass(frozen=True)
class ApprovalRow:
    """What a subject last decided about a version (`rollout` is ""), or about one rollout of it.

    `expires`: seconds since the epoch from which on it no longer counts, or None."""

    APPROVE: ClassVar[str] = "approve"
    REJECT: ClassVar[str] = "reject"

    project: str
    version: int
    rollout: str
    subject: str
    decision: str
    reason: str
    at: float
    expires: float | None = None


@dataclass(frozen=True)
class Cursor:
    """How far a reader has come: the last number it took in, and the time it stood for."""

    number: int = -1
    at: float = 0.0


@dataclass(frozen=True)
class Lease:
    """The right to act under `name` until `expires`. `fence` grows with every new holder and never falls."""

    name: str
    holder: str
    fence: int
    expires: float
