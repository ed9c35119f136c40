"""Telling policies facts. Nobody waits for what they do with one; what goes wrong is logged and counted."""

from __future__ import annotations

from typing import Any

from twisted.internet.defer import CancelledError
from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger
from twisted.python.failure import Failure

from elemta.policy.member import Call, Trouble, as_deferred
from elemta.policy.observer import FailureKind

_log = Logger()


def tell(
    call: Call,
    arguments: tuple[Any, ...],
    clock: IReactorTime,
    session_id: str,
    queue_id: str = "",
    *,
    network: str,
) -> None:
    """Tell a policy a fact. What it does later with it ends with the policy's timeout.

    ``network`` is that of the client that the fact is about.
    """
    member = call.member
    if member.facts.many and not member.facts.has_room(network):
        member.too_busy(call)
        return
    began = clock.seconds()
    try:
        pending = as_deferred(call.method(*arguments))
    except KeyboardInterrupt:
        raise
    except BaseException:  # SystemExit too: a policy does not take the daemon down
        member.failed(
            call, Trouble(FailureKind.ERROR, clock.seconds() - began, Failure()), session_id, queue_id
        )
        return
    if pending is None:
        return
    timed_out = False

    def time_is_up() -> None:
        nonlocal timed_out
        timed_out = True
        member.failed(call, Trouble(FailureKind.TIMEOUT, clock.seconds() - began), session_id, queue_id)
        try:
            pending.cancel()
        except Exception:  # a canceller is a policy's code
            _log.failure("a policy could not be cancelled", event="policy.cancel-failed", policy=member.name)

    def done(result: object) -> None:
        member.facts.ended(network)
        if deadline.active():
            deadline.cancel()
        if isinstance(result, Failure) and not (timed_out and result.check(CancelledError)):
            member.failed(
                call, Trouble(FailureKind.ERROR, clock.seconds() - began, result), session_id, queue_id
            )

    member.facts.began(network)
    deadline = clock.callLater(member.timeout, time_is_up)
    pending.addBoth(done)
