"""The detector that looks at inputs and scores after every block: where it stands, and about which features it calls
somebody. Pure; where it stands is kept by `standing`.

Limits, and how alike the rows of the reference are, are told once, when it begins for a version, and stand with the
rest (`Inputs`): so a look costs a few products, whatever the reference.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from mlops_ray.config import Monitoring
from mlops_ray.data.profile import Profile
from mlops_ray.monitoring import evidence
from mlops_ray.monitoring.against import gathering
from mlops_ray.monitoring.drift import SCORES
from mlops_ray.monitoring.yardstick import Whole
from mlops_ray.training.artifact.model import Reference


@dataclass(frozen=True)
class Feature:
    """One feature: the reference's rows per bin, what is enough (nats), rows of a block that count at most, of each bet
    its effect and its evidence, the feature's evidence, and since when it has been rising (seconds since the epoch)."""

    known: tuple[int, ...]
    limit: float
    most_rows: int
    effects: tuple[float, ...]
    evidence: tuple[float, ...]
    total: float
    began: float

    def anew(self, at: float) -> Feature:
        """Without evidence, from `at` on."""
        return replace(self, evidence=(0.0,) * len(self.effects), total=0.0, began=at)


@dataclass(frozen=True)
class Inputs:
    """Where the detector stands for `version` under a plan's `budget` (false alarms a month, and seconds of a window),
    since `since` (seconds since the epoch). n_rows: of the version seen since. why: in words."""

    version: int
    budget: tuple[float, float]
    since: float
    n_rows: int = 0
    features: Mapping[str, Feature] = field(default_factory=dict)
    why: str = ""

    def to_dict(self) -> dict[str, Any]:
        """JSON-friendly form, read back by `from_dict` without loss."""
        return {**vars(self), "features": {name: vars(one) for name, one in self.features.items()}}

    @staticmethod
    def from_dict(body: Mapping[str, Any]) -> Inputs:
        """What `to_dict` wrote."""
        features = {
            name: Feature(
                tuple(one["known"]),
                one["limit"],
                one["most_rows"],
                tuple(one["effects"]),
                tuple(one["evidence"]),
                one["total"],
                one["began"],
            )
            for name, one in body["features"].items()
        }
        return Inputs(**{**body, "budget": tuple(body["budget"]), "features": features})


def begun(plan: Monitoring, reference: Reference, version: int, at: float) -> Inputs:
    """Where the detector begins for a version at `at`: without features, and `why`, where it can look at none."""
    here = Inputs(version, _budget(plan), at)
    if reference.block_s != plan.block_s:
        return replace(here, why=f"uncalibrated: the version was trained with blocks of {reference.block_s:g} s")
    known, why = gathering(plan, reference)
    if known is None:
        return replace(here, why=f"uncalibrated: {why}")
    total = reference.total
    features = {
        name: Feature(_counts(total, name), one.limit, one.most_rows, tuple(one.effects.tolist()), (), 0.0, at).anew(at)
        for name, one in known.items()
    }
    return replace(here, features=features, why=f"gathering: {why}")


def look(
    plan: Monitoring,
    reference: Reference,
    before: Inputs | None,
    version: int,
    block: Profile,
    own: Profile,
    end: float,
) -> tuple[Inputs, tuple[str, ...]]:
    """Where the detector stands after the block that ends at `end`, and the features of which there is enough evidence,
    that of which there is most first.

    Args: before: None, or of whatever version and plan: of another, it begins anew; block: of all rows; own: of those
        that the version answered. Below `min_rows` of these it is warming up, and alarms wait for them.
    """
    if before is None or (before.version, before.budget) != (version, _budget(plan)):
        before = begun(plan, reference, version, end - plan.block_s)
    if not before.features:
        return before, ()
    now = {
        name: _after(one, np.array(_counts(own if name == SCORES else block, name)), end)
        for name, one in before.features.items()
    }
    n_rows = before.n_rows + own.n
    why = f"warming up: {n_rows} rows of the version of {plan.min_rows}"
    if n_rows < plan.min_rows:
        return replace(before, n_rows=n_rows, features=now, why=why), ()
    most = max(now, key=lambda name: now[name].total / now[name].limit)
    why = f"most evidence of a change is about {most}: {max(now[most].total, 0.0):.1f} nats of {now[most].limit:.1f}"
    enough = sorted((n for n in now if now[n].total > now[n].limit), key=lambda n: now[n].limit / now[n].total)
    return replace(before, n_rows=n_rows, features=now, why=why), tuple(enough)


def anew(now: Inputs, features: Iterable[str], at: float) -> Inputs:
    """The same with no evidence about these features."""
    return replace(now, features={**now.features, **{name: now.features[name].anew(at) for name in features}})


def _budget(plan: Monitoring) -> tuple[float, float]:
    return plan.false_alarms_per_month, plan.window_s


def _counts(profile: Profile, name: str) -> tuple[int, ...]:
    counts = profile.scores if name == SCORES else profile.counts[name]
    return tuple(map(int, counts.tolist()))


def _after(one: Feature, seen: Whole, end: float) -> Feature:
    n = float(seen.sum())
    if n == 0:
        return one
    on, _ = evidence.bets(np.array(one.known)[None])
    found = evidence.gains(on, seen[None, None]) * min(1.0, one.most_rows / n) / np.array(one.effects)
    totals, of_bets = evidence.gathered(found, evidence.weights(len(one.known)), np.array(one.evidence)[None])
    total = float(totals[-1, 0])
    return replace(one, evidence=tuple(of_bets[0].tolist()), total=total, began=one.began if total > 0 else end)
