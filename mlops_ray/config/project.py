"""The whole project file, and the rules that span its blocks."""

from __future__ import annotations

import difflib
import importlib.util
import ipaddress
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Literal, get_args

from pydantic import Field, model_validator

from mlops_ray.config.about import About
from mlops_ray.config.alerts import Alerts, alert_checks
from mlops_ray.config.analyses import OF_TASK
from mlops_ray.config.base import DAY_S, DTYPES, Config, Name
from mlops_ray.config.expectations import expectation_checks
from mlops_ray.config.expressions import KINDS, parse
from mlops_ray.config.features import Categorical, Datetime, Features, Text, hashed_names
from mlops_ray.config.operation import Capture, Cluster, Monitoring, Retraining, Serving, Storage
from mlops_ray.config.rollout import RolloutPlan
from mlops_ray.config.sources import Source
from mlops_ray.config.training import TASK_METRICS, Gates, Metric, Search, Split
from mlops_ray.config.validation import Column, Validation

Task = Literal["binary", "multiclass", "regression"]

Environment = Literal["training", "serving"]
"""Where rows are used: they have a target in training and none in serving."""


class Project(Config):
    """One prediction task, from its sources to its retraining."""

    project: Name
    """Name of the registered model and first segment of the URL."""
    task: Task
    target: str
    """Column with the label: 0 or 1 (binary), a text or whole number (multiclass), a number (regression)."""
    key: str
    """Column that identifies the row's subject: assignment to a version sticks to it."""
    event_time: str
    """Column with the row's time: training splits and windows follow it."""
    seed: int = 0
    about: About = About()
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
    alerts: Alerts = Alerts()

    @model_validator(mode="after")
    def _fits_together(self) -> Project:
        found = [f"{'.'.join(map(str, loc))}: {what}" for loc, what in cross_checks(self.model_dump(mode="json"))]
        if found:
            raise ValueError("; ".join(found))
        return self

    def column(self, name: str) -> Column:
        """The column called `name`. Raises KeyError when there is none."""
        return next(c for c in self.columns if c.name == name)

    def columns_in(self, environment: Environment) -> tuple[Column, ...]:
        """Columns that rows must have there, in the file's order.

        Training takes all of them. Serving (requests, rows to score) has key, time and features; never the target,
        which nobody knows yet.
        """
        if environment == "training":
            return self.columns
        wanted = {self.key, self.event_time, *self.features.inputs}
        return tuple(c for c in self.columns if c.name in wanted)


Loc = tuple[str | int, ...]


def cross_checks(raw: Mapping[str, Any]) -> Iterator[tuple[Loc, str]]:
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

    yield from known(("target",), raw.get("target"), _TARGETS.get(str(raw.get("task")), DTYPES))
    yield from known(("key",), raw.get("key"), ("string", "int"))
    yield from known(("event_time",), raw.get("event_time"), ("timestamp",))
    roles = [raw.get(role) for role in ("target", "key", "event_time")]
    for i, column in listed:
        if column.get("required") is False and column["name"] in roles:
            role = ("target", "key", "event_time")[roles.index(column["name"])]
            yield ("columns", i, "required"), f"the {role} cannot be absent; remove it"
    yield from _features(raw, dtypes, known)
    used = _inputs(raw)
    block = raw.get("validation")
    validation: Mapping[str, Any] = block if isinstance(block, Mapping) else {}
    for i, name in enumerate(_items(validation.get("unique"))):
        yield from known(("validation", "unique", i), name, DTYPES)
    split = raw.get("split")
    for i, name in enumerate(_items(split.get("group") if isinstance(split, Mapping) else None)):
        yield from known(("split", "group", i), name, ("string",) if name != raw.get("key") else DTYPES)
        if dtypes.get(str(name)) == "string" and name not in (raw.get("key"), *used):
            # Numbers are logged as float32, and what is no feature is not logged: retrained rows would change sides.
            says = f"{name!r} is no part of a request, so a retrain could not split by it; make it the key or a feature"
            yield ("split", "group", i), says
    for loc, what in expectation_checks(_items(validation.get("expectations")), dtypes, known):
        yield ("validation", "expectations", *loc), what
    yield from _training(raw, known)
    yield from _rollout(raw, used, known)
    yield from _sources_are_there(("source",), raw.get("source"))
    yield from _storage_fits_cluster(raw)
    yield from _times_and_ports(raw)
    yield from _access(raw)
    yield from _captured(raw, known)
    for loc, what in alert_checks(raw.get("alerts")):
        yield ("alerts", "rules", *loc), what


def _training(raw: Mapping[str, Any], known: Known) -> Iterator[tuple[Loc, str]]:
    """What `search:` and `gates:` may say about the task and the columns."""
    task, numbers = str(raw.get("task")), ("float", "int", "bool")
    search, gates = _mapping(raw.get("search")), _mapping(raw.get("gates"))
    for i, candidate in enumerate(_items(search.get("candidates"))):
        path = candidate.get("estimator") if isinstance(candidate, Mapping) else candidate
        package = {"xgboost": "xgboost", "lightgbm": "lightgbm"}.get(str(path), "sklearn")
        if isinstance(path, str) and path and not _importable(path if re.search("[.:]", path) else f"{package}:any"):
            name = re.split("[.:]", path)[0]
            yield (
                ("search", "candidates", i, "estimator"),
                f"package {name!r} is not installed; install it or fix the path",
            )
    yield from _parallel(search, _mapping(raw.get("retraining")))
    if search.get("sample_weight") is not None:
        yield from known(("search", "sample_weight"), search["sample_weight"], numbers)
    if task not in TASK_METRICS:
        return
    measures = {"classification": {"log_loss", "brier", "roc_auc", "pr_auc"}, "regression": {"rmse", "mae", "pinball"}}
    kind = "regression" if task == "regression" else "classification"
    if isinstance(search.get("metric"), str) and search["metric"] not in measures[kind]:
        says = f"{search['metric']!r} is no measure of a {task} task; take one of {', '.join(sorted(measures[kind]))}"
        yield ("search", "metric"), says
    if task != "binary" and search.get("threshold") is not None:
        yield ("search", "threshold"), f"a {task} task has no threshold; remove it"
    if kind == "regression":
        for name in ("class_weight", "calibrate"):
            if search.get(name) is not None and search[name] != "none":
                yield ("search", name), "a regression has no classes; remove it"
        for name in ("fairness", "calibration"):
            if gates.get(name) is not None:
                yield ("gates", name), "is for classification; remove it"
    for i, limit in enumerate(_items(gates.get("limits"))):
        metric = limit.get("metric") if isinstance(limit, Mapping) else None
        if metric in get_args(Metric) and metric not in TASK_METRICS[task]:
            says = f"{metric!r} is no metric of a {task} task; take one of {', '.join(sorted(TASK_METRICS[task]))}"
            yield ("gates", "limits", i, "metric"), says
    if task != "binary":
        validation = _mapping(raw.get("validation"))
        for i, expectation in enumerate(_items(validation.get("expectations"))):
            if _mapping(expectation).get("expect") == "label_share":
                yield ("validation", "expectations", i), f"label_share is of a binary target, not {task}; remove it"
    if task == "multiclass" and _items(_mapping(gates.get("robustness")).get("monotonic")):
        yield ("gates", "robustness", "monotonic"), "a multiclass task has a score per class; remove it"
    yield from _gate_columns(gates, known)
    if task != "binary" and _target_encoded(raw):
        yield ("features", "categorical"), f"`encode: target` needs a binary target, not {task}; encode otherwise"


def _rollout(raw: Mapping[str, Any], used: Sequence[str], known: Known) -> Iterator[tuple[Loc, str]]:
    """What `rollout:` may say about the task and the columns."""
    task = str(raw.get("task"))
    for i, analysis in enumerate(_items(_mapping(raw.get("rollout")).get("analyses"))):
        tasks, loc = OF_TASK.get(str(_mapping(analysis).get("metric"))), ("rollout", "analyses", i)
        if tasks and task in TASK_METRICS and task not in tasks:
            instead = "absolute_error" if task == "regression" else "log_loss, brier, accuracy or disagreement"
            yield (*loc, "metric"), f"{analysis['metric']!r} is no metric of a {task} task; take {instead}"
        column = _mapping(_mapping(analysis).get("where")).get("column")
        yield from known((*loc, "where", "column"), column, DTYPES)
        if isinstance(column, str) and used and column not in used and column in _names(raw):
            says = f"{column!r} is no input of the model, so the prediction log does not know it; take a feature"
            yield (*loc, "where", "column"), says
    if _mapping(raw.get("retraining")).get("refit") and _mapping(raw.get("rollout")).get("mode") == "immediate":
        says = "what is refitted is judged by its rollout, and rollout.mode is immediate; take canary, or remove it"
        yield ("retraining", "refit"), says


def _names(raw: Mapping[str, Any]) -> list[object]:
    return [_mapping(column).get("name") for column in _items(raw.get("columns"))]


def _parallel(search: Mapping[str, Any], retraining: Mapping[str, Any]) -> Iterator[tuple[Loc, str]]:
    """What data-parallel candidates (`workers` above 1) do not go with."""
    listed = [c.get("workers", 1) if isinstance(c, Mapping) else 1 for c in _items(search.get("candidates"))]
    several = [(i, workers) for i, workers in enumerate(listed) if isinstance(workers, int) and workers > 1]
    if not several:
        return
    if len(several) < len(listed):
        first = next(i for i, workers in enumerate(listed) if (i, workers) not in several)
        other = f"candidate {several[0][0]} has workers: {several[0][1]}"
        says = f"one process holds all rows for it, {other}; give each workers above 1, or none"
        yield ("search", "candidates", first), says
    for name in ("cross_validation", "calibrate", "threshold", "half_life_s"):
        if search.get(name) is not None and search[name] != "none":
            value = f"{search[name]!r} " if isinstance(search[name], str) else ""
            says = f"{value}needs all rows in one process, and candidates have workers above 1; remove it"
            yield ("search", name), says
    if retraining.get("refit"):
        says = "needs all rows in one process, and candidates have workers above 1; remove it"
        yield ("retraining", "refit"), says


def _gate_columns(gates: Mapping[str, Any], known: Known) -> Iterator[tuple[Loc, str]]:
    for name in ("slices", "fairness"):
        block = _mapping(gates.get(name))
        for i, column in enumerate(_items(block.get("columns"))):
            yield from known(("gates", name, "columns", i), column, ("string", "int", "bool", "float"))
    if gates.get("block_group") is not None:
        yield from known(("gates", "block_group"), gates["block_group"], ("string", "int", "bool"))
    block = _mapping(gates.get("robustness"))
    for i, rule in enumerate(_items(block.get("monotonic"))):
        if isinstance(rule, Mapping):
            loc: Loc = ("gates", "robustness", "monotonic", i, "column")
            yield from known(loc, rule.get("column"), ("float", "int", "bool"))


def _mapping(value: object) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _target_encoded(raw: Mapping[str, Any]) -> bool:
    try:
        return bool(Features.model_validate(raw.get("features")).target_encoded)
    except ValueError:
        return False


def _sources_are_there(loc: Loc, source: object) -> Iterator[tuple[Loc, str]]:
    """Rules about a source and those in it: their functions can be found."""
    if not isinstance(source, Mapping):
        return
    function = source.get("function")
    if isinstance(function, str) and function and not _importable(function):
        package = re.split("[.:]", function)[0]
        yield (*loc, "function"), f"package {package!r} cannot be found; fix the path or install it"
    for i, part in enumerate(_items(source.get("sources"))):
        yield from _sources_are_there((*loc, "sources", i), part)


_TARGETS = {
    "binary": ("int", "bool", "float"),
    "multiclass": ("string", "int"),
    "regression": ("float", "int"),
}
"""Dtypes of the target, by task."""

Known = Callable[[Loc, object, tuple[str, ...]], Iterator[tuple[Loc, str]]]


def _features(raw: Mapping[str, Any], dtypes: Mapping[str, object], known: Known) -> Iterator[tuple[Loc, str]]:
    """What `features:` may say about the columns that there are."""
    features = raw.get("features")
    if not isinstance(features, Mapping):
        return
    try:
        model: Features | None = Features.model_validate(features)
    except ValueError:
        model = None  # its own fields are complained of elsewhere
    derived = _derived(model) if model is not None else []
    target, any_used = raw.get("target"), bool(features.get("expressions"))
    for kind, wanted in _FEATURE_KINDS.items():
        for at, block in _blocks(features, kind):
            if kind == "custom":
                wanted = _FEATURE_KINDS[str(block.get("kind", "numeric"))] if block.get("kind") else wanted
                path = block.get("transformer")
                if isinstance(path, str) and path and not _importable(path):
                    package = re.split(r"[.:]", path)[0]
                    yield (*at, "transformer"), f"package {package!r} is not installed; install it or fix the path"
            used: list[object] = []
            for i, name in enumerate(_items(block.get("columns"))):
                loc: Loc = (*at, "columns", i)
                any_used = True
                if not (name in derived and wanted == _FEATURE_KINDS["numeric"]):
                    yield from known(loc, name, wanted)
                if name == target:
                    yield loc, "the target cannot be a feature; remove it here"
                elif name in used:
                    yield loc, f"feature {name!r} is listed twice; remove one"
                used.append(name)
    if not any_used:
        yield ("features",), "no features; list columns under numeric or categorical"
    if model is not None:
        yield from _derived_columns(model, derived, raw, dtypes, known)


_FEATURE_KINDS: dict[str, tuple[str, ...]] = {
    "numeric": ("float", "int", "bool"),
    "categorical": ("string",),
    "datetime": ("timestamp",),
    "text": ("string",),
    "custom": ("float", "int", "bool"),
}
"""Dtypes that each kind of block takes; a custom one says itself which of the first two it is like."""


def _blocks(features: Mapping[str, Any], kind: str) -> Iterator[tuple[Loc, Mapping[str, Any]]]:
    """Each block of a kind with its place, whether the file has one block or a list."""
    given = features.get(kind)
    if isinstance(given, Mapping):
        yield ("features", kind), given
    for i, block in enumerate(_items(given)):
        if isinstance(block, Mapping):
            yield ("features", kind, i), block


def _inputs(raw: Mapping[str, Any]) -> tuple[str, ...]:
    """Columns that the features read; none while `features:` is not sound."""
    try:
        return Features.model_validate(raw.get("features")).inputs
    except ValueError:
        return ()


def _derived(features: Features) -> list[str]:
    """Names of derived columns, as often as the blocks make them."""
    names = [n for times in features.datetime_blocks for column in times.columns for n in times.names(column)]
    hashed = [block for block in features.categorical_blocks if block.encode == "hash"]
    blocks: list[Categorical | Text] = [*hashed, *features.text_blocks]
    for block in blocks:
        names += [n for column in block.columns for n in hashed_names(column, block.n_buckets)]
    return [*names, *features.expressions]


def _derived_columns(
    features: Features, derived: Sequence[str], raw: Mapping[str, Any], dtypes: Mapping[str, object], known: Known
) -> Iterator[tuple[Loc, str]]:
    for name in dict.fromkeys(derived):
        if derived.count(name) > 1:
            yield ("features",), f"derived column {name!r} is made twice; give its column to one block"
        if name in dtypes:
            yield ("features",), f"derived column {name!r} has the name of a column; rename that one"
    for at, block in _blocks(raw["features"], "datetime"):
        since = Datetime.model_validate(block)
        if since.elapsed_since is not None and since.since_s is None:
            yield from known((*at, "elapsed_since"), since.elapsed_since, ("timestamp",))
    if not dtypes:
        return
    for name, text in features.expressions.items():
        loc: Loc = ("features", "expressions", name)
        try:
            found = parse(text, {column: str(dtype) for column, dtype in dtypes.items()})
        except ValueError as exc:
            yield loc, str(exc)
            continue
        if found.kind not in ("number", "bool"):
            yield loc, f"gives a {found.kind}; a feature is a number"
        if raw.get("target") in found.names:
            yield loc, "reads the target, which no request has; take it out"
        try:
            taken = features.model_copy(update={"expressions": {name: text}}).parsed[name][1]
        except ValueError as exc:
            yield loc, str(exc)
            continue
        for column, dtype in taken.items():
            if KINDS.get(str(dtypes[column])) != KINDS[dtype] and (dtype, dtypes[column]) != ("float", "bool"):
                yield (
                    loc,
                    f"takes {column!r} for a {KINDS[dtype]}, but it is a {dtypes[column]}; compare it with a constant",
                )


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


def _access(raw: Mapping[str, Any]) -> Iterator[tuple[Loc, str]]:
    host = str(_mapping(raw.get("cluster")).get("host", "127.0.0.1"))
    if _mapping(raw.get("serving")).get("auth", "off") == "off" and not _is_loopback(host):
        says = f"'off' answers everybody who reaches cluster.host {host}; set it to 'token', or listen on 127.0.0.1"
        yield ("serving", "auth"), says


def _is_loopback(host: str) -> bool:
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _captured(raw: Mapping[str, Any], known: Known) -> Iterator[tuple[Loc, str]]:
    """Personal data may be kept out of the log, but nothing that a later version is trained on."""
    capture, inputs = _mapping(raw.get("capture")), _inputs(raw)
    for name in ("drop", "hash"):
        for i, column in enumerate(_items(capture.get(name))):
            loc: Loc = ("capture", name, i)
            yield from known(loc, column, ("string", "int") if name == "hash" else DTYPES)
            if column in inputs:
                says = f"{column!r} is a feature: versions could not be trained on the log; take it out of features"
                yield loc, f"{says}, or transform it before it is sent and stored"
            elif name == "drop" and column == raw.get("event_time"):
                yield loc, f"{column!r} dates the rows, which the log cannot do without"


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
