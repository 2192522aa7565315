"""The versions that a model version's behaviour hangs on, and in what two sets of them differ."""

from __future__ import annotations

import platform
from collections.abc import Iterable, Mapping
from importlib import metadata
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sklearn.pipeline import Pipeline

PYTHON = "python"
ALWAYS = (PYTHON, "mlops-ray", "numpy", "onnx", "onnxruntime", "pandas", "scikit-learn", "scipy", "skl2onnx", "skops")
"""What trains, packs and scores every version."""
EXTRAS = {"xgboost": ("xgboost", "xgboost-cpu"), "lightgbm": ("lightgbm",)}
"""Import name of an optional library and what the distributions of it are called."""


def distributions_of(pipeline: Pipeline) -> tuple[str, ...]:
    """Names for `environment_lock`: what every version hangs on, and the optional library of its estimator."""
    used = {name for name in EXTRAS if any(_module(each) == name for each in _within(pipeline[-1]))}
    return (*ALWAYS, *sorted(used))


def environment_lock(distributions: Iterable[str]) -> dict[str, str]:
    """Versions of what is installed here, by the given names; a distribution that is not is left out.

    An extra that goes by another distribution's name (`xgboost-cpu`) is found by its import name too."""
    found = {}
    for name in distributions:
        if name == PYTHON:
            found[name] = platform.python_version()
            continue
        for distribution in EXTRAS.get(name, (name,)):
            try:
                found[name] = metadata.version(distribution)
                break
            except metadata.PackageNotFoundError:
                continue
    return found


def differences(recorded: Mapping[str, str], running: Mapping[str, str]) -> tuple[str, ...]:
    """One sentence for each version that is another one, sorted by name; none where all are equal."""
    told = []
    for name in sorted({*recorded, *running}):
        before, now = recorded.get(name), running.get(name)
        if before == now:
            continue
        if now is None:
            told.append(f"{name} {before} was recorded, and is not installed here")
        elif before is None:
            told.append(f"{name} {now} runs here, and none was recorded")
        else:
            told.append(f"{name} {before} was recorded, {now} runs here")
    return tuple(told)


def _module(each: Any) -> str:
    return type(each).__module__.split(".")[0]


def _within(estimator: Any) -> Iterable[Any]:
    """The estimator and those that it wraps: frozen, or calibrated."""
    yield estimator
    inner = [getattr(estimator, "estimator", None)]
    inner += [getattr(each, "estimator", None) for each in getattr(estimator, "calibrated_classifiers_", ())]
    for each in inner:
        if each is not None and not isinstance(each, str):
            yield from _within(each)
