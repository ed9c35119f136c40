"""The listing of a long queue: by filters, page by page, while the reactor serves others."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest
from pytest_twisted import ensureDeferred
from twisted.internet.task import LoopingCall

from elemta.spool import MessageState, Spool
from elemta.spool.filters import QueueFilter
from elemta.spool.waits import KnownWaits, Wait
from tests.spool.large import BEGIN, domain, fill

DOMAINS = 500
LAST = domain(DOMAINS - 1)


class Down:
    """A delivery in which one destination is down."""

    def wait(self, destination: str, part: tuple[str, int]) -> Wait | None:
        return Wait("its destination is down", 4e9) if destination == LAST else None

    def known_waits(self) -> KnownWaits:
        return KnownWaits({LAST: "its destination is down"})


FILTERS = {
    "all": (QueueFilter(), 1.0),
    "one recipient's domain": (QueueFilter(recipient=LAST.upper()), 1 / DOMAINS),
    "no sender": (QueueFilter(sender="<>"), 0.0),
    "a sender of all, a recipient of none": (
        QueueFilter(sender="alice", recipient="carol"),
        0.0,
    ),
    "a destination": (QueueFilter(destination=LAST), 1 / DOMAINS),
    "a reason": (QueueFilter(reason="IS DOWN"), 1 / DOMAINS),
    "an age": (QueueFilter(received_by=BEGIN - 1), 0.0),
    "a state": (QueueFilter(MessageState.ACTIVE), 0.5 - 0.5 / DOMAINS),
    "a state that there is seldom": (QueueFilter(MessageState.QUARANTINE), 0.0),
}


async def opened(open_spool: Any, root: Path, messages: int) -> Spool:
    fill(root, messages, DOMAINS)
    spool: Spool = await open_spool(root)
    spool.waits = Down()
    return spool


async def count(spool: Spool, chosen: QueueFilter) -> tuple[int, int]:
    """How many messages a filter chooses, and the calls that it takes to have them all."""
    found, calls, after = 0, 0, None
    while True:
        page = await spool.find(chosen, 500, after)
        found, calls, after = found + len(page.messages), calls + 1, page.after
        if after is None:
            return found, calls


@ensureDeferred
async def test_each_filter_finds_what_it_means_in_one_call_or_in_full_pages(
    open_spool: Any, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    messages = 2 * DOMAINS
    spool = await opened(open_spool, tmp_path / "long", messages)
    for name, (chosen, part) in FILTERS.items():
        found, calls = await count(spool, chosen)
        assert (name, found) == (name, round(messages * part))
        assert calls <= found // 500 + 1
    stats = await spool.stats(as_listed=True)
    # One that waits for its destination is not active.
    assert stats.messages[MessageState.ACTIVE] == DOMAINS - 1
    assert stats.messages[MessageState.DEFERRED] == DOMAINS + 1
    found = await spool.listed_destinations(None, 1000)
    assert [each.messages for each in found] == [2] * DOMAINS


@pytest.mark.campaign
@pytest.mark.timeout(600)
@ensureDeferred
async def test_of_100_000_messages_a_page_takes_200_ms_a_filter_a_second_and_the_reactor_50_ms(
    open_spool: Any, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    messages = 100_000
    spool = await opened(open_spool, tmp_path / "long", messages)
    gaps: list[float] = []
    last = time.perf_counter()

    def tick() -> None:
        nonlocal last
        now = time.perf_counter()
        gaps.append(now - last)
        last = now

    ticking: Any = LoopingCall(tick)
    ticking.start(0.001)
    request.addfinalizer(lambda: ticking.running and ticking.stop())
    for name, (chosen, part) in FILTERS.items():
        began = time.perf_counter()
        page = await spool.find(chosen, 100)
        first = time.perf_counter() - began
        assert len(page.messages) == min(100, round(messages * part))
        whole = 0.0
        if part < 0.1:
            began = time.perf_counter()
            found, _ = await count(spool, chosen)
            whole = time.perf_counter() - began
            assert (name, found) == (name, round(messages * part))
        print(f"{name}: first page {first * 1000:.0f} ms, all {whole * 1000:.0f} ms")
        assert whole < 1.0
        assert first < (0.2 if part >= 0.1 else 1.0)
    await spool.stats(as_listed=True)
    await count(spool, QueueFilter())
    print(f"the reactor stood still for {max(gaps) * 1000:.0f} ms at most")
    assert max(gaps) < 0.05
