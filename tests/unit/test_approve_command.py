"""`mlops-ray approve | reject`: who counts, and what they see."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner, Result

from mlops_ray.cli import app
from mlops_ray.config import load_project
from mlops_ray.errors import ConfigError, MlopsRayError
from mlops_ray.rollout.approval import PROPOSER, PROPOSER_TOKEN
from mlops_ray.state import Store, VersionRow
from mlops_ray.verbs import _proposed_by, subjects

ROOT = Path(__file__).parents[2]
ROW = VersionRow("quickstart", 3, "run3", "/m/3", "f" * 64, "/d@1", VersionRow.PENDING, 1.0, {})


def made(folder: Path, **blocks: Any) -> list[str]:
    """The options of a project file, whose version 3 is pending."""
    overlay = folder / "overlay.yaml"
    overlay.write_text(yaml.safe_dump({"storage": {"root": str(folder)}, **blocks}))
    files = [ROOT / "configs/quickstart.yaml", overlay]
    store = Store.open(load_project(files, env={}).storage.state)
    store.run(lambda tx: tx.save_version(ROW))
    store.close()
    return [word for file in files for word in ("-c", str(file))]


def run(*words: str, env: dict[str, str] | None = None) -> Result:
    return CliRunner().invoke(app, list(words), env=env)


def told(*words: str, env: dict[str, str] | None = None) -> dict[str, Any]:
    result = run(*words, "--json", env=env)
    assert result.exit_code == 0, result.exception
    found: dict[str, Any] = json.loads(result.stdout)
    return found


def refusal(*words: str, env: dict[str, str] | None = None) -> str:
    result = run(*words, env=env)
    assert isinstance(result.exception, MlopsRayError), result.output
    assert result.exception.exit_code == 2
    return str(result.exception)


def test_without_tokens_the_user_of_the_machine_counts_whatever_the_environment_says(tmp_path: Path) -> None:
    config = made(tmp_path)
    pretended = {"USER": "somebody", "LOGNAME": "somebody", "LNAME": "somebody", "USERNAME": "somebody"}
    found = told("approve", "3", *config, "--reason", "read it", env=pretended)
    assert (found["who"], found["status"], found["already"]) == (subjects.os_user(), "registered", False)
    says = run("approve", "3", *config, "--why", "again").stdout
    assert says == "v3 needs no approval: it is registered already; the ledger has no new entry\n"


def test_who_had_it_trained_may_only_reject(tmp_path: Path) -> None:
    config = made(tmp_path, gates={"approval": True})
    store = Store.open(f"sqlite:///{tmp_path}/state.db")
    store.run(lambda tx: tx.save_version(replace(ROW, tags={PROPOSER: subjects.os_user()})))
    store.close()
    assert "proposed it, so another must approve it" in refusal("approve", "3", *config, "--reason", "mine")
    says = run("reject", "3", *config, "--reason", "a mistake").stdout
    assert says == f"v3 is rejected by {subjects.os_user()}, rejected\n"
    assert "had decided so before" in run("reject", "3", *config, "--reason", "a mistake").stdout


def test_with_tokens_their_subjects_count_and_their_roles(tmp_path: Path) -> None:
    config = made(tmp_path, serving={"auth": "token"}, gates={"approval": {"approvers": 2, "expires_s": 3600}})

    def token(name: str, role: str) -> str:
        return run("token", "create", *config, name, "--role", role).stdout.strip()

    words = ("approve", "3", *config, "--reason", "read it")
    assert "MLOPS_RAY_TOKEN" in refusal(*words)
    assert "never was one of this project" in refusal(
        *words, env={"MLOPS_RAY_TOKEN": "mr_" + "0" * 12 + "_" + "x" * 43}
    )
    assert "this needs approve" in refusal(*words, env={"MLOPS_RAY_TOKEN": token("carl", "operate")})
    first = told(*words, env={"MLOPS_RAY_TOKEN": token("ann", "approve")})
    assert (first["who"], first["status"], first["says"]) == ("ann", "pending", "approved by ann; 1 more must")
    twice = told(*words, env={"MLOPS_RAY_TOKEN": token("ann", "approve")})  # another token, the same subject
    assert (twice["already"], twice["missing"]) == (True, 1)
    second = told(*words, "--token-env", "BENS", env={"BENS": token("ben", "approve")})
    assert (second["who"], second["status"], second["approvers"]) == ("ben", "registered", ["ann", "ben"])


def test_a_user_of_another_machine_does_not_count() -> None:
    assert subjects._is_here("sqlite:////data/state.db")
    assert subjects._is_here("postgresql://me@127.0.0.1:5432/x")
    assert subjects._is_here("postgresql://me@/x?host=/var/run/postgresql")
    assert not subjects._is_here("postgresql://me@db.example.org/x")
    assert not subjects._is_here("postgresql://me@10.0.0.7/x")


@pytest.mark.parametrize(
    ("block", "says"),
    [({"approver": 2}, "approver"), ({"approvers": 0}, "approvers"), ({"expires_s": -1}, "expires_s"), ("perhaps", "")],
)
def test_a_policy_that_makes_no_sense_is_named(tmp_path: Path, block: object, says: str) -> None:
    overlay = tmp_path / "overlay.yaml"
    overlay.write_text(yaml.safe_dump({"gates": {"approval": block}}))
    with pytest.raises(ConfigError) as caught:
        load_project([ROOT / "configs/quickstart.yaml", overlay], env={})
    assert "gates.approval" in str(caught.value)
    assert says in str(caught.value)


def test_an_order_is_under_the_subject_of_a_valid_token(tmp_path: Path) -> None:
    config = made(tmp_path, serving={"auth": "token"})
    project = load_project(config[1::2], env={})
    store = Store.open(project.storage.state)
    token = run("token", "create", *config, "ann", "--role", "read").stdout.strip()
    assert subjects.orderer(project, store, {"MLOPS_RAY_TOKEN": token}) == "ann"
    assert subjects.orderer(project, store, {"MLOPS_RAY_TOKEN": token[:-1] + "!"}) == subjects.os_user()
    assert subjects.orderer(project, store, {}) == subjects.os_user()
    store.close()


def test_a_training_records_who_had_it_made(tmp_path: Path) -> None:
    config = made(tmp_path, serving={"auth": "token"})
    project = load_project(config[1::2], env={})
    store = Store.open(project.storage.state)
    token = run("token", "create", *config, "ann", "--role", "read").stdout.strip()
    assert _proposed_by(project, store, {}) == {PROPOSER: subjects.os_user()}
    found = _proposed_by(project, store, {"MLOPS_RAY_TOKEN": token})
    assert found == {PROPOSER: subjects.os_user(), PROPOSER_TOKEN: "ann"}
    store.close()


@pytest.mark.parametrize("order", [("train",), ("retrain",), ("run",)])
@pytest.mark.parametrize("blocks", [{"gates": {"approval": True}}, {"rollout": {"approval": "before_promotion"}}])
def test_who_would_make_a_version_must_show_it_too(
    tmp_path: Path, order: tuple[str, ...], blocks: dict[str, Any]
) -> None:
    """Before anything is done; the version then counts as proposed by the token's subject."""
    config = made(tmp_path, serving={"auth": "token"}, **blocks)
    assert "asks for people by their tokens" in refusal(*order, *config, env={"MLOPS_RAY_TOKEN": ""})


@pytest.mark.parametrize("order", [("start", "3"), ("promote",)])
def test_who_would_propose_must_show_the_token_that_approvals_ask_for(tmp_path: Path, order: tuple[str, ...]) -> None:
    """Else one person could start a rollout as a login and approve it as a token's subject."""
    config = made(tmp_path, serving={"auth": "token"}, rollout={"approval": "before_start"})
    assert "asks for people by their tokens" in refusal("rollout", *order, *config, env={"MLOPS_RAY_TOKEN": ""})
    assert "asks for people by their tokens" in refusal("rollout", *order, *config, env={"MLOPS_RAY_TOKEN": "mr_x"})
    token = told("token", "create", "ann", "--role", "operate", *config)["token"]
    assert "tokens" not in refusal(
        "rollout", *order, *config, env={"MLOPS_RAY_TOKEN": token}
    )  # refused for other reasons
