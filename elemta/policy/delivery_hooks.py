"""The policies in delivery: the question for a recipient's route, and facts about attempts.

They are those of the chain, with the same deadlines, breakers and bounds.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from ipaddress import ip_address
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger

from elemta.deferred_value import MaybeDeferred, then
from elemta.envelope import Envelope, Recipient
from elemta.errors import NotSigned
from elemta.limits.identity import network_identity
from elemta.outcome import Outcome
from elemta.policy.asking import NO_OPINION, ChainDecision, ChainQuestion
from elemta.policy.breaker import REST, CallParties
from elemta.policy.call_context import CallContext
from elemta.policy.message_view import MessageContent, OutgoingMessage
from elemta.policy.policy_fact import PolicyFact, tell
from elemta.policy.runner import PolicyCall
from elemta.policy.verdicts import (
    CONTINUE,
    Continue,
    Defer,
    Hold,
    Reject,
    RouteTo,
    Verdict,
    name_of,
    route_problem,
)
from elemta.policy.views import Message

_log = Logger()


class DeliveryHooks:
    """The calls of delivery to the policies of a chain. A reload replaces them with the chain.

    No failure of a policy raises here or fails a Deferred.
    """

    def __init__(
        self,
        asked: Sequence[PolicyCall],
        notified: Sequence[PolicyCall],
        clock: IReactorTime,
        signers: Sequence[PolicyCall] = (),
        ended: Sequence[PolicyCall] = (),
        *,
        recording: Sequence[PolicyCall] = (),
    ) -> None:
        self._ended = tuple(ended)
        self._recording = tuple(recording)
        # Until when no record waits for a policy, by its name: it took its whole timeout.
        self._not_awaited: dict[str, float] = {}
        self._signers = tuple(signers)
        self.signs = bool(self._signers)
        """Whether any policy signs what leaves."""
        self._asked = tuple(asked)
        self._notified = tuple(notified)
        self._clock = clock

    @property
    def asks(self) -> bool:
        """Whether any policy chooses routes."""
        return bool(self._asked)

    @property
    def tells(self) -> bool:
        """Whether any policy observes attempts."""
        return bool(self._notified)

    @property
    def tells_end(self) -> bool:
        """Whether any policy observes the end of deliveries."""
        return bool(self._ended)

    def ended(self, envelope: Envelope, recipient: Recipient, outcome: Outcome) -> None:
        """Tell the policies that nothing more is tried for a recipient, without waiting for them."""
        network, session_id = _network_of(envelope), envelope.client.session_id
        for call in self._ended:
            if call.runner.serves(envelope.client.listener):
                shown = envelope, recipient, outcome
                tell(call, PolicyFact(shown, network, session_id, envelope.queue_id), self._clock)

    @property
    def keeps(self) -> bool:
        """Whether any policy keeps what is about to be recorded."""
        return bool(self._recording)

    def recording(
        self, envelope: Envelope, recipient: Recipient, outcome: Outcome
    ) -> Sequence[Deferred[None]]:
        """Let the policies keep what is about to be recorded of a recipient.

        The Deferreds fire when they have, or had the time for it, and never fail. A policy that did not have
        it in time is not waited for until it has rested.
        """
        network, session_id = _network_of(envelope), envelope.client.session_id
        waiting = []
        for call in self._recording:
            if call.runner.serves(envelope.client.listener):
                shown = envelope, recipient, outcome
                fact = PolicyFact(shown, network, session_id, envelope.queue_id)
                done = self._tell_awaited(call, fact)
                if done is not None:
                    waiting.append(done)
        return waiting

    def _tell_awaited(self, call: PolicyCall, fact: PolicyFact) -> Deferred[None] | None:
        name, done = call.runner.name, Deferred[None]()

        def over(in_time: bool) -> None:
            if not in_time:
                self._not_awaited[name] = self._clock.seconds() + REST
            if not done.called:
                done.callback(None)

        patient = self._clock.seconds() >= self._not_awaited.get(name, 0.0)
        later = tell(call, fact, self._clock, over if patient else None)
        return done if later and patient else None

    def sign(self, envelope: Envelope, content: MessageContent) -> MaybeDeferred[bytes]:
        """Let the policies sign a message that is about to be stored; returns the fields to put on top.

        Fails with NotSigned where a policy failed and its ``on_error`` says so.
        """
        asked = _SignQuestion(self._clock, envelope, content).ask(self._signers)
        return then(asked, _fields_of, content)

    def route(self, envelope: Envelope, recipient: Recipient) -> ChainDecision | Deferred[ChainDecision]:
        """Ask for a recipient's route; the first policy with an opinion decides.

        The verdict is ``RouteTo``, ``Hold``, ``Defer`` (try again later) or, for the routes of the
        configuration, ``CONTINUE``. Returns the decision itself when every policy answered at once. To
        cancel the Deferred gives the question up.
        """
        if not self._asked:
            return NO_OPINION
        return _RouteQuestion(self._clock, envelope, recipient).ask(self._asked)

    def attempted(self, outcome: Outcome, envelope: Envelope | None = None) -> None:
        """Tell the policies about an attempt, without waiting for them.

        With the envelope, only those of the listener that received the message.
        """
        for call in self._notified:
            if envelope is None or call.runner.serves(envelope.client.listener):
                session_id = "" if envelope is None else envelope.client.session_id
                network = "" if envelope is None else _network_of(envelope)
                tell(call, PolicyFact((outcome,), network, session_id, outcome.queue_id), self._clock)


class _EnvelopeQuestion(ChainQuestion[Sequence[PolicyCall]]):
    """A question about a message, to the policies of the listener that received it; the first decides."""

    __slots__ = ("_envelope", "queue_id", "session_id")

    def __init__(self, clock: IReactorTime, envelope: Envelope) -> None:
        super().__init__(clock)
        self._envelope = envelope
        self.session_id = envelope.client.session_id
        self.queue_id = envelope.queue_id

    def _calls_for(self, question: Sequence[PolicyCall], message: Message | None) -> Iterator[PolicyCall]:
        del message  # a signer gets a view of it
        listener = self._envelope.client.listener
        return iter([call for call in question if call.runner.serves(listener)])

    @property
    def network(self) -> str:
        return _network_of(self._envelope)

    def _decide(self, call: PolicyCall, verdict: Verdict) -> ChainDecision:
        return ChainDecision(verdict, call.runner.name)

    def _conclude(self) -> ChainDecision:
        return NO_OPINION


class _RouteQuestion(_EnvelopeQuestion):
    """The question for the route of one recipient of one message."""

    __slots__ = ("_recipient",)

    def __init__(self, clock: IReactorTime, envelope: Envelope, recipient: Recipient) -> None:
        super().__init__(clock, envelope)
        self._recipient = recipient

    def parties(self) -> CallParties:
        envelope = self._envelope
        return CallParties(
            self.network,
            envelope.client.helo.lower() or None,
            envelope.sender.domain.lower(),
            self._recipient.domain.lower(),
        )

    def _problem(self, answer: object) -> str | None:
        return route_problem(answer)

    def _arguments(self, call: PolicyCall) -> tuple[Any, ...]:  # noqa: ARG002
        return self._envelope, self._recipient

    def _log_verdict(self, call: PolicyCall, verdict: Verdict) -> None:
        facts = {
            "event": "policy.route",
            "policy": call.runner.name,
            "verdict": name_of(verdict),
            "session_id": self.session_id,
            "queue_id": self._envelope.queue_id,
            "recipient": str(self._recipient),
        }
        if call.runner.observed:
            facts["mode"] = "observe"
        if isinstance(verdict, RouteTo):
            # Not the credentials.
            said = {name: getattr(verdict, name) for name in ("tls", "source", "address_family")}
            shown = {name: str(value) for name, value in said.items() if value is not None}
            _log.info("a policy chose a route", target=verdict.target, **shown, **facts)
        elif isinstance(verdict, Hold):
            _log.info("a policy put a recipient on hold", reason=verdict.reason, **facts)
        elif isinstance(verdict, Defer):
            _log.info("a policy deferred a delivery", reason=verdict.text, **facts)


class _SignQuestion(_EnvelopeQuestion):
    """The question to the policies that sign, about one message."""

    __slots__ = ("_content",)

    def __init__(self, clock: IReactorTime, envelope: Envelope, content: MessageContent) -> None:
        super().__init__(clock, envelope)
        self._content = content

    def parties(self) -> CallParties:
        envelope = self._envelope
        return CallParties(self.network, envelope.client.helo.lower() or None, envelope.sender.domain.lower())

    def judged(
        self,
        call: PolicyCall,
        answer: object,
        took: float,
        *,
        waited: bool = False,
        context: CallContext | None = None,
    ) -> Verdict:
        """A policy that signs returns nothing, which counts as Continue."""
        verdict = CONTINUE if answer is None else answer
        return super().judged(call, verdict, took, waited=waited, context=context)

    def _problem(self, answer: object) -> str | None:
        return None if isinstance(answer, Continue) else "a policy that signs returns nothing"

    def _arguments(self, call: PolicyCall) -> tuple[Any, ...]:
        view = OutgoingMessage(self._content, observed=call.runner.observed)
        self._view = view
        return self._envelope, view

    def _log_verdict(self, call: PolicyCall, verdict: Verdict) -> None:
        """There is none but that of a failure, which was logged."""


def _fields_of(decision: ChainDecision, content: MessageContent) -> bytes:
    if not isinstance(decision.verdict, Continue):
        refused = isinstance(decision.verdict, Reject)
        raise NotSigned(f"the policy {decision.policy} could not sign it", refused=refused)
    return b"".join(content.header.top)


def _network_of(envelope: Envelope) -> str:
    """The network of the client that the message is from; "" for a message of this host."""
    try:
        return network_identity(ip_address(envelope.client.ip))
    except ValueError:
        return ""
