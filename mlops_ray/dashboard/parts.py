"""The document's parts, as types: frozen, and JSON as they stand. Times are seconds since the epoch of decision time
where nothing else is said; sentences are as `wording` says.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from mlops_ray.governance.lineage import Node

SCHEMA = "mlops_ray.dashboard/1"
"""Name and number of the document's shape; the number grows when a reader of the one before would misread it."""

State = Literal["now", "done", "waiting", "trouble"]


@dataclass(frozen=True)
class About:
    """What the project is. base: path of its endpoint."""

    name: str
    task: str
    target: str
    base: str
    intended_use: str | None
    owner: str | None


@dataclass(frozen=True)
class Stage:
    """One station of the loop. says: what happened there last, or happens now."""

    id: str
    title: str
    state: State
    says: str


@dataclass(frozen=True)
class Loop:
    """Where the project stands: `stage` is the id of the station, `says` the same in a sentence."""

    stage: str
    says: str
    stages: tuple[Stage, ...]


@dataclass(frozen=True)
class Serving:
    """Who answers. rows: answered so far, by version. warm: versions that are kept loaded for a way back."""

    stable: int | None
    canary: int | None
    share: float
    shadow: bool
    arms: tuple[int, ...]
    warm: tuple[int, ...]
    rows: dict[str, int]


@dataclass(frozen=True)
class Traffic:
    """Rows by version over time. blocks: (start, rows of each of `versions`)."""

    block_s: float
    versions: tuple[int, ...]
    blocks: tuple[tuple[float, tuple[int, ...]], ...]
    empty: str | None


@dataclass(frozen=True)
class Estimate:
    """A window's metric before its labels came, by the method that is trusted more. trust: in [0, 1)."""

    value: float
    low: float | None
    high: float | None
    method: str
    trust: float


@dataclass(frozen=True)
class QualityPoint:
    """One window of one version. realised: over its labelled rows; low, high: what it says of rows like them, where the
    monitor tells; limit: alarms above it; coverage: share of rows whose label is known."""

    start: float
    end: float
    version: int
    estimated: Estimate | None
    realised: float | None
    low: float | None
    high: float | None
    limit: float | None
    coverage: float | None
    roc_auc: float | None
    alarm: bool
    why: str


@dataclass(frozen=True)
class Quality:
    """The project's main metric, a loss, over windows, oldest first. horizon_s: how late labels are believed."""

    metric: str
    unit: str
    horizon_s: float
    points: tuple[QualityPoint, ...]
    empty: str | None


@dataclass(frozen=True)
class DriftWindow:
    """One window's drift. psi: of each feature of `Drift.features`, in nats; None where not judged; limit: likewise."""

    start: float
    end: float
    version: int
    rows: int | None
    alarm: bool
    why: str
    decision: str
    psi: tuple[float | None, ...]
    limit: tuple[float | None, ...]


@dataclass(frozen=True)
class Drift:
    """Features, the most drifted first, by windows, oldest first. next: when the next window closes."""

    features: tuple[str, ...]
    windows: tuple[DriftWindow, ...]
    next: float | None
    empty: str | None


@dataclass(frozen=True)
class Look:
    """A metric at one look: the canary's loss minus stable's, its confidence sequence, and the keys behind it."""

    at: float
    n_keys: int
    estimate: float
    low: float | None
    high: float | None

    @property
    def interval(self) -> tuple[float, float] | None:
        """Both ends, where they are known."""
        return None if self.low is None or self.high is None else (self.low, self.high)


@dataclass(frozen=True)
class Metric:
    """A metric of a rollout and how it came to be: looks, oldest first. needed: more keys at the present estimate."""

    name: str
    title: str
    arm: int | None
    margin: float
    verdict: str
    n_keys: int
    needed: int | None
    evidence_worse: float
    evidence_fine: float
    looks: tuple[Look, ...]


@dataclass(frozen=True)
class Step:
    """Something that was decided about a rollout."""

    at: float
    kind: str
    who: str
    why: str
    entry: int


@dataclass(frozen=True)
class Rollout:
    """One rollout. versions: all that it tries, side by side where there are several; version: the first, or the one
    that was chosen. says: where it stands, or how it ended."""

    id: str
    version: int
    versions: tuple[int, ...]
    against: int
    mode: str
    phase: str
    reason: str
    open: bool
    share: float
    shares: tuple[float, ...]
    step: int
    began: float
    ended: float | None
    alpha: float
    says: str
    waits: tuple[str, ...]
    metrics: tuple[Metric, ...]
    steps: tuple[Step, ...]


@dataclass(frozen=True)
class Retrain:
    """A decision to retrain, and what became of it."""

    id: str
    at: float
    trigger: str
    status: str
    reason: str
    version: int | None
    says: str


@dataclass(frozen=True)
class Alert:
    """Something that alarms now."""

    trigger: str
    since: float
    says: str


@dataclass(frozen=True)
class Notice:
    """An alert that is open. since: on the machine's clock, seconds since the epoch. state: pending, firing,
    acknowledged or silenced."""

    rule: str
    subject: str
    severity: str
    state: str
    since: float
    says: str


@dataclass(frozen=True)
class LedgerEntry:
    """A line of the ledger. hash: its first twelve characters."""

    seq: int
    at: float
    kind: str
    subject: str
    who: str
    why: str
    hash: str


@dataclass(frozen=True)
class Ledger:
    """The last entries, newest first, of `n`. head: hash of the last."""

    n: int
    head: str
    entries: tuple[LedgerEntry, ...]


@dataclass(frozen=True)
class Origin:
    """Where a version comes from and what became of it: as `governance.lineage` has it, in lines of text.

    parent: the version that was stable when it was tried."""

    version: int
    status: str
    created: float
    serves: str | None
    parent: int | None
    cause: str
    dataset: str
    content_hash: str | None
    run_id: str
    sha256: str
    became: str
    tree: tuple[Node, ...]


@dataclass(frozen=True)
class Document:
    """All of it. now: decision time. schema: SCHEMA."""

    schema: str
    release: str
    about: About
    now: float | None
    loop: Loop
    serving: Serving
    alerts: tuple[Alert, ...]
    notices: tuple[Notice, ...]
    traffic: Traffic
    quality: Quality
    drift: Drift
    rollouts: tuple[Rollout, ...]
    retrains: tuple[Retrain, ...]
    ledger: Ledger
    lineage: tuple[Origin, ...]
