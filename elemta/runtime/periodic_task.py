"""Calls that are made every few seconds for as long as the daemon runs."""

from __future__ import annotations

from collections.abc import Callable, Coroutine

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorTime
from twisted.internet.task import LoopingCall
from twisted.logger import Logger

_log = Logger()


def start_periodic_task(reactor: IReactorTime, seconds: float, call: Callable[[], object]) -> LoopingCall:
    """Make the call every so many seconds, for the first time after that. The next one waits for its end.

    The call may give a Deferred or a coroutine. A failure ends the task, and is logged.
    """

    def once() -> object:
        # Twisted 22.4's LoopingCall would let a coroutine lie.
        result = call()
        return Deferred.fromCoroutine(result) if isinstance(result, Coroutine) else result

    loop = LoopingCall(once)
    loop.clock = reactor
    loop.start(seconds, now=False).addErrback(
        lambda failure: _log.failure(
            "a periodic task ended with an internal error", failure, event="daemon.task_failed"
        )
    )
    return loop
