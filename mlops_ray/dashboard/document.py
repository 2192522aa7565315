"""The document of the dashboard: rows in, one frozen value out. Pure."""

from __future__ import annotations

import orjson

from mlops_ray.dashboard import loop, origin, trials, windows
from mlops_ray.dashboard.gathered import Gathered
from mlops_ray.dashboard.parts import (
    SCHEMA,
    About,
    Document,
    Ledger,
    LedgerEntry,
    Notice,
    Serving,
)
from mlops_ray.serving.versions import Wanted

MOST_SHOWN = 60
"""Entries of the ledger that the document has; `mlops-ray ledger show` has all."""


def document(of: Gathered, *, release: str) -> Document:
    """What is known, for the page to draw. release: this package's version."""
    project = of.project
    return Document(
        schema=SCHEMA,
        release=release,
        about=About(
            project.project,
            project.task,
            project.target,
            f"/{project.project}",
            project.about.intended_use,
            project.about.owner,
        ),
        now=of.now,
        loop=loop.loop(of),
        serving=_serving(of),
        alerts=windows.alerts(of),
        notices=tuple(Notice(a.rule, a.subject, a.severity, a.state, a.since, a.why) for a in of.alerts),
        traffic=windows.traffic(of),
        quality=windows.quality(of),
        drift=windows.drift(of),
        rollouts=tuple(trials.rollout(of, row) for row in of.rollouts),
        retrains=tuple(trials.retrain(row) for row in of.retrains),
        ledger=_ledger(of),
        lineage=tuple(origin.origins(of)),
    )


def to_json(found: Document) -> bytes:
    """The document as JSON (UTF-8), the same bytes for the same content."""
    return orjson.dumps(found)


def _serving(of: Gathered) -> Serving:
    wanted = Wanted.of(of.serving) if of.serving else Wanted()
    return Serving(
        stable=of.stable,
        canary=wanted.canary,
        share=wanted.share,
        shadow=wanted.shadow,
        arms=tuple(arm.version for arm in wanted.arms),
        warm=tuple(held.version for held in wanted.warm),
        rows={str(version): n for version, n in sorted(of.rows.items())},
    )


def _ledger(of: Gathered) -> Ledger:
    last = tuple(
        LedgerEntry(e.seq, e.at, e.kind, e.subject, e.who, e.why, e.hash[:12])
        for e in reversed(of.entries[-MOST_SHOWN:])
    )
    return Ledger(of.n_entries, of.head, last)
