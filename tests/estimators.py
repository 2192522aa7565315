"""Classifiers that behave where they train and misbehave in the process that the infrastructure gate asks.

They stand in a module that workers find by its name, as types of a project's own must."""

from __future__ import annotations

import os
import time
from typing import Any

from sklearn.linear_model import LogisticRegression


def elsewhere() -> bool:
    """Whether this is the process that the gate asks, and not the one that trained."""
    return "MLOPS_RAY_PROBE" in os.environ


class Dies(LogisticRegression):
    """Ends the process that serves it, as a native library's fault would."""

    def predict_proba(self, x: Any) -> Any:
        if elsewhere():
            os._exit(7)
        return super().predict_proba(x)


class Hangs(LogisticRegression):
    def predict_proba(self, x: Any) -> Any:
        while elsewhere():
            time.sleep(0.1)
        return super().predict_proba(x)


class Forgets(LogisticRegression):
    """Answers otherwise than when it was packaged."""

    def predict_proba(self, x: Any) -> Any:
        said = super().predict_proba(x)
        return said[:, ::-1] if elsewhere() else said


class Faithful(LogisticRegression):
    """A subclass has no converter: scikit-learn serves it."""
