"""A deadline that moves, watched by one timer."""

from __future__ import annotations

from twisted.internet.task import Clock

from elemta.delivery.movable_deadline import READING_SECONDS, MovableDeadline


class Watched:
    def __init__(self) -> None:
        self.clock = Clock()
        self.watch = MovableDeadline(self.clock)
        self.passed: list[tuple[str, float]] = []

    def set(self, seconds: float | None, name: str = "late") -> None:
        self.watch.set(seconds, lambda: self.passed.append((name, self.clock.seconds())))

    def run(self, seconds: int) -> list[tuple[str, float]]:
        self.clock.pump([1.0] * seconds)
        return self.passed


def test_a_deadline_passes_once_and_in_time() -> None:
    watched = Watched()
    watched.set(5.0)
    assert watched.run(20) == [("late", 5.0)]
    assert not watched.clock.getDelayedCalls()


def test_a_deadline_that_moves_away_passes_where_it_was_moved_to() -> None:
    watched = Watched()
    watched.set(5.0, "first")
    watched.run(3)
    watched.set(10.0, "second")
    assert len(watched.clock.getDelayedCalls()) == 1
    assert watched.run(30) == [("second", 13.0)]


def test_a_deadline_that_comes_nearer_passes_there() -> None:
    watched = Watched()
    watched.set(100.0, "far")
    watched.set(2.0, "near")
    assert watched.run(200) == [("near", 2.0)]


def test_one_that_was_taken_back_never_passes_and_the_next_one_does() -> None:
    watched = Watched()
    watched.set(5.0, "first")
    watched.watch.clear()
    assert watched.run(10) == []
    watched.set(5.0, "second")
    watched.set(None, "none")
    assert watched.run(10) == []
    watched.set(5.0, "third")
    assert watched.run(10) == [("third", 25.0)]


def test_after_the_end_no_timer_is_left() -> None:
    watched = Watched()
    watched.set(5.0)
    watched.watch.stop()
    assert not watched.clock.getDelayedCalls()
    assert watched.run(10) == []


def test_what_is_called_may_set_the_next_deadline() -> None:
    watched = Watched()
    watched.watch.set(1.0, lambda: watched.set(2.0, "again"))
    assert watched.run(10) == [("again", 3.0)]


def test_what_came_while_the_process_stood_still_is_read_before_the_deadline_is_judged() -> None:
    watched = Watched()
    watched.set(5.0, "silent")
    watched.clock.advance(600.0)
    assert watched.passed == []
    # The reactor reads now; nothing came.
    watched.clock.advance(READING_SECONDS)
    assert [name for name, _ in watched.passed] == ["silent"]
    watched.set(5.0, "before")
    watched.clock.advance(600.0)
    watched.set(5.0, "after the reply")
    assert [name for name, _ in watched.run(4)] == ["silent"]
    assert [name for name, _ in watched.run(4)] == ["silent", "after the reply"]
