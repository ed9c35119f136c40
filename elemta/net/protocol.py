"""The protocol that moves bytes between a transport and a session, in order, with bounds and deadlines."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

from OpenSSL import SSL
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.interfaces import (
    IHalfCloseableProtocol,
    IHandshakeListener,
    IPushProducer,
    IUNIXTransport,
)
from twisted.internet.protocol import connectionDone
from twisted.python.failure import Failure
from zope.interface import implementer

from elemta.directwrite import unsent_memory, write_at_once
from elemta.net import tls
from elemta.net.backend import SessionBackend
from elemta.net.connection_log import ConnectionLog
from elemta.net.connection_state import (
    CLOSING,
    ENDING,
    IN_HANDSHAKE,
    ConnectionChange,
    ConnectionState,
    next_state,
)
from elemta.net.context import ListenerContext
from elemta.net.input_flow import InputFlow
from elemta.net.live_sessions import LiveSession
from elemta.net.registry import ClientConnection, ConnectionRegistry
from elemta.net.socket_address import address_of
from elemta.net.timeouts import ConnectionTimeouts, TimeoutKind
from elemta.smtp import replies
from elemta.smtp.events import (
    Close,
    Event,
    Forgave,
    MessageData,
    MessageStarted,
    PauseQuestion,
    Proceed,
    Refuse,
    Replied,
    Response,
    StartTLS,
    TransactionEnded,
)
from elemta.smtp.memory import SessionMemory
from elemta.smtp.session import ServerSession
from elemta.smtp.session_info import SessionInfo


@implementer(IHandshakeListener, IHalfCloseableProtocol, IPushProducer)
class ESMTPProtocol(ClientConnection):
    """One client's connection: the session handles SMTP, the backend handles mail."""

    def __init__(
        self,
        registry: ConnectionRegistry,
        context: ListenerContext,
        facts: SessionInfo,
        *,
        health_check: bool = False,
    ) -> None:
        super().__init__(facts.client_ip, facts.listener)
        self._registry = registry
        self._context = context
        self.facts = facts
        self.health_check = health_check
        self._session = ServerSession(context.session, facts, registry.envelopes)
        self._backend = SessionBackend(context, facts, health_check=health_check)
        self._log = ConnectionLog(registry, context.metrics, facts, health_check=health_check)
        self._handshake: tls.ServerHandshake | None = None
        self._deadlines = ConnectionTimeouts(context.server.command_timeout, context.server.data_timeout)
        self._reading = InputFlow(registry, self._deadlines)
        # The answer that the open question waits for
        self._pending: Deferred[Response] | None = None
        self._state = ConnectionState.OPEN
        self._heard_all = False
        self._draining = False
        self._continuing = False
        # Whether a reply was sent since the last deadline was set.
        self._has_replied = False

    def _change(self, change: ConnectionChange) -> None:
        self._state = next_state(self._state, change)

    # From the transport

    def connectionMade(self) -> None:
        # A Unix socket of older Twisteds has the method, and raises.
        if hasattr(self.transport, "setTcpNoDelay") and not IUNIXTransport.providedBy(self.transport):
            self.transport.setTcpNoDelay(True)
        self._reading.begin(self.transport)
        self.transport.registerProducer(self, True)
        if not self.facts.server_port:
            self.facts.server_ip, self.facts.server_port = address_of(self.transport.getHost())
        self._registry.add(self)
        self._log.opened()
        if self._registry.trace.watches:
            self.follow()
        if self._context.implicit_tls:
            self._start_tls()
        else:
            self._run(self._session.open())

    def handshakeCompleted(self) -> None:
        self._change(ConnectionChange.TLS_STARTED)
        self._registry.handshake_ended(self)
        handshake, self._handshake = self._handshake, None
        if handshake is not None:
            handshake.completed()
        info = tls.describe(cast(SSL.Connection, self.transport.getHandle()))
        self._context.metrics.tls_connections.labels(info.version).inc()
        if self._context.implicit_tls:
            self.facts.tls = info
            self._run(self._session.open())
        else:
            self._run(self._session.tls_started(info))

    def dataReceived(self, data: bytes) -> None:
        if self._state in ENDING:
            return
        if self._deadlines.waiting is TimeoutKind.MESSAGE:
            self._deadlines.received(len(data), self._registry.seconds())
        self._run(self._session.receive(data))

    def readConnectionLost(self) -> None:
        """The client has closed its half, or all: it is answered what it asked, as it may still listen.

        A client that does not get the 250 after its dot would send the message again.
        """
        self._heard_all = True
        if self._state in CLOSING:
            self.transport.loseConnection()
        self._leave_if_all_is_said()

    def _tls_closed(self) -> None:
        """The client's close_notify came: it sends no more. TLS is still at work, so wait a turn."""
        self._registry.pause(0).addCallback(lambda _: self.readConnectionLost())

    def writeConnectionLost(self) -> None:
        """Our half is closed, as we wanted."""

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        handshake_failed = self._state in IN_HANDSHAKE
        self._change(ConnectionChange.LOSE)
        pending, self._pending = self._pending, None
        if pending is not None and isinstance(self._session.question, PauseQuestion):
            pending.cancel()
        if handshake_failed:
            self._registry.handshake_ended(self)
            handshake, self._handshake = self._handshake, None
            self._log.handshake_failed(b"" if handshake is None else handshake.heard, reason)
        try:
            for event in self._session.lost():
                _ACTIONS[type(event)](self, event)
            self._backend.disconnected()
            if self._session.state.trace is not None:
                self._session.state.trace.ended()
        finally:
            # Whatever goes wrong: a connection that is gone takes no place and holds up no stop.
            if self._reading.waiting_memory:
                self._reading.count_waiting(0)
            self._registry.remove(self)
            self._log.closed(reason)

    # From the transport as a consumer: the client does not read, or reads again

    def pauseProducing(self) -> None:
        self._deadlines.unread(self._registry.seconds())
        self._session.unread = True
        self._reading.pause("unread replies", self._state)

    def resumeProducing(self) -> None:
        self._deadlines.read_again()
        self._session.unread = False
        self._reading.resume("unread replies", self._state)
        if not self._continuing:
            self._use_input()

    def stopProducing(self) -> None:
        self._reading.pause("connection is closing", self._state)

    # From the registry of connections

    @property
    def handshaking(self) -> bool:
        """Whether a TLS handshake is under way."""
        return self._state in IN_HANDSHAKE

    def refuse_handshake(self) -> None:
        """End it before its handshake is done: its client has too many of them with the host's workers."""
        self._log.refused_in_handshake(replies.TOO_MANY_CONNECTIONS, "max_connections_per_ip")
        self.abort()

    def follow(self) -> None:
        """Something watches: show it this conversation from now on."""
        if self._session.state.trace is None and not self.health_check:
            ip = self.facts.client_ip
            self._session.state.trace = self._registry.trace.conversation("in", self.facts.id, ip, str(ip))

    def describe(self) -> LiveSession:
        """What the session does now."""
        return LiveSession.of(self._session, self._log.seconds, self._deadlines.waiting.value)

    @property
    def memory(self) -> SessionMemory:
        """The memory that this session takes beyond that of an idle one."""
        transaction = self._session.transaction
        envelope = 0 if transaction is None else transaction.memory.held
        return SessionMemory(self._session.input_memory, unsent_memory(self.transport), envelope)

    def drain(self) -> None:
        """Say 421 to this client as soon as no message of its is under way."""
        self._draining = True
        self._shut_if_drained()

    def abort(self) -> None:
        """Close at once, without another word."""
        if self._state is not ConnectionState.LOST:
            self.transport.abortConnection()

    def check_deadline(self, now: float) -> None:
        """Called about once a second: act when the deadline has passed."""
        if self._deadlines.gave_up_reading(now):
            self._log.timed_out("the client does not read")
            self.abort()
        elif self._deadlines.has_passed(now):
            self._time_out(now)

    def _time_out(self, now: float) -> None:
        waiting = self._deadlines.waiting
        if self._reading.paused_for and waiting in (TimeoutKind.COMMAND, TimeoutKind.MESSAGE):
            self._deadlines.hold(now, reading=False)
            return
        self._log.timed_out(waiting.value)
        if waiting in (TimeoutKind.CLOSE, TimeoutKind.HANDSHAKE):
            self.abort()
        elif waiting is TimeoutKind.ANSWER:
            self._give_up_waiting()
        else:
            self._run(self._session.shut(replies.TIMEOUT, f"timeout: {waiting.value}"))

    def _give_up_waiting(self) -> None:
        pending = self._pending
        if pending is not None:
            # What is being done for the answer ends, and that is answered.
            pending.cancel()
        if pending is self._pending and self._session.question is not None:
            self._pending = None
            self._run(self._session.answer(Refuse(replies.LOCAL_TROUBLE, reason="no answer in time")))

    # The loop: events out of the session, answers into it

    def _run(self, events: list[Event]) -> None:
        session = self._session
        following: list[Event] | None = events
        while following is not None:
            for event in following:
                if type(event) in _ACTIONS:
                    _ACTIONS[type(event)](self, event)
                    continue
                question = session.state.question
                if event is not question:
                    raise TypeError(f"no action for {event!r}")
                # It is always the last.
                if type(question) is PauseQuestion:
                    answer = self._pause(question)
                else:
                    answer = self._backend.answer(question)
                if isinstance(answer, Response):
                    following = session.answer(answer)
                    break
                # It has not fired yet: a value that is there comes as itself.
                self._pending = answer
                answer.addCallback(self._answered, answer)
                following = None
                break
            else:
                following = session.go_on() if session.held_up and self._may_go_on() else None
        if session.state.output:
            self._flush()
        self._wait()

    def _wait(self) -> None:
        """Begin to wait for what comes next, or end where nothing does."""
        if self._state is ConnectionState.OPEN:
            self._expect()
        if self._draining:
            self._shut_if_drained()
        if self._heard_all:
            self._leave_if_all_is_said()

    def _may_go_on(self) -> bool:
        """Send a long output; whether the session may look at more of its input at once."""
        session = self._session
        if session.unread:
            return False
        self._flush()
        if self.facts.tls is not None and not self._continuing:
            # TLS joins what is written in one turn of the reactor, and only then the transport can be full.
            self._continuing = True
            self._registry.pause(0).addCallback(lambda _: self._continue())
        return self.facts.tls is None and not session.unread

    def _continue(self) -> None:
        self._continuing = False
        self._use_input()

    def _use_input(self) -> None:
        """Let the session go on with what is left of its input."""
        session = self._session
        if session.held_up and not session.unread and self._state not in ENDING:
            self._run(session.go_on())

    def _pause(self, question: PauseQuestion) -> Response | Deferred[Response]:
        pause = self._registry.pause(question.seconds)
        # A pause that is cut short is over, too.
        return pause.addErrback(lambda failure: failure.trap(CancelledError) and None).addCallback(
            lambda _: Proceed()
        )

    def _answered(self, answer: Response, pending: Deferred[Response]) -> None:
        """A late answer came; it counts unless the session has gone on without it."""
        if pending is self._pending:
            self._pending = None
            self._run(self._session.answer(answer))

    def _message_started(self, event: MessageStarted) -> None:
        self._reading.take_message(by_tls=self.facts.tls is not None)
        self._backend.message_started(event.transaction)

    def _transaction_ended(self, event: TransactionEnded) -> None:
        self._reading.take_commands(by_tls=self.facts.tls is not None)
        self._backend.transaction_ended(event.transaction, event.accepted)

    def _replied(self, event: Replied) -> None:
        self._has_replied = True
        if self.health_check:
            return
        self._context.metrics.replies.labels(event.verb, event.reply.code).inc()
        if event.reply.code >= 400:
            self._log.refused(event, self._backend.queue_id, self._backend.asked)

    def _forgave(self, event: Forgave) -> None:
        self._log.forgave(event)

    def _take(self, event: MessageData) -> None:
        behind = self._backend.message_data(event.data)
        if behind is not None and "disk" not in self._reading.paused_for:
            self._reading.pause("disk", self._state)
            behind.when_drained().addBoth(lambda _: self._reading.resume("disk", self._state))

    def _expect(self) -> None:
        """What the connection waits for now, and until when."""
        session, state = self._session, self._session.state
        if state.question is not None:
            waiting = TimeoutKind.ANSWER
        elif state.message is not None or state.chunk is not None:
            waiting = TimeoutKind.MESSAGE
        else:
            waiting = TimeoutKind.COMMAND
        # A partial command line gets no new deadline, nor does a message's next read.
        if self._has_replied or waiting is not self._deadlines.waiting:
            self._has_replied = False
            registry = self._registry
            # The seconds of the registry, for each command.
            self._deadlines.wait(waiting, registry.reactor_seconds() - registry.stood_still)
        buffered = session.input.octets
        reading = self._reading
        if buffered or reading.waiting_memory:
            reading.count_waiting(session.input_memory if buffered else 0)
        # A line whose rest is to come waits for nothing else, and must not stop the reading.
        if buffered and (waiting is TimeoutKind.ANSWER or session.held_up) and reading.is_too_much(buffered):
            reading.pause("input", self._state)
        elif "input" in reading.paused_for:
            reading.resume("input", self._state)

    def _flush(self) -> None:
        state = self._session.state
        output, state.output = state.output, b""
        if output and self._state is not ConnectionState.LOST:
            write_at_once(self.transport, output)

    def _start_tls_when_told(self, _event: StartTLS) -> None:
        self._flush()
        self._start_tls()

    def _start_tls(self) -> None:
        certificate = self._context.certificate
        if certificate is None:
            self._close("no certificate")
            return
        self._change(ConnectionChange.START_TLS)
        self._reading.take_commands(by_tls=True)
        self._deadlines.wait(TimeoutKind.HANDSHAKE, self._registry.seconds())
        self._handshake = certificate.handshake(self._tls_closed)
        self.transport.startTLS(self._handshake)
        if not self.health_check:
            self._registry.handshake_began(self, binding=self._context.implicit_tls)

    def _close_when_told(self, event: Close) -> None:
        self._close(event.reason, in_message=event.in_message)

    def _close(self, reason: str, *, in_message: bool = False) -> None:
        if self._state in ENDING:
            return
        self._flush()
        self._change(ConnectionChange.CLOSE)
        self._deadlines.wait(TimeoutKind.CLOSE, self._registry.seconds())
        self._log.closing(reason)
        self.transport.unregisterProducer()
        if self._reading.paused_for:
            self.transport.resumeProducing()
        if in_message and self.facts.tls is None:
            # TLS waits for the other side's close by itself.
            self.transport.loseWriteConnection()
        else:
            self.transport.loseConnection()

    def _shut_if_drained(self) -> None:
        session = self._session
        if self._draining and not (self._state in ENDING or session.receiving or session.question):
            self._draining = False
            self._run(session.shut(replies.SHUTTING_DOWN, "drain"))

    def _leave_if_all_is_said(self) -> None:
        session = self._session
        open_still = self._state is ConnectionState.OPEN
        if self._heard_all and open_still and session.question is None and not session.held_up:
            self._close("the client has closed")


_ACTIONS: dict[type[Event], Callable[[ESMTPProtocol, Any], None]] = {
    Replied: ESMTPProtocol._replied,
    MessageData: ESMTPProtocol._take,
    MessageStarted: ESMTPProtocol._message_started,
    TransactionEnded: ESMTPProtocol._transaction_ended,
    Forgave: ESMTPProtocol._forgave,
    StartTLS: ESMTPProtocol._start_tls_when_told,
    Close: ESMTPProtocol._close_when_told,
}
