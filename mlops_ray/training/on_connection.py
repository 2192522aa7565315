"""A client of MLflow that says what is wrong in our words, and tries again where that helps."""

from __future__ import annotations

import contextlib
import logging
import os
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import requests
from sqlalchemy import create_engine
from sqlalchemy.exc import DBAPIError

# MLflow reports its use over the internet unless told otherwise before its first import.
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
# With a server it prints an address when a run ends, on the standard output, where our one line of JSON belongs; and it
# draws bars for files that take no time.
os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException

from mlops_ray.config import Project
from mlops_ray.config.sources import hidden
from mlops_ray.errors import BackendUnavailable, DataError, ModelNotFound

REACH_S = 5.0
"""How long a tracking server may take to answer `/health`, or its database to let us in, before a run starts."""
WAITS_S = (1.0, 2.0, 4.0, 8.0)
"""Pauses between attempts of one write: a server that restarts needs some ten seconds."""
_PATIENCE = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2", "MLFLOW_HTTP_REQUEST_TIMEOUT": "20"}
# MLflow's own 7 retries with doubled pauses hang a job for two minutes when its server dies.
_MISSING = ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE")
_AGAIN = ("INTERNAL_ERROR", "TEMPORARILY_UNAVAILABLE", "REQUEST_LIMIT_EXCEEDED", "ABORTED", "DEADLINE_EXCEEDED")
_VALUE_LENGTH = 500  # MLflow's own limit for a tag or parameter is 6,000 or more; a page shows less

T = TypeVar("T")


class Connection:
    """The tracking server and registry of a project.

    Raises: BackendUnavailable from every method when server or database do not answer; DataError when MLflow refuses.
    """

    def __init__(self, project: Project, *, waits_s: Sequence[float] = WAITS_S) -> None:
        self.project, self._waits_s = project, tuple(waits_s)
        self.uri = _with_driver(project.storage.tracking)
        self.name = f"MLflow at {hidden(self.uri)}"
        with self.mapped():
            _reach(self.uri)
            self.client = MlflowClient(tracking_uri=self.uri, registry_uri=self.uri)

    def write(self, work: Callable[[], T], *, missing: str | None = None) -> T:
        """`work()`, repeated a few times while the server does not answer; it must be harmless to repeat.

        Raises: BackendUnavailable; DataError; ModelNotFound naming `missing`, the version or alias that is asked for.
        """
        for wait_s in self._waits_s:
            try:
                with self.mapped(missing):
                    return work()
            except BackendUnavailable:
                time.sleep(wait_s)
        with self.mapped(missing):
            return work()

    @contextlib.contextmanager
    def mapped(self, missing: str | None = None) -> Iterator[None]:
        """MLflow's errors as ours."""
        try:
            yield
        except (OSError, DBAPIError) as exc:  # requests' own errors, and those of a disk that artifacts go to
            raise BackendUnavailable(self.name, f"{_sentence(exc)}; check storage.tracking_uri") from exc
        except MlflowException as exc:
            if missing is not None and exc.error_code in _MISSING:
                raise ModelNotFound(self.project.project, missing) from exc
            if exc.error_code in _AGAIN:
                raise BackendUnavailable(self.name, f"{_sentence(exc)}; check storage.tracking_uri") from exc
            raise DataError(self.name, f"it refuses: {_sentence(exc)}") from exc


def everything(page: Callable[[str | None], Any]) -> list[Any]:
    """All of a search that answers in pages; `page` takes the token of the next one."""
    found: list[Any] = []
    token = None
    while True:
        answer = page(token)
        found += list(answer)
        token = answer.token
        if not token:
            return found


def short(value: object) -> str:
    """A parameter's or tag's value, cut to what a page shows."""
    return str(value)[:_VALUE_LENGTH]


def short_tags(tags: Mapping[str, str]) -> dict[str, str]:
    """Tags with names as MLflow takes them and values cut, but for MLflow's own (a note is a page)."""
    return {named(key): str(value) if key.startswith("mlflow.") else short(value) for key, value in tags.items()}


def named(text: str) -> str:
    """`text` as MLflow takes a name: letters, digits, `_`, `-`, `.`, `:`, `/` and spaces, 250 at most."""
    return re.sub(r"[^\w\-.:/ ]", "_", text)[:250]


def _with_driver(uri: str) -> str:
    """The address with the driver that we install: MLflow would take psycopg2 for PostgreSQL."""
    return re.sub(r"^postgres(?:ql)?://", "postgresql+psycopg://", uri)


def _reach(uri: str) -> None:
    if uri.startswith("http"):
        for name, value in _PATIENCE.items():
            os.environ.setdefault(name, value)
        requests.get(f"{uri.rstrip('/')}/health", timeout=REACH_S).raise_for_status()
        return
    if uri.startswith("postgresql"):
        # MLflow itself would ask ten times, in two minutes, and print each answer.
        engine = create_engine(uri, connect_args={"connect_timeout": int(REACH_S)})
        engine.connect().close()
        engine.dispose()
    if uri.startswith("sqlite:///"):
        Path(uri.removeprefix("sqlite:///")).parent.mkdir(parents=True, exist_ok=True)
    for name in ("alembic", "mlflow.store.db.utils"):
        logging.getLogger(name).setLevel(logging.WARNING)  # a fresh database tells of sixty migrations


def _sentence(exc: Exception) -> str:
    if isinstance(exc, requests.ConnectionError):
        return "nothing answers at that address"
    lines = str(exc.orig if isinstance(exc, DBAPIError) else exc).strip().splitlines()
    return lines[0][:200] if lines else type(exc).__name__
