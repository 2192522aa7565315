"""Generated rows for the benchmarks: payments with 20 columns, some cells missing, one row in a thousand broken."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

ROWS_PER_FILE = 1_000_000
N_FLOATS = 12
SHOPS = tuple(f"shop-{i:04d}" for i in range(500))
COUNTRIES = tuple(f"{a}{b}" for a in "ABCDEFGHIJ" for b in "KLMNO")
CARDS = ("credit", "debit", "gift", "prepaid", "virtual")

PROJECT = """
project: payments
task: binary
target: fraud
key: id
event_time: at
storage: {{root: {root}}}
source: {{kind: parquet, path: {path}}}
columns:
  - {{name: id, dtype: int, min: 0}}
  - {{name: at, dtype: timestamp}}
  - {{name: fraud, dtype: int}}
{floats}
  - {{name: items, dtype: int, min: 0, max: 100}}
  - {{name: age_days, dtype: int, min: 0, max: 10000}}
  - {{name: card, dtype: string, values: [credit, debit, gift, prepaid, virtual]}}
  - {{name: country, dtype: string, pattern: "[A-Z]{{2}}"}}
  - {{name: shop, dtype: string}}
validation: {{max_bad_share: 0.05, unique: [id]}}
features:
  numeric: {{columns: [{numeric}, items, age_days]}}
  categorical: {{columns: [card, country, shop], min_share: 0.0001}}
search:
  candidates: [{{estimator: "sklearn.linear_model:LogisticRegression"}}]
"""


def project_text(folder: Path, root: Path) -> str:
    """The project file of the rows in `folder`."""
    floats = "\n".join(
        f"  - {{name: f{i:02d}, dtype: float, nullable: true, min: -50, max: 50}}" for i in range(N_FLOATS)
    )
    numeric = ", ".join(f"f{i:02d}" for i in range(N_FLOATS))
    return PROJECT.format(root=root, path=folder, floats=floats, numeric=numeric)


def generate(folder: Path, n_rows: int) -> None:
    """Writes `n_rows` rows as Parquet files of a million rows; files that are there already stay."""
    folder.mkdir(parents=True, exist_ok=True)
    for number, start in enumerate(range(0, n_rows, ROWS_PER_FILE)):
        path = folder / f"part-{number:04d}.parquet"
        if not path.exists():
            partial = path.with_suffix(".partial")
            rows = _rows(number, start, min(ROWS_PER_FILE, n_rows - start))
            pq.write_table(rows, partial, row_group_size=250_000)
            partial.rename(path)


def _rows(number: int, start: int, n: int) -> pa.Table:
    rng = np.random.default_rng([7, number])
    columns: dict[str, pa.Array] = {
        "id": pa.array(np.arange(start, start + n)),
        "at": pa.array(1_700_000_000_000_000 + np.arange(start, start + n) * 1_000_000, pa.timestamp("us", "UTC")),
        "fraud": pa.array((rng.random(n) < 0.02).astype(np.int64)),
    }
    for i in range(N_FLOATS):
        values = rng.normal(i, 1.0 + i / 4, n)
        values[rng.random(n) < 0.0001] = 1e6  # out of range
        columns[f"f{i:02d}"] = pa.array(values, mask=rng.random(n) < 0.05 if i % 2 else None)
    columns["items"] = pa.array(rng.integers(1, 20, n))
    columns["age_days"] = pa.array(rng.integers(0, 5000, n))
    for name, words in (("card", CARDS), ("country", COUNTRIES), ("shop", SHOPS)):
        codes = (len(words) * rng.random(n) ** 2).astype(np.int32)
        columns[name] = pa.DictionaryArray.from_arrays(pa.array(codes), pa.array(words)).cast(pa.string())
    return pa.table(columns)
