"""What docs/serving.md and docs/protocols.md ask of a project that is up: curl, Triton's client, MLflow's client."""

from __future__ import annotations

import json
import os
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from mlops_ray import verbs
from mlops_ray.cluster.processes import free_port

pytestmark = [pytest.mark.ray, pytest.mark.timeout(600)]

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "docs/serving.md", ROOT / "docs/protocols.md"]
WANTS_CLUSTER = re.compile(r"<!-- needs: cluster -->\n+```(bash|python)\n(.*?)^```$", flags=re.M | re.S)
BLOCKS = [
    pytest.param(found[1], found[2], id=f"{page.name}-{i}")
    for page in PAGES
    for i, found in enumerate(WANTS_CLUSTER.finditer(page.read_text(encoding="utf-8")))
]


@pytest.fixture(scope="module")
def port(tmp_path_factory: pytest.TempPathFactory, clean_environment: None) -> Iterator[int]:
    """The quickstart, up on a free port."""
    folder = tmp_path_factory.mktemp("documented")
    overlay, port = folder / "overlay.yaml", free_port()
    content = {
        "storage": {"root": str(folder / "root")},
        "cluster": {"http_port": port},
        "monitoring": {"metrics_port": free_port()},
        "search": {"trials": 2, "concurrency": 1},
    }
    overlay.write_text(yaml.safe_dump(content), encoding="utf-8")
    paths = [ROOT / "configs/quickstart.yaml", overlay]
    try:
        verbs.run(paths, os.environ)
        yield port
    finally:
        verbs.down(paths, os.environ)


@pytest.mark.parametrize(("language", "text"), BLOCKS)
def test_the_block_works_on_a_cluster(port: int, language: str, text: str) -> None:
    text = text.replace("8000", str(port))
    if language == "python":
        exec(compile(text, "block", "exec"), {})
        return
    done = subprocess.run(["bash", "-euo", "pipefail", "-c", text], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    answer = json.loads(done.stdout)
    assert "predictions" in answer or "outputs" in answer, answer


def test_there_are_such_blocks_of_both_kinds() -> None:
    assert {block.values[0] for block in BLOCKS} == {"bash", "python"}
