"""The cluster launcher's files satisfy Ray's own checks, as written and after Ray has filled in its defaults."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

ROOT = Path(__file__).parents[2]
FILES = ("cluster.yaml", "deploy/cluster-onprem.yaml")


def content(name: str) -> dict[str, Any]:
    loaded: dict[str, Any] = yaml.safe_load((ROOT / name).read_text(encoding="utf-8"))
    return loaded


@pytest.mark.parametrize("name", FILES)
def test_ray_accepts_the_file(name: str) -> None:
    import ray.autoscaler
    from ray.autoscaler._private.util import prepare_config, validate_config

    schema = json.loads(Path(ray.autoscaler.__file__).with_name("ray-schema.json").read_text(encoding="utf-8"))
    jsonschema.validate(content(name), schema)
    prepared = prepare_config(content(name))
    validate_config(prepared)
    workers = [t for n, t in prepared["available_node_types"].items() if n != "head"]
    assert sum(t["min_workers"] for t in workers) >= 1


@pytest.mark.parametrize("name", FILES)
def test_the_image_and_the_lock_agree_on_rays_version(name: str) -> None:
    pinned = next(
        line.split("==")[1].split()[0]
        for line in (ROOT / "requirements.lock").read_text(encoding="utf-8").splitlines()
        if line.startswith(("ray==", "ray["))
    )
    assert content(name)["docker"]["image"].startswith(f"rayproject/ray:{pinned}-py311")


@pytest.mark.parametrize("name", FILES)
def test_every_node_starts_ray_with_the_fast_proxy(name: str) -> None:
    file = content(name)
    for role in ("head", "worker"):
        start = file[f"{role}_start_ray_commands"][-1]
        assert "RAY_SERVE_ENABLE_HA_PROXY=1 RAY_SERVE_THROUGHPUT_OPTIMIZED=1 ray start" in start
