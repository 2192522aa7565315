"""`analyze`: the analysis of a rollout on a log that was recorded elsewhere. Needs no project and no cluster."""

from __future__ import annotations

from pathlib import Path
from typing import Any


def analyze(log: str | Path, plan: str | Path, at: float | None = None) -> dict[str, Any]:
    """What a recorded log says by a plan (`rollout.sequence.Report`), at its end or at the last look by `at`.

    Raises: ConfigError for the plan, LogRefused for the log.
    """
    from mlops_ray.config import load_log_plan
    from mlops_ray.rollout import recorded
    from mlops_ray.rollout.sequence import report

    asked = load_log_plan(plan)
    found = recorded.checked(str(log), recorded.read(Path(log), asked), asked, at)
    return {
        "log": str(log),
        "rows": len(found.outcomes.keys),
        "keys": found.n_keys,
        "from": found.since,
        "until": found.until,
        "shares": [list(step) for step in found.shares],
        "plan": asked.model_dump(mode="json", exclude_none=True),
        **report(asked, found).to_dict(),
    }
