"""What served at a time, and who let it: read from the ledger's entries alone."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from typing import Any

from mlops_ray.governance.approvals import KIND as APPROVED
from mlops_ray.ledger import Entry
from mlops_ray.rollout.canary import TAKEN_BACK, Phase

_FIRST = "promoted"
_ORDERS = ("rollout promote", "rollout rollback")  # whereupon a version becomes stable
_SHARE = re.compile(r" at ([0-9.e-]+)$")
# Phases of a rollout in which its version answers some keys, or all. Others but its ends change nothing.
_CANARY = (Phase.RAMPING, Phase.PAUSED, Phase.PENDING)
_STABLE = (Phase.PROMOTED, Phase.BAKING)


@dataclass(frozen=True)
class Served:
    """Who answered at `at`, seconds since the epoch. Versions are None where nothing is on record."""

    at: float
    stable: int | None = None
    since: float | None = None
    promotion: Entry | None = None
    """The entry that made it stable; where the one promoted after it was rolled back, that entry."""
    rollout: str | None = None
    """The rollout that `promotion` belongs to."""
    canary: int | None = None
    share: float = 0.0
    """Of the keys, that the canary answered, or each of the arms."""
    arms: tuple[int, ...] = ()
    """Versions that answered side by side (`mode: ab`), in place of one canary."""
    approvals: tuple[Entry, ...] = ()
    """Approvals of stable, or of its rollout, that came before its promotion."""
    order: Entry | None = None
    """An operator's order that promoted it, or None where the evidence did."""
    notes: tuple[str, ...] = ()
    """What the answer leaves open."""

    def to_dict(self) -> dict[str, Any]:
        """The answer as JSON."""
        body = {name: getattr(self, name) for name in ("at", "stable", "since", "rollout", "canary", "share")}
        return body | {
            "arms": list(self.arms),
            "promotion": asdict(self.promotion) if self.promotion else None,
            "order": asdict(self.order) if self.order else None,
            "approvals": [asdict(entry) for entry in self.approvals],
            "notes": list(self.notes),
        }

    def lines(self) -> list[str]:
        """The answer for people, a fact a line."""
        if self.stable is None or self.promotion is None or self.since is None:
            return [f"nothing served at {_day(self.at)}, as far as the ledger says", *self.notes]
        said = [f"v{self.stable} was stable at {_day(self.at)}, since {_day(self.since)}", f"  {_said(self.promotion)}"]
        if self.order is not None:
            said.append(f"  ordered: {_said(self.order)}")
        said += [f"  {_said(entry)}" for entry in self.approvals]
        if not self.approvals:
            said.append("  approved by nobody: no approval of it is on record before that")
        if self.canary is not None:
            said.append(f"v{self.canary} was its canary, with {self.share:.4g} of the keys")
        if self.arms:
            them = ", ".join(f"v{version}" for version in self.arms)
            said.append(f"beside it {them} answered, each {self.share:.4g} of the keys")
        return [*said, *self.notes]


def served(entries: Iterable[Entry], at: float) -> Served:
    """What the entries of a project, oldest first, say about who answered at `at`, seconds since the epoch by the
    machine's clock.

    Entries of earlier releases carry decision time alone, the first version's promotion machine time: where traffic of
    the past was replayed, that one is later than what follows. An entry therefore counts as no later than those after
    it.
    """
    known = list(entries)
    moves = [entry for entry in known if entry.kind == _FIRST or _phase(entry) in tuple(Phase)]
    against = {e.evidence["rollout"]: e.evidence["against"] for e in known if "against" in e.evidence and _rollout(e)}
    before: dict[str, Served] = {}
    now = _Walk(Served(at))
    for entry, moved in zip(moves, _times(moves), strict=True):
        if moved <= at:
            now.take(entry, moved, against, before)
    found, notes = now.found, list(now.notes)
    if found.promotion is None:
        return replace(found, notes=tuple(notes))
    if found.since is not None and found.since < found.promotion.written:
        seq = found.promotion.seq
        notes.append(
            f"entry {seq} is dated {_day(found.promotion.written)}, later than the next: the traffic was replayed"
        )
    return replace(found, notes=tuple(notes), **_who_let(found, known))


@dataclass
class _Walk:
    """Where the entries that were read so far have led."""

    found: Served
    notes: list[str] = field(default_factory=list)
    shares: dict[str, float] = field(default_factory=dict)

    def take(self, entry: Entry, at: float, against: dict[str, int], before: dict[str, Served]) -> None:
        version, rollout, phase = _version(entry), _rollout(entry), _phase(entry)
        if version is None:
            return
        self.notes = []
        if entry.kind == _FIRST:
            self.found = replace(self.found, stable=version, since=at, promotion=entry, rollout=None)
            return
        if rollout is None:
            return
        calm = replace(self.found, canary=None, share=0.0, arms=())
        if (told := _SHARE.search(entry.kind)) is not None:
            self.shares[rollout] = float(told[1])
        if phase in _CANARY:
            share = self.shares.get(rollout, 0.0)  # none yet: it waits for its start, or answers nobody as a shadow
            arms = _arms(entry) if share else ()
            self.found = replace(calm, canary=version if share and not arms else None, share=share, arms=arms)
        elif phase in _STABLE:
            if calm.rollout != rollout:
                before[rollout] = calm
                calm = replace(calm, stable=version, since=at, promotion=entry, rollout=rollout)
            self.found = calm
        elif phase in TAKEN_BACK and ("to" in entry.evidence or (calm.rollout == rollout and calm.stable == version)):
            back = before.get(rollout, calm)
            stable = entry.evidence.get("to", against.get(rollout, back.stable))
            self.found = replace(calm, stable=stable, since=at, promotion=entry, rollout=back.rollout)
        else:
            self.found = calm
            if phase == Phase.PROMOTING:
                self.notes = [f"v{version} was being promoted: replicas flipped one by one until the next entry"]


def _who_let(found: Served, entries: Sequence[Entry]) -> dict[str, Any]:
    """Approvals and order behind what is stable."""
    made = found.promotion
    if made is None:
        return {}
    mine = [e for e in entries if e.seq < made.seq and _version(e) == found.stable]
    rollouts = {None, found.rollout, _rollout(made)}
    approvals = tuple(e for e in mine if e.kind == APPROVED and _rollout(e) in rollouts)
    orders = [e for e in mine if e.kind in _ORDERS and _rollout(e) == _rollout(made) is not None]
    return {"approvals": approvals, "order": orders[-1] if orders else None}


def _times(moves: Sequence[Entry]) -> list[float]:
    """When each happened: its own time, or that of the earliest after it where that is less."""
    times: list[float] = []
    for entry in reversed(moves):
        times.append(min(entry.written, times[-1]) if times else entry.written)
    return times[::-1]


def _version(entry: Entry) -> int | None:
    number = entry.subject.removeprefix("v")
    return int(number) if entry.subject.startswith("v") and number.isascii() and number.isdigit() else None


def _rollout(entry: Entry) -> str | None:
    found = entry.evidence.get("rollout")
    return found if isinstance(found, str) else None


def _phase(entry: Entry) -> str | None:
    state = entry.evidence.get("state")
    phase = state.get("phase") if isinstance(state, dict) else None
    return str(phase) if phase is not None else None


def _arms(entry: Entry) -> tuple[int, ...]:
    """Versions on trial side by side after this entry; none where it is about one version."""
    state = entry.evidence.get("state")
    known = state.get("arms", ()) if isinstance(state, dict) else ()
    return tuple(arm["version"] for arm in known if not arm["out"])


def _said(entry: Entry) -> str:
    return f"{entry.kind} {entry.subject} by {entry.who}, {_day(entry.written)}: {entry.why} (ledger {entry.seq})"


def _day(at: float) -> str:
    return datetime.fromtimestamp(at, UTC).isoformat(sep=" ", timespec="seconds")
