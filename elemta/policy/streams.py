"""Connections of a policy to a service of its own: ``stream = await services.connect(endpoint)``."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.interfaces import IDelayedCall
from twisted.internet.protocol import Factory, connectionDone
from twisted.internet.protocol import Protocol as TwistedProtocol
from twisted.python.failure import Failure

from elemta.errors import BackendError
from elemta.policy.call_context import BackendWait, seconds_left

MAX_UNREAD = 256 * 1024
"""Octets that arrived and were not read. Beyond that the connection is not read from."""

MAX_UNSENT = 64 * 1024 * 1024
"""Octets that were written and not sent. Await :meth:`Stream.drain` where there is much to write."""

MOST_STREAMS = 1000
"""Connections of one policy at a time."""


class Stream(Protocol):
    """A connection. One read waits at a time. What fails raises :class:`~elemta.errors.BackendError`.

    Each wait ends within the time of the policy's call, and within ``timeout`` seconds where that is less.
    """

    def write(self, data: bytes) -> None:
        """Send octets. Never waits."""

    async def drain(self, *, timeout: float | None = None) -> None:
        """Wait until nearly all that was written has been sent."""

    async def read(self, n: int, *, timeout: float | None = None) -> bytes:
        """Up to ``n`` octets, as soon as there are any; ``b""`` at the end."""

    async def read_exactly(self, n: int, *, timeout: float | None = None) -> bytes:
        """``n`` octets. Fails where the end comes first."""

    async def read_until(self, separator: bytes, limit: int, *, timeout: float | None = None) -> bytes:
        """All up to ``separator``, and that too. Fails past ``limit`` octets, and at the end."""

    async def close(self) -> None:
        """Send what was written and close. May be called more than once."""

    @property
    def closed(self) -> bool:
        """Whether nothing can be read or written any more."""

    @property
    def unread(self) -> int:
        """Octets that arrived and were not read: before a question, what no question asked for."""


class Connect(Protocol):
    """``services.connect``: opens a :class:`Stream`."""

    async def __call__(self, endpoint: str, *, timeout: float | None = None) -> Stream:
        """Connect to a Twisted client endpoint, such as ``"unix:/run/clamd.ctl"`` or
        ``"tcp:host=127.0.0.1:port=3310"``. ValueError where the text is none."""


class StreamConnector:
    """Opens the connections of one policy, and knows those that are open. ``timeout`` is the policy's."""

    def __init__(self, reactor: Any, timeout: float) -> None:
        self._reactor = reactor
        self.timeout = timeout
        self.open: dict[StreamProtocol, None] = {}
        self._under_way = 0

    async def __call__(self, endpoint: str, *, timeout: float | None = None) -> Stream:
        client = client_endpoint(self._reactor, endpoint)
        if len(self.open) + self._under_way >= MOST_STREAMS:
            raise BackendError(f"this policy has {MOST_STREAMS} connections already")
        seconds = seconds_left(self._reactor.seconds(), self.timeout if timeout is None else timeout)
        factory = Factory.forProtocol(StreamProtocol)
        wait, failed = BackendWait(), True
        self._under_way += 1
        try:
            connecting: Deferred[Any] = client.connect(factory)
            protocol = await within(connecting, seconds, self._reactor, f"no connection to {endpoint}")
            failed = False
        except BackendError:
            raise
        except CancelledError:
            failed = False
            raise
        except Exception as error:
            raise BackendError(f"{endpoint}: {error}") from error
        finally:
            self._under_way -= 1
            wait.ended(failed=failed)
        if not isinstance(protocol, StreamProtocol):
            # An endpoint that another package brings may give its own protocol around ours.
            protocol.transport.loseConnection()
            raise BackendError(f"{endpoint}: this kind of endpoint wraps the connection")
        self.open[protocol] = None
        protocol.ended = lambda: self.open.pop(protocol, None)
        if protocol.end is not None:
            self.open.pop(protocol)
        return open_stream(protocol, self._reactor, self.timeout, endpoint)

    def close_all(self) -> None:
        """Close every connection at once."""
        for protocol in list(self.open):
            protocol.abort()


def client_endpoint(reactor: Any, text: str) -> Any:
    """The endpoint that a text describes. ValueError where it describes none."""
    from twisted.internet.endpoints import clientFromString  # noqa: PLC0415 - costs 20 ms, and few ask

    try:
        return clientFromString(reactor, text)
    except Exception as error:  # what a parser of endpoints raises is not agreed upon
        raise ValueError(f"no client endpoint: {text!r}: {error}") from error


async def within(waiting: Deferred[Any], seconds: float, clock: Any, words: str) -> Any:
    """What ``waiting`` fires with, or BackendError after so many seconds."""
    timed_out = False

    def time_is_up() -> None:
        nonlocal timed_out
        timed_out = True
        waiting.cancel()

    timer: IDelayedCall = clock.callLater(seconds, time_is_up)
    try:
        return await waiting
    except Exception as error:
        if timed_out:
            raise BackendError(f"{words} within {seconds:.3g} s") from error
        raise
    finally:
        if timer.active():
            timer.cancel()


class StreamProtocol(TwistedProtocol):
    """The octets that arrived, and the reader that waits for more."""

    transport: Any  # half of what it has is in no interface

    def __init__(self) -> None:
        self.buffer = bytearray()
        self.end: Failure | None = None
        self.ended: Callable[[], object] = lambda: None
        self.lost: Deferred[None] = Deferred()
        self._waiting: Deferred[None] | None = None
        self._paused = False
        self._sent: Deferred[None] | None = None
        self.congested = False
        self.unsent = 0

    def connectionMade(self) -> None:
        self.transport.registerProducer(self, streaming=True)

    def dataReceived(self, data: bytes) -> None:
        self.buffer += data
        if len(self.buffer) > MAX_UNREAD and not self._paused:
            self._paused = True
            self.transport.pauseProducing()
        self._wake()

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        self.end = reason
        self.ended()
        self._wake()
        self.resumeProducing()
        self.lost.callback(None)

    # As the producer of what is written

    def pauseProducing(self) -> None:
        self.congested = True

    def resumeProducing(self) -> None:
        self.congested = False
        self.unsent = 0
        sent, self._sent = self._sent, None
        if sent is not None:
            sent.callback(None)

    def stopProducing(self) -> None:
        self.resumeProducing()

    def when_sent(self) -> Deferred[None]:
        self._sent = self._sent or Deferred(self._forget_sent)
        return self._sent

    def _forget_sent(self, _: object) -> None:
        self._sent = None

    # As what is read from

    def more(self, wanted: int) -> Deferred[None]:
        """Fires when octets or the end have arrived."""
        if self._waiting is not None:
            raise RuntimeError("another read of this connection is waiting")
        waiting: Deferred[None] = Deferred(self._forget_waiting)
        self._waiting = waiting
        if self._paused and len(self.buffer) < max(MAX_UNREAD, wanted):
            self._paused = False
            self.transport.resumeProducing()
        return waiting

    def taken(self) -> None:
        """Octets were read: there is space for more."""
        if self._paused and len(self.buffer) <= MAX_UNREAD and self.end is None:
            self._paused = False
            self.transport.resumeProducing()

    def abort(self) -> None:
        if self.end is None:
            abort = getattr(self.transport, "abortConnection", self.transport.loseConnection)
            abort()

    def _forget_waiting(self, _: object) -> None:
        self._waiting = None

    def _wake(self) -> None:
        waiting, self._waiting = self._waiting, None
        if waiting is not None:
            waiting.callback(None)


def open_stream(protocol: StreamProtocol, reactor: Any, timeout: float, name: str) -> Stream:
    """The connection of a protocol, as a policy uses it."""
    return _Stream(protocol, reactor, timeout, name)


class _Stream:
    """A connection, as the policy uses it."""

    def __init__(self, protocol: StreamProtocol, reactor: Any, timeout: float, name: str) -> None:
        self._protocol = protocol
        self._transport: Any = protocol.transport
        self._reactor = reactor
        self._timeout = timeout
        self._name = name
        self._closing = False

    @property
    def closed(self) -> bool:
        return self._closing or self._protocol.end is not None

    @property
    def unread(self) -> int:
        return len(self._protocol.buffer)

    def write(self, data: bytes) -> None:
        protocol = self._protocol
        if self.closed:
            raise BackendError(f"{self._name}: the connection is closed")
        if protocol.congested:
            protocol.unsent += len(data)
            if protocol.unsent > MAX_UNSENT:
                protocol.abort()
                raise BackendError(f"{self._name}: more than {MAX_UNSENT} octets are not sent")
        self._transport.write(bytes(data))

    async def drain(self, *, timeout: float | None = None) -> None:
        if self._protocol.congested:
            await self._wait(self._protocol.when_sent(), timeout)
        if self._protocol.end is not None:
            raise BackendError(f"{self._name}: the connection broke off")

    async def read(self, n: int, *, timeout: float | None = None) -> bytes:
        buffer = self._protocol.buffer
        if not buffer and not await self._more(1, self._until(timeout)):
            return b""
        return self._take(min(n, len(buffer)))

    async def read_exactly(self, n: int, *, timeout: float | None = None) -> bytes:
        buffer, until = self._protocol.buffer, self._until(timeout)
        while len(buffer) < n:
            if not await self._more(n, until):
                raise BackendError(f"{self._name}: the connection ended within an answer")
        return self._take(n)

    async def read_until(self, separator: bytes, limit: int, *, timeout: float | None = None) -> bytes:
        buffer, until, start = self._protocol.buffer, self._until(timeout), 0
        while True:
            place = buffer.find(separator, start)
            end = place + len(separator)
            if place >= 0 and end <= limit:
                return self._take(end)
            if place >= 0 or len(buffer) >= limit:
                raise BackendError(f"{self._name}: an answer of more than {limit} octets")
            start = max(0, len(buffer) - len(separator) + 1)
            if not await self._more(limit, until):
                raise BackendError(f"{self._name}: the connection ended within an answer")

    async def close(self) -> None:
        if not self._closing:
            self._closing = True
            if self._protocol.end is None:
                self._transport.unregisterProducer()
                self._transport.loseConnection()
                # A peer that reads nothing would keep it open.
                late = self._reactor.callLater(self._timeout, self._protocol.abort)
                self._protocol.lost.addCallback(lambda _: late.cancel() if late.active() else None)

    def _take(self, n: int) -> bytes:
        buffer = self._protocol.buffer
        taken = bytes(buffer[:n])
        del buffer[:n]
        self._protocol.taken()
        return taken

    def _until(self, timeout: float | None) -> float:
        now: float = self._reactor.seconds()
        return now + seconds_left(now, self._timeout if timeout is None else timeout)

    async def _more(self, wanted: int, until: float) -> bool:
        """Wait for more octets; False at the end."""
        if self._closing:
            raise BackendError(f"{self._name}: the connection is closed")
        if self._protocol.end is not None:
            return False
        before = len(self._protocol.buffer)
        await self._wait(self._protocol.more(wanted), max(0.0, until - self._reactor.seconds()))
        return len(self._protocol.buffer) > before

    async def _wait(self, waiting: Deferred[None], timeout: float | None) -> None:
        seconds = seconds_left(self._reactor.seconds(), self._timeout if timeout is None else timeout)
        wait, failed = BackendWait(), True
        try:
            await within(waiting, seconds, self._reactor, f"{self._name}: no answer")
            failed = False
        except CancelledError:
            failed = False
            raise
        finally:
            wait.ended(failed=failed)
