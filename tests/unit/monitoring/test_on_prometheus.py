"""What a scrape sees, from an SQLite state database: the names are a contract with dashboards."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import prometheus_client
import pytest

from mlops_ray.monitoring.alerts import book
from mlops_ray.monitoring.alerts.alerting import Ack, Alert, Kind, Message, Phase
from mlops_ray.monitoring.folding import rows_cursor
from mlops_ray.monitoring.on_prometheus import Exposition
from mlops_ray.state import RolloutRow, Store, VersionRow, WindowRow

DRIFT = {"drift": {"features": [{"feature": "x", "psi": 0.5, "limit": 0.25}]}}
QUALITY = {"quality": {"log_loss": 0.4, "limit": 0.6, "coverage": 0.9}}


def estimated(value: float, trust: float, **more: object) -> dict[str, object]:
    interval = {"value": value, "low": value - 0.1, "high": value + 0.1}
    record = {"direct": {"trust": trust}, "weighted": {"trust": 0.0}}
    return {
        "estimated": {"direct": {"metrics": {"log_loss": interval}}, "weighted": {"metrics": {}}, "record": record}
        | more
    }


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    opened = Store.open(f"sqlite:///{tmp_path}/state.db")
    yield opened
    opened.close()


def scrape(store: Store) -> dict[str, float]:
    """Samples by name and labels, without the project's."""
    registry = prometheus_client.CollectorRegistry()
    registry.register(Exposition(store, "small"))
    assert b"# EOF" in prometheus_client.openmetrics.exposition.generate_latest(registry)
    found = {}
    for family in registry.collect():
        for sample in family.samples:
            assert sample.labels["project"] == "small"
            more = [v for k, v in sample.labels.items() if k != "project"]
            found["/".join([sample.name, *more])] = sample.value
    return found


def test_before_anything_happened(store: Store) -> None:
    assert scrape(store) == {
        "mlops_ray_watermark_seconds": 0.0,
        "mlops_ray_canary_share": 0.0,
        "mlops_ray_stable_version": 0.0,
    }


def test_a_project_in_full_swing(store: Store) -> None:
    with store.begin() as tx:
        tx.save_serving("small", {"stable": {"version": 3}, "share": 0.1}, 0)
        tx.save_serving("other", {"stable": {"version": 9}, "share": 0.9}, 0)
        tx.save_cursor("small", "watermark", 0, 123.0)
        for version, n in ((3, 20), (4, 10), (5, 0)):
            tx.save_version(VersionRow("small", version, "run", "/model", "sha", "data", "ready", 0.0, {}))
            if n:
                tx.save_cursor("small", rows_cursor(version), n, 0.0)
        for start, result in ((0.0, DRIFT | QUALITY), (7.0, {"drift": {"features": []}}), (14.0, {})):
            tx.save_window(WindowRow("small", start, start + 7, 3, result))
        for i, phase in enumerate(("promoted", "promoted", "rolled back")):
            tx.save_rollout(RolloutRow(f"r{i}", "small", i, 0, {}, {"phase": phase}, float(i), ended=float(i)))
    assert scrape(store) == {
        "mlops_ray_watermark_seconds": 123.0,
        "mlops_ray_canary_share": 0.1,
        "mlops_ray_stable_version": 3.0,
        "mlops_ray_rows_total/3": 20.0,
        "mlops_ray_rows_total/4": 10.0,
        "mlops_ray_rows_total/5": 0.0,
        # the newest window that was judged for drift had too few rows; for quality it is an older one
        "mlops_ray_log_loss": 0.4,
        "mlops_ray_log_loss_limit": 0.6,
        "mlops_ray_label_coverage": 0.9,
        "mlops_ray_rollouts/promoted": 2.0,
        "mlops_ray_rollouts/rolled back": 1.0,
        "mlops_ray_rollout_end_seconds/promoted": 1.0,
        "mlops_ray_rollout_end_seconds/rolled back": 2.0,
        "mlops_ray_windows_total": 3.0,
    }


def test_drift_by_feature(store: Store) -> None:
    with store.begin() as tx:
        tx.save_window(WindowRow("small", 0.0, 7.0, 3, DRIFT))
    found = scrape(store)
    assert (found["mlops_ray_drift_psi/x"], found["mlops_ray_drift_limit/x"]) == (0.5, 0.25)
    assert "mlops_ray_log_loss" not in found


def test_estimates_of_the_newest_window_and_the_error_of_the_newest_scored_one(store: Store) -> None:
    with store.begin() as tx:
        for start, result in (
            (0.0, estimated(0.3, 0.0, realised={"log_loss": 0.9})),
            (7.0, estimated(0.4, 0.5, realised={"log_loss": 0.45, "accuracy": 0.8})),
            (14.0, estimated(0.6, 0.75)),
            (21.0, DRIFT),
        ):
            tx.save_window(WindowRow("small", start, start + 7, 3, result))
    found = {name: value for name, value in scrape(store).items() if "estimate" in name}
    assert found == pytest.approx(
        {
            "mlops_ray_estimate/log_loss/direct": 0.6,
            "mlops_ray_estimate_low/log_loss/direct": 0.5,
            "mlops_ray_estimate_high/log_loss/direct": 0.7,
            "mlops_ray_estimate_error/log_loss/direct": -0.05,
            "mlops_ray_estimate_trust/direct": 0.75,
            "mlops_ray_estimate_trust/weighted": 0.0,
        }
    )


def test_alerts_by_rule_and_state_and_messages_by_channel(store: Store) -> None:
    with store.begin() as tx:
        for i, (phase, ack) in enumerate(
            ((Phase.FIRING, None), (Phase.FIRING, Ack("ann", "", 1.0)), (Phase.PENDING, None))
        ):
            alert = Alert(f"a{i}", "drift", f"v{i}", "warning", phase, 0.0, "why", ack=ack)
            book.save(tx, "small", alert)
        book.save(tx, "small", Alert("a9", "drift", "v9", "warning", Phase.RESOLVED, 0.0, "why", ended=1.0))
        book.post(tx, "small", [Message("m1", "team", ((Kind.FIRING, alert),))], 1.0)
    found = {name: value for name, value in scrape(store).items() if "alert" in name}
    assert found == {
        "mlops_ray_alerts/drift/warning/firing": 1.0,
        "mlops_ray_alerts/drift/warning/acknowledged": 1.0,
        "mlops_ray_alerts/drift/warning/pending": 1.0,
        "mlops_ray_alert_messages/team/waiting": 1.0,
    }
