"""The blocks about where a project lives and how it is served, watched and retrained."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Literal

from cronsim import CronSim, CronSimError
from pydantic import (
    AfterValidator,
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    model_validator,
)

from mlops_ray.config.base import DAY_S, HOUR_S, Config, Share, Zone

Trigger = Literal["drift", "performance", "estimated_performance", "schedule", "new_rows"]


def _cron(expression: str) -> str:
    try:
        CronSim(expression, datetime(2013, 1, 1, tzinfo=UTC))
        if len(expression.split()) != 5:  # CronSim knows a form with seconds
            raise CronSimError("Wrong number of fields")
    except CronSimError as exc:
        raise ValueError(f'is no cron expression ({exc}); write five fields, such as "0 3 * * mon"') from exc
    return expression


Cron = Annotated[str, AfterValidator(_cron)]


class Storage(Config):
    """Where state lives. Everything defaults to files under `root`; a cluster names servers instead."""

    root: str = ".mlops_ray"
    """A directory (relative to the current one), or an `s3://`, `gs://`, `abfs://` address."""
    state_url: str | None = None
    """SQLAlchemy URL of the state database; default: SQLite in `root`. With several nodes: PostgreSQL."""
    tracking_uri: str | None = None
    """MLflow tracking and registry; default: SQLite in `root`."""

    @property
    def is_remote(self) -> bool:
        """Whether `root` is an object-store address and not a directory of this machine."""
        return "://" in self.root

    def path(self, *parts: str) -> str:
        """Absolute path or address of something below `root`."""
        base = self.root.rstrip("/") if self.is_remote else str(Path(self.root).expanduser().absolute())
        return "/".join((base, *parts))

    @property
    def state(self) -> str:
        """URL of the state database."""
        return self.state_url or f"sqlite:///{self.path('state.db')}"

    @property
    def tracking(self) -> str:
        """URI of MLflow's tracking store and registry."""
        return self.tracking_uri or f"sqlite:///{self.path('mlflow.db')}"


class Cluster(Config):
    """The Ray cluster: joined when `address` is set, else started on this machine by `up`."""

    address: str | None = None
    """`host:port` of a running cluster's GCS, or None for a cluster of our own on this machine."""
    nodes: PositiveInt = 1
    """How many nodes the cluster may grow to; more than one needs shared storage and PostgreSQL."""
    num_cpus: PositiveInt = 8
    """Logical CPUs of a cluster of our own: serving actors mostly wait, so more than there are cores."""
    host: str = "127.0.0.1"
    """Interface that Serve's proxy listens on."""
    http_port: Annotated[int, Field(ge=1, le=65535)] = 8000
    grpc_port: Annotated[int, Field(ge=1, le=65535)] | None = None
    """Port of the Open Inference Protocol over gRPC, for all projects of the cluster; None: not offered."""
    object_store_mb: PositiveInt = 1024


class Autoscaling(Config):
    """Between how many replicas of the ingress Ray Serve chooses, by the requests that they have in hand."""

    min_replicas: PositiveInt = 1
    max_replicas: PositiveInt = 4
    target_ongoing_requests: PositiveFloat = 16.0
    """Requests that one replica is meant to have in hand; one core answers some two thousand a second."""
    upscale_delay_s: NonNegativeFloat = 10.0
    downscale_delay_s: NonNegativeFloat = 300.0

    @model_validator(mode="after")
    def _ordered(self) -> Autoscaling:
        if self.min_replicas > self.max_replicas:
            raise ValueError(f"min_replicas {self.min_replicas} is above max_replicas {self.max_replicas}")
        return self


class Serving(Config):
    """How versions are served."""

    replicas: PositiveInt = 1
    """Replicas of the ingress; where `autoscaling` is given, it decides."""
    autoscaling: Autoscaling | None = None
    num_cpus: NonNegativeFloat = 0.1
    """Logical CPUs that each replica, of the ingress as of a version apart, takes of the cluster."""
    max_ongoing_requests: PositiveInt = 64
    """Requests that one replica has in hand at most; those beyond are answered 503 with Retry-After."""
    max_body_mb: PositiveFloat = 8.0
    max_rows: PositiveInt = 100_000
    """Rows, or labels, of one request."""
    request_timeout_s: PositiveFloat = 30.0
    drain_s: NonNegativeFloat = 1.0
    """How long a replica that is to go still answers, at least."""
    canary_deadline_s: PositiveFloat = 1.0
    """A canary that takes longer is answered by stable, and the row counts as the canary's failure."""
    shadow_rows: PositiveInt = 1_000
    """Copies of rows that wait for a shadow at most; those beyond are dropped and counted."""
    threshold: Share = 0.5
    """Probability from which `label` says 1, where training chose none for the version."""
    key_header: Annotated[str, Field(pattern=r"^[A-Za-z][A-Za-z0-9-]{0,63}$")] | None = None
    """Request header with the key of all rows of a request, for clients that do not send the key's column."""
    request_rules: Literal["types", "all"] = "types"
    """What a request must keep of `columns:`: names, types and nulls, or ranges, sets and patterns as well. A value out
    of range is drift more often than a mistake, so it is answered unless `all` is asked for."""
    explain: NonNegativeInt = 0
    """Contributions of features that a request may ask for, at most; 0 answers none."""
    auth: Literal["off", "token"] = "off"
    """`token`: every request carries a bearer token with the role that it needs. `off` only where nothing but loopback
    listens."""


class Capture(Config):
    """The prediction log."""

    durability: Literal["process", "disk"] = "process"
    """`process`: an answer leaves after its record was written (survives kill -9); `disk`: after fsync as well."""
    commit_s: PositiveFloat = 5.0
    """How often the collector commits what stands in the spool, when there is much of it."""
    commit_idle_s: PositiveFloat = 60.0
    """After how long it commits little."""
    spool_mb: PositiveFloat = 1024.0
    """How much a node keeps while the store is away. Beyond, one request in `overflow_keep` is recorded, the others are
    answered, counted, and marked as not captured."""
    overflow_keep: PositiveInt = 10
    sample: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Share of keys whose rows are recorded; all rows of a key, or none. The others are counted."""
    drop: tuple[str, ...] = ()
    """Columns whose values are not recorded. No feature, unless no version takes it."""
    hash: tuple[str, ...] = ()
    """Columns recorded as a keyed hash instead, which joins but does not tell. The key may be one."""
    keep_days: PositiveInt | None = None
    """Days after which rows of the log and its labels are deleted; None keeps them."""

    @model_validator(mode="after")
    def _ordered(self) -> Capture:
        if self.commit_s > self.commit_idle_s:
            raise ValueError(f"commit_s {self.commit_s:g} is above commit_idle_s {self.commit_idle_s:g}")
        if both := set(self.drop) & set(self.hash):
            raise ValueError(f"{sorted(both)[0]!r} stands in both drop and hash")
        return self


class Monitoring(Config):
    """Windows of live traffic, judged when they close."""

    window_s: PositiveFloat = 7 * DAY_S
    block_s: PositiveFloat = DAY_S
    """Contiguous span of the reference that the calibration resamples whole; must divide `window_s`."""
    slide_s: PositiveFloat | None = None
    """How often a window of `window_s` closes for drift, overlapping the one before; None: `window_s`, side by side."""
    window_rows: PositiveInt | None = None
    """Windows by rows: each ends with the block that fills it, however long that takes; `window_s` then says nothing,
    and the quality's limit is for a window as long as it took."""
    seasonal: Literal["weekday", "hour_of_week"] | None = None
    """Hold a window against rows of the same weekday or hour of the week (UTC) alone, where there are enough of them.
    Windows must be as short: a day, or an hour."""
    false_alarms_per_month: PositiveFloat = 1.0
    """Budget over all detectors together; thresholds follow from it."""
    min_rows: PositiveInt = 500
    min_blocks: PositiveInt = 8
    """A reference of fewer blocks supports no threshold: `uncalibrated`, and nobody is called."""
    label_horizon_s: PositiveFloat = 2 * DAY_S
    """Rows younger than this serve no level: labels come late, and not at random."""
    multivariate_s: PositiveFloat | None = None
    """How often, in decision time, a classifier tries to tell live rows from those of the holdout; a multiple of
    `block_s`. None: never."""
    idle_s: PositiveFloat = 900.0
    """Without traffic for so long, decision time follows the wall clock again."""
    metrics_port: Annotated[int, Field(ge=1, le=65535)] = 9464

    @model_validator(mode="after")
    def _divides(self) -> Monitoring:
        if self.window_s % self.block_s:
            raise ValueError(f"window_s {self.window_s:g} must be a multiple of block_s {self.block_s:g}")
        if self.slide_s is not None and (self.slide_s % self.block_s or self.window_s % self.slide_s):
            raise ValueError(f"slide_s {self.slide_s:g} must be a multiple of block_s and divide window_s")
        if self.slide_s is not None and self.window_rows is not None:
            raise ValueError("windows by window_rows lie side by side; leave slide_s out")
        longest = {"weekday": DAY_S, "hour_of_week": HOUR_S, None: self.window_s}[self.seasonal]
        if self.seasonal and (self.window_rows is not None or self.slide_s is not None or longest != self.window_s):
            raise ValueError(f"seasonal: {self.seasonal} needs window_s {longest:g}, side by side")
        if self.multivariate_s is not None and self.multivariate_s % self.block_s:
            raise ValueError(f"multivariate_s {self.multivariate_s:g} must be a multiple of block_s {self.block_s:g}")
        return self


class Retraining(Config):
    """When a new model is trained, and on what."""

    triggers: tuple[Trigger, ...] = ("drift", "performance")
    train_on: Literal["span", "rows", "all", "since_drift"] = "span"
    """Of the labelled rows older than `label_horizon_s`: those of the last `window_s`, the newest `window_rows`, all of
    them, or those since the drift began. Where older rows should count for less: `search.half_life_s`."""
    window_s: PositiveFloat = 60 * DAY_S
    """Of `train_on: span`."""
    window_rows: PositiveInt | None = None
    """Of `train_on: rows`."""
    refit: bool = False
    """Whether a candidate whose gates have passed is fitted once more, on all of its rows and thus on the holdout's
    too: otherwise it is older than it need be by the holdout. What the gates judged is then the same recipe on fewer
    rows, and the rollout judges the version."""
    warm_start: NonNegativeInt = 0
    """How many of the best trials of the champion's search a retrain's search begins with."""
    schedule: Cron | None = None
    """Of the trigger `schedule`, in decision time: a cron expression such as "0 3 * * mon"."""
    timezone: Zone = "UTC"
    """Where the schedule's hours are meant: a name of the IANA database, such as Europe/Berlin."""
    new_rows: PositiveInt | None = None
    """Of the trigger `new_rows`: so many labels that have come since the last retrain was decided."""
    debounce_windows: PositiveInt = 1
    """Alarming windows in a row before anything happens."""
    cooldown_s: NonNegativeFloat = 14 * DAY_S
    """Least span between two retrains that evidence asks for. A schedule has its own."""
    least_new_rows: NonNegativeInt = 0
    """Rows that must have come since the last retrain was decided (before the first one: since traffic began) for
    `drift` to ask for another: what moved may hurt, and a model of nearly the same rows is nearly the same. Realised
    and estimated performance do not wait for it."""
    most_per_day: PositiveInt = 4
    """Most retrains that are decided in 24 hours of decision time, whatever asks for them. Yours do not count."""
    max_failures: PositiveInt = 3
    """After so many failed or rejected retrains in a row the circuit breaker opens."""
    backoff_s: PositiveFloat = 28 * DAY_S
    """How long an open breaker holds back; twice as long after each further failure, four times at most."""
    timeout_s: PositiveFloat = 900.0
    """Machine time after which a retraining job is stopped and counted as failed."""
    dry_run: bool = False
    """Whether decisions are only written down, with their reasons, and nothing is trained."""

    @model_validator(mode="after")
    def _complete(self) -> Retraining:
        for trigger, example in (("schedule", '"0 3 * * mon"'), ("new_rows", "20000")):
            listed, given = trigger in self.triggers, getattr(self, trigger) is not None
            if listed and not given:
                raise ValueError(f"triggers names {trigger}, which needs `{trigger}: {example}`")
            if given and not listed:
                raise ValueError(f"{trigger} does nothing unless `triggers` names it; add it there")
        if self.train_on == "rows" and self.window_rows is None:
            raise ValueError("train_on: rows needs how many; add `window_rows: 50000`")
        if self.train_on != "rows" and self.window_rows is not None:
            raise ValueError(f"window_rows does nothing with train_on: {self.train_on}; say `train_on: rows`")
        return self
