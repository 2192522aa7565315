"""`mlops-ray ledger`: what its user types and sees, without MLflow."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner, Result

from mlops_ray import ledger
from mlops_ray.cli import app
from mlops_ray.errors import BackendUnavailable, DataError
from mlops_ray.state import Store
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
    cut = run("verify", *config, "--anchors", str(export), "--json", code=1)
    assert "its tail was cut" in json.loads(cut.stdout)["problem"]
    assert isinstance(CliRunner().invoke(app, ["ledger", "verify", *config, "--anchor", "3"]).exception, DataError)


def test_verify_looks_at_the_heads_in_mlflow_and_says_when_it_cannot(
    config: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "mlflow.db").touch()
    monkeypatch.setattr(on_registry, "anchors", lambda project: [(3, "ab" * 32)])
    assert "entry 3 is not the anchored one" in run("verify", *config, code=1).stdout

    def away(project: object) -> list[ledger.Anchor]:
        raise BackendUnavailable("MLflow", "nothing answers")

    monkeypatch.setattr(on_registry, "anchors", away)
    said = run("verify", *config).stdout
    assert "were not looked at: MLflow is not available" in said


def test_at_says_who_served_and_who_approved(config: list[str]) -> None:
    assert "v1 was stable at 2024-01-01 00:00:00+00:00" in run("at", *config, "2024-01-01").stdout
    assert json.loads(run("at", *config, "2000-01-01", "--json").stdout)["stable"] is None
