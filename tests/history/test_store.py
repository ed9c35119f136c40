"""The files of the history: how they go, what a wrong clock does, and what a failing disk costs."""

from __future__ import annotations

import sqlite3
from collections import Counter
from collections.abc import Collection
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from twisted.internet.task import Clock
from twisted.logger import LogEvent, globalLogPublisher

from elemta.address import Address
from elemta.envelope import Client, Recipient
from elemta.history.events import Accepted, Attempted, HistoryEvent, entry_of
from elemta.history.finder import HistoryFinder, Sought
from elemta.history.lives import life_of
from elemta.history.retention import CONFIRMED_SECONDS, last_times
from elemta.history.store import HistoryStore
from elemta.message.summary import HeaderSummary
from elemta.outcome import Outcome, Status
from elemta.runtime.disk import Disk
from tests.support.runtime import simulated_runtime

DAY = 86400.0
KEEP = 8 * DAY
ENVELOPE = '{"from":["a","b.test"],"to":[["c","d.test"]],"client":["192.0.2.1","h","mx","S",null,null]}'


class Queue:
    """What the history asks of a queue."""

    def __init__(self) -> None:
        self.keys: set[int] = set()
        self.missing: list[HistoryEvent] = []

    def look(self) -> None:
        pass

    def queued(self, messages: Collection[int]) -> set[int]:
        return self.keys & set(messages)

    def accepted_after(self, message: int, limit: int) -> tuple[list[HistoryEvent], int | None]:
        missing, self.missing = self.missing[:limit], self.missing[limit:]
        return missing, missing[-1].key if missing else None

    def close(self) -> None:
        pass


class Place:
    """A store with a clock, and a time of day that may be set."""

    def __init__(self, directory: Path, disk: Disk | None = None) -> None:
        self.clock = Clock()
        self.wrong = 0.0
        self.queue = Queue()
        self.dropped: Counter[str] = Counter()
        self.directory = directory / "history"
        self.runtime = simulated_runtime(self.clock, wall=self.wall, disk=disk)
        self.allowance: int | None = None
        self.spared = 0
        self.store = self.opened()

    def wall(self) -> float:
        return 1_700_000_000.0 + self.clock.seconds() + self.wrong

    def opened(self, node: str = "mx1") -> HistoryStore:
        self.store = HistoryStore(self.directory, node, self.runtime, self.queue, self.drop)
        self.store.open()
        self.tidy()
        return self.store

    def drop(self, reason: str, events: int) -> None:
        self.dropped[reason] += events

    def tidy(self, keep: float = KEEP) -> None:
        while self.store.step(keep, self.allowance, self.spared):
            pass

    def days(self, days: float) -> None:
        """Time passes, and the history is looked after each quarter of an hour."""
        for _ in range(round(days * 96)):
            self.clock.advance(900)
            self.tidy()

    def accept(self, key: int) -> None:
        self.queue.keys.add(key)
        self.write(accepted(key, self.wall()))

    def deliver(self, key: int) -> None:
        self.queue.keys.discard(key)
        self.write(attempted(key, self.wall()))

    def write(self, *events: HistoryEvent) -> None:
        self.store.write([entry_of(event) for event in events])

    def find(self, word: str) -> list[Any]:
        finder = HistoryFinder(self.runtime.disk)
        found = finder.find(self.store.segments, Sought((word,)), 100, None)
        oldest = self.wall() - KEEP
        return [
            life_of(each)
            for each in found.lives
            if each.message in self.queue.keys or not each.is_over(oldest)
        ]

    def known(self, key: int) -> Any:
        """The life of a message; None where it is not kept any more."""
        lives = self.find(f"m{key}@b.test")
        assert len(lives) <= 1
        return lives[0] if lives else None


def accepted(key: int, at: float, queue_id: str = "") -> Accepted:
    return Accepted(
        key,
        queue_id or f"Q{key}",
        at,
        100,
        ENVELOPE,
        Address("a", "b.test"),
        (Recipient(Address("c", "d.test")),),
        Client("192.0.2.1"),
        HeaderSummary(f"<m{key}@b.test>", b""),
    )


def attempted(key: int, at: float, status: Status = Status.DELIVERED) -> Attempted:
    outcome = Outcome(f"Q{key}", Address("c", "d.test"), status, "queued as X1", "mx:", "hop", at)
    ended = status is Status.DELIVERED
    return Attempted(key, f"Q{key}", at, [(outcome, [0])], 0, None, None, "", ended=ended)


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path)


def test_a_message_goes_when_its_time_is_over_and_not_before(place: Place) -> None:
    place.accept(1)
    place.deliver(1)
    place.days(8)
    assert place.known(1) is not None
    place.days(1.2)
    assert place.known(1) is None
    assert not list(place.directory.glob("*"))


def test_what_is_queued_or_ended_later_is_carried_over(place: Place) -> None:
    for key in (1, 2, 3):
        place.accept(key)
    place.deliver(1)
    place.days(5)
    place.write(attempted(2, place.wall(), Status.DEFERRED))
    place.deliver(3)
    for _ in range(9):
        place.days(1)
        place.accept(100 + int(place.clock.seconds()))
    assert place.known(1) is None
    # Still queued after 14 days, with all that became of it.
    queued = place.known(2)
    assert (queued.state, [each.status for each in queued.attempts]) == ("unknown", ["deferred"])
    assert place.find("x1") == []
    # It ended 9 days ago, so it is gone now, and was not a day before.
    assert place.known(3) is None
    place.deliver(2)
    place.days(7.9)
    ended = place.known(2)
    assert [each.status for each in ended.recipients] == ["delivered"]
    place.days(2.5)
    assert place.known(2) is None


def test_a_message_that_ended_is_kept_whole_for_all_of_its_time(place: Place) -> None:
    place.accept(1)
    for _ in range(10):
        place.days(1)
        place.accept(1000 + int(place.clock.seconds()))
    place.deliver(1)
    place.days(7.9)
    life = place.known(1)
    assert (life.sender, life.recipients[0].status) == ("a@b.test", "delivered")
    assert [each.queue_id for each in place.find("x1")] == ["Q1"]


def test_a_clock_that_is_wrong_for_a_minute_erases_nothing(place: Place) -> None:
    place.accept(1)
    place.deliver(1)
    place.days(2)
    place.accept(2)
    for wrong in (60.0, 40 * DAY, -40 * DAY, 400 * 365 * DAY):
        place.wrong = wrong
        for _ in range(12):
            place.clock.advance(5)
            place.tidy()
        place.accept(int(abs(wrong)) + 10)
        place.deliver(int(abs(wrong)) + 10)
        place.wrong = 0.0
        place.clock.advance(5)
        place.tidy()
    assert place.known(1) is not None
    # What was written meanwhile goes too, some day.
    place.days(20)
    place.queue.keys.clear()
    place.days(12)
    assert sum(each.figures.messages for each in place.store.segments) == 0


def test_a_clock_that_stays_ahead_for_an_hour_is_believed(place: Place) -> None:
    place.accept(1)
    place.deliver(1)
    place.days(2)
    place.wrong = 40 * DAY
    place.tidy()
    place.clock.advance(CONFIRMED_SECONDS - 1)
    place.tidy()
    assert place.known(1) is not None
    place.clock.advance(2)
    place.tidy()
    assert place.known(1) is None


@given(st.lists(st.floats(-1e9, 3e9), max_size=12), st.floats(0, 2e9))
def test_no_part_counts_as_older_than_one_before_it_or_as_ahead(newest: list[float], now: float) -> None:
    times = last_times(newest, now)
    assert len(times) == len(newest)
    assert times == sorted(times)
    assert all(time <= now + 60 for time in times)


def test_history_keeps_to_its_share_of_the_disk(place: Place) -> None:
    place.allowance = 2 * 1024 * 1024
    for start in range(0, 20_000, 500):
        place.write(*(accepted(key, place.wall()) for key in range(start, start + 500)))
        place.tidy()
        assert sum(path.stat().st_size for path in place.directory.iterdir()) < 3 * 1024 * 1024
    assert place.known(19_999) is not None
    assert place.known(0) is None
    assert place.dropped["space"] > 1000
    place.allowance = 0
    place.tidy()
    place.accept(30_000)
    assert not list(place.directory.iterdir())


def test_a_little_history_outlives_a_disk_that_others_fill(place: Place) -> None:
    place.accept(1)
    place.allowance, place.spared = 0, 1024 * 1024
    place.tidy()
    place.accept(2)
    assert place.dropped == {"space": 1}
    place.allowance = None
    place.tidy()
    place.accept(3)
    assert (place.known(1) is not None, place.known(2), place.known(3) is not None) == (True, None, True)


def test_zero_removes_what_is_there(place: Place) -> None:
    place.accept(1)
    place.tidy(0)
    assert not list(place.directory.iterdir())


class Failing(Disk):
    """A disk that can't be written."""

    fails = False

    def create(self, path: Path) -> int:
        if self.fails:
            raise OSError(28, "No space left on device")
        return super().create(path)

    def connect(self, path: Path) -> sqlite3.Connection:
        if self.fails:
            raise sqlite3.OperationalError("database or disk is full")
        return super().connect(path)


@pytest.mark.parametrize("written_before", [False, True])
def test_what_a_failing_disk_does_not_take_is_dropped(tmp_path: Path, written_before: bool) -> None:
    disk = Failing()
    place = Place(tmp_path, disk)
    if written_before:
        place.accept(1)
        place.store.close()
    disk.fails = True
    if written_before:
        place.opened()
    for key in (2, 3):
        place.accept(key)
        place.tidy()
    assert place.dropped == {"disk": 2}
    disk.fails = False
    place.accept(4)
    assert place.known(4) is not None
    assert (place.known(1) is not None) == written_before


def test_a_full_file_system_costs_history_and_nothing_else(tmp_path: Path) -> None:
    place = Place(tmp_path)
    place.accept(1)
    connection = place.store._current._connection  # type: ignore[union-attr]
    connection.execute("PRAGMA max_page_count = 10")
    place.write(*(accepted(key, place.wall()) for key in range(2, 400)))
    assert place.dropped == {"disk": 398}
    place.accept(500)
    assert place.known(500) is not None
    assert place.known(1) is not None


@pytest.mark.parametrize("damage", [b"", b"x" * 5000, b"SQLite format 3\0" + b"y" * 8000])
def test_a_damaged_file_costs_its_own_records(place: Place, damage: bytes) -> None:
    place.accept(1)
    place.store._end_current()
    place.accept(2)
    place.store.close()
    newest = sorted(place.directory.glob("*.db"))[-1]
    newest.write_bytes(damage)
    place.opened()
    place.accept(3)
    assert place.known(1) is not None
    assert place.known(3) is not None


def test_a_part_that_is_damaged_meanwhile_is_logged_when_it_goes(place: Place) -> None:
    place.accept(1)
    place.store._end_current()
    place.accept(2)
    sorted(place.directory.glob("*.db"))[0].write_bytes(b"x" * 5000)
    seen: list[LogEvent] = []
    globalLogPublisher.addObserver(seen.append)
    try:
        place.days(10)
    finally:
        globalLogPublisher.removeObserver(seen.append)
    assert [each["event"] for each in seen if "event" in each] == ["history.unreadable"]
    assert place.known(1) is None
    assert place.known(2) is not None


def test_another_node_writes_its_own_files(place: Place) -> None:
    place.accept(1)
    place.store.close()
    place.opened("mx2")
    place.accept(2)
    place.deliver(1)
    assert (place.known(1).node_id, place.known(2).node_id) == ("mx1", "mx2")


def test_a_start_enters_what_the_history_does_not_know_of_the_queue(place: Place) -> None:
    place.accept(1)
    place.store.close()
    place.queue.missing = [accepted(key, place.wall()) for key in range(250)]
    place.opened()
    assert place.known(249).queue_id == "Q249"
    assert sum(each.figures.messages for each in place.store.segments) == 250


def test_a_kill_loses_nothing_that_was_written(place: Place) -> None:
    place.accept(1)
    place.deliver(1)
    # Neither closed nor synced, as a process leaves it that is killed.
    place.opened()
    place.accept(2)
    assert (place.known(1).state, place.known(2).queue_id) == ("ended", "Q2")
    assert len(place.store.segments) == 1
