"""Rows with a known truth, models that are really trained on them, and the cases that follow."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from sklearn.linear_model import LogisticRegression

from mlops_ray.config import Features, Gates, Task
from mlops_ray.data.profile import Columns
from mlops_ray.training.gates.case import Case, Fitted
from mlops_ray.training.gates.judgement import judge
from mlops_ray.training.gates.verdict import CheckResult, GateResult

DAY_S = 86_400.0
FEATURES = Features.model_validate(
    {"numeric": {"columns": ["a", "b"]}, "categorical": {"columns": ["colour"]}},
)
COLOURS = ("blue", "green", "red")
Encode = Callable[[Columns], np.ndarray]
Truth = Callable[[Columns, np.random.Generator], np.ndarray]


def logits(columns: Columns) -> np.ndarray:
    return 1.5 * columns["a"] + columns["b"] + (columns["colour"] == "red")


def likely(columns: Columns, rng: np.random.Generator) -> np.ndarray:
    return (rng.random(len(columns["a"])) < 1 / (1 + np.exp(-logits(columns)))).astype(np.int64)


def one_of_three(columns: Columns, rng: np.random.Generator) -> np.ndarray:
    scores = np.stack([logits(columns), columns["b"] - columns["a"], 0 * columns["a"]], axis=1)
    return np.argmax(scores + rng.gumbel(size=scores.shape), axis=1)


def amount(columns: Columns, rng: np.random.Generator) -> np.ndarray:
    return logits(columns).astype(np.float64) + rng.normal(size=len(columns["a"]))


def matrix(columns: Columns) -> np.ndarray:
    """Missing numbers as 0, a missing or unseen colour as none of them."""
    numbers = [np.nan_to_num(columns[name].astype(np.float64)) for name in ("a", "b")]
    return np.stack([*numbers, *((columns["colour"] == c).astype(float) for c in COLOURS)], axis=1)


@dataclass(frozen=True)
class World:
    """Training rows first in time, then the holdout; `group` is a column beside the inputs."""

    task: Task
    columns: Columns
    y: np.ndarray
    times: np.ndarray
    group: np.ndarray
    train: slice
    held: slice

    def part(self, which: slice) -> Columns:
        return {name: values[which] for name, values in self.columns.items()}

    def case(
        self,
        model: Callable[[Columns], np.ndarray],
        champion: Callable[[Columns], np.ndarray] | None = None,
        **changes: Any,
    ) -> Case:
        fit, held = self.part(self.train), self.part(self.held)
        made = Case(
            task=self.task,
            classes={"binary": (0, 1), "multiclass": ("p", "q", "r"), "regression": ()}[self.task],
            features=FEATURES,
            columns=held,
            y=self.y[self.held],
            scores=model(held),
            rival=None if champion is None else champion(held),
            times=self.times[self.held],
            score=model,
            groups={"group": self.group[self.held], "colour": held["colour"], "a": held["a"]},
            fitted=Fitted(fit, self.y[self.train], model(fit), self.times[self.train]),
        )
        return replace(made, **changes)


def world(task: Task = "binary", n: int = 8000, days: int = 40, seed: int = 0, truth: Truth | None = None) -> World:
    rng = np.random.default_rng(seed)
    columns = {
        "a": rng.normal(size=n).astype(np.float32),
        "b": rng.normal(size=n).astype(np.float32),
        "colour": rng.choice(np.array(COLOURS, dtype=object), n),
    }
    how = truth or {"binary": likely, "multiclass": one_of_three, "regression": amount}[task]
    group = np.where(rng.random(n) < 0.5, "m", "f").astype(object)
    times = np.sort(rng.uniform(0, days * DAY_S, n))
    return World(task, columns, how(columns, rng), times, group, slice(0, n // 2), slice(n // 2, n))


def trained(
    world: World, estimator: Any = None, *, encode: Encode = matrix, y: np.ndarray | None = None
) -> Callable[[Columns], np.ndarray]:
    """The scores of `estimator`, fitted on the training rows (with other labels `y`, where given)."""
    labels = world.y[world.train] if y is None else y
    fitted = (LogisticRegression() if estimator is None else estimator).fit(encode(world.part(world.train)), labels)

    def score(columns: Columns) -> np.ndarray:
        if world.task == "regression":
            return np.asarray(fitted.predict(encode(columns)), dtype=np.float64)
        found = fitted.predict_proba(encode(columns))
        return found[:, 1] if world.task == "binary" else found

    return score


def judged(gates: dict[str, Any], case: Case, seed: int = 1, **more: Any) -> GateResult:
    """With few resamples and a margin that these holdouts carry, unless `gates` says otherwise."""
    plan = {"min_rows": 200, "resamples": 600, "margin": 0.03, "leakage": None, **gates}
    return judge(Gates.model_validate(plan), case, rng=np.random.default_rng(seed), **more)


def check(result: GateResult, name: str) -> CheckResult:
    found = {c.name: c for c in result.checks}
    assert name in found, f"{name} is not among {sorted(found)}"
    return found[name]
