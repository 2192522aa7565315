"""What a replica answers for each task, and the finer choices: thresholds, versions asked for by number, shadows,
threads, explanations."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

import numpy as np
import pytest

from mlops_ray.data.profile import Bins, fold
from mlops_ray.errors import BackendUnavailable, BadRequest, DataError
from mlops_ray.serving import explain, scoring, shadow
from mlops_ray.serving.exchange import Answer, Asked, Batch, Options
from mlops_ray.serving.protocols.form import Form, batch_of_rows
from mlops_ray.serving.records import Scored, Shadowed, Uncaptured
from mlops_ray.serving.routing import to_canary
from mlops_ray.serving.scores import sound
from mlops_ray.serving.service import Service
from mlops_ray.serving.versions import Wanted
from mlops_ray.training.artifact.model import Reference
from tests import fakes
from tests.fakes import FakeLog, FakeScorer, canary, eventually, held, row

KEYS = [f"k{i}" for i in range(20)]
CHOSEN = to_canary(KEYS, "r1", 0.5)
ON_TRIAL = Wanted(sequence=1, stable=held(10), canary=20, share=0.5, salt="r1")
BINARY, CLASSES, SPEED = (
    fakes.project(task=task, serving={"canary_deadline_s": 30.0, "explain": 5})
    for task in ("binary", "multiclass", "regression")
)


class Linear(FakeScorer):
    """Scores that follow from the rows: binary x; multiclass x for "a", the rest for "b"; regression 10 x."""

    def score(self, columns: Any) -> Any:
        x = columns["x"].astype(np.float64)
        if self.task == "multiclass":
            return np.column_stack((x, 1 - x))
        return 10 * x if self.task == "regression" else x


def linear(project: Any, **unlike: Any) -> Linear:
    classes = {"binary": (0, 1), "multiclass": ("a", "b"), "regression": ()}[project.task]
    return Linear(0.0, **({"task": project.task, "classes": classes} | unlike))


def make(log: FakeLog, scorer: Any, project: Any = BINARY, wanted: Any = None, lines: Any = fakes.no_canary) -> Service:
    return Service(project, log, lambda version: scorer, lines, first=wanted or Wanted(1, held(10)))


def asked(project: Any, *rows: dict[str, Any], **options: Any) -> Asked:
    return Asked(batch_of_rows(rows, Form.of(project), now=2e9), Options(**options))


def predict(service: Service, question: Asked) -> Answer:
    return asyncio.run(service.predict("id", question))


@pytest.fixture
def log() -> FakeLog:
    return FakeLog()


# --- tasks ---


@pytest.mark.parametrize(
    ("project", "scores", "labels"),
    [
        (BINARY, [0.25, 0.75], [0, 1]),
        (CLASSES, [[0.25, 0.75], [0.75, 0.25]], ["b", "a"]),
        (SPEED, [2.5, 7.5], [2.5, 7.5]),
    ],
    ids=lambda p: p.task if hasattr(p, "task") else "",
)
def test_each_task_has_its_shape(log: FakeLog, project: Any, scores: Any, labels: Any) -> None:
    answer = predict(make(log, linear(project), project), asked(project, row(x=0.25), row(x=0.75)))
    assert (answer.task, answer.scores.tolist(), answer.labels().tolist()) == (project.task, scores, labels)
    (record,) = log.records
    assert isinstance(record, Scored)
    assert record.scores.tolist() == scores


@pytest.mark.parametrize("project", [BINARY, CLASSES, SPEED], ids=lambda p: p.task)
def test_a_canary_answers_in_each_task(log: FakeLog, project: Any) -> None:
    """A multiclass one by names, whatever order it has them in."""
    theirs = {
        "binary": (lambda n: np.full(n, 0.9), {}),
        "multiclass": (lambda n: np.tile([0.9, 0.1], (n, 1)), {"classes": ("b", "a")}),
        "regression": (lambda n: np.full(n, 99.0), {"classes": ()}),
    }
    expected = {"binary": 0.9, "multiclass": [0.1, 0.9], "regression": 99.0}
    scores, told = theirs[project.task]
    service = make(log, linear(project), project, ON_TRIAL, canary(scores, **told))
    answer = predict(service, asked(project, *(row(k, x=0.5) for k in KEYS)))
    assert answer.canary.tolist() == CHOSEN.tolist()
    assert answer.versions.tolist() == np.where(CHOSEN, 20, 10).tolist()
    assert all(s == expected[project.task] for s in answer.scores[CHOSEN].tolist())
    (record,) = log.records
    assert isinstance(record, Scored)
    (trial,) = record.trials
    assert trial.scores is not None
    assert trial.scores.tolist() == answer.scores[CHOSEN].tolist()
    assert expected[project.task] not in record.scores.tolist()  # stable's own stand beside


def test_a_canary_of_other_classes_cannot_be_compared(log: FakeLog) -> None:
    lines = canary(lambda n: np.tile([0.9, 0.1], (n, 1)), classes=("a", "z"))
    answer = predict(make(log, linear(CLASSES), CLASSES, ON_TRIAL, lines), asked(CLASSES, *(row(k) for k in KEYS)))
    assert set(answer.versions.tolist()) == {10}
    assert log.records[0].trials[0].failure == "nonsense"  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("scores", "task", "n_classes", "good"),
    [
        (np.array([0.0, 1.0]), "binary", 2, True),
        (np.array([0.5]), "binary", 2, False),
        (np.array([0.5, np.nan]), "binary", 2, False),
        (np.array([0.5, 1.0001]), "binary", 2, False),
        (np.array([1, 0]), "binary", 2, False),
        ([0.5, 0.5], "binary", 2, False),
        (np.array([[0.5, 0.5], [0.25, 0.75]]), "multiclass", 2, True),
        (np.array([[0.5, 0.5], [0.25, 0.25]]), "multiclass", 2, False),
        (np.array([[0.5, 0.5], [1.25, -0.25]]), "multiclass", 2, False),
        (np.array([[0.5, 0.5]]), "multiclass", 2, False),
        (np.array([[0.5, 0.5], [0.25, 0.75]]), "multiclass", 3, False),
        (np.array([-1e9, 1e9]), "regression", 0, True),
        (np.array([0.0, np.inf]), "regression", 0, False),
        (np.array([[0.0], [1.0]]), "regression", 0, False),
    ],
)
def test_what_is_an_answer(scores: Any, task: Any, n_classes: int, good: bool) -> None:
    assert sound(scores, task, 2, n_classes) is good


# --- thresholds ---


@pytest.mark.parametrize(
    ("own", "given", "expected"),
    [(None, None, 0.5), (0.3, None, 0.3), (0.3, 0.8, 0.8), (None, 0.8, 0.8), (0.3, 0.0, 0.0)],
)
def test_the_requests_threshold_then_the_versions_then_the_projects(
    log: FakeLog, own: float | None, given: float | None, expected: float
) -> None:
    answer = predict(make(log, linear(BINARY, threshold=own)), asked(BINARY, row(), threshold=given))
    assert answer.threshold == expected


def test_each_row_is_decided_by_the_threshold_of_who_answered(log: FakeLog) -> None:
    service = make(
        log, linear(BINARY, threshold=0.4), wanted=ON_TRIAL, lines=canary(lambda n: np.full(n, 0.5), threshold=0.6)
    )
    answer = predict(service, asked(BINARY, *(row(k, x=0.5) for k in KEYS)))
    assert answer.labels().tolist() == np.where(CHOSEN, 0, 1).tolist()


# --- versions asked for by number ---


def test_the_canary_may_be_asked_for_and_is_no_evidence_then(log: FakeLog) -> None:
    service = make(log, linear(BINARY), wanted=ON_TRIAL, lines=canary(lambda n: np.full(n, 0.9)))
    answer = predict(service, asked(BINARY, *(row(k) for k in KEYS), version=20))
    assert set(answer.versions.tolist()) == {20}
    assert not answer.canary.any()
    (record,) = log.records
    assert isinstance(record, Scored)
    assert (record.stable, record.trials) == (20, ())


def test_stable_asked_for_by_number_tries_nobody(log: FakeLog) -> None:
    answer = predict(make(log, linear(BINARY), wanted=ON_TRIAL), asked(BINARY, *(row(k) for k in KEYS), version=10))
    assert set(answer.versions.tolist()) == {10}
    assert not answer.canary.any()


def test_a_canary_asked_for_that_fails_has_no_substitute(log: FakeLog) -> None:
    service = make(log, linear(BINARY), wanted=ON_TRIAL, lines=canary(RuntimeError("gone")))
    with pytest.raises(BackendUnavailable, match="version 20"):
        predict(service, asked(BINARY, row(), version=20))
    assert log.records == []


def test_a_version_that_is_not_here_is_404_and_names_those_that_are(log: FakeLog) -> None:
    with pytest.raises(BadRequest, match=r"10 \(stable\), 20 \(canary\)") as caught:
        predict(make(log, linear(BINARY), wanted=ON_TRIAL), asked(BINARY, row(), version=7))
    assert caught.value.status == 404


def test_models_name_their_roles(log: FakeLog) -> None:
    wanted = Wanted(1, held(10), canary=20, share=0.5, warm=(held(30),), shadow=True)
    service = make(log, linear(CLASSES), CLASSES, wanted)
    eventually(lambda: len(service.models()) == 3)
    assert [(m.version, m.role, m.task, m.classes) for m in service.models()] == [
        (v, role, "multiclass", ("a", "b")) for v, role in ((10, "stable"), (20, "shadow"), (30, "warm"))
    ]


# --- order ---


def test_a_later_fence_wins_whatever_the_sequence(log: FakeLog) -> None:
    service = make(log, linear(BINARY), wanted=Wanted(5, held(10), fence=2))
    service.want(Wanted(9, held(20), fence=1))
    assert service.status()["sequence"] == 5
    service.want(Wanted(1, held(30), fence=3))
    eventually(lambda: service.status()["stable"] == 30)
    assert (service.status()["fence"], service.status()["sequence"]) == (3, 1)


def test_a_share_holds_at_once(log: FakeLog) -> None:
    """Nothing is to be loaded for it, so the next row is assigned by it."""
    service = make(log, linear(BINARY), wanted=Wanted(1, held(10)), lines=canary(lambda n: np.full(n, 0.9)))
    service.want(Wanted(2, held(10), canary=20, share=1.0, salt="r"))
    assert predict(service, asked(BINARY, row())).canary.all()


def test_an_old_specification_means_what_it_meant() -> None:
    old = {"stable": None, "canary": 3, "share": 0.5, "salt": "r", "warm": []}
    assert Wanted.parse(old, 1).spec() == old
    assert Wanted.parse(Wanted(1, canary=3, shadow=True).spec(), 1).shadow


# --- shadows ---


def test_a_shadow_answers_nobody_and_is_compared(log: FakeLog, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shadow, "_GATHER_S", 0.001)
    lines = canary(lambda n: np.full(n, 0.9))
    wanted = Wanted(1, held(10), canary=20, share=0.5, salt="r1", shadow=True)
    service = make(log, linear(BINARY), wanted=wanted, lines=lines)

    async def run() -> Answer:
        answer = await service.predict("id", asked(BINARY, *(row(k, x=0.5) for k in KEYS)))
        assert lines(20).calls == []
        async with asyncio.timeout(30):
            while len(log.records) < 2:
                await asyncio.sleep(0.001)
        return answer

    answer = asyncio.run(run())
    assert set(answer.versions.tolist()) == {10}
    assert not answer.canary.any()
    scored, shadowed = log.records
    assert isinstance(scored, Scored)
    assert scored.trials == ()
    assert isinstance(shadowed, Shadowed)
    assert shadowed.id == scored.id
    assert shadowed.trial.rows.tolist() == np.flatnonzero(CHOSEN).tolist()
    assert shadowed.trial.scores is not None
    assert shadowed.trial.scores.tolist() == [0.9] * CHOSEN.sum()
    assert shadowed.stable_scores.tolist() == [0.5] * CHOSEN.sum()


def test_a_shadow_that_sleeps_is_bounded(log: FakeLog) -> None:
    project = fakes.project(serving={"canary_deadline_s": 30.0, "shadow_rows": 7})
    wanted = Wanted(1, held(10), canary=20, share=1.0, salt="r1", shadow=True)
    service = make(log, linear(BINARY), project, wanted, canary(None))

    async def run() -> None:
        for i in range(100):
            await service.predict(str(i), asked(BINARY, row()))
        assert service.status()["shadow"]["rows_waiting"] == 7
        async with asyncio.timeout(30):
            while not any(isinstance(r, Uncaptured) for r in log.records):
                await asyncio.sleep(0.001)

    asyncio.run(run())
    (counted,) = (r for r in log.records if isinstance(r, Uncaptured))
    assert (counted.why, counted.n_rows) == ("shadow", 93)


# --- threads ---


@pytest.mark.parametrize(("engine", "n", "inline"), [("onnx", 1, True), ("onnx", 9, False), ("sklearn", 1, False)])
def test_what_takes_long_is_scored_beside_the_loop(
    log: FakeLog, monkeypatch: pytest.MonkeyPatch, engine: str, n: int, inline: bool
) -> None:
    monkeypatch.setattr(scoring, "INLINE_ROWS", 8)
    where: list[threading.Thread] = []

    class Placed(Linear):
        def score(self, columns: Any) -> Any:
            where.append(threading.current_thread())
            return super().score(columns)

    predict(make(log, Placed(0.0, engine=engine)), asked(BINARY, *(row(k) for k in KEYS[:n])))
    assert (where[0] is threading.main_thread()) is inline


def test_rows_that_a_model_refuses_are_422(log: FakeLog) -> None:
    class Picky(Linear):
        def score(self, columns: Any) -> Any:
            raise DataError("request", "row 0: x is infinite")

    with pytest.raises(BadRequest, match="x is infinite") as caught:
        predict(make(log, Picky(0.0)), asked(BINARY, row()))
    assert caught.value.status == 422


# --- explanations ---

BINS = Bins({"x": (0.0, 0.5, 1.0), "n": (1.0,), "flag": (0.5,)}, {"c": ("red", "green"), "d": ("blue",)})


def reference() -> Reference:
    columns = {
        "x": np.array([0.1, 0.2, 0.3, 0.4, 0.6, np.nan], dtype=np.float32),
        "n": np.full(6, 2, dtype=np.float32),
        "flag": np.zeros(6, dtype=np.float32),
        "c": np.array(["green", "green", "red", "", "green", "odd"], dtype=object),
        "d": np.array(["", "", "", "", "blue", "blue"], dtype=object),
    }
    profile = fold(BINS, columns, np.full(6, 0.5))
    return Reference(BINS, 100.0, ((0.0, profile), (100.0, profile), (300.0, profile)), ())


def test_an_ordinary_row() -> None:
    kinds = {
        "x": "number",
        "n": "number",
        "unknown": "number",
        "c": "string",
        "d": "string",
        "e": "string",
        "t": "time",
    }
    found = explain.baseline(reference(), kinds)
    assert found["x"] == pytest.approx(0.35)  # of 15 values 12 lie in 0.1 .. 0.5: 7.5 of 12 of the way
    assert found["n"] == 2.0
    assert np.isnan(found["unknown"])
    assert (found["c"], found["d"], found["e"], found["t"]) == ("green", "", "", 150.0)


@pytest.mark.parametrize("project", [BINARY, CLASSES, SPEED], ids=lambda p: p.task)
def test_contributions_are_what_the_score_loses_without_the_feature(log: FakeLog, project: Any) -> None:
    """The models hang on x alone: its contribution is the score's distance from the ordinary row's."""
    service = make(log, linear(project, reference=reference()), project)
    answer = predict(service, asked(project, row(x=0.75), row(x=0.25), explain=3))
    assert answer.contributions is not None
    ((first,), (second,)) = answer.contributions
    up = {"binary": (0.4, -0.1), "multiclass": (0.4, 0.1), "regression": (4.0, -1.0)}[project.task]
    assert (first[0], second[0]) == ("x", "x")
    assert (first[1], second[1]) == pytest.approx(up)


def test_the_largest_contributions_come_first_and_only_so_many() -> None:
    scores, varied = np.array([1.0]), np.array([0.9, 2.0, 0.5, 1.0])
    found = explain.contributions(("a", "b", "c", "d"), scores, varied, task="regression", top=2)
    assert found == ((("b", -1.0), ("c", 0.5)),)
    every = explain.contributions(("a", "b", "c", "d"), scores, varied, task="regression", top=9)
    assert [name for name, _ in every[0]] == ["b", "c", "a"]


def test_one_call_scores_all_replacements() -> None:
    columns = {"x": np.array([1.0, 2.0], dtype=np.float32), "c": np.array(["a", "b"], dtype=object)}
    varied = explain.variations(columns, {"x": 9.0, "c": "z"})
    assert varied["x"].tolist() == [9.0, 9.0, 1.0, 2.0]
    assert varied["c"].tolist() == ["a", "b", "z", "z"]
    assert columns["x"].tolist() == [1.0, 2.0]


def test_rows_of_the_canary_are_explained_by_the_canary(log: FakeLog) -> None:
    class Opposite(fakes.FakeLine):
        async def call(self, columns: Any) -> Any:
            self.answer = lambda n: 1.0 - columns["x"].astype(np.float64)
            return await super().call(columns)

    line = Opposite(None)
    service = make(log, linear(BINARY, reference=reference()), wanted=ON_TRIAL, lines=lambda version: line)
    answer = predict(service, asked(BINARY, *(row(k, x=0.75) for k in KEYS), explain=1))
    assert answer.contributions is not None
    signs = [contributions[0][1] > 0 for contributions in answer.contributions]
    assert signs == (~CHOSEN).tolist()


def test_too_many_rows_to_explain_are_refused_before_anything_is_done(log: FakeLog) -> None:
    n = explain.MOST_VARIATIONS // 5 + 1
    columns = {name: np.zeros(n, dtype=np.float32) for name in ("x", "n", "flag", "c", "d")}
    batch = Batch(("k",) * n, np.zeros(n), columns)
    with pytest.raises(BadRequest, match="too many to explain"):
        predict(make(log, linear(BINARY)), Asked(batch, Options(explain=1)))
    assert log.records == []
