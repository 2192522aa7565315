"""What README and docs show is run: Python blocks, YAML blocks, and every command against the command line.

A block after `<!-- needs: cluster -->` is not run here; tests/loop/test_docs_on_cluster.py runs the README's.
"""

from __future__ import annotations

import itertools
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import typer.main

from mlops_ray.cli import app
from mlops_ray.config import load_project
from mlops_ray.monitoring.on_prometheus import Exposition
from mlops_ray.rollout.canary import LEGAL
from mlops_ray.state import Store

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
QUICKSTART = "configs/quickstart.yaml"
NEEDS_CLUSTER = "<!-- needs: cluster -->"
# What we use of Ray's own command, with the arguments that name files or what follows the command.
RAY = {"up": "FILE", "down": "FILE", "dashboard": "FILE", "job submit": "COMMAND"}
# Names that tables use for "your project file".
STAND_INS = {"FILE"}


@dataclass(frozen=True)
class Block:
    """One fenced block: its language, text, first line in the page, and whether it wants a cluster."""

    page: Path
    line: int
    language: str
    text: str
    needs_cluster: bool

    def __str__(self) -> str:
        return f"{self.page.name}:{self.line}"


def blocks(page: Path, language: str) -> list[Block]:
    text = page.read_text(encoding="utf-8")
    return [
        Block(page, text.count("\n", 0, found.start()) + 2, found[2], found[3], found[1] is not None)
        for found in re.finditer(rf"({NEEDS_CLUSTER}\n+)?^```(\w+)\n(.*?)^```$", text, flags=re.M | re.S)
        if found[2] == language
    ]


def pages_with(language: str) -> list[Path]:
    return [page for page in PAGES if blocks(page, language)]


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty directory with the project files, as a reader's own checkout would have them."""
    shutil.copytree(ROOT / "configs", tmp_path / "configs")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_every_room_has_blocks_that_run() -> None:
    assert {
        "data.md",
        "training.md",
        "serving.md",
        "protocols.md",
        "log.md",
        "monitoring.md",
        "rollout.md",
        "retraining.md",
        "state.md",
    } <= {page.name for page in pages_with("python")}


@pytest.mark.parametrize("page", pages_with("python"), ids=lambda p: p.name)
def test_python_blocks_run(page: Path, checkout: Path) -> None:
    """All blocks of a page, in order, in one namespace: a page is read from top to bottom."""
    namespace: dict[str, Any] = {"__name__": page.stem}
    for block in blocks(page, "python"):
        if not block.needs_cluster:
            # Line numbers of a traceback are those of the page.
            code = compile("\n" * (block.line - 1) + block.text, str(page), "exec")
            exec(code, namespace)


@pytest.mark.parametrize("block", [b for p in PAGES for b in blocks(p, "yaml")], ids=str)
def test_yaml_blocks_fit_a_project_file(block: Block, checkout: Path) -> None:
    overlay = checkout / "overlay.yaml"
    overlay.write_text(block.text, encoding="utf-8")
    load_project([QUICKSTART, overlay], env=dict.fromkeys(re.findall(r"\$\{(\w+)\}", block.text), "stand-in"))


@pytest.mark.parametrize("block", [b for p in PAGES for b in blocks(p, "json")], ids=str)
def test_json_blocks_are_json(block: Block) -> None:
    json.loads(block.text)


# --- commands ---


@dataclass(frozen=True)
class Command:
    """One command of a page, as words, with the files that commands before it on the page have made."""

    words: tuple[str, ...]
    made: frozenset[str]


def bash_commands(page: Path) -> Iterator[Command]:
    made: set[str] = set()
    for block in blocks(page, "bash"):
        # Here-documents are not commands.
        text = re.sub(r"<<'(\w+)'(.*?)\n(?:.*?\n)?\1\n", r"\2\n", block.text, flags=re.S)
        for line in shell_lines(text):
            words = shlex.split(line, comments=True)
            if not words:
                continue
            yield Command(tuple(words), frozenset(made))
            made |= {words[-1]} if words[0] == "cp" or ">" in words else set()


def shell_lines(text: str) -> Iterator[str]:
    """Commands of a block, each with the lines that it goes on over."""
    pending = ""
    for line in text.replace("\\\n", " ").splitlines():
        pending += line + "\n"
        try:
            shlex.split(pending, comments=True)
        except ValueError:  # a quotation is open
            continue
        yield pending
        pending = ""


def inline_commands(page: Path) -> Iterator[Command]:
    """Commands in running text, which say `-c FILE` or leave it to the reader."""
    prose = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.M | re.S)
    for code in re.findall(r"`((?:mlops-ray|make) [^`\n]+)`", prose):
        words = tuple(re.sub("<[a-z]+>", "FILE", code).split()) if '"' not in code else tuple(shlex.split(code))
        if words[0] == "mlops-ray" and not files_of(words) and words[1] not in ("demo", "analyze"):
            words = (*words, "-c", "FILE")
        yield Command(words, frozenset())


def files_of(words: tuple[str, ...]) -> list[str]:
    return [value for option, value in itertools.pairwise(words) if option in ("-c", "--config")]


def there(name: str, made: frozenset[str]) -> bool:
    return name in made or name in STAND_INS or (ROOT / name).is_file()


def trouble(command: Command) -> str | None:
    """What is wrong with a command, or None."""
    words = command.words
    for file in files_of(words):
        if not there(file, command.made):
            return f"no file {file}"
    if words[0] == "mlops-ray":
        return unknown_to_the_command_line(words[1:])
    if words[0] == "make":
        targets = re.findall(r"^([a-z][a-z-]*):", (ROOT / "Makefile").read_text(encoding="utf-8"), flags=re.M)
        named = [w for w in words[1:] if "=" not in w]
        return next((f"no target {w}" for w in named if w not in targets), None)
    if words[0] == "ray":
        verb = next((v for v in RAY if words[1 : 1 + len(v.split())] == tuple(v.split())), None)
        if verb is None:
            return f"`ray {words[1]}` is not one of {sorted(RAY)}"
        if RAY[verb] == "FILE":
            return None if there(words[-1], command.made) else f"no file {words[-1]}"
        return trouble(Command(words[words.index("--") + 1 :], command.made))
    if words[0] == "mlflow":
        verbs = ("create", "get", "list", "predict", "update", "delete", "help")
        return None if words[1] == "deployments" and words[2] in verbs else f"no `mlflow {words[1]} {words[2]}`"
    if words[0] == "python":
        return None if there(words[1], command.made) else f"no file {words[1]}"
    if words[0] == "cp":
        return None if there(words[1], command.made) else f"no file {words[1]}"
    return None if words[0] in ("cat", "curl", "source") else f"`{words[0]}` is not checked; teach this test"


def unknown_to_the_command_line(words: tuple[str, ...]) -> str | None:
    """Parses the words as the command would, without running it."""
    here: Any = typer.main.get_command(app)
    rest, name = list(words), "mlops-ray"
    while hasattr(here, "commands"):
        name = rest.pop(0) if rest else ""
        if name not in here.commands:
            return f"no verb {name!r}"
        here = here.commands[name]
    if name == "submit":
        # Options of `submit` itself; the others are the submitted verb's.
        verb, own = rest[0], [w for w in ("--address", "--working-dir") if w in rest]
        theirs = list(rest[1:])
        for option in own:
            at = theirs.index(option)
            del theirs[at : at + 2]
        return unknown_to_the_command_line((verb, *theirs))
    try:
        here.make_context(name, rest)
    except Exception as exc:  # noqa: BLE001 - whatever the parser says is what a reader would see
        return f"{' '.join(words)}: {exc}"
    return None


@pytest.mark.parametrize("page", [*PAGES, ROOT / "CONTRIBUTING.md"], ids=lambda p: p.name)
def test_commands_name_what_exists(page: Path) -> None:
    wrong = {
        " ".join(command.words): what
        for command in [*bash_commands(page), *inline_commands(page)]
        if (what := trouble(command)) is not None
    }
    assert not wrong, wrong


def test_wrong_commands_are_found() -> None:
    for line, word in {
        "mlops-ray chek -c configs/quickstart.yaml": "chek",
        "mlops-ray check -c configs/nowhere.yaml": "nowhere",
        "mlops-ray status -c configs/quickstart.yaml --jsn": "jsn",
        "mlops-ray rollout stop -c configs/quickstart.yaml": "stop",
        "mlops-ray submit trian --address http://head:8265 -c configs/quickstart.yaml": "trian",
        "make everything": "everything",
        "ray up nowhere.yaml": "nowhere",
        "ray job submit --working-dir . -- python jobs/nothing.py": "nothing",
        "rm -rf .": "rm",
    }.items():
        found = trouble(Command(tuple(shlex.split(line)), frozenset()))
        assert found is not None, line
        assert word in found, (line, found)


# --- promises ---


def test_prometheus_names_are_the_exported_ones(tmp_path: Path) -> None:
    """docs/monitoring.md lists each metric that a scrape yields, and no other."""
    store = Store.open(f"sqlite:///{tmp_path}/state.db")
    families = list(Exposition(store, "flights").collect())
    store.close()
    shown = set(re.findall(r"`(mlops_ray_\w+)`", (ROOT / "docs/monitoring.md").read_text(encoding="utf-8")))
    assert shown == {f.name + ("_total" if f.type == "counter" else "") for f in families}


def test_legal_moves_are_the_documented_ones() -> None:
    text = (ROOT / "docs/rollout.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| ([a-z, ]+) \| ([a-z, ]+?)(?:;[^|]*)? \|$", text, flags=re.M)
    told = {
        phase: tuple(m for m in moves.split(", ") if m != "nothing")
        for phases, moves in rows
        if phases != "phase"
        for phase in phases.split(", ")
    }
    assert told == {str(phase): tuple(map(str, moves)) for phase, moves in LEGAL.items()}


def test_no_telemetry() -> None:
    """MLflow's client for usage reports is made when it is imported, unless it was told otherwise before."""
    kept = {k: v for k, v in os.environ.items() if not re.match(r"CI$|DO_NOT_TRACK|MLFLOW_|PYTEST|GITHUB", k)}
    code = (
        "from mlops_ray.training import on_mlflow\n"
        "from mlflow.telemetry.client import get_telemetry_client\n"
        "print(get_telemetry_client())"
    )
    done = subprocess.run([sys.executable, "-c", code], env=kept, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "None"
