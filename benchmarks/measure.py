"""What the benchmarks share: a command run to its end, its seconds, and the peak memory of all its processes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
from rich.console import Console
from rich.table import Table

GIB = 1024**3


@dataclass(frozen=True)
class Run:
    """What a watched command did. `said` is the last line that it printed, as JSON."""

    seconds: float
    peak_gib: float
    exit_code: int
    too_large: bool
    said: dict[str, Any]


def watched(argv: Sequence[str], *, limit_gib: float) -> Run:
    """Runs `argv` and measures it; ends it when all its processes together hold more than `limit_gib`.

    Memory is proportional set size: a page that several processes share counts once.
    """
    start = time.perf_counter()
    process = subprocess.Popen(argv, stdout=subprocess.PIPE, text=True)
    peak = 0.0
    too_large = False
    done = threading.Event()

    def watch() -> None:
        nonlocal peak, too_large
        while not done.wait(0.1):
            held = _held(process.pid)
            peak = max(peak, held)
            if held > limit_gib:
                too_large = True
                _end(process.pid)

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        output, _ = process.communicate()
    finally:
        done.set()
        watcher.join()
    lines = [line for line in output.splitlines() if line.startswith("{")]
    said = json.loads(lines[-1]) if lines else {}
    return Run(time.perf_counter() - start, peak, process.returncode, too_large, said)


def _held(pid: int) -> float:
    total = 0
    for process in _family(pid):
        try:
            total += process.memory_full_info().pss
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            continue  # it ended while we looked
    return total / GIB


def _family(pid: int) -> list[psutil.Process]:
    try:
        head = psutil.Process(pid)
        return [head, *head.children(recursive=True)]
    except psutil.NoSuchProcess:
        return []


def _end(pid: int) -> None:
    for process in reversed(_family(pid)):
        try:
            process.kill()
        except psutil.NoSuchProcess:
            continue


def start_ray(**more: Any) -> float:
    """Starts a Ray of two CPUs whose workers find this checkout; how many seconds that took."""
    # A token that lies in the home directory, or that Ray would put there, is no business of a benchmark.
    os.environ.setdefault("RAY_AUTH_MODE", "disabled")
    import ray

    start = time.perf_counter()
    path = {"PYTHONPATH": str(Path(__file__).parents[1])}
    common = {"address": "local", "num_cpus": 2, "include_dashboard": False, "log_to_driver": False}
    ray.init(**common, runtime_env={"env_vars": path}, **more)
    return time.perf_counter() - start


def machine() -> str:
    """The machine in a line: figures mean little without it."""
    return f"{psutil.cpu_count()} cores, {psutil.virtual_memory().total / GIB:.0f} GiB, Python {sys.version.split()[0]}"


def show(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Prints a table, and the machine that it was measured on."""
    table = Table(*columns, title=title, title_justify="left", caption=machine(), caption_justify="left")
    for row in rows:
        table.add_row(*row)
    Console(width=140).print(table)
