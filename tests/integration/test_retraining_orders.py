"""An operator's retrain: what the state database says of it when it cannot be carried out."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from mlops_ray import ledger
from mlops_ray.config import load_project
from mlops_ray.errors import DataError, IllegalMove
from mlops_ray.retraining import on_ray as retraining
from mlops_ray.state import RolloutRow, Store

ROOT = Path(__file__).parents[2]


def test_an_order_waits_for_the_open_rollout_and_retrain(tmp_path: Path) -> None:
    project = load_project(ROOT / "configs/quickstart.yaml", env={})
    store = Store.open(f"sqlite:///{tmp_path}/state.db")
    open_rollout = RolloutRow("r1", "quickstart", 2, 1, {}, {"phase": "ramping"}, 0.0)
    with store.begin() as tx:
        tx.save_rollout(open_rollout)
    alone = project.model_copy(update={"rollout": project.rollout.model_copy(update={"supersede": False})})
    with pytest.raises(IllegalMove, match="promote, abort"):
        retraining.order(store, alone, "why not", who="ann")
    with store.begin() as tx:
        tx.save_rollout(replace(open_rollout, state={"phase": "promoting"}))  # too late to take its place
    with pytest.raises(IllegalMove, match="abort"):
        retraining.order(store, project, "why not", who="ann")
    with store.begin() as tx:
        assert tx.open_retrain("quickstart") is None
        assert ledger.entries(tx, "quickstart") == []
        tx.save_rollout(RolloutRow("r1", "quickstart", 2, 1, {}, {"phase": "promoted"}, 0.0, ended=1.0))
    first = retraining.order(store, project, "new scanner", who="ann")
    with pytest.raises(DataError, match="still submitted"):
        retraining.order(store, project, "again", who="bob")
    with store.read() as tx:
        assert tx.open_retrain("quickstart") == first
        assert [(e.kind, e.who, e.why) for e in ledger.entries(tx, "quickstart")] == [
            ("retrain decided", "ann", "new scanner")
        ]
    store.close()
