"""`dashboard`: where it is, what it says in a sentence, and all of it as a file."""

from __future__ import annotations

import re
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from mlops_ray.verbs import Env, Paths, known_store, load


def dashboard(paths: Paths, env: Env, *, output: str | Path | None = None) -> dict[str, Any]:
    """`url` of the page; `stage` and `says`: where the loop stands, from the state database alone; `output`: the file.

    Args: output: file for a snapshot, one HTML page with all the data inside, which needs no server. It is written
        whole or not at all.
    Raises: DataError where nothing was ever run; BackendUnavailable.
    """
    from mlops_ray.dashboard.document import document, to_json
    from mlops_ray.dashboard.gathered import gather
    from mlops_ray.dashboard.page import snapshot
    from mlops_ray.serving.web.foreign import installed

    project, now = load(paths, env).project, time.time()
    found = document(gather(known_store(project), project, machine_now=now), release=installed("mlops-ray"))
    if output is not None:
        text = snapshot(project.project, to_json(found), taken=now)
        part = Path(f"{output}.part")
        part.write_text(text, encoding="utf-8")
        part.replace(output)
    return {
        "project": project.project,
        "url": f"http://{project.cluster.host}:{project.cluster.http_port}/{project.project}/dashboard",
        "needs_token": project.serving.auth == "token",
        "stage": found.loop.stage,
        "says": _plain(found.loop.says),
        "output": None if output is None else str(output),
    }


def _plain(says: str) -> str:
    """A sentence of the dashboard with its times in UTC."""
    return re.sub(r"\{@(-?\d+)\}", lambda m: f"{datetime.fromtimestamp(int(m[1]), UTC):%Y-%m-%d %H:%M} UTC", says)
