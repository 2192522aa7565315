"""Estimators that go wrong in every way, and what a callback of somebody else's would be; workers import them."""

from __future__ import annotations

import mmap
import os
import resource
import time
from pathlib import Path
from typing import Any

import numpy as np
from ray import tune
from sklearn.base import BaseEstimator, ClassifierMixin


class Troubled(ClassifierMixin, BaseEstimator):  # type: ignore[misc]
    """Answers `say` for everybody, after writing down that it was fitted, and after what `trouble` says."""

    def __init__(self, trouble: str = "", say: float = 0.5, log: str = "", pause_s: float = 0.0) -> None:
        self.trouble, self.say, self.log, self.pause_s = trouble, say, log, pause_s

    def fit(self, X: Any, y: Any) -> Troubled:  # noqa: N803
        self.classes_ = np.array([0, 1])
        if self.log:
            with Path(self.log).open("a", encoding="utf-8") as file:
                file.write(f"{self.say}\n")
        time.sleep(self.pause_s)
        if self.trouble:
            _TROUBLES[self.trouble]()
        if self.trouble == "writes":
            X[0, 0] = 1.0
        return self

    def predict_proba(self, X: Any) -> Any:  # noqa: N803
        return np.tile([1 - self.say, self.say], (len(X), 1))


def _raise() -> None:
    raise RuntimeError("cannot learn this")


def _exit() -> None:
    os._exit(137)


def _hang() -> None:
    time.sleep(600)


def _memory() -> None:
    """As under a limit on the address space."""
    used = int(Path("/proc/self/statm").read_text(encoding="utf-8").split()[0]) * mmap.PAGESIZE
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (used + 2**20, hard))
    try:
        np.ones(2**31)
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


_TROUBLES = {"raises": _raise, "exits": _exit, "hangs": _hang, "memory": _memory, "writes": lambda: None}


class Threads(Troubled):
    """Says how many threads OpenMP was told to use: 0.1 for one."""

    def predict_proba(self, X: Any) -> Any:  # noqa: N803
        self.say = int(os.environ["OMP_NUM_THREADS"]) / 10
        return super().predict_proba(X)


class Recorder(tune.Callback):
    """Writes each result's number and score to a file."""

    def __init__(self, path: str) -> None:
        self.path = path

    def on_trial_result(self, iteration: int, trials: Any, trial: Any, result: dict[str, Any], **_: Any) -> None:
        with Path(self.path).open("a", encoding="utf-8") as file:
            file.write(f"{result['number']} {result['log_loss']:.4f}\n")
