"""The quickstart's data: scikit-learn's breast cancer samples, which need no download."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import numpy as np
import pyarrow as pa
from sklearn.datasets import load_breast_cancer

FIRST = datetime(2024, 1, 1, tzinfo=UTC)
NUMERIC = ("mean radius", "mean texture", "mean smoothness", "mean compactness", "mean concavity", "mean symmetry")


def samples() -> pa.Table:
    """The 569 samples: `sample_id`, `measured_at` (hourly from 2024-01-01, in an order drawn once), `malignant` 0 or 1.

    Features: six means (shape and texture of cell nuclei), and `size`: the radius below 12, below 15, or larger.
    """
    data = load_breast_cancer()
    values = dict(zip(data.feature_names, data.data.T, strict=True))
    n = len(data.target)
    radius = values["mean radius"]
    # The file's own order is not by chance: 51 % of its first half are malignant and 22 % of its last fifth, which as
    # times would be a drift that nobody measured.
    hours = np.random.default_rng(n).permutation(n).tolist()
    return pa.table(
        {
            "sample_id": [f"sample-{i:04d}" for i in range(n)],
            "measured_at": pa.array([FIRST + timedelta(hours=hour) for hour in hours], pa.timestamp("us", tz="UTC")),
            "malignant": pa.array(1 - data.target, pa.int64()),  # the package's 0 is malignant
            **{name.replace(" ", "_"): pa.array(values[name], pa.float64()) for name in NUMERIC},
            "size": np.select([radius < 12, radius < 15], ["small", "medium"], "large").tolist(),
        }
    )
