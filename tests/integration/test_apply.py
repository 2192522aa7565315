"""The one writer of Serve's configuration, with a Serve that only remembers what it was told."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from mlops_ray.errors import BackendUnavailable, LeaseLost
from mlops_ray.serving import on_apply
from mlops_ray.serving.versions import Wanted
from mlops_ray.state import Store
from tests import fakes
from tests.fakes import held

URL = "http://127.0.0.1:1"


class Serve:
    """Stands for Ray Serve: runs at once whatever it is told, and notes in which order it heard of things."""

    def __init__(self) -> None:
        self.told: dict[str, Any] = {"applications": []}
        self.heard: dict[str, tuple[int, int]] = {}
        self.log: list[str] = []
        self.before_put: Any = lambda: None

    def details(self, dashboard: str) -> dict[str, Any]:
        running = {"status": "RUNNING", "message": ""}
        return {"applications": {a["name"]: running | {"deployed_app_config": a} for a in self.told["applications"]}}

    def put(self, dashboard: str, config: dict[str, Any]) -> None:
        hook, self.before_put = self.before_put, lambda: None
        hook()
        self.log.append("put")
        self.told = config

    def broadcast(self, project: str, wanted: Wanted) -> list[dict[str, Any]]:
        self.log.append(f"tell {project} {wanted.sequence}")
        self.heard[project] = max(self.heard.get(project, (0, -1)), wanted.order)
        fence, sequence = self.heard[project]
        return [{"fence": fence, "sequence": sequence}]

    def sequences(self) -> dict[str, int]:
        return {
            a["name"]: a["deployments"][0]["user_config"]["sequence"]
            for a in self.told["applications"]
            if "--" not in a["name"]
        }


@pytest.fixture
def serve(monkeypatch: pytest.MonkeyPatch) -> Serve:
    fake = Serve()
    monkeypatch.setattr(on_apply, "_details", fake.details)
    monkeypatch.setattr(on_apply, "_put", fake.put)
    monkeypatch.setattr(on_apply, "replica_status", fake.broadcast)
    return fake


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    opened = Store.open(f"sqlite:///{tmp_path}/state.db")
    for name in ("first", "second"):
        text = yaml.safe_dump(fakes.project(project=name).model_dump(mode="json", exclude_unset=True))
        opened.run(lambda tx, name=name, text=text: tx.save_project(name, text, 0.0))  # type: ignore[misc]
        want(opened, name, Wanted(stable=held(1)))
    yield opened
    opened.close()


def want(store: Store, project: str, wanted: Wanted) -> None:
    store.run(lambda tx: tx.save_serving(project, wanted.spec(), 0))


def test_live_replicas_hear_before_serve_does_and_a_second_time_changes_nothing(serve: Serve, store: Store) -> None:
    on_apply.apply(store, URL, holder="test")
    assert serve.log[:3] == ["tell first 1", "tell second 1", "put"]
    assert serve.sequences() == {"first": 1, "second": 1}
    serve.log.clear()
    on_apply.apply(store, URL, holder="test")
    assert "put" not in serve.log


def test_what_is_saved_while_it_waits_is_applied_by_the_same_call(serve: Serve, store: Store) -> None:
    serve.before_put = lambda: want(store, "second", Wanted(stable=held(1), canary=2, share=0.1, salt="r"))
    on_apply.apply(store, URL, holder="test")
    assert serve.sequences() == {"first": 1, "second": 1}  # it agreed with what it had read, and says so
    on_apply.apply(store, URL, holder="test")
    assert serve.sequences() == {"first": 1, "second": 2}
    assert "second--v2" in {a["name"] for a in serve.told["applications"]}


def test_one_that_slept_through_its_lease_before_the_put_does_not_write(
    serve: Serve, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []

    def sleep(dashboard: str) -> dict[str, Any]:
        asked.append(dashboard)
        seen = serve.details(dashboard)
        if len(asked) == 2:  # the first time it has no lease yet
            take_over(store)
        return seen

    monkeypatch.setattr(on_apply, "_details", sleep)
    with pytest.raises(LeaseLost):
        on_apply.apply(store, URL, holder="sleeper")
    assert "put" not in serve.log


def take_over(store: Store) -> None:
    """Another process takes the lease, as if the one that has it had been stopped beyond its end."""
    lease = store.acquire(on_apply.APPLY_LEASE, "other", 10.0, time.time() + 60)
    store.release(lease)


def test_one_that_slept_in_the_middle_of_its_put_puts_right_what_it_overwrote(serve: Serve, store: Store) -> None:
    """The worst spot: the lease is looked at, the process is stopped, another applies, the old PUT goes out."""

    def sleep() -> None:
        take_over(store)
        want(store, "second", Wanted(stable=held(2)))
        on_apply.apply(store, URL, holder="other")
        assert serve.sequences() == {"first": 1, "second": 2}

    serve.before_put = sleep
    on_apply.apply(store, URL, holder="sleeper")
    assert serve.sequences() == {"first": 1, "second": 2}
    assert serve.heard["second"] == (0, 2)


def test_serve_that_does_not_get_there_is_said_with_what_is_missing(
    serve: Serve, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(on_apply, "replica_status", lambda project, wanted: [])
    with pytest.raises(BackendUnavailable, match="0 replicas of first answer, 1 are wanted"):
        on_apply.apply(store, URL, holder="test", timeout_s=0.2)
    assert on_apply.try_apply(store, URL, holder="test", project="second") is not None


def test_a_project_whose_replicas_hang_holds_up_no_other(
    serve: Serve, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    def hang(project: str, wanted: Wanted) -> list[dict[str, Any]]:
        assert project != "first", "nobody waits for it"
        return serve.broadcast(project, wanted)

    monkeypatch.setattr(on_apply, "replica_status", hang)
    assert on_apply.try_apply(store, URL, holder="test", project="second") is None
    assert serve.sequences() == {"first": 1, "second": 1}, "both are put"


def test_what_agrees_already_is_looked_at_without_a_lease(serve: Serve, store: Store) -> None:
    on_apply.apply(store, URL, holder="test")
    store.acquire(on_apply.APPLY_LEASE, "other", 10.0, time.time())
    assert on_apply.try_apply(store, URL, holder="test", project="first") is None
