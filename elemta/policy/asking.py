"""One question to the policies of a chain: in their order, until one decides.

:class:`ChainQuestion` is the base of both kinds of question: those of a session's stages, and that for a
recipient's route. As long as policies answer at once, no Deferred is made.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Generic, Protocol, TypeVar

from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.logger import Logger
from twisted.python.failure import Failure

from elemta.deferred_value import MaybeDeferred, then
from elemta.policy.breaker import CallParties
from elemta.policy.call_context import BegunCall, CallContext, begin, cancel
from elemta.policy.interfaces import FailureKind
from elemta.policy.runner import SLOW, PolicyCall, PolicyFailure
from elemta.policy.verdicts import CONTINUE, Continue, Verdict, verdict_problem
from elemta.policy.views import Message
from elemta.value_type import value_type

_log = Logger()

Q = TypeVar("Q")


@value_type
class ChainDecision:
    """What the chain decided: a verdict and the name of its policy ("" where no policy had an opinion)."""

    verdict: Verdict
    policy: str


NO_OPINION = ChainDecision(CONTINUE, "")


class ChangeableView(Protocol):
    """What a policy may change while it is asked, and not after that."""

    def close(self) -> None: ...


class ChainQuestion(Generic[Q]):
    """The order of a chain and the failures of its policies.

    A subclass says which policies are asked, what they are called with and what a verdict decides. One
    question is asked at a time. No failure of a policy raises here: it counts for the policy's ``on_error``
    verdict.
    """

    __slots__ = ("_accepted", "_clock", "_pending", "_view")

    session_id: str
    queue_id = ""

    def __init__(self, clock: IReactorTime) -> None:
        self._clock = clock
        self._pending: _PendingAnswer | None = None
        # An Accept that did not decide, because relaying is asked for and its policy may not grant it
        self._accepted: ChainDecision | None = None
        # What the policy that is asked now may change
        self._view: ChangeableView | None = None

    def ask(
        self, question: Q, message: Message | None = None, *, left: Iterator[PolicyCall] | None = None
    ) -> MaybeDeferred[ChainDecision]:
        """Ask the policies of a question in their order; the first decisive verdict wins.

        ``message`` is given at the stage MESSAGE. ``left`` are the policies that are left, where a question
        goes on.

        Returns the decision itself when every policy answered at once. The Deferred fails only when it is
        cancelled, which gives the question up. It never fires after :meth:`give_up`.
        """
        calls = self._calls_for(question, message) if left is None else left
        seconds = self._clock.seconds
        for call in calls:
            runner = call.runner
            if self._accepted is not None and not runner.grants_relaying:
                # After an Accept that grants no relaying, only the policies that may grant it are asked.
                continue
            if runner.questions.many and not runner.questions.has_space(self.network):
                verdict = self.too_busy(call)
            else:
                began = seconds()
                try:
                    answer = call.method(*self._arguments(call))
                    later = None if isinstance(answer, Verdict) else self._begin(call, answer, began)
                except BaseException:  # SystemExit and KeyboardInterrupt too: a policy ends no daemon
                    verdict = self.failed(call, FailureKind.ERROR, seconds() - began, Failure())
                else:
                    took = seconds() - began
                    if took >= SLOW:
                        runner.blocked(call, took)
                    if later is not None:
                        self._pending = _PendingAnswer(self, call, later, began, self._clock)
                        return then(self._pending.verdict, self._go_on, question, call, calls)
                    verdict = self.judged(call, answer, took)
            decision = None if verdict is CONTINUE else self._decide(call, verdict)
            if decision is not None:
                return self._decided(decision)
        return self._decided(self._conclude())

    def _go_on(
        self, verdict: Verdict, question: Q, call: PolicyCall, calls: Iterator[PolicyCall]
    ) -> MaybeDeferred[ChainDecision]:
        """A policy's verdict came late: it decides, or the policies after it are asked."""
        self._pending = None
        decision = None if verdict is CONTINUE else self._decide(call, verdict)
        return self.ask(question, left=calls) if decision is None else self._decided(decision)

    def _begin(self, call: PolicyCall, answer: object, began: float) -> BegunCall | None:
        """Begin to wait for an answer; None where it is no Deferred and no coroutine."""
        return begin(answer, began + call.breaker.likely_wait(self.network, began))

    def give_up(self) -> None:
        """Stop waiting; the decision never comes and a late answer counts for nothing."""
        pending, self._pending = self._pending, None
        if pending is not None:
            pending.give_up()

    def judged(
        self,
        call: PolicyCall,
        answer: object,
        took: float,
        *,
        waited: bool = False,
        context: CallContext | None = None,
    ) -> Verdict:
        """The verdict that an answer counts for. ``context`` says what the call waited for, where known."""
        if answer is not CONTINUE:
            problem = self._problem(answer)
            if problem is not None:
                return self.failed(call, FailureKind.INVALID, took, problem=problem)
        verdict: Verdict = answer  # type: ignore[assignment]  # or there was a problem with it
        runner = call.runner
        runner.answered(call, verdict, took)
        if waited:
            if context is not None and context.backend_failed:
                # The policy knew what to answer without its backend. The next session need not wait as long.
                if took >= SLOW:
                    runner.failed_after_wait(call, self.parties(), context)
            else:
                runner.answered_after_wait(call, self.parties(), took)
        view = self._view
        if view is not None:
            view.close()
        if verdict is CONTINUE or isinstance(verdict, Continue):
            return CONTINUE
        self._log_verdict(call, verdict)
        return CONTINUE if runner.observed else verdict

    def too_busy(self, call: PolicyCall) -> Verdict:
        """The verdict of a policy that is not asked because too many of its calls are unanswered."""
        self._note_missing_verdict(call)
        return call.runner.too_busy(call)

    def failed(
        self,
        call: PolicyCall,
        kind: FailureKind,
        took: float,
        failure: Failure | None = None,
        *,
        problem: str = "",
        context: CallContext | None = None,
    ) -> Verdict:
        """The verdict that a failure counts for. ``context`` says what the call waited for, where known."""
        self._note_missing_verdict(call)
        self.close_view()
        if took >= SLOW:
            call.runner.failed_after_wait(call, self.parties(), context)
        failed = PolicyFailure(kind, took, failure, problem)
        return call.runner.failed(call, failed, self.session_id, self.queue_id)

    def close_view(self) -> None:
        """The policy has answered or failed, and may not change the transaction any more."""
        view = self._view
        if view is not None:
            view.close()
            self._view = None

    # What a subclass says

    def _calls_for(self, question: Q, message: Message | None) -> Iterator[PolicyCall]:
        """Begin a question: the policies that are asked, in their order."""
        raise NotImplementedError

    def _decided(self, decision: ChainDecision) -> ChainDecision:
        """The question is decided: tell the policies that observe it."""
        return decision

    def _note_missing_verdict(self, call: PolicyCall) -> None:
        """What the policy itself would have answered is not known."""

    def _problem(self, answer: object) -> str | None:
        """Why an answer is no valid verdict; None where it is one."""
        return verdict_problem(answer)

    @property
    def network(self) -> str:
        """The network of the client that the question is about."""
        raise NotImplementedError

    def parties(self) -> CallParties:
        """The parties that the question is about."""
        raise NotImplementedError

    def _arguments(self, call: PolicyCall) -> tuple[Any, ...]:
        """What the policy's method is called with."""
        raise NotImplementedError

    def _decide(self, call: PolicyCall, verdict: Verdict) -> ChainDecision | None:
        """What a policy's verdict decides; None where the policies after it are still asked."""
        raise NotImplementedError

    def _conclude(self) -> ChainDecision:
        """The decision where no policy made it."""
        raise NotImplementedError

    def _log_verdict(self, call: PolicyCall, verdict: Verdict) -> None:
        raise NotImplementedError


class _PendingAnswer:
    """The answer of a policy that did not answer at once.

    ``verdict`` fires with what the answer, its failure, or the end of its time counts for. An answer after
    that is logged and dropped.
    """

    __slots__ = (
        "_answer",
        "_began",
        "_call",
        "_clock",
        "_context",
        "_deadline",
        "_live",
        "_longest_wait",
        "_question",
        "verdict",
    )

    def __init__(
        self,
        question: ChainQuestion[Any],
        call: PolicyCall,
        begun: BegunCall,
        began: float,
        clock: IReactorTime,
    ) -> None:
        self._question = question
        self._context = begun.context
        self._call = call
        self._answer = answer = begun.answer
        self._began = began
        self._clock = clock
        self._live = True
        self._deadline: IDelayedCall | None = None
        self._longest_wait: float | None = None
        self.verdict: Deferred[Verdict] = Deferred(lambda _: self.give_up())
        call.runner.questions.began(question.network)
        answer.addBoth(self._arrived)
        if self._live:
            self._longest_wait = call.breaker.longest_wait(question.network, began)
            self._deadline = clock.callLater(self._longest_wait, self._time_is_up)

    def give_up(self) -> None:
        """Nothing waits for the decision any more: cancel the policy's work."""
        if self._live:
            self._end()
            cancel(self._answer, self._call.runner.name)

    def _arrived(self, answer: object) -> None:
        call, question = self._call, self._question
        call.runner.questions.ended(question.network)
        if not self._live:
            _log_late(answer, call)
            return
        took = self._end()
        if isinstance(answer, Failure):
            verdict = question.failed(call, FailureKind.ERROR, took, answer, context=self._context)
        else:
            waited = self._longest_wait is not None
            verdict = question.judged(call, answer, took, waited=waited, context=self._context)
        self.verdict.callback(verdict)

    def _time_is_up(self) -> None:
        self._deadline = None
        took = self._end()
        call = self._call
        short = self._longest_wait is not None and self._longest_wait < call.runner.timeout
        kind = FailureKind.OPEN if short else FailureKind.TIMEOUT
        verdict = self._question.failed(call, kind, took, context=self._context)
        cancel(self._answer, call.runner.name)
        self.verdict.callback(verdict)

    def _end(self) -> float:
        """End the wait; return how many seconds it took."""
        self._live = False
        self._question.close_view()
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None
        return self._clock.seconds() - self._began


def _log_late(answer: object, call: PolicyCall) -> None:
    if isinstance(answer, Failure) and answer.check(CancelledError) is not None:
        return
    _log.info(
        "a policy answered after its timeout",
        event="policy.answered_late",
        policy=call.runner.name,
        stage=call.stage_name,
        failed=isinstance(answer, Failure),
    )
