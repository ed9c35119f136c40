"""Turns of the epoll reactor without a log context for each ready socket."""

from __future__ import annotations

from functools import partial
from typing import Any

from twisted.internet.base import ReactorBase


def skip_log_contexts(reactor: ReactorBase) -> None:
    """Let ``reactor`` call what is ready without a context for ``twisted.python.log``.

    For each ready socket Twisted asks the protocol for its name and makes a context that has it, for records
    of the old log. That is a third of its own calls from the kernel to ``dataReceived``, and Elemta's log
    shows no such name. Any other reactor than Twisted's on epoll stays as it is.
    """
    from twisted.internet.epollreactor import EPollReactor  # noqa: PLC0415 - where there is epoll

    if type(reactor) is EPollReactor:
        # The instance's own: the loop asks it for `doIteration` in each turn.
        setattr(reactor, "doIteration", partial(_poll, reactor))  # noqa: B010 - as in Runtime.system


def _poll(reactor: Any, timeout: float | None) -> None:
    """``EPollReactor.doPoll``, but for the context. These attributes are as old as that reactor is."""
    selectables, ready = reactor._selectables, reactor._doReadOrWrite
    for descriptor, event in reactor._poller.poll(-1 if timeout is None else timeout, len(selectables)):
        selectable = selectables.get(descriptor)
        # What was called before may have closed it.
        if selectable is not None:
            ready(selectable, descriptor, event)
