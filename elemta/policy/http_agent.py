"""HTTP over Twisted's agent: connections that are kept, bodies from files, answers that have a bound.

It is imported at the first request, since twisted.web.client is large and few policies ask over HTTP.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, BinaryIO

from twisted.internet.defer import Deferred, succeed
from twisted.internet.protocol import Protocol, connectionDone
from twisted.python.failure import Failure
from twisted.web.client import Agent, HTTPConnectionPool, ResponseDone
from twisted.web.http import PotentialDataLoss
from twisted.web.http_headers import Headers
from twisted.web.iweb import IBodyProducer
from zope.interface import implementer

from elemta.errors import BackendError
from elemta.policy.http_client import LONGEST, HttpAnswer, HttpHeaders

CONNECTIONS = 8
"""Connections to one host that are kept for the next request."""

_IDLE_SECONDS = 60
_PIECE = 64 * 1024

InThread = Callable[[Callable[[], bytes]], Deferred[bytes]]


class HttpAgent:
    """Asks servers; ``in_thread`` reads files."""

    def __init__(self, reactor: Any, in_thread: InThread) -> None:
        self._in_thread = in_thread
        self._pool = HTTPConnectionPool(reactor)
        self._pool.maxPersistentPerHost = CONNECTIONS
        self._pool.cachedConnectionTimeout = _IDLE_SECONDS
        self._agent: Any = Agent(reactor, connectTimeout=LONGEST, pool=self._pool)

    def request(
        self,
        method: bytes,
        url: bytes,
        headers: Mapping[bytes, list[bytes]],
        body: bytes | BinaryIO,
        limit: int,
    ) -> Deferred[HttpAnswer]:
        """Ask once, without a deadline; an answer of more than ``limit`` octets is a BackendError."""
        producer = None if body == b"" else self._producer(body)
        return Deferred.fromCoroutine(self._ask(method, url, headers, producer, limit))

    async def _ask(
        self,
        method: bytes,
        url: bytes,
        headers: Mapping[bytes, list[bytes]],
        producer: IBodyProducer | None,
        limit: int,
    ) -> HttpAnswer:
        response = await self._agent.request(method, url, Headers(dict(headers)), producer)
        octets = await _read_body(response, limit)
        fields = [
            (name.decode("latin-1"), value.decode("latin-1"))
            for name, values in response.headers.getAllRawHeaders()
            for value in values
        ]
        return HttpAnswer(response.code, HttpHeaders(fields), octets)

    def _producer(self, body: bytes | BinaryIO) -> IBodyProducer:
        return _OctetsProducer(body) if isinstance(body, bytes) else _FileProducer(body, self._in_thread)

    def close(self) -> None:
        """Close the connections that are kept."""
        closed: Deferred[Any] = self._pool.closeCachedConnections()
        closed.addErrback(lambda _: None)


def _read_body(response: Any, limit: int) -> Deferred[bytes]:
    body = _Body(limit)
    response.deliverBody(body)
    return body.done


class _Body(Protocol):
    """The body of an answer, up to so many octets."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._octets = bytearray()
        self.done: Deferred[bytes] = Deferred(lambda _: self._abort())

    def dataReceived(self, data: bytes) -> None:
        self._octets += data
        if len(self._octets) > self._limit and not self.done.called:
            self.done.errback(BackendError(f"the answer has more than {self._limit} octets"))
            self._abort()

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        if self.done.called:
            return
        if reason.check(ResponseDone, PotentialDataLoss) is not None:
            self.done.callback(bytes(self._octets))
        else:
            self.done.errback(reason)

    def _abort(self) -> None:
        transport: Any = self.transport
        # TransportProxyProducer of Twisted 22.4 has only the second.
        abort = getattr(transport, "abortConnection", None) or transport.loseConnection
        abort()


@implementer(IBodyProducer)
class _OctetsProducer:
    """A body that is in memory."""

    def __init__(self, octets: bytes) -> None:
        self._octets = octets
        self.length = len(octets)

    def startProducing(self, consumer: Any) -> Deferred[None]:
        consumer.write(self._octets)
        return succeed(None)

    def pauseProducing(self) -> None:
        """It is all written at once."""

    def resumeProducing(self) -> None:
        """It is all written at once."""

    def stopProducing(self) -> None:
        """It is all written at once."""


@implementer(IBodyProducer)
class _FileProducer:
    """A body in a file, read piece by piece in a thread, as fast as the server takes it."""

    def __init__(self, file: BinaryIO, in_thread: Callable[[Callable[[], bytes]], Deferred[bytes]]) -> None:
        self._file = file
        self._in_thread = in_thread
        start = file.tell()
        self.length = file.seek(0, 2) - start
        file.seek(start)
        self._left = self.length
        self._consumer: Any = None
        self._resumed: Deferred[None] | None = None
        self._stopped = False

    def startProducing(self, consumer: Any) -> Deferred[None]:
        self._consumer = consumer
        return Deferred.fromCoroutine(self._produce())

    async def _produce(self) -> None:
        while self._left and not self._stopped:
            piece = await self._in_thread(lambda: self._file.read(min(_PIECE, self._left)))
            if not piece:
                raise BackendError("the file became shorter while it was read")
            self._left -= len(piece)
            if self._stopped:
                return
            self._consumer.write(piece)
            if self._resumed is not None:
                await self._resumed

    def pauseProducing(self) -> None:
        if self._resumed is None:
            self._resumed = Deferred()

    def resumeProducing(self) -> None:
        resumed, self._resumed = self._resumed, None
        if resumed is not None:
            resumed.callback(None)

    def stopProducing(self) -> None:
        self._stopped = True
        self.resumeProducing()
