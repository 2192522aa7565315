"""`mlops-ray ledger`: what its user types and sees, without MLflow."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner, Result

from mlops_ray import ledger
from mlops_ray.cli import app
from mlops_ray.errors import BackendUnavailable, NoAnchor
from mlops_ray.rollout.canary import CanaryState, Phase
from mlops_ray.serving.versions import Held, Wanted
from mlops_ray.state import ApprovalRow, RetrainRow, RolloutRow, Store, VersionRow
from mlops_ray.training import on_registry

ROOT = Path(__file__).parents[2]


@pytest.fixture
def config(tmp_path: Path) -> list[str]:
    """The options of a project file whose ledger has three entries."""
    overlay = tmp_path / "overlay.yaml"
    overlay.write_text(yaml.safe_dump({"storage": {"root": str(tmp_path)}}))
    store = Store.open(f"sqlite:///{tmp_path}/state.db")
    with store.begin() as tx:
        ledger.append(tx, "quickstart", "promoted", "v1", "mlops_ray", "the first", {}, 1.7e9)
        ledger.append(
            tx, "quickstart", "rollout started", "v2", "ann", "try", {"rollout": "r1", "against": 1}, 1.7e9 + 60
        )
        ledger.append(tx, "quickstart", "approved", "v2", "ben", "read it", {}, 1.7e9 + 120)
    store.close()
    return ["-c", str(ROOT / "configs/quickstart.yaml"), "-c", str(overlay)]


def run(*words: str, code: int = 0) -> Result:
    result = CliRunner().invoke(app, ["ledger", *words])
    assert result.exit_code == code, (result.output, result.exception)
    return result


@pytest.mark.parametrize(
    ("options", "seqs"),
    [
        ([], [1, 2, 3]),
        (["--since", "2023-11-14T22:14:20"], [2, 3]),
        (["--since", "2023-11-14T23:14:20+01:00"], [2, 3]),
        (["--since", str(1.7e9 + 61)], [3]),
        (["--kind", "rollout"], [2]),
        (["--subject", "v2"], [2, 3]),
        (["--subject", "r1"], [2]),
        (["--kind", "nothing"], []),
    ],
)
def test_show_chooses(config: list[str], options: list[str], seqs: list[int]) -> None:
    found = json.loads(run("show", *config, *options, "--json").stdout)
    assert [entry["seq"] for entry in found["entries"]] == seqs
    people = run("show", *config, *options).stdout
    assert len(people.splitlines()) == max(1, len(seqs))
    if not seqs:
        assert people == "none of 3 entries is so\n"


def test_a_time_that_is_none_is_told(config: list[str]) -> None:
    assert "is no time; write 2026-05-01" in " ".join(
        run("show", *config, "--since", "yesterday", code=2).output.split()
    )


def test_verify_says_what_it_cannot_prove_and_takes_anchors(config: list[str], tmp_path: Path) -> None:
    said = run("verify", *config).stdout
    assert "3 entries, unbroken" in said
    assert "without an anchor" in said
    seq, sealed = json.loads(run("verify", *config, "--json").stdout)["head"]
    assert "vouch for entries 1 to 3" in run("verify", *config, "--anchor", f"{seq}:{sealed}").stdout
    export = tmp_path / "ledger.jsonl"
    assert run("export", *config, "-o", str(export)).stdout.startswith("3 entries in")
    assert run("export", *config).stdout == export.read_text()
    store = Store.open(f"sqlite:///{tmp_path}/state.db")
    with store.begin() as tx:
        tx.connection.exec_driver_sql("DELETE FROM ledger WHERE seq = 3")
    store.close()
    assert run("verify", *config).exit_code == 0
    cut = run("verify", *config, "--anchors", str(export), "--json", code=3)
    assert "its tail was cut" in json.loads(cut.stdout)["problem"]
    lost = f"{seq}:{sealed}"
    assert (
        "whoever asked accepts that" in run("verify", *config, "--anchors", str(export), "--accept-loss", lost).stdout
    )


@pytest.mark.parametrize(
    "words", [("--anchor", "3"), ("--accept-loss", "junk"), ("--anchors", "nowhere.txt"), ("--accept-loss", "3:ab")]
)
def test_what_is_no_anchor_is_a_mistake_of_usage(config: list[str], words: tuple[str, str]) -> None:
    refused = CliRunner().invoke(app, ["ledger", "verify", *config, *words]).exception
    assert isinstance(refused, NoAnchor)
    assert refused.exit_code == 2


def test_several_losses_are_named_at_once_and_accepted_at_once(config: list[str], tmp_path: Path) -> None:
    """As after a restore: the entry `restored` claims all of them."""
    lost = [(5, "ab" * 32), (6, "cd" * 32)]
    store = Store.open(f"sqlite:///{tmp_path}/state.db")
    gave_up = {ledger.GAVE_UP: [list(one) for one in lost]}
    store.run(lambda tx: ledger.append(tx, "quickstart", ledger.RESTORED, "backup", "ann", "", gave_up, 1.7e9 + 130))
    store.close()
    anchors = [word for seq, sealed in lost for word in ("--anchor", f"{seq}:{sealed}")]
    says = run("verify", *config, *anchors, code=3).stdout
    accept = [word for seq, sealed in lost for word in ("--accept-loss", f"{seq}:{sealed}")]
    assert " ".join(accept) in says
    assert "gave it and 1 more up" in says
    run("verify", *config, *anchors, *accept[:2], code=3)
    assert "anchors of entries 5, 6 are not met" in run("verify", *config, *anchors, *accept).stdout


def test_verify_looks_at_the_heads_in_mlflow_and_says_when_it_cannot(
    config: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "mlflow.db").touch()
    monkeypatch.setattr(on_registry, "anchors", lambda project: [(3, "ab" * 32)])
    assert "entry 3 is not the anchored one" in run("verify", *config, code=3).stdout

    def away(project: object) -> list[ledger.Anchor]:
        raise BackendUnavailable("MLflow", "nothing answers")

    monkeypatch.setattr(on_registry, "anchors", away)
    said = run("verify", *config).stdout
    assert "were not looked at: MLflow is not available" in said


def test_decisions_that_the_state_knows_of_and_the_ledger_does_not_are_told(config: list[str], tmp_path: Path) -> None:
    """An emptied ledger is a chain without a fault; the rows beside it are not without decisions."""
    store = Store.open(f"sqlite:///{tmp_path}/state.db")
    ended = CanaryState(Phase.ABORTED, 0, 9.0).to_dict()
    with store.begin() as tx:
        tx.save_rollout(RolloutRow("r1", "quickstart", 2, 1, {}, ended, 1.7e9, 9.0))
        tx.save_retrain(RetrainRow("t1", "quickstart", "drift", "", 1.0, "s", "failed", {}, 2.0))
        tx.save_version(VersionRow("quickstart", 2, "run", "/m/2", "0" * 64, "d@1", "registered", 1.0, {}))
        tx.save_approval(ApprovalRow("quickstart", 2, "", "ben", "approve", "read it", 1.7e9))
        tx.save_serving("quickstart", Wanted(stable=Held(1, "/m/1", "0" * 64)).spec(), 0)
    found = json.loads(run("verify", *config, "--json", code=3).stdout)
    missing = ["that rollout r1 is aborted", "that retrain t1 was decided", "that retrain t1 is failed"]
    assert (found["ok"], found["problem"], found["unrecorded"]) == (False, None, missing)
    with store.begin() as tx:
        evidence = {"rollout": "r1", "state": ended}
        ledger.append(tx, "quickstart", "rollout abort", "v2", "ann", "", evidence, 1.7e9 + 130)
        ledger.append(tx, "quickstart", "retrain decided", "t1", "mlops_ray", "", {}, 1.7e9 + 130)
        ledger.append(tx, "quickstart", "retrain failed", "t1", "mlops_ray", "", {}, 1.7e9 + 130)
    run("verify", *config)
    with store.begin() as tx:
        tx.connection.exec_driver_sql("DELETE FROM ledger")
    store.close()
    said = run("verify", *config, code=3).stdout
    assert "it does not say that rollout r1 started; that rollout r1 is aborted; that retrain t1 was decided" in said
    assert "that retrain t1 is failed; that ben decided to approve v2; and 1 more" in said


def test_at_says_who_served_and_who_approved(config: list[str]) -> None:
    assert "v1 was stable at 2024-01-01 00:00:00+00:00" in run("at", *config, "2024-01-01").stdout
    assert json.loads(run("at", *config, "2000-01-01", "--json").stdout)["stable"] is None


def test_verify_reads_the_ledger_once(config: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """It may be long. What holds of the chain is what the state's rows are compared with."""

    def again(*_: object, **__: object) -> None:
        raise AssertionError("a second time")

    monkeypatch.setattr(ledger, "entries", again)
    assert "3 entries, unbroken" in run("verify", *config).stdout
