"""What arbitrary requests may do to a parser: be answered, or be refused with a 4xx."""

from __future__ import annotations

import json
from collections.abc import Callable

from hypothesis import strategies as st

from mlops_ray.errors import BadRequest
from mlops_ray.serving.exchange import Asked

JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats(allow_nan=False) | st.text(max_size=4),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=8,
)
"""Any document, of few parts."""


def harmless(parse: Callable[[], Asked]) -> None:
    """Nothing comes of `parse` but rows, or a refusal that says so and can be sent."""
    refusal = None
    try:
        found = parse()
    except BadRequest as exc:
        refusal = exc
    if refusal is None:
        assert found.batch.n_rows >= 1
    else:
        assert 400 <= refusal.status < 500
        json.dumps(refusal.members)
