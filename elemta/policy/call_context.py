"""What a service knows of the policy's call that uses it: how much time it has left, and why it failed.

A call that is a coroutine has a :class:`CallContext`. A method that makes its own Deferred has none; its
services take the policy's whole timeout.
"""

from __future__ import annotations

from contextvars import ContextVar

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
