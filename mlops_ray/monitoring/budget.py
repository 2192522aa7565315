"""One budget of false alarms, divided over all detectors. Pure.

| detector | part | why so much |
|---|---|---|
| `drift`: all features and scores, by window and by block | 0.49 | limits are ranks among the reference's windows |
| `quality`: the realised loss of a window | 0.43 | its limits rise slowly as its part falls |
| `losses`: the sequential detector | 0.04 | its delay grows with the logarithm of 1 / part alone |
| `multivariate`: the domain classifier | 0.04 | a smaller part takes more permutations, and nothing else |

Where no domain classifier runs, its part is quality's. Estimated quality, data quality in flight, slices and groups
have none: an estimate alarms only where all of its interval lies above quality's limit, which costs less than a
hundredth of quality's part, and the others call nobody.
"""

from __future__ import annotations

from typing import Literal

from mlops_ray.config import Monitoring

Detector = Literal["drift", "quality", "losses", "multivariate"]
_PARTS: dict[Detector, float] = {"drift": 0.49, "quality": 0.43, "losses": 0.04, "multivariate": 0.04}


def share(plan: Monitoring, detector: Detector) -> float:
    """False alarms a month that this detector may raise; of all detectors that run they add up to
    `false_alarms_per_month`.

    >>> round(share(Monitoring(false_alarms_per_month=2.0), "drift"), 3)
    0.98
    """
    part = _PARTS[detector]
    if plan.multivariate_s is None:
        if detector == "multivariate":
            return 0.0
        if detector == "quality":
            part += _PARTS["multivariate"]
    return plan.false_alarms_per_month * part
