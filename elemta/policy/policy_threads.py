"""The threads of a policy: ``result = await services.threads(function, *arguments)``."""

from __future__ import annotations

from collections.abc import Callable
from typing import ParamSpec, Protocol, TypeVar

from twisted.internet.defer import Deferred, fail
from twisted.python.failure import Failure

from elemta.errors import BackendError
from elemta.policy.call_context import BackendWait
from elemta.runtime import Threads, WorkerPool

P = ParamSpec("P")
R = TypeVar("R")

THREADS = 4
"""Threads of one policy."""

MOST_WAITING = 1000
"""Calls of one policy that are done in threads or wait for one."""


class InThreads(Protocol):
    """``services.threads``: does blocking work in a thread of the policy's own."""

    def __call__(self, f: Callable[P, R], /, *args: P.args, **kwargs: P.kwargs) -> Deferred[R]:
        """The Deferred fires with what ``f`` returns, or fails with what it raises.

        To cancel it ends the wait and not the work. Fails with :class:`~elemta.errors.BackendError` where
        too many calls wait for a thread.
        """


class PolicyThreads:
    """A pool for one policy. Its threads start with the first call, and keep no process from ending."""

    def __init__(self, threads: Threads, name: str, most: int = THREADS) -> None:
        self._threads = threads
        self._name = name
        self._most = most
        self._pool: WorkerPool | None = None
        self.waiting = 0

    def __call__(self, f: Callable[P, R], /, *args: P.args, **kwargs: P.kwargs) -> Deferred[R]:
        if self.waiting >= MOST_WAITING:
            return fail(BackendError(f"{MOST_WAITING} calls wait for a thread of {self._name}"))
        if self._pool is None:
            self._pool = self._threads.pool(f"elemta-policy-{self._name}", self._most, daemon=True)
            self._pool.start()
        self.waiting += 1
        wait = BackendWait()
        answer: Deferred[R] = Deferred(lambda _: wait.ended(failed=False))

        def done(result: R | Failure) -> None:
            # The work is over, whether or not its caller still waits.
            self.waiting -= 1
            wait.ended(failed=False)
            if not answer.called:
                answer.callback(result)

        self._pool.call(f, *args, **kwargs).addBoth(done)
        return answer

    def close(self) -> None:
        """End the threads when their work is done, without waiting for it."""
        pool, self._pool = self._pool, None
        if pool is not None:
            pool.leave()
