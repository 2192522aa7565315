"""Words of messages: whatever the data call themselves, nobody is called and nothing is hidden."""

from __future__ import annotations

import email
import email.policy
import json
import unicodedata
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlops_ray.config.alerts import Email
from mlops_ray.monitoring.alerts import wording
from mlops_ray.monitoring.alerts.alerting import Alert, Kind, Message, Phase

MAIL = Email.model_validate({"kind": "email", "host": "x.org", "sender": "us@x.org", "to": ["a@x.org"]})
NASTY = st.text(max_size=80) | st.sampled_from(
    ["<!channel>", "\r\nBcc: all@x.org", "\u202egnp.exe", "\x1b[2J", "\udcff", "&lt;", "a\0b", "x" * 5000]
)


def one(why: str, subject: str = "v3", severity: str = "warning") -> Alert:
    return Alert("a1", "drift", subject, severity, Phase.FIRING, 1e9, why, 1e9)


def texts(body: Any) -> list[str]:
    if isinstance(body, dict):
        return [text for value in body.values() for text in texts(value)]
    if isinstance(body, list):
        return [text for value in body for text in texts(value)]
    return [body] if isinstance(body, str) else []


@given(NASTY, NASTY)
def test_words_of_the_data_do_nothing(why: str, subject: str) -> None:
    message = Message("m1", "team", ((Kind.FIRING, one(why, subject)),))
    for text in texts(json.loads(json.dumps(wording.slack("small", message)))):
        assert not set("<>") & set(text)
        assert not any(unicodedata.category(c) in ("Cc", "Cf", "Cs") for c in text.replace("\n", ""))
        assert len(text) < 5000
    json.dumps(wording.alertmanager("small", message)).encode("utf-8")
    letter = wording.letter("small", MAIL, message, 1e9).as_bytes()
    read = email.message_from_bytes(letter, policy=email.policy.default)
    assert set(read.keys()) == {
        *("From", "To", "Subject", "Date", "Message-ID", "X-Mlops-Ray-Message", "Auto-Submitted"),
        *("Content-Type", "Content-Transfer-Encoding", "MIME-Version"),
    }
    assert "Bcc" not in read


def test_the_worst_comes_first_and_what_is_over_last() -> None:
    listed = (
        (Kind.RESOLVED, one("over", severity="critical")),
        (Kind.FIRING, one("mild", severity="info")),
        (Kind.FIRING, one("bad", severity="critical")),
    )
    said = wording.lines(Message("m1", "team", listed))
    assert [line.rpartition(": ")[2] for line in said] == ["bad", "mild", "over"]


@pytest.mark.parametrize(("kind", "status"), [(Kind.RESOLVED, "resolved"), (Kind.REPEATED, "firing")])
def test_alertmanager_knows_two_states(kind: Kind, status: str) -> None:
    body = wording.alertmanager("small", Message("m1", "team", ((kind, one("x")),)))
    assert (body["status"], body["alerts"][0]["status"]) == (status, status)
    assert body["alerts"][0]["annotations"]["notice"] == str(kind)
