"""Peers beside us: an environment of its own for each, and processes that answer in turn, warm.

Imports nothing but the standard library: it runs in the peers' environments too.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

REQUIREMENTS = {
    "evidently": ["evidently==0.7.23", "pandas<3"],
    "nannyml": [
        "nannyml==0.13.1",
        "pandas<3",
        "numpy<2",
        "scipy<1.14",
        "scikit-learn<1.6",
        "category-encoders<2.7",
        "statsmodels",
    ],
}
# Nobody is told that they run here.
_SILENT = {"DO_NOT_TRACK": "1", "NML_DISABLE_USAGE_LOGGING": "1", "PYTHONWARNINGS": "ignore"}


def environment(folder: Path, name: str) -> str:
    """The Python of an environment below `folder` that holds what `name` needs; made when it is not there."""
    folder, wanted = folder / name, REQUIREMENTS[name]
    python = folder / "bin/python"
    done = folder / "installed.json"
    if not done.exists() or json.loads(done.read_text(encoding="utf-8")) != wanted:
        print(f"installing {', '.join(wanted)} into {folder}", flush=True)
        subprocess.run([sys.executable, "-m", "venv", folder], check=True)
        subprocess.run([python, "-m", "pip", "install", "--quiet", *wanted], check=True)
        done.write_text(json.dumps(wanted), encoding="utf-8")
    return str(python)


def silent() -> dict[str, str]:
    """The environment variables of a peer's process."""
    return os.environ | _SILENT


def serve(once: Callable[[], Any]) -> None:
    """What a contestant's process does: runs `once` whenever `in_turn` asks, and says how long it took."""
    for _ in sys.stdin:
        begun = time.perf_counter()
        found = once()
        print(json.dumps({"seconds": time.perf_counter() - begun, "found": found}), flush=True)


def in_turn(commands: Mapping[str, Sequence[str]], rounds: int) -> tuple[dict[str, list[float]], dict[str, Any]]:
    """Runs one process for each contestant, each ending in `serve`, and asks them in turn.

    Returns seconds of the `rounds` after a first one that warms up, and what each found last, by contestant. Raises
    SystemExit when one ends too soon.
    """
    seconds: dict[str, list[float]] = {name: [] for name in commands}
    found: dict[str, Any] = {}
    running = {name: _start(command) for name, command in commands.items()}
    try:
        for warm in (False, *[True] * rounds):
            for name, process in running.items():
                took, found[name] = _ask(process)
                if warm:
                    seconds[name].append(took)
    finally:
        for process in running.values():
            process.communicate()  # closes its input, at which it ends
    return seconds, found


def _start(command: Sequence[str]) -> subprocess.Popen[str]:
    pipe = subprocess.PIPE
    return subprocess.Popen(command, env=silent(), text=True, stdin=pipe, stdout=pipe, stderr=subprocess.DEVNULL)


def _ask(process: subprocess.Popen[str]) -> tuple[float, Any]:
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write("go\n")
    process.stdin.flush()
    for line in process.stdout:
        if line.startswith("{"):
            answer = json.loads(line)
            return answer["seconds"], answer["found"]
    raise SystemExit(f"{process.args} ended; run it by hand to see why")
