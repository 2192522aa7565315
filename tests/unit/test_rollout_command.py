"""`mlops-ray rollout` on a real state database; no cluster, and no Ray is imported."""

from __future__ import annotations

import json
import sys
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from mlops_ray import cli, ledger
from mlops_ray.cli.rollout_view import bar, span
from mlops_ray.config import Project, load_project
from mlops_ray.errors import DataError, IllegalMove, OrderRefused
from mlops_ray.governance.served import served as served_at
from mlops_ray.governance.unrecorded import unrecorded
from mlops_ray.rollout import experiment, orders
from mlops_ray.rollout.analysis import Analysis, Metric
from mlops_ray.rollout.canary import Arm, CanaryState, Phase, Reason
from mlops_ray.serving.versions import Held, Wanted
from mlops_ray.state import ApprovalRow, Store, Tx, VersionRow
from mlops_ray.training.gates.verdict import Verdict
from mlops_ray.verbs import subjects

QUICKSTART = Path(__file__).parents[2] / "configs/quickstart.yaml"
RUNNER = CliRunner(env={"COLUMNS": "160", "NO_COLOR": "1", "TERM": "dumb"})
METRIC = Metric("log_loss", 0.02, 321, 0.00123456789, 1.0, 3.0, Verdict.INCONCLUSIVE, 400, 0.05, -0.01, 0.015, 1234)
SEEN = Analysis(Verdict.INCONCLUSIVE, (METRIC,), 400)


class Up:
    """A project with a served version, and two more that may be tried."""

    def __init__(self, folder: Path) -> None:
        overlay = folder / "over.yaml"
        overlay.write_text(f"storage: {{root: {folder / 'root'}}}\n", encoding="utf-8")
        self.config = ["-c", str(QUICKSTART), "-c", str(overlay)]
        self.project: Project = load_project([QUICKSTART, overlay], env={})
        self.name = self.project.project
        (folder / "root").mkdir()
        self.store = Store.open(self.project.storage.state)
        with self.store.begin() as tx:
            for version in (1, 2, 3):
                row = VersionRow(self.name, version, "run", f"/m/{version}", "0" * 64, "d@1", "registered", 1.0, {})
                tx.save_version(row)
            tx.save_serving(self.name, Wanted(stable=Held(1, "/m/1", "0" * 64)).spec(), 0)

    def run(self, *words: str) -> Any:
        return RUNNER.invoke(cli.app, ["rollout", words[0], *self.config, *words[1:]])

    def json(self, *words: str) -> Any:
        done = self.run(*words, "--json")
        assert done.exit_code == 0, done.output
        return json.loads(done.output)

    def step(
        self,
        phase: Phase,
        *,
        reason: Reason = Reason.NONE,
        analysis: Analysis | None = None,
        arms: tuple[Arm, ...] = (),
    ) -> None:
        """What the controller saves."""

        def save(tx: Tx) -> None:
            row = tx.open_rollout(self.name)
            assert row is not None
            after = CanaryState(phase, 0, row.created + 60.0, reason, arms=arms)
            seen = None if analysis is None else {"at": row.created + 60.0, "analysis": analysis.to_dict()}
            evidence = {} if seen is None else {"analysis": seen["analysis"]}
            orders.transition(
                tx,
                row,
                after,
                kind=f"rollout {phase}",
                who="mlops_ray",
                why="seen",
                machine_now=1.0,
                evidence=evidence,
                look=seen,
            )

        self.store.run(save)


@pytest.fixture
def up(tmp_path: Path) -> Iterator[Up]:
    found = Up(tmp_path)
    yield found
    found.store.close()


def test_a_rollout_by_commands_from_start_to_the_way_back(up: Up) -> None:
    assert up.run("status").output == "no rollout is open\n"
    assert up.json("start", "2", "--why", "new") == {"rollout": "quickstart-v2-r1"}
    refused = up.run("pause")
    assert isinstance(refused.exception, IllegalMove)
    assert "possible now: abort" in str(refused.exception)
    up.step(Phase.RAMPING)
    assert up.json("pause", "--why", "holiday") == {
        "rollout": "quickstart-v2-r1",
        "phase": "paused",
        "step": 0,
        "reason": "operator",
    }
    assert up.run("resume").output == "rollout quickstart-v2-r1 is ramping\n"
    assert up.json("promote")["phase"] == "promoting"
    up.step(Phase.PROMOTED)
    with up.store.begin() as tx:
        tx.save_serving(up.name, Wanted(stable=Held(2, "/m/2", "0" * 64)).spec(), 0)
    assert up.json("rollback", "--why", "complaints")["phase"] == "rolled back"
    with up.store.read() as tx:
        served = tx.serving(up.name)
    assert served is not None
    assert served.spec["stable"]["version"] == 1
    assert "rolled back (operator)" in up.run("history").output


def test_another_rollout_starts_beside_an_open_one_only_in_its_place(up: Up) -> None:
    up.run("start", "2")
    refused = up.run("start", "3")
    assert isinstance(refused.exception, IllegalMove)
    assert "start --supersede" in str(refused.exception)
    assert up.json("start", "3", "--supersede") == {"rollout": "quickstart-v3-r2"}
    phases = [row["state"]["phase"] for row in up.json("history")["rollouts"]]
    assert sorted(phases) == ["starting", "superseded"]
    up.step(Phase.PROMOTING)
    decided = up.run("start", "2", "--supersede")
    assert isinstance(decided.exception, IllegalMove)
    assert "possible now: abort" in str(decided.exception)


def test_status_shows_intervals_and_what_is_missing(up: Up) -> None:
    up.run("start", "2")
    up.step(Phase.RAMPING, analysis=SEEN)
    shown = up.run("status").output
    for part in ("v2 against v1", "ramping", "log_loss", "+0.0012", "-0.0100 … +0.0150", "1,234 keys", "5.0%"):
        assert part in shown, shown
    assert "waits for evidence on log_loss" in shown
    found = up.json("status")
    assert set(found) == {"rollout", "share", "stable", "outlook"}
    assert found["outlook"]["keys"] == 1234


def test_explain_prints_the_evidence_as_the_ledger_kept_it(up: Up) -> None:
    up.run("start", "2", "--why", "the one from Tuesday")
    up.step(Phase.RAMPING, analysis=SEEN)
    up.run("start", "3", "--supersede")
    told = up.json("explain", "v2")
    assert told["rollout"] == "quickstart-v2-r1"
    assert [e["kind"] for e in told["entries"]] == ["rollout started", "rollout ramping", "rollout superseded"]
    assert told["entries"][1]["evidence"]["analysis"] == SEEN.to_dict()
    only = up.json("explain", "--entry", str(told["entries"][1]["seq"]))
    assert only["entries"] == [told["entries"][1]]
    shown = up.run("explain", "quickstart-v2-r1").output
    for part in ("the one from Tuesday", "log_loss", "together: inconclusive", told["entries"][1]["hash"]):
        assert part in shown
    assert up.json("explain")["rollout"] == "quickstart-v3-r2"
    for words, says in ((["v9"], "these are known: quickstart-v3-r2"), (["--entry", "99"], "the last are")):
        wrong = up.run("explain", *words)
        assert isinstance(wrong.exception, DataError)
        assert says in str(wrong.exception)


@pytest.mark.parametrize("as_json", [False, True])
def test_watching_ends_with_the_rollout(up: Up, as_json: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    up.run("start", "2")
    up.step(Phase.RAMPING, analysis=SEEN)
    went = threading.Event()

    def sleep(seconds: float) -> None:
        if not went.is_set():
            up.step(Phase.ROLLED_BACK, reason=Reason.EVIDENCE)
        went.set()

    monkeypatch.setattr("mlops_ray.cli.rollout.time.sleep", sleep)
    done = up.run("status", "-w", *(["--json"] if as_json else []))
    assert done.exit_code == 0, done.output
    if as_json:
        phases = [json.loads(line)["outlook"]["phase"] for line in done.output.splitlines()]
        assert phases == ["ramping", "rolled back"]
    else:
        assert "rolled back (evidence)" in done.output


def test_the_way_back_to_an_earlier_version(up: Up) -> None:
    for version in (2, 3):
        up.run("start", str(version))
        up.step(Phase.RAMPING)
        up.step(Phase.PROMOTED)
        with up.store.begin() as tx:
            tx.save_serving(up.name, Wanted(stable=Held(version, f"/m/{version}", "0" * 64)).spec(), 0)
    wrong = up.run("rollback", "--to", "3")
    assert isinstance(wrong.exception, DataError)
    assert "it is stable" in str(wrong.exception)
    assert "these were: v1, v2" in str(wrong.exception)
    assert up.json("rollback", "--to", "1") == {
        "rollout": "quickstart-v1-r3",
        "phase": "promoting",
        "step": 0,
        "reason": "operator",
    }
    with up.store.read() as tx:
        served = tx.serving(up.name)
    assert served is not None
    wanted = Wanted.of(served)  # loaded beside stable first, with its golden requests
    assert (wanted.stable, wanted.warm) == (Held(3, "/m/3", "0" * 64), (Held(1, "/m/1", "0" * 64),))


def test_the_way_back_is_open_at_any_time_and_says_which_versions_it_leads_to(up: Up) -> None:
    """As `kubectl rollout undo`: one command, whatever is under way."""
    up.run("start", "2")
    up.step(Phase.RAMPING)
    up.step(Phase.PROMOTED)
    with up.store.begin() as tx:
        tx.save_serving(up.name, Wanted(stable=Held(2, "/m/2", "0" * 64), warm=(Held(1, "/m/1", "0" * 64),)).spec(), 0)
    up.run("start", "3")
    up.step(Phase.RAMPING)
    wrong = up.run("rollback", "--to", "3")
    assert str(wrong.exception) == (
        "v3 of quickstart: it never was stable, was taken back, or may not serve, so there is no way back to it; "
        "these were: v1"
    )
    found = up.json("rollback", "--to", "1", "--why", "complaints")
    assert (found["rollout"], found["phase"]) == ("quickstart-v1-r3", "promoting")
    with up.store.begin() as tx:
        served, ended = tx.serving(up.name), tx.rollout("quickstart-v3-r2")
        assert served is not None
        assert ended is not None
        assert (ended.state["phase"], ended.state["reason"]) == ("aborted", "operator")
        wanted = Wanted.of(served)  # v1 was kept warm, so it is loaded: all flip at once
        assert (wanted.stable.version, wanted.canary, [h.version for h in wanted.warm]) == (1, None, [2])  # type: ignore[union-attr]
        said = [(e.kind, e.subject, e.who, e.why) for e in ledger.entries(tx, up.name)][-3:]
        assert ledger.verify(tx, up.name).ok
        assert unrecorded(tx, up.name, ledger.entries(tx, up.name)) == ()
    me = subjects.os_user()
    assert said == [
        ("rollout abort", "v3", me, "complaints"),
        ("rollout started", "v1", me, "complaints"),
        ("rollout rollback", "v1", me, "complaints"),
    ]
    up.step(Phase.PROMOTED)
    with up.store.read() as tx:
        told = served_at(ledger.entries(tx, up.name), at=1e12)
    assert (told.stable, told.rollout) == (1, "quickstart-v1-r3")
    assert told.order is not None
    assert told.order.kind == "rollout rollback"
    # And back again, but not by saying nothing: that would lead to what somebody went away from.
    assert "say to which with --to, of: v2" in str(up.run("rollback").exception)
    assert up.json("rollback", "--to", "2")["phase"] == "rolled back"


def test_no_way_leads_back_to_what_was_taken_back_after_it_was_stable(up: Up) -> None:
    up.run("start", "2")
    up.step(Phase.RAMPING)
    up.step(Phase.PROMOTED)
    with up.store.begin() as tx:
        tx.save_serving(up.name, Wanted(stable=Held(2, "/m/2", "0" * 64), warm=(Held(1, "/m/1", "0" * 64),)).spec(), 0)
    up.run("start", "3")
    up.run("abort")
    assert up.json("rollback", "--to", "1", "--why", "complaints")["phase"] == "rolled back"
    assert "so there is no way back to it; these were: none" in str(up.run("rollback", "--to", "2").exception)


def test_an_order_may_name_the_rollout_that_is_meant(up: Up) -> None:
    up.run("start", "2")
    wrong = up.run("abort", "--rollout", "quickstart-v9-r9")
    assert isinstance(wrong.exception, OrderRefused)
    assert wrong.exception.exit_code == 2
    assert "rollout quickstart-v9-r9: orders are about quickstart-v2-r1 now (starting)" in str(wrong.exception)
    assert up.run("abort", "--rollout", "quickstart-v2-r1").output == "rollout quickstart-v2-r1 is aborted\n"
    nothing = up.run("abort", "--rollout", "quickstart-v2-r1")
    assert "no rollout is open" in str(nothing.exception)
    assert "quickstart-v2-r1" in up.run("history").output


@pytest.mark.parametrize("why", ["", "   ", "x" * 1001, "a\x1b[2Jb", "two\nlines", "a\u202eb", "a\x9bb", "\x07"])
def test_a_reason_is_a_sentence_in_one_line(up: Up, why: str) -> None:
    for words in (("start", "2"), ("pause",), ("rollback", "--to", "2")):
        wrong = up.run(*words, "--why", why)
        assert isinstance(wrong.exception, OrderRefused)
        assert "write a sentence of 1 to 1,000 characters" in str(wrong.exception)
        assert "\x1b" not in str(wrong.exception)
    assert up.run("start", "2", "--why", " the one from Tuesday ").exit_code == 0
    assert up.json("explain")["entries"][0]["why"] == "the one from Tuesday"


def test_stored_text_cannot_steer_a_terminal(up: Up) -> None:
    """Also what an earlier release let in."""
    hostile = "\x1b]0;owned\x07\x1b[2J\u202etxt\x9b31m\r\n   7  2026-01-01 00:00  approved v9 by ben: forged"
    up.run("start", "2")
    with up.store.begin() as tx:
        row = tx.open_rollout(up.name)
        assert row is not None
        state = CanaryState(Phase.RAMPING, 0, row.created + 60.0)
        orders.transition(
            tx, row, state, kind="rollout ramping", who="eve", why=hostile, machine_now=1.0, evidence={"a": hostile}
        )
    config = up.config
    for command in (
        ["rollout", "explain"],
        ["rollout", "status"],
        ["rollout", "history"],
        ["ledger", "show"],
        ["status"],
    ):
        shown = RUNNER.invoke(cli.app, [*command, *config])
        assert shown.exit_code == 0, shown.exception
        assert not set(shown.output) & set("\x1b\x07\x9b\r\u202e"), command
    shown = RUNNER.invoke(cli.app, ["ledger", "show", *config]).output
    assert "\\x1b]0;owned\\x07\\x1b[2J\\u202etxt\\x9b31m\\x0d\\x0a   7  2026" in shown
    assert len(shown.splitlines()) == 2


def test_what_is_pending_says_of_whom_approvals_are_asked_and_until_when_they_hold(up: Up, tmp_path: Path) -> None:
    overlay = tmp_path / "approval.yaml"
    overlay.write_text("rollout: { approval: before_start, approvers: 2 }\n")
    up.config += ["-c", str(overlay)]
    rollout = up.json("start", "2")["rollout"]
    who = f"(asked of 2 people who may approve, but not {subjects.os_user()}, who proposed it"
    assert up.json("status")["outlook"]["waits"] == [f"approval: approved by nobody yet; 2 more must {who})"]
    with up.store.begin() as tx:
        tx.save_approval(ApprovalRow(up.name, 2, rollout, "ann", "approve", "read it", 4e9 - 9, 4e9))
    waits = up.json("status")["outlook"]["waits"]
    holds = "what was given holds until 2096-10-02 07:06 UTC"
    assert waits == [f"approval: approved by ann; 1 more must {who}; {holds})"]


def test_the_stable_version_is_not_rolled_out(up: Up) -> None:
    wrong = up.run("start", "1")
    assert isinstance(wrong.exception, OrderRefused)
    assert "v1 of quickstart: it is stable already, and a rollout of it would be against itself" in str(wrong.exception)


def test_several_versions_side_by_side(up: Up, tmp_path: Path) -> None:
    refused = up.run("start", "2", "3")
    assert "set `rollout.mode: ab`, or name one" in str(refused.exception)
    overlay = tmp_path / "ab.yaml"
    overlay.write_text("rollout: { mode: ab, ab: { share: 0.2, winner: by_command } }\n")
    up.config += ["-c", str(overlay)]
    assert up.json("start", "2", "3", "--why", "which of them?") == {"rollout": "quickstart-v2-v3-r1"}
    seen = {}
    for version, estimate in ((2, -0.04), (3, 0.01)):
        metric = Metric("log_loss", 0.02, 800, estimate, 1.0, 90.0, Verdict.PASS, low=estimate - 0.02, high=0.015)
        metric = replace(metric, evidence_better=120.0 if version == 2 else 0.3, better=version == 2)
        seen[version] = Analysis(Verdict.PASS, (metric,), 900)
    up.step(Phase.RAMPING, analysis=experiment.together(seen), arms=(Arm(2), Arm(3)))
    shown = up.run("status").output
    assert "v2, v3 against v1" in shown
    assert "v2: 20% of the keys, +0.0400 better than stable by estimate, proven: it has won" in shown
    assert "v3: 20% of the keys, -0.0100 better than stable by estimate" in shown
    assert "1 / 120" in shown
    assert "waits for evidence on whether v3 log_loss is better" in shown
    arms = up.json("status")["outlook"]["arms"]
    assert [(arm["version"], arm["share"], arm["dropped"], arm["won"]) for arm in arms] == [
        (2, 0.2, "", True),
        (3, 0.2, "", False),
    ]
    refused = up.run("promote")
    assert "v2, v3 are on trial; say which, for example `--version 2`" in str(refused.exception)
    assert up.json("promote", "--version", "3")["phase"] == "promoting"
    explained = up.run("explain", "v2").output
    assert "quickstart-v2-v3-r1" in explained
    assert "rollout promote" in explained


def test_an_interval_is_drawn_against_its_margin() -> None:
    assert bar(0.0, -0.01, 0.01, 0.02).count("●") == 1
    assert bar(0.5, None, None, 0.02)[-1] == "●"
    assert bar(0.0, -0.2, 0.2, 0.02)[0] == "◂"
    assert (span(5), span(3_660), span(90_000), span(0)) == ("5 s", "1 h 1 min", "1 d 1 h", "0 s")


def test_steering_needs_no_ray(up: Up) -> None:
    import subprocess

    program = (
        "import sys\nfrom mlops_ray.cli import app\n"
        "app(sys.argv[1:], standalone_mode=False)\nsys.stderr.write('ray' if 'ray' in sys.modules else '')\n"
    )
    arguments = [sys.executable, "-c", program, "rollout", "start", *up.config, "2", "--json"]
    done = subprocess.run(arguments, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
