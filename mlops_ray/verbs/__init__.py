"""The verbs of the command and of the jobs: one function each, from project files to a JSON-friendly result.

Imports stand inside the functions: a verb that needs no cluster must not pay for Ray, and `--help` for nothing.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlops_ray.config import Project, load_project, parse_portable, portable
from mlops_ray.errors import ConfigError

if TYPE_CHECKING:
    from mlops_ray.state import Store, Tx

Paths = Sequence[str | Path]
Env = Mapping[str, str]
Progress = Callable[[str, int, int], None]


def _silent(stage: str, done: int, total: int) -> None:
    """No progress shown."""


@dataclass(frozen=True)
class Loaded:
    """A project with the text that jobs and replicas are handed."""

    project: Project
    text: str


def load(paths: Paths, env: Env) -> Loaded:
    """The project that the files describe, or, inside a job of ours without files, the one that it was handed."""
    if paths:
        return Loaded(load_project(paths, env=env), portable(paths))
    from mlops_ray.retraining.on_ray import TEXT_VARIABLE

    if TEXT_VARIABLE not in env:
        raise ConfigError("(no file)", ("give a project file: --config configs/flights.yaml",))
    return Loaded(parse_portable(env[TEXT_VARIABLE], env=env), env[TEXT_VARIABLE])


def known_store(project: Project) -> Store:
    """The state database of a project that has one: looking must not make it.

    Raises: DataError when nothing was ever run here; BackendUnavailable."""
    from mlops_ray.errors import DataError

    file = project.storage.state.removeprefix("sqlite:///")
    if file != project.storage.state and not Path(file).exists():
        raise DataError(
            project.project, f"it has no state at {file}; run `mlops-ray run` first, or change the directory"
        )
    return open_store(project)


def make_root(project: Project) -> None:
    """Make the directory `storage.root`, for its user alone: it holds requests, models and the state database."""
    if not project.storage.is_remote:
        Path(project.storage.path()).mkdir(mode=0o700, parents=True, exist_ok=True)


def open_store(project: Project) -> Store:
    """The state database of a project; the directory of an embedded one is made. Raises: BackendUnavailable."""
    from mlops_ray.state import Store

    make_root(project)
    return Store.open(project.storage.state)


def check(paths: Paths, env: Env) -> dict[str, Any]:
    """Read the project file and say what it describes. Raises: ConfigError with every mistake."""
    project = load_project(paths, env=env)
    return {
        "project": project.project,
        "features": list(project.features.inputs),
        "candidates": [c.estimator for c in project.search.candidates],
        "storage": project.storage.path(),
    }


def prepare(
    paths: Paths, env: Env, on_progress: Progress = _silent, *, dry_run: bool = False, page: str | Path | None = None
) -> dict[str, Any]:
    """Read the source, check every row, commit a dataset version; `dry_run` commits nothing. `page`: file for the HTML.

    A dry run also fits the features on the good rows: `inputs` is the number of columns that an estimator would get.
    Raises: DataError, also when the features cannot be fitted; DataRefused (exit code 3) when the data are not as
    expected.
    """
    from mlops_ray.cluster.on_ray import connected
    from mlops_ray.data import lake, on_ray
    from mlops_ray.data.features.transformer import transformer
    from mlops_ray.errors import DataRefused

    project = load(paths, env).project
    if not dry_run:
        make_root(project)
    now = time.time()

    def rows(done: int, total: int) -> None:
        on_progress("rows", done, total)

    with connected(project, start_local=True):
        if dry_run:
            seen = on_ray.examine(project, now=now, on_progress=rows)
            validated, dataset = seen.validated, None
        else:
            try:
                done = on_ray.prepare(project, now=now, on_progress=rows)
            except DataRefused as exc:
                if page is not None:
                    Path(page).write_bytes(lake.read_file_at(exc.page))
                raise
            validated, dataset = done.validated, _dataset(done.dataset)
    if page is not None:
        Path(page).write_text(validated.page, encoding="utf-8")
    refused = list(on_ray.refusals(project, validated))
    result: dict[str, Any] = {"dataset": dataset, "report": validated.to_dict(), "refused": refused}
    if dry_run and not refused:
        result["inputs"] = len(transformer(project.features, seen.statistics).get_feature_names_out())
    return result


def train(
    paths: Paths,
    env: Env,
    on_progress: Progress = _silent,
    *,
    resume: bool = False,
    page: str | Path | None = None,
    junit: str | Path | None = None,
) -> dict[str, Any]:
    """Train on the dataset version that the last `prepare` made or found; register the winner if its gates pass.

    Args: resume: take up the newest search over the same rows and settings that did not end well. page, junit: files
        for the gates' report as HTML and as JUnit XML, written whether they pass or not.
    Raises: DataError without a dataset version; GateRejected (exit code 3) with the gates' reasons and their report;
        ApprovalRefused where people must approve by token and none is shown.
    """
    from mlops_ray.cluster.on_ray import connected
    from mlops_ray.data.lineage import last_prepared
    from mlops_ray.errors import DataError, GateRejected
    from mlops_ray.retraining.deciding import champion_of
    from mlops_ray.training import on_ray

    project = load(paths, env).project
    store = open_store(project)
    tags = _proposed_by(project, store, env)
    dataset = last_prepared(project.storage.path("data", project.project))
    if dataset is None:
        raise DataError(project.project, "there is no dataset version yet; run `mlops-ray prepare` first")
    with store.read() as tx:
        champion = champion_of(tx, project.project)
    with connected(project, start_local=True):
        trained = on_ray.train(
            project,
            dataset,
            store=store,
            champion=champion,
            tags=tags,
            now=time.time(),
            resume=resume,
            on_progress=on_progress,
        )
    for path, text in ((page, trained.pages.html), (junit, trained.pages.junit)):
        if path is not None:
            Path(path).write_text(text, encoding="utf-8")
    result = {
        "version": trained.version.version if trained.version is not None else None,
        "status": trained.version.status if trained.version is not None else "refused",
        "run_id": trained.run_id,
        "dataset": _dataset(dataset),
        "metrics": trained.metrics,
        "seconds": trained.seconds,
        "verdict": trained.verdict.value,
    }
    if trained.version is None:
        report = result | {"gates": trained.result.to_dict()}
        raise GateRejected(f"run {trained.run_id}", trained.result.reasons, report)
    return result


def _proposed_by(project: Project, store: Store, env: Env) -> dict[str, str]:
    """Tags of a version that say who had it trained, and so may not approve it.

    Raises: ApprovalRefused where people must approve by token and none is shown."""
    from mlops_ray.rollout.approval import PROPOSER, PROPOSER_TOKEN
    from mlops_ray.verbs.subjects import os_user, proposer, token_subject

    proposer(project, store, env, trains=True)
    token = token_subject(project, store, env)
    return {PROPOSER: os_user()} | ({PROPOSER_TOKEN: token} if token else {})


def up(paths: Paths, env: Env, on_progress: Progress = _silent) -> dict[str, Any]:
    """Start or join the cluster; serve the champion (or the newest version); keep monitor and controller running."""
    from mlops_ray.cluster import on_ray as cluster

    loaded = load(paths, env)
    project = loaded.project
    _reach(project)
    started = _start(project, on_progress)
    try:
        result = deploy(loaded, on_progress)
    except BaseException:
        if started:
            cluster.stop(project)
        raise
    own = cluster.find(project)
    return {"cluster": cluster.address(project), "dashboard": own.dashboard if own else None, **result}


def _reach(project: Project) -> Store:
    """The state database, after a look at what else must answer before anything is started.

    Raises: BackendUnavailable."""
    store = open_store(project)
    if project.storage.tracking.startswith("http"):
        from mlops_ray.training.on_connection import Connection

        Connection(project)
    return store


def _start(project: Project, on_progress: Progress) -> bool:
    """Start a cluster of our own if the project needs one and has none; whether this call did."""
    from mlops_ray.cluster import on_ray as cluster

    if cluster.joins(project) or cluster.find(project) is not None:
        return False
    on_progress("cluster", 0, 1)
    cluster.start(project)
    on_progress("cluster", 1, 1)
    return True


def deploy(loaded: Loaded, on_progress: Progress = _silent) -> dict[str, Any]:
    """Serve the project on the cluster that is up, and keep its actors running."""
    from mlops_ray.cluster.on_ray import connected, joins, lacking
    from mlops_ray.verbs.deployment import ensure_actors, ensure_served

    project = loaded.project
    store = open_store(project)
    with connected(project) as dashboard:
        lacks = lacking() if joins(project) else ()
        on_progress("serving", 0, 1)
        stable = ensure_served(loaded.text, project, store, dashboard)
        on_progress("serving", 1, 1)
        if stable is not None:
            ensure_actors(loaded.text, project, store, dashboard)
    url = f"http://{project.cluster.host}:{project.cluster.http_port}/{project.project}"
    hint = None
    if stable is None:
        hint = "no version is registered yet; run `mlops-ray run`"
    elif lacks:
        hint = (
            f"v{stable} answers at {url}/predict, at a tenth of the speed: the cluster was started without "
            f"{' and '.join(f'{name}=1' for name in lacks)} in its environment"
        )
    return {"project": project.project, "stable": stable, "url": url, "hint": hint}


def serve(paths: Paths, env: Env) -> dict[str, Any]:
    """Make Ray Serve agree with the serving configuration of the state database."""
    from mlops_ray.cluster.on_ray import connected
    from mlops_ray.verbs.deployment import ensure_served

    loaded = load(paths, env)
    store = open_store(loaded.project)
    with connected(loaded.project) as dashboard:
        return {"stable": ensure_served(loaded.text, loaded.project, store, dashboard)}


def monitor(paths: Paths, env: Env) -> dict[str, Any]:
    """Make sure that collector, monitor and rollout controller run."""
    from mlops_ray.cluster.on_ray import connected
    from mlops_ray.verbs.deployment import ensure_actors

    loaded = load(paths, env)
    store = open_store(loaded.project)
    with connected(loaded.project) as dashboard:
        return {"actors": ensure_actors(loaded.text, loaded.project, store, dashboard)}


def down(paths: Paths, env: Env) -> dict[str, Any]:
    """Take the project down: its own cluster ends whole; on a joined one, its applications and actors end."""
    from mlops_ray.cluster import on_ray as cluster
    from mlops_ray.verbs.deployment import withdraw

    project = load(paths, env).project
    if not cluster.joins(project):
        return {"ended_processes": cluster.stop(project)}
    with cluster.connected(project) as dashboard:
        withdraw(project, open_store(project), dashboard)
    return {"ended_processes": 0}


def run(paths: Paths, env: Env, on_progress: Progress = _silent) -> dict[str, Any]:
    """Prepare, train and deploy: a first version serves at once, a later one goes through a rollout.

    Raises: GateRejected, DataError, BackendUnavailable; IllegalMove when a rollout is open that may not be superseded;
        ApprovalRefused as of `train`.
    """
    from mlops_ray.cluster import on_ray as cluster
    from mlops_ray.rollout import orders
    from mlops_ray.verbs.subjects import proposer

    loaded = load(paths, env)
    project, supersede = loaded.project, loaded.project.rollout.supersede
    store = _reach(project)
    who = proposer(project, store, env, trains=True)
    with store.read() as tx:
        orders.demand_room(tx.open_rollout(project.project), supersede=supersede)
    started = _start(loaded.project, on_progress)
    try:
        prepared = prepare(paths, env, on_progress)
        trained = train(paths, env, on_progress)
        deployed = deploy(loaded, on_progress)
    except BaseException:
        if started:
            cluster.stop(loaded.project)
        raise
    rollout = None
    if deployed["stable"] != trained["version"]:
        version, why = trained["version"], "deployed by `run`"

        def begin(tx: Tx) -> str:
            machine_now = time.time()
            now = orders.decision_time(tx, project, machine_now)
            return orders.begin(
                tx, project, version, supersede=supersede, who=who, why=why, now=now, machine_now=machine_now
            )

        rollout = store.run(begin)
    return {"prepare": prepared, "train": trained, "deploy": deployed, "rollout": rollout}


def retrain(
    paths: Paths, env: Env, decision: str | None = None, reason: str = "manual", *, if_changed: bool = False
) -> dict[str, Any]:
    """Carry out a retraining decision, or record a manual one and carry that out.

    Args: if_changed: only where code or project file would make another model than the newest version's; else the
        result's `status` is "unchanged".
    Raises: GateRejected when the candidate was refused; DataError, also for a decision that is unknown or has ended;
        ApprovalRefused for an order where people must approve by token and none is shown.
    """
    from mlops_ray.cluster.on_ray import connected
    from mlops_ray.errors import DataError, GateRejected
    from mlops_ray.retraining import on_ray as retraining
    from mlops_ray.retraining.deciding import CODE, MANUAL
    from mlops_ray.state import RetrainRow
    from mlops_ray.texts import reason as checked
    from mlops_ray.verbs.subjects import proposer

    reason = checked(reason)
    project = load(paths, env).project
    store = open_store(project)
    # A decision that stands is carried out for whoever made it: by a job of ours, which has nobody's token.
    who = "" if decision is not None else proposer(project, store, env, trains=True)
    row = None
    if decision is not None:
        with store.read() as tx:
            row = tx.retrain(decision)
        if row is None or row.status not in RetrainRow.OPEN:
            what = "is unknown" if row is None else f"has ended as {row.status}"
            raise DataError(f"decision {decision}", f"it {what}; `mlops-ray status` lists decisions")
    trigger, made_of = MANUAL, None
    if if_changed:
        made_of, changed = retraining.changes(project, store)
        if not changed:
            return {"status": "unchanged"}
        trigger, reason = CODE, f"changed: {'; '.join(changed)}"
    with connected(project, start_local=True):
        # Recorded only now: an order that finds no cluster would stay open, and hold back those to come.
        row = row or retraining.order(store, project, reason, who=who, trigger=trigger, made_of=made_of)
        result = retraining.retrain(project, store, row)
    if result["status"] == "rejected":
        raise GateRejected(f"run {result['run_id']}", tuple(result["reasons"]))
    return result


def status(paths: Paths, env: Env) -> dict[str, Any]:
    """Where the project stands, from the state database alone: no cluster is asked."""
    from mlops_ray import ledger

    project = load(paths, env).project
    name = project.project
    with known_store(project).read() as tx:
        serving, rollout, retrain_row = tx.serving(name), tx.open_rollout(name), tx.open_retrain(name)
        return {
            "project": name,
            "served": serving is not None,
            "stable": serving.spec["stable"]["version"] if serving else None,
            "canary": serving.spec["canary"] if serving else None,
            "arms": [arm["version"] for arm in serving.spec.get("arms", ())] if serving else [],
            "share": serving.spec["share"] if serving else 0.0,
            "watermark": tx.cursor(name, "watermark").at or None,
            "rollout": vars(rollout) if rollout else None,
            "retrain": vars(retrain_row) if retrain_row else None,
            "versions": [{"version": v.version, "created": v.created, "tags": v.tags} for v in tx.versions(name)],
            "windows": [vars(w) for w in tx.windows(name, 8)],
            "ledger": [
                {"at": e.at, "kind": e.kind, "subject": e.subject, "who": e.who, "why": e.why}
                for e in ledger.entries(tx, name)[-20:]
            ],
        }


def _dataset(found: Any) -> dict[str, Any]:
    return {"version": found.version, "content_hash": found.content_hash, "rows": found.n_rows}
