"""One local Ray cluster for all integration tests of a session."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def ray_local(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A Ray of our own with four logical CPUs, without dashboard; it ends with the session.

    Four, so that a search of two trials leaves room for data tasks, however few cores the machine has.
    """
    with pytest.MonkeyPatch.context() as env:
        # An auth token that lies in the real home would silently switch authentication on, and a RAY_ADDRESS would
        # make this join somebody else's cluster.
        env.setenv("HOME", str(tmp_path_factory.mktemp("home")))
        env.setenv("RAY_AUTH_MODE", "disabled")
        env.delenv("RAY_ADDRESS", raising=False)
        # Workers find `tests.fakes`, and functions of test modules, from the repository's root.
        root = str(Path(__file__).parents[2])
        env.setenv("PYTHONPATH", os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH")])))

        import ray

        ray.init(
            address="local",
            num_cpus=4,
            include_dashboard=False,
            log_to_driver=False,
            object_store_memory=512 * 1024**2,
        )
        try:
            yield
        finally:
            ray.shutdown()
