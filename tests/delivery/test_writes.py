"""What a message takes on a connection that is kept: writes, and functions. No busy machine changes these."""

from __future__ import annotations

import io
import sys
from collections.abc import Callable
from pathlib import Path
from types import FrameType

import pytest
from twisted.internet.task import Clock
from twisted.internet.testing import StringTransport

import elemta
from elemta.delivery.client_protocol import NextHopConnection
from elemta.outcome import Outcome, Status
from elemta.smtp.client import ClientSettings
from elemta.spool.content import MemoryContent
from tests.support.hops import CONTENT, message, read

HERE = str(Path(elemta.__file__).parent)
STUFFED = CONTENT.replace(b"\r\n.", b"\r\n..")
MOST_CALLS = 125
"""The most functions of Elemta for a message, from its envelope to its outcome."""


class Wire(StringTransport):
    """Keeps each write apart."""

    def __init__(self) -> None:
        super().__init__()
        self.writes: list[bytes] = []
        self.producers = 0

    def write(self, data: bytes) -> None:
        self.writes.append(data)

    def registerProducer(self, producer: object, streaming: bool) -> None:
        super().registerProducer(producer, streaming)
        self.producers += 1


class Kept:
    """A connection that a message went over, and what is written from then on."""

    def __init__(self, *offers: str, lmtp: bool = False, content: bytes = CONTENT) -> None:
        self.wire = Wire()
        self.content = content
        settings = ClientSettings("me.example", lmtp=lmtp)
        self.connection = NextHopConnection(
            Clock(), settings, None, name="hop.example", lifetime=7200.0, read=read
        )
        self.connection.makeConnection(self.wire)
        lines = ["hop.example", *offers]
        hello = [f"250-{line}" for line in lines[:-1]] + [f"250 {lines[-1]}"]
        self.say("220 hop.example ESMTP")
        self.ends: list[Outcome] = []
        self.send("bob")
        self.say(*hello)

    async def open_content(self) -> io.BytesIO:
        return MemoryContent(self.content)

    def send(self, *recipients: str) -> None:
        transaction = message(*recipients, size=len(self.content))
        self.connection.send(transaction, self.open_content).addCallback(self.ends.extend)

    def say(self, *lines: str) -> None:
        """The next hop says this, all of it at once."""
        self.connection.dataReceived("".join(f"{line}\r\n" for line in lines).encode())

    def after_the_first(self, *replies: str) -> Kept:
        for reply in replies:
            self.say(reply)
        assert [end.status for end in self.ends] == [Status.DELIVERED]
        assert self.connection.idle
        self.wire.writes.clear()
        self.ends.clear()
        return self


OK, GO = "250 2.0.0 ok", "354 go on"


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


def calls(work: Callable[[], object]) -> int:
    """How many functions of Elemta run in ``work()``."""
    count = 0

    def note(frame: FrameType, event: str, _: object) -> None:
        nonlocal count
        count += event == "call" and frame.f_code.co_filename.startswith(HERE)

    sys.setprofile(note)
    try:
        work()
    finally:
        sys.setprofile(None)
    return count


def test_a_message_takes_few_calls() -> None:
    kept = Kept("PIPELINING").after_the_first(OK, OK, GO, OK)

    def one_message() -> None:
        kept.send("bob")
        kept.say(OK, OK, GO)
        kept.say(OK)

    count = calls(one_message)
    assert [end.status for end in kept.ends] == [Status.DELIVERED]
    assert count <= MOST_CALLS, count
