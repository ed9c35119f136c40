"""A million messages in the history: found at once, and removed without a stall."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from elemta.history.events import HistoryEvent
from elemta.history.finder import HistoryFinder, Sought
from tests.history.test_store import KEEP, Place, accepted, attempted

MESSAGES = 1_000_000
TOGETHER = 500
STEP = 1e6
ENOUGH = 0.1
STALL = 0.05


def named(key: int, at: float) -> list[HistoryEvent]:
    """A message with names of its own, and its delivery."""
    one, end = accepted(key, at), attempted(key, at)
    one.recipients = tuple(one.recipients)
    return [one, end]


@pytest.mark.campaign
@pytest.mark.timeout(3600)
def test_any_of_a_million_messages_is_found_in_less_than_100_ms(tmp_path: Path) -> None:
    place = Place(tmp_path)
    for start in range(0, MESSAGES, TOGETHER):
        events = [event for key in range(start, start + TOGETHER) for event in named(key << 19, place.wall())]
        place.write(*events)
        place.clock.advance(0.25)
        place.tidy()
    assert sum(each.figures.messages for each in place.store.segments) == MESSAGES
    octets = sum(path.stat().st_size for path in place.directory.iterdir())
    print(f"{octets / MESSAGES:.0f} octets a message in {len(place.store.segments)} files")
    finder = HistoryFinder(place.runtime.disk)
    times = {}
    for words, message, expected in (
        ((f"m{(MESSAGES // 2) << 19}@b.test",), None, 1),
        ((f"m{7 << 19}@b.test",), None, 1),
        (("nothing@b.test",), None, 0),
        # All of them have these.
        (("192.0.2.1",), None, 20),
        (("c@d.test", "x"), None, 20),
        (("x1",), None, 20),
        ((f"q{5 << 19}",), 5 << 19, 1),
    ):
        began = time.perf_counter()
        found = finder.find(place.store.segments, Sought(words, message), 20, None)
        times[words] = time.perf_counter() - began
        assert len(found.lives) == expected, words
    print(times)
    assert max(times.values()) < ENOUGH
    # All of it goes, in steps that hold the writing thread for a moment only.
    place.clock.advance(KEEP * 1.2)
    place.tidy()
    place.clock.advance(3700)
    longest, more = 0.0, True
    while more:
        began = time.perf_counter()
        more = place.store.step(KEEP, None)
        longest = max(longest, time.perf_counter() - began)
    print(f"longest step {longest * 1000:.0f} ms")
    assert not list(place.directory.iterdir())
