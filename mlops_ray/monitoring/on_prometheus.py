"""Prometheus exposition of a project's state. Names are stable, labels few; values come from the state database.

The loop never reads these numbers back: scrapes come too late for decisions.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator
from typing import Any

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from mlops_ray.monitoring.alerts import book
from mlops_ray.monitoring.folding import rows_cursor
from mlops_ray.monitoring.prometheus.exposed import Family, families, gather, shown
from mlops_ray.monitoring.record import ENTRY, METHODS
from mlops_ray.state import Store, WindowRow


class Exposition(Collector):
    """What a scrape of the monitor sees."""

    def __init__(self, store: Store, project: str) -> None:
        self._store, self._project = store, project

    def collect(self) -> Iterator[Metric]:
        """All metric families of the project."""
        with self._store.read() as tx:
            serving = tx.serving(self._project)
            watermark = tx.cursor(self._project, "watermark").at
            facts, versions = gather(tx, self._project), shown(serving, tx.versions(self._project))
            rows = {v: max(tx.cursor(self._project, rows_cursor(v)).number, 0) for v in versions}
            windows = tx.windows(self._project, 60)
            retrains = Counter(r.status for r in tx.retrains(self._project))
            rollouts = Counter(r.state["phase"] for r in tx.rollouts(self._project))
            alerts = Counter((a.rule, a.severity, a.state) for a in book.opened(tx, self._project))
            messages = book.counts(tx, self._project)
        name = {"project": self._project}
        yield self._gauge("mlops_ray_watermark_seconds", "Decision time of the project", [(name, watermark)])
        yield self._counter(
            "mlops_ray_rows", "Rows answered, by version", [(name | {"version": str(v)}, n) for v, n in rows.items()]
        )
        share = serving.spec.get("share", 0.0) if serving else 0.0
        yield self._gauge("mlops_ray_canary_share", "Share of keys that the canary answers", [(name, share)])
        stable = (serving.spec.get("stable") or {}).get("version", 0) if serving else 0
        yield self._gauge("mlops_ray_stable_version", "Version that answers most traffic", [(name, stable)])
        yield from self._windows(windows, name)
        yield self._gauge(
            "mlops_ray_retrains", "Retrains by outcome", [(name | {"status": s}, n) for s, n in retrains.items()]
        )
        yield self._gauge(
            "mlops_ray_rollouts", "Rollouts by phase", [(name | {"phase": p}, n) for p, n in rollouts.items()]
        )
        yield from (self._family(each, name) for each in families(facts))
        yield self._gauge(
            "mlops_ray_alerts",
            "Alerts that are open, by where they stand",
            [(name | {"rule": r, "severity": s, "state": at}, n) for (r, s, at), n in alerts.items()],
        )
        yield self._gauge(
            "mlops_ray_alert_messages",
            "Messages about alerts of the last 90 days, by status",
            [(name | {"channel": c, "status": s}, n) for (c, s), n in messages.items()],
        )

    def _windows(self, windows: list[WindowRow], name: dict[str, str]) -> Iterator[Metric]:
        newest = {kind: next((w.result for w in windows if kind in w.result), None) for kind in ("drift", "quality")}
        drift, quality = newest["drift"], newest["quality"]
        features = drift["drift"]["features"] if drift else []
        yield self._gauge(
            "mlops_ray_drift_psi",
            "Population stability index of the newest window",
            [(name | {"feature": f["feature"]}, f["psi"]) for f in features],
        )
        yield self._gauge(
            "mlops_ray_drift_limit",
            "Calibrated alarm limit of the index",
            [(name | {"feature": f["feature"]}, f["limit"]) for f in features],
        )
        found = quality["quality"] if quality else {}
        judged = found.get("metric", "log_loss")
        told = {
            judged: found.get(judged),
            f"{judged}_limit": found.get("limit"),
            "label_coverage": found.get("coverage"),
        }
        for metric, title in (
            ("log_loss", "Realised log-loss (nats) of the newest mature window"),
            ("log_loss_limit", "Calibrated alarm limit of the log-loss"),
            ("mse", "Realised mean squared error of the newest mature window"),
            ("mse_limit", "Calibrated alarm limit of the mean squared error"),
            ("label_coverage", "Share of rows whose label is known"),
        ):
            value = told.get(metric)
            yield self._gauge(f"mlops_ray_{metric}", title, [] if value is None else [(name, value)])
        yield from self._estimates([w.result[ENTRY] for w in windows if ENTRY in w.result], name)

    def _estimates(self, entries: list[dict[str, Any]], name: dict[str, str]) -> Iterator[Metric]:
        """Of the newest window its estimates, of the newest scored one how far they were off. Args: newest first."""
        newest = entries[0] if entries else None
        told = [] if newest is None else list(_told(newest, name))
        for suffix, field, title in (
            ("", "value", "Quality of the newest window, estimated without labels"),
            ("_low", "low", "Lower end of the estimate's interval"),
            ("_high", "high", "Upper end of the estimate's interval"),
        ):
            found = [(labels, each[field]) for labels, each in told]
            yield self._gauge(f"mlops_ray_estimate{suffix}", title, found)
        gaps = []
        for entry in [entry for entry in entries if entry.get("realised")][:1]:
            realised = entry["realised"]
            pairs = [(labels, each["value"], realised.get(labels["metric"])) for labels, each in _told(entry, name)]
            gaps = [(labels, said - was) for labels, said, was in pairs if was is not None]
        yield self._gauge("mlops_ray_estimate_error", "Estimate less what was realised, newest mature window", gaps)
        trust = [] if newest is None else [(name | {"method": m}, newest["record"][m]["trust"]) for m in METHODS]
        yield self._gauge("mlops_ray_estimate_trust", "Trust that past estimates have earned, from 0 to 1", trust)

    def _family(self, found: Family, name: dict[str, str]) -> Metric:
        samples = [({**name, **labels}, value) for labels, value in found.samples]
        if found.kind != "histogram":
            return (self._gauge if found.kind == "gauge" else self._counter)(found.name, found.title, samples)
        family = HistogramMetricFamily(found.name, found.title, labels=list(samples[0][0]) if samples else [])
        for labels, (buckets, total) in samples:
            spans = [("+Inf" if math.isinf(bound) else repr(bound), n) for bound, n in buckets]
            family.add_metric(list(labels.values()), spans, sum_value=total)
        return family

    @staticmethod
    def _gauge(name: str, title: str, samples: list[tuple[dict[str, str], float]]) -> Metric:
        family = GaugeMetricFamily(name, title, labels=list(samples[0][0]) if samples else [])
        for labels, value in samples:
            family.add_metric(list(labels.values()), value)
        return family

    @staticmethod
    def _counter(name: str, title: str, samples: list[tuple[dict[str, str], float]]) -> Metric:
        family = CounterMetricFamily(name, title, labels=list(samples[0][0]) if samples else [])
        for labels, value in samples:
            family.add_metric(list(labels.values()), value)
        return family


def _told(entry: dict[str, Any], name: dict[str, str]) -> Iterator[tuple[dict[str, str], dict[str, Any]]]:
    """The estimates of a window's entry, by metric and method."""
    for method in METHODS:
        for metric, each in entry[method]["metrics"].items():
            yield name | {"metric": metric, "method": method}, each
