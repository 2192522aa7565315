"""A training whose driver dies in mid-search goes on by `train --resume`, from the command line."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest
import yaml
from mlflow import MlflowClient

from mlops_ray.config import Project
from mlops_ray.data.on_ray import prepare
from tests.integration.training.test_tasks import body, table

pytestmark = pytest.mark.ray

TRIALS = 8
SLOW = {"estimator": "hist_gradient_boosting", "params": {"max_iter": 400, "max_leaf_nodes": 63, "min_samples_leaf": 5}}


@pytest.fixture
def file(ray_local: None, tmp_path: Path) -> Path:
    """A project file whose trials take long enough to be caught, and a dataset version."""
    import pyarrow.parquet as pq

    pq.write_table(table("binary", n=20_000), tmp_path / "rows.parquet")
    search = {"trials": TRIALS, "early_stopping": None}
    written = body(tmp_path, "binary", [SLOW], search=search, gates={"limits": []})
    prepare(Project.model_validate(written), now=0.0)
    path = tmp_path / "project.yaml"
    path.write_text(yaml.safe_dump(written))
    return path


def command(file: Path, *more: str) -> list[str]:
    return [sys.executable, "-m", "mlops_ray", "train", "-c", str(file), "--json", *more]


@pytest.mark.slow  # test_search.py kills a driver at every run
@pytest.mark.parametrize(
    "how",
    [pytest.param(signal.SIGKILL, id="kill -9"), pytest.param(signal.SIGINT, id="Ctrl-C")],
)
def test_a_search_goes_on_where_its_driver_died(file: Path, how: signal.Signals) -> None:
    root = file.parent
    first = subprocess.Popen(command(file), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 240
    while len(kept := set(root.glob("search/of_binary/*/trials/*.json"))) < 2:
        assert first.poll() is None, first.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.02)
    os.kill(first.pid, how)
    _, said = first.communicate()
    assert first.returncode == (-signal.SIGKILL if how is signal.SIGKILL else 130)
    assert how is signal.SIGKILL or "train --resume" in said
    before = {path.name: path.stat().st_mtime_ns for path in kept}
    assert len(before) < TRIALS
    done = subprocess.run(command(file, "--resume"), capture_output=True, text=True, check=False)
    assert done.returncode in (0, 3), done.stderr
    # What was finished was not run again.
    for path in kept:
        assert path.stat().st_mtime_ns == before[path.name]
    client = MlflowClient(f"sqlite:///{root / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("of_binary")
    runs = client.search_runs([experiment.experiment_id])
    assert not [run.info.run_id for run in runs if run.info.status == "RUNNING"]
    parents = [run for run in runs if "mlflow.parentRunId" not in run.data.tags]
    assert [run.info.status for run in parents] == ["FINISHED"]
    numbers = Counter(
        run.data.tags["mlops_ray.trial"] for run in runs if run.data.tags.get("outcome") in ("done", "stopped early")
    )
    assert numbers == Counter(str(number) for number in range(TRIALS))


def test_nothing_to_resume_is_said(file: Path) -> None:
    done = subprocess.run(command(file, "--resume"), capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "no interrupted search over the same rows with the same settings" in done.stderr
