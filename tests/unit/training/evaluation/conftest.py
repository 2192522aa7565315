from __future__ import annotations

from collections.abc import Iterator

import pytest
import threadpoolctl


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Simulations multiply small matrices: on a busy machine more threads wait for each other ten times as long."""
    with threadpoolctl.threadpool_limits(1):
        yield
