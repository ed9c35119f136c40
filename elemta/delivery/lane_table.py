"""What is known of each destination, in memory and at rest, and what follows when that changes."""

from __future__ import annotations

from collections.abc import Callable
from math import inf

from elemta.address import Address
from elemta.delivery.lane import Lane
from elemta.delivery.resting_lanes import Rest, RestingLanes, needs_nothing
from elemta.delivery.rings import Ring, Standing
from elemta.outcome import Outcome
from elemta.spool.records import QueuedMessage

# Parts that wait in memory in all lanes together.
MOST_WAITING = 4000
# Lanes that are kept in memory for the turns of senders alone.
_MOST_WITH_TURNS = 10_000


class LaneTable:
    """Finds lanes, makes them, and lets them go when nothing of them is in memory any more.

    ``limit`` says how many parts of a lane may be under way, None where it leads to no destination; then
    ``places`` is the limit, which is how many may be under way in all lanes together.
    """

    def __init__(self, limit: Callable[[str], int | None], places: int) -> None:
        self._limit = limit
        self.places = places
        self._lanes: dict[str, Lane] = {}
        # Of most destinations nothing is in memory. Some have a state all the same; of the others there is no
        # more than the time in their ring when something is due: the quiet ones.
        self._resting = RestingLanes()
        self._quiet = 0
        # Those that are kept in memory because a sender has a turn to come.
        self._with_turns: dict[str, None] = {}
        self._known, self._unknown, self._failing = rings = tuple(Ring(each) for each in Standing)
        self._rings = rings
        self._next_ring = 0
        self._blocked = 0
        self._probing: set[str] = set()
        self._answered: dict[str, None] = {}
        self._answered_once: dict[str, None] = {}

    def __len__(self) -> int:
        return len(self._lanes) + len(self._resting) + self._quiet

    @property
    def waiting(self) -> int:
        """How many parts wait in memory."""
        return self._known.waiting + self._unknown.waiting + self._failing.waiting

    @property
    def blocked(self) -> int:
        """How many lanes wait for their destination to come back."""
        return self._blocked

    def find(self, name: str) -> Lane | None:
        """The lane, while something of it is in memory."""
        return self._lanes.get(name)

    def _state(self, name: str) -> Lane | Rest | None:
        lane = self._lanes.get(name)
        return self._resting.get(name) if lane is None else lane

    def failures(self, name: str) -> int:
        """How often in a row the lane's destination was found down."""
        lane = self._state(name)
        return 0 if lane is None else lane.failures

    def reason(self, name: str) -> Outcome | None:
        """What was said when the lane's destination was found down last."""
        lane = self._state(name)
        return None if lane is None else lane.reason

    def turn(self, name: str, sender: Address, now: float) -> float:
        """The place in a lane's line for a new part of this sender's."""
        lane = self._lanes.get(name)
        if lane is None:
            if name not in self._resting and self._quiet_until(name) == inf:
                return now
            lane = self._new_lane(name)
        return lane.turn(sender, now)

    def is_shut(self, name: str, now: float) -> bool:
        """Whether nothing in this lane is attempted now."""
        lane = self._state(name)
        return lane is not None and lane.is_shut(now)

    def is_known(self, message: QueuedMessage) -> bool:
        """Whether the part waits in memory or is under way."""
        lane = self._lanes.get(message.lane)
        return lane is not None and message.key in lane.known

    def waits_in_memory(self, message: QueuedMessage) -> bool:
        """Whether the part is next in memory, and not under way nor kept from being taken up."""
        lane = self._lanes.get(message.lane)
        return lane is not None and lane.waits(message.key)

    def is_due(self, name: str, now: float) -> bool:
        """Whether the lane is open, and the spool has something for it that could be attempted now."""
        lane = self._state(name)
        if lane is None:
            return self._quiet_until(name) <= now
        return not lane.is_shut(now) and (lane.loading or lane.due <= now)

    def is_about_to_load(self, name: str, now: float) -> bool:
        """Whether the lane is due, and what is due in it will be got next: nothing of it is in memory."""
        if not self.is_due(name, now):
            return False
        lane = self._state(name)
        if lane is None:
            return self._has_room(self._first_ring(name))
        return lane.loading or (not lane.waiting and self._has_room(lane.ring))

    def may_know(self, message: QueuedMessage) -> bool:
        """Whether the part is known, or may be in what the spool is being asked."""
        lane = self._lanes.get(message.lane)
        return lane is not None and (lane.loading or message.key in lane.known)

    def names(self) -> list[str]:
        """The lanes of which more is known than when something is due."""
        return [*self._lanes, *self._resting]

    def is_answering(self, name: str) -> bool:
        """Whether the destination answered before and was not found down since."""
        return self._lane(name).ring is self._known

    def answered_before(self, name: str) -> bool:
        """Whether the destination answered at any time, as far as it is remembered."""
        return name in self._answered or name in self._answered_once

    # Inside

    def _lane(self, name: str) -> Lane:
        lane = self._lanes.get(name)
        return self._new_lane(name) if lane is None else lane

    def _new_lane(self, name: str) -> Lane:
        limit = self._limit(name)
        ring = self._first_ring(name)
        lane = self._lanes[name] = Lane(name, self.places if limit is None else limit, ring)
        if limit is None:
            lane.window = lane.most
        if not self._resting.give_back(lane) and (due := self._quiet_until(name)) < inf:
            self._quiet -= 1
            lane.due = due
            for each in (self._known, self._unknown):
                each.wakes.discard(name)
            self._schedule(lane)
        return lane

    def _first_ring(self, name: str) -> Ring:
        """Where a lane belongs of which nothing is known."""
        return self._known if self._limit(name) is None or name in self._answered else self._unknown

    def _quiet_until(self, name: str) -> float:
        """When something is due in a lane of which nothing else is known."""
        return min(self._known.wakes.at(name), self._unknown.wakes.at(name))

    def _most(self, name: str) -> int:
        limit = self._limit(name)
        return self.places if limit is None else limit

    def _move(self, lane: Lane, ring: Ring) -> None:
        if lane.ring is not ring:
            lane.ring.hand_over(lane, ring)
            lane.ring = ring

    def _push(self, lane: Lane, message: QueuedMessage, now: float) -> None:
        lane.ring.waiting += 1
        if lane.push(message) is not None:
            lane.ring.waiting -= 1
            lane.due = min(lane.due, now)
        lane.ring.join(lane)

    def _room(self, ring: Ring) -> int:
        """How many more parts of these destinations may wait in memory."""
        room = MOST_WAITING * ring.eighths // 8 - ring.waiting
        # What waits for unknown ones waits for known ones as soon as they answer, also beyond their share.
        return room if ring is self._known else min(room, MOST_WAITING - self.waiting)

    def _has_room(self, ring: Ring) -> bool:
        return self._room(ring) > enough_room(ring)

    def _is_due(self, lane: Lane, when: float) -> None:
        lane.due = min(lane.due, when)
        self._schedule(lane)

    def _schedule(self, lane: Lane) -> None:
        """Have the lane looked at when there is something to get for it, or when it may go on."""
        wake = inf
        if lane.waiting and lane.shut_until:
            wake = lane.shut_until
        if lane.hungry:
            wake = min(wake, max(lane.due, lane.shut_until))
        lane.ring.wakes.set(lane.name, wake)

    def _tidy(self, lane: Lane) -> None:
        """Keep no more of a lane than is needed, once nothing of it is in memory."""
        if lane.in_use or lane.name not in self._lanes:
            return
        if lane.due == inf:
            del self._lanes[lane.name]
            self._with_turns.pop(lane.name, None)
            lane.ring.forget(lane)
            if lane.failures:
                # It was down, and no mail waits for it any more.
                self._blocked -= 1
        elif lane.has_turns:
            self._with_turns[lane.name] = None
            if len(self._with_turns) > _MOST_WITH_TURNS:
                name = next(iter(self._with_turns))
                del self._with_turns[name]
                oldest = self._lanes.get(name)
                if oldest is not None and not oldest.in_use:
                    self._put_to_rest(oldest)
        else:
            self._put_to_rest(lane)

    def _put_to_rest(self, lane: Lane) -> None:
        del self._lanes[lane.name]
        self._with_turns.pop(lane.name, None)
        if needs_nothing(lane):
            self._quiet += 1
        else:
            self._resting.put(lane)


def enough_room(ring: Ring) -> int:
    """So much room has to be there before the spool is asked."""
    return MOST_WAITING * ring.eighths // 64
