"""A connection to a next hop that a message went over already, without a network."""

from __future__ import annotations

import io
from typing import BinaryIO

from twisted.internet.defer import Deferred
from twisted.internet.error import ConnectionLost
from twisted.internet.task import Clock
from twisted.internet.testing import StringTransport
from twisted.python.failure import Failure

from elemta.delivery.client_protocol import NextHopConnection
from elemta.outcome import Outcome, Status
from elemta.smtp.client import ClientSettings
from elemta.spool.content import MemoryContent
from tests.support.hops import CONTENT, message, read

OK, GO = "250 2.0.0 ok", "354 go on"


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
    """A connection that a message went over, and what is written from then on.

    ``opening`` and ``reading`` are what the content waits for before it is opened, and before it is read.
    """

    def __init__(self, *offers: str, lmtp: bool = False, content: bytes = CONTENT) -> None:
        self.wire = Wire()
        self.clock = Clock()
        self.content = content
        self.opening: Deferred[None] | None = None
        self.reading: Deferred[None] | None = None
        self.opened: list[io.BytesIO] = []
        settings = ClientSettings("me.example", lmtp=lmtp)
        self.connection = NextHopConnection(
            self.clock, settings, None, name="hop.example", lifetime=7200.0, read=self._read
        )
        self.connection.makeConnection(self.wire)
        lines = ["hop.example", *offers]
        hello = [f"250-{line}" for line in lines[:-1]] + [f"250 {lines[-1]}"]
        self.say("220 hop.example ESMTP")
        self.ends: list[Outcome] = []
        self.send("bob")
        self.say(*hello)

    async def open_content(self) -> io.BytesIO:
        if self.opening is not None:
            await self.opening
        self.opened.append(MemoryContent(self.content))
        return self.opened[-1]

    async def _read(self, content: BinaryIO) -> bytes:
        if self.reading is not None:
            await self.reading
        return await read(content)

    def send(self, *recipients: str) -> None:
        transaction = message(*recipients, size=len(self.content))
        self.connection.send(transaction, self.open_content).addCallback(self.ends.extend)

    def say(self, *lines: str) -> None:
        """The next hop says this, all of it at once."""
        self.connection.dataReceived("".join(f"{line}\r\n" for line in lines).encode())

    def lose(self) -> None:
        self.connection.connectionLost(Failure(ConnectionLost()))

    @property
    def statuses(self) -> list[Status]:
        """What became of the recipients that were sent to since the first message."""
        return [end.status for end in self.ends]

    def after_the_first(self, *replies: str) -> Kept:
        for reply in replies:
            self.say(reply)
        assert [end.status for end in self.ends] == [Status.DELIVERED]
        assert self.connection.idle
        self.wire.writes.clear()
        self.ends.clear()
        return self
