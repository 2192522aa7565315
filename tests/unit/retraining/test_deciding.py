"""What the policy is told of the past."""

from __future__ import annotations

from mlops_ray.retraining.deciding import history
from mlops_ray.state import Store
from tests import histories


def test_new_rows_are_those_since_the_last_retrain_was_decided_or_since_traffic_began(store: Store) -> None:
    project = histories.project(retraining={"least_new_rows": 1})
    histories.serve(store, project)
    histories.live(store, project, 0, 10, (1, 1.0))
    with store.read() as tx:
        assert history(tx, project).new_rows == 7_000
        assert history(tx, histories.project()).new_rows is None
    histories.retrained(store, project, histories.BEGAN + 10 * histories.DAY, 2)
    with store.read() as tx:
        assert history(tx, project).new_rows == 0
    histories.live(store, project, 10, 13, (1, 0.8), (2, 0.2))
    with store.read() as tx:
        assert history(tx, project).new_rows == 2_100
