from __future__ import annotations

from typing import get_args

import pytest

from mlops_ray.config import Metric
from mlops_ray.training.gates import naming


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("rows", "rows"),
        ("no_worse_than_champion", "no worse than champion"),
        ("limit.roc_auc", "limit: ROC AUC"),
        ("slices.home_airport", "slices: home_airport"),
        ("fairness.home_airport.demographic_parity", "fairness: home_airport, demographic parity"),
        ("leakage.time_order", "leakage: time order"),
        ("robustness.monotonic.dep_time", "robustness: monotonic, dep_time"),
        ("<b>", "<b>"),
    ],
)
def test_a_check_in_words_keeps_names_of_columns(name: str, says: str) -> None:
    assert naming.check(name) == says


def test_no_metric_is_called_as_another_or_by_its_key() -> None:
    names = [naming.metric(name) for name in get_args(Metric)]
    assert len(set(names)) == len(names)
    assert not [name for name in names if "_" in name]
