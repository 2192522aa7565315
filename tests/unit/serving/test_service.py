"""What a replica does: through its HTTP surface where a client could see it, and directly where it could not."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Any

import httpx
import numpy as np
import pytest

from mlops_ray.errors import BackendUnavailable
from mlops_ray.serving.exchange import Answer, Asked, Options
from mlops_ray.serving.protocols.form import Form, batch_of_rows
from mlops_ray.serving.records import Labelled, Scored, Shadowed, Watermark
from mlops_ray.serving.routing import spread, to_canary
from mlops_ray.serving.service import Service
from mlops_ray.serving.versions import Arm, Before, Held, Wanted
from mlops_ray.serving.web.http import Application
from tests import fakes
from tests.fakes import FakeLine, FakeLoader, FakeLog, FakeScorer, canary, eventually, held, row

# A deadline that a busy machine keeps, and one that nobody waits for.
PROJECT = fakes.project(serving={"canary_deadline_s": 30.0})
HASTY = fakes.project(serving={"canary_deadline_s": 0.05})
STABLE = Wanted(sequence=1, stable=held(10))
ON_TRIAL = Wanted(sequence=1, stable=held(10), canary=20, share=0.5, salt="r1")
BAKING = Wanted(sequence=1, stable=held(10), warm=(held(30),), before=Before(30, 0.5, "r1"))
KEYS = [f"k{i}" for i in range(20)]
CHOSEN = to_canary(KEYS, "r1", 0.5)
ROWS = {"rows": [row(k) for k in KEYS]}
JSON = {"Content-Type": "application/json"}

Client = httpx.AsyncClient


def make(
    log: FakeLog, first: Wanted | None = STABLE, lines: Any = fakes.no_canary, load: Any = None, project: Any = PROJECT
) -> Service:
    return Service(project, log, load or FakeLoader(), lines, first=first)


def client_of(service: Service) -> Client:
    return Client(transport=httpx.ASGITransport(Application(lambda: service)), base_url="http://replica")


@pytest.fixture
def log() -> FakeLog:
    return FakeLog()


def visit(service: Service, talk: Callable[[Client], Awaitable[Any]]) -> Any:
    async def run() -> Any:
        async with client_of(service) as client:
            return await talk(client)

    return asyncio.run(run())


def post(service: Service, path: str = "/predict", **options: Any) -> httpx.Response:
    return visit(service, lambda client: client.post(path, **options))  # type: ignore[no-any-return]


def asked(*keys: str, project: Any = PROJECT, **options: Any) -> Asked:
    return Asked(batch_of_rows([row(k) for k in keys], Form.of(project), now=2e9), Options(**options))


def scored(log: FakeLog) -> list[Scored]:
    return [record for record in log.records if isinstance(record, Scored)]


def problem(response: httpx.Response, status: int) -> dict[str, Any]:
    """The response's problem details, which must be in order."""
    assert response.status_code == status
    assert response.headers["content-type"] == "application/problem+json"
    found: dict[str, Any] = response.json()
    assert found["status"] == status
    assert found["type"] == "about:blank"
    assert found["title"]
    assert found["detail"]
    assert found["instance"].startswith("/")
    return found


# --- stable ---


def test_an_answer_and_its_record(log: FakeLog) -> None:
    answer = post(make(log), json={"rows": [row("a"), row("b", x=None)]}, headers={"Idempotency-Key": "id-1"})
    assert answer.status_code == 200
    assert answer.json() == {
        "request_id": "id-1",
        "predictions": [
            {"prediction_id": f"id-1:{i}", "probability": 0.1, "label": 0, "version": 10, "variant": "stable"}
            for i in range(2)
        ],
    }
    (record,) = scored(log)
    assert record.score_us > 0
    assert record.at > 1.7e9
    assert (record.id, record.keys, record.times.tolist()) == ("id-1", ("a", "b"), [1e9, 1e9])
    assert (record.stable, record.scores.tolist(), record.repeatable, record.trials) == (10, [0.1, 0.1], True, ())
    columns = {name: values.tolist() for name, values in record.columns.items()}
    assert np.isnan(columns["x"].pop())
    assert columns == {"x": [0.5], "n": [2, 2], "flag": [1, 1], "c": ["red"] * 2, "d": ["blue"] * 2}


def test_the_label_follows_the_threshold(log: FakeLog) -> None:
    project = fakes.project(serving={"threshold": 0.1})
    (prediction,) = post(make(log, project=project), json={"rows": [row()]}).json()["predictions"]
    assert prediction["label"] == 1


def test_every_request_without_a_key_is_a_prediction_of_its_own(log: FakeLog) -> None:
    service = make(log)
    ids = {post(service, json={"rows": [row()]}).json()["request_id"] for _ in range(3)}
    assert len(ids) == 3
    assert {r.id for r in scored(log)} == ids


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_nobody_is_on_trial_at_share_zero(log: FakeLog, share: float) -> None:
    wanted = Wanted(sequence=1, stable=held(10), canary=20, share=share, salt="r1")
    lines = canary(lambda n: np.full(n, 0.2))
    post(make(log, wanted, lines), json=ROWS)
    assert lines(20).calls == ([] if share == 0 else [20])
    assert bool(scored(log)[0].trials) == (share > 0)


# --- the canary ---


def test_the_canary_answers_its_share_and_stable_scores_all(log: FakeLog) -> None:
    service = make(log, ON_TRIAL, canary(lambda n: np.linspace(0.6, 0.9, n)))
    predictions = post(service, json=ROWS).json()["predictions"]
    assert [p["variant"] == "canary" for p in predictions] == CHOSEN.tolist()
    assert [p["version"] for p in predictions] == np.where(CHOSEN, 20, 10).tolist()
    theirs = [p["probability"] for p in predictions if p["variant"] == "canary"]
    assert theirs == np.linspace(0.6, 0.9, CHOSEN.sum()).tolist()
    assert {p["probability"] for p in predictions if p["variant"] == "stable"} == {0.1}
    (record,) = scored(log)
    assert record.scores.tolist() == [0.1] * 20
    (trial,) = record.trials
    assert trial.rows.tolist() == np.flatnonzero(CHOSEN).tolist()
    assert trial.scores is not None
    assert trial.scores.tolist() == theirs
    assert (trial.version, trial.rollout, trial.share, trial.failure) == (20, "r1", 0.5, "")


FAILURES: dict[str, tuple[Any, str]] = {
    "raises": (RuntimeError("the canary's process died"), "error"),
    "is cancelled": (asyncio.CancelledError(), "error"),
    "hangs": (None, "deadline"),
    "nan": (lambda n: np.full(n, np.nan), "nonsense"),
    "one infinite": (lambda n: np.append(np.full(n - 1, 0.5), np.inf), "nonsense"),
    "above one": (lambda n: np.full(n, 1.5), "nonsense"),  # found: was answered, and then stopped the collector
    "below zero": (lambda n: np.full(n, -0.1), "nonsense"),
    "too many": (lambda n: np.full(n + 1, 0.5), "nonsense"),
    "too wide": (lambda n: np.full((n, 2), 0.5), "nonsense"),
    "a scalar": (lambda n: 0.5, "nonsense"),
    "text": (lambda n: "0.5", "nonsense"),
    "nothing": (lambda n: None, "nonsense"),
}


@pytest.mark.parametrize("failure", FAILURES)
def test_stable_answers_for_a_canary_that_fails(log: FakeLog, failure: str) -> None:
    answer, why = FAILURES[failure]
    response = post(make(log, ON_TRIAL, canary(answer), project=HASTY if answer is None else PROJECT), json=ROWS)
    assert response.status_code == 200
    predictions = response.json()["predictions"]
    assert {(p["probability"], p["version"]) for p in predictions} == {(0.1, 10)}
    assert [p["variant"] == "canary" for p in predictions] == CHOSEN.tolist()
    (record,) = scored(log)
    (trial,) = record.trials
    assert trial.version == 20
    assert trial.rows.tolist() == np.flatnonzero(CHOSEN).tolist()
    assert (trial.scores, trial.failure) == (None, why)


def test_clients_of_a_hanging_canary_leave_places_to_those_of_stable(log: FakeLog) -> None:
    """All of them arrive within its deadline, and are more than the replica may have in hand."""
    project = fakes.project(serving={"canary_deadline_s": 1.0, "max_ongoing_requests": 4})
    service = make(log, ON_TRIAL, canary(None), project=project)
    theirs, ours = ([k for k, chosen in zip(KEYS, CHOSEN, strict=True) if chosen == wanted] for wanted in (True, False))

    async def crowd(client: Client) -> list[httpx.Response]:
        waiting = []
        for key in theirs:
            waiting.append(asyncio.create_task(client.post("/predict", json={"rows": [row(key)]})))
            await asyncio.sleep(0.01)
        assert not waiting[0].done()
        return [await client.post("/predict", json={"rows": [row(ours[0])]}), *await asyncio.gather(*waiting)]

    assert len(theirs) > 4
    assert {answer.status_code for answer in visit(service, crowd)} == {200}


def test_rows_of_concurrent_requests_travel_together(log: FakeLog) -> None:
    lines = canary(lambda n: np.linspace(0.5, 0.9, n))
    service = make(log, ON_TRIAL, lines)

    async def many(client: Client) -> list[httpx.Response]:
        return await asyncio.gather(*(client.post("/predict", json={"rows": [row(k)]}) for k in KEYS))

    answers = [r.json()["predictions"][0] for r in visit(service, many)]
    calls = lines(20).calls
    assert sum(calls) == CHOSEN.sum()
    assert len(calls) < CHOSEN.sum()
    theirs = [a["probability"] for a in answers if a["variant"] == "canary"]
    assert len(set(theirs)) == len(theirs)  # each got a part of its own
    for record in scored(log):  # and it is the part that stands in its record
        answered = next(a["probability"] for a in answers if a["prediction_id"] == f"{record.id}:0")
        theirs = [trial.scores for trial in record.trials if trial.scores is not None]
        assert answered == (theirs or [record.scores])[0][0]


# --- several arms ---

ARMS = Wanted(
    sequence=1,
    stable=held(10),
    share=0.75,
    salt="r4",
    arms=(Arm(20, 0.0, 0.25), Arm(30, 0.25, 0.25), Arm(40, 0.5, 0.25)),
)


def lines_of(answers: dict[int, Any], **told: Any) -> tuple[dict[int, FakeLine], Callable[[int], FakeLine]]:
    """Lines to several versions, each with an answer of its own."""
    lines = {version: FakeLine(answer, **told) for version, answer in answers.items()}
    return lines, lines.__getitem__


def test_each_arm_answers_its_own_rows_of_a_request(log: FakeLog) -> None:
    lines, way = lines_of({v: lambda n, v=v: np.full(n, v / 100) for v in (20, 30, 40)})
    predictions = post(make(log, ARMS, way), json=ROWS).json()["predictions"]
    spans = [arm.span for arm in ARMS.arms]
    expected = np.full(len(KEYS), 10)
    for arm, places in zip(ARMS.arms, spread(KEYS, "r4", spans), strict=True):
        expected[places] = arm.version
    assert len(set(expected.tolist())) == 4
    assert [p["version"] for p in predictions] == expected.tolist()
    assert [p["variant"] == "canary" for p in predictions] == (expected != 10).tolist()
    assert [p["probability"] for p in predictions] == np.where(expected == 10, 0.1, expected / 100).tolist()
    assert {v: line.calls for v, line in lines.items()} == {v: [int((expected == v).sum())] for v in (20, 30, 40)}
    (record,) = scored(log)
    assert record.scores.tolist() == [0.1] * len(KEYS)  # stable scores each arm's rows too
    assert [(t.version, t.rollout, t.share) for t in record.trials] == [(v, "r4", 0.25) for v in (20, 30, 40)]
    for tried in record.trials:
        assert tried.rows.tolist() == np.flatnonzero(expected == tried.version).tolist()
        assert tried.scores is not None
        assert set(tried.scores.tolist()) == {tried.version / 100}


def test_the_arms_are_asked_at_the_same_time(log: FakeLog) -> None:
    """None of them answers before all were asked."""
    lines, way = lines_of({20: None, 30: None, 40: None})
    service = make(log, ARMS, way, project=HASTY)
    predictions = post(service, json=ROWS).json()["predictions"]
    assert {p["version"] for p in predictions} == {10}
    assert all(len(line.calls) == 1 for line in lines.values())
    (record,) = scored(log)
    assert [(t.version, t.failure) for t in record.trials] == [(20, "deadline"), (30, "deadline"), (40, "deadline")]


def test_an_arm_that_fails_costs_its_own_rows_only(log: FakeLog) -> None:
    _, way = lines_of({20: lambda n: np.full(n, 0.2), 30: ValueError("broken"), 40: lambda n: np.full(n, 0.4)})
    predictions = post(make(log, ARMS, way), json=ROWS).json()["predictions"]
    assert {p["version"] for p in predictions if p["variant"] == "canary"} == {20, 10, 40}
    (record,) = scored(log)
    assert [(t.version, t.failure) for t in record.trials] == [(20, ""), (30, "error"), (40, "")]


def test_arms_keep_their_thresholds(log: FakeLog) -> None:
    lines = {
        20: FakeLine(lambda n: np.full(n, 0.3), threshold=0.2),
        30: FakeLine(lambda n: np.full(n, 0.3), threshold=0.4),
        40: FakeLine(lambda n: np.full(n, 0.3)),
    }
    predictions = post(make(log, ARMS, lines.__getitem__), json=ROWS).json()["predictions"]
    assert {(p["version"], p["label"]) for p in predictions} == {(10, 0), (20, 1), (30, 0), (40, 0)}


def test_an_arm_that_is_dropped_is_asked_no_more_and_the_others_go_on(log: FakeLog) -> None:
    lines, way = lines_of({v: lambda n, v=v: np.full(n, v / 100) for v in (20, 30, 40)})
    service = make(log, ARMS, way)
    before = [p["version"] for p in post(service, json=ROWS).json()["predictions"]]
    service.want(replace(ARMS, sequence=2, share=0.5, arms=(ARMS.arms[0], ARMS.arms[2])))
    after = [p["version"] for p in post(service, json=ROWS).json()["predictions"]]
    assert after == [10 if version == 30 else version for version in before]
    assert len(lines[30].calls) == 1
    assert not lines[20].closed
    assert not lines[40].closed


def test_versions_that_start_are_looked_for_before_they_have_a_share(log: FakeLog) -> None:
    """Their first rows do not wait for that: it takes seconds on a busy machine, and would count as their failure."""
    lines, way = lines_of({v: lambda n, v=v: np.full(n, v / 100) for v in (20, 30, 40)})
    starting = replace(ARMS, share=0.0, arms=tuple(replace(arm, low=0.0, share=0.0) for arm in ARMS.arms))
    service = make(log, starting, way)
    assert {p["version"] for p in post(service, json=ROWS).json()["predictions"]} == {10}
    assert [line.looked_for for line in lines.values()] == [True] * 3
    assert [line.calls for line in lines.values()] == [[]] * 3
    service.want(replace(ARMS, sequence=2))
    assert len({p["version"] for p in post(service, json=ROWS).json()["predictions"]}) == 4
    assert not any(line.closed for line in lines.values())


def test_a_version_that_is_tried_again_is_asked_anew(log: FakeLog) -> None:
    """Nothing that was heard of its application before counts: that one has been taken down since."""
    made = [FakeLine(ConnectionResetError("gone")), FakeLine(lambda n: np.full(n, 0.2))]
    ways = iter(made)
    service = make(log, ON_TRIAL, lambda version: next(ways))
    for _ in range(20):  # until it is asked no more
        post(service, json=ROWS)
    service.want(replace(STABLE, sequence=2))
    post(service, json=ROWS)
    service.want(replace(ON_TRIAL, sequence=3, salt="r2"))
    predictions = post(service, json=ROWS).json()["predictions"]
    assert [p["version"] for p in predictions] == [20 if c else 10 for c in to_canary(KEYS, "r2", 0.5)]
    assert made[0].closed
    assert not made[1].closed


def test_arms_may_be_asked_for_by_number(log: FakeLog) -> None:
    _, way = lines_of({v: lambda n, v=v: np.full(n, v / 100) for v in (20, 30, 40)})
    service = make(log, ARMS, way)
    assert {(m.version, m.role) for m in service.models()} == {(10, "stable"), *((v, "canary") for v in (20, 30, 40))}
    answer = post(service, json={"rows": [row("a")], "options": {"version": 30}})
    assert answer.json()["predictions"][0]["version"] == 30


# --- one request, one prediction ---


def test_a_retry_is_one_prediction_with_the_same_answer(log: FakeLog) -> None:
    service = make(log, ON_TRIAL, canary(lambda n: np.random.default_rng().uniform(size=n)))
    first, second = (post(service, json=ROWS, headers={"Idempotency-Key": "again"}) for _ in range(2))
    assert first.content == second.content
    assert len(scored(log)) == 1


def test_concurrent_retries_are_one_prediction(log: FakeLog) -> None:
    lines = canary(lambda n: np.random.default_rng().uniform(size=n))
    service = make(log, ON_TRIAL, lines)

    async def many(client: Client) -> list[httpx.Response]:
        same = {"Idempotency-Key": "at once"}
        return await asyncio.gather(*(client.post("/predict", json=ROWS, headers=same) for _ in range(10)))

    answers = visit(service, many)
    assert {r.status_code for r in answers} == {200}
    assert len({r.content for r in answers}) == 1
    assert len(lines(20).calls) == len(scored(log)) == 1


def test_a_retry_survives_that_the_first_client_hung_up(log: FakeLog) -> None:
    """Found: the retry was cancelled along with the request that it repeats."""
    service = make(log, ON_TRIAL, canary(lambda n: np.full(n, 0.2)))

    async def run() -> list[Any]:
        first = asyncio.create_task(service.predict("id", asked(*KEYS), repeatable=True))
        await asyncio.sleep(0)
        retries = [asyncio.create_task(service.predict("id", asked(*KEYS), repeatable=True)) for _ in range(2)]
        await asyncio.sleep(0)
        first.cancel()
        return [*await asyncio.gather(*retries), await asyncio.gather(first, return_exceptions=True)]

    one, other, first = asyncio.run(run())
    assert one is other
    assert isinstance(first[0], asyncio.CancelledError)
    assert len(scored(log)) == 1


def test_a_waiting_retry_may_itself_hang_up(log: FakeLog) -> None:
    service = make(log, ON_TRIAL, canary(lambda n: np.full(n, 0.2)))

    async def run() -> Answer:
        first = asyncio.create_task(service.predict("id", asked(*KEYS), repeatable=True))
        await asyncio.sleep(0)
        retry = asyncio.create_task(service.predict("id", asked(*KEYS), repeatable=True))
        await asyncio.sleep(0)
        retry.cancel()
        with pytest.raises(asyncio.CancelledError):
            await retry
        return await first

    assert asyncio.run(run()).request_id == "id"


def test_a_failed_request_may_be_retried(log: FakeLog) -> None:
    """What was not answered is not remembered."""

    class Recovering(FakeScorer):
        def score(self, columns: Any) -> Any:
            found, self.probability = super().score(columns), 0.5
            return found

    service, key = make(log, load=lambda version: Recovering(7.0)), {"Idempotency-Key": "id"}
    assert post(service, json=ROWS, headers=key).status_code == 503
    assert post(service, json=ROWS, headers=key).status_code == 200
    assert len(scored(log)) == 1


# --- what is wanted ---


def answering(service: Service) -> int | None:
    found: int | None = service.status()["stable"]
    return found


def test_a_newer_configuration_wins_and_an_older_one_is_ignored(log: FakeLog) -> None:
    load = FakeLoader()
    service = make(log, load=load)
    service.want(Wanted(sequence=3, stable=held(30)))
    eventually(lambda: answering(service) == 30)
    service.want(Wanted(sequence=2, stable=held(20)))
    service.want(Wanted(sequence=3, stable=held(40)))
    service.want(Wanted(sequence=4, stable=held(50)))
    eventually(lambda: answering(service) == 50)
    assert load.loaded == [10, 30, 50]
    assert service.status()["sequence"] == 4
    eventually(lambda: service.status()["loaded"] == [50])


def test_a_warm_version_is_loaded_but_does_not_answer(log: FakeLog) -> None:
    load = FakeLoader()
    service = make(log, load=load)
    service.want(Wanted(sequence=2, stable=held(10), warm=(held(20),)))
    eventually(lambda: service.status()["loaded"] == [10, 20])
    assert answering(service) == 10
    service.want(Wanted(sequence=3, stable=held(20), warm=(held(10),)))
    eventually(lambda: answering(service) == 20)
    assert load.loaded == [10, 20]  # the flip loads nothing


def test_while_stable_bakes_the_version_before_it_sees_copies_and_answers_nobody(log: FakeLog) -> None:
    async def talk(client: Client) -> Any:
        eventually(lambda: 30 in service.versions.loaded)
        answer = (await client.post("/predict", json=ROWS)).json()
        await asyncio.to_thread(eventually, lambda: any(isinstance(r, Shadowed) for r in log.records))
        return answer

    service = make(log, BAKING)
    answer = visit(service, talk)
    assert {(p["version"], p["variant"]) for p in answer["predictions"]} == {(10, "stable")}
    (seen,) = [r for r in log.records if isinstance(r, Shadowed)]
    assert (seen.stable, seen.trial.version, seen.trial.rollout) == (10, 30, "r1")
    assert seen.trial.rows.tolist() == np.flatnonzero(CHOSEN).tolist()
    assert seen.trial.scores is not None
    assert set(seen.trial.scores.tolist()) == {0.3}
    assert seen.trial.row_us is not None
    assert not scored(log)[0].trials


def test_a_version_before_stable_that_raises_costs_the_comparison_alone(log: FakeLog) -> None:
    class Raises(FakeScorer):
        def score(self, columns: Any) -> Any:
            raise RuntimeError("it did not expect that")

    async def talk(client: Client) -> int:
        eventually(lambda: 30 in service.versions.loaded)
        status = (await client.post("/predict", json=ROWS)).status_code
        await asyncio.to_thread(eventually, lambda: any(isinstance(r, Shadowed) for r in log.records))
        return status

    service = make(log, BAKING, load=lambda one: Raises(0.3) if one.version == 30 else FakeScorer(0.1))
    assert visit(service, talk) == 200
    (seen,) = [r for r in log.records if isinstance(r, Shadowed)]
    assert (seen.trial.scores, seen.trial.failure) == (None, "error")


def raising(version: int, *also: int) -> Callable[[Held], FakeScorer]:
    """Loads versions of which this one raises."""

    class Raises(FakeScorer):
        def score(self, columns: Any) -> Any:
            raise RuntimeError("it did not expect that")

    return lambda one: Raises(0.1) if one.version in (version, *also) else FakeScorer(0.3)


def test_what_stable_fails_while_it_bakes_the_version_before_it_answers(log: FakeLog) -> None:
    """As a failing canary's rows are answered by stable, and the log has it as the failure of the one on trial."""

    async def talk(client: Client) -> Any:
        await asyncio.to_thread(eventually, lambda: 30 in service.versions.loaded)
        return [
            (await client.post("/predict", json=ROWS)).json(),
            (await client.post("/predict", json={"rows": [row()], "options": {"version": 10}})).status_code,
        ]

    service = make(log, BAKING, load=raising(10))
    answer, pinned = visit(service, talk)
    assert {(p["version"], p["variant"], p["probability"]) for p in answer["predictions"]} == {(30, "stable", 0.3)}
    (first,) = scored(log)
    (trial,) = first.trials
    assert (first.stable, trial.version, trial.rollout, trial.share) == (30, 10, "r1", None)
    assert (trial.scores, trial.failure, trial.rows.tolist()) == (None, "error", list(range(len(KEYS))))
    assert pinned == 500  # who asks for that very version hears of it
    assert not [r for r in log.records if isinstance(r, Shadowed)]


@pytest.mark.parametrize(
    ("wanted", "load"),
    [(BAKING, raising(10, 30)), (replace(BAKING, before=None), raising(10)), (replace(BAKING, warm=()), raising(10))],
)
def test_where_nobody_can_stand_in_a_failure_is_told_as_ever(log: FakeLog, wanted: Wanted, load: Any) -> None:
    service = make(log, wanted, load=load)
    eventually(lambda: {h.version for h in wanted.held} <= set(service.versions.loaded))
    assert post(service, json=ROWS).status_code == 500
    assert not scored(log)


def test_a_replica_that_answers_with_the_version_before_stable_still_compares_nothing(log: FakeLog) -> None:
    back = Wanted(sequence=1, stable=held(30), warm=(held(10),), before=Before(30, 0.5, "r1"))
    assert visit(make(log, back), lambda client: client.post("/predict", json=ROWS)).status_code == 200
    assert not [r for r in log.records if isinstance(r, Shadowed)]


def test_a_version_that_cannot_be_loaded_leaves_the_old_one_answering(log: FakeLog) -> None:
    load = FakeLoader(broken=(20,))
    service = make(log, load=load)
    service.want(Wanted(sequence=2, stable=held(20)))
    eventually(lambda: "20" in service.status()["failed"])
    assert "torn" in service.status()["failed"]["20"]
    assert service.ready()
    assert post(service, json={"rows": [row()]}).json()["predictions"][0]["version"] == 10
    load.broken = ()
    service.want(Wanted(sequence=3, stable=held(20)))
    eventually(lambda: answering(service) == 20)
    assert service.status()["failed"] == {}


def test_want_does_not_wait_for_loading(log: FakeLog) -> None:
    may_load = threading.Event()

    def load(version: Held) -> FakeScorer:
        if version.version != 10:
            assert may_load.wait(30)
        return FakeLoader()(version)

    service = make(log, load=load)
    service.want(Wanted(sequence=2, stable=held(20)))
    assert post(service, json={"rows": [row()]}).json()["predictions"][0]["version"] == 10
    may_load.set()
    eventually(lambda: answering(service) == 20)


def test_a_first_version_that_cannot_be_loaded_raises(log: FakeLog) -> None:
    with pytest.raises(RuntimeError, match="torn"):
        make(log, load=FakeLoader(broken=(10,)))


def test_the_swap_is_atomic_under_concurrent_requests(log: FakeLog) -> None:
    """Each answer comes whole from one version, is labelled with it, and nobody goes without."""
    service = make(log)

    async def run() -> list[Any]:
        async def ask(i: int) -> Any:
            await asyncio.sleep(0.0002 * i)
            if i % 20 == 0:
                service.want(Wanted(sequence=2 + i, stable=held(10 + (i // 20) % 2 * 40)))
            return await service.predict(f"r{i}", asked("a", "b", "c"))

        return await asyncio.gather(*(ask(i) for i in range(400)))

    seen = set()
    for answer in asyncio.run(run()):
        ((version, probability),) = set(zip(answer.versions.tolist(), answer.scores.tolist(), strict=True))
        assert probability == version / 100
        seen.add(version)
    assert seen == {10, 50}
    assert all(r.scores.tolist() == [r.stable / 100] * 3 for r in scored(log))


@pytest.mark.parametrize("wanted", [Wanted(), STABLE, ON_TRIAL, Wanted(3, held(1), warm=(held(2), held(3))), BAKING])
def test_a_configuration_survives_the_state_database(wanted: Wanted) -> None:
    assert Wanted.parse(wanted.spec(), wanted.sequence) == wanted


# --- trouble, as problem details ---


def test_before_a_version_is_loaded(log: FakeLog) -> None:
    service = make(log, first=None)
    response = post(service, json=ROWS)
    assert "no version is loaded" in problem(response, 503)["detail"]
    assert response.headers["retry-after"] == "1"
    assert visit(service, lambda c: c.get("/readyz")).status_code == 503
    assert visit(service, lambda c: c.get("/healthz")).json() == {"status": "ok"}
    service.want(STABLE)
    eventually(service.ready)
    ready = visit(service, lambda c: c.get("/readyz"))
    assert (ready.status_code, ready.json()["stable"]) == (200, 10)


@pytest.mark.parametrize(
    ("path", "body"),
    [("/feedback", {"labels": [{"prediction_id": "p", "label": 1}]}), ("/watermark", {"time": 5})],
)
def test_labels_that_cannot_be_recorded_are_not_acknowledged(log: FakeLog, path: str, body: Any) -> None:
    log.full = True
    assert "No space left" in problem(post(make(log), path, json=body), 503)["detail"]


def test_a_prediction_that_cannot_be_recorded_is_answered_and_says_so(log: FakeLog) -> None:
    log.full = True
    answer = post(make(log), json={"rows": [row()]}).json()
    assert answer["captured"] is False
    assert answer["predictions"][0]["probability"] == 0.1


@pytest.mark.parametrize("durable", [True, False])
def test_an_answer_waits_for_the_disk_where_that_is_promised(log: FakeLog, durable: bool) -> None:
    log.is_durable = durable
    service = make(log, project=fakes.project(capture={"durability": "disk"}))
    answer = post(service, json={"rows": [row()]}).json()
    assert log.durable_calls == 1
    assert answer.get("captured", True) is durable
    label = post(service, "/feedback", json={"labels": [{"prediction_id": "p", "label": 1}]})
    assert label.status_code == (202 if durable else 503)


@pytest.mark.parametrize("scores", [np.array([np.nan]), np.array([2.0]), np.array([0.5, 0.5])])
def test_nonsense_from_stable_is_neither_answered_nor_recorded(log: FakeLog, scores: Any) -> None:
    class Mad(FakeScorer):
        def score(self, columns: Any) -> Any:
            return scores

    problem(post(make(log, load=lambda version: Mad(0.1)), json={"rows": [row()]}), 503)
    assert scored(log) == []


def test_a_bug_is_a_500_without_a_traceback(log: FakeLog) -> None:
    class Broken(FakeScorer):
        def score(self, columns: Any) -> Any:
            raise KeyError("secret path /home/x")

    response = post(make(log, load=lambda version: Broken(0.1)), json={"rows": [row()]})
    problem(response, 500)
    assert "secret" not in response.text


@pytest.mark.parametrize(
    ("request_", "status", "named"),
    [
        ({"content": b"", "headers": JSON}, 400, "rows"),
        ({"content": b"{", "headers": JSON}, 400, "line 1"),
        ({"json": {"rows": [row(n="x")]}}, 422, "row 0, column 'n'"),
        ({"content": b"a,b\n1,2\n", "headers": {"Content-Type": "text/csv"}}, 415, "text/csv"),
        ({"content": b"\x1b\x03", "headers": JSON | {"Content-Encoding": "br"}}, 415, "uncompressed"),
        ({"json": ROWS, "headers": {"Idempotency-Key": "a:b"}}, 400, "':'"),
        ({"json": ROWS, "headers": {"Idempotency-Key": ""}}, 400, "1 to 200"),
        ({"json": ROWS, "headers": [(b"Idempotency-Key", "é".encode())]}, 400, "ASCII"),
        ({"json": ROWS, "headers": {"Idempotency-Key": "x" * 201}}, 400, "1 to 200"),
        ({"json": {"rows": [row(c="y" * 3000)]}}, 413, "limit"),
    ],
)
def test_bad_requests(log: FakeLog, request_: dict[str, Any], status: int, named: str) -> None:
    service = make(log, project=fakes.project(serving={"max_body_mb": 3000 / 2**20}))
    assert named in problem(post(service, **request_), status)["detail"]
    assert scored(log) == []


def test_a_body_in_pieces_is_counted_too(log: FakeLog) -> None:
    async def pieces() -> Any:
        for _ in range(100):
            yield b" " * 100

    service = make(log, project=fakes.project(serving={"max_body_mb": 3000 / 2**20}))
    problem(post(service, content=pieces(), headers=JSON), 413)


@pytest.mark.parametrize(("method", "path", "status"), [("GET", "/predict", 405), ("POST", "/nothing", 404)])
def test_wrong_doors(log: FakeLog, method: str, path: str, status: int) -> None:
    response = visit(make(log), lambda client: client.request(method, path))
    assert path in problem(response, status)["detail"]
    assert (response.headers.get("allow") is not None) == (status == 405)


def test_feedback_and_watermarks_are_recorded(log: FakeLog) -> None:
    service = make(log)
    answer = post(service, "/feedback", json={"labels": [{"prediction_id": "a:0", "label": 1, "time": 7}]})
    assert (answer.status_code, answer.json()) == (202, {"accepted": 1})
    assert post(service, "/watermark", json={"time": 8}).status_code == 202
    problem(post(service, "/feedback", json={"labels": []}), 422)
    label, watermark = log.records
    assert isinstance(label, Labelled)
    assert (label.labels.ids, label.labels.values.tolist(), label.labels.times.tolist()) == (("a:0",), [1.0], [7.0])
    assert isinstance(watermark, Watermark)
    assert watermark.time == 8


def test_business_numbers_are_recorded_with_the_labels_in_one_record(log: FakeLog) -> None:
    sales = {"metric": "business", "name": "revenue", "low": 0, "high": 9, "better": "higher", "margin": 1}
    service = make(log, project=fakes.project(rollout={"analyses": [sales]}))
    told = [{"prediction_id": "a:0", "label": 1, "values": {"revenue": 2.5}}, {"key": "k", "values": {"revenue": 0}}]
    answer = post(service, "/feedback", json={"labels": told})
    assert (answer.status_code, answer.json()) == (202, {"accepted": 2})
    (record,) = log.records
    assert isinstance(record, Labelled)
    assert record.labels.numbers["revenue"].tolist() == [2.5, 0.0]
    unknown = problem(post(service, "/feedback", json={"labels": [{"key": "k", "values": {"clicks": 1}}]}), 422)
    assert "known: 'revenue'" in unknown["detail"]
    assert len(log.records) == 1


@pytest.mark.parametrize(("bound", "value"), [("_ANSWERS", 2), ("_CELLS", 7)])  # an answer of a row holds 3 numbers
def test_answers_are_remembered_within_bounds(
    log: FakeLog, monkeypatch: pytest.MonkeyPatch, bound: str, value: int
) -> None:
    monkeypatch.setattr(f"mlops_ray.serving.repeats.{bound}", value)
    service = make(log)

    async def run() -> None:
        for request_id in ("a", "b", "c", "a", "c"):
            await service.predict(request_id, asked("k"), repeatable=True)

    asyncio.run(run())
    assert [r.id for r in scored(log)] == ["a", "b", "c", "a"]


def test_ids_that_are_no_clients_are_not_remembered(log: FakeLog) -> None:
    service = make(log)

    async def run() -> None:
        for _ in range(2):
            await service.predict("a", asked("k"))

    asyncio.run(run())
    assert len(scored(log)) == 2


def test_trouble_reaches_every_concurrent_retry(log: FakeLog) -> None:
    service = make(log, first=None)

    async def run() -> list[Any]:
        tasks = [service.predict("id", asked("k"), repeatable=True) for _ in range(3)]
        return await asyncio.gather(*tasks, return_exceptions=True)

    assert [type(e) for e in asyncio.run(run())] == [BackendUnavailable] * 3


def test_a_key_used_for_another_body_is_refused(log: FakeLog) -> None:
    """And not answered with what somebody else asked."""
    service, key = make(log), {"Idempotency-Key": "k"}
    first = post(service, json={"rows": [row("a")]}, headers=key)
    other = post(service, json={"rows": [row("b")]}, headers=key)
    assert first.status_code == 200
    assert other.status_code == 422
    assert "Idempotency-Key used twice" in other.text
