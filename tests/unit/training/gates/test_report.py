from __future__ import annotations

import json

import numpy as np

from mlops_ray.config import Gates
from mlops_ray.training.evaluation import metrics
from mlops_ray.training.gates import judgement, report
from mlops_ray.training.gates.verdict import CheckResult, Verdict


def test_the_page_is_escaped_and_self_contained() -> None:
    rng = np.random.default_rng(0)
    y, times = rng.integers(0, 2, 600), np.linspace(0, 20 * 86_400, 600)
    p = np.clip(0.3 + 0.4 * y + rng.normal(0, 0.1, 600), 0.01, 0.99)

    def hostile() -> CheckResult:
        return CheckResult("<script>", Verdict.FAIL, "1 < 2 & 3", {"n": 1})

    result = judgement.judge(Gates(resamples=200), y, p, None, times, extra_checks=[hostile], rng=rng)
    page = report.html("Gates of <x>", result, metrics.calibration(y, p), {"<key>": "<value>"})
    assert "<script>" not in page
    assert "&lt;script&gt;" in page
    assert "1 &lt; 2 &amp; 3" in page
    assert "<x>" not in page
    assert "<key>" not in page
    assert "http" not in page
    assert page.count("<circle") == 10
    assert json.loads(json.dumps(result.to_dict(), allow_nan=False))["verdict"] == "fail"
