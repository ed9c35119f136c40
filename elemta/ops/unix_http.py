"""A client for HTTP over a Unix socket: one request a connection, with bounds on its time and its answer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from twisted.internet.base import ReactorBase
from twisted.internet.defer import Deferred
from twisted.internet.defer import TimeoutError as OutOfTime
from twisted.internet.interfaces import IReactorUNIX
from twisted.internet.protocol import ClientFactory, Protocol, connectionDone
from twisted.python.failure import Failure

from elemta.errors import PeerFailed
from elemta.socket_path import SocketPath

MOST_OCTETS = 64 * 1024 * 1024
"""The octets of the longest answer: that of a page of the largest messages."""


@dataclass(frozen=True, slots=True)
class UnixAnswer:
    """An answer: its status and its body."""

    status: int
    body: bytes


class UnixHttp:
    """Asks the server at ``path``."""

    def __init__(self, path: Path, reactor: ReactorBase) -> None:
        self._path = path
        self._reactor = reactor

    def request(
        self, method: str, uri: str, body: bytes = b"", *, headers: Mapping[str, str], seconds: float
    ) -> Deferred[UnixAnswer]:
        """One request. Fails with PeerFailed where there is no whole answer within so many seconds."""
        # RFC 9112 §9.3: HTTP/1.0, so that the end of the connection is the end of the answer.
        lines = [
            f"{method} {uri} HTTP/1.0",
            "Host: localhost",
            f"Content-Length: {len(body)}",
            *(f"{name}: {value}" for name, value in headers.items()),
        ]
        sent = "".join(f"{line}\r\n" for line in (*lines, "")).encode("latin-1", "replace") + body
        answer: Deferred[UnixAnswer] = Deferred(lambda _: exchange.cancel())
        exchange = _Exchange(sent, answer)
        try:
            self._connect(exchange, seconds)
        except OSError as error:
            exchange.fail(f"it can't be asked: {error.strerror or error}")
        return answer.addTimeout(seconds, self._reactor).addErrback(_out_of_time)

    def _connect(self, exchange: _Exchange, seconds: float) -> None:
        exchange.place = SocketPath(self._path)
        exchange.connector = IReactorUNIX(self._reactor).connectUNIX(
            exchange.place.text, exchange, timeout=seconds
        )


class _Exchange(ClientFactory):
    """One request and its answer."""

    noisy = False

    def __init__(self, sent: bytes, answer: Deferred[UnixAnswer]) -> None:
        self.connector: Any = None
        self.place: SocketPath | None = None
        self.sent = sent
        self._answer: Deferred[UnixAnswer] | None = answer
        self._parts: list[bytes] = []
        self._size = 0

    def doStop(self) -> None:
        """The connection has ended, or there is none."""
        super().doStop()  # type: ignore[no-untyped-call]
        if self.place is not None:
            self.place.close()

    def buildProtocol(self, addr: object) -> Protocol:  # noqa: ARG002
        return _Connection(self)

    def clientConnectionFailed(self, connector: object, reason: Failure) -> None:  # noqa: ARG002
        self.fail(f"it does not listen: {reason.getErrorMessage()}")

    def cancel(self) -> None:
        """Ask no longer; the Deferred fails by itself."""
        self._answer = None
        if self.connector is not None:
            self.connector.disconnect()

    def fail(self, problem: str) -> None:
        """There is no answer."""
        answer, self._answer = self._answer, None
        if answer is not None:
            answer.errback(PeerFailed(problem))

    def take(self, data: bytes) -> bool:
        """Some of the answer; False where it is too long."""
        self._parts.append(data)
        self._size += len(data)
        if self._size > MOST_OCTETS:
            self.fail("its answer is too long")
        return self._answer is not None

    def ended(self) -> None:
        """The server has closed the connection."""
        head, separator, body = b"".join(self._parts).partition(b"\r\n\r\n")
        first, *fields = head.split(b"\r\n")
        words = first.split(b" ", 2)
        if not separator or len(words) < 2 or not words[1].isdigit():
            self.fail("it ended without an answer")
            return
        lengths = [each[15:].strip() for each in fields if each.lower().startswith(b"content-length:")]
        if lengths and lengths[-1] != b"%d" % len(body):
            self.fail("its answer is cut short")
            return
        answer, self._answer = self._answer, None
        if answer is not None:
            answer.callback(UnixAnswer(int(words[1]), body))


class _Connection(Protocol):
    transport: Any  # half of what it has is in no interface

    def __init__(self, exchange: _Exchange) -> None:
        self._exchange = exchange

    def connectionMade(self) -> None:
        self.transport.write(self._exchange.sent)

    def dataReceived(self, data: bytes) -> None:
        if not self._exchange.take(data):
            self.transport.abortConnection()

    def connectionLost(self, reason: Failure = connectionDone) -> None:  # noqa: ARG002
        self._exchange.ended()


def _out_of_time(failure: Failure) -> Failure:
    if failure.check(OutOfTime):
        return Failure(PeerFailed("no answer in time"))
    return failure
