"""Waiting in the reactor for something to come to pass."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

from twisted.internet import reactor
from twisted.internet.defer import Deferred
from twisted.internet.task import deferLater
from twisted.python.failure import Failure

_LOOK_SECONDS = 0.005


async def pause(seconds: float) -> None:
    """Let the reactor run for a while."""
    await deferLater(reactor, seconds)


async def until(condition: Callable[[], Any], what: str = "", patience: float = 60.0) -> Any:
    """The first true value of ``condition``, asked every few milliseconds.

    It is asked for so many seconds, and longer where the machine is slow.
    """
    for _ in range(int(patience / _LOOK_SECONDS)):
        if value := condition():
            return value
        await pause(_LOOK_SECONDS)
    raise AssertionError(f"did not come to pass in {patience:.0f} s: {what or condition}")


async def eventually(condition: Callable[[], Awaitable[Any]], patience: float = 60.0) -> Any:
    """The first true value of a condition that takes a while itself."""
    deadline = reactor.seconds() + patience
    while not (value := await condition()):
        assert reactor.seconds() < deadline, f"did not come to pass in {patience:.0f} s: {condition}"
        await pause(0.02)
    return value


def answered(value: Any) -> Any:
    """The value of what has been answered by now, or its error."""
    if not isinstance(value, Deferred):
        return value
    found: list[Any] = []
    value.addBoth(found.append)
    assert found, "there is no answer yet"
    return found[0].value if isinstance(found[0], Failure) else found[0]


async def failure_of(deferred: Deferred[Any]) -> BaseException:
    """What a Deferred fails with."""
    try:
        value = await deferred
    except Exception as error:
        return error
    raise AssertionError(f"did not fail, but gave {value!r}")
