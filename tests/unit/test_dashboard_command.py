"""`mlops-ray dashboard`: what its user types and sees."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner, Result

from mlops_ray.cli import app
from mlops_ray.errors import DataError
from mlops_ray.state import Store
from tests import histories


@pytest.fixture
def config(tmp_path: Path) -> list[str]:
    """A project file whose state holds the history."""
    project = histories.project(storage={"root": str(tmp_path / "root")}, cluster={"http_port": 8123})
    file = tmp_path / "small.yaml"
    file.write_text(yaml.safe_dump(project.model_dump(mode="json", exclude_unset=True)))
    return ["-c", str(file)]


@pytest.fixture
def told(config: list[str], tmp_path: Path) -> list[str]:
    (tmp_path / "root").mkdir()
    store = Store.open(f"sqlite:///{tmp_path}/root/state.db")
    histories.history(store, histories.project())
    store.close()
    return config


def run(*words: str, code: int = 0) -> Result:
    result = CliRunner().invoke(app, ["dashboard", *words])
    assert result.exit_code == code, (result.output, result.exception)
    return result


def test_it_says_where_the_page_is_and_where_the_loop_stands(told: list[str]) -> None:
    shown = run(*told).stdout.splitlines()
    assert shown[0] == "http://127.0.0.1:8123/small/dashboard"
    assert shown[1].startswith("Canary v3 at 20 %: 412 of about 900 keys")
    found = json.loads(run(*told, "--json").stdout)
    assert (found["stage"], found["needs_token"], found["output"]) == ("rollout", False, None)


def test_a_snapshot_is_one_file_with_the_data_inside(told: list[str], tmp_path: Path) -> None:
    file = tmp_path / "incident.html"
    file.write_text("an older one")
    assert f"snapshot: {file}" in run(*told, "--output", str(file)).stdout
    text = file.read_text(encoding="utf-8")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["incident.html", "root", "small.yaml"]
    body = re.search(r'<script type="application/json" id="snapshot">(.*?)</script>', text, re.S)
    assert body is not None
    data = json.loads(body[1])
    assert data["document"]["serving"]["stable"] == 2
    assert not re.findall(r"""(?:src|href)=["']?(?:https?:)?//""", text)


def test_it_refuses_what_cannot_be_written_and_where_nothing_ran(config: list[str], tmp_path: Path) -> None:
    assert "there is no directory" in " ".join(run(*config, "--output", f"{tmp_path}/no/x.html", code=2).stderr.split())
    failed = CliRunner().invoke(app, ["dashboard", *config])
    assert isinstance(failed.exception, DataError)
    assert not (tmp_path / "root").exists()
