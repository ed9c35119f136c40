"""What a message takes on a connection that is kept: writes, and functions. No busy machine changes these."""

from __future__ import annotations

import pytest

from elemta.outcome import Status
from tests.support.calls import calls
from tests.support.hops import CONTENT
from tests.support.kept import GO, OK, Kept

STUFFED = CONTENT.replace(b"\r\n.", b"\r\n..")
MOST_CALLS = 125
"""The most functions of Elemta for a message, from its envelope to its outcome."""


@pytest.mark.parametrize("recipients", [("bob",), ("anna", "bob", "carl")])
def test_the_envelope_is_one_write_and_the_content_the_other(recipients: tuple[str, ...]) -> None:
    kept = Kept("PIPELINING").after_the_first(OK, OK, GO, OK)
    kept.send(*recipients)
    rcpts = "".join(f"RCPT TO:<{each}@example.com>\r\n" for each in recipients)
    assert kept.wire.writes == [f"MAIL FROM:<a@b.example>\r\n{rcpts}DATA\r\n".encode()]
    kept.say(OK, *[OK] * len(recipients), GO)
    assert kept.wire.writes[1:] == [STUFFED + b".\r\n"]
    kept.say(OK)
    assert [end.status for end in kept.ends] == [Status.DELIVERED] * len(recipients)
    assert len(kept.wire.writes) == 2


def test_so_it_is_however_the_replies_are_cut() -> None:
    kept = Kept("PIPELINING").after_the_first(OK, OK, GO, OK)
    kept.send("bob")
    for octet in f"{OK}\r\n{OK}\r\n{GO}\r\n{OK}\r\n".encode():
        kept.connection.dataReceived(bytes([octet]))
    assert [end.status for end in kept.ends] == [Status.DELIVERED]
    assert len(kept.wire.writes) == 2


def test_with_chunks_the_content_is_one_write_with_its_command() -> None:
    kept = Kept("PIPELINING", "CHUNKING").after_the_first(OK, OK, OK)
    kept.send("anna", "bob")
    kept.say(OK, OK, OK)
    kept.say(OK)
    envelope = b"MAIL FROM:<a@b.example>\r\nRCPT TO:<anna@example.com>\r\nRCPT TO:<bob@example.com>\r\n"
    assert kept.wire.writes == [envelope, b"BDAT %d LAST\r\n%s" % (len(CONTENT), CONTENT)]
    assert [end.status for end in kept.ends] == [Status.DELIVERED] * 2


def test_a_server_that_refuses_the_recipients_gets_no_content() -> None:
    kept = Kept("PIPELINING", "CHUNKING").after_the_first(OK, OK, OK)
    kept.send("bob")
    kept.say(OK, "550 5.1.1 unknown")
    assert [end.status for end in kept.ends] == [Status.FAILED]
    assert len(kept.wire.writes) == 1


def test_only_content_of_more_than_a_chunk_takes_a_producer() -> None:
    for content, producers in ((b"x" * 60_000 + b"\r\n", 0), (b"x\r\n" * 50_000, 1)):
        kept = Kept("PIPELINING", content=content)
        kept.after_the_first(OK, OK, GO, OK)
        assert kept.wire.producers == producers


def test_a_message_takes_few_calls() -> None:
    kept = Kept("PIPELINING").after_the_first(OK, OK, GO, OK)

    def one_message() -> None:
        kept.send("bob")
        kept.say(OK, OK, GO)
        kept.say(OK)

    count = calls(one_message)
    assert [end.status for end in kept.ends] == [Status.DELIVERED]
    assert count <= MOST_CALLS, count
