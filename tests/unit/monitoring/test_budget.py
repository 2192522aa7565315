from __future__ import annotations

import pytest

from mlops_ray.config import Monitoring
from mlops_ray.monitoring.budget import Detector, share

ALL: tuple[Detector, ...] = ("drift", "quality", "losses", "multivariate")


@pytest.mark.parametrize("multivariate_s", [None, 7 * 86_400.0])
@pytest.mark.parametrize("budget", [0.2, 1.0, 5.0])
def test_the_parts_of_all_detectors_are_the_budget(budget: float, multivariate_s: float | None) -> None:
    plan = Monitoring(false_alarms_per_month=budget, multivariate_s=multivariate_s)
    parts = [share(plan, detector) for detector in ALL]
    assert sum(parts) == pytest.approx(budget)
    assert (parts[3] > 0) == (multivariate_s is not None)
