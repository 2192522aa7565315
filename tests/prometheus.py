"""Real Prometheus for tests: its `promtool`, and a server of our own that scrapes what a test serves.

The binaries are those on the path, or Debian's, which `make prometheus` unpacks into `.tools`.
"""

from __future__ import annotations

import contextlib
import json
import shutil
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import requests
import yaml

from mlops_ray.cluster.processes import free_port

_TOOLS = Path(__file__).parents[1] / ".tools/prometheus"
_START_S = 60.0
_EVERY = "500ms"


def binary(name: str) -> str:
    """Path of `promtool` or `prometheus`; skips the test where there is none."""
    found = shutil.which(name) or shutil.which(name, path=str(_TOOLS))
    if found is None:
        pytest.skip(f"no {name} of Prometheus: run `make prometheus`")
    return found


def promtool(*words: str, said: str | None = None) -> subprocess.CompletedProcess[str]:
    """Run promtool with `said` on its standard input."""
    return subprocess.run([binary("promtool"), *words], input=said, capture_output=True, text=True, check=False)


@dataclass(frozen=True)
class Server:
    """A running Prometheus."""

    url: str

    def get(self, what: str, **query: str) -> Any:
        """The `data` of an answer of the HTTP API. Raises: AssertionError with what Prometheus said."""
        answer = requests.get(f"{self.url}/api/v1/{what}", params=query, timeout=30)
        body = json.loads(answer.text)
        assert body["status"] == "success", (query, body)
        return body["data"]

    def series(self, expr: str) -> list[dict[str, Any]]:
        """What an instant query finds now."""
        found: list[dict[str, Any]] = self.get("query", query=expr)["result"]
        return found

    def wait_for(self, expr: str, at_least: int = 1) -> None:
        """Until `expr` finds so many series: scrapes and rules come twice a second."""
        ends = time.monotonic() + _START_S
        while len(self.series(expr)) < at_least:
            assert time.monotonic() < ends, f"{expr} found nothing in {_START_S} s: {self.get('targets')}"
            time.sleep(0.1)


@contextlib.contextmanager
def running(folder: Path, target: str, rule_file: Path) -> Iterator[Server]:
    """A server in `folder` that scrapes `target` (host:port) and evaluates the rules."""
    configuration = {
        "global": {"scrape_interval": _EVERY, "scrape_timeout": _EVERY, "evaluation_interval": _EVERY},
        "rule_files": [str(rule_file)],
        "scrape_configs": [{"job_name": "mlops_ray", "static_configs": [{"targets": [target]}]}],
    }
    file, port = folder / "prometheus.yml", free_port()
    file.write_text(yaml.safe_dump(configuration))
    command = [binary("prometheus"), f"--config.file={file}", f"--storage.tsdb.path={folder / 'tsdb'}"]
    command += [f"--web.listen-address=127.0.0.1:{port}", "--log.level=warn"]
    with (folder / "prometheus.log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, cwd=folder)
    try:
        server = Server(f"http://127.0.0.1:{port}")
        ends = time.monotonic() + _START_S
        while process.poll() is None and time.monotonic() < ends:
            with contextlib.suppress(requests.RequestException):
                if requests.get(f"{server.url}/-/ready", timeout=1).ok:
                    break
            time.sleep(0.1)
        else:
            raise RuntimeError((folder / "prometheus.log").read_text()[-2000:])
        yield server
    finally:
        process.terminate()
        process.wait()
