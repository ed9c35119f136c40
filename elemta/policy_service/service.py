"""The Twisted side of the policy service: connections, and one answer for each request, in order."""

from __future__ import annotations

from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import (
    IAddress,
    IDelayedCall,
    IHalfCloseableProtocol,
    IPushProducer,
    IReactorTime,
)
from twisted.internet.protocol import Factory, Protocol, connectionDone
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import implementer

from elemta.config import ChargeMessagesAt, PolicyServiceConfig
from elemta.directwrite import write_at_once
from elemta.errors import PolicyRequestError
from elemta.limits import Limiter
from elemta.metrics import PolicyServiceMetrics
from elemta.policy_service.decisions import DUNNO, PolicyDecider
from elemta.policy_service.question_queue import QuestionQueue
from elemta.policy_service.requests import (
    MAX_REQUEST,
    PolicyRequest,
    RequestReader,
    encode_answer,
    policy_request,
)

_log = Logger()

REQUEST_SECONDS = 30.0
"""The time for the rest of a request that has begun. Postfix keeps a connection that is idle."""
MAX_CONNECTIONS = 20_000
LOCAL_TROUBLE = "DEFER_IF_PERMIT 4.3.0 Local trouble, try again later"
_ENCODED_DUNNO = encode_answer(DUNNO)
_REQUEST_KIND = "smtpd_access_policy"
_ACTION_KINDS = {"DUNNO": "dunno", "DEFER_IF_PERMIT": "defer", "REJECT": "reject", "421": "disconnect"}


@implementer(IHalfCloseableProtocol, IPushProducer)
class PolicyServiceProtocol(Protocol):
    """One connection of Postfix's. It asks and waits; what it pipelines waits here, in order and bounded.

    A client that does not read its answers gets no further ones; nothing is read from it meanwhile, and it is
    closed after a while. A client such as Exim says at once that it sends no more; it gets its answers, then
    the connection ends.
    """

    def __init__(self, factory: PolicyServiceFactory) -> None:
        self._owner = factory
        self._reader = RequestReader()
        self._answering = False
        self._in_loop = False  # the answer came before its Deferred was returned
        self._deadline: IDelayedCall | None = None
        self._closed = False
        self._paused = False
        self._at_end = False
        self._is_behind = False  # the client does not read its answers

    def connectionMade(self) -> None:
        transport: Any = self.transport
        transport.registerProducer(self, True)
        self._owner.opened(self)

    def pauseProducing(self) -> None:
        self._is_behind = True
        self._pause()
        self._stop_deadline()
        self._deadline = self._owner.reactor.callLater(REQUEST_SECONDS, self._give_up)

    def resumeProducing(self) -> None:
        self._is_behind = False
        self._stop_deadline()
        if not (self._answering or self._closed):
            self._resume()
            self._answer_all()

    def stopProducing(self) -> None:
        """The connection is lost; :meth:`connectionLost` follows."""

    def dataReceived(self, data: bytes) -> None:
        self._reader.receive(data)
        if self._answering:
            self._pause_where_much_waits()
        else:
            self._answer_all()

    def connectionLost(self, reason: Failure = connectionDone) -> None:  # noqa: ARG002
        self._closed = True
        self._stop_deadline()
        self._owner.questions.leave(self)
        self._owner.closed(self)

    def readConnectionLost(self) -> None:
        self.finish()

    def writeConnectionLost(self) -> None:
        self.close()

    def finish(self) -> None:
        """Answer what was asked, read nothing more, then close."""
        self._at_end = True
        if self._answering:
            self._pause()
        else:
            self.close()

    def close(self) -> None:
        """Close without a further answer: Postfix asks again elsewhere, or takes its default action.

        A client that does not read the answers that were sent gets as long as any other.
        """
        transport: Any = self.transport
        self._closed = True
        transport.unregisterProducer()
        transport.loseConnection()
        self._stop_deadline()
        self._deadline = self._owner.reactor.callLater(REQUEST_SECONDS, transport.abortConnection)

    def _give_up(self) -> None:
        self._closed = True
        transport: Any = self.transport
        self._owner.refuse(str(transport.getPeer()), "the client does not read its answers")
        transport.abortConnection()

    def _answer_all(self) -> None:
        """Answer every whole request; stop at one that has to wait for the limits."""
        while not (self._closed or self._is_behind):
            try:
                attributes = self._reader.next_request()
                if attributes is None:
                    break
                self._stop_deadline()  # it was for the request that is whole now
                kind = attributes.get("request")
                if kind in (None, _REQUEST_KIND):
                    request = policy_request(attributes, self._owner.name)
            except PolicyRequestError as error:
                self._refuse(str(error))
                return
            if kind != _REQUEST_KIND:  # what its attributes mean is not known
                self._send(DUNNO)
                continue
            began = self._owner.reactor.seconds()
            if self._owner.questions.is_full:
                self._answering = True
                self._owner.questions.wait(self, request, began)
            else:
                self._ask(request, began)
            if self._answering:
                return
        if self._is_behind:
            return
        self._watch_the_rest()
        if self._at_end and not self._closed:
            self.close()

    def take_turn(self, request: PolicyRequest, began: float) -> None:
        self._answering = False
        if self._closed:
            return
        self._ask(request, began)
        if not (self._answering or self._closed or self._is_behind):
            self._go_on()

    def _ask(self, request: PolicyRequest, began: float) -> None:
        """Ask the limits. The caller goes on where the answer is there at once."""
        try:
            decided = self._owner.decider.decide(request)
        except Exception:
            self._log_failure(Failure())
            decided = LOCAL_TROUBLE
        if not isinstance(decided, Deferred):
            self._observe(began)
            self._send(decided)
            return
        questions = self._owner.questions
        questions.began()
        self._answering = self._in_loop = True
        decided.addCallbacks(self._decided, self._failed, callbackArgs=(began,), errbackArgs=(began,))
        decided.addBoth(questions.ended)
        self._in_loop = False

    def _decided(self, action: str, began: float) -> None:
        self._answering = False
        if self._closed:
            return
        self._observe(began)
        self._send(action)
        if not (self._in_loop or self._is_behind):
            self._go_on()

    def _go_on(self) -> None:
        self._resume()
        if len(self._reader) or self._at_end:
            self._answer_all()

    def _failed(self, failure: Failure, began: float) -> None:
        self._log_failure(failure)
        self._decided(LOCAL_TROUBLE, began)

    def _log_failure(self, failure: Failure) -> None:
        _log.failure("a policy request failed", failure, event="policy_service.internal_error")

    def _send(self, action: str) -> None:
        self._owner.count(action)
        transport: Any = self.transport
        answer = _ENCODED_DUNNO if action is DUNNO else encode_answer(action)
        if len(self._reader):
            # Further answers may follow in this turn, and go in one call of the system with it.
            transport.write(answer)
        else:
            write_at_once(transport, answer)

    def _observe(self, began: float) -> None:
        self._owner.observe(self._owner.reactor.seconds() - began)

    def _refuse(self, why: str) -> None:
        transport: Any = self.transport
        self._owner.refuse(str(transport.getPeer()), why)
        self.close()

    def _pause_where_much_waits(self) -> None:
        if len(self._reader) > MAX_REQUEST:
            self._pause()

    def _pause(self) -> None:
        if not self._paused:
            transport: Any = self.transport
            self._paused = True
            transport.pauseProducing()

    def _resume(self) -> None:
        if self._paused and not self._at_end:
            transport: Any = self.transport
            self._paused = False
            transport.resumeProducing()

    def _watch_the_rest(self) -> None:
        """A request that has begun has to end, in one time for all of its octets."""
        if self._deadline is None and len(self._reader) and not self._closed:
            self._deadline = self._owner.reactor.callLater(
                REQUEST_SECONDS, self._refuse, "the request did not end in time"
            )

    def _stop_deadline(self) -> None:
        if self._deadline is not None and self._deadline.active():
            self._deadline.cancel()
        self._deadline = None


class PolicyServiceFactory(Factory):
    """The connections of one ``[[policy_service]]``, and what counts them."""

    noisy = False

    def __init__(
        self, service: PolicyServiceConfig, metrics: PolicyServiceMetrics, reactor: IReactorTime
    ) -> None:
        self.name = service.name
        self.reactor = reactor
        self._limiter: Limiter | None = None
        self.decider = PolicyDecider(service.charge_messages_at, self._limits)
        self.questions = QuestionQueue(reactor)
        self._open: dict[PolicyServiceProtocol, None] = {}
        self._metrics = metrics
        self._connections = metrics.connections.labels(service.name)
        self._refused = metrics.refused_requests.labels(service.name)
        self._actions = {
            word: metrics.requests.labels(service.name, kind) for word, kind in _ACTION_KINDS.items()
        }
        self._seconds = metrics.seconds.labels(service.name)

    def set_limits(self, limiter: Limiter, charge_messages_at: ChargeMessagesAt) -> None:
        """Decide by these limits from now on."""
        self._limiter = limiter
        self.decider.charge_messages_at = charge_messages_at

    def buildProtocol(self, addr: IAddress | None) -> Protocol | None:  # noqa: ARG002
        if self._limiter is None or len(self._open) >= MAX_CONNECTIONS:
            return None
        return PolicyServiceProtocol(self)

    def close_connections(self) -> None:
        """Close every connection, after the answers that are under way: they were charged."""
        for protocol in list(self._open):
            protocol.finish()

    def opened(self, protocol: PolicyServiceProtocol) -> None:
        self._open[protocol] = None
        self._connections.inc()

    def closed(self, protocol: PolicyServiceProtocol) -> None:
        if self._open.pop(protocol, self) is None:
            self._connections.dec()

    def count(self, action: str) -> None:
        kind = action if action is DUNNO else action.partition(" ")[0]
        self._actions[kind].inc()

    def observe(self, seconds: float) -> None:
        self._seconds.observe(seconds)

    def refuse(self, peer: str, why: str) -> None:
        """Count and log a connection that is closed for what it sent."""
        self._refused.inc()
        _log.warn(
            "closed a connection of the policy service {service}: {reason}",
            event="policy_service.request_refused",
            service=self.name,
            peer=peer,
            reason=why,
        )

    def _limits(self) -> Limiter:
        assert self._limiter is not None  # noqa: S101 - no connection is taken before it is set
        return self._limiter
