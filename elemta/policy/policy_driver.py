"""Calling one policy without a chain, for tests: a clock stands for the reactor, and errors are raised."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from twisted.internet.defer import Deferred, succeed
from twisted.internet.task import Clock
from twisted.python.failure import Failure

from elemta.config import PolicyCommon
from elemta.policy.call_context import as_deferred
from elemta.policy.verdicts import Verdict

_T = TypeVar("_T")


class PolicyDriver:
    """Calls the methods of ``policy``, each with the deadline of its ``common`` options on ``clock``."""

    policy: Any
    clock: Clock
    common: PolicyCommon

    def _answer(
        self,
        method: Callable[..., object],
        *shown: object,
        problem_of: Callable[[object], str | None],
    ) -> Deferred[Verdict]:
        """The verdict of one of its methods. An answer with a problem fails it with AssertionError."""
        return self._result(method(*shown)).addCallback(_valid, problem_of)

    def _tell(self, fact: str, *shown: object, wait: float) -> None:
        """Tell it a fact, where it has a method for that, and wait until it has taken it."""
        method = getattr(self.policy, fact, None)
        if method is not None:
            self._wait(self._result(method(*shown)), wait)

    def _wait(self, answer: Deferred[_T], seconds: float) -> _T:
        """The answer, for which the clock is advanced by ``seconds`` at most; else AssertionError."""
        results: list[_T] = []
        failures: list[Failure] = []
        answer.addCallbacks(results.append, failures.append)
        if seconds and not results and not failures:
            self.clock.advance(seconds)
        if failures:
            failures[0].raiseException()
        if not results:
            raise AssertionError(f"no answer within {seconds:g} s")
        return results[0]

    def _result(self, answer: object) -> Deferred[Any]:
        pending = as_deferred(answer, self.clock.seconds() + self.common.timeout)
        return succeed(answer) if pending is None else pending


def _valid(answer: _T, problem_of: Callable[[object], str | None]) -> _T:
    problem = problem_of(answer)
    if problem is not None:
        raise AssertionError(problem)
    return answer
