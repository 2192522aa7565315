"""The prediction log: looking into it, taking it elsewhere, and taking somebody out of it."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlops_ray.verbs import Env, Paths, Progress, _silent, known_store, load
from mlops_ray.verbs.subjects import orderer

if TYPE_CHECKING:
    from mlops_ray.config import Project
    from mlops_ray.serving.log.erasure import Outcome
    from mlops_ray.serving.log.history import Question
    from mlops_ray.state import Store, Tx


def query(paths: Paths, env: Env, question: Question, *, labels: bool = False) -> dict[str, Any]:
    """The newest predictions that are asked for; with `labels`, every label and business number that came for each,
    oldest first.

    Raises: DataError."""
    from mlops_ray.monitoring.labels import addressed
    from mlops_ray.serving.log.history import History

    project = load(paths, env).project
    history = History(project, addressed)
    found = history.newest(_as_stored(project, lambda: known_store(project), question))
    rows = found.to_pylist()
    if labels:
        for what, told, names in (
            ("labels", history.labels(found), ("label", "time")),
            ("values", history.values(found), ("name", "value", "time")),
        ):
            came: dict[str, list[dict[str, Any]]] = {}
            for one in told.to_pylist():
                came.setdefault(one["prediction_id"], []).append({name: one[name] for name in names})
            rows = [row | {what: came.get(row["prediction_id"], [])} for row in rows]
    return {"project": project.project, "predictions": rows}


def export(
    paths: Paths, env: Env, question: Question, output: Path, columns: Sequence[str], on_progress: Progress = _silent
) -> dict[str, Any]:
    """The log's predictions with their labels as a file, or as a folder with one for each day. Raises: DataError."""
    from mlops_ray.monitoring.labels import addressed
    from mlops_ray.serving.log import history

    project = load(paths, env).project
    done = history.export(
        history.History(project, addressed),
        _as_stored(project, lambda: known_store(project), question),
        output,
        columns,
        on_progress=on_progress,
    )
    return {"project": project.project, "output": str(output), **done}


def forget(
    paths: Paths, env: Env, keys: Sequence[str], why: str, on_progress: Progress = _silent, *, dry_run: bool = False
) -> dict[str, Any]:
    """Takes keys out of everything that holds them, proves it, and says so in the ledger.

    Args: dry_run: only count what would go. Given again after it was killed, it goes on.
    Raises: DataError; ConfigError for a reason that names a key, since nothing can be taken out of the ledger.
    """
    from mlops_ray.errors import ConfigError
    from mlops_ray.serving.log import erasure
    from mlops_ray.serving.log import forget as orders
    from mlops_ray.serving.spool import claims

    project = load(paths, env).project
    store = known_store(project)
    secret = store.run(lambda tx: claims.secret(tx, project.project))
    needles = _needles(project, secret, keys)
    if needles.in_text(why):
        raise ConfigError("--why", ("it names a key, and the ledger keeps every word; give another reason",))
    if dry_run:
        return {"project": project.project, "keys": len(keys), "rows": erasure.count(project, needles)}
    now = time.time()
    order = orders.opened(project, secret, needles.values, who=orderer(project, store, env), why=why, now=now)
    spools: list[str] = []
    flush = _flusher(project, spools)
    outcome = erasure.run(project, order, needles, secret, flush=flush, now=now, on_progress=on_progress)
    if outcome.proven:
        _seal(store, project, outcome)
        orders.save(project, erasure.finished(outcome.order, now=time.time()))
    return {
        "project": project.project,
        "order": order.id,
        **erasure.evidence(outcome),
        "keys": len(keys),
        "left": [_shown(f) for f in outcome.found if f.theirs],
        "mentions": [_shown(f) for f in outcome.found if not f.theirs],
        "spools": spools,
        "unreached": list(erasure.unreached(project)),
    }


def _needles(project: Project, secret: bytes, keys: Sequence[str]) -> Any:
    """The keys, and what capture keeps of them where it hashes them: both may stand in dataset versions."""
    from mlops_ray.data.traces import Needles
    from mlops_ray.serving.spool.capture import key_keeper

    keep = key_keeper(project, secret)
    stored = [kept for key in keys if (kept := keep(key))] if keep is not None else []
    return Needles(tuple(dict.fromkeys([*keys, *stored])))


def _as_stored(project: Project, store: Callable[[], Store], question: Question) -> Question:
    """The question with its keys as capture keeps them. Raises: DataError where it keeps none."""
    from mlops_ray.errors import DataError
    from mlops_ray.serving.spool import claims
    from mlops_ray.serving.spool.capture import key_keeper

    if not question.keys:
        return question
    if project.key in project.capture.drop:
        raise DataError("--key", "the log keeps no keys (capture.drop); ask by --id")
    hashes = project.key in project.capture.hash
    secret = store().run(lambda tx: claims.secret(tx, project.project)) if hashes else None
    keep = key_keeper(project, secret)
    return question if keep is None else replace(question, keys=tuple(map(keep, question.keys)))


def _seal(store: Store, project: Project, outcome: Outcome) -> None:
    """The ledger says that it was done; once, however often a course ended just before it could."""
    from mlops_ray import ledger
    from mlops_ray.serving.log import erasure

    order = outcome.order

    def seal(tx: Tx) -> None:
        if any(e.kind == "forgotten" and e.subject == order.id for e in ledger.entries(tx, project.project)):
            return
        evidence = erasure.evidence(outcome)
        ledger.append(tx, project.project, "forgotten", order.id, order.who, order.why, evidence, time.time())

    store.run(seal)


def _flusher(project: Project, said: list[str]) -> Callable[[], None]:
    """What makes collectors bring their spools into the log; notes in `said` what was reached."""

    def flush() -> None:
        from mlops_ray.cluster.on_ray import connected
        from mlops_ray.errors import BackendUnavailable
        from mlops_ray.serving.log import on_collectors

        try:
            with connected(project):
                on_collectors.flush(project.project)
                n_nodes = len(on_collectors.collectors(project.project))
            said[:] = [f"spools: what {n_nodes} nodes had is in the log, but for what is forgotten"]
        except BackendUnavailable as exc:
            said[:] = [f"spools: not asked ({exc}); what they hold is sieved by the next collectors"]

    return flush


def _shown(found: Any) -> dict[str, Any]:
    return {"table": found.table, "file": found.trace.file, "what": found.trace.what, "n": found.trace.n}
