"""Business numbers end to end: requests and feedback over HTTP, spool, log, and the look that judges by them.

No cluster runs: the canary is a fake, everything between the request and the verdict is not.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from mlops_ray.config import Project
from mlops_ray.data import lake
from mlops_ray.data.profile import Bins
from mlops_ray.monitoring.folding import fold
from mlops_ray.rollout import orders
from mlops_ray.rollout.analysis import Analysis
from mlops_ray.rollout.canary import CanaryState, Phase
from mlops_ray.rollout.looks import look, read
from mlops_ray.serving.log import tables as log
from mlops_ray.serving.log.collecting import Drain
from mlops_ray.serving.places import spool_folder, values_uri
from mlops_ray.serving.routing import chosen
from mlops_ray.serving.service import Service
from mlops_ray.serving.spool import segments as spool
from mlops_ray.serving.spool.capture import Capture
from mlops_ray.serving.versions import Wanted
from mlops_ray.serving.web.http import Application
from mlops_ray.state import RolloutRow, Store
from mlops_ray.training.gates.verdict import Verdict
from tests import fakes

START, HOUR = 1_700_000_000.0, 3600.0
TRIAL = "small-v2-r1"
REVENUE = {"metric": "business", "name": "revenue", "low": 0, "high": 50, "better": "higher", "margin": 10}
KEYS = [f"customer-{i}" for i in range(1500)]
CANARYS = {KEYS[i] for i in chosen(KEYS, TRIAL, 0.5)}


class Shop:
    """A project whose canary answers half of the customers, and is judged by what they spend."""

    def __init__(self, folder: Path, **plan: Any) -> None:
        rollout = {"analyses": [REVENUE], "shares": [0.5], "step_min_s": 0, **plan}
        self.project: Project = fakes.project(storage={"root": str(folder)}, rollout=rollout)
        self.store = Store.open(self.project.storage.state)
        self.folder = spool_folder(self.project, "n1")
        spool.private_folder(self.folder)

    def answer(self, *posts: tuple[str, Any]) -> list[httpx.Response]:
        """What a replica that has just come up answers; it dies without another word."""
        capture = Capture(self.project, self.folder, None)
        first = Wanted(sequence=1, stable=fakes.held(1), canary=2, share=0.5, salt=TRIAL)
        lines = fakes.canary(lambda n: np.full(n, 0.6))
        service = Service(self.project, capture, fakes.FakeLoader(), lines, first=first)

        async def visit() -> list[httpx.Response]:
            transport = httpx.ASGITransport(Application(lambda: service))
            async with httpx.AsyncClient(transport=transport, base_url="http://replica") as client:
                return [await client.post(path, json=body) for path, body in posts]

        return asyncio.run(visit())

    def predictions(self) -> list[str]:
        """Each customer asks once. Returns the prediction ids, in the order of `KEYS`."""
        rows = [fakes.row(key, at=START + i) for i, key in enumerate(KEYS)]
        (answered,) = self.answer(("/predict", {"rows": rows}))
        return [one["prediction_id"] for one in answered.json()["predictions"]]

    def collect(self) -> None:
        bins = Bins({"x": (0.0, 1.0), "n": (1.0,), "flag": (0.5,)}, {"c": ("red",), "d": ("blue",)})
        push = lambda pushed: self.store.run(lambda tx: fold(tx, "small", pushed, 2e9))  # noqa: E731
        assert Drain(self.project, self.folder, self.store, push, lambda: bins, lambda: 2e9).run()[1]

    def look(self, at: float) -> Analysis:
        plan = self.project.rollout.model_dump(mode="json")
        state = CanaryState(Phase.RAMPING, 0, START).to_dict()
        row = RolloutRow(TRIAL, "small", 2, 1, plan, state, START)
        plan = orders.plan_of(row)
        return look(self.store, self.project, row, plan, read(self.project, row, plan, at))


@pytest.fixture
def shop(tmp_path: Path) -> Iterator[Shop]:
    made = Shop(tmp_path)
    yield made
    made.store.close()


def spent(by_canary: float, by_stable: float) -> Callable[[str], float]:
    """What a customer spends: 30 with the probability of the version that answers them."""
    rng = np.random.default_rng(3)
    drawn = {key: rng.random() for key in KEYS}
    return lambda key: 30.0 * (drawn[key] < (by_canary if key in CANARYS else by_stable))


@pytest.mark.parametrize(("by_canary", "verdict"), [(0.4, Verdict.PASS), (0.1, Verdict.FAIL)])
def test_a_look_is_decided_by_numbers_that_came_by_key_and_by_id(
    shop: Shop, by_canary: float, verdict: Verdict
) -> None:
    ids, spends = shop.predictions(), spent(by_canary, 0.4)
    by_id = [
        {"prediction_id": i, "values": {"revenue": spends(k)}, "time": START + HOUR}
        for i, k in zip(ids[::2], KEYS[::2], strict=True)
    ]
    by_key = [{"key": k, "label": 1, "values": {"revenue": spends(k)}, "time": START + 2 * HOUR} for k in KEYS[1::2]]
    assert [a.status_code for a in shop.answer(("/feedback", {"labels": by_id + by_key}))] == [202]
    shop.collect()
    (early,), (late,) = shop.look(START + 1.5 * HOUR).metrics, shop.look(START + 3 * HOUR).metrics
    assert (early.name, early.n_keys) == ("business:revenue", len(by_id))  # the rest was not known then
    assert (late.n_keys, late.verdict) == (len(KEYS), verdict)
    assert late.estimate == pytest.approx(30 * (0.4 - by_canary), abs=3)


def test_a_correction_stands_in_the_log_and_changes_no_bet(shop: Shop) -> None:
    ids = shop.predictions()
    shop.answer(("/feedback", {"labels": [{"prediction_id": ids[0], "values": {"revenue": 30}, "time": START + HOUR}]}))
    again = {"prediction_id": ids[0], "values": {"revenue": 0}, "time": START + 2 * HOUR}
    shop.answer(("/feedback", {"labels": [again]}), ("/feedback", {"labels": [again]}))
    shop.collect()
    found = lake.scan(values_uri(shop.project), "0", "9", log.VALUES_SCHEMA)
    assert sorted(found["value"].to_pylist()) == [0.0, 0.0, 30.0]
    (metric,) = shop.look(START + 3 * HOUR).metrics
    sign = -1 if KEYS[0] in CANARYS else 1  # higher is better, and each arm has half of the traffic
    assert (metric.n_keys, metric.estimate) == (1, sign * 30 / 0.5)


def test_without_numbers_nothing_is_concluded(shop: Shop) -> None:
    shop.predictions()
    shop.collect()
    found = shop.look(START + 3 * HOUR)
    assert (found.verdict, found.metrics[0].n_keys) == (Verdict.INCONCLUSIVE, 0)
