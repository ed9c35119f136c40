"""A policy's call that takes its time, and what a service knows of it: the time left, and why it failed.

A call that is a coroutine has a :class:`CallContext`. A method that makes its own Deferred has none; its
services take the policy's whole timeout.
"""

from __future__ import annotations

from contextvars import ContextVar
from inspect import iscoroutine
from typing import Any, NamedTuple

from twisted.internet.defer import Deferred
from twisted.logger import Logger

_log = Logger()

MARGIN = 0.9
"""The share of the time left that one wait may take: a failure still reaches the policy in time."""

LEAST = 0.01
"""Seconds. A wait that begins too late gets this long, and then fails as any other."""


class CallContext:
    """One call of a policy.

    ``deadline`` is in the reactor's seconds. ``backend_failed``: a backend of the policy's own let it down.
    ``waits_for_backend`` counts what it waits for there.
    """

    __slots__ = ("asked_dns", "backend_failed", "deadline", "waits_for_backend")

    def __init__(self, deadline: float) -> None:
        self.deadline = deadline
        self.asked_dns = False
        self.backend_failed = False
        self.waits_for_backend = 0

    @property
    def is_of_client(self) -> bool:
        """Whether a failure of this call says nothing of a backend: only DNS was asked, about a client."""
        return self.asked_dns and not self.backend_failed and not self.waits_for_backend


_current: ContextVar[CallContext | None] = ContextVar("elemta_policy_call", default=None)


def current_call() -> CallContext | None:
    """The call of a policy whose code runs now."""
    return _current.get()


class calling:  # noqa: N801 - a context manager
    """While a call's coroutine is started: Twisted keeps the context for all of its steps."""

    __slots__ = ("_context", "_token")

    def __init__(self, context: CallContext) -> None:
        self._context = context

    def __enter__(self) -> CallContext:
        self._token = _current.set(self._context)
        return self._context

    def __exit__(self, *_: object) -> None:
        _current.reset(self._token)


def seconds_left(now: float, most: float) -> float:
    """How long a service may take now: within ``most`` seconds, and within the call that asks."""
    call = _current.get()
    if call is None:
        return most
    return min(most, max(LEAST, (call.deadline - now) * MARGIN))


class BackendWait:
    """While the policy waits for a backend of its own. ``failed`` is to be called where that lets it down."""

    __slots__ = ("_call",)

    def __init__(self) -> None:
        self._call = _current.get()
        if self._call is not None:
            self._call.waits_for_backend += 1

    def ended(self, *, failed: bool) -> None:
        call, self._call = self._call, None
        if call is not None:
            call.waits_for_backend -= 1
            call.backend_failed = call.backend_failed or failed


class BegunCall(NamedTuple):
    """A call that takes its time. ``context`` is None for a Deferred that the policy made itself."""

    answer: Deferred[Any]
    context: CallContext | None


def begin(answer: object, deadline: float) -> BegunCall | None:
    """A call whose answer is a Deferred or a coroutine; else None.

    Runs a coroutine's beginning; the services that it uses know ``deadline``, in the reactor's seconds.
    """
    if answer is None:
        return None
    if isinstance(answer, Deferred):
        return BegunCall(answer, None)
    if iscoroutine(answer):
        context = CallContext(deadline)
        with calling(context):
            return BegunCall(Deferred.fromCoroutine(answer), context)
    return None


def as_deferred(answer: object, deadline: float) -> Deferred[Any] | None:
    """``answer`` as a Deferred where it is one or is a coroutine, else None."""
    begun = begin(answer, deadline)
    return None if begun is None else begun.answer


def cancel(answer: Deferred[Any], policy: str) -> None:
    """Cancel the work of a policy."""
    try:
        answer.cancel()
    except BaseException:  # a canceller is a policy's code, and SystemExit would leave a question open
        _log.failure("a policy could not be cancelled", event="policy.cancel_failed", policy=policy)
