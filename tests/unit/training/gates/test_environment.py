from __future__ import annotations

import pytest

from mlops_ray.training.gates.environment import environment
from mlops_ray.training.gates.verdict import Verdict

LOCK = {"python": "3.11.7", "scikit-learn": "1.9.1", "numpy": "2.4.6", "skl2onnx": "1.20.0"}


@pytest.mark.parametrize(
    ("running", "engine", "verdict", "says"),
    [
        ({}, "sklearn", Verdict.PASS, "are those that run"),
        ({"numpy": "2.4.9"}, "sklearn", Verdict.PASS, "up to patches (numpy 2.4.6 recorded, 2.4.9 runs)"),
        ({"scikit-learn": "1.10.0"}, "sklearn", Verdict.FAIL, "scikit-learn 1.9.1 recorded, 1.10.0 runs"),
        ({"numpy": "3.4.6"}, "sklearn", Verdict.FAIL, "numpy 2.4.6 recorded, 3.4.6 runs"),
        ({"python": "3.12.1"}, "sklearn", Verdict.FAIL, "python 3.11.7 recorded"),
        ({"skl2onnx": "2.0.0"}, "sklearn", Verdict.PASS, "up to patches"),
        ({"scikit-learn": "1.10.0"}, "onnx", Verdict.PASS, "needs none of the recorded versions; scikit-learn 1.9.1"),
    ],
)
def test_minor_versions_must_agree_where_scikit_learn_serves(
    running: dict[str, str], engine: str, verdict: Verdict, says: str
) -> None:
    found = environment(LOCK, {**LOCK, **running}, engine)
    assert found.verdict is verdict
    assert says in found.detail


def test_what_is_not_installed_is_named_and_what_was_not_recorded_is_skipped() -> None:
    gone = environment(LOCK, {k: v for k, v in LOCK.items() if k != "scikit-learn"}, "sklearn")
    assert gone.verdict is Verdict.FAIL
    assert "scikit-learn 1.9.1 recorded, none runs" in gone.detail
    for lock in (None, {}):
        assert "skipped" in environment(lock, {}, "sklearn").detail
