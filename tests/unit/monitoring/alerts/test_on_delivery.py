"""Messages handed to real receivers: an HTTP server, an SMTP server, a program."""

from __future__ import annotations

import json
import logging
import secrets
import sys
import threading
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mlops_ray.config.alerts import Command, Email, Webhook
from mlops_ray.monitoring.alerts import book
from mlops_ray.monitoring.alerts.alerting import Alert, Condition, Kind, Message, Phase
from mlops_ray.monitoring.alerts.delivering import Backoff, Outcome, Result
from mlops_ray.monitoring.alerts.watching import Watcher
from mlops_ray.monitoring.on_delivery import Alerting, Lane, hand_over
from mlops_ray.state import Store
from tests.fakes import eventually, project
from tests.receivers import certificate, http_receiver, silent_receiver, smtp_receiver

WHY = "dest: PSI 0.4 against a limit of 0.1 (<!channel> & friends)"
SOON = Backoff(base_s=0.02, most_s=0.05)


def message(*kinds: Kind, n: int = 1) -> Message:
    alerts = [Alert(f"a{i}", "drift", f"v{i}", "critical", Phase.FIRING, 1e9, WHY, fired=1e9) for i in range(n)]
    return Message("0123456789ab", "team", tuple((kind, a) for kind in kinds or (Kind.FIRING,) for a in alerts))


def webhook(url: str, **fields: Any) -> Webhook:
    return Webhook.model_validate({"kind": "webhook", "url": url} | fields)


def mail(port: int, **fields: Any) -> Email:
    body = {"kind": "email", "host": "127.0.0.1", "port": port, "tls": "none", "sender": "us@x.org", "to": ["a@x.org"]}
    return Email.model_validate(body | fields)


def command(code: str, **fields: Any) -> Command:
    return Command.model_validate({"kind": "command", "argv": [sys.executable, "-S", "-c", code]} | fields)


def sent(channel: Any, *kinds: Kind, n: int = 1) -> Outcome:
    return hand_over("flights", channel, message(*kinds, n=n), 1e9)


# --- webhook


def test_slack_gets_what_it_shows() -> None:
    with http_receiver() as posts:
        outcome = sent(webhook(posts.url, headers={"X-Room": "ops"}), Kind.FIRING, Kind.RESOLVED)
    assert outcome == Outcome(Result.SENT, "HTTP 200 ok")
    ((headers, body),) = posts.got
    assert (headers["content-type"], headers["idempotency-key"], headers["x-room"]) == (
        "application/json",
        "0123456789ab",
        "ops",
    )
    said = json.loads(body)
    assert set(said) == {"text", "attachments"}
    assert said["text"] == "flights: 1 firing, 1 resolved"
    first, second = said["attachments"]
    assert first["title"] == "[firing] critical drift of v0"
    assert first["text"] == "dest: PSI 0.4 against a limit of 0.1 (&lt;!channel&gt; &amp; friends)"
    assert (first["color"], second["color"]) == ("#a30200", "#2eb67d")


def test_alertmanagers_format() -> None:
    with http_receiver() as posts:
        sent(webhook(posts.url, format="alertmanager"))
    said = json.loads(posts.got[0][1])
    assert (said["version"], said["status"], said["receiver"], said["message"]) == (
        "4",
        "firing",
        "team",
        "0123456789ab",
    )
    (alert,) = said["alerts"]
    assert alert["labels"] == {"alertname": "drift", "project": "flights", "severity": "critical", "subject": "v0"}
    assert (alert["startsAt"], alert["endsAt"]) == ("2001-09-09T01:46:40Z", "0001-01-01T00:00:00Z")
    assert said["commonLabels"] == alert["labels"]


def test_a_hundred_alerts_are_one_post_that_shows_twenty() -> None:
    with http_receiver() as posts:
        sent(webhook(posts.url), n=100)
        sent(webhook(posts.url, format="alertmanager"), n=100)
    (_, slack), (_, other) = posts.got
    assert len(json.loads(slack)["attachments"]) == 20
    assert json.loads(slack)["text"].startswith("flights: 100 firing\nand 80 more")
    assert len(json.loads(other)["alerts"]) == 100


@pytest.mark.parametrize(
    ("status", "headers", "result", "said"),
    [
        (204, {}, Result.SENT, "HTTP 204"),
        (302, {"Location": "http://169.254.169.254/"}, Result.REFUSED, "redirects are not followed"),
        (404, {}, Result.REFUSED, "HTTP 404"),
        (429, {"Retry-After": "7"}, Result.BUSY, "HTTP 429"),
        (503, {"Retry-After": "Wed, 21 Oct 2015 07:28:00 GMT"}, Result.BUSY, "HTTP 503"),
    ],
)
def test_what_its_answers_mean(status: int, headers: dict[str, str], result: Result, said: str) -> None:
    with http_receiver() as posts:
        posts.answer = lambda n: (status, headers)
        outcome = sent(webhook(posts.url))
    assert outcome.result is result
    assert said in outcome.said
    assert outcome.wait_s == (7.0 if status == 429 else None)
    assert len(posts.got) == 1


def test_an_answer_without_end_is_not_read_to_its_end() -> None:
    with http_receiver() as posts:
        posts.said = b"x" * 50_000_000
        outcome = sent(webhook(posts.url))
    assert outcome.result is Result.SENT
    assert len(outcome.said) == 300


def test_a_receiver_that_repeats_the_address_does_not_put_it_on_record() -> None:
    with http_receiver() as posts:
        posts.answer, posts.said = lambda n: (404, {}), b"no such path: /services/secretword"
        outcome = sent(webhook(posts.url))
    assert "secretword" not in outcome.said
    assert outcome.said == "HTTP 404 no such path: /***"


@pytest.mark.parametrize("channel", ["webhook", "mail"])
def test_a_receiver_that_answers_a_byte_at_a_time_is_left(channel: str) -> None:
    with silent_receiver() as port:
        made = {"webhook": webhook(f"http://127.0.0.1:{port}", timeout_s=0.3), "mail": mail(port, timeout_s=0.3)}
        began = time.monotonic()
        outcome = sent(made[channel])
    assert outcome == Outcome(Result.UNREACHABLE, "no answer within 0.3 s")
    assert time.monotonic() - began < 5.0


@pytest.mark.parametrize("channel", ["webhook", "mail"])
def test_nobody_is_there(channel: str) -> None:
    with http_receiver() as posts:
        port = posts.port
    made = {"webhook": webhook(f"http://127.0.0.1:{port}/secretword"), "mail": mail(port)}
    outcome = sent(made[channel])
    assert outcome.result is Result.UNREACHABLE
    assert "secretword" not in outcome.said


# --- mail


def test_a_letter_is_taken() -> None:
    with smtp_receiver() as box:
        outcome = sent(mail(box.port, to=["a@x.org", "b@x.org"], user="me", password="geheim99"))
    assert outcome == Outcome(Result.SENT, "taken")
    (letter,) = box.letters
    assert letter["Subject"] == "[mlops_ray] flights: 1 firing"
    assert letter["Message-ID"] == "<0123456789ab.flights@x.org>"
    assert letter["X-Mlops-Ray-Message"] == "0123456789ab"
    assert letter["To"] == "a@x.org, b@x.org"
    assert f"[firing] critical drift of v0: {WHY}" in " ".join(letter.get_content().split())
    assert "RCPT TO:<b@x.org>" in [word.upper().replace("B@X.ORG", "b@x.org") for word in box.words]


@pytest.mark.parametrize(
    ("word", "answer", "result"),
    [
        ("RCPT", "550 no such user", Result.REFUSED),
        ("RCPT", "450 mailbox busy", Result.BUSY),
        ("MAIL", "421 too many connections", Result.BUSY),
        ("AUTH", "535 wrong: geheim99", Result.REFUSED),
        ("DATA", "554 no", Result.REFUSED),
    ],
)
def test_what_an_smtp_servers_answers_mean(word: str, answer: str, result: Result) -> None:
    with smtp_receiver() as box:
        box.codes[word] = answer
        outcome = sent(mail(box.port, user="me", password="geheim99"))
    assert outcome.result is result
    assert answer[:3] in outcome.said
    assert "geheim99" not in outcome.said
    assert box.letters == []


def test_a_server_without_starttls_gets_no_letter_that_wants_it() -> None:
    with smtp_receiver() as box:
        outcome = sent(mail(box.port, tls="starttls"))
    assert outcome.result is Result.REFUSED
    assert box.letters == []


@pytest.mark.parametrize("tls", ["starttls", "implicit"])
@pytest.mark.parametrize(("vouched", "host"), [(True, "localhost"), (False, "localhost"), (True, "smtp.example.org")])
def test_a_letter_goes_only_to_a_server_whose_certificate_holds(
    tls: str, vouched: bool, host: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    context, file = certificate(tmp_path, host)
    if vouched:
        monkeypatch.setenv("SSL_CERT_FILE", str(file))
    with smtp_receiver(context, implicit=tls == "implicit") as box:
        outcome = sent(mail(box.port, host="localhost", tls=tls, user="me", password="geheim99"))
    well = vouched and host == "localhost"
    assert outcome.result is (Result.SENT if well else Result.UNREACHABLE), outcome
    assert len(box.letters) == well
    assert any(word.startswith("AUTH") for word in box.words) is well
    if not well:
        assert "CERTIFICATE_VERIFY_FAILED" in outcome.said


# --- command


def test_a_command_gets_the_alerts_and_its_own_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "not-for-you")
    code = (
        "import json, os, sys; body = json.load(sys.stdin);"
        "print(body['alerts'][0]['labels']['alertname'], os.environ['TOKEN'] == 'geheim99',"
        " 'AWS_SECRET_ACCESS_KEY' in os.environ, os.environ['TOKEN'])"
    )
    assert sent(command(code, env={"TOKEN": "geheim99"})) == Outcome(Result.SENT, "exit code 0 drift True False ***")


def test_a_command_that_fails_is_tried_again() -> None:
    assert sent(command("import sys; sys.exit('no pager')")) == Outcome(Result.BUSY, "exit code 1 no pager")


def test_a_command_that_hangs_is_stopped_with_what_it_started(tmp_path: Path) -> None:
    code = (
        "import subprocess, sys, time; print('begun', flush=True);"
        "subprocess.Popen([sys.executable, '-S', '-c', 'import time; time.sleep(60)']); time.sleep(60)"
    )
    began = time.monotonic()
    assert sent(command(code, timeout_s=1.0)) == Outcome(Result.BUSY, "stopped after 1 s begun")
    assert time.monotonic() - began < 20


def test_a_command_that_talks_without_end_neither_blocks_nor_fills_memory() -> None:
    outcome = sent(command("print('x' * 3_000_000)"))
    assert outcome.result is Result.SENT
    assert len(outcome.said) == 300


def test_a_command_that_is_not_there() -> None:
    channel = Command.model_validate({"kind": "command", "argv": ["/nowhere/page"]})
    assert sent(channel) == Outcome(Result.UNREACHABLE, "/nowhere/page does not start: No such file or directory")


def test_no_shell_reads_the_arguments() -> None:
    channel = Command.model_validate({"kind": "command", "argv": ["echo", "$(id)", "; id"]})
    assert sent(channel).said == "exit code 0 $(id) ; id"


# --- through the state database


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    opened = Store.open(f"sqlite:///{tmp_path}/state.db")
    yield opened
    opened.close()


class Loop:
    """A project with these channels, whose conditions a test sets."""

    def __init__(self, store: Store, channels: dict[str, Any], **rule: Any) -> None:
        alerts = {"channels": channels, "rules": [{"name": "broken", "when": "retrain_failed"} | rule]}
        self.store, self.project = store, project(alerts=alerts)
        self.holding: list[Condition] = []
        self.watcher = Watcher(store, self.project, self.conditions, new_id=partial(secrets.token_hex, 6))

    def conditions(self, *_: Any) -> list[Condition]:
        return self.holding

    def look(self, *subjects: str) -> None:
        self.holding = [Condition("retrain_failed", subject, "it broke") for subject in subjects]
        self.watcher.look(time.time())

    def start(self) -> Alerting:
        return Alerting(self.store, self.project, self.conditions, rng=np.random.default_rng(0), backoff=SOON)

    def lane(self, name: str = "team") -> Lane:
        return Lane(self.store, self.project, name, backoff=SOON, rng=np.random.default_rng(0))

    def posted(self) -> list[book.Posted]:
        with self.store.read() as tx:
            return book.posted(tx, self.project.project)[::-1]

    def all_sent(self) -> bool:
        return all(one.status is book.Status.SENT for one in self.posted())


def texts(got: list[tuple[dict[str, str], bytes]]) -> list[str]:
    return [json.loads(body)["text"] for _, body in got]


def test_the_monitor_tells_and_takes_back(store: Store) -> None:
    with http_receiver() as posts:
        loop = Loop(store, {"team": {"kind": "webhook", "url": posts.url}})
        alerting = loop.start()
        loop.holding = [Condition("retrain_failed", "retraining", "it broke")]
        alerting.soon()
        eventually(lambda: len(posts.got) == 1)
        loop.holding = []
        alerting.soon()
        eventually(lambda: len(posts.got) == 2 and loop.all_sent())
        assert alerting.end(30.0)
    assert texts(posts.got) == ["small: 1 firing", "small: 1 resolved"]


def test_killed_between_sending_and_saving_it_is_sent_again_with_the_same_id(store: Store) -> None:
    class Killed(BaseException):
        pass

    class Killing(Store):
        def run(self, fn: Any) -> Any:
            raise Killed

    with http_receiver() as posts:
        loop = Loop(store, {"team": {"kind": "webhook", "url": posts.url}})
        loop.look("retraining")
        dying = Loop(store, {"team": {"kind": "webhook", "url": posts.url}})
        dying.store = Killing(store._engine, store.name)
        with pytest.raises(Killed):
            dying.lane().turn()
        assert loop.posted()[0].attempts == ()
        loop.lane().turn()  # whoever takes its place
        loop.lane().turn()
    assert len(posts.got) == 2
    assert len({headers["idempotency-key"] for headers, _ in posts.got}) == 1
    assert loop.all_sent()


def test_while_the_database_is_away_the_receiver_is_not_told_again_and_again(store: Store) -> None:
    class Away(Store):
        def run(self, fn: Any) -> Any:
            raise OSError("the database is away")

    with http_receiver() as posts:
        loop = Loop(store, {"team": {"kind": "webhook", "url": posts.url}})
        loop.look("retraining")
        loop.store = Away(store._engine, store.name)
        lane = loop.lane()
        for _ in range(5):
            with pytest.raises(OSError, match="away"):
                lane.turn()
        assert lane.rest_s() > 1.0
        assert len(posts.got) == 1
        lane._store = loop.store = store
        lane.turn()
        assert len(posts.got) == 1
    assert loop.all_sent()


def test_a_receiver_that_was_down_hears_all_in_order_when_it_is_back(store: Store) -> None:
    with http_receiver() as posts:
        port = posts.port
    loop = Loop(store, {"team": {"kind": "webhook", "url": posts.url}})
    loop.look("retraining")
    alerting = loop.start()
    loop.look()
    eventually(lambda: len(loop.posted()[0].attempts) >= 3)
    firing, resolved = loop.posted()
    assert {a.result for a in firing.attempts} == {"unreachable"}
    assert resolved.attempts == ()  # that it resolved is not told before that it fires
    with http_receiver(port) as back:
        eventually(loop.all_sent)
        assert alerting.end(30.0)
    assert texts(back.got) == ["small: 1 firing", "small: 1 resolved"]


def test_a_dead_channel_holds_up_no_other_nor_the_look(store: Store) -> None:
    with silent_receiver() as port, http_receiver() as posts:
        dead = {"kind": "webhook", "url": f"http://127.0.0.1:{port}/", "timeout_s": 30}
        loop = Loop(store, {"dead": dead, "team": {"kind": "webhook", "url": posts.url}})
        alerting = loop.start()
        loop.look("retraining")
        alerting.soon()
        for lane in alerting._lanes:
            lane.soon()
        eventually(lambda: len(posts.got) == 1)
        loop.holding = []
        alerting.soon()
        eventually(lambda: len(posts.got) == 2)
        alerting.end(0.0)


def test_a_message_that_its_receiver_will_not_take_holds_up_no_other(
    store: Store, caplog: pytest.LogCaptureFixture
) -> None:
    with http_receiver() as posts:
        channel = {"kind": "webhook", "url": posts.url, "attempts": 2}
        loop = Loop(store, {"team": channel})
        posts.answer = lambda n: (500 if n in (0, 2) else 200, {})
        loop.look("a")
        loop.look("a", "b")
        with caplog.at_level(logging.ERROR):
            lane = loop.lane()
            eventually(lambda: lane.turn() or loop.posted()[0].status is book.Status.FAILED)
        assert loop.posted()[1].status is book.Status.SENT
    assert len(posts.got) == 3
    assert "given up after 2 attempts: HTTP 500" in caplog.text
    assert "secretword" not in caplog.text


def test_secrets_stay_out_of_the_database_and_the_log(store: Store, caplog: pytest.LogCaptureFixture) -> None:
    with http_receiver() as posts, smtp_receiver() as box, caplog.at_level(logging.DEBUG):
        posts.answer, posts.said = lambda n: (404, {}), b"/services/secretword"
        box.codes["AUTH"] = "535 wrong: geheim99"
        channels = {
            "team": {"kind": "webhook", "url": posts.url, "headers": {"Authorization": "Bearer geheim88"}},
            "oncall": mail(box.port, user="me", password="geheim99").model_dump() | {"password": "geheim99"},
            "script": {"kind": "command", "argv": ["sh", "-c", "echo $T; exit 1"], "env": {"T": "geheim77"}},
        }
        loop = Loop(store, channels)
        loop.look("retraining")
        for name in channels:
            loop.lane(name).turn()
    with store.read() as tx:
        dump = "\n".join(tx.connection.connection.dbapi_connection.iterdump())  # type: ignore[union-attr]
    assert "it broke" in dump
    for secret in ("secretword", "geheim99", "geheim88", "geheim77"):
        assert secret not in dump
        assert secret not in caplog.text


def test_a_channel_taken_out_of_the_file_is_given_up_and_the_others_go_on(store: Store) -> None:
    with http_receiver() as posts:
        team = {"kind": "webhook", "url": posts.url}
        Loop(store, {"team": team, "old": team}).look("retraining")
        loop = Loop(store, {"team": team})
        alerting = loop.start()
        eventually(lambda: {one.status for one in loop.posted()} == {book.Status.SENT, book.Status.FAILED})
        alerting.end(30.0)
    failed = next(one for one in loop.posted() if one.status is book.Status.FAILED)
    assert failed.attempts[-1].said == "the project file has no such channel any more"
    assert len(posts.got) == 1


def test_escalation_silence_and_acknowledgement_reach_real_receivers(store: Store) -> None:
    from dataclasses import replace

    from mlops_ray.monitoring.alerts.alerting import Ack, Silence

    with http_receiver() as team, http_receiver() as boss:
        channels = {
            "team": {"kind": "webhook", "url": team.url},
            "boss": {"kind": "webhook", "url": boss.url},
        }
        loop = Loop(store, channels, notify=["team"], escalate_to=["boss"], escalate_after_s=100)
        loop.holding = [Condition("retrain_failed", "retraining", "it broke")]
        now = time.time() - 1000
        with store.begin() as tx:
            book.save_silence(tx, "small", Silence("s", "", "", "ann", "quiet", now, now + 50))
        for at in (0.0, 49.0, 50.0, 149.0, 150.0):
            loop.watcher.look(now + at)
        with store.begin() as tx:
            (alert,) = book.opened(tx, "small")
            book.save(tx, "small", replace(alert, ack=Ack("ann", "on it", now + 160)))
        loop.holding = []
        loop.watcher.look(now + 900)
        for name in channels:
            loop.lane(name).turn()
    assert texts(team.got) == ["small: 1 firing", "small: 1 resolved"]
    assert texts(boss.got) == ["small: 1 escalated", "small: 1 resolved"]


def test_threads_bear_the_names_of_their_channels(store: Store) -> None:
    loop = Loop(store, {"team": {"kind": "command", "argv": ["true"]}})
    alerting = loop.start()
    names = {thread.name for thread in threading.enumerate()}
    assert {"alerts of small", "alerts to team"} <= names
    assert alerting.end(30.0)
