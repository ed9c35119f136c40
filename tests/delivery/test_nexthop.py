"""The shell of a next-hop connection: its deadlines by a clock of the test's, and its back-pressure."""

from __future__ import annotations

import io
from dataclasses import dataclass, field
from typing import BinaryIO

import pytest
from twisted.internet.error import ConnectionDone
from twisted.internet.task import Clock
from twisted.internet.testing import StringTransport
from twisted.python.failure import Failure

from elemta.address import Address
from elemta.delivery import DeliverySettings
from elemta.delivery.client_protocol import NextHopConnection
from elemta.delivery.movable_deadline import READING_SECONDS
from elemta.envelope import MailParameters, Recipient
from elemta.errors import SpoolError
from elemta.outcome import Outcome, Status
from elemta.smtp.client import ClientSettings
from elemta.smtp.client_commands import ClientTransaction

CONTENT = b"Subject: x\r\n\r\nhello\r\n"
GOOD = [b"220 hi\r\n", b"250 hop\r\n", b"250 ok\r\n", b"250 ok\r\n", b"354 go\r\n"]


@dataclass
class Wire:
    """A connection over a transport in memory."""

    content: bytes = CONTENT
    size: int = len(CONTENT)
    chunk: int = 65536
    fails: Exception | None = None
    results: list[tuple[Outcome, ...]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.clock = Clock()
        self.transport = Transport()
        recipients = (Recipient(Address("bob", "example.com")),)
        transaction = ClientTransaction(Address("a", "b.example"), recipients, MailParameters(), self.size)
        self.connection = NextHopConnection(
            self.clock,
            ClientSettings("me.example"),
            None,
            name="hop",
            lifetime=DeliverySettings("me.example").lifetime,
            read=self._read,
        )
        self.connection.makeConnection(self.transport)
        self.send(transaction)

    def send(self, transaction: ClientTransaction) -> None:
        sent = self.connection.send(transaction, self._open)
        sent.addCallback(self.results.append)

    async def _open(self) -> BinaryIO:
        if self.fails is not None:
            raise self.fails
        return io.BytesIO(self.content)

    async def _read(self, content: BinaryIO) -> bytes:
        return content.read(self.chunk)

    def hear(self, *wires: bytes) -> Wire:
        for wire in wires:
            self.connection.dataReceived(wire)
        return self

    def lose(self) -> None:
        self.connection.connectionLost(Failure(ConnectionDone()))

    @property
    def status(self) -> Status:
        ((result,),) = self.results[-1:]
        return result.status


class Transport(StringTransport):
    aborted = False

    def abortConnection(self) -> None:
        self.aborted = True


@pytest.mark.parametrize(("step", "seconds"), [(0, 300), (1, 300), (2, 300), (3, 300), (4, 120), (5, 600)])
def test_a_next_hop_that_stalls_is_given_up_at_its_deadline_and_not_before(step: int, seconds: float) -> None:
    wire = Wire()
    for good in GOOD[:step]:
        wire.clock.advance(20)
        wire.hear(good)
    wire.clock.advance(seconds - 0.1)
    assert not wire.results
    wire.clock.advance(0.2)
    assert wire.status is Status.DEFERRED
    assert wire.transport.disconnecting
    wire.lose()
    assert not wire.clock.getDelayedCalls()


def test_a_reply_that_comes_by_drops_gains_no_time() -> None:
    wire = Wire()
    for _ in range(29):
        wire.hear(b"220-x\r\n")
        wire.clock.advance(10)
    assert not wire.results
    wire.clock.advance(20)
    wire.clock.advance(READING_SECONDS)
    assert wire.status is Status.DEFERRED


def test_a_next_hop_that_takes_a_chunk_now_and_then_keeps_its_message_and_one_that_stops_does_not() -> None:
    wire = Wire(content=CONTENT * 100, size=len(CONTENT) * 100, chunk=100)
    wire.hear(*GOOD[:4])
    wire.connection.pauseProducing()
    wire.hear(GOOD[4])
    for _ in range(5):
        written = len(wire.transport.value())
        wire.clock.advance(179)
        wire.connection.resumeProducing()
        assert len(wire.transport.value()) > written
        if wire.transport.value().endswith(b"\r\n.\r\n"):
            break
        wire.connection.pauseProducing()
    wire = Wire(content=CONTENT * 100, size=len(CONTENT) * 100, chunk=100)
    wire.hear(*GOOD[:4])
    wire.connection.pauseProducing()
    wire.hear(GOOD[4])
    wire.clock.advance(181)
    wire.clock.advance(READING_SECONDS)
    assert wire.status is Status.DEFERRED
    assert not wire.transport.value().endswith(b"\r\n.\r\n")


def test_no_more_than_a_chunk_is_read_ahead_of_a_transport_that_is_full() -> None:
    wire = Wire(content=CONTENT * 100, size=len(CONTENT) * 100, chunk=100)
    wire.hear(*GOOD[:4])
    wire.transport.clear()
    wire.connection.pauseProducing()
    wire.hear(GOOD[4])
    assert 0 < len(wire.transport.value()) <= 100
    wire.connection.resumeProducing()
    assert wire.transport.value().endswith(b"\r\n.\r\n")


def test_a_connection_that_is_lost_while_the_transport_is_full_ends_the_sending() -> None:
    wire = Wire(content=CONTENT * 100, size=len(CONTENT) * 100, chunk=100)
    wire.hear(*GOOD[:4])
    wire.connection.pauseProducing()
    wire.hear(GOOD[4])
    wire.lose()
    assert wire.status is Status.DEFERRED
    assert not wire.clock.getDelayedCalls()


def test_a_message_that_was_cut_short_on_the_disk_is_never_ended() -> None:
    wire = Wire(size=len(CONTENT) + 1).hear(*GOOD)
    assert wire.status is Status.DEFERRED
    assert not wire.transport.value().endswith(b"\r\n.\r\n")
    assert wire.transport.disconnecting


def test_a_message_that_cannot_be_read_is_never_ended() -> None:
    wire = Wire(fails=SpoolError("the disk says no")).hear(*GOOD)
    assert wire.status is Status.DEFERRED
    assert "the disk says no" in wire.results[0][0].text
    assert not wire.transport.value().endswith(b".\r\n")


def test_the_result_does_not_wait_for_the_goodbye_and_the_goodbye_does_not_wait_long() -> None:
    wire = Wire().hear(*GOOD, b"250 ok\r\n")
    assert wire.status is Status.DELIVERED
    # Between transactions there is no deadline.
    wire.clock.advance(100_000.0)
    assert wire.connection.idle
    wire.connection.quit()
    assert wire.transport.value().endswith(b"QUIT\r\n")
    assert not wire.transport.disconnecting
    wire.clock.advance(5.1)
    assert wire.transport.disconnecting
    wire.clock.advance(5.1)
    assert wire.transport.aborted


def test_a_transaction_as_a_whole_has_an_end() -> None:
    wire = Wire().hear(*GOOD[:2])
    for _ in range(23):
        wire.clock.advance(290)
        wire.connection._session._state.progress += 1
        wire.connection._flush()
    assert not wire.results
    wire.clock.advance(290)
    wire.connection._session._state.progress += 1
    wire.connection._flush()
    wire.clock.advance(290)
    wire.clock.advance(READING_SECONDS)
    assert wire.status is Status.DEFERRED


def test_the_next_message_goes_over_the_same_connection_and_has_its_own_time() -> None:
    wire = Wire().hear(*GOOD, b"250 ok\r\n")
    wire.clock.advance(7000)
    wire.transport.clear()
    recipients = (Recipient(Address("eve", "example.com")),)
    wire.send(ClientTransaction(Address("a", "b.example"), recipients, MailParameters(), len(CONTENT)))
    assert wire.transport.value() == b"MAIL FROM:<a@b.example>\r\n"
    wire.clock.advance(290)
    wire.hear(*GOOD[2:], b"250 ok\r\n")
    assert [each.status for (each,) in wire.results] == [Status.DELIVERED] * 2
    assert wire.connection.served == 2


def test_what_a_next_hop_says_while_it_has_nothing_to_say_ends_the_connection() -> None:
    wire = Wire().hear(*GOOD, b"250 ok\r\n")
    wire.hear(b"421 4.4.2 idle for too long\r\n")
    assert not wire.connection.idle
    assert wire.transport.disconnecting


def test_chunks_wait_for_the_replies_to_those_before() -> None:
    content = b"x" * 998 + b"\r\n"
    wire = Wire(content=content * 2000, size=len(content) * 2000)
    wire.hear(GOOD[0], b"250-hop\r\n250 CHUNKING\r\n", *GOOD[2:4])
    assert wire.transport.value().count(b"BDAT ") == 1
    for sent in range(2, 9):
        wire.hear(b"250 ok\r\n")
        assert wire.transport.value().count(b"BDAT ") == min(sent, 8)
    assert b" LAST\r\n" in wire.transport.value()
    wire.hear(b"250 ok\r\n")
    assert wire.status is Status.DELIVERED


def test_a_connection_that_is_lost_while_a_chunk_waits_ends_the_sending() -> None:
    content = b"x" * 998 + b"\r\n"
    wire = Wire(content=content * 2000, size=len(content) * 2000)
    wire.hear(GOOD[0], b"250-hop\r\n250 CHUNKING\r\n", *GOOD[2:4])
    wire.lose()
    assert wire.status is Status.DEFERRED
    assert not wire.clock.getDelayedCalls()


def test_a_next_hop_that_answers_no_chunk_is_given_up() -> None:
    content = b"x" * 998 + b"\r\n"
    wire = Wire(content=content * 2000, size=len(content) * 2000)
    wire.hear(GOOD[0], b"250-hop\r\n250 CHUNKING\r\n", *GOOD[2:4])
    wire.clock.advance(181)
    assert wire.status is Status.DEFERRED
    assert b" LAST" not in wire.transport.value()
