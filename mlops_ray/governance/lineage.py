"""Where a version comes from and what became of it: data, code, environment, run, gates, approvals, rollouts.

Only what is on record. What is not is None in the JSON, and said to be "not recorded", with the reason, in the tree.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from mlops_ray.data.lake import DatasetVersion
from mlops_ray.governance.approvals import KIND as APPROVED
from mlops_ray.governance.facts import Facts
from mlops_ray.ledger import Entry

_CODE = ("mlflow.source.git.commit", "git.dirty", "git.diff_sha256")


@dataclass(frozen=True)
class Node:
    """One line of the tree, and what stands below it."""

    text: str
    children: tuple[Node, ...] = ()

    def lines(self, indent: str = "") -> list[str]:
        """The tree as plain text."""
        return [indent + self.text, *(line for child in self.children for line in child.lines(indent + "  "))]


@dataclass(frozen=True)
class Lineage:
    """A version's lineage. Each part is a JSON-friendly mapping, or None where nothing is on record."""

    version: Mapping[str, Any]
    data: Mapping[str, Any] | None
    code: Mapping[str, Any] | None
    environment: Mapping[str, Any] | None
    run: Mapping[str, Any] | None
    gates: Mapping[str, Any] | None
    approvals: Mapping[str, Any]
    rollouts: tuple[Mapping[str, Any], ...]
    moves: tuple[Mapping[str, Any], ...]
    """What the ledger says of the version outside of rollouts and approvals: that it was the first, for one."""
    decision: Mapping[str, Any] | None
    missing: Mapping[str, str]
    """Why something is None."""

    def to_dict(self) -> dict[str, Any]:
        """The lineage as JSON."""
        return {**vars(self), "rollouts": list(self.rollouts), "moves": list(self.moves), "missing": dict(self.missing)}

    def tree(self) -> Node:
        """The lineage for people."""
        of = self.version
        head = f"{of['project']} v{of['version']}, {of['status']} {of['created']}"
        serves = f"has the traffic of {of['serves']}" if of["serves"] else "has no traffic"
        parts = (
            Node("version", (Node(serves), Node(f"artifact {of['artifact']}"), Node(f"SHA-256 {of['sha256']}"))),
            self._decision(),
            self._part("data", self.data, _data_nodes, "dataset"),
            self._part("code", self.code, _code_nodes, "code"),
            self._part("environment", self.environment, _environment_nodes, "environment/lock.json"),
            self._part("run", self.run, _run_nodes, "run"),
            self._part("gates", self.gates, _gate_nodes, "gates/gates.json"),
            Node("approvals", tuple(_approval_nodes(self.approvals))),
            Node("rollouts", (*map(_rollout_node, self.rollouts), *map(_line, self.moves)) or (Node("none"),)),
        )
        return Node(head, parts)

    def _decision(self) -> Node:
        if self.decision is None:
            return Node(
                "cause", (Node(self.missing.get("decision", "trained by hand: no retrain decision led to it")),)
            )
        of = self.decision
        return Node("cause", (Node(f"retrain {of['id']} ({of['trigger']}), {of['decided']}: {of['reason']}"),))

    def _part(self, name: str, found: Mapping[str, Any] | None, nodes: Any, key: str) -> Node:
        if found is not None:
            return Node(name, tuple(nodes(found)))
        why = self.missing.get(key) or self.missing.get("run")
        return Node(name, (Node(f"not recorded{f': {why}' if why else ''}"),))


def lineage(facts: Facts) -> Lineage:
    """The lineage that the facts make."""
    row, run = facts.version, facts.run
    missing = dict(facts.missing)
    decision = facts.retrain
    if run is not None and (said := run.tags.get("git.dirty", "")).startswith("unknown"):
        missing["code"] = said.partition(": ")[2]
    if decision is None and row.tags.get("decision"):
        missing["decision"] = f"the state database has no decision {row.tags['decision']}"
    return Lineage(
        version={
            "project": row.project,
            "version": row.version,
            "status": row.status,
            "created": _day(row.created),
            "serves": facts.serves,
            "artifact": row.artifact,
            "sha256": row.sha256,
            "tags": dict(row.tags),
        },
        data=_data(facts),
        code=_code(run.tags) if run is not None else None,
        environment=dict(run.environment) if run is not None and run.environment is not None else None,
        run=_run(facts),
        gates=_gates(facts),
        approvals=_approvals(facts),
        rollouts=tuple(_rollouts(facts)),
        moves=tuple(
            _said(entry)
            for entry in facts.entries
            if entry.subject == f"v{row.version}" and entry.kind != APPROVED and "rollout" not in entry.evidence
        ),
        decision=None
        if decision is None
        else {
            "id": decision.id,
            "trigger": decision.trigger,
            "reason": decision.reason,
            "decided": _day(decision.decided),
            "status": decision.status,
        },
        missing=missing,
    )


def _data(facts: Facts) -> dict[str, Any] | None:
    if facts.dataset is None:
        return None
    recorded = {"dataset": facts.version.dataset, **_dataset(facts.dataset)}
    return recorded | {"parents": [_dataset(parent) for parent in facts.parents]}


def _dataset(found: DatasetVersion) -> dict[str, Any]:
    known = ("made_by", "source", "uris", "config_sha256", "code", "function_sha256")
    return {
        "version": found.version,
        "content_hash": found.content_hash,
        "rows": found.n_rows,
        "committed": _day(found.committed),
        **{name: found.lineage.get(name) for name in known},
    }


def _code(tags: Mapping[str, str]) -> dict[str, Any] | None:
    commit, dirty, diff = (tags.get(name) for name in _CODE)
    if commit is None:
        return None
    return {"commit": commit, "dirty": {"true": True, "false": False}.get(dirty or ""), "diff_sha256": diff}


def _run(facts: Facts) -> dict[str, Any] | None:
    run = facts.run
    if run is None:
        return None
    seconds = {n.removeprefix("seconds."): v for n, v in run.metrics.items() if n.startswith("seconds.")}
    return {
        "id": run.id,
        "status": run.status,
        "started": _day(run.started),
        "ended": _day(run.ended),
        "user": run.tags.get("mlflow.user"),
        "seed": run.params.get("seed"),
        "config_sha256": run.tags.get("config.sha256"),
        "params": dict(run.params),
        "metrics": {n: v for n, v in run.metrics.items() if not n.startswith("seconds.")},
        "trials": dict(run.trials),
        "seconds": seconds,
        "warnings": {n.removeprefix("warning."): v for n, v in run.tags.items() if n.startswith("warning.")},
    }


def _gates(facts: Facts) -> dict[str, Any] | None:
    """From the run; else as the ledger has sealed them."""
    found, source = (facts.run.gates if facts.run is not None else None), "run"
    if found is None:
        sealed = (entry.evidence.get("gates") for entry in facts.entries)
        found, source = next((body for body in sealed if isinstance(body, Mapping)), None), "ledger"
    if found is None:
        return None
    keys = ("name", "verdict", "detail")
    checks = [{key: check.get(key) for key in keys} for check in checks_of(found)]
    return {"verdict": found.get("verdict"), "source": source, "checks": checks}


def checks_of(gates: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The checks of a `gates.json`, whoever wrote it."""
    found = gates.get("checks")
    return [check for check in found if isinstance(check, Mapping)] if isinstance(found, list | tuple) else []


def _approvals(facts: Facts) -> dict[str, Any]:
    config = facts.run.config if facts.run is not None else None
    asked = (config.get("gates") or {}).get("approval") if config is not None else None
    asked = None if asked is None else bool(asked)  # a block says how many
    given = [_said(entry) for entry in facts.entries if entry.kind == APPROVED]
    return {"required": True if not facts.version.may_serve or given else asked, "given": given}


def _rollouts(facts: Facts) -> Iterable[dict[str, Any]]:
    for row in facts.rollouts:
        moves = [_said(e) for e in facts.entries if e.evidence.get("rollout") == row.id]
        yield {
            "id": row.id,
            "against": row.stable,
            "started": _day(row.created),
            "ended": _day(row.ended),
            "phase": row.state.get("phase"),
            "reason": row.state.get("reason") or None,
            "shares": row.plan.get("shares"),
            "moves": moves,
        }


def _said(entry: Entry) -> dict[str, Any]:
    return {"at": _day(entry.at), "what": entry.kind, "who": entry.who, "why": entry.why, "ledger": entry.seq}


def _day(seconds: float | None) -> str | None:
    """ISO 8601 in UTC, to the second."""
    return None if seconds is None else datetime.fromtimestamp(seconds, UTC).isoformat(timespec="seconds")


# for people


def _data_nodes(of: Mapping[str, Any]) -> Iterable[Node]:
    yield Node(f"{of['dataset']}, {of['rows']:,} rows, committed {of['committed']}", tuple(_origin(of)))
    for parent in of["parents"]:
        text = f"holds rows of version {parent['version']}, {parent['rows']:,} rows, committed {parent['committed']}"
        yield Node(text, tuple(_origin(parent)))


def _origin(of: Mapping[str, Any]) -> Iterable[Node]:
    yield Node(f"content {of['content_hash']}")
    made_by = of["made_by"] or {}
    yield Node(" ".join(["made by", made_by.get("verb") or "not recorded", made_by.get("decision") or ""]).strip())
    uris = of["uris"] or []
    more = f" and {len(uris) - 3} more" if len(uris) > 3 else ""
    yield Node(f"read {', '.join(map(str, uris[:3]))}{more}" if uris else "read: not recorded")
    code = of["code"]
    yield Node(f"code {code['commit']}{' with changes' if code['dirty'] else ''}" if code else "code: not recorded")


def _code_nodes(of: Mapping[str, Any]) -> Iterable[Node]:
    yield Node(f"commit {of['commit']}")
    if of["dirty"]:
        yield Node(f"with changes that are not committed; SHA-256 of the diff {of['diff_sha256'] or 'not recorded'}")
    else:
        yield Node("no changes beside it" if of["dirty"] is False else "whether it was changed: not recorded")


def _environment_nodes(of: Mapping[str, Any]) -> Iterable[Node]:
    installed = of.get("distributions") or {}
    yield Node(f"{of.get('implementation', 'Python')} {of.get('python', 'not recorded')}, {of.get('platform')}")
    shown = ("scikit-learn", "numpy", "xgboost", "xgboost-cpu", "lightgbm", "onnxruntime", "ray", "mlflow", "mlops-ray")
    main = ", ".join(f"{name} {installed[name]}" for name in shown if name in installed)
    yield Node(f"{len(installed)} packages: {main}")


def _run_nodes(of: Mapping[str, Any]) -> Iterable[Node]:
    yield Node(
        f"{of['id']}, {of['status']}, {of['started']} to {of['ended'] or 'now'}, by {of['user'] or 'not recorded'}"
    )
    yield Node(f"seed {of['seed'] or 'not recorded'}, configuration {of['config_sha256'] or 'not recorded'}")
    trials = ", ".join(f"{n} {how}" for how, n in sorted(of["trials"].items()))
    yield Node(f"search: {sum(of['trials'].values())} trials ({trials})" if trials else "search: not recorded")
    winner = {name: value for name, value in of["params"].items() if name not in ("seed", "split")}
    yield Node("winner: " + (", ".join(f"{n} {v}" for n, v in winner.items()) or "not recorded"))
    if of["seconds"]:
        yield Node("seconds: " + ", ".join(f"{name} {value:.1f}" for name, value in of["seconds"].items()))
    for name, text in of["warnings"].items():
        yield Node(f"warning of {name}: {text}")


def _gate_nodes(of: Mapping[str, Any]) -> Iterable[Node]:
    yield Node(f"{of['verdict']}{', as the ledger has it' if of['source'] == 'ledger' else ''}")
    for check in of["checks"]:
        yield Node(f"{check['verdict']}: {check['name']}, {check['detail']}")


def _approval_nodes(of: Mapping[str, Any]) -> Iterable[Node]:
    if not of["given"]:
        none = {True: "pending: none is given yet", False: "none is asked for", None: "not recorded"}
        yield Node(none[of["required"]])
    for entry in of["given"]:
        yield _line(entry)


def _rollout_node(of: Mapping[str, Any]) -> Node:
    reason = f" ({of['reason']})" if of["reason"] else ""
    text = f"{of['id']} against v{of['against']}, {of['phase']}{reason}, {of['started']} to {of['ended'] or 'now'}"
    return Node(text, tuple(map(_line, of["moves"])))


def _line(entry: Mapping[str, Any]) -> Node:
    return Node(f"{entry['at']} {entry['what']} by {entry['who']}: {entry['why']} (ledger {entry['ledger']})")
