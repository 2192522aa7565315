"""The README's five minutes, as they stand there: only ports, the place of the state and the search's budget differ."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from mlops_ray import ledger, verbs
from mlops_ray.cluster import processes
from mlops_ray.cluster.processes import free_port

pytestmark = [pytest.mark.ray, pytest.mark.timeout(600)]

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
RETRAINING = (ROOT / "docs/retraining.md").read_text(encoding="utf-8")


def fenced(text: str, heading: str, language: str) -> list[str]:
    """Blocks of a language below a heading."""
    section = text.partition(f"## {heading}\n")[2].partition("\n## ")[0]
    assert section, heading
    return re.findall(rf"^```{language}\n(.*?)^```$", section, flags=re.M | re.S)


def test_five_minutes(tmp_path: Path, clean_environment: None) -> None:
    shutil.copytree(ROOT / "configs", tmp_path / "configs")
    port, root = free_port(), tmp_path / "root"
    overlay = tmp_path / "overlay.yaml"
    content = {
        "storage": {"root": str(root)},
        "cluster": {"http_port": port},
        "monitoring": {"metrics_port": free_port()},
        "search": {"trials": 2, "concurrency": 1},  # each worker that starts costs seconds
    }
    overlay.write_text(yaml.safe_dump(content), encoding="utf-8")
    script = fenced(README, "Five minutes with your own data", "bash")[1]
    assert script.startswith("cp ")
    assert script.rstrip().endswith("mlops-ray down -c configs/mine.yaml")
    script = script.replace("-c configs/mine.yaml", f"-c configs/mine.yaml -c {overlay}").replace(":8000/", f":{port}/")
    env = {**os.environ, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}", "COLUMNS": "200"}
    paths = [tmp_path / "configs/mine.yaml", overlay]

    def bash(commands: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            ["bash", "-euo", "pipefail", "-c", commands], cwd=tmp_path, env=env, capture_output=True, text=True
        )

    try:
        done = bash(script)
        assert done.returncode == 0, done.stdout + done.stderr
        for said in ("7 features, no problems", "569 read, 0 in quarantine", "v1 answers at", '{"accepted":1}'):
            assert said in done.stdout
        answer = json.loads(re.findall(r'\{"request_id".*?\}\]\}', done.stdout)[0])
        shown = json.loads(fenced(README, "Five minutes with your own data", "json")[0])
        (prediction,), (wanted,) = answer.pop("predictions"), shown.pop("predictions")
        assert answer == shown
        assert prediction.pop("probability") == pytest.approx(wanted.pop("probability"), abs=0.05)
        assert prediction == wanted
        assert re.search(r"stable +v1\b", done.stdout)
        assert re.search(r"[1-9]\d* processes ended", done.stdout)
        assert not (root / "cluster.json").exists()
        processes.demand_free(port, "127.0.0.1", "cluster.http_port")

        # docs/retraining.md shows what too few labels look like; the project is down, and it says so all the same.
        refused = bash(f"mlops-ray retrain -c configs/mine.yaml -c {overlay}")
        assert refused.returncode == 1, refused.stdout + refused.stderr
        text = re.findall(r"^```text\n(.*?)^```$", RETRAINING, flags=re.M | re.S)[0]
        assert refused.stderr.strip().splitlines()[-1] == text.strip()
        project = verbs.load(paths, os.environ).project
        with verbs.open_store(project).read() as tx:
            kinds = [entry.kind for entry in ledger.entries(tx, project.project)]
        assert kinds == ["promoted", "retrain decided", "retrain failed"]
    finally:
        verbs.down(paths, os.environ)
