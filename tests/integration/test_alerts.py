"""The monitor, as it runs in its actor, tells a real receiver what the state database says, and that it is over."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from mlops_ray.monitoring import on_delivery
from mlops_ray.monitoring.alerts import book
from mlops_ray.monitoring.alerts.alerting import Alert, Kind, Message, Phase
from mlops_ray.monitoring.on_ray import Monitor
from mlops_ray.retraining.on_ray import brain
from mlops_ray.state import ApprovalRow, RetrainRow, RolloutRow, Store, VersionRow
from tests import fakes
from tests.fakes import eventually
from tests.receivers import Posts, http_receiver

ROOT = Path(__file__).parents[2]
WAITING = {"phase": "pending", "step": 0, "since": 0.0, "reason": "", "origin": "starting"}


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def told(posts: Posts) -> set[str]:
    """Titles of all notices so far."""
    return {attachment["title"] for _, body in posts.got for attachment in json.loads(body)["attachments"]}


def test_the_monitor_tells_what_became_of_retrains_and_rollouts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(on_delivery, "_LOOK_S", 0.05)
    with http_receiver() as posts:
        monkeypatch.setenv("HOOK", posts.url)
        body: dict[str, Any] = fakes.project().model_dump(mode="json", exclude_unset=True) | {
            "storage": {"root": str(tmp_path)},
            "monitoring": {"metrics_port": free_port()},
            "alerts": {"channels": {"team": {"kind": "webhook", "url": "${HOOK}"}}},
        }
        store = Store.open(f"sqlite:///{tmp_path}/state.db")
        failed = [
            RetrainRow(f"t{i}", "small", "drift", "x", 1e9 + i, f"s{i}", "failed", {"error": "no rows"}, 1e9 + i)
            for i in range(3)
        ]
        waiting = RolloutRow("r7", "small", 7, 3, {"approval": "before_start", "approvers": 1}, WAITING, 1e9)
        with store.begin() as tx:
            tx.save_cursor("small", "watermark", 0, 1e9 + 10)
            tx.save_cursor("small", "seen", 0, 9e9)
            tx.save_version(VersionRow("small", 7, "run", "/m", "sha", "data", "registered", 1e9, {}))
            for row in failed:
                tx.save_retrain(row)
            tx.save_rollout(waiting)
        monitor = Monitor(yaml.safe_dump(body), lambda text: brain(text, dashboard="http://127.0.0.1:1"))
        eventually(lambda: len(told(posts)) == 3)
        assert told(posts) == {
            "[firing] critical breaker_open of retraining",
            "[firing] warning retrain_failed of retraining",
            "[firing] info rollout_waiting_approval of v7",
        }
        with store.begin() as tx:
            tx.save_approval(ApprovalRow("small", 7, "r7", "ann", "approve", "read it", 1e9))
            tx.save_retrain(RetrainRow("t9", "small", "drift", "x", 1e9 + 9, "s9", "succeeded", {}, 1e9 + 9))
            tx.save_rollout(replace(waiting, state=WAITING | {"phase": "paused", "reason": "plan"}))
        eventually(lambda: len(told(posts)) == 7)
        assert told(posts) >= {
            "[resolved] critical breaker_open of retraining",
            "[resolved] warning retrain_failed of retraining",
            "[resolved] info rollout_waiting_approval of v7",
            "[firing] warning rollout_paused of v7",
        }
        assert monitor._alerting.end(30.0)
    assert "HOOK" in monitor.text()
    store.close()


SENDER = """
import sys, numpy as np
from mlops_ray.monitoring.alerts.delivering import Backoff
from mlops_ray.monitoring.on_delivery import Lane
from mlops_ray.state import Store
from tests.fakes import project
channels = {"team": {"kind": "webhook", "url": sys.argv[2]}}
store = Store.open(sys.argv[1])
Lane(store, project(alerts={"channels": channels}), "team", backoff=Backoff(), rng=np.random.default_rng()).turn()
"""


def test_a_sender_killed_after_its_message_arrived_leaves_it_to_the_next_one(tmp_path: Path) -> None:
    """SIGKILL between sending and saving: the receiver has the message, the database does not know."""
    url = f"sqlite:///{tmp_path}/state.db"
    store = Store.open(url)
    alert = Alert("a1", "drift", "v3", "warning", Phase.FIRING, 1e9, "why", 1e9)
    with store.begin() as tx:
        book.post(tx, "small", [Message("m1", "team", ((Kind.FIRING, alert),))], 1e9)
    with http_receiver() as posts:
        arguments = [sys.executable, "-c", SENDER, url, posts.url]
        senders: list[subprocess.Popen[bytes]] = []
        started = threading.Event()

        def kill_the_first(n: int) -> tuple[int, dict[str, str]]:
            if n == 0:
                assert started.wait(60)
                senders[0].kill()
                senders[0].wait()
            return 200, {}

        posts.answer = kill_the_first
        senders.append(subprocess.Popen(arguments, cwd=ROOT))
        started.set()
        assert senders[0].wait(120) == -signal.SIGKILL
        with store.read() as tx:
            assert [one.attempts for one in book.waiting(tx, "small", "team")] == [()]
        subprocess.run(arguments, cwd=ROOT, check=True, timeout=120)
        assert [headers["idempotency-key"] for headers, _ in posts.got] == ["m1", "m1"]
    with store.read() as tx:
        (one,) = book.posted(tx, "small")
    assert (one.status, len(one.attempts)) == (book.Status.SENT, 1)
    store.close()
