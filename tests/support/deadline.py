"""A deadline that also ends a test which waits for a Deferred: hooks for pytest, beside pytest-timeout.

pytest-timeout raises in whatever runs when its time is up. While an async test waits, that is the reactor's
main loop, which logs the exception and goes on. Here the wait itself fails. The time runs again for the
teardown, so that a fixture can't hang either after a test that failed.
"""

from __future__ import annotations

import contextlib
import gc
import inspect
import signal
import threading
from collections.abc import Iterator
from types import FrameType
from typing import Any

import greenlet
import pytest
import pytest_timeout
import pytest_twisted
from twisted.internet.defer import Deferred
from twisted.python.failure import Failure

#: Modules that wait for events: an exception raised there ends nothing.
_IDLE = ("twisted.internet.", "selectors", "asyncio.")

_waits: list[Deferred[Any]] = []
_blockon = pytest_twisted.blockon_default


def _blockon_with_deadline(awaited: Deferred[Any]) -> Any:
    """Wait as pytest-twisted does, for a Deferred that a deadline may fail in place of ``awaited``."""
    wait: Deferred[Any] = Deferred()

    def end(result: Any) -> None:
        if not wait.called:
            wait.callback(result)

    awaited.addBoth(end)
    _waits.append(wait)
    try:
        return _blockon(wait)
    finally:
        _waits.remove(wait)


pytest_twisted.blockon_default = _blockon_with_deadline


@pytest.hookimpl(tryfirst=True)
def pytest_timeout_set_timer(item: pytest.Item, settings: Any) -> bool | None:
    """Start the timer of ``item``. None where pytest-timeout has to: in a thread no signal arrives."""
    if settings.method != "signal" or threading.current_thread() is not threading.main_thread():
        return None

    def ring(_: int, frame: FrameType | None) -> None:
        if pytest_timeout.is_debugging() and not settings.disable_debugger_detection:
            return
        # Once more, should the test not end of it.
        signal.setitimer(signal.ITIMER_REAL, settings.timeout)
        _end(item, settings.timeout, frame)

    def cancel() -> None:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, signal.SIG_DFL)

    setattr(item, "cancel_timeout", cancel)  # noqa: B010 - where pytest-timeout looks for it
    setattr(item, "set_timeout_again", lambda: pytest_timeout_set_timer(item, settings))  # noqa: B010
    signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, settings.timeout)
    return True


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_teardown(item: pytest.Item) -> Iterator[None]:
    """Give the teardown its own time: pytest-timeout stops the timer of a test that has failed."""
    getattr(item, "set_timeout_again", lambda: None)()
    return (yield)


def _end(item: pytest.Item, seconds: float, frame: FrameType | None) -> None:
    """Fail what ``item`` waits for, and interrupt what runs."""
    failed = pytest.fail.Exception(f"the test did not end within {seconds:g} s{_where(item)}", pytrace=True)
    if greenlet.getcurrent() is not pytest_twisted._instances.gr_twisted:
        raise failed
    from twisted.internet import reactor

    for wait in tuple(_waits):
        reactor.callFromThread(_fail, wait, failed)  # type: ignore[attr-defined]
    module = "" if frame is None else str(frame.f_globals.get("__name__", ""))
    if not module.startswith(_IDLE):
        raise failed


def _fail(wait: Deferred[Any], error: BaseException) -> None:
    if not wait.called:
        wait.errback(Failure(error))


def _where(item: pytest.Item) -> str:
    """Where the coroutines of an async test stand, innermost last."""
    code = getattr(inspect.unwrap(getattr(item, "obj", None) or _where), "__code__", None)
    places = []
    for found in gc.get_objects():
        with contextlib.suppress(ReferenceError):
            if not inspect.iscoroutine(found) or found.cr_code is not code:
                continue
            awaited: Any = found
            while inspect.iscoroutine(awaited) and awaited.cr_frame is not None:
                places.append(f"{awaited.cr_code.co_filename}:{awaited.cr_frame.f_lineno}")
                awaited = awaited.cr_await
    return "".join(f"\n  waiting at {place}" for place in places)
