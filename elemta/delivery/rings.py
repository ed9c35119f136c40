"""Destinations by how they do: known to answer, unknown, failing. Each kind has its own space in memory."""

from __future__ import annotations

import enum
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass

from elemta.delivery.destination import Destination
from elemta.delivery.wake_heap import WakeHeap


class Standing(enum.Enum):
    """How a destination does: it has answered before, it was not tried yet, or it was found down."""

    KNOWN = "known"
    UNKNOWN = "unknown"
    FAILING = "failing"


@dataclass(frozen=True, slots=True)
class Share:
    """What the destinations of one standing have together.

    ``space`` is their part, in eighths, of all that may wait in memory; ``looked_into`` is how many of them
    one look into the spool serves.
    """

    space: int
    looked_into: int


# A destination that answers never waits for space that others take, however many of them stand still.
SHARES: Mapping[Standing, Share] = {
    Standing.KNOWN: Share(4, 200),
    Standing.UNKNOWN: Share(3, 75),
    Standing.FAILING: Share(1, 25),
}


class Ring:
    """The destinations of one standing: those whose turn it may be, and when each has to be looked at.

    ``turns`` are the former, in the order of their turns; ``waiting`` is how many of their parts wait in
    memory.
    """

    __slots__ = ("eighths", "looked_into", "standing", "turns", "waiting", "wakes")

    def __init__(self, standing: Standing) -> None:
        self.standing = standing
        self.eighths, self.looked_into = SHARES[standing].space, SHARES[standing].looked_into
        self.waiting = 0
        self.wakes = WakeHeap()
        self.turns: OrderedDict[Destination, None] = OrderedDict()

    def join(self, destination: Destination) -> None:
        """Give a destination the last turn, if something of it waits and it has none."""
        if destination.waiting:
            self.turns.setdefault(destination)

    def hand_over(self, destination: Destination, other: Ring) -> None:
        """Let the destination be one of the other ring, with its turn, its time and what waits."""
        self.waiting -= destination.waiting
        other.waiting += destination.waiting
        if destination in self.turns:
            del self.turns[destination]
            other.join(destination)
        other.wakes.set(destination.name, self.wakes.at(destination.name))
        self.forget(destination)

    def forget(self, destination: Destination) -> None:
        """The destination has no turn and no time any more."""
        self.turns.pop(destination, None)
        self.wakes.discard(destination.name)

    def next(self, now: float, free: int) -> Destination | None:
        """The next destination that may start something, with ``free`` places left; it has no turn any more.

        Those that have to wait for an event lose their turn, too.
        """
        turns = self.turns
        for _ in range(len(turns)):
            destination, _ = turns.popitem(last=False)
            if (
                destination.waiting
                and destination.shut_until <= now
                and destination.under_way < destination.limit
            ):
                if destination.under_way <= free:
                    return destination
                turns[destination] = None
        return None

    def clear(self) -> None:
        self.turns.clear()
        self.wakes.clear()
        self.waiting = 0
