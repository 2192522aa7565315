"""How a gate ends: a value with reasons. Too little data never passes: it is inconclusive."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from enum import Enum
from typing import Any

import numpy as np

from mlops_ray.config import Metric
from mlops_ray.training.evaluation.intervals import Estimate


class Verdict(Enum):
    """Pass, fail, or not enough evidence for either."""

    PASS = "pass"
    FAIL = "fail"
    INCONCLUSIVE = "inconclusive"


@dataclass(frozen=True)
class CheckResult:
    """One demand: how it ended, a sentence for people, and the numbers behind it (JSON-friendly)."""

    name: str
    verdict: Verdict
    detail: str
    evidence: Mapping[str, Any] = field(default_factory=dict)


Check = Callable[[], CheckResult]
"""A demand that needs more than holdout rows (a running replica, a golden replay), handed in by the caller."""


@dataclass(frozen=True)
class GateResult:
    """All checks, and the verdict they add up to: fail if one fails, else inconclusive if one is, else pass."""

    verdict: Verdict
    checks: tuple[CheckResult, ...]
    metrics: Mapping[Metric, Estimate]
    information: Mapping[str, Any] = field(default_factory=dict)
    """What nobody demanded and is good to know, JSON-friendly: `weak_slices`, as `evaluation.slices` tells them."""

    @property
    def reasons(self) -> tuple[str, ...]:
        """One sentence per check that did not pass."""
        return tuple(f"{c.name}: {c.detail}" for c in self.checks if c.verdict is not Verdict.PASS)

    def to_dict(self) -> dict[str, Any]:
        """The result as JSON-friendly values."""
        return {
            "verdict": self.verdict.value,
            "checks": [plain({**asdict(c), "verdict": c.verdict.value}) for c in self.checks],
            "metrics": {name: estimate.to_dict() for name, estimate in self.metrics.items()},
            "information": plain(self.information),
        }


def combine(verdicts: Iterator[Verdict] | Sequence[Verdict]) -> Verdict:
    """Fail if one fails, else inconclusive if one is; nothing to judge is inconclusive."""
    found = set(verdicts)
    if Verdict.FAIL in found:
        return Verdict.FAIL
    return Verdict.PASS if found == {Verdict.PASS} else Verdict.INCONCLUSIVE


def plain(value: Any) -> Any:
    """`value` as JSON has it: NumPy's types become Python's, and a number that is none (NaN, infinite) becomes None."""
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, np.ndarray | list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, np.generic):
        value = value.item()
    return None if isinstance(value, float) and not np.isfinite(value) else value
