"""The project file: typed, frozen, strict about typos.

`load_project(paths, env=...)` reads one YAML file and any number of overlays and returns a `Project`, or raises one
`ConfigError` that lists every mistake with file, line, field, value and remedy. Nothing here touches Ray, MLflow or
the network, so that `mlops-ray check` answers in well under a second.

Units stand in names: `_s` seconds, `_mb` mebibytes, `share` a fraction in [0, 1].
"""

from __future__ import annotations

import difflib
import importlib.util
import itertools
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    NonNegativeFloat,
    PositiveFloat,
    PositiveInt,
    ValidationError,
    field_validator,
    model_validator,
)

from mlops_ray.errors import ConfigError

DAY_S = 86_400.0
DTYPES = ("float", "int", "string", "bool", "timestamp")
Share = Annotated[float, Field(gt=0, lt=1)]
Name = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]{0,39}$")]
ImportPath = Annotated[str, Field(pattern=r"^[A-Za-z_][\w.]*[.:][A-Za-z_]\w*$")]


class Config(BaseModel):
    """Base of all blocks: unknown keys are refused, values never change after loading."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


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
    object_store_mb: PositiveInt = 1024


class Source(Config):
    """Where rows come from: a Ray Data reader by name, or a Python function that returns a `ray.data.Dataset`."""

    kind: Literal["parquet", "csv", "json", "delta", "python"]
    path: str | tuple[str, ...] | None = None
    function: ImportPath | None = None
    """`module:function`, for `kind: python`; called with `options` as keywords."""
    options: dict[str, Any] = Field(default_factory=dict)
    """Keywords for the reader or the function."""

    @model_validator(mode="after")
    def _complete(self) -> Source:
        if self.kind == "python" and self.function is None:
            raise ValueError("kind: python needs `function: module:function`")
        if self.kind != "python" and not self.path:
            raise ValueError(f"kind: {self.kind} needs `path:`")
        return self


class Column(Config):
    """One column of the data: what validation demands of it, offline and in requests."""

    name: str = Field(min_length=1)
    dtype: Literal["float", "int", "string", "bool", "timestamp"]
    nullable: bool = False
    min: float | None = None
    max: float | None = None
    values: tuple[str, ...] | None = None
    """Closed set of values (strings)."""
    pattern: str | None = None
    """Regular expression that the whole string must match."""

    @field_validator("pattern")
    @classmethod
    def _compiles(cls, value: str | None) -> str | None:
        if value is not None:
            try:
                re.compile(value)
            except re.error as exc:
                raise ValueError(f"not a regular expression: {exc}") from exc
        return value

    @model_validator(mode="after")
    def _fits_dtype(self) -> Column:
        wrong = []
        if (self.min is not None or self.max is not None) and self.dtype not in ("float", "int"):
            wrong.append(f"min and max do not fit dtype {self.dtype}; remove them")
        if (self.values is not None or self.pattern is not None) and self.dtype != "string":
            wrong.append(f"values and pattern fit dtype string, not {self.dtype}; remove them")
        if self.min is not None and self.max is not None and self.min > self.max:
            wrong.append(f"min {self.min:g} is above max {self.max:g}; swap them")
        if wrong:
            raise ValueError("; ".join(wrong))
        return self


class Validation(Config):
    """What happens to rows that break their column's rules: quarantine, and a stop above `max_bad_share`."""

    max_bad_share: Annotated[float, Field(ge=0, le=1)] = 0.01
    min_rows: PositiveInt = 100
    unique: tuple[str, ...] = ()
    """Columns that together identify a row; a repeated row goes to quarantine."""


class Split(Config):
    """Split by time: the newest rows are the holdout, those before them choose among candidates."""

    holdout_share: Share = 0.2
    validation_share: Share = 0.2

    @model_validator(mode="after")
    def _leaves_rows(self) -> Split:
        if self.holdout_share + self.validation_share >= 1:
            raise ValueError("holdout_share + validation_share leave no rows to train on; lower one")
        return self


class Numeric(Config):
    """Numeric features: imputed, then scaled."""

    columns: tuple[str, ...] = ()
    impute: Literal["mean", "constant"] = "mean"
    fill_value: float = 0.0
    scale: Literal["standard", "none"] = "standard"


class Categorical(Config):
    """Categorical features: one column per category; categories rarer than `min_share` count as unknown."""

    columns: tuple[str, ...] = ()
    min_share: Annotated[float, Field(ge=0, lt=1)] = 0.001


class Features(Config):
    """The model's inputs. Whatever stands here is asked for in every request."""

    numeric: Numeric = Numeric()
    categorical: Categorical = Categorical()

    @property
    def columns(self) -> tuple[str, ...]:
        """Numeric columns, then categorical ones, in the file's order: the model's input order."""
        return self.numeric.columns + self.categorical.columns


class Uniform(Config):
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


class IntRange(Config):
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


class Choice(Config):
    """One of `values`."""

    kind: Literal["categorical"]
    values: tuple[str | float | int | bool | None, ...] = Field(min_length=1)


Space = Annotated[Uniform | IntRange | Choice, Field(discriminator="kind")]


class Candidate(Config):
    """An estimator by import path, its fixed parameters, and the space of those that are searched."""

    estimator: ImportPath
    params: dict[str, Any] = Field(default_factory=dict)
    space: dict[str, Space] = Field(default_factory=dict)


class Search(Config):
    """One budget over all candidates; the lowest validation log-loss wins."""

    trials: PositiveInt = 12
    max_s: PositiveFloat = 120.0
    concurrency: PositiveInt = 2
    """Trials at a time, one CPU each."""
    candidates: tuple[Candidate, ...] = Field(min_length=1)


Metric = Literal["log_loss", "brier", "roc_auc", "accuracy"]


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


class Gates(Config):
    """What a candidate must show on the holdout before it may be registered."""

    min_rows: PositiveInt = 500
    limits: tuple[Limit, ...] = ()
    margin: PositiveFloat = 0.01
    """Non-inferiority margin: the largest log-loss (nats per row) by which a candidate may trail the champion."""
    alpha: Share = 0.05
    block_s: PositiveFloat = DAY_S
    """Rows of one block of time are resampled together: outcomes of an hour or a day are correlated."""
    resamples: Annotated[int, Field(ge=200)] = 2000


class Serving(Config):
    """How versions are served."""

    replicas: PositiveInt = 1
    max_ongoing_requests: PositiveInt = 64
    max_body_mb: PositiveFloat = 8.0
    canary_deadline_s: PositiveFloat = 1.0
    """A canary that takes longer is answered by stable, and the row counts as the canary's failure."""
    threshold: Share = 0.5
    """Probability from which `label` says 1."""


class Capture(Config):
    """The prediction log."""

    durability: Literal["process", "disk"] = "process"
    """`process`: an answer leaves after its record was written (survives kill -9); `disk`: after fsync as well."""
    commit_s: PositiveFloat = 5.0
    """How often the collector commits what stands in the spool."""


class Monitoring(Config):
    """Windows of live traffic, judged when they close."""

    window_s: PositiveFloat = 7 * DAY_S
    block_s: PositiveFloat = DAY_S
    """Contiguous span of the reference that the calibration resamples whole; must divide `window_s`."""
    false_alarms_per_month: PositiveFloat = 1.0
    """Budget over all detectors together; thresholds follow from it."""
    min_rows: PositiveInt = 500
    min_blocks: PositiveInt = 8
    """A reference of fewer blocks supports no threshold: `uncalibrated`, and nobody is called."""
    label_horizon_s: PositiveFloat = 2 * DAY_S
    """Rows younger than this serve no level: labels come late, and not at random."""
    idle_s: PositiveFloat = 900.0
    """Without traffic for so long, decision time follows the wall clock again."""
    metrics_port: Annotated[int, Field(ge=1, le=65535)] = 9464

    @model_validator(mode="after")
    def _divides(self) -> Monitoring:
        if self.window_s % self.block_s:
            raise ValueError(f"window_s {self.window_s:g} must be a multiple of block_s {self.block_s:g}")
        return self


class Margins(Config):
    """By how much a canary may be worse and still be promoted."""

    log_loss: PositiveFloat = 0.02
    """Nats per row, paired with stable's score of the same row."""
    failures: Share = 0.01
    """Share of the canary's rows that it failed to answer in time."""


class RolloutPlan(Config):
    """The canary's path. Evidence runs through all steps of a rollout."""

    shares: tuple[Share, ...] = (0.1, 0.5)
    """Share of keys that the canary answers at each step, strictly rising."""
    look_s: PositiveFloat = 60.0
    """Decision time between two looks at the evidence; looking often costs no error probability."""
    step_min_s: NonNegativeFloat = DAY_S
    step_max_s: PositiveFloat = 14 * DAY_S
    min_keys: PositiveInt = 100
    """Below so many labelled keys every verdict is inconclusive."""
    alpha: Share = 0.05
    margins: Margins = Margins()
    clip: Annotated[float, Field(gt=0, lt=0.5)] = 0.01
    """Probabilities are clipped to [clip, 1 - clip] before the log, which bounds the loss."""
    on_inconclusive: Literal["rollback", "pause", "wait"] = "rollback"
    """What happens to a step that is still undecided after `step_max_s`."""

    @field_validator("shares")
    @classmethod
    def _rising(cls, value: tuple[float, ...]) -> tuple[float, ...]:
        if not value:
            raise ValueError("give at least one share")
        if any(b <= a for a, b in itertools.pairwise(value)):
            raise ValueError("shares must rise strictly, for example [0.1, 0.5]")
        return value

    @model_validator(mode="after")
    def _ordered(self) -> RolloutPlan:
        if self.step_min_s > self.step_max_s:
            raise ValueError("step_min_s is above step_max_s")
        largest = math.log((1 - self.clip) / self.clip)
        if self.margins.log_loss >= largest:
            raise ValueError(
                f"margins.log_loss {self.margins.log_loss:g} is no demand: with clip {self.clip:g} two losses never "
                f"differ by more than {largest:.2f}; lower it"
            )
        return self


class Retraining(Config):
    """When a new model is trained, and on what."""

    triggers: tuple[Literal["drift", "performance"], ...] = ("drift", "performance")
    window_s: PositiveFloat = 60 * DAY_S
    """The newest labelled rows of this span, older than `label_horizon_s`, make the training set."""
    debounce_windows: PositiveInt = 1
    """Alarming windows in a row before anything happens."""
    cooldown_s: NonNegativeFloat = 14 * DAY_S
    """Least span between two retrains."""
    max_failures: PositiveInt = 3
    """After so many failed or rejected retrains in a row the circuit breaker opens."""
    backoff_s: PositiveFloat = 28 * DAY_S
    """How long an open breaker holds back."""
    timeout_s: PositiveFloat = 900.0
    """Machine time after which a retraining job is stopped and counted as failed."""


class Project(Config):
    """One prediction task, from its sources to its retraining."""

    project: Name
    """Name of the registered model and first segment of the URL."""
    task: Literal["binary"]
    target: str
    """Column with the label: 0 or 1."""
    key: str
    """Column that identifies the row's subject: assignment to a version sticks to it."""
    event_time: str
    """Column with the row's time: training splits and windows follow it."""
    seed: int = 0
    storage: Storage = Storage()
    cluster: Cluster = Cluster()
    source: Source
    columns: tuple[Column, ...] = Field(min_length=1)
    validation: Validation = Validation()
    split: Split = Split()
    features: Features
    search: Search
    gates: Gates = Gates()
    serving: Serving = Serving()
    capture: Capture = Capture()
    monitoring: Monitoring = Monitoring()
    rollout: RolloutPlan = RolloutPlan()
    retraining: Retraining = Retraining()

    @model_validator(mode="after")
    def _fits_together(self) -> Project:
        found = [f"{'.'.join(map(str, loc))}: {what}" for loc, what in _cross_checks(self.model_dump(mode="json"))]
        if found:
            raise ValueError("; ".join(found))
        return self

    def column(self, name: str) -> Column:
        """The column called `name`. Raises KeyError when there is none."""
        return next(c for c in self.columns if c.name == name)

    @property
    def request_columns(self) -> tuple[Column, ...]:
        """Columns of a request: key, time and features; never the target."""
        wanted = {self.key, self.event_time, *self.features.columns}
        return tuple(c for c in self.columns if c.name in wanted)


Loc = tuple[str | int, ...]


def _cross_checks(raw: Mapping[str, Any]) -> Iterator[tuple[Loc, str]]:
    """Rules that span blocks, over the raw mapping: they speak even when other fields are wrong."""
    columns = raw.get("columns")
    listed = [
        (i, c) for i, c in enumerate(_items(columns)) if isinstance(c, Mapping) and isinstance(c.get("name"), str)
    ]
    dtypes: dict[str, object] = {}
    for i, column in listed:
        if column["name"] in dtypes:
            yield ("columns", i, "name"), f"column {column['name']!r} is listed twice; remove one"
        dtypes.setdefault(column["name"], column.get("dtype"))

    def known(loc: Loc, name: object, wanted: tuple[str, ...]) -> Iterator[tuple[Loc, str]]:
        if not isinstance(name, str) or not listed:
            return
        if name not in dtypes:
            near = difflib.get_close_matches(name, list(dtypes), 1)
            hint = f"did you mean {near[0]!r}?" if near else "add it to `columns:`"
            yield loc, f"{name!r} is not one of the columns; {hint}"
        elif dtypes[name] in DTYPES and dtypes[name] not in wanted:
            yield loc, f"column {name!r} is {dtypes[name]}; this place takes {' or '.join(wanted)}"

    yield from known(("target",), raw.get("target"), ("int", "bool", "float"))
    yield from known(("key",), raw.get("key"), ("string", "int"))
    yield from known(("event_time",), raw.get("event_time"), ("timestamp",))
    features = raw.get("features")
    used: list[object] = []
    for kind, wanted in (("numeric", ("float", "int", "bool")), ("categorical", ("string",))):
        block = features.get(kind) if isinstance(features, Mapping) else None
        listed_features = block.get("columns") if isinstance(block, Mapping) else None
        for i, name in enumerate(_items(listed_features)):
            loc: Loc = ("features", kind, "columns", i)
            yield from known(loc, name, wanted)
            if name == raw.get("target"):
                yield loc, "the target cannot be a feature; remove it here"
            elif name in used:
                yield loc, f"feature {name!r} is listed twice; remove one"
            used.append(name)
    if isinstance(features, Mapping) and not used:
        yield ("features",), "no features; list columns under numeric or categorical"
    unique = raw.get("validation", {}).get("unique", ()) if isinstance(raw.get("validation"), Mapping) else ()
    for i, name in enumerate(_items(unique)):
        yield from known(("validation", "unique", i), name, DTYPES)
    search = raw.get("search")
    candidates = search.get("candidates") if isinstance(search, Mapping) else None
    for i, candidate in enumerate(_items(candidates)):
        path = candidate.get("estimator") if isinstance(candidate, Mapping) else None
        if isinstance(path, str) and path and not _importable(path):
            yield (
                ("search", "candidates", i, "estimator"),
                f"package {path.split('.')[0]!r} is not installed; install it or fix the path",
            )
    source = raw.get("source")
    function = source.get("function") if isinstance(source, Mapping) else None
    if isinstance(function, str) and function and not _importable(function):
        package = re.split("[.:]", function)[0]
        yield ("source", "function"), f"package {package!r} cannot be found; fix the path or install it"
    yield from _storage_fits_cluster(raw)
    yield from _times_and_ports(raw)


def _times_and_ports(raw: Mapping[str, Any]) -> Iterator[tuple[Loc, str]]:
    blocks = {k: raw[k] for k in ("cluster", "monitoring", "retraining") if isinstance(raw.get(k), Mapping)}

    def number(block: str, field: str, default: float) -> float:
        value = blocks.get(block, {}).get(field, default)
        return float(value) if isinstance(value, int | float) else default

    window, horizon = number("retraining", "window_s", 60 * DAY_S), number("monitoring", "label_horizon_s", 2 * DAY_S)
    if window <= horizon:
        says = f"{window:g} s hold no row older than label_horizon_s ({horizon:g} s); make it longer"
        yield ("retraining", "window_s"), says
    if number("cluster", "http_port", 8000) == (port := number("monitoring", "metrics_port", 9464)):
        yield ("monitoring", "metrics_port"), f"{port:g} is cluster.http_port too; choose another"


def _items(value: object) -> Sequence[Any]:
    """The items of a YAML list; nothing for anything else: the models say what is wrong with that."""
    return value if isinstance(value, list | tuple) else ()


def _storage_fits_cluster(raw: Mapping[str, Any]) -> Iterator[tuple[Loc, str]]:
    storage, cluster = (block if isinstance(block := raw.get(name), Mapping) else {} for name in ("storage", "cluster"))
    root, nodes = str(storage.get("root") or ""), cluster.get("nodes", 1)
    several = isinstance(nodes, int) and nodes > 1
    if not ("://" in root or several):
        return
    why = f"{nodes} nodes" if several else "a remote storage.root"
    for field, server in (("state_url", "a PostgreSQL address"), ("tracking_uri", "an MLflow server")):
        value = storage.get(field)
        if value is None or str(value).startswith("sqlite"):
            yield ("storage", field), f"SQLite serves one node, not {why}; give {server}"


def _importable(path: str) -> bool:
    top = re.split(r"[.:]", path)[0]
    try:
        return importlib.util.find_spec(top) is not None
    except (ImportError, ValueError):
        return False


def load_project(paths: Sequence[str | Path] | str | Path, *, env: Mapping[str, str]) -> Project:
    """The project that `paths` describe: the first is the base, each further one an overlay that wins.

    Mappings merge key by key, lists and scalars are replaced. `${NAME}` inside a string is taken from `env`.
    Raises: ConfigError with every mistake found, each with file, line, field, value and remedy.
    """
    files = [Path(p) for p in ([paths] if isinstance(paths, str | Path) else paths)]
    label = " + ".join(map(str, files))
    written: dict[str, Any] = {}
    lines: dict[Loc, tuple[str, int]] = {}
    unreadable: list[str] = []
    for file in files:
        try:
            written = _merge(written, _read_yaml(file, lines))
        except ConfigError as exc:
            unreadable += exc.problems
    if unreadable:
        raise ConfigError(label, tuple(unreadable))
    unset: list[tuple[Loc, str]] = []
    raw = _expand(written, env, (), unset)
    project, wrong = _validate(raw, written)
    if project is None or unset:
        order = [str(file) for file in files]
        placed = {
            (*_place(loc, lines, label), ".".join(map(str, loc)) or "(file)", what) for loc, what in unset + wrong
        }
        placed_in_order = sorted(placed, key=lambda p: (order.index(p[0]) if p[0] in order else -1, *p[1:]))
        raise ConfigError(
            label, tuple(f"{file}:{line}: {field}: {what}" for file, line, field, what in placed_in_order)
        )
    return project


def _absolute(path: str) -> str:
    """`path` from the file system's root; addresses and what the environment will fill in stay as they are."""
    return path if "://" in path or path.startswith("${") else str(Path(path).expanduser().absolute())


def _validate(raw: dict[str, Any], written: Mapping[str, Any]) -> tuple[Project | None, list[tuple[Loc, str]]]:
    """The project and nothing, or None and every mistake.

    A block's own rule speaks only once all its fields are sound, so wrong fields are taken out (their defaults stand
    in) and the rest is looked at again, until nothing new turns up.
    """
    problems: dict[Loc, str] = {}
    rest: Any = raw
    while True:
        try:
            project = Project.model_validate(rest)
        except ValidationError as exc:
            found = [(_real(e["loc"]), e) for e in exc.errors()]
        else:
            return (None, [*problems.items(), *_cross_checks(raw)]) if problems else (project, [])
        # A wrong item makes its list "too short", a field taken out is "missing": echoes, not mistakes.
        inner = [*problems, *(loc for loc, _ in found)]
        above = {loc[:i] for loc in inner for i in range(len(loc))}
        new: dict[Loc, str] = {}
        for loc, error in found:
            echo = error["type"] in ("missing", "too_short") and loc in above
            if loc and loc not in problems and loc not in new and not echo:
                new[loc] = _sentence(error, loc, written)
        if not new:
            return None, [*problems.items(), *_cross_checks(raw)]
        problems |= new
        for loc in new:
            rest = _without(rest, loc)


def _without(value: Any, loc: Loc) -> Any:
    """A copy of `value` without the field at `loc`. Lists keep their indexes: with a wrong item goes its whole list."""
    head, tail = loc[0], loc[1:]
    if isinstance(value, dict):
        if not tail or (len(tail) == 1 and isinstance(tail[0], int)):
            return {k: v for k, v in value.items() if k != head}
        return {k: _without(v, tail) if k == head else v for k, v in value.items()}
    if isinstance(value, list) and tail:
        return [_without(v, tail) if i == head else v for i, v in enumerate(value)]
    return value


def portable(paths: Sequence[str | Path]) -> str:
    """Base and overlays as one YAML text that means the same in any directory: what `up` hands to the jobs it starts.

    `storage.root`, SQLite's files and a local `source.path` become absolute; `${NAME}` stays, so that no secret is
    written down.
    """
    lines: dict[Loc, tuple[str, int]] = {}
    raw: dict[str, Any] = {}
    for file in paths:
        raw = _merge(raw, _read_yaml(Path(file), lines))
    here: dict[str, Any] = {"storage": {"root": _absolute((raw.get("storage") or {}).get("root", Storage().root))}}
    for field in ("state_url", "tracking_uri"):
        url = str((raw.get("storage") or {}).get(field) or "")
        if url.startswith("sqlite:///") and not url.startswith("sqlite:////"):
            here["storage"][field] = "sqlite:///" + _absolute(url.removeprefix("sqlite:///"))
    path = (raw.get("source") or {}).get("path")
    if path:
        here["source"] = {"path": [_absolute(p) for p in path] if isinstance(path, list) else _absolute(path)}
    raw = _merge(raw, here)
    return yaml.safe_dump(raw, sort_keys=False, allow_unicode=True)


def parse_portable(text: str, *, env: Mapping[str, str]) -> Project:
    """The project that `portable` wrote down, with `${NAME}` taken from `env`.

    Raises: ConfigError when the environment lacks a name, or the text is another release's.
    """
    problems: list[tuple[Loc, str]] = []
    written = yaml.safe_load(text)
    project, wrong = _validate(_expand(written, env, (), problems), written)
    if project is None or problems:
        raise ConfigError(
            "the project file kept by `up`", tuple(f"{'.'.join(map(str, at))}: {w}" for at, w in problems + wrong)
        )
    return project


def _real(loc: Loc) -> Loc:
    """Pydantic names the member of a union in its path ("int", "uniform"); the file has no such level."""
    if "space" in loc:
        at = loc.index("space") + 2
        loc = loc[:at] + tuple(p for p in loc[at:] if p not in ("uniform", "log_uniform", "categorical", "int"))
    if loc and loc[-1] in ("str", "float", "int", "bool"):
        loc = loc[:-1]
    return tuple(p for p in loc if not (isinstance(p, str) and p.startswith(("tuple[", "constrained-"))))


def _sentence(error: Any, loc: Loc, written: Any) -> str:
    """One pydantic error as: what is wrong, the value, the way out.

    The value is shown as it stands in the file (`written`), so that no secret behind a `${NAME}` is printed.
    """
    kind, ctx, value = error["type"], error.get("ctx", {}), error["input"]
    for part in loc:
        written = written[part] if _has(written, part) else None
    if isinstance(written, str) and "${" in written:
        value = written
    if kind == "extra_forbidden":
        near = difflib.get_close_matches(str(loc[-1]), _fields_at(loc[:-1]), 1, 0.5)
        return f"unknown field {str(loc[-1])!r}; " + (f"did you mean {near[0]!r}?" if near else "remove it")
    if kind == "missing":
        return "is missing; add it"
    shown = repr(value) if len(repr(value)) <= 60 else repr(value)[:57] + "..."
    if kind == "value_error":
        return f"{ctx.get('error', error['msg'])}" + ("" if isinstance(value, Mapping) else f"; got {shown}")
    if kind == "string_pattern_mismatch":
        return f"{shown} does not match {ctx['pattern']}; change it"
    if kind == "string_type":
        hint = "" if isinstance(value, dict | list | None) else " (put it in quotes)"
        return f"should be text{hint}; got {shown}"
    if kind in ("model_type", "dict_type"):
        return f"should be a block of fields; got {shown}"
    if kind == "tuple_type":
        return f"should be a list; got {shown}"
    if kind in ("union_tag_invalid", "union_tag_not_found"):
        return f"kind should be one of 'uniform', 'log_uniform', 'int', 'categorical'; got {shown}"
    message = error["msg"].removeprefix("Input s").replace("hould be", "should be", 1)
    return f"{message}; got {shown}"


def _has(value: Any, part: str | int) -> bool:
    if isinstance(value, dict):
        return part in value
    return isinstance(value, list) and isinstance(part, int) and part < len(value)


def _fields_at(loc: Loc) -> list[str]:
    """Names of the fields of the block at `loc`, for suggestions."""
    model: Any = Project
    for part in loc:
        if isinstance(part, int):
            continue
        field = getattr(model, "model_fields", {}).get(part)
        if field is None:
            return []
        model = next((m for m in _models_in(field.annotation)), None)
        if model is None:
            return []
    return list(model.model_fields)


def _models_in(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for arg in getattr(annotation, "__args__", ()):
        yield from _models_in(arg)


def _place(loc: Loc, lines: Mapping[Loc, tuple[str, int]], label: str) -> tuple[str, int]:
    """File and line of the innermost thing around `loc` that stands in a file."""
    return next((lines[loc[:i]] for i in range(len(loc), -1, -1) if loc[:i] in lines), (label, 1))


def _read_yaml(file: Path, lines: dict[Loc, tuple[str, int]]) -> dict[str, Any]:
    try:
        text = file.read_text(encoding="utf-8")
    except OSError as exc:
        raise ConfigError(str(file), (f"{file}: cannot be read ({exc.strerror}); check the path",)) from exc
    except UnicodeDecodeError as exc:
        raise ConfigError(
            str(file), (f"{file}:1: is not UTF-8 text ({exc.reason} at byte {exc.start}); save it as UTF-8",)
        ) from exc
    try:
        node = yaml.compose(text, Loader=yaml.SafeLoader)
        content = yaml.safe_load(text)
    except yaml.YAMLError as exc:
        mark = getattr(exc, "problem_mark", None)
        line = mark.line + 1 if mark else 1
        detail = getattr(exc, "problem", None) or " ".join(str(exc).split())
        raise ConfigError(str(file), (f"{file}:{line}: not YAML: {detail}; check indentation and quotes",)) from exc
    repeated: list[str] = []
    if node is not None:
        _index_lines(node, (), str(file), lines, repeated)
    if repeated:
        raise ConfigError(str(file), tuple(repeated))
    if not isinstance(content, dict):
        raise ConfigError(str(file), (f"{file}:1: must be a mapping of fields, like configs/quickstart.yaml",))
    return content


def _index_lines(node: yaml.Node, loc: Loc, file: str, lines: dict[Loc, tuple[str, int]], repeated: list[str]) -> None:
    if loc or loc not in lines:  # what is missing at the top is missing from the base file, not from an overlay
        lines[loc] = (file, node.start_mark.line + 1)
    if isinstance(node, yaml.MappingNode):
        seen: set[str] = set()
        for key, value in node.value:
            at = (*loc, key.value)
            if key.value in seen:
                repeated.append(f"{file}:{key.start_mark.line + 1}: {'.'.join(map(str, at))}: stands twice; remove one")
            seen.add(key.value)
            _index_lines(value, at, file, lines, repeated)
            lines[at] = (file, key.start_mark.line + 1)
    elif isinstance(node, yaml.SequenceNode):
        for stale in [k for k in lines if k[: len(loc)] == loc and k != loc]:
            del lines[stale]  # an overlay's list replaces the base's
        for i, item in enumerate(node.value):
            _index_lines(item, (*loc, i), file, lines, repeated)


def _merge(base: dict[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for key, value in over.items():
        old = merged.get(key)
        merged[key] = _merge(old, value) if isinstance(old, dict) and isinstance(value, Mapping) else value
    return merged


def _expand(value: Any, env: Mapping[str, str], loc: Loc, problems: list[tuple[Loc, str]]) -> Any:
    """`value` with every `${NAME}` replaced from `env`; names that are not set are added to `problems`."""
    if isinstance(value, dict):
        return {k: _expand(v, env, (*loc, k), problems) for k, v in value.items()}
    if isinstance(value, list):
        return [_expand(v, env, (*loc, i), problems) for i, v in enumerate(value)]
    if not isinstance(value, str):
        return value

    def replacement(match: re.Match[str]) -> str:
        name = match[1]
        if not re.fullmatch(r"\w+", name):
            problems.append((loc, f"{match[0]!r} is not understood; write ${{NAME}}, there are no defaults"))
        elif not env.get(name):
            state = "is empty" if name in env else "is not set"
            problems.append((loc, f"environment variable {name} {state}; export {name}=..."))
        return env.get(name) or match[0]

    return re.sub(r"\$\{([^}]*)\}", replacement, value)
