"""The loop over a real state database: what only shows when its parts work together."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from threadpoolctl import threadpool_limits

from mlops_ray.data.profile import Bins, fold
from mlops_ray.errors import BackendUnavailable
from mlops_ray.monitoring.loop import Point
from mlops_ray.monitoring.multivariate import Told
from tests.monitors import BLOCK_S, MONITORING, START, N, Run, Story


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    with threadpool_limits(1):
        yield


def windows(run: Run) -> list[Any]:
    found = run.left_behind()["windows"]
    run.world.store.close()
    return [w for w in found if w[0] < w[1]]


def test_the_classifier_is_asked_on_schedule_and_its_alarm_is_a_reason_to_retrain(tmp_path: Path) -> None:
    asked: list[dict[str, Any]] = []

    def told(known: Any, known_blocks: Any, live: Any, live_blocks: Any, **plan: Any) -> Told:
        asked.append({"live": live.shape, "blocks": len(set(live_blocks.tolist())), "level": plan["alarm_level"]})
        return Told(0.7, 0.01, True, "a classifier tells the rows")

    plan = MONITORING | {"multivariate_s": 4 * BLOCK_S}
    run = Run(Story(n_blocks=9, project={"monitoring": plan}, tell=told), f"sqlite:///{tmp_path}/state.db")
    run.tell()
    left = run.left_behind()
    found = {(w[0] - START, w[1] - START): w[3] for w in left["windows"] if "multivariate" in w[3]}
    run.world.store.close()
    assert set(found) == {(0.0, 4 * BLOCK_S), (4 * BLOCK_S, 8 * BLOCK_S)}
    assert asked[0] == {"live": (4 * N, 2), "blocks": 4, "level": pytest.approx(80 * 0.04 * 4 / 730.5)}
    entry = next(iter(found.values()))["multivariate"]
    assert (entry["alarm"], entry["auc"], entry["p"]) == (True, 0.7, 0.01)
    assert ("drift", "a classifier tells the rows") in [(r[0], r[1]) for r in left["retrains"]]


def test_the_classifier_holds_up_no_tick_and_is_asked_anew_when_its_answer_is_lost(tmp_path: Path) -> None:
    asked, answers = list[Any](), list[Told | None]()

    def ask(*rows: Any, **plan: Any) -> Any:
        asked.append(plan["rng"].random())
        return lambda: answers.pop(0)

    plan = MONITORING | {"multivariate_s": 4 * BLOCK_S}
    run = Run(Story(n_blocks=6, project={"monitoring": plan}, ask=ask), f"sqlite:///{tmp_path}/state.db")
    answers += [None] * 100
    run.tell()
    left = run.left_behind()
    assert len(asked) == 1
    assert [w[0] for w in left["windows"] if "drift" in w[3]]  # judged meanwhile
    assert not [w for w in left["windows"] if "multivariate" in w[3]]
    run._loop = run._new()  # the answer is lost with the one who waited for it
    answers[:] = [None, Told(0.7, 0.01, True, "a classifier tells the rows")]
    run._loop.tick()
    assert len(asked) == 2
    assert asked[0] == asked[1]
    run._loop.tick()
    found = [w[3]["multivariate"] for w in windows(run) if "multivariate" in w[3]]
    assert [(entry["alarm"], entry["at"] - START) for entry in found] == [(True, 4 * BLOCK_S)]


def test_a_task_that_fails_is_asked_anew_and_holds_up_nothing_else(tmp_path: Path) -> None:
    answers: list[Any] = [BackendUnavailable("the task", "died"), Told(0.5, 0.9, False, "it does not")]

    def told() -> Told:
        found: Any = answers.pop(0)
        if isinstance(found, Exception):
            raise found
        return Told(**vars(found))

    plan = MONITORING | {"multivariate_s": 4 * BLOCK_S}
    story = Story(n_blocks=4, project={"monitoring": plan}, ask=lambda *rows, **plan: told)
    run = Run(story, f"sqlite:///{tmp_path}/state.db")
    with pytest.raises(BackendUnavailable):
        run.tell()
    assert run.left_behind()["judged"].at == START + 4 * BLOCK_S
    run._loop.tick()
    assert [w[3]["multivariate"]["why"] for w in windows(run) if "multivariate" in w[3]] == ["it does not"]


def test_an_answer_about_a_version_that_is_not_stable_any_more_asks_for_nothing(tmp_path: Path) -> None:
    answers: list[Told | None] = [None] * 100
    plan = MONITORING | {"multivariate_s": 4 * BLOCK_S}
    story = Story(n_blocks=6, project={"monitoring": plan}, ask=lambda *rows, **plan: lambda: answers.pop(0))
    run = Run(story, f"sqlite:///{tmp_path}/state.db")
    run.tell()
    with run.world.store.begin() as tx:
        tx.save_version(replace(tx.version("small", 1), version=2))
        tx.save_serving("small", {"stable": {"version": 2}, "share": 0.0}, 0)
    answers[:] = [Told(0.7, 0.01, True, "a classifier tells the rows")]
    run._loop.tick()
    left = run.left_behind()
    entry = next(w[3]["multivariate"] for w in windows(run) if "multivariate" in w[3])
    assert entry["decision"] == "v1 is not stable any more"
    assert not [r for r in left["retrains"] if "a classifier" in r[1]]


def test_windows_by_rows_are_judged_once_each_and_matured(tmp_path: Path) -> None:
    plan = MONITORING | {"window_rows": 2 * N}
    run = Run(Story(n_blocks=9, project={"monitoring": plan}), f"sqlite:///{tmp_path}/state.db")
    run.tell()
    found = [w for w in windows(run) if "drift" in w[3]]
    starts = sorted((w[0] - START) / BLOCK_S for w in found)
    assert starts == [0, 2, 4, 6]
    assert [(w[1] - w[0]) / BLOCK_S for w in found] == [2] * 4
    assert sorted((w[0] - START) / BLOCK_S for w in found if "quality" in w[3]) == [0, 2, 4]
    assert all("estimated" in w[3] for w in found)


def test_a_loop_without_news_writes_nothing(tmp_path: Path) -> None:
    passed: list[Point] = []
    run = Run(Story(n_blocks=5), f"sqlite:///{tmp_path}/state.db", passed.append)
    run.tell()
    passed.clear()
    run._loop.tick()
    run.world.store.close()
    assert passed == ["considered"]


def test_rows_over_other_features_are_left_out_of_a_window_and_told(tmp_path: Path) -> None:
    """Of a version that was stable for a while and had fewer features: the window is judged by the others."""
    run = Run(Story(n_blocks=9), f"sqlite:///{tmp_path}/state.db")
    other = fold(Bins({"x": (0.0,)}, {}), {"x": np.zeros(7, dtype=np.float32)}).to_dict()
    with run.world.store.begin() as tx:
        tx.save_profile("small", 2, START + BLOCK_S, other)
    run.tell()
    drift = {round((w[0] - START) / BLOCK_S): w[3]["drift"] for w in windows(run) if "drift" in w[3]}
    assert (drift[0]["rows"], drift[0]["left_out"]) == (4 * N, 7)
    assert drift[0]["why"].endswith("; 7 rows were counted over other features, and are left out")
    assert (drift[4]["rows"], "left_out" in drift[4]) == (4 * N, False)
