"""One question to one server, over UDP, and over TCP where the answer was cut off.

dnspython writes and reads the messages; Twisted moves them, so that a question without a caller
is given up at once, with its socket. dnspython's own resolver up to 2.5 gives a server up at the first forged
packet.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Any, Protocol, TypeVar, cast

import dns.exception
import dns.flags
import dns.message
from twisted.internet.defer import CancelledError, Deferred, DeferredList, maybeDeferred
from twisted.internet.endpoints import TCP4ClientEndpoint, TCP6ClientEndpoint
from twisted.internet.error import CannotListenError, ConnectError, ConnectingCancelledError
from twisted.internet.interfaces import IDelayedCall
from twisted.internet.protocol import DatagramProtocol, Factory, connectionDone
from twisted.internet.protocol import Protocol as StreamProtocol
from twisted.python.failure import Failure

from elemta.dns.large_answers import LargeAnswers
from elemta.dns.servers import Nameserver
from elemta.runtime import Runtime

_T = TypeVar("_T")

# What fits through nearly every path in one piece.
PAYLOAD = 1232
# Reading what is longer takes so long that the reactor shall not wait for it.
_LARGE = 2048

_HEADER = 12
_LARGEST = 65535
_IGNORED = 100


class ServerFailed(Exception):
    """This server gave no usable answer; the text says why."""


class NoAnswer(Exception):
    """This server gave no answer in time."""


class ResolverReactor(Protocol):
    """What the resolver needs of the reactor: time and sockets."""

    def callLater(
        self,
        delay: float,
        callable: Callable[..., Any],  # noqa: A002 Twisted's name
        /,
        *args: object,
    ) -> IDelayedCall: ...

    def listenUDP(
        self, port: int, protocol: DatagramProtocol, /, interface: str = "", maxPacketSize: int = 8192
    ) -> Any: ...

    def seconds(self) -> float: ...


class DNSTransport:
    """Asks servers. ``until`` is a point of the reactor's time. :meth:`close` ends it."""

    def __init__(self, runtime: Runtime) -> None:
        self._reactor = cast(ResolverReactor, runtime.reactor)
        self._closing: dict[Deferred[Any], None] = {}
        self._large = LargeAnswers(runtime.threads)

    async def ask(
        self, server: Nameserver, query: dns.message.Message, until: float
    ) -> dns.message.QueryMessage:
        """The answer of ``server``, whatever its code. Raises ServerFailed or NoAnswer; can be cancelled."""
        wire = query.to_wire()
        try:
            answer = await self._over_udp(server, query, wire, until)
            # RFC 7766 §5
            return await self._over_tcp(server, query, wire, until) if answer is None else answer
        except OSError as error:
            raise ServerFailed(_words(error)) from error

    async def close(self) -> None:
        """Wait until every socket is closed; the caller has cancelled all questions before."""
        await DeferredList(list(self._closing))
        await self._large.stop()

    async def _over_udp(
        self, server: Nameserver, query: dns.message.Message, wire: bytes, until: float
    ) -> dns.message.QueryMessage | None:
        """The answer, or None for one that was cut off.

        Each question has a socket, and so a port, of its own, and what comes from elsewhere does not reach
        it. What does not fit the question is ignored, because any host may have sent it (RFC 5452 §9.1).
        """
        protocol = _Datagrams(query, wire, server)
        interface = "::" if ":" in server.address else ""
        try:
            port = self._reactor.listenUDP(0, protocol, interface=interface, maxPacketSize=_LARGEST)
        except CannotListenError as error:
            raise ServerFailed(_words(error.socketError)) from error
        try:
            protocol.ask()
            data = await self._within(protocol.answer, until)
        finally:
            self._close(maybeDeferred(port.stopListening))
        if int.from_bytes(data[2:4], "big") & dns.flags.TC:
            return None
        return await self._read(data, until)

    async def _over_tcp(
        self, server: Nameserver, query: dns.message.Message, wire: bytes, until: float
    ) -> dns.message.QueryMessage:
        kind = TCP6ClientEndpoint if ":" in server.address else TCP4ClientEndpoint
        # Its own timeout is longer than any of ours.
        endpoint = kind(self._reactor, server.address, server.port, timeout=60)
        stream = _DNSStream()
        try:
            await self._within(endpoint.connect(Factory.forProtocol(lambda: stream)), until)
        except ConnectError as error:
            raise ServerFailed(_words(error)) from error
        self._close(stream.closed)
        try:
            stream.transport.write(struct.pack("!H", len(wire)) + wire)
            data = await self._within(stream.answer, until)
        finally:
            stream.abort()
        answer = await self._read(data, until)
        if not query.is_response(answer):
            raise ServerFailed("an answer to something else")
        return answer

    async def _read(self, data: bytes, until: float) -> dns.message.QueryMessage:
        if len(data) <= _LARGE:
            return parsed(data)
        answer = self._large.run(lambda: parsed(data))
        if answer is None:
            raise ServerFailed("too many large answers at once")
        return await self._within(answer, until)

    async def _within(self, answer: Deferred[_T], until: float) -> _T:
        """What comes before ``until``; otherwise cancelled, and also when the caller is cancelled."""
        late = False

        def time_is_up() -> None:
            nonlocal late
            late = True
            answer.cancel()

        timer = self._reactor.callLater(max(0.0, until - self._reactor.seconds()), time_is_up)
        try:
            return await answer
        except (CancelledError, ConnectingCancelledError) as error:
            if late:
                raise NoAnswer from error
            raise CancelledError from error
        finally:
            if timer.active():
                timer.cancel()

    def _close(self, closed: Deferred[Any]) -> None:
        """Remember a socket until it is closed."""
        self._closing[closed] = None

        def done(_: object) -> None:
            self._closing.pop(closed, None)

        closed.addBoth(done)


class _Datagrams(DatagramProtocol):
    """One question, and the packets that come from the server."""

    noisy = False

    def __init__(self, query: dns.message.Message, wire: bytes, server: Nameserver) -> None:
        self._query = query
        self._wire = wire
        self._server = server
        self._ignored = 0
        self.answer: Deferred[bytes] = Deferred()

    def ask(self) -> None:
        """Send the question; raises OSError where there is no way to the server."""
        transport: Any = self.transport
        transport.connect(self._server.address, self._server.port)
        transport.write(self._wire)

    def datagramReceived(self, data: bytes, addr: Any) -> None:
        if self.answer.called:
            return
        if addr[1] == self._server.port and self._fits(data):
            self.answer.callback(data)
            return
        self._ignored += 1
        if self._ignored >= _IGNORED:
            self.answer.errback(Failure(ServerFailed(f"{_IGNORED} packets that answer something else")))

    def connectionRefused(self) -> None:
        if not self.answer.called:
            self.answer.errback(Failure(ServerFailed("connection refused")))

    def stopProtocol(self) -> None:
        # Some reactors close the socket when it has an error; a connected one of UDP has no other.
        self.connectionRefused()

    def _fits(self, data: bytes) -> bool:
        """Whether it answers the question, as far as a short look tells; garbage is the server's own then."""
        if len(data) < _HEADER or data[:2] != self._wire[:2]:
            return False
        if int.from_bytes(data[2:4], "big") & dns.flags.TC:
            return True
        try:
            head = dns.message.from_wire(data, question_only=True)
        except (dns.exception.DNSException, ValueError, IndexError, struct.error):
            return True
        return self._query.is_response(head)


class _DNSStream(StreamProtocol):
    """One answer over TCP, with its length before it (RFC 1035 §4.2.2)."""

    transport: Any  # half of what it has is in no interface

    def __init__(self) -> None:
        self._data = bytearray()
        self.answer: Deferred[bytes] = Deferred()
        self.closed: Deferred[None] = Deferred()

    def dataReceived(self, data: bytes) -> None:
        if self.answer.called:
            return
        self._data += data
        if len(self._data) >= 2:
            end = 2 + int.from_bytes(self._data[:2], "big")
            if len(self._data) >= end:
                self.answer.callback(bytes(self._data[2:end]))

    def connectionLost(self, reason: Failure = connectionDone) -> None:  # noqa: ARG002
        if not self.answer.called:
            self.answer.errback(Failure(ServerFailed("closed the connection")))
        self.closed.callback(None)

    def abort(self) -> None:
        # The result of an answer without a caller is not needed.
        self.answer.addErrback(lambda _: None)
        if self.transport is not None:
            self.transport.abortConnection()


def parsed(data: bytes) -> dns.message.QueryMessage:
    """The message; raises ServerFailed for what is none."""
    try:
        answer = dns.message.from_wire(data)
    except (dns.exception.DNSException, ValueError, IndexError, struct.error) as error:
        raise ServerFailed("a malformed answer") from error
    if not isinstance(answer, dns.message.QueryMessage):
        raise ServerFailed("an answer that is none to a query")
    return answer


def _words(error: object) -> str:
    failed = getattr(error, "osError", None) or error
    return str(getattr(failed, "strerror", None) or failed).lower()
