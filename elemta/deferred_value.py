"""A value now or a Deferred later: one driver for code that must not wait where nothing has to wait.

A function that may have to wait is written as a generator. It yields a value or a Deferred and receives the
value::

    def _charge(self, request: Request) -> Steps[Answer]:
        answer: Answer = yield self._store.acquire([request])
        return answer

:func:`run` drives it and returns the value itself when nothing had to wait. :func:`then` does so for code
that waits at one place, and takes no generator while nothing waits. ``Deferred.fromCoroutine`` always makes a
Deferred, so it is for sequences that wait anyway.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Generator
from typing import Any, Concatenate, Generic, ParamSpec, TypeAlias, TypeVar, cast, overload

from twisted.internet.defer import Deferred
from twisted.python.failure import Failure

T = TypeVar("T")
V = TypeVar("V")
P = ParamSpec("P")

MaybeDeferred: TypeAlias = T | Deferred[T]
"""A value, or a Deferred that fires with one."""

Steps: TypeAlias = Generator[object, Any, T]
"""What :func:`run` drives. Its ``return`` value is never a Deferred: yield that first."""

_NOT_FIRED: Any = object()


def run(steps: Steps[T] | Coroutine[Deferred[Any], Any, T]) -> MaybeDeferred[T]:
    """Run ``steps`` to their end; return their value, or a Deferred of it from the first wait on.

    A coroutine is run in the same way.

    A yielded Deferred that failed raises its exception at the ``yield``. An exception that ``steps`` let
    through is raised here when nothing had to wait, and fails the Deferred otherwise. To cancel the Deferred
    cancels what ``steps`` wait for. The stack does not grow with the number of steps.
    """
    try:
        value: Any = steps.send(None)
        while Deferred not in type(value).__mro__:
            value = steps.send(value)
    except StopIteration as end:
        at_once: T = end.value
        return at_once
    waiting = _WaitingSteps(steps)
    waiting.wait(value)
    if not waiting.ended:
        return waiting.result
    if waiting.failure is not None:
        waiting.failure.raiseException()
    reached: T = waiting.value
    return reached


def then(
    value: MaybeDeferred[V],
    step: Callable[Concatenate[V, P], MaybeDeferred[T]],
    *args: P.args,
    **kwargs: P.kwargs,
) -> MaybeDeferred[T]:
    """``step(value, …)`` now, or once the Deferred has fired; what it returns may have to be waited for, too.

    A Deferred that failed fails the result, or raises here where it has failed already. Cancelling is as in
    :func:`run`. No other Deferred is made: the one that is given becomes the result.
    """
    # Deferred is an abstract base class, whose isinstance() takes ten times as long.
    if Deferred not in type(value).__mro__:
        return step(value, *args, **kwargs)  # type: ignore[arg-type]  # a cast is a call
    later: Deferred[V] = value  # type: ignore[assignment]  # as above
    result: Deferred[T] = later.addCallback(step, *args, **kwargs)
    if not result.called or result.paused:
        return result
    reached: Any = result.result
    if isinstance(reached, Failure):
        result.addErrback(_handled)
        reached.raiseException()
    at_once: T = reached
    return at_once


def _handled(failure: Failure) -> None:
    """It is raised."""


def handled(
    value: MaybeDeferred[V],
    step: Callable[Concatenate[V, P], T],
    failed: Callable[Concatenate[Failure, P], T],
    *args: P.args,
    **kwargs: P.kwargs,
) -> MaybeDeferred[T]:
    """``step(value, …)`` now, or when the Deferred fires; the value itself where it has fired already.

    ``failed`` gets the failure of a Deferred, and returns a value in its place, or raises. No other Deferred
    is made: for what happens for each message and waits at one place.
    """
    if Deferred not in type(value).__mro__:
        return step(cast(V, value), *args, **kwargs)
    later = cast("Deferred[V]", value)
    return fired_value(
        later.addCallbacks(
            step, failed, callbackArgs=args, callbackKeywords=kwargs, errbackArgs=args, errbackKeywords=kwargs
        )
    )


def fired_value(value: Deferred[T]) -> MaybeDeferred[T]:
    """The value itself where the Deferred has fired with one, else the Deferred."""
    if value.called and not value.paused and not isinstance(value.result, Failure):
        return cast(T, value.result)
    return value


async def value_of(value: MaybeDeferred[T]) -> T:
    """The value, for a coroutine: it waits only where ``value`` is a Deferred."""
    return await value if isinstance(value, Deferred) else value


@overload
def detached(
    value: Deferred[T], unwanted: Callable[[T], object], failed: Callable[[Failure], object]
) -> Deferred[T]: ...


@overload
def detached(
    value: MaybeDeferred[T], unwanted: Callable[[T], object], failed: Callable[[Failure], object]
) -> MaybeDeferred[T]: ...


def detached(
    value: MaybeDeferred[T], unwanted: Callable[[T], object], failed: Callable[[Failure], object]
) -> MaybeDeferred[T]:
    """``value``, but to cancel the wait cancels no work.

    After a cancellation ``unwanted`` gets the value, or ``failed`` the failure, when it comes.
    """
    if Deferred not in type(value).__mro__:
        return value
    work: Deferred[T] = value  # type: ignore[assignment]  # a cast is a call
    awaited: Deferred[T] = Deferred()

    def succeeded(result: T) -> None:
        if awaited.called:
            unwanted(result)
        else:
            awaited.callback(result)

    def failure_came(failure: Failure) -> None:
        if awaited.called:
            failed(failure)
        else:
            awaited.errback(failure)

    work.addCallbacks(succeeded, failure_came)
    return awaited


class _WaitingSteps(Generic[T]):
    """Steps that have met a Deferred. ``result`` fires unless they end before :func:`run` returns it."""

    __slots__ = ("_arrived", "_awaited", "_steps", "ended", "failure", "result", "value")

    def __init__(self, steps: Steps[T] | Coroutine[Deferred[Any], Any, T]) -> None:
        self._steps = steps
        self._awaited: Deferred[Any] | None = None
        self._arrived: Any = None
        self.ended = False
        self.value: Any = None
        self.failure: Failure | None = None
        self.result: Deferred[T] = Deferred(self._cancel)

    def wait(self, awaited: Deferred[Any]) -> None:
        """Go on as far as the Deferreds have fired already."""
        while True:
            self._awaited = awaited
            self._arrived = _NOT_FIRED
            awaited.addBoth(self._fired)
            arrived = self._arrived
            if arrived is _NOT_FIRED:
                self._arrived = None
                return
            next_awaited = self._step(arrived)
            if next_awaited is None:
                return
            awaited = next_awaited

    def _fired(self, arrived: object) -> None:
        if self._arrived is _NOT_FIRED:
            # It had fired before: the loop in wait() goes on, and the stack does not grow.
            self._arrived = arrived
            return
        awaited = self._step(arrived)
        if awaited is not None:
            self.wait(awaited)
        if self.ended:
            self._tell()

    def _step(self, value: Any) -> Deferred[Any] | None:
        """Take steps up to the next Deferred; None at their end."""
        self._awaited = None
        steps = self._steps
        try:
            if isinstance(value, Failure):
                value = value.throwExceptionIntoGenerator(steps)
            while not isinstance(value, Deferred):
                value = steps.send(value)
        except StopIteration as end:
            self.ended, self.value = True, end.value
            return None
        except BaseException:  # as in any callback: it fails the result
            self.ended, self.failure = True, Failure()
            return None
        return value

    def _tell(self) -> None:
        if self.result.called:
            # Cancelled, and the steps ended later. A value is dropped; a failure is logged as unhandled.
            if self.failure is not None:
                self.failure.raiseException()
        elif self.failure is not None:
            self.result.errback(self.failure)
        else:
            self.result.callback(self.value)

    def _cancel(self, _result: Deferred[T]) -> None:
        if self._awaited is not None:
            self._awaited.cancel()
