from __future__ import annotations

import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ray

from mlops_ray.config import Search, Task
from mlops_ray.errors import ConfigError, DataError
from mlops_ray.training.search.on_tune import Found, search
from mlops_ray.training.search.trials import FoldData, TrialEnded

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("ray_local")]

TROUBLED = "tests.integration.training.troubled:Troubled"
ROOT = Path(__file__).parents[3]


def fold(task: Task = "binary", *, seed: int = 0, weights: bool = False) -> FoldData:
    rng = np.random.default_rng(seed)
    matrix = rng.normal(size=(600, 4))
    signal_ = matrix[:, 0] + matrix[:, 1] * matrix[:, 2] + rng.normal(size=600)
    y = {"binary": (signal_ > 0) * 1, "multiclass": np.digitize(signal_, [-1, 1]), "regression": signal_}[task]
    return FoldData(matrix, 400, y, rng.uniform(0.5, 2, 600) if weights else None)


def troubled(*ways: str, **more: Any) -> dict[str, Any]:
    """One candidate for each way to go wrong, and a good one."""
    listed = [{"estimator": TROUBLED, "params": {"trouble": way}} for way in ways]
    good = {"estimator": TROUBLED, "params": {"say": 0.55}}
    return {"trials": len(ways) + 1, "max_s": 120, "candidates": [*listed, good], **more}


def run(root: Path, plan: dict[str, Any], task: Task = "binary", *folds: FoldData, **more: Any) -> Found:
    wanted = Search.model_validate(plan)
    return search(wanted, task, folds or (fold(task),), seed=1, storage=str(root), name="search", **more)


FOREST = {"estimator": "random_forest", "params": {"n_estimators": 20}}
BOOSTING = {"estimator": "hist_gradient_boosting", "params": {"max_iter": 40}}
SMALL: dict[str, Any] = {"trials": 14, "max_s": 300, "candidates": ["linear", FOREST, BOOSTING]}


def essence(trials: tuple[TrialEnded, ...]) -> list[Any]:
    return [(t.number, t.choice, t.status, t.score, t.steps, t.rungs) for t in trials]


def test_a_search_repeats_keeps_its_trials_and_runs_none_again(tmp_path: Path) -> None:
    told: list[TrialEnded] = []
    progress: list[tuple[str, int, int]] = []
    found = run(tmp_path / "a", SMALL, on_trial=told.append, on_progress=lambda *at: progress.append(at))
    again = run(tmp_path / "b", SMALL)
    assert essence(again.trials) == essence(found.trials)
    assert (again.choice, again.score) == (found.choice, found.score)
    assert {t.choice.candidate for t in found.trials} == {0, 1, 2}
    assert found.score == min(t.score for t in found.trials if t.status == "done" and t.score is not None)
    assert found.choice.params.get("max_iter") == found.rounds or found.choice.candidate != 2
    assert sorted(t.number for t in told) == list(range(14))
    assert progress[0] == ("search", 0, 14)
    assert progress[-1] == ("search", 14, 14)
    kept = sorted((tmp_path / "a/search/trials").iterdir())
    assert [TrialEnded.from_json(path.read_text(encoding="utf-8")) for path in kept] == list(found.trials)
    third = run(tmp_path / "a", SMALL, on_trial=told.append)
    assert essence(third.trials) == essence(found.trials)
    assert len(told) == 14
    more = run(tmp_path / "a", {**SMALL, "trials": 16}, on_trial=told.append)
    assert essence(more.trials[:14]) == essence(found.trials)
    assert len(told) == 16


def test_a_search_goes_on_past_trials_that_raise_exit_run_out_of_memory_or_hang(tmp_path: Path) -> None:
    """And past one that writes to the shared rows, which it cannot."""
    ways = ("raises", "exits", "memory", "hangs", "writes")
    found = run(tmp_path, troubled(*ways, trial_max_s=5))
    assert found.choice.params == {"say": 0.55}
    assert found.score < 0.7
    reasons = {t.choice.params["trouble"]: t.error or "" for t in found.trials if t.status == "failed"}
    assert set(reasons) == set(ways)
    assert reasons["raises"] == "RuntimeError: cannot learn this"
    assert "its process died" in reasons["exits"]
    assert "MemoryError" in reasons["memory"]
    assert reasons["hangs"] == "took longer than search.trial_max_s = 5 s"
    assert "read-only" in reasons["writes"]
    assert len(list((tmp_path / "search/trials").iterdir())) == len(ways) + 1


def test_when_nothing_succeeds_the_first_reason_is_said(tmp_path: Path) -> None:
    plan = troubled("raises")
    with pytest.raises(DataError, match="no trial succeeded; RuntimeError: cannot learn this"):
        run(tmp_path, {**plan, "trials": 1, "candidates": plan["candidates"][:1]})


def test_the_seconds_end_a_search_in_the_middle_of_a_trial(tmp_path: Path) -> None:
    began = time.monotonic()
    slow = {"estimator": TROUBLED, "params": {"pause_s": 60}}
    quick = {"estimator": TROUBLED, "params": {"say": 0.55}}
    found = run(tmp_path, {"trials": 20, "max_s": 20, "candidates": [quick, slow]})
    assert time.monotonic() - began < 50
    assert found.choice.params == {"say": 0.55}
    (cut,) = [t for t in found.trials if t.cut_short]
    assert (cut.status, cut.score) == ("stopped", None)
    assert "search.max_s" in (cut.error or "")
    assert len(list((tmp_path / "search/trials").iterdir())) == 1  # it will run again when this is resumed


def test_each_lane_has_one_thread(tmp_path: Path) -> None:
    path = "tests.integration.training.troubled:Threads"
    found = run(tmp_path, {"trials": 1, "candidates": [{"estimator": path}]})
    assert found.score == pytest.approx(-np.mean([math.log(0.1 if y else 0.9) for y in fold().y[400:]]))


@pytest.mark.parametrize("task", ["multiclass", pytest.param("regression", marks=pytest.mark.slow)])
def test_folds_and_weights_of_other_tasks(tmp_path: Path, task: Task) -> None:
    folds = [fold(task, seed=seed, weights=True) for seed in (1, 2)]
    plan = {"trials": 4, "max_s": 300, "candidates": ["linear", FOREST, BOOSTING]}
    if task == "multiclass":
        plan |= {"class_weight": {"low": 2.0}}
    found = run(tmp_path, plan, task, *folds, classes=("low", "middle", "high"))
    assert [t.status for t in found.trials] == ["done"] * 4
    assert found.score < (1.05 if task == "multiclass" else 1.7)


def test_callbacks_of_others_hear_of_every_trial(tmp_path: Path) -> None:
    callback = "tests.integration.training.troubled:Recorder"
    heard = tmp_path / "heard.txt"
    plan = {**troubled(), "callbacks": [{"callback": callback, "options": {"path": str(heard)}}]}
    found = run(tmp_path, plan)
    assert heard.read_text(encoding="utf-8") == f"0 {found.score:.4f}\n"
    wrong = {**plan, "callbacks": [{"callback": callback, "options": {"file": "x"}}]}
    with pytest.raises(ConfigError, match="Recorder cannot be made"):
        run(tmp_path / "other", wrong)


def test_what_the_listener_raises_ends_the_search_and_arrives(tmp_path: Path) -> None:
    def refuse(trial: TrialEnded) -> None:
        raise LookupError(trial.number)

    with pytest.raises(LookupError):
        run(tmp_path, {**troubled(), "trials": 1}, on_trial=refuse)
    assert len(list((tmp_path / "search/trials").iterdir())) == 1  # it was kept before it was told


@pytest.mark.parametrize(
    ("task", "y", "message"),
    [
        ("binary", np.zeros(600, dtype=int), "all 400 rows of the train side have one class"),
        ("regression", np.full(600, 2.5), "all 400 rows of the train side have one value"),
    ],
)
def test_labels_that_teach_nothing_are_refused_before_the_search(
    tmp_path: Path, task: Task, y: Any, message: str
) -> None:
    with pytest.raises(DataError, match=message):
        run(tmp_path, {"trials": 1, "candidates": ["linear"]}, task, FoldData(fold().matrix, 400, y))
    with pytest.raises(DataError, match="the validation side has no rows"):
        run(tmp_path, {"trials": 1, "candidates": ["linear"]}, "binary", FoldData(fold().matrix, 600, fold().y))


DRIVER = """
import sys
import ray
from mlops_ray.config import Search
from tests.integration.training.test_search import TROUBLED, fold
from mlops_ray.training.search.on_tune import search
ray.init(address=sys.argv[1], log_to_driver=False)
space = {"say": {"kind": "uniform", "low": 0.3, "high": 0.7}}
params = {"log": sys.argv[3], "pause_s": 0.3}
plan = Search.model_validate(
    {"trials": 20, "max_s": 300, "candidates": [{"estimator": TROUBLED, "params": params, "space": space}]}
)
found = search(plan, "binary", [fold()], seed=1, storage=sys.argv[2], name="search")
print(len(found.trials), found.score)
"""


def test_a_driver_that_is_killed_resumes_and_runs_no_finished_trial_twice(tmp_path: Path) -> None:
    log, kept = tmp_path / "log.txt", tmp_path / "search/trials"
    address = ray.get_runtime_context().gcs_address
    command = [sys.executable, "-c", DRIVER, address, str(tmp_path), str(log)]
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    first = subprocess.Popen(command, env=env, cwd=ROOT)
    deadline = time.monotonic() + 120
    while not (kept.is_dir() and len(list(kept.glob("*.json"))) >= 6):
        assert first.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.05)
    os.kill(first.pid, signal.SIGKILL)
    first.wait()
    finished = [TrialEnded.from_json(p.read_text(encoding="utf-8")) for p in sorted(kept.glob("*.json"))]
    assert 6 <= len(finished) < 20
    time.sleep(2)  # the lanes of the dead driver end
    done = subprocess.run(command, env=env, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.split()[0] == "20"
    fitted = [float(line) for line in log.read_text(encoding="utf-8").splitlines()]
    for trial in finished:
        assert fitted.count(trial.choice.params["say"]) == 1
    assert len(set(fitted)) == 20  # what was cut off was run again, at the same point
    assert len(fitted) <= 20 + 2
