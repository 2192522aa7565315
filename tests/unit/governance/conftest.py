"""Facts of a version of which everything is on record."""

from __future__ import annotations

import base64
from typing import Any

import pytest

from mlops_ray.data.lake import DatasetVersion
from mlops_ray.governance.facts import Facts, Run
from mlops_ray.ledger import Entry
from mlops_ray.state import RetrainRow, RolloutRow, VersionRow

PIXEL = base64.b64decode(
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
)
SPLIT = '{"by": "time", "column": "at", "validation_us": 1700006400000000, "holdout_us": 1700092800000000}'  # midnights
CODE = {"commit": "c" * 40, "dirty": False}


def dataset(version: int, content: str, **lineage: Any) -> DatasetVersion:
    found = {"made_by": {"verb": "prepare"}, "source": {"kind": "csv"}, "uris": ["/data/a.csv"], "code": CODE}
    return DatasetVersion("/lake/flights", version, content, 1000 * version, 5000, 1.7e9, found | lineage)


def entry(seq: int, kind: str, subject: str, why: str, **evidence: Any) -> Entry:
    return Entry("flights", seq, 1.7e9 + seq, kind, subject, "ann", why, evidence, "0" * 64, "1" * 64)


def check(name: str, verdict: str, detail: str, **evidence: Any) -> dict[str, Any]:
    return {"name": name, "verdict": verdict, "detail": detail, "evidence": evidence}


def _slice(name: str, verdict: str, n: int, **numbers: float | None) -> dict[str, Any]:
    return {"slice": name, "verdict": verdict, "n": n, "n_blocks": n // 9, **numbers}


GATES: dict[str, Any] = {
    "verdict": "pass",
    "checks": [
        check("rows", "pass", "5,000 holdout rows, 1,100 positive"),
        check("no_worse_than_champion", "pass", "differs by -0.0100", difference=-0.01),
        check(
            "slices.carrier",
            "pass",
            "no worse in any of 2 slices; 1 too small to judge",
            slices=[
                _slice(
                    "carrier UA", "pass", 900, value=-0.01, lower=-0.03, upper=0.002, se=0.1, critical=1.7, p_worse=0.9
                ),
                _slice("carrier <b>XX</b>", "not judged", 9, value=0.5, lower=None, upper=None, p_worse=None),
            ],
        ),
        check("fairness.origin.demographic_parity", "pass", "rates differ by at most 0.04"),
        check("robustness.noise", "inconclusive", "loses 0.01 to 0.12"),
    ],
    "metrics": {
        "log_loss": {"value": 0.45, "low": 0.43, "high": 0.47, "n": 5000, "n_blocks": 60},
        "roc_auc": {"value": 0.712345, "low": None, "high": None, "n": 5000, "n_blocks": 4},
    },
}


@pytest.fixture
def facts() -> Facts:
    tags = {
        "dataset.content_hash": "d" * 64,
        "engine": "onnx",
        "estimator": "sklearn.ensemble:HistGradientBoostingClassifier",
        "decision": "flights-1",
    }
    row = VersionRow(
        "flights", 7, "r" * 32, "/models/flights/r", "a" * 64, "/lake/flights@3", "registered", 1.7e9, tags
    )
    run = Run(
        "r" * 32,
        "FINISHED",
        1.7e9,
        1.7e9 + 100,
        {"estimator": "HistGradientBoostingClassifier", "max_leaf_nodes": "31", "seed": "3", "split": SPLIT},
        {"validation.log_loss": 0.44, "rows.train": 20000.0, "rows.holdout": 5000.0, "seconds.search": 12.34},
        {
            "mlflow.user": "ann",
            "mlflow.source.git.commit": "c" * 40,
            "git.dirty": "true",
            "git.diff_sha256": "e" * 64,
            "config.sha256": "f" * 64,
            "warning.features": "dep_time: quantiles may be off by 2% of the rows",
        },
        {"done": 9, "stopped early": 3},
        {
            "task": "binary",
            "target": "late",
            "gates": {"alpha": 0.05, "block_s": 86400.0, "approval": False},
            "features": {"numeric": {"columns": ["x", "y"]}, "categorical": {"columns": ["carrier"]}},
        },
        {"implementation": "CPython", "python": "3.11.7", "platform": "Linux", "distributions": {"numpy": "2.4.6"}},
        GATES,
        {"roc_curve": PIXEL},
    )
    decision = RetrainRow("flights-1", "flights", "drift", "distance drifted", 1.7e9, "s", "succeeded", {}, 1.7e9)
    state = {"phase": "promoted", "step": 2, "since": 1.7e9, "reason": ""}
    rollout = RolloutRow("flights-v7-r1", "flights", 7, 6, {"shares": [0.05, 0.5]}, state, 1.7e9, 1.7e9 + 500)
    entries = (
        entry(4, "retrain decided", "flights-1", "distance drifted"),
        entry(5, "rollout started", "v7", "distance drifted", rollout="flights-v7-r1", gates=GATES),
        entry(6, "rollout promoted", "v7", "no worse", rollout="flights-v7-r1"),
    )
    parents = (dataset(1, "b" * 64),)
    made = dataset(3, "d" * 64, made_by={"verb": "retrain", "decision": "flights-1"}, parents=[{"version": 1}])
    return Facts(row, run, made, parents, (rollout,), decision, entries, "stable")
