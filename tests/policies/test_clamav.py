"""clamd, scripted; tests/policies/real asks a real one."""

from __future__ import annotations

import struct

import pytest

from elemta.policies.clamav import ClamAVPlugin
from elemta.policy import CONTINUE, BackendError, Quarantine, Reject
from elemta.policy.testing import PolicyTester

ENDPOINT = "unix:/run/clamav/clamd.ctl"
MESSAGE = b"Subject: s\r\n\r\n" + b"line\r\n" * 50_000


class Clamd:
    """Reads INSTREAM and answers at its end."""

    def __init__(self, answer: bytes) -> None:
        self.answer, self.heard = answer, b""

    def __call__(self, data: bytes) -> bytes:
        self.heard += data
        return self.answer if self.heard.endswith(b"\0\0\0\0") else b""

    @property
    def stream(self) -> bytes:
        assert self.heard.startswith(b"zINSTREAM\0")
        rest, content = self.heard[10:], b""
        while True:
            (size,) = struct.unpack("!I", rest[:4])
            if size == 0:
                assert rest[4:] == b""
                return content
            content, rest = content + rest[4 : 4 + size], rest[4 + size :]


def policy(clamd, options=None) -> PolicyTester:
    asked = PolicyTester(ClamAVPlugin(), options, connections={ENDPOINT: clamd})
    asked.mail("a@example.org")
    asked.rcpt("b@example.com")
    return asked


def test_the_whole_message_is_sent_and_a_clean_one_passes():
    clamd = Clamd(b"stream: OK\0")
    asked = policy(clamd)
    assert asked.message(MESSAGE) == CONTINUE
    assert clamd.stream == MESSAGE
    assert asked.connections.open == 0


def test_a_virus_is_refused_and_named():
    asked = policy(Clamd(b"stream: Eicar-Test-Signature FOUND\0"))
    found = asked.message(MESSAGE)
    assert isinstance(found, Reject)
    assert (found.code, found.enhanced) == (554, "5.7.1")
    assert "Eicar-Test-Signature" in found.text


def test_a_virus_is_held_where_the_operator_says_so():
    assert isinstance(policy(Clamd(b"stream: X FOUND\0"), {"quarantine": True}).message(MESSAGE), Quarantine)


def test_the_name_of_a_virus_can_not_write_a_line_of_the_reply():
    found = policy(Clamd(b"stream: a\r\n250 fine FOUND\0")).message(MESSAGE)
    assert isinstance(found, Reject)
    assert "\r" not in found.text


def test_a_message_that_is_too_large_for_us_or_for_clamd_passes_unscanned():
    clamd = Clamd(b"INSTREAM size limit exceeded. ERROR\0")
    asked = policy(clamd)
    assert asked.message(MESSAGE) == CONTINUE
    untouched = Clamd(b"")
    asked = policy(untouched, {"max_size": "1KiB"})
    assert asked.message(MESSAGE) == CONTINUE
    assert untouched.heard == b""


@pytest.mark.parametrize(
    "clamd",
    [
        Clamd(b"stream: something ERROR\0"),
        Clamd(b"\0"),
        Clamd(b"x" * 5000),
        BackendError("nothing listens"),
        lambda _data: None,
    ],
)
def test_a_clamd_that_fails_is_a_failure_of_the_policy(clamd):
    asked = policy(clamd)
    with pytest.raises(BackendError):
        asked.message(MESSAGE)
    assert asked.connections.open == 0


def test_the_answer_counts_of_a_clamd_that_closes_before_it_has_read_all():
    asked = policy([b"INSTREAM size limit exceeded. ERROR\0"])
    assert asked.message(MESSAGE) == CONTINUE
    found = policy([b"stream: Elemta.Test FOUND\0"]).message(MESSAGE)
    assert isinstance(found, Reject)


def test_a_clamd_that_closes_without_an_answer_is_a_failure():
    with pytest.raises(BackendError):
        policy([b"stream: O"]).message(MESSAGE)
