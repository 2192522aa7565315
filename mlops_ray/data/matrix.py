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

if TYPE_CHECKING:
    from sklearn.compose import ColumnTransformer

Codes = npt.NDArray[np.int64]


def transformed(fitted: ColumnTransformer, frame: pd.DataFrame) -> npt.NDArray[np.float64]:
    """What `fitted.transform(frame)` returns, shape (n, outputs), to the bit.

    `frame` has the columns that the transformer was fitted on, categories as objects (see `features.to_frame`).
    """
    if not len(frame):
        return np.asarray(fitted.transform(frame))
    made = np.empty((len(frame), sum(part.stop - part.start for part in fitted.output_indices_.values())))
    for name, step, columns in fitted.transformers_:
        place = fitted.output_indices_[name]
        if place.stop == place.start:
            continue
        part = frame[list(columns)]
        widths = _widths(step)
        if widths is None:
            made[:, place] = step.transform(part)
        else:
            _encode(step, part, widths, made[:, place])
    return made


def _widths(step: Any) -> list[int] | None:
    """Output columns per input column of an encoder, None for other steps."""
    from sklearn.preprocessing import OneHotEncoder, OrdinalEncoder, TargetEncoder

    grouped = isinstance(step, OneHotEncoder) and (step.min_frequency or step.max_categories or step.drop is not None)
    if isinstance(step, OneHotEncoder) and not grouped:
        return [len(known) for known in step.categories_]
    if isinstance(step, OrdinalEncoder | TargetEncoder):
        return [1] * step.n_features_in_
    return None


def _encode(step: Any, part: pd.DataFrame, widths: list[int], out: npt.NDArray[np.float64]) -> None:
    """Fills `out`, shape (n, sum of widths)."""
    coded = [_codes(part[name]) for name in part.columns]
    longest = max(len(values) for values, _ in coded)
    # Row i holds every column's i-th distinct value; shorter columns repeat their first.
    table = {
        name: np.concatenate([values, np.full(longest - len(values), values[0], dtype=object)])
        for name, (values, _) in zip(part.columns, coded, strict=True)
    }
    encoded = step.transform(pd.DataFrame(table, columns=part.columns))
    start = 0
    for (_, codes), width in zip(coded, widths, strict=True):
        out[:, start : start + width] = np.asarray(encoded[:, start : start + width])[codes]
        start += width


def _codes(cells: pd.Series[Any]) -> tuple[npt.NDArray[np.object_], Codes]:
    """Distinct values, and per row which of them."""
    coded = pa.array(cells.to_numpy(dtype=object), pa.string()).dictionary_encode()
    return np.asarray(coded.dictionary.to_pylist(), dtype=object), coded.indices.to_numpy().astype(np.int64)
