"""Run a verb of the command as a Ray Job on a cluster, and follow its log."""

from __future__ import annotations

import asyncio
import shlex
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from ray.job_submission import JobStatus, JobSubmissionClient

from mlops_ray.errors import BackendUnavailable, ConfigError

VERBS = ("prepare", "train", "run", "retrain", "up")
# What makes an upload slow and no job needs.
_EXCLUDES = (".git", ".venv", ".mlops_ray", "__pycache__", ".mypy_cache", ".ruff_cache", ".pytest_cache")
# How long a cluster that has just started may take until it accepts jobs: machine time.
_AGENT_S = 60.0


def submit_verb(
    verb: str, arguments: Sequence[str], address: str | None, working_dir: Path, show: Callable[[str], None]
) -> int:
    """Submit `mlops-ray VERB ARGUMENTS`, show its log as it comes, and return its exit code (1 when unknown).

    Raises: ConfigError for a verb that is no job or without an address; BackendUnavailable.
    """
    if verb not in VERBS:
        raise ConfigError("submit", (f"verb: {verb!r} cannot be submitted; one of {', '.join(VERBS)}",))
    if not address:
        raise ConfigError("submit", ("address: is missing; give --address http://HEAD:8265",))
    try:
        client = JobSubmissionClient(address)
        job = _submit(client, shlex.join(["python", "-m", "mlops_ray", verb, *arguments]), working_dir)
        asyncio.run(_follow(client, job, show))
        details = client.get_job_info(job)
    except (ConnectionError, RuntimeError) as exc:
        raise BackendUnavailable(f"Ray dashboard {address}", str(exc).strip().splitlines()[0]) from exc
    if details.status == JobStatus.SUCCEEDED:
        return 0
    return details.driver_exit_code or 1


def _submit(client: JobSubmissionClient, entrypoint: str, working_dir: Path) -> str:
    """The job's id. "No available agent" means that the node's agent is still starting: Ray asks to try again."""
    environment = {"working_dir": str(working_dir), "excludes": list(_EXCLUDES)}
    deadline = time.monotonic() + _AGENT_S
    while True:
        try:
            return str(client.submit_job(entrypoint=entrypoint, runtime_env=dict(environment)))
        except RuntimeError as exc:
            if "No available agent" not in str(exc) or time.monotonic() > deadline:
                raise
            time.sleep(1.0)  # there is no event to wait for


async def _follow(client: JobSubmissionClient, job: str, show: Callable[[str], None]) -> None:
    async for text in client.tail_job_logs(job):
        show(text.rstrip("\n"))
