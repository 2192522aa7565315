from __future__ import annotations

import json
from dataclasses import replace

from mlops_ray.governance.facts import Facts
from mlops_ray.governance.lineage import lineage
from tests.unit.governance.conftest import entry


def test_everything_that_is_on_record(facts: Facts) -> None:
    found = lineage(facts).to_dict()
    assert json.loads(json.dumps(found)) == found
    assert found["version"]["serves"] == "stable"
    assert found["data"]["made_by"] == {"verb": "retrain", "decision": "flights-1"}
    assert [(p["version"], p["rows"]) for p in found["data"]["parents"]] == [(1, 1000)]
    assert found["code"] == {"commit": "c" * 40, "dirty": True, "diff_sha256": "e" * 64}
    assert found["environment"]["distributions"] == {"numpy": "2.4.6"}
    assert found["run"]["trials"] == {"done": 9, "stopped early": 3}
    assert found["run"]["seconds"] == {"search": 12.34}
    assert "seconds.search" not in found["run"]["metrics"]
    assert (found["gates"]["verdict"], found["gates"]["source"], len(found["gates"]["checks"])) == ("pass", "run", 5)
    assert found["approvals"] == {"required": False, "given": []}
    (rollout,) = found["rollouts"]
    assert (rollout["phase"], [m["what"] for m in rollout["moves"]]) == (
        "promoted",
        ["rollout started", "rollout promoted"],
    )
    assert found["decision"]["trigger"] == "drift"
    assert found["version"]["created"] == "2023-11-14T22:13:20+00:00"


def test_the_tree_says_it_in_words(facts: Facts) -> None:
    lines = lineage(facts).tree().lines()
    assert lines[0] == "flights v7, registered 2023-11-14T22:13:20+00:00"
    text = "\n".join(lines)
    for said in (
        "  cause\n    retrain flights-1 (drift), 2023-11-14T22:13:20+00:00: distance drifted",
        "holds rows of version 1, 1,000 rows",
        f"commit {'c' * 40}\n    with changes that are not committed; SHA-256 of the diff {'e' * 64}",
        "search: 12 trials (9 done, 3 stopped early)",
        "inconclusive: robustness.noise, loses 0.01 to 0.12",
        "approvals\n    none is asked for",
        "flights-v7-r1 against v6, promoted,",
        "rollout promoted by ann: no worse (ledger 6)",
    ):
        assert said in text
    assert "not recorded" not in text


def test_what_is_not_on_record_is_said_and_not_made_up(facts: Facts) -> None:
    bare = replace(
        facts,
        version=replace(facts.version, tags={"decision": "gone"}),
        run=None,
        dataset=None,
        parents=(),
        rollouts=(),
        retrain=None,
        entries=(),
        serves=None,
        missing={"run": "MLflow has no run r", "dataset": "it was removed"},
    )
    found = lineage(bare)
    body = found.to_dict()
    assert [name for name, part in body.items() if part is None] == [
        "data",
        "code",
        "environment",
        "run",
        "gates",
        "decision",
    ]
    assert body["approvals"] == {"required": None, "given": []}
    text = "\n".join(found.tree().lines())
    assert "  data\n    not recorded: it was removed" in text
    assert "  run\n    not recorded: MLflow has no run r" in text
    assert "  gates\n    not recorded: MLflow has no run r" in text
    assert "the state database has no decision gone" in text
    assert "approvals\n    not recorded" in text
    assert "rollouts\n    none" in text


def test_the_ledger_vouches_for_gates_that_the_run_has_lost(facts: Facts) -> None:
    assert facts.run is not None
    found = lineage(replace(facts, run=replace(facts.run, gates=None)))
    assert found.gates is not None
    assert (found.gates["source"], found.gates["verdict"]) == ("ledger", "pass")
    assert "  gates\n    pass, as the ledger has it" in "\n".join(found.tree().lines())


def test_code_outside_of_a_checkout(facts: Facts) -> None:
    assert facts.run is not None
    tags = {"git.dirty": "unknown: not a git checkout"}
    text = "\n".join(lineage(replace(facts, run=replace(facts.run, tags=tags))).tree().lines())
    assert "  code\n    not recorded: not a git checkout" in text


def test_a_first_version_was_promoted_without_a_rollout(facts: Facts) -> None:
    first = replace(facts, rollouts=(), entries=(entry(1, "promoted", "v7", "the first version"),))
    assert "rollouts\n    2023-11-14T22:13:21+00:00 promoted by ann: the first version (ledger 1)" in "\n".join(
        lineage(first).tree().lines()
    )


def test_approvals(facts: Facts) -> None:
    pending = replace(facts, version=replace(facts.version, status="pending"))
    assert "pending: none is given yet" in "\n".join(lineage(pending).tree().lines())
    approved = replace(facts, entries=(*facts.entries, entry(9, "approved", "v7", "read the card")))
    assert lineage(approved).approvals["given"][0]["who"] == "ann"
    assert "approved by ann: read the card (ledger 9)" in "\n".join(lineage(approved).tree().lines())
