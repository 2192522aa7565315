"""Many rows through a fitted ColumnTransformer, at the price of their distinct categories.

scikit-learn's encoders look at every cell of an object column: a microsecond each. Encoders treat columns apart and
rows alone, so it is enough to encode each column's distinct values and to copy the results to the rows.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from mlops_ray.config import Features
from mlops_ray.data.features.derive import derive, texts_read
from mlops_ray.data.features.statistics import to_columns
from mlops_ray.data.profile import Columns

if TYPE_CHECKING:
    from sklearn.compose import ColumnTransformer

Matrix = npt.NDArray[np.float64]


def transformed(
    features: Features, fitted: ColumnTransformer, rows: pa.Table | Columns, out: Matrix | None = None
) -> Matrix:
    """What `fitted.transform` makes of `rows`, shape (n, outputs), to the bit.

    Args: rows: a table with the declared columns (see `schema.conform`), or the inputs as `to_columns` makes them. out:
    an earlier result of no fewer rows, whose memory is used again: fresh memory of this size costs as much as the work.
    Raises: DataError when an input is missing.
    """
    steps = [
        (step, list(columns), fitted.output_indices_[name], _widths(name, step))
        for name, step, columns in fitted.transformers_
        if name != "remainder"
    ]
    if isinstance(rows, pa.Table):
        n = rows.num_rows
        whole = {name for _, columns, _, widths in steps if widths is None for name in columns}
        read = whole | texts_read(features)
        wanted = [name for name, kind in features.kinds.items() if kind != "string" or name in read]
        columns = derive(features, to_columns(features, rows, wanted))
    else:
        n = len(rows[features.inputs[0]])
        columns = derive(features, rows)
    made = np.empty((n, sum(place.stop - place.start for _, _, place, _ in steps))) if out is None else out[:n]
    for step, names, place, widths in steps:
        if widths is None:
            if n:
                made[:, place] = step.transform(_frame(features, columns, names))
        else:
            _encode(step, [(name, *_codes(rows[name])) for name in names], widths, made[:, place])
    return made


def _frame(features: Features, columns: Columns, names: list[str]) -> pd.DataFrame:
    texts = set(features.texts)
    cells = {name: columns[name] if name in texts else columns[name].astype(np.float64) for name in names}
    return pd.DataFrame(cells, columns=names)


def _widths(label: str, step: Any) -> list[int] | None:
    """Output columns per input column of a block's encoder; None for other steps, which see their rows as they are.

    A custom encoder is one of them: it may know no "" (missing), or be of numbers."""
    from sklearn.preprocessing import OneHotEncoder

    if not label.startswith("categorical"):
        return None
    if isinstance(step, OneHotEncoder):
        return [len(known) for known in step.categories_]
    return [1] * step.n_features_in_


def _encode(
    step: Any, coded: list[tuple[str, npt.NDArray[np.object_], npt.NDArray[np.int64]]], widths: list[int], out: Matrix
) -> None:
    """Fills `out`, shape (n, sum of widths), from each column's distinct values and every row's place among them."""
    longest = max(len(values) for _, values, _ in coded)
    # Row i holds every column's i-th distinct value; shorter columns repeat their first.
    table = {
        name: np.concatenate([values, np.full(longest - len(values), values[0], dtype=object)])
        for name, values, _ in coded
    }
    encoded = np.asarray(step.transform(pd.DataFrame(table, columns=[name for name, _, _ in coded])))
    start = 0
    for (_, values, codes), width in zip(coded, widths, strict=True):
        block = encoded[: len(values), start : start + width]
        if width == 1:
            out[:, start] = block[:, 0][codes]
        else:
            # One-hot: a row holds a single 1 or none, so there is little to write.
            out[:, start : start + width] = 0.0
            hot = np.where(block.any(axis=1), start + block.argmax(axis=1), -1)[codes]
            rows = np.flatnonzero(hot >= 0)
            out[rows, hot[rows]] = 1.0
        start += width


def _codes(cells: pa.ChunkedArray | npt.NDArray[Any]) -> tuple[npt.NDArray[np.object_], npt.NDArray[np.int64]]:
    """Distinct categories, "" (missing) last, and per row which of them."""
    if isinstance(cells, np.ndarray):
        coded = pa.array(cells, pa.string()).dictionary_encode()
    else:
        coded = cells.cast(pa.string()).dictionary_encode().unify_dictionaries().combine_chunks()
    known = coded.dictionary.to_pylist()
    places = pc.fill_null(coded.indices, len(known)).to_numpy(zero_copy_only=False)
    return np.array([*known, ""], dtype=object), places
