"""One search space over several candidates, for Optuna's define-by-run.

The first choice of a trial is which candidate, the others are that candidate's own, so that a sampler learns each space
apart. Names in the study: `candidate`, then `<candidate>.<parameter>`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from mlops_ray import config
from mlops_ray.errors import ConfigError
from mlops_ray.training.search.candidates import Choice
from mlops_ray.training.search.presets import Searched

CANDIDATE = "candidate"


class Suggester(Protocol):
    """The part of `optuna.Trial` that we ask."""

    def suggest_categorical(self, name: str, choices: Sequence[Any]) -> Any:
        """One of `choices`."""
        ...

    def suggest_float(self, name: str, low: float, high: float, *, log: bool = False) -> float:
        """A float in [low, high]."""
        ...

    def suggest_int(self, name: str, low: int, high: int, *, log: bool = False) -> int:
        """An integer in [low, high]."""
        ...


def sample(trial: Suggester, candidates: Sequence[Searched]) -> Choice:
    """The point that `trial` suggests; a parameter whose `when` does not hold is left out."""
    index = int(trial.suggest_categorical(CANDIDATE, list(range(len(candidates)))))
    chosen = candidates[index]
    params = dict(chosen.params)
    for name in order(chosen):
        space = chosen.space[name]
        if all(other in params and among(params[other], values) for other, values in space.when.items()):
            params[name] = _suggest(trial, f"{index}.{name}", space)
    return Choice(index, chosen.path, params)


def order(candidate: Searched) -> list[str]:
    """Searched parameters, each after those that its `when` names. Raises: ConfigError for a circle."""
    left, found = dict(candidate.space), list[str]()
    while left:
        ready = [name for name, space in left.items() if not any(other in left for other in space.when)]
        if not ready:
            raise ConfigError(
                "search.candidates",
                (f"{candidate.path}: `when` of {', '.join(left)} ask for each other in a circle; leave one out",),
            )
        found += ready
        for name in ready:
            del left[name]
    return found


def point(choice: Choice, candidate: Searched) -> dict[str, Any]:
    """The names and values by which a study is told to take `choice` again."""
    searched = {f"{choice.candidate}.{n}": choice.params[n] for n in candidate.space if n in choice.params}
    return {CANDIDATE: choice.candidate, **searched}


def first(number: int, candidates: Sequence[Searched]) -> dict[str, Any] | None:
    """What trial `number` is told to begin with: each candidate once, in the file's order; then None."""
    if number >= len(candidates):
        return None
    values: Mapping[str, Any] = candidates[number].first
    return {CANDIDATE: number, **{f"{number}.{name}": value for name, value in values.items()}}


def starts(candidates: Sequence[Searched], warm: Sequence[Choice] = ()) -> list[dict[str, Any]]:
    """What the first trials are told to begin with: points of another search that these spaces hold too, best first,
    then each candidate once."""
    known = [point(c, candidates[c.candidate]) for c in warm if _holds(candidates, c)]
    firsts = [first(number, candidates) for number in range(len(candidates))]
    return known + [values for values in firsts if values is not None]


def _holds(candidates: Sequence[Searched], choice: Choice) -> bool:
    """Whether `choice` could have come of these spaces."""
    if choice.candidate >= len(candidates) or candidates[choice.candidate].path != choice.estimator:
        return False
    candidate = candidates[choice.candidate]
    if set(choice.params) - set(candidate.params) - set(candidate.space):
        return False
    searched = {name: choice.params.get(name) for name in candidate.space}
    given = {name: choice.params.get(name) for name in candidate.params if name not in candidate.space}
    if any(candidate.params[name] != value for name, value in given.items()):
        return False
    return all(
        _within(space, searched[name]) if name in choice.params else bool(space.when)
        for name, space in candidate.space.items()
    )


def _within(space: config.Space, value: Any) -> bool:
    if isinstance(space, config.Choice):
        return among(value, space.values)
    whole = isinstance(value, int) and not isinstance(value, bool)
    fits = whole if isinstance(space, config.IntRange) else whole or isinstance(value, float)
    return fits and space.low <= value <= space.high


def among(value: Any, values: Sequence[Any]) -> bool:
    """Whether `value` is one of `values`; unlike for Python, 1 is not True."""
    return any(value == other and isinstance(value, bool) == isinstance(other, bool) for other in values)


def _suggest(trial: Suggester, name: str, space: config.Space) -> Any:
    if isinstance(space, config.Choice):
        return trial.suggest_categorical(name, list(space.values))
    if isinstance(space, config.IntRange):
        return trial.suggest_int(name, space.low, space.high, log=space.log)
    return trial.suggest_float(name, space.low, space.high, log=space.kind == "log_uniform")
