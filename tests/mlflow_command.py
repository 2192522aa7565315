"""MLflow's command in a process of its own, which finds our target of `mlflow deployments` by an entry point."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

_ROOT = Path(__file__).parents[1]


def mlflow(*words: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """Run `mlflow WORDS` in `folder`, where an installed package's entry points are put for it to find.

    This checkout's entry point may be older in the environment that runs the tests, so it is written anew.
    """
    about = folder / "site" / "target-0.dist-info"
    about.mkdir(parents=True, exist_ok=True)
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: target\nVersion: 0\n", encoding="utf-8")
    entry = "[mlflow.deployments]\nmlops-ray = mlops_ray.verbs.on_deployments\n"
    (about / "entry_points.txt").write_text(entry, encoding="utf-8")
    env = {**os.environ, "PYTHONPATH": os.pathsep.join((str(about.parent), str(_ROOT)))}
    command = [sys.executable, "-m", "mlflow", *words]
    return subprocess.run(command, capture_output=True, text=True, env=env, cwd=folder, timeout=240, check=False)
