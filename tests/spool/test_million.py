"""A million messages for half a million destinations: what pages take, and what the reactor feels of it."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from pytest_twisted import ensureDeferred
from twisted.internet import reactor as _reactor
from twisted.internet.task import LoopingCall

from elemta.runtime import Runtime
from elemta.spool import MessageState, Spool, SpoolSettings
from tests.spool.large import BEGIN, fill

reactor: Any = _reactor

# Seconds; CPython lets a thread keep the interpreter for 5 ms at a time.
LONGEST_STALL = 0.05
PAGE = 1000


class Stalls:
    """A tick each millisecond, and how long the reactor kept it waiting at most.

    What counts is the time that the process worked meanwhile, in any thread: while a busy machine lets it
    wait, neither the reactor nor the spool can do anything about that.
    """

    def __init__(self) -> None:
        self.longest = 0.0
        self._last = (0.0, 0.0)
        self._ticks = LoopingCall(self._tick)

    @contextmanager
    def watched(self, what: str) -> Iterator[None]:
        self.longest, self._last = 0.0, _clocks()
        began = time.perf_counter()
        self._ticks.start(0.001)
        try:
            yield
        finally:
            self._ticks.stop()
            self._tick()
        took = time.perf_counter() - began
        print(f"{what}: {took:.3f} s, longest stall {self.longest * 1000:.1f} ms")
        assert self.longest <= LONGEST_STALL, what

    def _tick(self) -> None:
        now = _clocks()
        wall, work = now[0] - self._last[0], now[1] - self._last[1]
        self.longest = max(self.longest, min(wall, work))
        self._last = now


def _clocks() -> tuple[float, float]:
    return time.perf_counter(), time.process_time()


@pytest.mark.campaign
@pytest.mark.parametrize(("messages", "domains"), [(1_000_000, 500_000)])
@ensureDeferred
async def test_no_page_of_a_large_queue_stalls_the_reactor(
    tmp_path: Path, messages: int, domains: int
) -> None:
    fill(tmp_path, messages, domains)
    stalls = Stalls()
    with stalls.watched("open"):
        spool = await Spool.open(SpoolSettings(tmp_path, minimum_free=0), runtime=Runtime.of(reactor))
    try:
        assert sum(spool.messages.values()) == messages
        await _destinations(spool, stalls, domains)
        await _messages(spool, stalls, messages)
    finally:
        await spool.close()


async def _destinations(spool: Spool, stalls: Stalls, domains: int) -> None:
    with stalls.watched("all lanes"):
        found, after = 0, None
        while page := await spool.destinations(after, PAGE):
            found += len(page)
            after = page[-1][0]
    assert found == domains
    assert after is not None
    with stalls.watched("the last page of lanes"):
        assert await spool.destinations(after, PAGE) == []
    first = [destination for destination, _ in await spool.destinations(None, 200)]
    with stalls.watched("what is due in 200 lanes"):
        due = await spool.due(BEGIN + 2 * domains, dict.fromkeys(first, 20))
    assert sum(len(destination.messages) for destination in due) == 400


async def _messages(spool: Spool, stalls: Stalls, messages: int) -> None:
    for state in (None, *MessageState):
        with stalls.watched(f"100 pages of {state}"):
            after = None
            for _ in range(100):
                page = await spool.list(state, PAGE, after)
                if len(page) < PAGE:
                    break
                after = page[-1].queue_id
    with stalls.watched("100 pages of the walk for what is too old"):
        place = -1
        for _ in range(100):
            walk = await spool.older(BEGIN + messages, place, 500)
            place = walk.after
    with stalls.watched("the numbers"):
        assert (await spool.stats()).total == messages
