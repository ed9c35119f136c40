"""Replies written straight to a real socket: at once where that works, and in order always."""

from __future__ import annotations

import socket
import ssl
from collections.abc import AsyncIterator, Awaitable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from pytest_twisted import ensureDeferred
from twisted.internet import reactor
from twisted.internet.defer import Deferred
from twisted.internet.endpoints import TCP4ServerEndpoint, UNIXServerEndpoint
from twisted.internet.interfaces import IPushProducer, IStreamServerEndpoint
from twisted.internet.protocol import Factory, Protocol, connectionDone
from twisted.internet.task import deferLater
from twisted.internet.threads import deferToThread
from twisted.python.failure import Failure
from zope.interface import implementer

from elemta.config import TLSConfig
from elemta.directwrite import write_at_once
from elemta.net.tls import ServerCertificate, load_context
from tests.support.certificates import make_certificate


@implementer(IPushProducer)
class Talker(Protocol):
    """A server's side that notes what its transport tells it."""

    def __init__(self) -> None:
        self.made: Deferred[Talker] = Deferred()
        self.lost: Deferred[None] = Deferred()
        self.losses = 0
        self.received = b""
        self.told: list[str] = []

    def connectionMade(self) -> None:
        self.transport.registerProducer(self, True)
        self.made.callback(self)

    def dataReceived(self, data: bytes) -> None:
        self.received += data

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        self.losses += 1
        if self.losses == 1:
            self.lost.callback(None)

    def pauseProducing(self) -> None:
        self.told.append("pause")

    def resumeProducing(self) -> None:
        self.told.append("resume")

    def stopProducing(self) -> None:
        self.told.append("stop")


@asynccontextmanager
async def talking(endpoint: IStreamServerEndpoint) -> AsyncIterator[tuple[Talker, socket.socket]]:
    """A talker, and the client's blocking socket to it."""
    talker = Talker()
    port = await endpoint.listen(Factory.forProtocol(lambda: talker))
    address = port.getHost()
    if hasattr(address, "port"):
        client = socket.create_connection(("127.0.0.1", address.port), timeout=90)
    else:
        client = socket.socket(socket.AF_UNIX)
        client.settimeout(10)
        client.connect(address.name)
    try:
        await talker.made
        yield talker, client
    finally:
        client.close()
        talker.transport.abortConnection()
        if not talker.losses:
            await talker.lost
        await port.stopListening()


def over_tcp() -> IStreamServerEndpoint:
    return TCP4ServerEndpoint(reactor, 0, interface="127.0.0.1")


@pytest.fixture(params=["TCP", "Unix"])
def endpoint(request: pytest.FixtureRequest, tmp_path: Path) -> IStreamServerEndpoint:
    return over_tcp() if request.param == "TCP" else UNIXServerEndpoint(reactor, str(tmp_path / "s"))


def turns(seconds: float = 0.02) -> Awaitable[None]:
    return deferLater(reactor, seconds)


def read_all(client: socket.socket, octets: int) -> bytes:
    parts = []
    while octets > 0:
        part = client.recv(min(octets, 65536))
        if not part:
            break
        parts.append(part)
        octets -= len(part)
    return b"".join(parts)


def on_the_wire(client: socket.socket) -> bytes:
    """What has arrived by now, without a turn of the reactor."""
    client.settimeout(0)
    try:
        return client.recv(100)
    except BlockingIOError:
        return b""
    finally:
        client.settimeout(10)


@ensureDeferred
async def test_a_reply_has_left_before_the_reactor_turns(endpoint: IStreamServerEndpoint) -> None:
    async with talking(endpoint) as (talker, client):
        write_at_once(talker.transport, b"250 first\r\n")
        write_at_once(talker.transport, b"250 second\r\n")
        assert on_the_wire(client) == b"250 first\r\n250 second\r\n"
        assert talker.told == []


@ensureDeferred
async def test_what_the_socket_does_not_take_follows_in_order_and_the_producer_is_told(
    endpoint: IStreamServerEndpoint,
) -> None:
    async with talking(endpoint) as (talker, client):
        pieces = [b"%06d" % number + b"x" * 9994 for number in range(2000)]
        for piece in pieces:
            write_at_once(talker.transport, piece)
        assert set(talker.told) == {"pause"}
        got = await deferToThread(read_all, client, sum(map(len, pieces)))
        assert got == b"".join(pieces)
        await turns()
        assert talker.told[-1] == "resume"
        assert talker.told.count("resume") == 1
        write_at_once(talker.transport, b"250 again\r\n")
        assert on_the_wire(client) == b"250 again\r\n"


@ensureDeferred
async def test_one_write_larger_than_the_socket_takes_arrives_whole(endpoint: IStreamServerEndpoint) -> None:
    async with talking(endpoint) as (talker, client):
        data = bytes(range(256)) * 40_000
        write_at_once(talker.transport, data)
        assert await deferToThread(read_all, client, len(data)) == data


@ensureDeferred
async def test_a_reply_behind_what_waits_does_not_overtake_it(endpoint: IStreamServerEndpoint) -> None:
    async with talking(endpoint) as (talker, client):
        talker.transport.write(b"220 waits\r\n")
        write_at_once(talker.transport, b"250 behind\r\n")
        assert on_the_wire(client) == b""
        await turns()
        assert on_the_wire(client) == b"220 waits\r\n250 behind\r\n"


@ensureDeferred
async def test_a_close_right_behind_a_reply_loses_none_of_it(endpoint: IStreamServerEndpoint) -> None:
    async with talking(endpoint) as (talker, client):
        data = b"421 bye\r\n" * 500_000
        write_at_once(talker.transport, data)
        talker.transport.unregisterProducer()
        talker.transport.loseConnection()
        assert await deferToThread(read_all, client, len(data) + 1) == data
        await talker.lost


@ensureDeferred
async def test_a_client_that_went_away_is_found_by_the_reactor_and_reported_once(
    endpoint: IStreamServerEndpoint,
) -> None:
    async with talking(endpoint) as (talker, client):
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        client.close()
        write_at_once(talker.transport, b"250 to nobody\r\n")
        write_at_once(talker.transport, b"250 to nobody\r\n")
        assert talker.losses == 0
        await talker.lost
        write_at_once(talker.transport, b"250 too late\r\n")
        await turns()
        assert talker.losses == 1


@pytest.mark.filterwarnings("ignore:Passing pyOpenSSL:DeprecationWarning")
@ensureDeferred
async def test_over_tls_nothing_leaves_in_the_clear(tmp_path: Path) -> None:
    files = make_certificate(tmp_path)
    context = load_context(TLSConfig(certificate=str(files.certificate), private_key=str(files.key)))
    assert context is not None
    async with talking(over_tcp()) as (talker, client):
        write_at_once(talker.transport, b"220 go ahead\r\n")
        talker.transport.startTLS(ServerCertificate(context).handshake())
        write_at_once(talker.transport, b"250 secret\r\n")
        assert on_the_wire(client) == b"220 go ahead\r\n"

        def read_over_tls() -> bytes:
            trusting = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
            trusting.check_hostname = False
            trusting.verify_mode = ssl.CERT_NONE
            with trusting.wrap_socket(client, server_hostname="mx.example.test") as wrapped:
                return wrapped.recv(100)

        assert await deferToThread(read_over_tls) == b"250 secret\r\n"
