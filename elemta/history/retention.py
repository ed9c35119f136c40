"""When a part of the history goes: by its age, told by a clock that may be wrong for a while."""

from __future__ import annotations

from collections.abc import Sequence

CONFIRMED_SECONDS = 3600.0
"""Seconds for which the clock must say so before anything goes by its age."""

PARTS = 8
"""A segment is closed after this part of the time that history is kept: it goes as a whole."""

_AHEAD = 60.0


def last_times(newest: Sequence[float], now: float) -> list[float]:
    """The time of the last event of each segment, the oldest segment first; the last one is written to.

    Segments follow each other in time. One whose time lies ahead of the clock, or before that of an older
    one, was written while the clock was wrong: it counts as old as the one after it.
    """
    known = float("-inf")
    sound: list[float | None] = []
    for time in newest:
        if known <= time <= now + _AHEAD:
            known = time
            sound.append(min(time, now))
        else:
            sound.append(None)
    times: list[float] = []
    after = now
    for each in reversed(sound):
        after = after if each is None else each
        times.append(after)
    return times[::-1]


def confirmed_after(keep: float) -> float:
    """How long the clock must say that the time is over, in seconds."""
    return min(CONFIRMED_SECONDS, keep)


class Overdue:
    """Whether something has been overdue long enough, by a clock that only goes on."""

    def __init__(self) -> None:
        self._since: float | None = None

    def is_over(self, overdue: bool, monotonic: float, wait: float) -> bool:
        """Note what the time of day says now; true once it has said so for ``wait`` seconds on end."""
        if not overdue:
            self._since = None
            return False
        if self._since is None:
            self._since = monotonic
        return monotonic - self._since >= wait
