"""The `split:`, `search:` and `gates:` blocks."""

from __future__ import annotations

from typing import Annotated, Any, Literal, get_args

from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt, model_validator

from mlops_ray.config.base import DAY_S, IMPORT_PATH, Config, ImportPath, Share


class Split(Config):
    """Which rows judge (the holdout), which choose among candidates (validation), and which train."""

    by: Literal["time", "group", "hash"] = "time"
    """`time`: the newest rows are the holdout, those before them validate. `group` and `hash` draw by a hash instead,
    of the `group` columns or of the project's key: rows that share them share a side."""
    group: tuple[str, ...] = ()
    """Columns whose values stay together, for `by: group`."""
    holdout_share: Share = 0.2
    validation_share: Share = 0.2

    @model_validator(mode="after")
    def _leaves_rows(self) -> Split:
        if (self.by == "group") != bool(self.group):
            raise ValueError("`by: group` and a list `group: [column, ...]` go together; give both or neither")
        if self.holdout_share + self.validation_share >= 1:
            raise ValueError("holdout_share + validation_share leave no rows to train on; lower one")
        return self


Scalar = str | float | int | bool | None


class _Searched(Config):
    """What all spaces have in common."""

    when: dict[str, tuple[Scalar, ...]] = Field(default_factory=dict)
    """Searched only where each of these parameters has one of the listed values; else the parameter is not given at
    all. Those parameters are fixed, or searched as `categorical`."""


class Uniform(_Searched):
    """A float between `low` and `high`."""

    kind: Literal["uniform", "log_uniform"]
    low: float
    high: float

    @model_validator(mode="after")
    def _ordered(self) -> Uniform:
        if self.low >= self.high:
            raise ValueError(f"low {self.low:g} must be below high {self.high:g}")
        if self.kind == "log_uniform" and self.low <= 0:
            raise ValueError("log_uniform needs low above 0")
        return self


class IntRange(_Searched):
    """An integer from `low` to `high`, both included; `log` samples its logarithm evenly."""

    kind: Literal["int"]
    low: int
    high: int
    log: bool = False

    @model_validator(mode="after")
    def _ordered(self) -> IntRange:
        if self.low >= self.high:
            raise ValueError(f"low {self.low} must be below high {self.high}")
        if self.log and self.low <= 0:
            raise ValueError("log needs low above 0")
        return self


class Choice(_Searched):
    """One of `values`."""

    kind: Literal["categorical"]
    values: tuple[Scalar, ...] = Field(min_length=1)


Space = Annotated[Uniform | IntRange | Choice, Field(discriminator="kind")]

Preset = Literal["linear", "random_forest", "extra_trees", "hist_gradient_boosting", "xgboost", "lightgbm"]
"""Families with parameters and a space of their own, for every task; the last two need the extra of their name."""
PRESETS: tuple[str, ...] = get_args(Preset)


class Candidate(Config):
    """An estimator by preset or import path, its fixed parameters, and the space of those that are searched."""

    estimator: Annotated[str, Field(pattern=rf"^(?:{'|'.join(PRESETS)})$|{IMPORT_PATH}")]
    params: dict[str, Any] = Field(default_factory=dict)
    """Fixed parameters; a preset's own are overridden one by one."""
    space: dict[str, Space] = Field(default_factory=dict)
    """A preset's own spaces are overridden one by one; a parameter in `params` is not searched."""
    workers: PositiveInt = 1
    """More than one: each fit is data-parallel over the shards of the dataset, by Ray Train (`xgboost` only)."""

    @model_validator(mode="before")
    @classmethod
    def _short(cls, value: object) -> object:
        return {"estimator": value} if isinstance(value, str) else value

    @model_validator(mode="after")
    def _fits_together(self) -> Candidate:
        for name, space in self.space.items():
            for other in space.when:
                if other == name:
                    raise ValueError(f"space.{name}.when names itself; name another parameter")
                known = self.space.get(other)
                if known is not None and not isinstance(known, Choice):
                    raise ValueError(f"space.{name}.when asks for {other!r}, which is no categorical; make it one")
        if self.workers > 1 and self.estimator not in ("xgboost", *DATA_PARALLEL):
            raise ValueError(f"workers: {self.workers} trains data-parallel, which only `xgboost` does; remove it")
        return self


DATA_PARALLEL = ("xgboost:XGBClassifier", "xgboost:XGBRegressor", "xgboost.XGBClassifier", "xgboost.XGBRegressor")

SearchMetric = Literal["log_loss", "brier", "roc_auc", "pr_auc", "rmse", "mae", "pinball"]


class CrossValidation(Config):
    """Each point of the search is scored on `folds` parts instead of one validation side.

    Parts follow `split.by`: by time each fold validates on rows newer than those it trained on (an expanding window);
    by group or hash, rows that share a group or key share a fold.
    """

    folds: Annotated[int, Field(ge=2, le=20)] = 3


class EarlyStopping(Config):
    """Asynchronous successive halving (ASHA): an estimator that reports as it goes is stopped when it is behind.

    Source: Li et al., A System for Massively Parallel Hyperparameter Tuning, MLSys 2020.
    """

    reduction: Annotated[int, Field(ge=2, le=10)] = 3
    """At each rung the best 1 / reduction go on."""
    min_share: Share = 0.1
    """First rung, as a share of the estimator's full number of rounds, trees or epochs."""


class Cost(Config):
    """What each kind of mistake costs, in any unit."""

    false_positive: NonNegativeFloat
    false_negative: NonNegativeFloat
    true_positive: float = 0.0
    true_negative: float = 0.0


class Threshold(Config):
    """How the decision threshold of a binary model is chosen on validation scores."""

    metric: Literal["f1", "balanced_accuracy", "accuracy"] | None = None
    cost: Cost | None = None

    @model_validator(mode="after")
    def _one(self) -> Threshold:
        if (self.metric is None) == (self.cost is None):
            raise ValueError("give `metric:` or `cost:`, one of the two")
        return self


class Callback(Config):
    """A Ray Tune callback of somebody else's (Weights & Biases, Comet, Neptune ...), beside our tracking."""

    callback: ImportPath
    """A class such as `ray.air.integrations.wandb:WandbLoggerCallback`; its package is yours to install."""
    options: dict[str, Any] = Field(default_factory=dict)


class Search(Config):
    """One budget over all candidates; the best validation score wins."""

    trials: PositiveInt = 12
    max_s: PositiveFloat = 120.0
    trial_max_s: PositiveFloat | None = None
    """A trial that takes longer counts as failed, and its worker is replaced; default: `max_s`."""
    concurrency: PositiveInt = 2
    """Trials at a time, one CPU each."""
    metric: SearchMetric | None = None
    """What is minimised (or maximised, for AUCs); default: `log_loss`, for regression `rmse`."""
    cross_validation: CrossValidation | None = None
    """Default: the validation side of `split:`."""
    early_stopping: EarlyStopping | None = EarlyStopping()
    """`null`: every trial runs to its end."""
    sample_weight: str | None = None
    """A numeric column of row weights, at least 0, for fitting and validation."""
    half_life_s: PositiveFloat | None = None
    """A row that is older than the newest one by so much counts for half of it, by twice so much for a quarter, in
    fitting and validation (times `sample_weight`). The gates count every row of the holdout alike."""
    class_weight: Literal["balanced"] | dict[str, PositiveFloat] | None = None
    """Weights of the classes when fitting: inversely to their frequency, or one per label (written as text)."""
    calibrate: Literal["none", "sigmoid", "isotonic"] = "none"
    """Maps the winner's scores to probabilities, fitted on scores of folds that did not see the row."""
    threshold: Threshold | None = None
    """Default: `serving.threshold`."""
    callbacks: tuple[Callback, ...] = ()
    candidates: tuple[Candidate, ...] = Field(min_length=1)

    @property
    def is_parallel(self) -> bool:
        """Whether fits are data-parallel, over rows that no process holds together."""
        return all(candidate.workers > 1 for candidate in self.candidates)


Metric = Literal[
    "log_loss",
    "brier",
    "calibration_error",
    "roc_auc",
    "pr_auc",
    "accuracy",
    "balanced_accuracy",
    "precision",
    "recall",
    "f1",
    "mae",
    "rmse",
    "r2",
    "median_absolute_error",
    "pinball",
]
"""Multiclass: `roc_auc` is one-vs-rest, it and `precision`, `recall`, `f1` are averaged over classes (macro); `brier`
sums over classes. `calibration_error` is the expected one over ten bins of equal size. `pinball` at quantile 0.5 is
half the mean absolute error."""

TASK_METRICS: dict[str, frozenset[str]] = {
    "binary": frozenset(get_args(Metric)[:10]),
    "multiclass": frozenset(get_args(Metric)[:10]),
    "regression": frozenset(get_args(Metric)[10:]),
}


class Limit(Config):
    """An absolute demand on a holdout metric."""

    metric: Metric
    min: float | None = None
    max: float | None = None

    @model_validator(mode="after")
    def _says_something(self) -> Limit:
        if self.min is None and self.max is None:
            raise ValueError("give min, max or both")
        return self


class SliceGate(Config):
    """No slice may be worse than the champion's (or, for the first version, than the best constant for the slice) by
    `margin`."""

    columns: tuple[str, ...] = Field(min_length=1)
    """Each value of a category, each quarter of a number, is a slice."""
    min_rows: PositiveInt = 200
    """Smaller slices are shown and not judged."""
    margin: PositiveFloat = 0.05
    """Loss per row, in the unit of `gates.margin`. To pass, every judged slice must show it; to fail, a slice must be
    worse by more, with error probabilities shared over slices (Holm 1979)."""


class FairnessGate(Config):
    """Differences between groups of a sensitive column, as fairlearn measures them; classification only."""

    columns: tuple[str, ...] = Field(min_length=1)
    max_demographic_parity: Share | None = 0.1
    """Largest difference of selection rates between two groups."""
    max_equalized_odds: Share | None = 0.1
    """Largest difference of true or false positive rates between two groups."""
    min_rows: PositiveInt = 100
    """Rows by which each rate of a group is measured: all of them (selection rate), its positives (true positive rate),
    its negatives (false positive rate). A rate of fewer is shown and not judged; where fewer than two groups are left,
    the check is inconclusive."""


class Monotonic(Config):
    """The score must not fall (`rising`) or rise (`falling`) when this feature alone rises."""

    column: str
    direction: Literal["rising", "falling"]
    max_share: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Share of rows that may break it."""


class RobustnessGate(Config):
    """How much loss per row may grow when inputs are disturbed; `null` leaves a disturbance out."""

    noise: PositiveFloat | None = 0.1
    """Each number is moved by normal noise of `noise_sd` of its standard deviation."""
    noise_sd: PositiveFloat = 0.1
    missing: PositiveFloat | None = 0.1
    """`missing_share` of the cells of nullable features are emptied."""
    missing_share: Share = 0.1
    unseen_category: PositiveFloat | None = 0.1
    """`swap_share` of the categories become one that training never saw."""
    category_swap: PositiveFloat | None = 0.1
    """`swap_share` of the categories become another row's."""
    swap_share: Share = 0.1
    out_of_range: PositiveFloat | None = 0.5
    """`swap_share` of the numbers lie a tenth of the range beyond the training rows' extremes. More than the others,
    for that misleads every model that uses them: good classifiers lose 0.1 to 0.4 nats, those that explode far more."""
    monotonic: tuple[Monotonic, ...] = ()


class OverfitGate(Config):
    """The loss on the holdout may exceed that on the training rows by so much."""

    max_gap: PositiveFloat = 0.1
    """Loss per row, in the unit of `gates.margin`."""


class LeakageGate(Config):
    """Signs that features know the answer."""

    max_feature_auc: Annotated[float, Field(gt=0.5, le=1)] = 0.99
    """Of any single feature (classification); for regression the largest absolute rank correlation."""
    max_duplicates: Annotated[float, Field(ge=0, le=1)] = 0.5
    """Share of holdout rows whose features all equal those of a training row."""


class CalibrationGate(Config):
    """The expected calibration error that is allowed; classification only."""

    max_error: Share = 0.1


class InfrastructureGate(Config):
    """The packaged version answers in a process of its own as serving runs it."""

    replica: bool = False
    """In a replica of Ray Serve instead of a plain worker: some seconds more."""
    max_p99_ms: PositiveFloat | None = None
    """Of one-row requests inside the predictor."""
    max_mb: PositiveFloat | None = None
    """Of the artifact's files."""


class Approval(Config):
    """Whose approval a version that passed its gates waits for."""

    approvers: PositiveInt = 1
    """How many different people must approve; who proposed the version is none of them."""
    expires_s: PositiveFloat | None = None
    """How long an approval counts while others are missing; default: for ever."""


class Gates(Config):
    """What a candidate must show on the holdout before it may be registered."""

    min_rows: PositiveInt = 500
    limits: tuple[Limit, ...] = ()
    margin: PositiveFloat = 0.01
    """Non-inferiority margin: the largest loss per row by which a candidate may trail the champion. Classification:
    log-loss in nats. Regression: squared error over the holdout target's variance, so 0.01 is a point of R²."""
    gain: PositiveFloat = 0.01
    """A first version must beat the best constant by more than this, in the unit of `margin`: by less, a model of noise
    gets there by luck."""
    alpha: Share = 0.05
    power: Share = 0.8
    """Where the comparison with the champion would pass an equal candidate less often than this, it is inconclusive,
    unless the candidate is surely better or surely fails."""
    block_s: PositiveFloat = DAY_S
    """Rows of one block of time are resampled together: outcomes of an hour or a day are correlated. Comparisons need
    five blocks, and planned power usually more: many blocks tell more than many rows in few."""
    block_group: str | None = None
    """Resample the values of this column together instead of blocks of time: a store, a patient."""
    resamples: Annotated[int, Field(ge=200)] = 2000
    slices: SliceGate | None = None
    fairness: FairnessGate | None = None
    robustness: RobustnessGate | None = None
    overfit: OverfitGate | None = None
    leakage: LeakageGate | None = LeakageGate()
    calibration: CalibrationGate | None = None
    infrastructure: InfrastructureGate = InfrastructureGate()
    approval: bool | Approval = False
    """A version that passes waits as `pending`, without traffic, until somebody approves it, or as many as it says."""
