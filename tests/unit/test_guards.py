"""Rules of the house that no single test owns: who imports whom, and that what the documents name exists."""

from __future__ import annotations

import ast
import functools
import importlib.util
import os
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from mlops_ray.cli import app
from mlops_ray.config import load_project

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "mlops_ray"

# The order of docs/architecture.md. A room imports itself and what stands before it; rooms of one line are equals that
# do not know each other.
ORDER = (
    {"errors"},
    {"texts"},
    {"config"},
    {"migrations"},
    {"state"},
    {"ledger"},
    {"cluster"},
    {"data"},
    {"training"},
    {"serving"},
    {"monitoring"},
    {"rollout"},
    {"retraining"},
    {"governance"},
    {"simulation"},
    {"dashboard"},
    {"endpoint"},
    {"verbs"},
    {"demo"},
    {"cli"},
    {"__main__"},
)
LEVEL = {room: level for level, rooms in enumerate(ORDER) for room in rooms}

# Only files called on_*.py carry values to these.
CARRIERS = {"ray", "mlflow", "prometheus_client"}

# Where the environment and the wall clock enter as values; everything else is handed them.
SHELLS = {"cli", "verbs", "demo"}
# A request's arrival is read where it arrives.
DOORS = {"serving/web/http.py", "serving/service.py"}
IMPURE = {
    "time.time",
    "time.sleep",
    "datetime.now",
    "datetime.utcnow",
    "datetime.datetime.now",
    "date.today",
    "datetime.date.today",
    "os.environ",
    "os.getenv",
}

# What pip calls a package whose import name differs.
DISTRIBUTIONS = {
    "google": "protobuf",
    "grpc": "grpcio",
    "sklearn": "scikit-learn",
    "xgboost": "xgboost-cpu",
    "yaml": "pyyaml",
}


def files() -> list[Path]:
    return sorted(PACKAGE.rglob("*.py"))


def module_of(file: Path) -> str:
    parts = file.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def room_of(module: str) -> str | None:
    """The room of `mlops_ray.<room>...`; None for the package itself."""
    return module.split(".")[1] if "." in module else None


@functools.cache
def imports_of(file: Path) -> tuple[tuple[int, str], ...]:
    """Line and dotted name of everything `file` imports, inside functions and type checks too."""
    return tuple(_imports_of(file))


def _imports_of(file: Path) -> Iterator[tuple[int, str]]:
    package = module_of(file).split(".")
    if file.name != "__init__.py":
        package = package[:-1]
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            source = ".".join([*base, *([node.module] if node.module else [])])
            if source == "mlops_ray":
                yield from ((node.lineno, f"mlops_ray.{alias.name}") for alias in node.names)
            else:
                yield node.lineno, source


def is_shell(file: Path) -> bool:
    inside = file.relative_to(PACKAGE)
    return file.name.startswith("on_") or inside.parts[0] in SHELLS or inside.as_posix() in DOORS


def where(file: Path, line: int) -> str:
    return f"{file.relative_to(ROOT)}:{line}"


def test_only_on_files_import_ray_and_mlflow() -> None:
    wrong = [
        f"{where(file, line)}: {name}"
        for file in files()
        if not file.name.startswith("on_")
        for line, name in imports_of(file)
        if name.split(".")[0] in CARRIERS
    ]
    assert not wrong, wrong


def test_every_room_has_its_place_in_the_order() -> None:
    rooms = {room for file in files() if (room := room_of(module_of(file)))}
    assert rooms <= set(LEVEL), f"give {rooms - set(LEVEL)} a place in ORDER and in docs/architecture.md"


def test_the_rooms_stand_in_the_architecture_in_their_order() -> None:
    text = (ROOT / "docs/architecture.md").read_text(encoding="utf-8")
    table = text.partition("\n| room | owns |\n")[2].partition("\n\n")[0]
    listed = [room for row in table.splitlines() for room in re.findall(r"`(\w+)`", row.split("|")[1])]
    assert set(listed) == set(LEVEL)
    assert [LEVEL[room] for room in listed] == sorted(LEVEL[room] for room in listed)


def test_rooms_import_only_what_stands_above_them() -> None:
    wrong = []
    for file in files():
        mine = room_of(module_of(file))
        for line, name in imports_of(file):
            theirs = room_of(name) if name.startswith("mlops_ray.") else None
            if theirs in LEVEL and theirs != mine and (mine is None or LEVEL[theirs] >= LEVEL.get(mine, -1)):
                wrong.append(f"{where(file, line)}: {mine or 'the package'} imports {theirs}")
    assert not wrong, wrong


def test_modules_of_a_room_do_not_import_in_circles() -> None:
    known = {module_of(file) for file in files()}
    graph = {
        module_of(file): {
            name
            for _, found in imports_of(file)
            for name in (found, found.rpartition(".")[0])
            if name in known and name != module_of(file) and room_of(name)
        }
        for file in files()
        if file.name != "__init__.py"
    }
    while leaves := {module for module, needs in graph.items() if not needs & graph.keys()}:
        for module in leaves:
            del graph[module]
    assert not graph, f"circle among {sorted(graph)}"


def test_pure_files_read_no_clock_and_no_environment() -> None:
    wrong = [
        f"{where(file, node.lineno)}: {ast.unparse(node)}"
        for file in files()
        if not is_shell(file)
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8")))
        if isinstance(node, ast.Attribute) and ast.unparse(node) in IMPURE
    ]
    assert not wrong, f"take `now` or the value as an argument: {wrong}"


def test_every_imported_package_is_a_declared_dependency() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = project["optional-dependencies"]
    stated = [*project["dependencies"], *(d for name, extra in extras.items() if name != "dev" for d in extra)]
    declared = {re.split(r"[\[<>=~! ]", d)[0].lower().replace("_", "-") for d in stated}
    wrong = []
    for file in files():
        for line, name in imports_of(file):
            top = name.split(".")[0]
            distribution = DISTRIBUTIONS.get(top, top).lower().replace("_", "-")
            if top not in sys.stdlib_module_names | {"mlops_ray"} and distribution not in declared:
                wrong.append(f"{where(file, line)}: {top}")
    assert not wrong, f"add to pyproject.toml's dependencies: {wrong}"


def test_every_dependency_is_explained() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    groups = [project["dependencies"], *project["optional-dependencies"].values()]
    text = (ROOT / "docs/dependencies.md").read_text(encoding="utf-8").lower()
    names = [re.split(r"[\[<>=~! ]", d)[0].lower() for group in groups for d in group]
    assert not [name for name in names if f"| {name} |" not in text]


def test_the_lock_holds_every_dependency() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    groups = [project["dependencies"], *project["optional-dependencies"].values()]
    locked = {
        re.split(r"[\[= ]", line)[0].lower()
        for line in (ROOT / "requirements.lock").read_text(encoding="utf-8").splitlines()
        if line and not line.startswith((" ", "#"))
    }
    names = {re.split(r"[\[<>=~! ]", d)[0].lower().replace("_", "-") for group in groups for d in group}
    assert names <= locked, f"run `make lock`: {names - locked}"


# --- project files ---


def configs() -> list[Path]:
    return sorted((ROOT / "configs").glob("*.yaml"))


def overlays() -> list[Path]:
    return sorted((ROOT / "configs/overlays").glob("*.yaml"))


def stand_ins(*paths: Path) -> dict[str, str]:
    """A value for every `${NAME}` of the files: an address of a server, which fits wherever names are used."""
    names = {n for p in paths for n in re.findall(r"\$\{(\w+)\}", p.read_text(encoding="utf-8"))}
    return {name: f"postgresql://example.org/{name.lower()}" for name in names}


def test_there_are_project_files() -> None:
    assert configs()
    assert overlays()


@pytest.mark.parametrize("path", configs(), ids=lambda p: p.name)
def test_every_project_file_loads(path: Path) -> None:
    project = load_project(path, env=stand_ins(path))
    if project.source.function:
        module, _, function = project.source.function.partition(":")
        spec = importlib.util.find_spec(module)
        assert spec is not None, module
        assert spec.origin is not None
        tree = ast.parse(Path(spec.origin).read_text(encoding="utf-8"))
        assert function in {n.name for n in tree.body if isinstance(n, ast.FunctionDef)}


@pytest.mark.parametrize("overlay", overlays(), ids=lambda p: p.name)
@pytest.mark.parametrize("base", configs(), ids=lambda p: p.name)
def test_every_overlay_fits_every_project_file(base: Path, overlay: Path) -> None:
    load_project([base, overlay], env=stand_ins(base, overlay))


@pytest.mark.parametrize("path", [*configs(), *overlays()], ids=lambda p: p.name)
def test_project_files_hold_no_machines_paths(path: Path) -> None:
    text = yaml.safe_dump(yaml.safe_load(path.read_text(encoding="utf-8")))
    assert not re.findall(r"(?:^|[\s'\"])(/(?:home|root|tmp|Users|work)/\S*)", text)


# --- jobs and commands ---

JOBS = sorted((ROOT / "jobs").glob("*.py"))


def run(*args: str) -> subprocess.CompletedProcess[str]:
    env = {**os.environ, "PYTHONPATH": str(ROOT), "COLUMNS": "120"}
    return subprocess.run([sys.executable, *args], capture_output=True, text=True, env=env, cwd=ROOT, check=False)


def test_the_six_jobs_are_there() -> None:
    assert {job.stem for job in JOBS} == {"prepare", "train", "serve", "monitor", "retrain", "score"}


@pytest.mark.parametrize("job", JOBS, ids=lambda p: p.stem)
def test_a_job_explains_itself_without_ray(job: Path) -> None:
    loaded = "import runpy, sys; sys.argv = sys.argv[1:]\ntry: runpy.run_path(sys.argv[0], run_name='__main__')\n"
    report = "finally: sys.stderr.write('ray loaded' if {'ray', 'mlflow'} & sys.modules.keys() else '')\n"
    done = run("-c", loaded + report, str(job), "--help")
    assert done.returncode == 0, done.stderr
    assert "--config FILE" in done.stdout
    assert "ray loaded" not in done.stderr
    assert len(job.read_text(encoding="utf-8").splitlines()) <= 40


@pytest.mark.parametrize("job", JOBS, ids=lambda p: p.stem)
def test_a_job_needs_a_project_file(job: Path) -> None:
    done = run(str(job))
    assert done.returncode == 2
    assert "--config" in done.stderr


def documents() -> list[Path]:
    return [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").glob("*.md"))]


def test_the_documents_are_there() -> None:
    wanted = ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "docs/architecture.md", "docs/decisions.md")
    assert not [name for name in wanted if not (ROOT / name).is_file()]


def code_in(text: str) -> Iterator[str]:
    """Lines of fenced blocks (without a prompt), and inline code."""
    fenced = re.findall(r"^```[^\n]*\n(.*?)^```", text, flags=re.M | re.S)
    yield from (line.strip().removeprefix("$ ") for block in fenced for line in block.splitlines())
    yield from re.findall(r"`([^`\n]+)`", re.sub(r"^```.*?^```", "", text, flags=re.M | re.S))


def said(pattern: str, paths: list[Path]) -> dict[str, str]:
    """What `pattern` captures in the code of `paths`, each with one file that says it."""
    return {
        found[1]: str(path.relative_to(ROOT))
        for path in paths
        for code in code_in(path.read_text(encoding="utf-8"))
        if (found := re.match(pattern, code))
    }


def test_make_targets_that_the_documents_name_exist() -> None:
    targets = set(re.findall(r"^([a-z][a-z-]*):", (ROOT / "Makefile").read_text(encoding="utf-8"), flags=re.M))
    named = said(r"make ([a-z][a-z-]*)", documents())
    assert named
    assert not {target: path for target, path in named.items() if target not in targets}


def test_verbs_that_the_documents_and_messages_name_exist() -> None:
    named = said(r"(?:\.venv/bin/)?mlops-ray ([a-z][a-z-]*)", [*documents(), *files(), ROOT / "Makefile"])
    assert named
    wrong = {verb: path for verb, path in named.items() if CliRunner().invoke(app, [verb, "--help"]).exit_code}
    assert not wrong, wrong


def test_files_that_the_documents_link_to_exist() -> None:
    wrong = [
        f"{path.relative_to(ROOT)}: {target}"
        for path in documents()
        for target in re.findall(r"\]\(([^)#\s]+)[^)]*\)", path.read_text(encoding="utf-8"))
        if "://" not in target and not target.startswith("mailto:") and not (path.parent / target).exists()
    ]
    assert not wrong, wrong
