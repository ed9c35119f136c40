"""The policies on the way out: who may choose a recipient's route, and who is told of attempts.

They are those of the chain, with the same deadlines, breakers and bounds: a policy that is left alone at its
stages is left alone here.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from ipaddress import ip_address
from typing import Any, cast

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger
from twisted.python.failure import Failure

from elemta.envelope import Envelope, Recipient
from elemta.limits.identity import network_identity
from elemta.outcome import Outcome
from elemta.policy.asking import Asking, Decision, Turn
from elemta.policy.breaker import Cause
from elemta.policy.member import SLOW, Call, Trouble, problem_of
from elemta.policy.observer import FailureKind
from elemta.policy.telling import tell
from elemta.policy.verdicts import (
    CONTINUE,
    Continue,
    Defer,
    Hold,
    RouteTo,
    Verdict,
    name_of,
    nonsense_in_choice,
)
from elemta.policy.walking import NO_OPINION, go_on, walk

_log = Logger()


class DeliveryHooks:
    """What delivery asks and tells the policies of a chain. Made by the chain, replaced with it at a reload.

    Nothing here raises because of a policy, and no Deferred of it ever fails.
    """

    def __init__(self, asked: Sequence[Call], told: Sequence[Call], clock: IReactorTime) -> None:
        self._asked = tuple(asked)
        self._told = tuple(told)
        self._clock = clock

    @property
    def asks(self) -> bool:
        """Whether any policy wants to be asked for routes."""
        return bool(self._asked)

    @property
    def tells(self) -> bool:
        """Whether any policy wants to be told of attempts."""
        return bool(self._told)

    def route(self, envelope: Envelope, recipient: Recipient) -> Decision | Deferred[Decision]:
        """Which way a recipient's mail leaves; the first policy with an opinion decides.

        The verdict is ``RouteTo``, ``Hold``, ``Defer`` (try again later) or, for the routes of the
        configuration, ``CONTINUE``. It comes at once where all policies answered at once; cancelling the
        Deferred gives the question up.
        """
        if not self._asked:
            return NO_OPINION
        return _Question(self._asked, self._clock, envelope, recipient).ask()

    def attempted(self, outcome: Outcome, envelope: Envelope | None = None) -> None:
        """Tell the policies of an attempt; nobody waits for them.

        With the envelope, only those that care for the listener that the message came in by.
        """
        for call in self._told:
            if envelope is None or call.member.cares_for(envelope.client.listener):
                session_id = "" if envelope is None else envelope.client.session_id
                network = "" if envelope is None else _network_of(envelope)
                tell(call, (outcome,), self._clock, session_id, outcome.queue_id, network=network)


class _Question:
    """One recipient of one message, about whom the policies are asked one after the other."""

    def __init__(
        self, calls: Sequence[Call], clock: IReactorTime, envelope: Envelope, recipient: Recipient
    ) -> None:
        listener = envelope.client.listener
        self._calls = [call for call in calls if call.member.cares_for(listener)]
        self._clock = clock
        self._envelope = envelope
        self._recipient = recipient

    def ask(self) -> Decision | Deferred[Decision]:
        step = walk(self, self._clock, self._calls)
        if isinstance(step, Decision):
            return step
        asking = Asking(self, self._clock, partial(go_on, self, self._clock, self._calls))
        asking.wait(step)
        return asking.decision or asking.result

    # What follows is for the walk through the chain.

    @property
    def network(self) -> str:
        """The network of the client that the message is from; "" for one of ours."""
        return _network_of(self._envelope)

    def cause(self) -> Cause:
        """Everyone that the question is about."""
        envelope = self._envelope
        return Cause(
            self.network,
            envelope.client.helo.lower() or None,
            envelope.sender.domain.lower(),
            self._recipient.domain.lower(),
        )

    def decided(self) -> None:
        """Nothing is being asked any more."""

    def answered(self, turn: Turn, answer: object) -> Verdict:
        """Judge what a policy answered; returns what it counts for."""
        problem = problem_of(answer, nonsense_in_choice)
        if problem is not None:
            return self.failed(turn, FailureKind.NONSENSE, problem=problem)
        verdict = cast(Verdict, answer)
        member = turn.call.member
        seconds = self._clock.seconds() - turn.began
        member.answered(turn.call, verdict, seconds)
        if turn.patience is not None:
            member.waited_well(turn.call, self.cause(), seconds)
        if isinstance(verdict, Continue):
            return CONTINUE
        self._log_verdict(turn.call, verdict)
        return CONTINUE if member.observed else verdict

    def failed(
        self, turn: Turn, kind: FailureKind, failure: Failure | None = None, problem: str = ""
    ) -> Verdict:
        """Note that a policy failed; returns what that costs."""
        member = turn.call.member
        seconds = self._clock.seconds() - turn.began
        if seconds >= SLOW:
            member.waited_in_vain(turn.call, self.cause())
        session_id = self._envelope.client.session_id
        trouble = Trouble(kind, seconds, failure, problem)
        return member.failed(turn.call, trouble, session_id, self._envelope.queue_id)

    def arguments(self, _: Turn) -> tuple[Any, ...]:
        """What every policy is shown."""
        return self._envelope, self._recipient

    def passes_over(self, _: Call) -> bool:
        """Every policy is asked, until one chooses."""
        return False

    def decide(self, call: Call, verdict: Verdict) -> Decision:
        """A policy chose."""
        return Decision(verdict, call.member.name)

    def conclude(self) -> Decision:
        """No policy chose: the routes of the configuration decide."""
        return NO_OPINION

    def _log_verdict(self, call: Call, verdict: Verdict) -> None:
        facts = {
            "event": "policy.route",
            "policy": call.member.name,
            "verdict": name_of(verdict),
            "queue_id": self._envelope.queue_id,
            "recipient": str(self._recipient),
        }
        if call.member.observed:
            facts["mode"] = "observe"
        if isinstance(verdict, RouteTo):
            _log.info("a policy chose a route", target=verdict.target, **facts)
        elif isinstance(verdict, Hold):
            _log.info("a policy keeps mail from leaving", reason=verdict.reason, **facts)
        elif isinstance(verdict, Defer):
            _log.info("a policy lets mail wait", reason=verdict.text, **facts)


def _network_of(envelope: Envelope) -> str:
    try:
        return network_identity(ip_address(envelope.client.ip))
    except ValueError:
        return ""
