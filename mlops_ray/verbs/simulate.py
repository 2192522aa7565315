"""`simulate`: recorded history lived through the real loop in virtual time. Needs no cluster."""

from __future__ import annotations

import importlib
import itertools
import json
import tempfile
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from mlops_ray.config import Project, load_project
from mlops_ray.errors import ConfigError, DataError
from mlops_ray.verbs import Env, Paths, Progress

if TYPE_CHECKING:
    import pyarrow as pa

    from mlops_ray.simulation.training import Candidate


def simulate(
    paths: Paths,
    env: Env,
    on_progress: Progress = lambda stage, done, total: None,
    *,
    data: str | None = None,
    label_time: str | None = None,
    label_lag_s: float = 0.0,
    start: str | None = None,
    until: str | None = None,
    settings: Sequence[str] = (),
) -> dict[str, Any]:
    """Live through recorded history, once for every combination of `settings`; `runs` has a result each.

    Args: data: a Parquet or CSV file or `module:function` that returns an Arrow table; None: the newest prepared
        dataset version. label_time, label_lag_s: see `simulation.history`. start, until: days (UTC) between which there
        is traffic; start defaults to `retraining.window_s` after the first row. settings: `field=value`, or several
        values to compare, `field=0.5,1,2`.
    Raises: ConfigError, DataError.
    """
    from mlops_ray.data import lake
    from mlops_ray.data.lineage import last_prepared
    from mlops_ray.simulation.history import history

    chosen = [tuple(one) for one in itertools.product(*(_values(setting) for setting in settings))]
    projects = [load_with(paths, env, one) for one in chosen]
    project = projects[0]
    if data is not None:
        table = _table(data)
    else:
        dataset = last_prepared(project.storage.path("data", project.project))
        if dataset is None:
            raise DataError(project.project, "has no dataset version; run `mlops-ray prepare`, or give --data FILE")
        table = lake.read(dataset, [column.name for column in project.columns])
    lived = history(project, table, lag_s=label_lag_s, label_time=label_time)
    if not len(lived.times):
        raise DataError("--data", "holds no rows")
    block_s = project.monitoring.block_s
    first = lived.times[0] + project.retraining.window_s if start is None else _at(start)
    begins = first // block_s * block_s
    ends = (lived.times[-1] // block_s + 1) * block_s if until is None else _at(until) // block_s * block_s
    if ends <= begins:
        raise DataError("--start", f"begins {_day(begins)}, and the rows end {_day(ends)}; begin earlier")
    known: dict[str, Candidate] = {}
    runs = []
    with tempfile.TemporaryDirectory() as folder:
        for number, (one, each) in enumerate(zip(chosen, projects, strict=True)):
            runs.append(_run(each, lived, Path(folder) / str(number), known, begins, ends, on_progress))
            runs[-1]["settings"] = list(one)
    return {"project": project.project, "data": data, "runs": runs}


def _run(
    project: Project,
    lived: Any,
    folder: Path,
    known: dict[str, Candidate],
    begins: float,
    ends: float,
    on_progress: Progress,
) -> dict[str, Any]:
    from mlops_ray.simulation.loop import Loop, first_version
    from mlops_ray.simulation.result import result
    from mlops_ray.state import Store
    from mlops_ray.training.recipe import shaping

    began = time.perf_counter()
    folder.mkdir()
    body = project.model_dump(mode="json", include={"gates", "monitoring", "serving"})
    same = json.dumps([shaping(project), body["gates"], body["serving"], body["monitoring"]["block_s"]], sort_keys=True)
    if same not in known:
        on_progress("first version", 0, 1)
        known[same] = first_version(project, lived, folder, start=begins)
        on_progress("first version", 1, 1)
    store = Store.open(f"sqlite:///{folder}/state.db")
    try:
        loop = Loop(project, lived, store, folder, known[same], start=begins)
        loop.until(ends, on_progress)
        found = result(loop, begins, ends)
    finally:
        store.close()
    seconds = time.perf_counter() - began
    return found | {"seconds": round(seconds, 1), "times_life": round((ends - begins) / seconds)}


def _values(setting: str) -> list[str]:
    """`field=0.5,1` as two settings. Raises: ConfigError."""
    name, given, value = setting.partition("=")
    if not given:
        raise ConfigError("--set", (f"{setting!r} is no setting; write monitoring.false_alarms_per_month=0.5",))
    try:
        found = yaml.safe_load(f"[{value}]")
    except yaml.YAMLError as exc:
        raise ConfigError("--set", (f"{setting!r} has a value that is no YAML: {exc}",)) from exc
    return [f"{name}={json.dumps(one)}" for one in found]


def _table(data: str) -> pa.Table:
    import pyarrow.csv
    import pyarrow.parquet

    module, colon, function = data.partition(":")
    path = Path(data)
    if colon and not path.exists():
        try:
            table: pa.Table = getattr(importlib.import_module(module), function)()
        except (ImportError, AttributeError) as exc:
            raise DataError("--data", f"{data} cannot be imported ({exc}); write module:function or a file") from exc
        return table
    if not path.is_file():
        raise DataError("--data", f"there is no file {data}")
    if path.suffix == ".csv":
        return pyarrow.csv.read_csv(path)
    return pyarrow.parquet.read_table(path)


def _at(day: str) -> float:
    try:
        return datetime.fromisoformat(day).replace(tzinfo=UTC).timestamp()
    except ValueError as exc:
        raise DataError("--start, --until", f"{day!r} is no day; write 2013-03-01") from exc


def _day(at: float) -> str:
    return datetime.fromtimestamp(at, UTC).strftime("%Y-%m-%d")


def load_with(paths: Paths, env: Env, settings: Sequence[str]) -> Project:
    """The project that the files describe, with fields replaced: `monitoring.false_alarms_per_month=0.5`.

    Raises: ConfigError for a setting that is none, and what loading a project raises."""
    if not settings:
        return load_project(paths, env=env)
    overlay: dict[str, Any] = {}
    for setting in settings:
        name, given, value = setting.partition("=")
        *blocks, field = name.strip().split(".")
        if not given or not field or not all(blocks):
            raise ConfigError("--set", (f"{setting!r} is no setting; write monitoring.false_alarms_per_month=0.5",))
        place = overlay
        for block in blocks:
            place = place.setdefault(block, {})
        place[field] = yaml.safe_load(value)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "settings.yaml"
        file.write_text(yaml.safe_dump(overlay), encoding="utf-8")
        return load_project([*paths, file], env=env)
