"""Destinations by how they do: known to answer, unknown, failing. Each kind has waiting room of its own."""

from __future__ import annotations

import enum
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass

from elemta.delivery.lane import Lane
from elemta.delivery.wake_heap import WakeHeap


class Standing(enum.Enum):
    """How a destination does: it has answered before, it was not tried yet, or it was found down."""

    KNOWN = "known"
    UNKNOWN = "unknown"
    FAILING = "failing"


@dataclass(frozen=True, slots=True)
class Share:
    """What the destinations of one standing have together.

    ``room`` is their part, in eighths, of all that may wait in memory; ``looked_into`` is how many of them
    one look into the spool serves.
    """

    room: int
    looked_into: int


# A destination that answers never waits for room that others take, however many of them stand still.
SHARES: Mapping[Standing, Share] = {
    Standing.KNOWN: Share(4, 200),
    Standing.UNKNOWN: Share(3, 75),
    Standing.FAILING: Share(1, 25),
}


class Ring:
    """The lanes of one standing: those whose turn it may be, and when each has to be looked at.

    ``waiting`` is how many of their parts wait in memory.
    """

    __slots__ = ("_turns", "eighths", "looked_into", "standing", "waiting", "wakes")

    def __init__(self, standing: Standing) -> None:
        self.standing = standing
        self.eighths, self.looked_into = SHARES[standing].room, SHARES[standing].looked_into
        self.waiting = 0
        self.wakes = WakeHeap()
        self._turns: OrderedDict[Lane, None] = OrderedDict()

    def __bool__(self) -> bool:
        return bool(self._turns)

    def join(self, lane: Lane) -> None:
        """Give a lane the last turn, if something of it waits and it has none."""
        if lane.waiting:
            self._turns.setdefault(lane)

    def hand_over(self, lane: Lane, other: Ring) -> None:
        """Let the lane be one of the other ring, with its turn, its time and what waits."""
        self.waiting -= lane.waiting
        other.waiting += lane.waiting
        if lane in self._turns:
            del self._turns[lane]
            other.join(lane)
        other.wakes.set(lane.name, self.wakes.at(lane.name))
        self.forget(lane)

    def forget(self, lane: Lane) -> None:
        """The lane has no turn and no time any more."""
        self._turns.pop(lane, None)
        self.wakes.discard(lane.name)

    def next(self, now: float, free: int) -> Lane | None:
        """The next lane that may start something, with ``free`` places left; it has no turn any more.

        Those that have to wait for an event lose their turn, too.
        """
        turns = self._turns
        for _ in range(len(turns)):
            lane, _ = turns.popitem(last=False)
            if lane.waiting and lane.shut_until <= now and lane.under_way < lane.limit:
                if lane.under_way <= free:
                    return lane
                turns[lane] = None
        return None

    def clear(self) -> None:
        self._turns.clear()
        self.wakes.clear()
        self.waiting = 0
