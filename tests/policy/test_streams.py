"""Connections of policies: what is read, every bound, every deadline, and that nothing stays open."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_twisted
from pytest_twisted import ensureDeferred
from twisted.internet import reactor
from twisted.internet.defer import Deferred
from twisted.internet.protocol import Factory, Protocol
from twisted.protocols.policies import WrappingFactory

from elemta.errors import BackendError
from elemta.policy import streams
from elemta.policy.call_context import CallContext, calling
from elemta.policy.streams import StreamConnector, client_endpoint
from tests.support.waiting import until


class Peer(Protocol):
    """A service that answers what the test says."""

    def connectionMade(self) -> None:
        self.factory.peers.append(self)  # type: ignore[union-attr]
        self.got = b""
        self.over = False
        self.factory.greet(self)  # type: ignore[union-attr]

    def dataReceived(self, data: bytes) -> None:
        self.got += data

    def connectionLost(self, reason: Any = None) -> None:
        self.over = True


class Service:
    def __init__(self, path: Path) -> None:
        self.endpoint = f"unix:{path}"
        self.factory: Any = Factory.forProtocol(Peer)
        self.factory.peers = self.peers = []
        self.factory.greet = lambda peer: None
        self.port = reactor.listenUNIX(str(path), self.factory)  # type: ignore[attr-defined]
        self.connector = StreamConnector(reactor, 5.0)

    def greets(self, *data: bytes, close: bool = False) -> None:
        def greet(peer: Peer) -> None:
            for each in data:
                peer.transport.write(each)  # type: ignore[union-attr]
            if close:
                peer.transport.loseConnection()  # type: ignore[union-attr]

        self.factory.greet = greet


@pytest_twisted.async_yield_fixture
async def service(tmp_path: Path) -> AsyncIterator[Service]:
    service = Service(tmp_path / "s")
    yield service
    service.connector.close_all()
    for peer in service.peers:
        peer.transport.abortConnection()
    await service.port.stopListening()


@ensureDeferred
async def test_octets_lines_and_the_end(service: Service) -> None:
    service.greets(b"one\r\ntwo", b"\r\n12345678", close=True)
    stream = await service.connector(service.endpoint)
    assert await stream.read_until(b"\r\n", 100) == b"one\r\n"
    assert await stream.read_until(b"\r\n", 100) == b"two\r\n"
    assert await stream.read_exactly(4) == b"1234"
    assert await stream.read(3) == b"567"
    assert await stream.read(100) == b"8"
    assert await stream.read(100) == b""
    assert stream.closed
    with pytest.raises(BackendError):
        stream.write(b"x")
    assert service.connector.open == {}


@ensureDeferred
async def test_what_is_written_arrives_and_close_sends_all_of_it(service: Service) -> None:
    stream = await service.connector(service.endpoint)
    for _ in range(64):
        stream.write(b"x" * 65536)
        await stream.drain()
    await stream.close()
    await stream.close()
    await until(lambda: service.peers[0].over)
    assert len(service.peers[0].got) == 64 * 65536
    await until(lambda: not service.connector.open)


@pytest.mark.parametrize("data", [b"x" * 101, b"x" * 100 + b"\n", b"x" * 1000])
@ensureDeferred
async def test_an_answer_longer_than_its_limit_fails(service: Service, data: bytes) -> None:
    service.greets(data)
    stream = await service.connector(service.endpoint)
    with pytest.raises(BackendError, match="more than 100"):
        await stream.read_until(b"\n", 100)


@ensureDeferred
async def test_an_answer_as_long_as_its_limit_is_read(service: Service) -> None:
    service.greets(b"x" * 99 + b"\n")
    stream = await service.connector(service.endpoint)
    assert await stream.read_until(b"\n", 100) == b"x" * 99 + b"\n"


@ensureDeferred
async def test_an_end_within_an_answer_fails(service: Service) -> None:
    service.greets(b"half", close=True)
    for read in (lambda s: s.read_until(b"\n", 100), lambda s: s.read_exactly(5)):
        stream = await service.connector(service.endpoint)
        with pytest.raises(BackendError, match="within an answer"):
            await read(stream)


@ensureDeferred
async def test_a_silent_service_costs_the_deadline_and_the_next_read_still_works(service: Service) -> None:
    stream = await service.connector(service.endpoint)
    with pytest.raises(BackendError, match="no answer within"):
        await stream.read(1, timeout=0.05)
    with pytest.raises(BackendError, match="no answer within"):
        await stream.read_until(b"\n", 10, timeout=0.05)
    await until(lambda: service.peers)
    service.peers[0].transport.write(b"late\n")
    assert await stream.read_until(b"\n", 10) == b"late\n"


@ensureDeferred
async def test_no_wait_is_longer_than_the_call_has_left(service: Service) -> None:
    async def call() -> float:
        stream = await service.connector(service.endpoint)
        began = reactor.seconds()  # type: ignore[attr-defined]
        with pytest.raises(BackendError):
            await stream.read(1)
        return reactor.seconds() - began  # type: ignore[attr-defined,no-any-return]

    context = CallContext(reactor.seconds() + 0.3)  # type: ignore[attr-defined]
    with calling(context):
        calling_now = Deferred.fromCoroutine(call())
    assert 0.05 < await calling_now < 0.3
    assert context.backend_failed
    assert context.waits_for_backend == 0


@ensureDeferred
async def test_a_service_that_sends_without_end_is_not_read_from(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(streams, "MAX_UNREAD", 1000)
    service.greets(b"x" * 4_000_000)
    stream: Any = await service.connector(service.endpoint)
    first = await stream.read(1)
    total = len(first)
    await until(lambda: len(stream._protocol.buffer) > 1000)
    assert len(stream._protocol.buffer) < 1_000_000
    while total < 4_000_000:
        total += len(await stream.read(100_000))
    assert total == 4_000_000


@ensureDeferred
async def test_a_service_that_reads_nothing_does_not_fill_the_memory(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(streams, "MAX_UNSENT", 1_000_000)
    service.factory.greet = lambda peer: peer.transport.pauseProducing()
    stream = await service.connector(service.endpoint)
    await until(lambda: service.peers)

    def write_without_end() -> None:
        for _ in range(1000):
            stream.write(b"x" * 100_000)

    with pytest.raises(BackendError, match="not sent"):
        write_without_end()
    await until(lambda: not service.connector.open)


@ensureDeferred
async def test_drain_ends_within_its_deadline(service: Service) -> None:
    service.factory.greet = lambda peer: peer.transport.pauseProducing()
    stream = await service.connector(service.endpoint)
    await until(lambda: service.peers)
    for _ in range(20):
        stream.write(b"x" * 100_000)
    with pytest.raises(BackendError):
        await stream.drain(timeout=0.05)


@ensureDeferred
async def test_where_nothing_listens_connecting_fails(tmp_path: Path) -> None:
    connector = StreamConnector(reactor, 5.0)
    with pytest.raises(BackendError):
        await connector(f"unix:{tmp_path}/none")
    assert not connector.open


@pytest.mark.parametrize("text", ["", "nonsense", "tcp", "tcp:host", "smtp:1:2", "unix", "\0"])
@ensureDeferred
async def test_what_is_no_endpoint_is_an_error_of_its_own(text: str) -> None:
    with pytest.raises(ValueError, match="no client endpoint"):
        client_endpoint(reactor, text)
    with pytest.raises(ValueError, match="no client endpoint"):
        await StreamConnector(reactor, 5.0)(text)


@ensureDeferred
async def test_a_connection_that_an_endpoint_wraps_is_closed_and_fails(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Wrapping:
        def connect(self, factory: Any) -> Any:
            return client_endpoint(reactor, service.endpoint).connect(WrappingFactory(factory))

    monkeypatch.setattr(streams, "client_endpoint", lambda _reactor, _text: Wrapping())
    with pytest.raises(BackendError, match="wraps"):
        await service.connector(service.endpoint)
    await until(lambda: len(service.peers) == 1 and service.peers[0].over)
    assert not service.connector.open


@ensureDeferred
async def test_connections_have_a_bound(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streams, "MOST_STREAMS", 2)
    kept = [await service.connector(service.endpoint) for _ in range(2)]
    with pytest.raises(BackendError, match="already"):
        await service.connector(service.endpoint)
    await kept[0].close()
    await until(lambda: len(service.connector.open) < 2)
    await service.connector(service.endpoint)


@ensureDeferred
async def test_two_reads_at_a_time_are_a_fault_and_cancelling_one_frees_the_place(service: Service) -> None:
    stream = await service.connector(service.endpoint)
    first = Deferred.fromCoroutine(stream.read(1))
    with pytest.raises(RuntimeError):
        await stream.read(1)
    failures: list[Any] = []
    first.addErrback(failures.append)
    first.cancel()
    assert failures
    await until(lambda: service.peers)
    service.peers[0].transport.write(b"x")
    assert await stream.read(1) == b"x"
