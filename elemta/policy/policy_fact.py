"""A fact for a policy: a session does not wait for what the policy does with it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from twisted.internet.defer import CancelledError
from twisted.internet.interfaces import IReactorTime
from twisted.python.failure import Failure

from elemta.policy.call_context import as_deferred, cancel
from elemta.policy.interfaces import FailureKind
from elemta.policy.runner import PolicyCall, PolicyFailure


@dataclass(frozen=True, slots=True)
class PolicyFact:
    """A fact for a policy: the arguments of the policy's method, and the parties that it is about.

    ``network`` is that of the client that the fact is about.
    """

    shown: tuple[Any, ...]
    network: str
    session_id: str
    queue_id: str = ""


def tell(call: PolicyCall, fact: PolicyFact, clock: IReactorTime) -> None:
    """Tell a policy a fact. No session waits for it; a failure is logged and counted.

    What the policy does with it later ends with the policy's timeout.
    """
    runner = call.runner
    if runner.facts.many and not runner.facts.has_space(fact.network):
        runner.too_busy(call)
        return
    began = clock.seconds()

    def failed(kind: FailureKind, failure: Failure | None = None) -> None:
        reason = PolicyFailure(kind, clock.seconds() - began, failure)
        runner.failed(call, reason, fact.session_id, fact.queue_id)

    try:
        pending = as_deferred(call.method(*fact.shown), began + runner.timeout)
    except KeyboardInterrupt:
        raise
    except BaseException:  # SystemExit too: a policy does not end the daemon
        failed(FailureKind.ERROR, Failure())
        return
    if pending is None:
        return
    timed_out = False

    def time_is_up() -> None:
        nonlocal timed_out
        timed_out = True
        failed(FailureKind.TIMEOUT)
        cancel(pending, runner.name)

    def done(result: object) -> None:
        runner.facts.ended(fact.network)
        if deadline.active():
            deadline.cancel()
        if isinstance(result, Failure) and not (timed_out and result.check(CancelledError)):
            failed(FailureKind.ERROR, result)

    runner.facts.began(fact.network)
    deadline = clock.callLater(runner.timeout, time_is_up)
    pending.addBoth(done)
