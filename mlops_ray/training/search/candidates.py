"""Estimators by import path: built, checked, fitted, asked.

What workers run stands here and in the files beside it, and not where Ray and MLflow are imported: a worker that starts
imports these and no more.
"""

from __future__ import annotations

import difflib
import importlib
import inspect
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from mlops_ray import config
from mlops_ray.config import Task
from mlops_ray.errors import ConfigError, DataError
from mlops_ray.training.evaluation.intervals import Floats
from mlops_ray.training.search.presets import Searched, resolve
from mlops_ray.training.target import Labels, Scores

Matrix = NDArray[Any]
ClassWeight = Literal["balanced"] | Mapping[int, float] | None
"""By place of the class, or inversely to the classes' frequencies: n / (classes * rows of the class)."""


@dataclass(frozen=True)
class Choice:
    """One point of the search: an estimator's import path and all its parameters."""

    candidate: int
    estimator: str
    params: Mapping[str, Any]

    @property
    def label(self) -> str:
        """The estimator's class name."""
        return re.split(r"[.:]", self.estimator)[-1]


def build(choice: Choice, *, seed: int, task: Task = "binary", class_weight: ClassWeight = None) -> Any:
    """The unfitted estimator of `choice`, of one thread; `random_state` is `seed` unless the file sets one.

    `class_weight` is given to classes that take one, unless the file sets it.
    Raises: ConfigError for a path that leads to no estimator of the task, and for refused parameters.
    """
    cls = _class(choice.estimator, task)
    accepted, params = parameters(cls), dict(choice.params)
    _refuse_unknown(choice.estimator, cls, params)
    # Early stopping of scikit-learn's own holds out rows at random, and neighbours in time are not independent.
    given = {"random_state": seed, "class_weight": class_weight, "early_stopping": False}
    if not cls.__module__.startswith("sklearn."):
        # Others take every core by default; trials share the machine by processes.
        given["n_jobs"] = 1
    for name, value in given.items():
        if value is not None and name in accepted:
            params.setdefault(name, value)
    try:
        estimator = cls(**params)
        if hasattr(estimator, "_parameter_constraints"):  # scikit-learn's own; others say so when they are fitted
            estimator._validate_params()
    except (TypeError, ValueError) as exc:
        raise _refusal(choice.estimator, f"{exc}; change its params or space") from exc
    if task != "regression" and not hasattr(estimator, "predict_proba"):
        raise _refusal(choice.estimator, "has no predict_proba with these params; change them or take another")
    return estimator


def parameters(cls: type[Any]) -> tuple[str, ...]:
    """Names that the constructor takes, of its parents' too where it hands keywords on."""
    return tuple(_signature(cls)[0])


def _signature(cls: type[Any]) -> tuple[dict[str, None], bool]:
    """Named parameters in order, and whether others are taken as well."""
    found: dict[str, None] = {}
    takes_others = False
    for base in cls.__mro__:
        if base is object or "__init__" not in vars(base):
            continue
        signature = [p for p in inspect.signature(vars(base)["__init__"]).parameters.values() if p.name != "self"]
        found |= dict.fromkeys(p.name for p in signature if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY))
        takes_others = any(p.kind is p.VAR_KEYWORD for p in signature)
        if not takes_others:
            break
    return found, takes_others


def _refuse_unknown(path: str, cls: type[Any], names: Iterable[str]) -> None:
    """Raises ConfigError for a parameter that the class does not take, or that is misspelt where it takes any:
    LightGBM and XGBoost only warn of those, when they are fitted."""
    known, takes_others = _signature(cls)
    for name in sorted(set(names) - set(known)):
        near = difflib.get_close_matches(name, known, n=1, cutoff=0.85)
        if near or not takes_others:
            meant = f"did you mean {near[0]!r}? It" if near else "it"
            raise _refusal(path, f"takes no parameter {name!r}; {meant} takes {', '.join(known)}")


def check(
    candidates: Sequence[config.Candidate], *, seed: int, task: Task = "binary", plan: config.Search | None = None
) -> None:
    """Build every candidate with its fixed parameters and with each end of its space, before any cluster is asked.

    With `plan`, also that each takes the weights which the plan asks for.
    Raises: ConfigError that lists all that is wrong.
    """
    problems = [p for i, candidate in enumerate(candidates) for p in _problems(i, candidate, seed, task, plan)]
    if problems:
        raise ConfigError("search.candidates", tuple(dict.fromkeys(problems)))


def _problems(
    index: int, candidate: config.Candidate, seed: int, task: Task, plan: config.Search | None
) -> Iterator[str]:
    try:
        found = resolve(candidate, task)
        cls = _class(found.path, task)
        base = {**found.params, **found.first}
        _refuse_unknown(found.path, cls, found.space)
        build(Choice(index, found.path, base), seed=seed, task=task)
        if plan is not None:
            _check_weights(found.path, cls, plan)
    except ConfigError as exc:
        yield from exc.problems
        return
    for name, space in found.space.items():
        for value in space.values if isinstance(space, config.Choice) else (space.low, space.high):
            try:
                build(Choice(index, found.path, {**found.params, name: value}), seed=seed, task=task)
            except ConfigError as exc:
                yield from (f"space.{name}: {problem}" for problem in exc.problems)


def _check_weights(path: str, cls: type[Any], plan: config.Search) -> None:
    if takes_weights(cls):
        return
    for name in ("sample_weight", "half_life_s"):
        if getattr(plan, name) is not None:
            raise _refusal(path, f"takes no sample weights; remove search.{name} or the candidate")
    if plan.class_weight is not None and "class_weight" not in parameters(cls):
        raise _refusal(path, "takes neither class nor sample weights; remove search.class_weight or the candidate")


def takes_weights(estimator: Any) -> bool:
    """Whether `fit` takes `sample_weight`."""
    return "sample_weight" in inspect.signature(estimator.fit).parameters


def fit(
    choice: Choice,
    matrix: Matrix,
    y: Labels,
    *,
    seed: int,
    weights: Floats | None = None,
    task: Task = "binary",
    class_weight: ClassWeight = None,
) -> Any:
    """The estimator of `choice` fitted on `matrix`, shape (n, features); of `y` and `weights` the first n count."""
    n = len(matrix)
    estimator = build(choice, seed=seed, task=task, class_weight=class_weight)
    drawn = row_weights(estimator, y[:n], None if weights is None else weights[:n], class_weight)
    with_weights = {} if drawn is None else {"sample_weight": drawn}
    return estimator.fit(matrix, y[:n], **with_weights)


def row_weights(estimator: Any, y: Labels, weights: Floats | None, class_weight: ClassWeight) -> Floats | None:
    """Weights of rows, shape (n,), or None: those given, times those of the classes where the estimator takes none."""
    if class_weight is None or "class_weight" in parameters(type(estimator)):
        return weights
    return weighted(y, weights, class_weight)


def weighted(y: Labels, weights: Floats | None, class_weight: ClassWeight) -> Floats | None:
    """Weights of rows times those of their classes, shape (n,)."""
    if class_weight is None:
        return weights
    if isinstance(class_weight, str):
        counts = np.bincount(y)
        by_class = len(y) / (np.count_nonzero(counts) * np.maximum(counts, 1))
    else:
        by_class = np.array([class_weight.get(i, 1.0) for i in range(int(y.max()) + 1)])
    found: Floats = by_class[y] if weights is None else by_class[y] * weights
    return found


def class_weights(wanted: Literal["balanced"] | Mapping[str, float] | None, known: Sequence[str | int]) -> ClassWeight:
    """The project file's weights, by label as text, as weights by place among `known`.

    Raises: ConfigError for a label that is not among them, and for a regression, of which no class is known."""
    if wanted is not None and not known:
        raise ConfigError("search.class_weight", ("the task is regression, which has no classes; remove it",))
    if wanted is None or isinstance(wanted, str):
        return wanted
    place = {str(label): i for i, label in enumerate(known)}
    unknown = [label for label in wanted if label not in place]
    if unknown:
        raise ConfigError(
            "search.class_weight", (f"{unknown[0]!r} is no class; the classes are {', '.join(list(place)[:20])}",)
        )
    return {place[label]: weight for label, weight in wanted.items()}


def scores(estimator: Any, matrix: Matrix, task: Task, *, n_classes: int | None = None) -> Scores:
    """What the fitted estimator says to each row: P(1), (n,); P(class), (n, classes); or the number, (n,).

    A class that the estimator never saw gets 0."""
    if task == "regression":
        return np.asarray(estimator.predict(matrix), dtype=np.float64).reshape(len(matrix))
    return placed(estimator.predict_proba(matrix), estimator.classes_, task, n_classes)


def placed(probabilities: NDArray[Any], seen: Sequence[Any], task: Task, n_classes: int | None) -> Scores:
    """Columns of `predict_proba`, for the classes `seen`, as scores of all classes."""
    found = np.asarray(probabilities, dtype=np.float64)
    places = np.asarray(seen, dtype=np.int64)
    width = 2 if task == "binary" else max(n_classes or 0, int(places.max()) + 1)
    if found.shape[1] != width:
        narrow, found = found, np.zeros((len(found), width))
        found[:, places] = narrow
    return found[:, 1] if task == "binary" else found


def raw(estimator: Any, matrix: Matrix) -> Scores:
    """What scikit-learn calibrates: the decision function, or the probabilities where there is none."""
    ask = getattr(estimator, "decision_function", None) or estimator.predict_proba
    return np.asarray(ask(matrix), dtype=np.float64)


@dataclass(frozen=True)
class Crossed:
    """For each row what a fit on the other folds says: `scores`, and for classifiers `raw` (see the function).

    `fold` is the row's fold, shape (n,); `decides` says whether `raw` are values of a decision function."""

    scores: Scores
    raw: Scores | None
    fold: NDArray[np.int64]
    decides: bool = False


def crossed(
    choice: Choice,
    matrix: Matrix,
    y: Labels,
    *,
    n_folds: int,
    seed: int,
    weights: Floats | None = None,
    task: Task = "binary",
    class_weight: ClassWeight = None,
    n_classes: int | None = None,
) -> Crossed:
    """For each row of `matrix`, shape (n, features), what a fit on the other folds says.

    Folds are contiguous, so that rows of one day do not vouch for each other. Raises: DataError for fewer rows than
    folds."""
    n = len(matrix)
    if n < n_folds:
        raise DataError("search", f"{n} rows cannot be cut into {n_folds} folds; give more rows")
    n_classes = n_classes or (int(y[:n].max()) + 1 if task == "multiclass" else None)
    parts, raws, fold = [], [], np.empty(n, dtype=np.int64)
    for number, rows in enumerate(np.array_split(np.arange(n), n_folds)):
        rest = np.ones(n, dtype=bool)
        rest[rows] = False
        fold[rows] = number
        kept = None if weights is None else weights[:n][rest]
        estimator = fit(
            choice, matrix[rest], y[:n][rest], seed=seed, weights=kept, task=task, class_weight=class_weight
        )
        parts.append(scores(estimator, matrix[rows], task, n_classes=n_classes))
        if task != "regression":
            raws.append(raw(estimator, matrix[rows]))
    decides = hasattr(estimator, "decision_function")
    return Crossed(np.concatenate(parts), np.concatenate(raws) if raws else None, fold, decides)


def resolved(candidates: Sequence[config.Candidate], task: Task) -> tuple[Searched, ...]:
    """All candidates with their presets filled in. Raises: ConfigError."""
    return tuple(resolve(candidate, task) for candidate in candidates)


def with_params(choice: Choice, params: Mapping[str, Any]) -> Choice:
    """`choice` with some parameters replaced."""
    return replace(choice, params={**choice.params, **params})


def imported(path: str) -> Any:
    """What stands at `path`. Raises: ConfigError when nothing does."""
    module, name = re.split(r"[.:](?=\w+$)", path)
    try:
        return getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError) as exc:
        raise _refusal(path, f"cannot be imported ({exc}); fix the path or install the package") from exc


def _class(path: str, task: Task) -> type[Any]:
    from sklearn.base import ClassifierMixin, RegressorMixin

    cls = imported(path)
    if task == "regression":
        if not (inspect.isclass(cls) and issubclass(cls, RegressorMixin)):
            raise _refusal(path, "is no scikit-learn regressor; name one, for the task is regression")
        return cls
    if not (inspect.isclass(cls) and issubclass(cls, ClassifierMixin) and hasattr(cls, "predict_proba")):
        raise _refusal(path, "is no scikit-learn classifier with predict_proba; name one that is")
    return cls


def _refusal(path: str, problem: str) -> ConfigError:
    return ConfigError("search.candidates", (f"{path} {problem}",))
