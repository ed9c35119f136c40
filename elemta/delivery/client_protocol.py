"""One connection to a next hop: the Twisted shell around the client session."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from functools import partial
from typing import Any, cast

from OpenSSL import SSL
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IHandshakeListener, IPushProducer, IReactorTime
from twisted.internet.protocol import Protocol
from twisted.internet.tcp import Connection
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import implementer

from elemta.conversation_trace import ConversationTrace
from elemta.deferred_value import run
from elemta.delivery.movable_deadline import MovableDeadline
from elemta.delivery.next_hop_state import TLSChange, TLSState, next_tls
from elemta.delivery.outbound_tls import OutboundHandshake, OutboundTLSRefused
from elemta.delivery.outgoing_content import OpenContent, OutgoingContent, Read
from elemta.directwrite import write_at_once
from elemta.errors import SpoolError
from elemta.ip import IPAddress
from elemta.outcome import Outcome, Status
from elemta.smtp.client import ClientSession, ClientSettings
from elemta.smtp.client_commands import ClientTransaction, Features
from elemta.smtp.client_results import (
    ContentWanted,
    CredentialsRefused,
    Hangup,
    OfferRefused,
    RecipientsLimited,
    TransactionDone,
)
from elemta.smtp.events import Event, StartTLS
from elemta.smtp.session_info import TLSInfo

_log = Logger()

# How long what was said last may take to leave before the connection is cut.
_QUIT_SECONDS = 5.0


@implementer(IPushProducer, IHandshakeListener)
class NextHopConnection(Protocol):
    """Moves bytes between a transport and a client session, and the content when it is wanted.

    :meth:`send` may be called again after each result as long as the connection is :attr:`idle`; one
    transaction may take ``lifetime`` seconds. ``closed`` fires when the connection is gone.
    """

    def __init__(
        self,
        clock: IReactorTime,
        settings: ClientSettings,
        handshake: OutboundHandshake | None,
        *,
        name: str,
        address: IPAddress | None = None,
        lifetime: float,
        read: Read,
        trace: ConversationTrace | None = None,
    ) -> None:
        self.closed: Deferred[None] = Deferred()
        self.name = name
        self.address = address
        self.served = 0
        self.login_refused = False
        #: What the next hop offered and refused, and how many recipients it takes (0: any number).
        self.offers_refused: set[str] = set()
        self.most_recipients = 0
        self._session = ClientSession(settings)
        self._trace = trace
        self._handshake = handshake
        self._tls_state = TLSState.CLEAR
        self._lifetime = lifetime
        self._settled: Deferred[tuple[Outcome, ...]] | None = None
        self._transaction: ClientTransaction | None = None
        self._send_content: Callable[[], Coroutine[Any, Any, None]] = _send_nothing
        self._wire: Connection | None = None
        self._content = OutgoingContent(
            self._session, self, read=read, flush=self._flush, abandon=self.abandon
        )
        self._deadline = MovableDeadline(clock)
        self._life = MovableDeadline(clock)
        self._awaited: tuple[int, float | None] = (-1, None)

    @property
    def idle(self) -> bool:
        """Whether the next transaction may be sent."""
        return self._session.idle

    @property
    def again(self) -> tuple[int, ...]:
        """The places of recipients of the last transaction that may be sent in another way."""
        return self._session.again

    @property
    def features(self) -> Features:
        """What the next hop offers, without what is not believed."""
        return self._session.features

    @property
    def starttls_refused(self) -> bool:
        """Whether the next hop offered STARTTLS and did not begin it."""
        return self._session.starttls_refused

    @property
    def tls(self) -> TLSInfo | None:
        """What protects the connection; None: nothing."""
        return self._session.tls

    @property
    def tls_failed(self) -> bool:
        """Whether there is no TLS with this server that works."""
        return self._tls_state is TLSState.FAILED

    def send(
        self, transaction: ClientTransaction, open_content: OpenContent
    ) -> Deferred[tuple[Outcome, ...]]:
        """Send a transaction; fires with what became of its recipients. It fails only by a fault of ours."""
        self._transaction = transaction
        self._send_content = partial(self._content.send, transaction.size, open_content)
        if self._trace is not None and self._trace.watches and self._session.trace is None:
            name = self._queue_id or ""
            self._session.follow(self._trace.conversation("out", name, self.address, self.name))
        settled = self._settled = Deferred()
        self._life.set(self._lifetime, self._outlived)
        self._act(self._session.start(transaction))
        return settled

    def quit(self) -> None:
        """Send QUIT and close."""
        self._act(self._session.quit())

    def abandon(self, text: str) -> None:
        """Give the transaction up and close; what has no result yet is deferred with ``text``."""
        self._act(self._session.abandon(text))

    def cut(self) -> None:
        """Close now, whatever is unsent."""
        if self._wire is not None and not self.closed.called:
            self._wire.abortConnection()

    # The transport speaks

    def connectionMade(self) -> None:
        # A Unix socket's is one but for what only TCP has, though some say that they have it.
        self._wire = cast(Connection, self.transport)
        if self.address is not None:
            self._wire.setTcpNoDelay(True)
        self._content.wire = self._wire
        if self._handshake is not None and self._session.tls_comes_first:
            self._start_tls()
        self._flush()

    def handshakeCompleted(self) -> None:
        if self._wire is None or self._handshake is None or self._tls_state is not TLSState.HANDSHAKE:
            return
        self._tls_change(TLSChange.DONE)
        try:
            info = self._handshake.check(cast(SSL.Connection, self._wire.getHandle()))
        except OutboundTLSRefused as error:
            self._tls_failed(str(error))
            return
        _log.info(
            "TLS with a next hop",
            event="delivery.tls_started",
            next_hop=self.name,
            version=info.version,
            cipher=info.cipher,
        )
        self._act(self._session.tls_started(info))

    def dataReceived(self, data: bytes) -> None:
        unanswered: int | None = None
        try:
            unanswered = self._session.unanswered
            events = self._session.receive(data)
        except Exception:
            # What the next hop took must not be sent again because of a fault of ours.
            _log.failure(
                "a reply could not be handled",
                event="delivery.reply_failed",
                queue_id=self._queue_id,
                next_hop=self.name,
            )
            events = self._session.broken(data, unanswered)
        try:
            self._act(events)
        except Exception:
            self._log_internal_error()
            self.cut()

    def connectionLost(self, reason: Failure | None = None) -> None:
        # Whatever breaks: no attempt may wait for a connection that is gone, and no timer keeps it.
        for end in (partial(self._lost, reason), self._deadline.stop, self._life.stop, self._content.go_on):
            try:
                end()
            except Exception:
                self._log_internal_error()
        try:
            self._end_unsettled()
        except Exception:
            settled, self._settled = self._settled, None
            if settled is not None and not settled.called:
                settled.errback(Failure())
        finally:
            if self._session.trace is not None:
                self._session.trace.ended()
            self.closed.callback(None)

    def _lost(self, reason: Failure | None) -> None:
        text = reason.getErrorMessage() if reason is not None else "closed"
        in_handshake = self._tls_state is TLSState.HANDSHAKE
        if in_handshake and self._handshake is not None and not self._session.closed:
            self._tls_failed(self._handshake.reason(reason) if reason is not None else text)
        elif not self._session.closed:
            # A server that breaks off at the first words under TLS has no TLS that works.
            if self.tls is not None and not self._session.features.keywords:
                self._tls_change(TLSChange.FAIL)
            self._act(self._session.lost(text))

    # Back-pressure

    def pauseProducing(self) -> None:
        self._content.pause()

    def resumeProducing(self) -> None:
        self._content.resume()

    def stopProducing(self) -> None:
        self._content.resume()

    # The session speaks

    def _act(self, events: list[Event]) -> None:
        try:
            self._follow(events)
        except Exception:
            self._log_internal_error()
            self.cut()
        for event in events:
            if type(event) is TransactionDone:
                # Last of all: the caller that waits for it may send again, or close.
                self._settle(self._session.outcomes)
                break

    def _follow(self, events: list[Event]) -> None:
        flushed = False
        for event in events:
            kind = type(event)
            if kind is ContentWanted:
                flushed = self._start_content()
            elif kind is Hangup:
                self._hang_up()
                break
            elif kind is not TransactionDone:
                self._note(event)
        else:
            if not flushed:
                self._flush()
            if self._content.held is not None:
                self._content.go_on()

    def _note(self, event: Event) -> None:
        """What happens to a connection, and not with each message."""
        if isinstance(event, StartTLS):
            self._start_tls()
        elif isinstance(event, OfferRefused):
            self._note_refused(event)
        elif isinstance(event, RecipientsLimited):
            self.most_recipients = event.number
        elif isinstance(event, CredentialsRefused):
            self._log_login_refused(event)

    def _flush(self) -> None:
        if self._wire is not None and (output := self._session.take_output()):
            write_at_once(self._wire, output)
        awaited = self._session.awaited
        if awaited != self._awaited:
            self._awaited = awaited
            self._deadline.set(awaited[1], self._too_late)

    def _settle(self, outcomes: tuple[Outcome, ...]) -> None:
        # A server that ends at STARTTLS has no TLS that works either.
        if self._session.closed and self._session.starttls_refused:
            self._tls_change(TLSChange.FAIL)
        settled, self._settled = self._settled, None
        try:
            self.served += 1
            self._life.clear()
        finally:
            if settled is not None:
                settled.callback(outcomes)

    def _end_unsettled(self) -> None:
        """End the wait for a transaction whose result was lost by a fault of ours."""
        if self._settled is not None and self._transaction is not None:
            text = "a fault inside Elemta; the log has it"
            everyone = [each.address for each in self._transaction.recipients]
            self._settle(self._transaction.attempt.same_for_all(everyone, Status.DEFERRED, "4.3.0", text))

    def _start_tls(self) -> None:
        self._flush()
        if self._wire is not None and self._handshake is not None:
            self._tls_change(TLSChange.START)
            self._wire.startTLS(self._handshake)

    def _tls_change(self, change: TLSChange) -> None:
        self._tls_state = next_tls(self._tls_state, change)

    def _tls_failed(self, reason: str) -> None:
        self._tls_change(TLSChange.FAIL)
        _log.warn(
            "TLS with a next hop failed", event="delivery.tls_failed", next_hop=self.name, reason=reason
        )
        self._act(self._session.tls_failed(reason))

    def _note_refused(self, event: OfferRefused) -> None:
        self.offers_refused.add(event.keyword)
        _log.info(
            "a next hop refuses what it offers",
            event="delivery.offer_refused",
            next_hop=self.name,
            keyword=event.keyword,
        )

    def _log_login_refused(self, event: CredentialsRefused) -> None:
        self.login_refused = True
        _log.error(
            "a next hop did not take the credentials of its route",
            event="delivery.login_refused",
            next_hop=self.name,
            code=event.reply.code,
            reply=event.reply.text,
        )

    @property
    def _queue_id(self) -> str | None:
        """The message that is under way; None between two."""
        return None if self._transaction is None else self._transaction.attempt.queue_id

    def _log_internal_error(self) -> None:
        _log.failure(
            "a connection failed with an internal error",
            event="delivery.connection_failed",
            queue_id=self._queue_id,
            next_hop=self.name,
        )

    # Ends

    def _too_late(self) -> None:
        if self._tls_state is TLSState.HANDSHAKE:
            self._tls_change(TLSChange.FAIL)
        self._act(self._session.timed_out())

    def _outlived(self) -> None:
        self.abandon(f"the transaction was not done after {self._lifetime:g} s")

    def _hang_up(self) -> None:
        if self._wire is None:
            return
        if output := self._session.take_output():
            write_at_once(self._wire, output)
        self._content.stop()
        self._wire.loseConnection()
        self._deadline.set(_QUIT_SECONDS, self.cut)
        # Nothing is awaited of the session any more: whatever still comes does not move this deadline.
        self._awaited = self._session.awaited

    # The content

    def _start_content(self) -> bool:
        """Send the content; whether all of it is sent by now, as what is in memory and small is."""
        try:
            waits = run(self._send_content())
        except Exception:
            self._content_failed(Failure())
            return False
        if waits is None:
            return True
        waits.addErrback(self._content_failed)
        return False

    def _content_failed(self, failure: Failure) -> None:
        if failure.check(SpoolError, OSError) is None:
            _log.failure(
                "sending a message failed",
                failure,
                event="delivery.content_failed",
                queue_id=self._queue_id,
            )
        self.abandon(f"the message could not be read here: {failure.getErrorMessage()}")


async def _send_nothing() -> None:
    """Before the first transaction no content is wanted."""
