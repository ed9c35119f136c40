"""A fact for a policy: a session does not wait for what the policy does with it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.interfaces import IReactorTime
from twisted.python.failure import Failure

from elemta.policy.call_context import as_deferred, cancel
from elemta.policy.interfaces import FailureKind
from elemta.policy.runner import PolicyCall, PolicyFailure
from elemta.value_type import value_type


@value_type
class PolicyFact:
    """A fact for a policy: the arguments of the policy's method, and the parties that it is about.

    ``network`` is that of the client that the fact is about.
    """

    shown: tuple[Any, ...]
    network: str
    session_id: str
    queue_id: str = ""


def tell(
    call: PolicyCall,
    fact: PolicyFact,
    clock: IReactorTime,
    over: Callable[[bool], object] | None = None,
) -> bool:
    """Tell a policy a fact. No session waits for it; a failure is logged and counted.

    What the policy does with it later ends with the policy's timeout. Returns whether it does something
    later: then ``over`` is called once at the end of that, with whether it came in time. A caller that waits
    bounds the number of such calls itself, so a busy policy is called all the same.
    """
    runner = call.runner
    facts = runner.facts
    if facts.closed or (facts.many and over is None and not facts.has_space(fact.network)):
        runner.too_busy(call)
        return False
    began = clock.seconds()
    try:
        answer = call.method(*fact.shown)
        if answer is None:
            return False
        pending = as_deferred(answer, began + runner.timeout)
    except BaseException:  # SystemExit and KeyboardInterrupt too: a policy ends no daemon
        failure = PolicyFailure(FailureKind.ERROR, clock.seconds() - began, Failure())
        runner.failed(call, failure, fact.session_id, fact.queue_id)
        return False
    if pending is None:
        return False
    _follow(call, fact, clock, pending, over or _ignore)
    return True


def _follow(
    call: PolicyCall,
    fact: PolicyFact,
    clock: IReactorTime,
    pending: Deferred[Any],
    over: Callable[[bool], object],
) -> None:
    """Count what a policy does with a fact until it is done, and end it with the policy's timeout."""
    runner, began, timed_out = call.runner, clock.seconds(), False

    def failed(kind: FailureKind, failure: Failure | None = None) -> None:
        reason = PolicyFailure(kind, clock.seconds() - began, failure)
        runner.failed(call, reason, fact.session_id, fact.queue_id)

    def time_is_up() -> None:
        nonlocal timed_out
        timed_out = True
        failed(FailureKind.TIMEOUT)
        cancel(pending, runner.name)
        over(False)

    def done(result: object) -> None:
        runner.facts.ended(fact.network)
        if deadline.active():
            deadline.cancel()
        if isinstance(result, Failure) and not (timed_out and result.check(CancelledError)):
            failed(FailureKind.ERROR, result)
        if not timed_out:
            over(True)

    runner.facts.began(fact.network)
    deadline = clock.callLater(runner.timeout, time_is_up)
    pending.addBoth(done)


def _ignore(_: bool) -> None:
    """Nothing waits for it."""
