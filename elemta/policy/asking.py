"""Waiting for policies that do not answer at once: deadlines, late answers, and giving up."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.logger import Logger
from twisted.python.failure import Failure

from elemta.policy.breaker import Cause
from elemta.policy.member import Call
from elemta.policy.observer import FailureKind
from elemta.policy.verdicts import Verdict
from elemta.policy.views import Transaction

_log = Logger()


@dataclass(frozen=True, slots=True)
class Decision:
    """What the chain says: a verdict, and the policy that it is from ("" where none had an opinion)."""

    verdict: Verdict
    policy: str


@dataclass(slots=True)
class Turn:
    """One policy's turn at one question.

    ``live`` until its answer came, its time was up, or it was given up: an answer after that is dropped.
    ``patience`` is how many seconds it is waited for, None as long as it was not waited for.
    """

    index: int
    call: Call
    began: float
    view: Transaction | None = None
    answer: Deferred[Any] | None = None
    live: bool = True
    patience: float | None = None


class Asker(Protocol):
    """Who asks the question: it judges answers and failures, and goes on behind them."""

    @property
    def network(self) -> str:
        """The network of the client that the question is about."""

    def cause(self) -> Cause:
        """Everyone that the question is about."""

    def answered(self, turn: Turn, answer: object) -> Verdict:
        """Judge what a policy answered; what it counts for."""

    def failed(self, turn: Turn, kind: FailureKind, failure: Failure | None = None) -> Verdict:
        """Note that a policy failed; what that costs."""

    def decided(self) -> None:
        """Nothing is being asked any more."""


GoOn = Callable[[Turn, Verdict], Decision | Turn]
"""Asks the policies behind a turn that came to a verdict."""


class Asking:
    """A question that some policy did not answer at once.

    ``result`` fires with the decision unless :meth:`give_up` came first; ``decision`` is there as soon as
    one is made, so that nobody waits for Deferreds that had fired already.
    """

    def __init__(self, asker: Asker, clock: IReactorTime, go_on: GoOn) -> None:
        self._asker = asker
        self._clock = clock
        self._next = go_on
        self._turn: Turn | None = None
        self._deadline: IDelayedCall | None = None
        self.decision: Decision | None = None
        self.result: Deferred[Decision] = Deferred(lambda _: self.give_up())

    def wait(self, turn: Turn) -> None:
        """Wait for the answer of ``turn``, then go on with the policies after it."""
        assert turn.answer is not None  # noqa: S101 - a turn without one was settled at once
        self._turn = turn
        call, network = turn.call, self._asker.network
        call.member.questions.began(network)
        turn.answer.addBoth(self._arrived, turn)
        if turn.live:
            turn.patience = call.breaker.patience(network, turn.began)
            self._deadline = self._clock.callLater(turn.patience, self._time_is_up, turn)

    def give_up(self) -> None:
        """The client went away: nobody waits for the decision any more."""
        turn = self._turn
        if turn is None or not turn.live:
            return
        self._end(turn)
        cancel(turn)

    def _arrived(self, answer: object, turn: Turn) -> None:
        turn.call.member.questions.ended(self._asker.network)
        if not turn.live:
            _log_late(answer, turn)
            return
        self._end(turn)
        if isinstance(answer, Failure):
            verdict = self._asker.failed(turn, FailureKind.ERROR, answer)
        else:
            verdict = self._asker.answered(turn, answer)
        self._go_on(turn, verdict)

    def _time_is_up(self, turn: Turn) -> None:
        self._deadline = None
        self._end(turn)
        short = turn.patience is not None and turn.patience < turn.call.member.timeout
        verdict = self._asker.failed(turn, FailureKind.OPEN if short else FailureKind.TIMEOUT)
        cancel(turn)
        self._go_on(turn, verdict)

    def _end(self, turn: Turn) -> None:
        turn.live = False
        self._turn = None
        if turn.view is not None:
            turn.view.writable = False
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None

    def _go_on(self, turn: Turn, verdict: Verdict) -> None:
        step = self._next(turn, verdict)
        if isinstance(step, Turn):
            self.wait(step)
            return
        self.decision = step
        self._asker.decided()
        self.result.callback(step)


def cancel(turn: Turn) -> None:
    """Ask the policy to stop what it is doing. What it does then is its own affair."""
    assert turn.answer is not None  # noqa: S101 - only what was waited for is cancelled
    try:
        turn.answer.cancel()
    except Exception:  # a canceller is a policy's code
        _log.failure(
            "a policy could not be cancelled", event="policy.cancel-failed", policy=turn.call.member.name
        )


def _log_late(answer: object, turn: Turn) -> None:
    if isinstance(answer, Failure) and answer.check(CancelledError) is not None:
        return
    _log.info(
        "a policy answered too late",
        event="policy.late",
        policy=turn.call.member.name,
        stage=turn.call.stage_name,
        failed=isinstance(answer, Failure),
    )
