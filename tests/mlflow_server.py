"""A real `mlflow server` for tests: its own port, database and artifacts; it ends with the test session."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import requests

from mlops_ray.cluster.processes import free_port

START_S = 120.0


@dataclass
class Server:
    """The server in `folder`; `stop` and `start` again keep port and data."""

    folder: Path
    port: int = field(default_factory=free_port)
    _process: subprocess.Popen[bytes] | None = None

    @property
    def uri(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def start(self) -> None:
        """Start, and wait until it answers: 8 to 11 s."""
        self.folder.mkdir(parents=True, exist_ok=True)
        options = {
            "--backend-store-uri": f"sqlite:///{self.folder}/mlflow.db",
            "--artifacts-destination": f"file://{self.folder}/artifacts",
            "--port": str(self.port),
            "--workers": "1",
        }
        # Job execution would start more processes, which nothing here asks for.
        env = {**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_DISABLE_TELEMETRY": "true"}
        command = [sys.executable, "-m", "mlflow", "server", *(part for pair in options.items() for part in pair)]
        with (self.folder / "server.log").open("ab") as log:
            self._process = subprocess.Popen(
                command, env=env, stdout=log, stderr=log, cwd=self.folder, start_new_session=True
            )
        ends = time.monotonic() + START_S
        while time.monotonic() < ends and self._process.poll() is None:
            with contextlib.suppress(requests.RequestException):
                if requests.get(f"{self.uri}/health", timeout=1).ok:
                    return
            time.sleep(0.2)
        raise RuntimeError((self.folder / "server.log").read_text()[-2000:])

    def stop(self) -> None:
        """End the server and its workers, which are its session's."""
        if self._process is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, 15)
            try:
                self._process.wait(timeout=20)
            except subprocess.TimeoutExpired:
                os.killpg(self._process.pid, 9)
                self._process.wait()
            self._process = None


@contextlib.contextmanager
def running(folder: Path) -> Iterator[Server]:
    """A server that answers."""
    server = Server(folder)
    server.start()
    try:
        yield server
    finally:
        server.stop()
