"""What every script in jobs/ does with a result and with a failure."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from mlops_ray.errors import BackendUnavailable, ConfigError, GateRejected, MlopsRayError
from mlops_ray.verbs.job import run_job


def verbs(monkeypatch: pytest.MonkeyPatch, **functions: Callable[..., dict[str, Any]]) -> None:
    monkeypatch.setitem(sys.modules, "mlops_ray.verbs", SimpleNamespace(**functions))


def test_the_result_is_one_line_of_json(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    verbs(monkeypatch, prepare=lambda paths, env: {"paths": paths, "home": env["HOME_OF"], "n": np.int64(3)})
    monkeypatch.setenv("HOME_OF", "x")
    assert run_job("prepare", ["--config", "a.yaml", "--config", "b.yaml"]) == 0
    out, err = capsys.readouterr()
    assert out.count("\n") == 1
    assert json.loads(out) == {"paths": ["a.yaml", "b.yaml"], "home": "x", "n": 3}
    assert err == ""


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (BackendUnavailable("PostgreSQL", "start it"), 1),
        (ConfigError("p.yaml", ("p.yaml:1: task: is missing; add it",)), 2),
        (GateRejected("run 7", ("log_loss 0.7 is above 0.6",)), 3),
    ],
    ids=lambda value: type(value).__name__,
)
def test_a_failure_is_a_sentence_and_an_exit_code(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], error: MlopsRayError, code: int
) -> None:
    def train(paths: list[str], env: dict[str, str]) -> dict[str, Any]:
        raise error

    verbs(monkeypatch, train=train)
    assert run_job("train", ["--config", "p.yaml"]) == code
    out, err = capsys.readouterr()
    assert out == ""
    assert err == f"{error}\n"


def test_a_bug_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    def serve(paths: list[str], env: dict[str, str]) -> dict[str, Any]:
        return {"x": 1 // 0}

    verbs(monkeypatch, serve=serve)
    with pytest.raises(ZeroDivisionError):
        run_job("serve", ["--config", "p.yaml"])


def test_retrain_hands_on_decision_and_reason(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    verbs(monkeypatch, retrain=lambda paths, env, decision, reason: {"decision": decision, "reason": reason})
    run_job("retrain", ["--config", "p.yaml"])
    run_job("retrain", ["--config", "p.yaml", "--decision", "d1", "--reason", "drift"])
    first, second = (json.loads(line) for line in capsys.readouterr().out.splitlines())
    assert first == {"decision": None, "reason": "manual"}
    assert second == {"decision": "d1", "reason": "drift"}
