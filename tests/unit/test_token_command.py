"""`mlops-ray token`: what its user types and sees."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from mlops_ray.cli import app

ROOT = Path(__file__).parents[2]


@pytest.fixture
def config(tmp_path: Path) -> list[str]:
    overlay = tmp_path / "overlay.yaml"
    overlay.write_text(yaml.safe_dump({"storage": {"root": str(tmp_path)}, "serving": {"auth": "token"}}))
    return ["-c", str(ROOT / "configs/quickstart.yaml"), "-c", str(overlay)]


def run(*words: str) -> str:
    result = CliRunner().invoke(app, list(words))
    assert result.exit_code == 0, result.output
    return result.stdout


def test_a_token_is_made_listed_rotated_and_ended(config: list[str]) -> None:
    token = run("token", "create", *config, "checkout", "--role", "predict", "-r", "feedback").strip()
    assert token.startswith("mr_")
    (listed,) = json.loads(run("token", "list", *config, "--json"))["tokens"]
    assert (listed["name"], listed["roles"], listed["valid"]) == ("checkout", ["feedback", "predict"], True)
    assert token.rpartition("_")[2] not in run("token", "list", *config)
    newer = json.loads(run("token", "rotate", *config, listed["id"], "--overlap-s", "0", "--json"))
    assert newer["replaces"] == listed["id"]
    assert newer["token"] != token
    assert "has ended" in run("token", "revoke", *config, newer["id"])
    after = json.loads(run("token", "list", *config, "--json"))["tokens"]
    assert [t["valid"] for t in after] == [False, False]
    kinds = [e["kind"] for e in json.loads(run("ledger", "show", *config, "--json"))["entries"]]
    assert kinds == ["token created", "token ended", "token created", "token ended"]


def test_an_unknown_id_says_where_to_look(config: list[str]) -> None:
    result = CliRunner().invoke(app, ["token", "revoke", *config, "nobody"])
    assert result.exit_code == 1
    assert "token list" in str(result.exception)
