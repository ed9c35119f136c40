"""Turns of the reactor without a log context do what Twisted's own do."""

from __future__ import annotations

import socket
import sys
import time
from collections.abc import Iterator
from typing import Any

import pytest
from twisted.internet.base import ReactorBase
from twisted.internet.endpoints import TCP4ServerEndpoint
from twisted.internet.protocol import Factory, Protocol
from twisted.internet.selectreactor import SelectReactor
from twisted.logger import LogEvent
from twisted.python import context, log

from elemta.runtime import Runtime

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="epoll is Linux")


@pytest.fixture
def reactor() -> Iterator[ReactorBase]:
    """A reactor of its own. Its ports and connections are closed with the test: nothing else would."""
    from twisted.internet.epollreactor import EPollReactor

    reactor = EPollReactor()
    yield reactor
    reactor.disconnectAll()


class Echo(Protocol):
    """Answers each line in capitals, breaks at ``raise``, and closes another connection at ``close``."""

    open: list[Echo]
    systems: list[Any]

    def connectionMade(self) -> None:
        self.open.append(self)

    def dataReceived(self, data: bytes) -> None:
        self.systems.append(context.get(log.ILogContext).get("system"))
        if data == b"raise":
            raise RuntimeError("a fault of this protocol")
        if data == b"close":
            for each in self.open:
                each.transport.abortConnection()
        self.transport.write(data.upper())


def served(reactor: ReactorBase) -> tuple[type[Echo], int]:
    class OwnEcho(Echo):
        open: list[Echo] = []
        systems: list[Any] = []

    ports: list[Any] = []
    TCP4ServerEndpoint(reactor, 0, interface="127.0.0.1").listen(Factory.forProtocol(OwnEcho)).addCallback(
        ports.append
    )
    return OwnEcho, ports[0].getHost().port


def turn_until(reactor: ReactorBase, done: Any) -> None:
    until = time.monotonic() + 30
    while not done():
        assert time.monotonic() < until
        reactor.iterate(0.01)


def said(reactor: ReactorBase, client: socket.socket) -> bytes:
    found: list[bytes] = []

    def look() -> bool:
        try:
            found.append(client.recv(100))
        except BlockingIOError:
            return False
        return True

    turn_until(reactor, look)
    return found[0]


def connected(port: int) -> socket.socket:
    client = socket.create_connection(("127.0.0.1", port), 30)
    client.setblocking(False)
    return client


def test_sockets_are_served_without_a_context_of_the_old_log(reactor: ReactorBase) -> None:
    Runtime.system(reactor)
    echo, port = served(reactor)
    with connected(port) as one, connected(port) as two:
        one.send(b"one")
        two.send(b"two")
        assert (said(reactor, one), said(reactor, two)) == (b"ONE", b"TWO")
    assert echo.systems == [context.get(log.ILogContext).get("system")] * 2


def test_a_protocol_that_raises_loses_its_own_connection_and_is_logged(
    reactor: ReactorBase,
    unhandled_errors: list[LogEvent],
) -> None:
    Runtime.system(reactor)
    _, port = served(reactor)
    with connected(port) as one, connected(port) as two:
        one.send(b"raise")
        assert said(reactor, one) == b""
        two.send(b"two")
        assert said(reactor, two) == b"TWO"
    (logged,) = unhandled_errors
    assert logged["failure"].getErrorMessage() == "a fault of this protocol"
    unhandled_errors.clear()


def test_what_is_ready_and_was_closed_meanwhile_is_left_out(reactor: ReactorBase) -> None:
    Runtime.system(reactor)
    echo, port = served(reactor)
    with connected(port) as one, connected(port) as two:
        turn_until(reactor, lambda: len(echo.open) == 2)
        one.send(b"close")
        two.send(b"close")
        for client in (one, two):
            with pytest.raises(ConnectionResetError):
                said(reactor, client)
    assert len(echo.systems) == 1


def test_other_reactors_stay_as_they_are() -> None:
    reactor = SelectReactor()
    Runtime.system(reactor)
    assert "doIteration" not in vars(reactor)
