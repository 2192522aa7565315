"""Where the loop stands: ingest → train → gates → rollout → serve → monitor → retrain, each with a sentence. Pure."""

from __future__ import annotations

from mlops_ray.dashboard import trials, windows
from mlops_ray.dashboard.gathered import Gathered
from mlops_ray.dashboard.parts import Loop, Stage, State
from mlops_ray.dashboard.wording import moment, percent
from mlops_ray.serving.versions import Wanted
from mlops_ray.state import RetrainRow, VersionRow

TITLES = {
    "ingest": "Ingest",
    "train": "Train",
    "gates": "Gates",
    "rollout": "Rollout",
    "serve": "Serve",
    "monitor": "Monitor",
    "retrain": "Retrain",
}


def loop(of: Gathered) -> Loop:
    """The station that something is happening at, and what each of them says."""
    at, says = _standing(of)
    told = {
        "ingest": _ingest(of),
        "train": _train(of),
        "gates": _gates(of),
        "rollout": _rollout(of),
        "serve": _serve(of),
        "monitor": _monitor(of),
        "retrain": _retrain(of),
    }
    stages = tuple(Stage(name, TITLES[name], "now" if name == at else told[name][0], told[name][1]) for name in TITLES)
    return Loop(at, says, stages)


def _standing(of: Gathered) -> tuple[str, str]:
    """Station and sentence, by what is under way: a retrain, an approval, a rollout; else the traffic is watched."""
    if (retrain := of.open_retrain) is not None:
        if retrain.status == "decided":
            return "retrain", f"A retrain is decided, because of {_because(retrain)}; its job is about to start."
        return "train", f"A candidate is being trained and judged, because of {_because(retrain)}."
    if (row := of.open_rollout) is not None:
        return "rollout", _capital(trials.rollout(of, row).says)
    pending = [v for v in of.versions if v.status == VersionRow.PENDING]
    if pending:
        return "gates", f"v{pending[0].version} passed its gates and waits for `mlops-ray approve`."
    if of.stable is None:
        if of.versions:
            return "serve", f"v{of.versions[0].version} is registered; `mlops-ray up` serves it."
        return "ingest", "There is no version yet: `mlops-ray run` reads the source, trains, judges and serves."
    if of.now is None:
        return "serve", f"v{of.stable} answers all requests; none has come yet."
    at = windows.next_close(of)
    alarms = windows.alerts(of)
    if alarms:
        named = " and ".join(alarm.trigger for alarm in alarms)
        return "monitor", f"v{of.stable} answers all requests; {named} {'alarms' if len(alarms) == 1 else 'alarm'}."
    close = "" if at is None else f"; the next window closes at {moment(at)}"
    return "monitor", f"v{of.stable} answers all requests and nothing alarms{close}."


def _because(row: RetrainRow) -> str:
    return {"drift": "drift", "manual": "an order"}.get(row.trigger, row.trigger.replace("_", " "))


def _ingest(of: Gathered) -> tuple[State, str]:
    if not of.versions:
        return "waiting", "No dataset version is on record."
    newest = of.versions[0]
    name, _, number = newest.dataset.rpartition("@")
    return "done", f"Dataset version {number} of {name.rstrip('/').rpartition('/')[2] or name} made v{newest.version}."


def _train(of: Gathered) -> tuple[State, str]:
    if of.open_retrain is not None and of.open_retrain.status == "submitted":
        return "now", "A job searches, fits and packages a candidate."
    ended = [r for r in of.retrains if r.status == "failed"]
    newest = of.versions[0] if of.versions else None
    if ended and (newest is None or ended[0].decided > newest.created) and ended[0] is of.retrains[0]:
        return "trouble", f"The last job failed: {ended[0].outcome.get('error', 'no reason was kept')}"
    if newest is None:
        return "waiting", "Nothing was trained yet."
    return "done", f"v{newest.version} was the last, at {moment(newest.created)}."


def _gates(of: Gathered) -> tuple[State, str]:
    judged = [r for r in of.retrains if r.status in ("succeeded", "rejected")]
    if not judged:
        if of.versions:
            return "done", f"v{of.versions[-1].version} passed as the first version."
        return "waiting", "No candidate was judged yet."
    last = judged[0]
    if last.status == "rejected":
        what = "A candidate that was planted" if last.outcome.get("planted") else "The last candidate"
        return "done", f"{what} was refused, at {moment(last.decided)}."
    return "done", f"v{last.outcome.get('version')} passed, at {moment(last.decided)}."


def _rollout(of: Gathered) -> tuple[State, str]:
    if not of.rollouts:
        return "waiting", "No version had to replace another yet."
    found = trials.rollout(of, of.rollouts[0])
    if found.open:
        steps = f", step {found.step + 1} of {len(found.shares)}" if found.phase in ("ramping", "paused") else ""
        return "now", f"v{found.version} is on trial against v{found.against}{steps}, since {moment(found.began)}."
    return "done", f"{_capital(found.says)}."


def _serve(of: Gathered) -> tuple[State, str]:
    if of.serving is None or of.stable is None:
        return "waiting", "Nothing serves yet."
    wanted = Wanted.of(of.serving)
    rows = sum(of.rows.values())
    total = f"; {rows:,} rows so far" if rows else "; no row yet"
    if wanted.arms:
        beside = ", ".join(f"v{arm.version}" for arm in wanted.arms)
        return "done", f"v{of.stable} answers, beside it {beside} with {percent(wanted.share)} together{total}."
    if wanted.canary is not None and wanted.share:
        doing = "sees copies of" if wanted.shadow else "has"
        return "done", f"v{of.stable} answers; v{wanted.canary} {doing} {percent(wanted.share)} of the keys{total}."
    return "done", f"v{of.stable} answers all requests{total}."


def _monitor(of: Gathered) -> tuple[State, str]:
    ends = [row.end for row in of.windows if row.result.get("drift")]
    if not ends:
        return "waiting", windows.nothing_yet(of)
    alarms = windows.alerts(of)
    if alarms:
        return "trouble", f"{_capital(alarms[0].trigger)} alarms since {moment(alarms[0].since)}."
    uncalibrated = next((r for r in reversed(of.windows) if r.result.get("drift")), None)
    why = str(uncalibrated.result["drift"].get("why", "")) if uncalibrated else ""
    if why.startswith("uncalibrated"):
        return "done", f"The last window closed at {moment(ends[-1])}, {why}."
    return "done", f"Nothing alarms; the last window closed at {moment(ends[-1])}."


def _retrain(of: Gathered) -> tuple[State, str]:
    if of.open_retrain is not None:
        row = of.open_retrain
        return "done", f"Decided because of {_because(row)}, at {moment(row.decided)}: {_first(row.reason)}"
    said = [
        (entry.get("at", 0.0), str(entry["decision"]))
        for row in of.windows
        for entry in row.result.values()
        if isinstance(entry, dict) and entry.get("decision")
    ]
    last = max(said, default=None)
    if last is not None and last[1].startswith("held back"):
        return "waiting", _capital(f"{last[1]}.")
    if of.retrains:
        last_one = of.retrains[0]
        return "done", f"The last was decided because of {_because(last_one)}, at {moment(last_one.decided)}."
    triggers = ", ".join(of.project.retraining.triggers).replace("_", " ")
    return "waiting", f"Nothing asked for one yet; it would be: {triggers}."


def _first(reason: str) -> str:
    """The first of what a reason lists; the part about retrains has all.

    >>> _first("x: PSI 0.4; n: PSI 0.2"), _first("manual")
    ('x: PSI 0.4, and more', 'manual')
    """
    first, more, _ = reason.partition("; ")
    return f"{first}, and more" if more else first


def _capital(text: str) -> str:
    """With a capital, unless it begins with a version."""
    return text if text[:1] == "v" and text[1:2].isdigit() else text[:1].upper() + text[1:]
