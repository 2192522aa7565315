"""The log of a canary that ran elsewhere: read, checked row by row, and as the outcomes that an analysis looks at.

Rows are counted from 1, a CSV file's header not among them.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl
from numpy.typing import NDArray

from mlops_ray.config import LogPlan
from mlops_ray.config.analyses import Business, LoggedAnalysis, LoggedErrors, LoggedLatency
from mlops_ray.config.recorded import LEAST_SHARE
from mlops_ray.errors import LogRefused
from mlops_ray.rollout.analysis import Sample, assigned, of_slice, sample
from mlops_ray.rollout.fields import ragged
from mlops_ray.rollout.outcomes import Answers, Outcomes, Told

Floats = NDArray[np.float64]

_READERS: dict[str, Callable[[Path], pl.LazyFrame]] = {
    ".csv": lambda path: pl.scan_csv(path, infer_schema=False),
    ".parquet": pl.scan_parquet,
    ".pq": pl.scan_parquet,
    ".jsonl": lambda path: pl.scan_ndjson(path, infer_schema_length=None),
    ".ndjson": lambda path: pl.scan_ndjson(path, infer_schema_length=None),
}
_LATEST_S = 1e11  # the year 5138: who writes more means milliseconds


@dataclass(frozen=True)
class Recorded:
    """A checked log. since, until: times of its first and last row. shares: each share, and when it first was in force.

    both_sides: keys that were in both variants while one share was in force. warnings: what else is odd, in words.
    """

    outcomes: Outcomes
    n_keys: int
    since: float
    until: float
    shares: tuple[tuple[float, float], ...]
    both_sides: int
    warnings: tuple[str, ...]


def read(path: Path, plan: LogPlan) -> pl.DataFrame:
    """The columns of a CSV, Parquet or JSON lines file that the plan names; a CSV file's are all text.

    Raises: LogRefused where the file or a column is not there, or a line has more or fewer fields than the header.
    """
    if path.suffix not in _READERS:
        raise LogRefused(str(path), (f"is no {', '.join(_READERS)} file by its name; name one of these",))
    if not path.is_file():
        raise LogRefused(str(path), ("there is no such file; check --log",))
    try:
        frame = _READERS[path.suffix](path)
        there = frame.collect_schema().names()
        wanted = _columns(plan)
        if not plan.by_assignment and plan.columns.share not in there:
            wanted.pop(plan.columns.share, None)
        if missing := [name for name in wanted if name not in there]:
            raise LogRefused(str(path), tuple(_missing(name, wanted[name], there) for name in missing))
        if path.suffix == ".csv" and (wrong := ragged(path)):
            raise LogRefused(str(path), wrong)
        return frame.select(*wanted).collect()
    except (pl.exceptions.PolarsError, OSError, ValueError) as exc:
        raise LogRefused(str(path), (f"cannot be read: {str(exc).splitlines()[0]}",)) from exc


def _columns(plan: LogPlan) -> dict[str, str]:
    """The log's columns that are read, and which field of the plan names each."""
    named = {field: name for field, name in plan.columns if name is not None}
    if plan.share is not None:
        del named["share"]
    found = {name: f"columns.{field}" for field, name in named.items()}
    found |= dict.fromkeys(plan.numbers, "analyses")
    return found | {one.where.column: "analyses.where" for one in plan.analyses if one.where is not None}


def _missing(name: str, field: str, there: Sequence[str]) -> str:
    near = difflib.get_close_matches(name, there, 1)
    hint = f"did you mean {near[0]!r}?" if near else f"there are {', '.join(there[:20])}"
    instead = "; a log of one share needs none: say `share:` in the plan" if field == "columns.share" else ""
    return f"column {name} ({field} of the plan) is missing; {hint}{instead}"


def checked(name: str, rows: pl.DataFrame, plan: LogPlan, at: float | None = None) -> Recorded:
    """What the log `name` says at the last look by `at` (seconds since the epoch; None: at its end).

    Raises: LogRefused with everything that is wrong with the rows, also with those after `at`.
    """
    if not len(rows):
        raise LogRefused(name, ("holds no rows",))
    check, columns = _Check([], []), plan.columns
    seconds = check.times(rows[columns.time])
    keys = check.keys(rows[columns.key])
    canary = check.variants(rows[columns.variant], plan)
    share = np.full(len(rows), np.nan if plan.share is None else plan.share)
    if plan.share is None and columns.share in rows.columns:
        share = check.shares(rows[columns.share])
    numbers = {column: check.number(rows[column]) for column in plan.numbers}
    for one in plan.analyses:
        if isinstance(one, LoggedErrors):
            check.only(numbers[one.column], rows[one.column], (0.0, 1.0), "is not 0 or 1")
        elif isinstance(one, LoggedLatency):
            check.inside(numbers[one.column], rows[one.column], 0.0, np.inf, "is no number of milliseconds")
        elif isinstance(one, Business):
            check.clipped(numbers[one.name], one)
    label, scores = _answers(check, rows, plan)
    if check.problems:
        raise LogRefused(name, tuple(check.problems))
    seen = np.ceil(seconds / plan.look_s).astype(np.int64)
    outcomes = Outcomes(
        keys=keys,
        seen=seen,
        labelled=seen,
        label=label,
        canary=canary,
        share=share,
        stable=_said(scores.stable, label, plan),
        candidate=_said(scores.canary, label, plan),
        columns={one.where.column: _slices(rows[one.where.column]) for one in plan.analyses if one.where is not None},
        feedback={column: Told(values, seen) for column, values in numbers.items()},
        paired=plan.paired,
    )
    if at is not None:
        before = seen * plan.look_s <= at
        outcomes, seconds, rows = outcomes.at(before), seconds[before], rows.filter(before)
    if not len(rows):
        raise LogRefused(name, ("holds no rows that a look by --at has seen; name a later time",))
    return _recorded(outcomes, seconds, plan, check.warnings)


@dataclass(frozen=True)
class _Scores:
    stable: Floats
    canary: Floats


def _answers(check: _Check, rows: pl.DataFrame, plan: LogPlan) -> tuple[Floats, _Scores]:
    """Labels, and what each variant said of each row, NaN where that is not known."""
    columns, nothing = plan.columns, np.full(len(rows), np.nan)
    label = nothing if columns.label is None else check.number(rows[columns.label])
    if columns.label is not None and not plan.numeric:
        check.only(label, rows[columns.label], (0.0, 1.0), "is not 0 or 1; for numbers use `absolute_error`")

    def score(column: str) -> Floats:
        found = check.number(rows[column])
        if not plan.numeric:
            check.inside(found, rows[column], 0.0, 1.0, "is no probability; it must lie in [0, 1]")
        return found

    if columns.stable_score is not None and columns.canary_score is not None:
        return label, _Scores(score(columns.stable_score), score(columns.canary_score))
    if columns.score is None:
        return label, _Scores(nothing, nothing)
    served, canary = score(columns.score), (rows[columns.variant].cast(pl.String) == plan.variants.canary).to_numpy()
    return label, _Scores(np.where(canary, np.nan, served), np.where(canary, served, np.nan))


def _said(score: Floats, label: Floats, plan: LogPlan) -> Answers:
    nothing = np.full(len(score), np.nan)
    if plan.numeric:
        return Answers(score, nothing, nothing, nothing)
    return Answers(
        predicted=np.where(np.isnan(score), np.nan, (score >= plan.threshold).astype(np.float64)),
        of_label=np.where(np.isnan(label), np.nan, np.where(label > 0.5, score, 1 - score)),
        squares=score**2 + (1 - score) ** 2,
        us=nothing,
    )


def _slices(values: pl.Series) -> NDArray[np.generic]:
    if values.dtype == pl.String:
        return np.asarray(values.fill_null("").to_numpy(), object)
    return np.asarray(values.cast(pl.Float64).fill_null(float("nan")).to_numpy())


def _recorded(outcomes: Outcomes, seconds: Floats, plan: LogPlan, warnings: list[str]) -> Recorded:
    rows = pl.DataFrame({"key": outcomes.keys, "share": outcomes.share, "canary": outcomes.canary, "at": seconds})
    sides = rows.group_by("key", "share").agg(both=pl.col("canary").any() & ~pl.col("canary").all())
    shares = rows.group_by("share").agg(pl.col("at").min()).sort("at", "share")
    for arm, name in ((outcomes.canary, plan.variants.canary), (~outcomes.canary, plan.variants.stable)):
        if not arm.any():
            warnings = [*warnings, f"no row is of {name!r}: nothing can be compared by assignment"]
    return Recorded(
        outcomes,
        rows["key"].n_unique(),
        float(seconds[0]),
        float(seconds[-1]),
        tuple(shares.select("at", "share").iter_rows()),
        sides.filter("both")["key"].n_unique(),
        tuple(warnings),
    )


def samples(plan: LogPlan, outcomes: Outcomes) -> list[Sample | None]:
    """What each of the plan's analyses is judged by."""
    return [_sample(one, outcomes) for one in plan.analyses]


def _sample(one: LoggedAnalysis, outcomes: Outcomes) -> Sample | None:
    if isinstance(one, LoggedErrors):
        rows = of_slice(one.where, outcomes)
        told = rows.feedback[one.column]
        return assigned(rows, told.look, told.value, 0.0, 1.0)
    if isinstance(one, LoggedLatency):
        rows = of_slice(one.where, outcomes)
        told = rows.feedback[one.column]
        slow = np.where(np.isnan(told.value), np.nan, (told.value > one.above_ms).astype(np.float64))
        return assigned(rows, told.look, slow, 0.0, 1.0, tolerated=one.margin)
    return sample(one, outcomes)


@dataclass(frozen=True)
class _Check:
    """Parses the cells of a log. What is wrong is collected, with its first row, its value and how many there are."""

    problems: list[str]
    warnings: list[str]

    def times(self, values: pl.Series) -> Floats:
        """Seconds since the epoch."""
        numbers = values.cast(pl.Float64, strict=False) if not values.dtype.is_temporal() else None
        # By most of them: one wrong cell must not make the others wrong.
        if numbers is not None and (values.dtype.is_numeric() or 2 * numbers.null_count() < len(values)):
            seconds = numbers.fill_null(float("nan")).to_numpy()
        else:
            seconds = (_parsed(values).dt.epoch("us") / 1e6).fill_null(float("nan")).to_numpy()
        way_out = "is no time; write 2026-05-01T12:00:00Z, or seconds since the epoch"
        if not self._wrong(values, ~np.isfinite(seconds), way_out) and not self._wrong(
            values, np.abs(seconds) > _LATEST_S, "is no time in seconds; divide milliseconds by 1,000"
        ):
            falls = np.concatenate([[False], np.diff(seconds) < 0])
            self._wrong(values, falls, "is before the row above it; sort the log by time")
        return np.asarray(seconds, np.float64)

    def keys(self, values: pl.Series) -> NDArray[np.int64]:
        """A number for each key."""
        nothing = values.is_null()
        if values.dtype.is_float():
            nothing |= values.is_nan().fill_null(False)
        if values.dtype == pl.String:
            nothing |= (values == "").fill_null(False)
        self._wrong(values, nothing.to_numpy(), "is no key; give each row the key that it was assigned by")
        if values.dtype == pl.String:  # far quicker than sorting them
            values = values.cast(pl.Categorical).to_physical()
        return values.rank("dense").cast(pl.Int64).fill_null(0).to_numpy()

    def variants(self, values: pl.Series, plan: LogPlan) -> NDArray[np.bool_]:
        """Whether each row was the canary's."""
        text, names = values.cast(pl.String), plan.variants
        known = text.is_in([names.stable, names.canary]).fill_null(False)
        two = f"is neither {names.stable!r} nor {names.canary!r}; leave such rows out, or name others in `variants:`"
        self._wrong(values, ~known.to_numpy(), two)
        return np.asarray((text == names.canary).fill_null(False).to_numpy(), np.bool_)

    def shares(self, values: pl.Series) -> Floats:
        """The share in force at each row."""
        found = self.number(values)
        outside = ~((found >= LEAST_SHARE) & (found <= 1 - LEAST_SHARE))
        within = f"between 0 and 1 (at least {LEAST_SHARE:g} from either)"
        self._wrong(values, outside, f"is no share {within}; leave out rows from when one variant answered everybody")
        return np.where(outside, 0.5, found)

    def number(self, values: pl.Series) -> Floats:
        """Numbers, NaN where there is none; true and false are 1 and 0."""
        if values.dtype == pl.String:
            text = values.str.strip_chars().str.to_lowercase().replace({"true": "1", "false": "0", "": None})
            found, told = text.cast(pl.Float64, strict=False), text.is_not_null()
        else:
            found, told = values.cast(pl.Float64, strict=False), values.is_not_null()
        numbers = found.fill_null(float("nan")).to_numpy().astype(np.float64)
        self._wrong(values, (told & found.is_null()).to_numpy() | np.isinf(numbers), "is no number; leave it empty")
        return numbers

    def only(self, numbers: Floats, values: pl.Series, allowed: Sequence[float], what: str) -> None:
        """That numbers are of these."""
        self._wrong(values, np.isfinite(numbers) & ~np.isin(numbers, allowed), what)

    def inside(self, numbers: Floats, values: pl.Series, low: float, high: float, what: str) -> None:
        """That numbers lie in [low, high]."""
        self._wrong(values, np.isfinite(numbers) & ~((numbers >= low) & (numbers <= high)), what)

    def clipped(self, numbers: Floats, one: Business) -> None:
        """A warning about numbers outside the plan's bounds: they count as the nearer end."""
        outside = (numbers < one.low) | (numbers > one.high)
        if outside.any():
            row = int(outside.argmax())
            self.warnings.append(
                f"{one.title}: {outside.sum():,} values outside [{one.low:g}, {one.high:g}] count as the nearer end; "
                f"the first is {numbers[row]:g} in row {row + 1:,}"
            )

    def _wrong(self, values: pl.Series, rows: NDArray[np.bool_], what: str) -> bool:
        if not rows.any():
            return False
        row, n = int(rows.argmax()), int(rows.sum())
        more = f" ({n:,} such rows)" if n > 1 else ""
        self.problems.append(f"row {row + 1:,}, column {values.name}: {_shown(values[row])} {what}{more}")
        return True


def _parsed(values: pl.Series) -> pl.Series:
    """As times in UTC; null where a cell is none."""
    try:
        times = values.str.to_datetime(time_unit="us", strict=False) if values.dtype == pl.String else values
        times = times.cast(pl.Datetime("us", getattr(times.dtype, "time_zone", None)))
    except pl.exceptions.PolarsError:
        return pl.Series(values.name, [None] * len(values), pl.Datetime("us"))
    return times


def _shown(value: object) -> str:
    text = "an empty cell" if value is None else repr(value) if isinstance(value, str) else str(value)
    return text if len(text) <= 60 else text[:57] + "..."
