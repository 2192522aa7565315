"""The command: help, what goes to which stream, and exit codes. No cluster; verbs are stand-ins where they need one."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import click
import pytest
import typer
from typer.testing import CliRunner

from mlops_ray import cli
from mlops_ray.errors import (
    BackendUnavailable,
    ConfigError,
    DataError,
    DataRefused,
    GateRejected,
    IllegalMove,
    MlopsRayError,
    ModelNotFound,
)

ROOT = Path(__file__).parents[2]
QUICKSTART = ROOT / "configs/quickstart.yaml"
RUNNER = CliRunner(env={"COLUMNS": "120", "NO_COLOR": "1", "TERM": "dumb"})


def commands(group: click.Group, above: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    for name, command in group.commands.items():
        yield (*above, name)
        if hasattr(command, "commands"):
            yield from commands(command, (*above, name))  # type: ignore[arg-type]


ALL = [(), *commands(typer.main.get_command(cli.app))]  # type: ignore[arg-type]


@pytest.fixture
def verbs(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """A stand-in for the verbs: set what a test needs."""
    stand_in = SimpleNamespace(tables=None)
    importlib.import_module("mlops_ray.verbs")  # what the stand-in stands in for must be there
    monkeypatch.setattr("mlops_ray.verbs", stand_in)
    monkeypatch.setitem(sys.modules, "mlops_ray.verbs", stand_in)  # type: ignore[arg-type]
    return stand_in


def main(monkeypatch: pytest.MonkeyPatch, *args: str) -> int:
    """Exit code of the whole command, as the shell sees it."""
    monkeypatch.setattr(sys, "argv", ["mlops-ray", *args])
    monkeypatch.setenv("COLUMNS", "200")
    with pytest.raises(SystemExit) as caught:
        cli.main()
    return int(caught.value.code or 0)


# --- help ---


@pytest.mark.parametrize("names", ALL, ids=" ".join)
def test_every_command_explains_itself(names: tuple[str, ...]) -> None:
    done = RUNNER.invoke(cli.app, [*names, "-h" if names else "--help"], prog_name="mlops-ray")
    assert done.exit_code == 0
    assert f"Usage: mlops-ray {' '.join(names)}".rstrip() in done.output
    usage, sentence, *_ = [line.strip() for line in done.output.splitlines() if line.strip()]
    assert len(sentence) > 20, usage


def test_the_commands_are_all_there() -> None:
    assert {" ".join(names) for names in ALL} >= {
        *("check", "prepare", "train", "up", "run", "down", "status", "retrain", "demo", "submit"),
        *("rollout start", "rollout status", "rollout history", "rollout pause", "rollout resume"),
        *("rollout promote", "rollout abort", "rollout rollback", "ledger show", "ledger verify"),
        *("ledger export", "ledger at", "backup", "restore"),
        *("schema infer", "schema diff", "lineage", "card", "reproduce", "export", "approve", "reject"),
    }


def test_help_and_check_load_no_cluster() -> None:
    """All helps and a check in one fresh process: neither Ray nor MLflow, pandas or scikit-learn is imported."""
    program = (
        "import sys, json, io, contextlib\n"
        "from mlops_ray.cli import app\n"
        "for names in json.loads(sys.argv[1]):\n"
        "    with contextlib.redirect_stdout(io.StringIO()):\n"
        "        app([*names, '--help'], standalone_mode=False)\n"
        "app(['check', '-c', sys.argv[2], '--json'], standalone_mode=False)\n"
        "heavy = {'ray', 'mlflow', 'pandas', 'sklearn', 'torch', 'scipy', 'polars'}\n"
        "sys.stderr.write(' '.join(sorted(heavy & sys.modules.keys())))\n"
    )
    arguments = [sys.executable, "-c", program, json.dumps(ALL), str(QUICKSTART)]
    done = subprocess.run(arguments, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert json.loads(done.stdout)["project"] == "quickstart"


@pytest.mark.parametrize(
    "args",
    [
        ["zebra"],
        ["check"],
        ["check", "--zebra"],
        ["rollout", "start", "-c", "x", "one"],
        ["schema", "infer"],
        ["schema", "infer", "a.csv", "-c", "x"],
        ["schema", "diff", "a.csv"],
        ["schema", "diff", "a.csv", "b.csv", "-c", "x"],
    ],
)
def test_what_is_not_understood_is_exit_code_2(args: list[str]) -> None:
    done = RUNNER.invoke(cli.app, args)
    assert done.exit_code == 2
    assert "Usage" in done.stderr


# --- check ---


def test_check_of_a_good_file(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(monkeypatch, "check", "--config", str(QUICKSTART)) == 0
    assert capsys.readouterr().out == "quickstart: 7 features, no problems\n"
    assert main(monkeypatch, "check", "-c", str(QUICKSTART), "--json") == 0
    out, err = capsys.readouterr()
    assert json.loads(out)["features"][-1] == "size"
    assert err == ""


def test_check_of_a_bad_file(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    bad = tmp_path / "bad.yaml"
    bad.write_text(
        QUICKSTART.read_text(encoding="utf-8").replace("target:", "taget:").replace("trials: 4", "trials: [bold]"),
        encoding="utf-8",
    )
    for more in ([], ["--json"]):
        assert main(monkeypatch, "check", "-c", str(bad), *more) == 2
        out, err = capsys.readouterr()
        assert out == ""
        assert "unknown field 'taget'; did you mean 'target'?" in err
        assert "search.trials" in err
        assert "[bold]" in err or "['bold']" in err  # what is in the file is no markup
        assert "Traceback" not in err


def test_overlays_win_in_order(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    for i in (1, 2):
        (tmp_path / f"{i}.yaml").write_text(f"storage: {{root: /data/{i}}}\n", encoding="utf-8")
    overlays = [part for i in (1, 2) for part in ("-c", str(tmp_path / f"{i}.yaml"))]
    assert main(monkeypatch, "check", "-c", str(QUICKSTART), *overlays, "--json") == 0
    assert json.loads(capsys.readouterr().out)["storage"] == "/data/2"


def test_a_file_that_is_not_there(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(monkeypatch, "check", "-c", "/nowhere/x.yaml") == 2
    assert "/nowhere/x.yaml" in capsys.readouterr().err


# --- exit codes ---


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (DataError("rows", "there are none"), 1),
        (BackendUnavailable("Ray", "start it"), 1),
        (ModelNotFound("small", "7"), 1),
        (ConfigError("x.yaml", ("x.yaml:1: task: is missing; add it",)), 2),
        (IllegalMove("pause", "promoted", ("rollback",)), 2),
        (GateRejected("run 7", ("log_loss 0.7 is above [0.6]",)), 3),
    ],
    ids=lambda value: type(value).__name__,
)
@pytest.mark.parametrize("more", [[], ["--json"]], ids=["people", "machines"])
def test_an_error_is_its_sentence_and_its_exit_code(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    verbs: SimpleNamespace,
    error: MlopsRayError,
    code: int,
    more: list[str],
) -> None:
    def train(*_: Any, **__: Any) -> dict[str, Any]:
        raise error

    verbs.train = train
    assert main(monkeypatch, "train", "-c", "x.yaml", *more) == code
    out, err = capsys.readouterr()
    assert out == ""
    assert err.rstrip("\n").endswith(f"error {error}")


def test_a_refused_candidate_is_a_document_for_machines_and_files_for_ci(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], verbs: SimpleNamespace, tmp_path: Path
) -> None:
    asked: dict[str, Any] = {}

    def train(*_: Any, **given: Any) -> dict[str, Any]:
        asked.update(given)
        raise GateRejected("run r", ("rows: 3 holdout rows",), {"version": None, "verdict": "fail"})

    verbs.train = train
    files = ["--html", str(tmp_path / "gates.html"), "--junit", str(tmp_path / "gates.xml")]
    assert main(monkeypatch, "train", "-c", "x.yaml", "--json", "--resume", *files) == 3
    out, err = capsys.readouterr()
    assert json.loads(out) == {"version": None, "verdict": "fail"}
    assert "rows: 3 holdout rows" in err
    assert asked == {"resume": True, "page": tmp_path / "gates.html", "junit": tmp_path / "gates.xml"}


@pytest.fixture
def versions(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """The verbs about one version, to be filled by a test."""
    fake = SimpleNamespace()
    monkeypatch.setitem(sys.modules, "mlops_ray.verbs.models", fake)
    monkeypatch.setattr("mlops_ray.verbs.models", fake, raising=False)
    return fake


@pytest.mark.parametrize(("same", "code"), [("bit-equal", 0), ("equal within tolerance", 0), ("different", 3)])
def test_reproduce_says_how_alike_and_what_differs(versions: SimpleNamespace, same: str, code: int) -> None:
    result = {
        "version": 3,
        "same": same,
        "max_gap": 0.25,
        "n_rows": 1000,
        "differences": ["numpy is 3"],
        "search": None,
    }
    versions.reproduce = lambda paths, env, version, on_progress, search: result | {"version": version}
    done = RUNNER.invoke(cli.app, ["reproduce", "-c", "x.yaml", "3"])
    assert done.exit_code == code
    gap = "" if same == "bit-equal" else " (largest difference 0.25)"
    assert done.stdout == f"v3: 1,000 predictions on the holdout are {same}{gap}\n  numpy is 3\n"
    machines = RUNNER.invoke(cli.app, ["reproduce", "-c", "x.yaml", "3", "--json"])
    assert (machines.exit_code, json.loads(machines.stdout)) == (code, result)


def test_a_card_goes_to_standard_output_or_to_files(versions: SimpleNamespace, tmp_path: Path) -> None:
    versions.card = lambda paths, env, version: {"html": "<p>v3</p>", "markdown": "# v3"}
    assert RUNNER.invoke(cli.app, ["card", "-c", "x.yaml", "3"]).stdout == "# v3\n"
    done = RUNNER.invoke(cli.app, ["card", "-c", "x.yaml", "3", "--html", str(tmp_path / "card.html")])
    assert (done.exit_code, done.stdout) == (0, f"the card of v3 is in {tmp_path / 'card.html'}\n")
    assert (tmp_path / "card.html").read_text() == "<p>v3</p>"


def test_lineage_is_a_tree_for_people_and_json_for_machines(versions: SimpleNamespace) -> None:
    leaf = SimpleNamespace(text="flights [v2]", children=())
    tree = SimpleNamespace(text="v3", children=(leaf,))
    versions.lineage = lambda *_: SimpleNamespace(tree=lambda: tree, to_dict=lambda: {"version": 3})
    people = RUNNER.invoke(cli.app, ["lineage", "-c", "x.yaml", "3"]).stdout
    assert people.splitlines()[0] == "v3"
    assert people.splitlines()[1].endswith("flights [v2]")
    assert json.loads(RUNNER.invoke(cli.app, ["lineage", "-c", "x.yaml", "3", "--json"]).stdout) == {"version": 3}


def test_an_export_names_what_it_shall_write(versions: SimpleNamespace, tmp_path: Path) -> None:
    def export(paths: Any, env: Any, version: int, into: Path, **wanted: bool) -> dict[str, Any]:
        return {"version": version, "folder": str(into), "files": [name for name, yes in wanted.items() if yes]}

    versions.export = export
    nothing = RUNNER.invoke(cli.app, ["export", "-c", "x.yaml", "3", "-o", str(tmp_path / "out")])
    assert nothing.exit_code == 2
    assert "--onnx" in nothing.stderr
    done = RUNNER.invoke(cli.app, ["export", "-c", "x.yaml", "3", "-o", "out", "--onnx", "--conda"])
    assert done.stdout == "v3 in out: onnx, conda\n"


def test_refused_data_are_a_document_for_machines(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], verbs: SimpleNamespace
) -> None:
    refused = DataRefused("p", ("9 good rows",), "9 rows read", {"n_read": 9, "findings": []}, "/lake/validation.html")

    def prepare(*_: Any, **__: Any) -> dict[str, Any]:
        raise refused

    verbs.prepare = prepare
    assert main(monkeypatch, "prepare", "-c", "x.yaml", "--json") == 3
    out, err = capsys.readouterr()
    document = json.loads(out)
    assert (document["dataset"], document["report"]["n_read"], document["refused"]) == (None, 9, ["9 good rows"])
    assert "9 good rows" in err
    assert "/lake/validation.html" in err


def test_a_page_that_cannot_be_written_is_said_before_the_work(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(monkeypatch, "prepare", "-c", str(QUICKSTART), "--html", "/nowhere/at/all.html") == 2
    assert "there is no directory /nowhere/at" in capsys.readouterr().err


# --- what is handed on ---


@pytest.mark.parametrize("order", ["pause", "resume", "promote", "abort", "rollback"])
def test_orders_reach_the_rollout_with_their_reason(verbs: SimpleNamespace, order: str) -> None:
    given: list[Any] = []

    def move(paths: Any, env: Any, name: str, why: str, *, of: str, to: int, version: int) -> dict[str, Any]:
        given.append(([str(p) for p in paths], name, why, of, to, version))
        return {"rollout": "r1", "phase": "paused"}

    verbs.rollout = SimpleNamespace(move=move)
    done = RUNNER.invoke(
        cli.app, ["rollout", order, "-c", "a.yaml", "-c", "b.yaml", "--why", "noise", "--rollout", "r1"]
    )
    assert (done.exit_code, done.output) == (0, "rollout r1 is paused\n")
    assert given == [(["a.yaml", "b.yaml"], order, "noise", "r1", None, None)]


def test_retrain_takes_a_decision_or_makes_one(verbs: SimpleNamespace) -> None:
    given: list[Any] = []

    def retrain(paths: Any, env: Any, decision: str | None, reason: str, *, if_changed: bool) -> dict[str, Any]:
        given.append((list(paths), decision, reason))
        return {"status": "succeeded", "version": 2, "rollout": "r"}

    verbs.retrain = retrain
    assert RUNNER.invoke(cli.app, ["retrain", "--decision", "d1"]).exit_code == 0
    assert RUNNER.invoke(cli.app, ["retrain", "-c", "a.yaml", "--reason", "new data"]).exit_code == 0
    assert given == [([], "d1", "manual"), ([Path("a.yaml")], None, "new data")]


ROLLOUT = {
    "id": "x-v2-r1",
    "version": 2,
    "stable": 1,
    "state": {"phase": "ramping", "since": 0.0, "reason": ""},
}


def test_retrain_for_changes_says_when_there_are_none(verbs: SimpleNamespace) -> None:
    verbs.retrain = lambda *_, if_changed: {"status": "unchanged"} if if_changed else {}
    done = RUNNER.invoke(cli.app, ["retrain", "-c", "a.yaml", "--if-changed"])
    assert (done.exit_code, done.stdout) == (0, "nothing has changed since the newest version was trained\n")
    refused = RUNNER.invoke(cli.app, ["retrain", "--decision", "d1", "--if-changed"])
    assert refused.exit_code == 2
    assert "leave --decision out" in refused.output


def test_rollout_status_in_words(verbs: SimpleNamespace) -> None:
    found = {"rollout": ROLLOUT, "share": 0.1, "stable": 1}
    verbs.rollout = SimpleNamespace(status=lambda paths, env: found)
    done = RUNNER.invoke(cli.app, ["rollout", "status", "-c", "x.yaml"])
    assert done.output == "v2 against v1: ramping at 10%, since 1970-01-01 00:00, x-v2-r1\n"
    found = {"rollout": None, "share": 0.0, "stable": 1}
    assert RUNNER.invoke(cli.app, ["rollout", "status", "-c", "x.yaml"]).output == "no rollout is open\n"


def test_progress_goes_to_people_only(verbs: SimpleNamespace) -> None:
    def train(paths: Any, env: Any, on_progress: Any, **_: Any) -> dict[str, Any]:
        on_progress("trials", 1, 2)
        on_progress("trials", 2, 2)
        on_progress("unknown total", 1, 0)
        return {"version": 3, "metrics": {"log_loss": 0.25}}

    verbs.train = train
    people = RUNNER.invoke(cli.app, ["train", "-c", "x.yaml"])
    assert people.stdout == "v3 registered: log_loss 0.2500\n"
    machines = RUNNER.invoke(cli.app, ["train", "-c", "x.yaml", "--json"])
    assert json.loads(machines.stdout) == {"version": 3, "metrics": {"log_loss": 0.25}}
    assert machines.stderr == ""
