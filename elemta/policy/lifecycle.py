"""The life of policies: started before they are first asked, stopped after their last session.

No failure of a policy gets out of here. A policy whose start failed is not asked: its ``on_error`` verdict
applies, and the start is tried again.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.logger import Logger
from twisted.python.failure import Failure

from elemta.deferred_value import MaybeDeferred, Steps, run, value_of
from elemta.policy.backends import PolicyBackends
from elemta.policy.call_context import as_deferred, cancel
from elemta.policy.chain import PolicyChain
from elemta.policy.interfaces import ILifecycle
from elemta.policy.runner import LoadedPolicy, PolicyRunner

_log = Logger()

FIRST_RETRY = 1.0
LAST_RETRY = 60.0
"""Seconds until a start that failed is tried again: the wait doubles up to this."""

_LOOK_AGAIN = 0.25
_LINGER = 1.0


class PolicyLives:
    """Starts the policies of each chain that comes into force, and stops those of chains that are over."""

    def __init__(self, clock: IReactorTime, backends: PolicyBackends) -> None:
        self._clock = clock
        self._backends = backends
        self._chains: list[_ChainLife] = []

    def start(self, chain: PolicyChain) -> MaybeDeferred[None]:
        """Start the policies of ``chain``; each gets the policy of its name that it is to replace.

        The Deferred fires when each has started, failed, or taken its whole timeout. It never fails.
        """
        before = self._chains[-1] if self._chains else None
        life = _ChainLife(chain, self._clock, self._backends)
        self._chains.append(life)
        return run(life.start(before))

    def retire_others(self, chain: PolicyChain) -> None:
        """``chain`` is in force now: stop the others as soon as nothing asks them any more."""
        for life in list(self._chains):
            if life.chain is not chain:
                life.retire(self._over)

    async def stop(self) -> None:
        """The daemon ends, and no session is left: stop all."""
        lives, self._chains = self._chains, []
        for stopping in [run(life.stop()) for life in lives]:
            await value_of(stopping)
        self._backends.close()

    def _over(self, life: _ChainLife) -> None:
        if life not in self._chains:
            return
        self._chains.remove(life)
        used = {loaded.name for each in self._chains for loaded in each.chain.policies}
        self._backends.retire(frozenset(loaded.name for loaded in life.chain.policies) - used)


class _ChainLife:
    """The policies of one chain."""

    def __init__(self, chain: PolicyChain, clock: IReactorTime, backends: PolicyBackends) -> None:
        self.chain = chain
        self.lives = [_PolicyLife(loaded, runner, clock, backends) for loaded, runner in chain.members]
        self._clock = clock
        self._looking: IDelayedCall | None = None
        self._retired = False
        self._linger = max((life.timeout for life in self.lives), default=0.0) + _LINGER

    def start(self, before: _ChainLife | None) -> Steps[None]:
        """Start all at the same time, and wait for each."""
        known = {} if before is None else {life.name: life for life in before.lives}
        # Not "yield from": a list takes nothing of what run() sends.
        for started in [run(life.start(known.get(life.name))) for life in self.lives]:  # noqa: UP028
            yield started

    def retire(self, over: Callable[[_ChainLife], None]) -> None:
        """Stop as soon as no session and no delivery asks, and then call ``over``."""
        if not self._retired:
            self._retired = True
            self._look(over, None)

    def _look(self, over: Callable[[_ChainLife], None], since: float | None) -> None:
        self._looking = None
        now = self._clock.seconds()
        if self.chain.sessions:
            since = None
        elif since is None:
            since = now
        # A call that ignores its cancellation may never end.
        if since is not None and (self.chain.idle or now - since >= self._linger):
            stopping = Deferred.fromCoroutine(value_of(run(self.stop())))
            stopping.addCallback(lambda _: over(self)).addErrback(_not_stopped)
            return
        self._looking = self._clock.callLater(_LOOK_AGAIN, self._look, over, since)

    def stop(self) -> Steps[None]:
        """Stop all at the same time, and wait until each has, or has taken its whole timeout."""
        if self._looking is not None:
            self._looking.cancel()
            self._looking = None
        for stopped in [run(life.stop()) for life in self.lives]:  # noqa: UP028
            yield stopped


class _PolicyLife:
    """One policy that was built."""

    def __init__(
        self, loaded: LoadedPolicy, runner: PolicyRunner, clock: IReactorTime, backends: PolicyBackends
    ) -> None:
        self.name = loaded.name
        self.policy: Any = loaded.policy
        self.timeout = loaded.common.timeout
        self.stopped = False
        self._loaded = loaded
        self._runner = runner
        self._clock = clock
        self._backends = backends
        self._has_life = bool(ILifecycle.providedBy(loaded.policy))
        self._retry: IDelayedCall | None = None
        self._pause = FIRST_RETRY
        self._predecessor: _PolicyLife | None = None

    def start(self, predecessor: _PolicyLife | None) -> Steps[None]:
        """Start it, where it has a life of its own; a start that fails is tried again later."""
        if self._has_life:
            self._predecessor = predecessor
            self._runner.close_to_questions()
            yield from self._try_to_start()

    def _try_to_start(self) -> Steps[None]:
        self._retry = None
        before = self._predecessor
        replaced = None if before is None or before.stopped else before.policy
        failure = yield from self._call(lambda: self.policy.start(replaced), "start")
        if self.stopped:
            return
        if failure is None:
            self._predecessor = None
            self._runner.open_to_questions()
            return
        self._runner.lifecycle_failed("start", failure, retry_in=self._pause)
        self._retry = self._clock.callLater(self._pause, lambda: run(self._try_to_start()))
        self._pause = min(self._pause * 2, LAST_RETRY)

    def stop(self) -> Steps[None]:
        """Stop it, also where its start failed."""
        if self.stopped:
            return
        self.stopped = True
        if self._retry is not None:
            self._retry.cancel()
            self._retry = None
        if self._has_life:
            failure = yield from self._call(lambda: self.policy.stop(), "stop")  # noqa: PLW0108 - to look it up may raise
            if failure is not None:
                self._runner.lifecycle_failed("stop", failure)
        services = self._loaded.services
        if services is not None:
            # A policy with a life closes its connections itself: it may have handed them over.
            self._backends.release(services.connect, close=not self._has_life)

    def _call(self, method: Callable[[], object], words: str) -> Steps[Failure | None]:
        """Call a method of the policy within its timeout; returns its failure."""
        try:
            answer = as_deferred(method(), self._clock.seconds() + self.timeout)
            if answer is not None:
                yield self._in_time(answer, words)
        except BaseException:  # SystemExit and KeyboardInterrupt too: a policy ends no daemon
            return Failure()
        return None

    def _in_time(self, answer: Deferred[Any], words: str) -> Deferred[None]:
        done: Deferred[None] = Deferred()

        def ended(result: object) -> None:
            if not done.called:
                timer.cancel()
                done.callback(result if isinstance(result, Failure) else None)

        def too_late() -> None:
            done.errback(TimeoutError(f"no end of {words} within {self.timeout:g} s"))
            cancel(answer, self.name)

        timer = self._clock.callLater(self.timeout, too_late)
        answer.addBoth(ended)
        return done


def _not_stopped(failure: Failure) -> None:
    _log.failure("a chain that was replaced did not stop", failure, event="policy.chain_not_stopped")
