"""Load by wrk: requests per second, latencies and failures of one URL, and the CPU time that its servers spent."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import psutil

# wrk's own report rounds; this hands over what it counted, in microseconds and whole numbers.
_REPORT = """
done = function(summary, latency, requests)
  local e = summary.errors
  io.write(string.format(
    'RESULT {"requests": %d, "seconds": %f, "p50_us": %d, "p99_us": %d, "refused": %d, "broken": %d}\\n',
    summary.requests, summary.duration / 1e6, latency:percentile(50), latency:percentile(99),
    e.status, e.connect + e.read + e.write + e.timeout))
end
"""
# One thread suffices to generate this load and leaves the other core to the server.
_WRK = ("wrk", "-t1", "--timeout", "20s")


@dataclass(frozen=True)
class Sample:
    """One run of wrk. refused: answers that are not 2xx or 3xx; broken: connections that failed or timed out.

    cpu_us: microseconds of CPU per request that the processes of the server spent together."""

    requests: int
    seconds: float
    p50_us: int
    p99_us: int
    refused: int
    broken: int
    cpu_us: float

    @property
    def per_s(self) -> float:
        """Good answers per second."""
        return (self.requests - self.refused) / self.seconds

    def to_dict(self) -> dict[str, Any]:
        """As JSON."""
        return {**asdict(self), "per_s": self.per_s}


def script(path: Path, bodies: Sequence[bytes], media_type: str) -> Path:
    """A script for wrk that posts these bodies in turn; `path` keeps it, files of the same stem the bodies."""
    places = []
    for i, body in enumerate(bodies):
        place = path.with_suffix(f".{i}.body")
        place.write_bytes(body)
        places.append(str(place))
    lines = [
        "local requests, at = {}, 0",
        f"for _, path in ipairs({{{', '.join(json.dumps(place) for place in places)}}}) do",
        "  local file = io.open(path, 'rb')",
        "  requests[#requests + 1] = file:read('*a')",
        "  file:close()",
        "end",
        f"local headers = {{['Content-Type'] = {json.dumps(media_type)}}}",
        "init = function(args)",
        "  for i, body in ipairs(requests) do requests[i] = wrk.format('POST', nil, headers, body) end",
        "end",
        "request = function()",
        "  at = at % #requests + 1",
        "  return requests[at]",
        "end",
    ]
    path.write_text("\n".join(lines) + _REPORT, encoding="utf-8")
    return path


def run(
    url: str, using: Path, *, connections: int, seconds: float, processes: Callable[[], Sequence[psutil.Process]]
) -> Sample:
    """Load `url` for so long. Raises: RuntimeError with what wrk said when it counted nothing."""
    before = _cpu(processes())
    command = [*_WRK, f"-c{connections}", f"-d{max(1, round(seconds))}s", "-s", str(using), url]
    said = subprocess.run(command, capture_output=True, text=True)
    after = _cpu(processes())
    results = [line.removeprefix("RESULT ") for line in said.stdout.splitlines() if line.startswith("RESULT ")]
    if not results or not (found := json.loads(results[0]))["requests"]:
        raise RuntimeError(f"wrk against {url}: {said.stdout.strip() or said.stderr.strip()}")
    spent = sum(seconds_ - before.get(pid, 0.0) for pid, seconds_ in after.items())
    return Sample(**found, cpu_us=spent / found["requests"] * 1e6)


def _cpu(processes: Sequence[psutil.Process]) -> dict[int, float]:
    spent = {}
    for process in processes:
        try:
            times = process.cpu_times()
        except psutil.Error:
            continue  # ended meanwhile
        spent[process.pid] = times.user + times.system
    return spent
