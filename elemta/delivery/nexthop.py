"""One connection to a next hop: the Twisted shell around the client session."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, BinaryIO, cast

from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.endpoints import HostnameEndpoint, UNIXClientEndpoint
from twisted.internet.error import ConnectError, ConnectingCancelledError, DNSLookupError
from twisted.internet.error import TimeoutError as TwistedTimeoutError
from twisted.internet.interfaces import (
    IAddress,
    IDelayedCall,
    IPushProducer,
    IReactorTime,
    IStreamClientEndpoint,
    ITCPTransport,
)
from twisted.internet.protocol import Factory, Protocol
from twisted.internet.tcp import Connection
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import implementer

from elemta.delivery.routes import NextHopRoute
from elemta.delivery.settings import DeliverySettings
from elemta.errors import SpoolError
from elemta.smtp.client import ClientSession, ClientSettings
from elemta.smtp.client_commands import ClientTransaction
from elemta.smtp.client_events import ContentWanted, Hangup, Settled
from elemta.smtp.client_results import RecipientResult
from elemta.smtp.events import Event

_log = Logger()

# How long what was said last may take to leave before the connection is cut.
_FAREWELL = 5.0

Results = tuple[RecipientResult, ...]
Read = Callable[[BinaryIO], Awaitable[bytes]]


class NextHopUnreachableError(Exception):
    """No connection could be made. The text says to what, and why not."""


@implementer(IPushProducer)
class NextHopConnection(Protocol):
    """Moves bytes between a transport and a client session, and the content when it is wanted.

    ``settled`` fires once with the results of the transaction; ``closed`` when the connection is gone.
    """

    def __init__(
        self,
        clock: IReactorTime,
        settings: DeliverySettings,
        transaction: ClientTransaction,
        *,
        lmtp: bool,
        open_content: Callable[[], Awaitable[BinaryIO]],
        read: Read,
    ) -> None:
        self.settled: Deferred[Results] = Deferred()
        self.closed: Deferred[None] = Deferred()
        self.name = ""
        self._clock = clock
        self._settings = settings
        self._transaction = transaction
        self._session = ClientSession(ClientSettings(settings.hostname, lmtp, settings.deadlines))
        self._open_content = open_content
        self._read = read
        self._wire: Connection | None = None
        self._writable: Deferred[None] | None = None
        self._producing = False
        self._timer: IDelayedCall | None = None
        self._lifetime: IDelayedCall | None = None
        self._awaited: tuple[int, float | None] = (-1, None)

    # The transport speaks

    def connectionMade(self) -> None:
        # Over a Unix socket it is one but for what only TCP has.
        self._wire = cast(Connection, self.transport)
        if ITCPTransport.providedBy(self.transport):
            self.transport.setTcpNoDelay(True)
        self._lifetime = self._clock.callLater(self._settings.lifetime, self._outlived)
        self._act(self._session.start(self._transaction))

    def dataReceived(self, data: bytes) -> None:
        self._act(self._session.receive(data))

    def connectionLost(self, reason: Failure | None = None) -> None:
        self._act(self._session.lost(reason.getErrorMessage() if reason is not None else "closed"))
        for timer in (self._timer, self._lifetime):
            if timer is not None and timer.active():
                timer.cancel()
        self.resumeProducing()
        self.closed.callback(None)

    # Back-pressure

    def pauseProducing(self) -> None:
        if self._writable is None and not self._session.closed:
            self._writable = Deferred()

    def resumeProducing(self) -> None:
        writable, self._writable = self._writable, None
        if writable is not None:
            writable.callback(None)

    def stopProducing(self) -> None:
        self.resumeProducing()

    # The session speaks

    def abandon(self, text: str) -> None:
        """Give the transaction up and close; what has no result yet is deferred with ``text``."""
        self._act(self._session.abandon(text))

    def _act(self, events: list[Event]) -> None:
        for event in events:
            if isinstance(event, ContentWanted):
                self._start_content()
            elif isinstance(event, Settled):
                self.settled.callback(event.results)
                self._session.quit()
            elif isinstance(event, Hangup):
                self._hang_up()
                return
        self._flush()

    def _flush(self) -> None:
        if self._wire is not None and (output := self._session.take_output()):
            self._wire.write(output)
        awaited = (self._session.progress, self._session.deadline)
        if awaited != self._awaited:
            self._awaited = awaited
            self._arm(awaited[1], self._too_late)

    def _arm(self, seconds: float | None, late: Callable[[], None]) -> None:
        if self._timer is not None and self._timer.active():
            self._timer.cancel()
        self._timer = None if seconds is None else self._clock.callLater(seconds, late)

    def _too_late(self) -> None:
        self._act(self._session.timed_out())

    def _outlived(self) -> None:
        self.abandon(f"the transaction was not done after {self._settings.lifetime:g} s")

    def _hang_up(self) -> None:
        if self._wire is None:
            return
        if output := self._session.take_output():
            self._wire.write(output)
        self._end_producing()
        self.resumeProducing()
        self._wire.loseConnection()
        self._arm(_FAREWELL, self.cut)

    def cut(self) -> None:
        """Close now, whatever is unsent."""
        if self._wire is not None and not self.closed.called:
            self._wire.abortConnection()

    # The content

    def _start_content(self) -> None:
        Deferred.fromCoroutine(self._send_content()).addErrback(self._content_failed)

    def _content_failed(self, failure: Failure) -> None:
        if failure.check(SpoolError, OSError) is None:
            _log.failure("sending a message failed", failure, event="delivery.content_failed")
        self.abandon(f"the message could not be read here: {failure.getErrorMessage()}")

    async def _send_content(self) -> None:
        content = await self._open_content()
        try:
            if self._wire is not None and not self._session.closed:
                self._producing = True
                self._wire.registerProducer(self, True)
            sent = 0
            while not self._session.closed:
                chunk = await self._read(content)
                sent += len(chunk)
                if not chunk:
                    break
                self._session.content(chunk)
                self._flush()
                if self._writable is not None:
                    await self._writable
        finally:
            content.close()
        if self._session.closed:
            return
        if sent != self._transaction.size:
            # A message that was cut short on the disk must never end: it would count as delivered.
            self.abandon(f"the stored message has {sent} octets of {self._transaction.size}")
            return
        self._end_producing()
        self._session.end_content()
        self._flush()

    def _end_producing(self) -> None:
        if self._producing and self._wire is not None:
            self._producing = False
            self._wire.unregisterProducer()


def endpoint(reactor: Any, route: NextHopRoute, timeout: float) -> IStreamClientEndpoint:
    """Where the route leads; ``timeout`` in seconds is for one attempt to connect."""
    if route.path:
        return UNIXClientEndpoint(reactor, route.path, timeout)
    return HostnameEndpoint(reactor, route.host, route.port, timeout)


async def connect(reactor: Any, route: NextHopRoute, connection: NextHopConnection, timeout: float) -> None:
    """Connect to the route's next hop; raises :class:`NextHopUnreachableError`.

    The name's lookup and all addresses together get twice the ``timeout``.
    """
    connecting = endpoint(reactor, route, timeout).connect(Factory.forProtocol(lambda: connection))
    connecting.addTimeout(2 * timeout, reactor)
    try:
        await connecting
    except (
        ConnectError,
        ConnectingCancelledError,
        DNSLookupError,
        TwistedTimeoutError,
        CancelledError,
        OSError,
    ) as error:
        reason = str(error) or type(error).__name__
        raise NextHopUnreachableError(f"no connection to {route.name}: {reason}") from error
    connection.name = _reached(route, connection.transport.getPeer() if connection.transport else None)


def _reached(route: NextHopRoute, peer: IAddress | None) -> str:
    host = getattr(peer, "host", "")
    if route.path or not host or host == route.host:
        return route.name
    return f"{route.host}[{host}]:{route.port}"
