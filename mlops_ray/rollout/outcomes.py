"""Rows of the prediction log, with what became of them, as arrays that an analysis can look at."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
from numpy.typing import NDArray

from mlops_ray.config import Task
from mlops_ray.errors import DataError
from mlops_ray.monitoring.labels import addressed, joined

Floats = NDArray[np.float64]

_BINARY = (0, 1)
_STABLES = {"shadow_score": "stable_score", "shadow_scores": "stable_scores", "shadow_score_us": "score_us"}
"""What the log calls of stable's what it calls so of a shadow's."""


@dataclass(frozen=True)
class Answers:
    """What one version said of each row, all shape (n,); NaN where it said nothing.

    predicted: place of the class among those that either version knows, or the number of a regression. of_label:
    probability that it gave to the label's class; NaN without a label. squares: sum of its squared probabilities.
    us: microseconds of scoring inside the predictor, per row.
    """

    predicted: Floats
    of_label: Floats
    squares: Floats
    us: Floats

    def at(self, rows: NDArray[Any]) -> Answers:
        """Of these rows only."""
        return Answers(self.predicted[rows], self.of_label[rows], self.squares[rows], self.us[rows])


@dataclass(frozen=True)
class Told:
    """A number that `/feedback` sent by name, shape (n,): NaN where none came; look: at which it was first known."""

    value: Floats
    look: NDArray[np.int64]


@dataclass(frozen=True)
class Outcomes:
    """Rows of a rollout in the order of their events, all arrays of shape (n,).

    keys: whatever sorts. seen, labelled: index of the look that first saw the row, its label. label: as `predicted`,
    NaN where not known. canary: whether the row was the canary's. share: the canary's share in force when the row was
    assigned; NaN where no assignment was made. candidate: the canary's answers, where it was asked. columns: inputs
    that slices name. paired: quality is compared on the same row; else by assignment. bakes: rows that the version on
    trial answered as stable, or failed so that the one before it did: they are the canary's here, and the other's
    answers, where it saw copies, are stable's. None: there are none.
    """

    keys: NDArray[Any]
    seen: NDArray[np.int64]
    labelled: NDArray[np.int64]
    label: Floats
    canary: NDArray[np.bool_]
    share: Floats
    stable: Answers
    candidate: Answers
    columns: Mapping[str, NDArray[Any]] = field(default_factory=dict)
    feedback: Mapping[str, Told] = field(default_factory=dict)
    paired: bool = True
    bakes: NDArray[np.bool_] | None = None

    @property
    def baking(self) -> NDArray[np.bool_]:
        """`bakes`, shape (n,) in any case."""
        return np.zeros(len(self.keys), np.bool_) if self.bakes is None else self.bakes

    @property
    def asked(self) -> NDArray[np.bool_]:
        """Rows that the canary was asked while it was on trial."""
        return np.asarray(self.canary & ~self.baking)

    @property
    def failed(self) -> NDArray[np.bool_]:
        """Rows that the canary was asked and did not answer."""
        return np.asarray(self.canary & np.isnan(self.candidate.predicted))

    def at(self, rows: NDArray[Any]) -> Outcomes:
        """These rows only."""
        return replace(
            self,
            keys=self.keys[rows],
            seen=self.seen[rows],
            labelled=self.labelled[rows],
            label=self.label[rows],
            canary=self.canary[rows],
            share=self.share[rows],
            stable=self.stable.at(rows),
            candidate=self.candidate.at(rows),
            columns={name: values[rows] for name, values in self.columns.items()},
            feedback={name: Told(told.value[rows], told.look[rows]) for name, told in self.feedback.items()},
            bakes=None if self.bakes is None else self.bakes[rows],
        )

    def counted(self, n_canary: int) -> NDArray[np.bool_]:
        """Rows up to the one that was the canary's `n_canary`th, and what was heard while it baked."""
        asked = self.asked
        return np.asarray((np.cumsum(asked) - asked < n_canary) | self.baking)

    def until(self, n_canary: int) -> Outcomes:
        """These rows only."""
        return self.at(self.counted(n_canary))


@dataclass(frozen=True)
class Reads:
    """How a version's scores are read. classes: in the order of a multiclass row's scores; threshold: probability from
    which a binary row is labelled 1."""

    classes: Sequence[str | int] = _BINARY
    threshold: float = 0.5


@dataclass(frozen=True)
class Among:
    """One arm of several. version: whose rows are looked at. share: of the keys that each arm has, or had.

    out: when each arm that was dropped gave its keys back, seconds since the epoch. n: of all arms."""

    version: int
    share: float
    n: int
    out: tuple[float, ...] = ()


def from_log(
    predictions: pa.Table,
    labels: pa.Table,
    *,
    task: Task,
    rollout: str,
    look_s: float,
    known_by: float,
    stable: Reads = Reads(),
    canary: Reads = Reads(),
    prediction_affects_outcome: bool = False,
    shadow: pa.Table | None = None,
    feedback: pa.Table | None = None,
    among: Among | None = None,
    promoted: int | None = None,
) -> Outcomes:
    """What is known of a rollout's rows by `known_by` (seconds since the epoch).

    Args: predictions, labels, shadow: tables of the log, with rows of all versions (labels by key need them); the
        columns that are used: prediction_id, at, event_time, key, stable, stable_score(s), score_us, canary,
        canary_score(s), canary_score_us, rollout, share, and the inputs `x_...` that slices name. feedback: numbers by
        name, with prediction_id, time, name, value.
        prediction_affects_outcome: labels tell of the answer that was given, so quality is compared by assignment;
        rows of stable belong to the rollout then. Their share is the one last seen in force.
        among: the canary is this arm of several; the rows are its own and stable's, the share is the arm's among those.
        promoted: the version on trial, once it is stable: rows that it answered, and those that it failed, are heard as
        well, with the roles exchanged.
    """
    rows = pl.DataFrame(pl.from_arrow(joined(predictions, labels, known_by=known_by, take="first")))
    rows = rows.filter(pl.col("event_time").dt.epoch("us") < round(known_by * 1e6))
    if shadow is not None:
        rows = _with_shadow(rows, shadow, rollout, promoted)
    if among is not None:
        rows = _of_arm(rows, rollout, among)
    rows = rows.with_columns(asked=pl.col("rollout").eq_missing(rollout))
    # Only comparisons by assignment take in the rows that stable answered on its own.
    rows = _assigned(rows) if prediction_affects_outcome or feedback is not None else rows.filter("asked")
    if among is not None:
        rows = rows.with_columns(share=pl.when(pl.col("share").is_not_null()).then("of_key"))
    known = {str(c): float(i) for i, c in enumerate(dict.fromkeys([*stable.classes, *canary.classes]))}
    label = _labels(rows, task, known)
    told = {} if feedback is None else _feedback(rows, addressed(feedback, predictions), known_by, look_s)
    return Outcomes(
        keys=rows["key"].rank("dense").cast(pl.Int64).fill_null(0).to_numpy(),
        seen=_looks(rows["event_time"], look_s),
        labelled=_looks(rows["label_time"], look_s),
        label=label,
        canary=rows["asked"].to_numpy(),
        share=_numbers(rows, "share"),
        stable=_answers(rows, "stable", "score_us", task, stable, known, label),
        candidate=_answers(rows, "canary", "canary_score_us", task, canary, known, label),
        columns={name.removeprefix("x_"): _column(rows[name]) for name in rows.columns if name.startswith("x_")},
        feedback=told,
        paired=not prediction_affects_outcome,
        bakes=rows["bakes"].to_numpy() if "bakes" in rows.columns else None,
    )


def _with_shadow(rows: pl.DataFrame, shadow: pa.Table, rollout: str, promoted: int | None) -> pl.DataFrame:
    """Rows that were stable's, with what the rollout's shadow said of them in place of a canary's answers; `bakes`:
    where the version `promoted` answered and the one before it saw copies, each stands in the other's place."""
    theirs = pl.DataFrame(pl.from_arrow(shadow)).filter(pl.col("rollout") == rollout)
    said = [name for name in ("shadow_score", "shadow_scores", "shadow_score_us") if name in theirs.columns]
    answered = "stable" if "stable" in theirs.columns else pl.lit(None, pl.Int64)
    theirs = theirs.sort("at").unique("prediction_id", keep="first")
    theirs = theirs.select("prediction_id", *said, by="rollout", answered=answered)
    found = rows.join(theirs, on="prediction_id", how="left", maintain_order="left")
    if promoted is not None:
        found = _heard_alone(found, rollout, promoted)
    found = found.with_columns(shadowed=pl.col("by").is_not_null() & pl.col("rollout").is_null())
    found = found.with_columns(bakes=pl.col("shadowed") & _answered(promoted))
    bakes, shadowed = pl.col("bakes"), pl.col("shadowed") & ~pl.col("bakes")
    changed = {"rollout": pl.when("shadowed").then("by").otherwise("rollout")}
    if "canary" in found.columns:
        changed["canary"] = pl.when(bakes).then("answered").otherwise("canary")
    for name in said:
        canary, stable = name.replace("shadow", "canary"), _STABLES[name]
        if missing := {canary, stable} - set(found.columns):
            found = found.with_columns(**{one: pl.lit(None, found[name].dtype) for one in missing})
        changed[canary] = pl.when(bakes).then(stable).when(shadowed).then(name).otherwise(canary)
        changed[stable] = pl.when(bakes).then(name).otherwise(stable)
    failed = _failed_as_stable(rollout) if "canary" in found.columns else pl.lit(False)
    changed["bakes"] = bakes | failed
    return found.with_columns(**changed).drop("by", "answered", "shadowed", *said)


def _failed_as_stable(rollout: str) -> pl.Expr:
    """Rows that the version on trial failed as stable: it was asked, and by no assignment."""
    mine = pl.col("rollout").eq_missing(rollout) & pl.col("canary").is_not_null()
    return mine & pl.col("share").is_null()


def _heard_alone(rows: pl.DataFrame, rollout: str, promoted: int) -> pl.DataFrame:
    """Rows that the version answered as stable since it is, as if the one before had seen copies and said nothing: of
    keys that it sees none of, or that its queue had no room for. Without them only failures would be sure to count."""
    if "stable" not in rows.columns:
        return rows
    compared = (pl.col("by") == rollout) & _answered(promoted)
    began = rows.filter(compared | _failed_as_stable(rollout))["at"].min()
    alone = pl.col("by").is_null() & pl.col("rollout").is_null() & (pl.col("stable") == promoted)
    alone &= pl.lit(began is not None) & (pl.col("at") >= pl.lit(began, rows["at"].dtype))
    return rows.with_columns(
        by=pl.when(alone).then(pl.lit(rollout)).otherwise("by"),
        answered=pl.when(alone).then(pl.lit(promoted)).otherwise("answered"),
    )


def _answered(version: int | None) -> pl.Expr:
    return pl.lit(False) if version is None else (pl.col("answered") == version).fill_null(False)


def _of_arm(rows: pl.DataFrame, rollout: str, among: Among) -> pl.DataFrame:
    """The rows of an arm, and those that belong to no arm; `of_key`: the share that was in force for a row's key.

    A key that was another arm's is nobody's: what that arm answered may still be at work. The share is the probability
    that a key which is the arm's or stable's is the arm's, when the rollout first met it: stable's part grows when
    another arm is dropped, by keys that come later, and a key that was met before has been assigned already, however
    often it comes again and whenever its outcome is known.
    """
    others = pl.col("rollout").eq_missing(rollout) & (pl.col("canary") != among.version)
    theirs = rows.filter(others)["key"].drop_nulls().unique()
    alone = pl.col("rollout").is_null() & pl.col("key").is_in(theirs.implode()).fill_null(False)
    began = rows.filter(pl.col("rollout").eq_missing(rollout))["at"].min()
    event_s = pl.col("event_time").dt.epoch("us") / 1e6
    met = event_s.filter(pl.col("at") >= pl.lit(began)).min().over("key")
    met = pl.when(pl.col("key").is_null()).then(event_s).otherwise(met)
    live = among.n - sum(((met >= at).cast(pl.Int64) for at in among.out), pl.lit(0))
    stables = 1 - among.share * live
    return rows.filter(~(others | alone)).with_columns(of_key=among.share / (among.share + stables))


def _assigned(rows: pl.DataFrame) -> pl.DataFrame:
    """The rollout's rows and, between its first and its last, those that stable answered alone, with the share in
    force.

    After its last row nobody may be assigned to the canary any more: what is answered then is its own, once it is
    promoted, or nobody's. A trial goes on behind it only in rows that a later look will take in; the tests hold for
    every beginning of the rows, so also for the one that ends with a row of the canary.
    """
    shares = rows.filter("asked", pl.col("share").is_not_null()).sort("at").select("at", in_force="share")
    found = rows.with_row_index("row").sort("at").join_asof(shares, on="at").sort("row")
    alone = (
        pl.col("rollout").is_null() & pl.col("in_force").is_not_null() & (pl.col("at") <= pl.lit(shares["at"]).max())
    )
    return found.filter(pl.col("asked") | alone).with_columns(
        share=pl.when("asked").then("share").otherwise("in_force")
    )


def _labels(rows: pl.DataFrame, task: Task, known: Mapping[str, float]) -> Floats:
    """Labels as numbers, NaN where not known; a class that neither version knows has a place of its own."""
    if task != "multiclass":
        return _numbers(rows, "label")
    other = float(len(known))
    return np.array([np.nan if v is None else known.get(str(v), other) for v in rows["label"].to_list()], np.float64)


def _answers(
    rows: pl.DataFrame, whose: str, us: str, task: Task, reads: Reads, known: Mapping[str, float], label: Floats
) -> Answers:
    score, took = _numbers(rows, f"{whose}_score"), _numbers(rows, us)
    nothing = np.full(len(rows), np.nan)
    if task == "regression":
        return Answers(score, nothing, nothing, took)
    if task == "binary":
        predicted = np.where(np.isnan(score), np.nan, (score >= reads.threshold).astype(np.float64))
        of_label = np.where(np.isnan(label), np.nan, np.where(label > 0.5, score, 1 - score))
        return Answers(predicted, of_label, score**2 + (1 - score) ** 2, took)
    width = len(reads.classes)
    scores = np.full((len(rows), width), np.nan)
    lists = rows[f"{whose}_scores"]
    answered = lists.is_not_null().to_numpy()
    flat = lists.drop_nulls().explode().to_numpy()
    if len(flat) != answered.sum() * width:
        raise DataError("prediction log", f"{whose}_scores are not of the version's {width} classes; name its own")
    scores[answered] = flat.reshape(-1, width)
    # Place of each known class, and of one that is not known, among the version's; it gives nothing to those it lacks.
    mine = [str(c) for c in reads.classes]
    place = np.array([*(mine.index(c) if c in mine else width for c in known), width])
    padded = np.concatenate([scores, np.where(answered, 0.0, np.nan)[:, None]], axis=1)
    labelled = ~np.isnan(label)
    of_label = nothing.copy()
    of_label[labelled] = padded[labelled, place[label[labelled].astype(np.int64)]]
    likeliest = np.array([known[c] for c in mine])[np.where(answered, np.nan_to_num(scores).argmax(axis=1), 0)]
    return Answers(np.where(answered, likeliest, np.nan), of_label, (scores**2).sum(axis=1), took)


def _feedback(rows: pl.DataFrame, feedback: pa.Table, known_by: float, look_s: float) -> dict[str, Told]:
    """What came first under each name for each row: a correction must not change what was bet on."""
    arrived = pl.DataFrame(pl.from_arrow(feedback)).filter(pl.col("time").dt.epoch("us") <= round(known_by * 1e6))
    found = {}
    for name in arrived["name"].unique().to_list():
        first = arrived.filter(pl.col("name") == name).sort("at", "time", "value").unique("prediction_id", keep="first")
        theirs = rows.select("prediction_id").join(
            first.select("prediction_id", "value", told="time"), on="prediction_id", how="left", maintain_order="left"
        )
        found[str(name)] = Told(_numbers(theirs, "value"), _looks(theirs["told"], look_s))
    return found


def _looks(times: pl.Series, look_s: float) -> NDArray[np.int64]:
    """Index of the first look at or after each time; of no time 0."""
    seconds = times.dt.epoch("us").fill_null(0).to_numpy() / 1e6
    return np.asarray(np.ceil(seconds / look_s).astype(np.int64))


def _numbers(rows: pl.DataFrame, column: str) -> Floats:
    """As float64, NaN for null; all NaN where the log has no such column yet."""
    if column not in rows.columns:
        return np.full(len(rows), np.nan)
    return rows[column].cast(pl.Float64).fill_null(float("nan")).to_numpy().astype(np.float64)


def _column(values: pl.Series) -> NDArray[Any]:
    if values.dtype == pl.String:
        return values.fill_null("").to_numpy().astype(object)
    numbers = values.dt.epoch("us") / 1e6 if values.dtype.is_temporal() else values
    return numbers.cast(pl.Float64).fill_null(float("nan")).to_numpy()
