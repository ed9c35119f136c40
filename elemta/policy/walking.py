"""The way through a chain: one policy after the other, until one decides or has to be waited for.

It is the same for the stages of a conversation and for the way out. What is asked and what an answer means
is the walker's; admission, failures and order are said here once.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from twisted.internet.interfaces import IReactorTime
from twisted.python.failure import Failure

from elemta.policy.asking import Asker, Decision, Turn
from elemta.policy.member import SLOW, Call, as_deferred
from elemta.policy.observer import FailureKind
from elemta.policy.verdicts import CONTINUE, Verdict

NO_OPINION = Decision(CONTINUE, "")


class Walker(Asker, Protocol):
    """Who asks one question of a chain."""

    def arguments(self, turn: Turn, /) -> tuple[Any, ...]:
        """What the policy's method is called with."""

    def passes_over(self, call: Call) -> bool:
        """Whether a policy is not asked, because one before it settled what it would be asked."""

    def decide(self, call: Call, verdict: Verdict) -> Decision | None:
        """What a policy's verdict decides; None where the policies after it are still asked."""

    def conclude(self) -> Decision:
        """The decision, where no policy made it."""


def walk(walker: Walker, clock: IReactorTime, calls: Sequence[Call], start: int = 0) -> Decision | Turn:
    """Ask the policies from ``start`` on; gives the decision, or the turn that has to be waited for."""
    for index in range(start, len(calls)):
        call = calls[index]
        if walker.passes_over(call):
            continue
        said = _ask(walker, clock, index, call)
        if said is CONTINUE:
            continue
        if isinstance(said, Turn):
            return said
        decision = walker.decide(call, said)
        if decision is not None:
            return decision
    return walker.conclude()


def go_on(
    walker: Walker, clock: IReactorTime, calls: Sequence[Call], turn: Turn, verdict: Verdict
) -> Decision | Turn:
    """Go on behind a policy that was waited for."""
    if verdict is not CONTINUE:
        decision = walker.decide(turn.call, verdict)
        if decision is not None:
            return decision
    return walk(walker, clock, calls, turn.index + 1)


def _ask(walker: Walker, clock: IReactorTime, index: int, call: Call) -> Verdict | Turn:
    member = call.member
    if member.questions.many and not member.questions.has_room(walker.network):
        return member.too_busy(call)
    began = clock.seconds()
    turn = Turn(index, call, began)
    try:
        answer = call.method(*walker.arguments(turn))
        turn.answer = None if isinstance(answer, Verdict) else as_deferred(answer)
    except KeyboardInterrupt:
        raise
    except BaseException:  # SystemExit too: a policy does not take the daemon down
        return walker.failed(turn, FailureKind.ERROR, Failure())
    if clock.seconds() - began >= SLOW:
        member.blocked(call, clock.seconds() - began)
    return walker.answered(turn, answer) if turn.answer is None else turn
