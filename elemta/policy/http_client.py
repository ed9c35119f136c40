"""The HTTP client of a policy: ``answer = await services.http.request("POST", url, body=octets)``."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, BinaryIO, Protocol
from urllib.parse import urlsplit

from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.protocol import Protocol as TwistedProtocol
from twisted.python.failure import Failure
from zope.interface import alsoProvides

from elemta.errors import BackendError
from elemta.policy.call_context import BackendWait, seconds_left
from elemta.policy.streams import within

MAX_ANSWER = 16 * 1024 * 1024
"""Octets of the body of an answer."""

MOST_REQUESTS = 500
"""Requests of one policy that may be under way."""

CONNECTIONS = 8
"""Connections to one host that are kept for the next request."""

LONGEST = 30.0
"""Seconds that a request may take where it is given no timeout."""

_IDLE_SECONDS = 60.0
_PIECE = 64 * 1024


class HttpHeaders(Mapping[str, str]):
    """Header fields; their names are found in any case. Of a field that is there twice, the last."""

    __slots__ = ("_fields",)

    def __init__(self, fields: Sequence[tuple[str, str]] | Mapping[str, str] = ()) -> None:
        pairs = fields.items() if isinstance(fields, Mapping) else fields
        self._fields = tuple((name.lower(), value) for name, value in pairs)

    def __getitem__(self, name: str) -> str:
        values = self.get_all(name)
        if not values:
            raise KeyError(name)
        return values[-1]

    def get_all(self, name: str) -> tuple[str, ...]:
        """The values of every field of this name."""
        wanted = name.lower()
        return tuple(value for known, value in self._fields if known == wanted)

    def __iter__(self) -> Iterator[str]:
        return iter(dict(self._fields))

    def __len__(self) -> int:
        return len(dict(self._fields))


@dataclass(frozen=True, slots=True)
class HttpAnswer:
    """An answer of a server, whatever its ``status``."""

    status: int
    headers: HttpHeaders
    body: bytes


class HttpClient(Protocol):
    """HTTP and HTTPS, with connections that are kept. Certificates are verified."""

    async def request(
        self,
        method: str,
        url: str,
        *,
        headers: Mapping[str, str] | None = None,
        body: bytes | BinaryIO = b"",
        timeout: float | None = None,
        limit: int = MAX_ANSWER,
    ) -> HttpAnswer:
        """Ask a server; redirects are not followed.

        ``body`` may be a binary file, from its position to its end, which is read in a thread. The request
        ends within the time of the policy's call, and within ``timeout`` seconds where that is less. Raises
        :class:`~elemta.errors.BackendError` where there is no whole answer in time, or it has a body of
        more than ``limit`` octets, and ValueError where ``url`` or a header can't be sent.
        """


class TimedClient:
    """The client of a policy's name for one policy that was built, with the timeout of that."""

    def __init__(self, client: AgentClient, timeout: float) -> None:
        self._client = client
        self._timeout = timeout

    async def request(
        self,
        method: str,
        url: str,
        *,
        headers: Mapping[str, str] | None = None,
        body: bytes | BinaryIO = b"",
        timeout: float | None = None,
        limit: int = MAX_ANSWER,
    ) -> HttpAnswer:
        seconds = self._timeout if timeout is None else timeout
        return await self._client.request(
            method, url, headers=headers, body=body, timeout=seconds, limit=limit
        )


class AgentClient:
    """An :class:`HttpClient` over Twisted's agent, for the policies of one name.

    ``in_thread`` reads files.
    """

    def __init__(self, reactor: Any, in_thread: Callable[[Callable[[], bytes]], Deferred[bytes]]) -> None:
        self._reactor = reactor
        self._in_thread = in_thread
        self._agent: Any = None
        self._pool: Any = None
        self._under_way = 0

    async def request(
        self,
        method: str,
        url: str,
        *,
        headers: Mapping[str, str] | None = None,
        body: bytes | BinaryIO = b"",
        timeout: float | None = None,
        limit: int = MAX_ANSWER,
    ) -> HttpAnswer:
        place = checked_url(url)
        sent = sent_headers(headers or {})
        if self._under_way >= MOST_REQUESTS:
            raise BackendError(f"{MOST_REQUESTS} requests of this policy are under way already")
        seconds = seconds_left(self._reactor.seconds(), LONGEST if timeout is None else timeout)
        producer = None if body == b"" else self._producer(body)
        self._under_way += 1
        try:
            asking = Deferred.fromCoroutine(
                self._ask(method.encode("ascii"), url.encode("ascii"), sent, producer, limit)
            )
            return await answer_within(asking, seconds, self._reactor, f"no answer from {place}")
        except (CancelledError, BackendError):
            raise
        except Exception as error:
            raise BackendError(f"{place}: {_reason(error)}") from error
        finally:
            self._under_way -= 1

    async def _ask(
        self, method: bytes, url: bytes, headers: Mapping[bytes, list[bytes]], producer: Any, limit: int
    ) -> HttpAnswer:
        from twisted.web.http_headers import Headers  # noqa: PLC0415 - twisted.web is large, and few ask

        response = await self._agent_now().request(method, url, Headers(dict(headers)), producer)
        body = await _read_body(response, limit)
        fields = [
            (name.decode("latin-1"), value.decode("latin-1"))
            for name, values in response.headers.getAllRawHeaders()
            for value in values
        ]
        return HttpAnswer(response.code, HttpHeaders(fields), body)

    def _agent_now(self) -> Any:
        if self._agent is None:
            from twisted.web.client import Agent, HTTPConnectionPool  # noqa: PLC0415 - as in `_ask`

            self._pool = HTTPConnectionPool(self._reactor)
            self._pool.maxPersistentPerHost = CONNECTIONS
            self._pool.cachedConnectionTimeout = _IDLE_SECONDS
            self._agent = Agent(self._reactor, connectTimeout=LONGEST, pool=self._pool)
        return self._agent

    def _producer(self, body: bytes | BinaryIO) -> Any:
        from twisted.web.iweb import IBodyProducer  # noqa: PLC0415 - as in `_ask`

        producer = _OctetsProducer(body) if isinstance(body, bytes) else _FileProducer(body, self._in_thread)
        alsoProvides(producer, IBodyProducer)
        return producer

    def close(self) -> None:
        """Close the connections that are kept."""
        pool, self._pool, self._agent = self._pool, None, None
        if pool is not None:
            closed: Deferred[Any] = pool.closeCachedConnections()
            closed.addErrback(lambda _: None)


async def answer_within(asking: Deferred[HttpAnswer], seconds: float, clock: Any, words: str) -> HttpAnswer:
    """The answer of a policy's backend in time. A failure and a status of 500 or more count against it."""
    wait, failed = BackendWait(), True
    try:
        answer: HttpAnswer = await within(asking, seconds, clock, words)
        failed = answer.status >= 500
    except CancelledError:
        failed = False
        raise
    else:
        return answer
    finally:
        wait.ended(failed=failed)


def checked_url(url: str) -> str:
    """The server that a URL names. ValueError where it can't be asked."""
    if not isinstance(url, str) or not url.isascii() or any(sign <= " " or sign == "\x7f" for sign in url):
        raise ValueError(f"no URL: {str(url)[:200]!r}")
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError(f"no URL of HTTP or HTTPS: {url[:200]!r}")
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}"


def sent_headers(headers: Mapping[str, str]) -> dict[bytes, list[bytes]]:
    """The header of a request. ValueError for a field that can't be sent."""
    sent: dict[bytes, list[bytes]] = {b"User-Agent": [b"Elemta"]}
    for name, value in headers.items():
        if any(sign in f"{name}{value}" for sign in "\r\n\0"):
            raise ValueError(f"no header of HTTP: {name!r}")
        sent[name.encode("ascii")] = [value.encode("utf-8")]
    return sent


def _reason(error: Exception) -> str:
    reasons = getattr(error, "reasons", None)
    if reasons:
        # ResponseFailed and similar errors say only that something failed.
        return "; ".join(each.getErrorMessage() for each in reasons)
    return str(error) or type(error).__name__


def _read_body(response: Any, limit: int) -> Deferred[bytes]:
    from twisted.web.client import ResponseDone  # noqa: PLC0415 - as in `_ask`
    from twisted.web.http import PotentialDataLoss  # noqa: PLC0415 - as in `_ask`

    class Body(TwistedProtocol):
        def __init__(self) -> None:
            self.octets = bytearray()
            self.done: Deferred[bytes] = Deferred(lambda _: self._abort())

        def dataReceived(self, data: bytes) -> None:
            self.octets += data
            if len(self.octets) > limit and not self.done.called:
                self.done.errback(BackendError(f"the answer has more than {limit} octets"))
                self._abort()

        def connectionLost(self, reason: Failure = None) -> None:  # type: ignore[assignment]
            if self.done.called:
                return
            if reason.check(ResponseDone, PotentialDataLoss) is not None:
                self.done.callback(bytes(self.octets))
            else:
                self.done.errback(reason)

        def _abort(self) -> None:
            transport: Any = self.transport
            # TransportProxyProducer of Twisted 22.4 has only the second.
            abort = getattr(transport, "abortConnection", None) or transport.loseConnection
            abort()

    body = Body()
    response.deliverBody(body)
    return body.done


class _OctetsProducer:
    """A body that is in memory."""

    def __init__(self, octets: bytes) -> None:
        self._octets = octets
        self.length = len(octets)

    def startProducing(self, consumer: Any) -> Deferred[None]:
        consumer.write(self._octets)
        done: Deferred[None] = Deferred()
        done.callback(None)
        return done

    def pauseProducing(self) -> None:
        """It is all written at once."""

    def resumeProducing(self) -> None:
        """It is all written at once."""

    def stopProducing(self) -> None:
        """It is all written at once."""


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
