"""What stable's clients feel of a version on trial that hangs, fails or dies, as canary and as shadow.

    python benchmarks/serving/isolation.py

The project of `run.py` with a copy of its version that misbehaves on demand (`troubled.py`). Requests of one row leave
by the clock, however slowly answers come; latencies count from when a request was due. Rounds without the version
(it lives and idles) and with it alternate; ratios are medians of the ratios within a round. A canary that dies is first
watched until it is taken out, its replicas' starts included, then measured. It tells figures and judges none.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import statistics
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import requests

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))
# So small that no key is the version's.
_NOBODY = 1e-9
_ROWS = 500
_WARM_S = 1.0
_START_S = 180.0
_CONNECTIONS = 128
# What the version does (`troubled.py`), and whether as shadow.
KINDS = {
    "canary, healthy": ("", False),
    "canary, sleeps 2 s": ("sleep", False),
    "canary, 30 % exceptions": ("raise", False),
    "shadow, healthy": ("", True),
    "shadow, sleeps 2 s": ("sleep", True),
    "canary, os._exit": ("exit", False),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=ROOT / ".bench" / "isolation", help="keeps the project")
    parser.add_argument("--rate", type=float, default=300.0, help="requests per second (default 300)")
    parser.add_argument("--share", type=float, default=0.3, help="of keys that are the version's (default 0.3)")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=4.0, help="of each measurement (default 4)")
    parser.add_argument(
        "--only",
        choices=KINDS,
        action="append",
        metavar="KIND",
        help=f"may be repeated; one of {', '.join(map(repr, KINDS))}".replace("%", "%%"),
    )
    parser.add_argument("--json", type=Path, help="writes every figure to this file")
    options = parser.parse_args()
    options.work.mkdir(parents=True, exist_ok=True)
    with _up(options) as bench:
        results = {name: bench.measured(*KINDS[name]) for name in options.only or KINDS}
    if options.json is not None:
        options.json.write_text(json.dumps(results, indent=1), encoding="utf-8")
    print(table(results))


@dataclass
class Sample:
    """Latencies in seconds: of requests whose key is stable's in either kind of round, and of all; outcomes."""

    stable: list[float] = field(default_factory=list)
    every: list[float] = field(default_factory=list)
    outcomes: Counter[str] = field(default_factory=Counter)
    versions: Counter[str] = field(default_factory=Counter)

    def figures(self) -> dict[str, Any]:
        """Milliseconds."""
        quantiles = {
            f"{whose}_{name}": 1e3 * sorted(values)[int(len(values) * share)]
            for whose, values in (("stable", self.stable), ("every", self.every))
            for name, share in (("p50", 0.5), ("p99", 0.99))
        }
        failed = sum(self.outcomes.values()) - self.outcomes["200"]
        return {**quantiles, "failed": failed, "outcomes": dict(self.outcomes), "versions": dict(self.versions)}


class Client:
    """Connections that are kept, each with one request at a time; another is opened when all are busy."""

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        self._host, self._port, self._path = parts.hostname, parts.port, parts.path
        self._free: list[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = []

    async def post(self, body: bytes) -> tuple[str, bytes]:
        """Status and body, or the name of what went wrong."""
        try:
            reader, writer = self._kept() or await asyncio.open_connection(self._host, self._port)
            head = f"POST {self._path} HTTP/1.1\r\nHost: {self._host}\r\nContent-Type: application/json\r\n"
            writer.write(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
            head = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
            length = int(head.partition("content-length:")[2].partition("\r\n")[0])
            said = await reader.readexactly(length)
        except (OSError, EOFError, ValueError) as exc:
            return type(exc).__name__, b""
        if "connection: close" in head:  # the proxy says so at every reload (RFC 9112, 9.6)
            writer.close()
        else:
            self._free.append((reader, writer))
        return head.split(" ", 2)[1], said

    def _kept(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter] | None:
        """One that the proxy has not closed: it does so with those that idle, at every reload."""
        while self._free:
            reader, writer = self._free.pop()
            if not reader.at_eof():
                return reader, writer
            writer.close()
        return None

    async def open(self, n: int) -> None:
        """Have `n` connections ready: their making is no part of a latency."""
        found = [await asyncio.open_connection(self._host, self._port) for _ in range(n)]
        self._free += found

    def close(self) -> None:
        for _, writer in self._free:
            writer.close()


async def load(url: str, bodies: Sequence[tuple[bytes, bool]], rate: float, until: Callable[[float], bool]) -> Sample:
    """Requests by the clock until `until` says so of the seconds that have passed; bodies say whether stable's."""
    sample, client, at = Sample(), Client(url), 0
    await client.open(_CONNECTIONS)
    loop = asyncio.get_running_loop()
    began = loop.time()

    async def one(due: float, body: bytes, stable: bool) -> None:
        outcome, said = await client.post(body)
        took = loop.time() - due
        sample.outcomes[outcome] += 1
        if outcome == "200" and due >= began + _WARM_S:
            sample.every.append(took)
            if stable:
                sample.stable.append(took)
            (prediction,) = json.loads(said)["predictions"]
            sample.versions[f"{prediction['variant']}, v{prediction['version']}"] += 1

    async with asyncio.TaskGroup() as tasks:
        while not until(loop.time() - began):
            due = began + at / rate
            if (wait := due - loop.time()) > 0:
                await asyncio.sleep(wait)
            tasks.create_task(one(due, *bodies[at % len(bodies)]))
            at += 1
    client.close()
    return sample


@dataclass
class Bench:
    """The project that is up, with a rollout of the troubled version."""

    options: argparse.Namespace
    project: Any
    store: Any
    url: str
    rollout: str
    trouble: Path
    bodies: list[tuple[bytes, bool]]

    def measured(self, trouble: str, shadow: bool) -> dict[str, Any]:
        """Rounds with nothing on trial and with it, and what the replica says afterwards."""
        self._healthy()
        found: dict[str, Any] = {}
        if trouble == "exit":
            found["until taken out"] = self._dies()
        found["rounds"] = []
        for _ in range(self.options.rounds):
            quiet = self._sample("", _NOBODY, shadow)
            loud = self._sample(trouble, self.options.share, shadow)
            found["rounds"].append({"off": quiet, "on": loud})
            print(json.dumps(found["rounds"][-1]), file=sys.stderr, flush=True)
        found["status"] = requests.get(self.url.replace("/predict", "/readyz"), timeout=30).json()
        return found

    def _sample(self, trouble: str, share: float, shadow: bool) -> dict[str, Any]:
        if self._phase() == "ramping":
            self._try_on(share, shadow)
        self.trouble.write_text(trouble, encoding="utf-8")
        seconds = self.options.seconds + _WARM_S
        return asyncio.run(load(self.url, self.bodies, self.options.rate, lambda s: s >= seconds)).figures()

    def _try_on(self, share: float, shadow: bool) -> None:
        from benchmarks.serving import troubled

        sequence = troubled.try_on(self.store, self.rollout, share, shadow=shadow).sequence
        _await(lambda: self._status().get("sequence", -1) >= sequence)

    def _dies(self) -> dict[str, Any]:
        """From the first death until the controller has had enough."""
        self._try_on(self.options.share, False)
        self.trouble.write_text("exit", encoding="utf-8")
        began, looked = time.monotonic(), 0.0

        def over(seconds: float) -> bool:
            nonlocal looked
            if seconds - looked < 1.0:
                return False
            looked = seconds
            return self._phase() != "ramping" or seconds > _START_S

        figures = asyncio.run(load(self.url, self.bodies, self.options.rate, over)).figures()
        return {**figures, "seconds": time.monotonic() - began, "phase": self._phase()}

    def _healthy(self) -> None:
        """Returns when the version answers a row that is its."""
        self.trouble.write_text("", encoding="utf-8")
        self._try_on(self.options.share, False)
        body = next(body for body, stable in self.bodies if not stable)

        def answers() -> bool:
            said = requests.post(self.url, body, headers={"Content-Type": "application/json"}, timeout=30).json()
            (prediction,) = said["predictions"]
            return bool(prediction["variant"] == "canary" and prediction["version"] != self._status()["stable"])

        _await(answers)

    def _status(self) -> dict[str, Any]:
        """What the replica says; without a word of its configuration where nobody answers for a moment."""
        found: dict[str, Any] = requests.get(self.url.replace("/predict", "/readyz"), timeout=30).json()
        return found

    def _phase(self) -> str:
        with self.store.read() as tx:
            return str(tx.rollout(self.rollout).state["phase"])


def _await(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + _START_S
    while not condition():
        if time.monotonic() > deadline:
            raise RuntimeError("the version on trial does not get there")
        time.sleep(0.1)  # a rollout has no event for clients


@contextlib.contextmanager
def _up(options: argparse.Namespace) -> Iterator[Bench]:
    import yaml

    from benchmarks.serving import ours, troubled, workload
    from mlops_ray.cluster import on_ray as cluster
    from mlops_ray.config import load_project
    from mlops_ray.serving.routing import to_canary
    from mlops_ray.state import Store

    trained = ours.train(options.work)
    file = options.work / "isolation.yaml"
    content = yaml.safe_load(trained.file.read_text(encoding="utf-8"))
    content["features"]["trusted_types"] = [troubled.TRUSTED]
    # No look at the evidence: it would take the version out after a minute, for its failures.
    content["rollout"] = {"shares": [options.share], "look_s": 1e9}
    file.write_text(yaml.safe_dump(content), encoding="utf-8")
    project = load_project([file], env={})
    with tempfile.TemporaryDirectory(prefix="mlops_ray-isolation-") as scratch, contextlib.ExitStack() as stack:
        trouble = Path(scratch, "trouble")
        ours.command("up", "-c", file)
        stack.callback(ours.command, "down", "-c", file)
        found = cluster.find(project)
        assert found is not None, "`up` has just started it"
        store = Store.open(project.storage.state)
        with store.read() as tx:
            left = tx.open_rollout(project.project)
        if left is not None:  # by a run that was ended
            ours.command("rollout", "abort", "-c", file, "--why", "an earlier benchmark's")
        version = troubled.register(project, store, options.work / f"troubled-{os.getpid()}", trouble)
        rollout = ours.command("rollout", "start", "-c", file, str(version), "--why", "troubles")["rollout"]
        rows = workload.rows(_ROWS, seed=7)
        theirs = to_canary(rows[workload.KEY], rollout, options.share)
        bodies = list(zip(workload.requests(rows), (~theirs).tolist(), strict=True))
        bench = Bench(options, project, store, f"{found.http}/{workload.NAME}/predict", rollout, trouble, bodies)
        _await(lambda: bench._phase() == "ramping")
        yield bench


def table(results: dict[str, Any]) -> str:
    """In Markdown: milliseconds with the version, and in brackets the ratio to those without it."""
    columns = ("stable_p50", "stable_p99", "every_p50", "every_p99")
    lines = [
        "| on trial | stable's p50, ms | stable's p99 | all p50 | all p99 | failed |",
        "|---|---:|---:|---:|---:|---:|",
    ]
    for name, found in results.items():
        if (dying := found.get("until taken out")) is not None:
            cells = [f"{dying[column]:.2f}" for column in columns]
            what = f"{name}: {dying['seconds']:.0f} s until {dying['phase']}"
            lines.append(f"| {what} | {' | '.join(cells)} | {dying['failed']} |")
            name += ": afterwards"
        rounds = found["rounds"]
        cells = [
            f"{statistics.median(each['on'][column] for each in rounds):.2f} "
            f"({statistics.median(each['on'][column] / each['off'][column] for each in rounds):.2f})"
            for column in columns
        ]
        failed = sum(each[which]["failed"] for each in rounds for which in ("on", "off"))
        lines.append(f"| {name} | {' | '.join(cells)} | {failed} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
