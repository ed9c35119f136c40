"""The client for HTTP over a Unix socket: each answer that is not whole is a failure, and in time."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_twisted
from pytest_twisted import ensureDeferred
from twisted.internet import reactor
from twisted.internet.protocol import Factory, Protocol

from elemta.errors import PeerFailed
from elemta.ops import unix_http
from elemta.ops.unix_http import UnixAnswer, UnixHttp

NO_ANSWER = {
    "nothing": (b"", "it ended without an answer"),
    "no status": (b"HTTP/1.0\r\n\r\n", "it ended without an answer"),
    "no end of the header": (b"HTTP/1.0 200 OK\r\nServer: x", "it ended without an answer"),
    "less than it says": (b"HTTP/1.0 200 OK\r\nContent-Length: 3\r\n\r\nab", "its answer is cut short"),
    "a length that is none": (b"HTTP/1.0 200 OK\r\nContent-Length: x\r\n\r\nab", "its answer is cut short"),
    "too much": (b"HTTP/1.0 200 OK\r\n\r\n" + b"x" * 100, "its answer is too long"),
}


class Server(Factory):
    """Answers each request with ``answer``, or not at all."""

    noisy = False

    def __init__(self) -> None:
        self.answer: bytes | None = b""
        self.asked = b""

    def buildProtocol(self, addr: object) -> Protocol:
        return _Served(self)


class _Served(Protocol):
    def __init__(self, server: Server) -> None:
        self.server = server

    def dataReceived(self, data: bytes) -> None:
        self.server.asked += data
        if self.server.answer is not None:
            self.transport.write(self.server.answer)
            self.transport.loseConnection()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "s"


@pytest_twisted.async_yield_fixture
async def server(path: Path) -> AsyncIterator[Server]:
    server = Server()
    port = reactor.listenUNIX(str(path), server)
    yield server
    await port.stopListening()


async def ask(path: Path, seconds: float = 30.0) -> UnixAnswer:
    return await UnixHttp(path, reactor).request("GET", "/", headers={"x-a": "b"}, seconds=seconds)


@ensureDeferred
async def test_a_whole_answer_is_given_with_its_status(server: Server, path: Path) -> None:
    server.answer = b"HTTP/1.0 404 Not Found\r\ncontent-length:  2 \r\n\r\nno"
    assert await ask(path) == UnixAnswer(404, b"no")
    assert server.asked.startswith(b"GET / HTTP/1.0\r\n")
    assert b"\r\nx-a: b\r\n" in server.asked


@pytest.mark.parametrize("name", NO_ANSWER)
@ensureDeferred
async def test_what_is_no_whole_answer_is_a_failure(
    server: Server, path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setattr(unix_http, "MOST_OCTETS", 64)
    server.answer, words = NO_ANSWER[name]
    with pytest.raises(PeerFailed, match=words):
        await ask(path)


@ensureDeferred
async def test_a_server_that_says_nothing_is_waited_for_no_longer_than_was_said(
    server: Server, path: Path
) -> None:
    server.answer = None
    with pytest.raises(PeerFailed, match="no answer in time"):
        await ask(path, seconds=0.05)


@ensureDeferred
async def test_a_place_without_a_server_is_a_failure(path: Path) -> None:
    with pytest.raises(PeerFailed, match="it does not listen"):
        await ask(path)
    with pytest.raises(PeerFailed, match="it can't be asked"):
        await ask(path.parent / ("d" * 120) / "s")


@ensureDeferred
async def test_a_path_longer_than_a_socket_address_is_asked(server: Server, path: Path) -> None:
    server.answer = b"HTTP/1.0 200 OK\r\n\r\n"
    deep = path.parent / ("d" * 100) / ("e" * 100)
    deep.mkdir(parents=True)
    path.rename(deep / "s")
    assert await ask(deep / "s") == UnixAnswer(200, b"")
    # Twisted removes the file in the end.
    (deep / "s").rename(path)
