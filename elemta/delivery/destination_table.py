"""The state of each destination, in memory and at rest, and what follows when that changes."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from itertools import chain, islice
from math import inf

from elemta.address import Address
from elemta.bounded_map import BoundedMap
from elemta.delivery.destination import Destination
from elemta.delivery.resting_destinations import Rest, RestingDestinations, needs_nothing
from elemta.delivery.rings import Ring, Standing
from elemta.outcome import Outcome
from elemta.spool.records import QueuedMessage

# Parts that wait in memory in all destinations together.
MOST_WAITING = 4000
# Destinations that are kept in memory for the turns of senders alone.
_MOST_WITH_TURNS = 10_000
# Destinations that are remembered as answering, though no mail for them waits.
_MOST_ANSWERED = 10_000


class DestinationTable:
    """Finds destinations, makes them, and lets them go when nothing of them is in memory any more.

    ``limit`` says how many parts of a destination may be under way, None where it leads to no destination;
    then ``places`` is the limit, which is how many may be under way in all destinations together. Nothing is
    attempted in those that ``paused`` names; `Destinations.pause` and `Destinations.resume` change it.
    """

    def __init__(self, limit: Callable[[str], int | None], places: int) -> None:
        self._limit = limit
        self.places = places
        self.paused: dict[str, None] = {}
        self._destinations: dict[str, Destination] = {}
        self._known, self._unknown, self._failing = rings = tuple(Ring(each) for each in Standing)
        self._rings = rings
        # Of most destinations nothing is in memory. Some have a state all the same; of the others there is no
        # more than the time in their ring when something is due: the quiet ones.
        self._resting = RestingDestinations(rings)
        self._quiet = 0
        # Those that are kept in memory because a sender has a turn to come.
        self._with_turns: OrderedDict[str, None] = OrderedDict()
        self._next_ring = 0
        self._blocked = 0
        self._probing: set[str] = set()
        self._answered: BoundedMap[str, None] = BoundedMap(_MOST_ANSWERED)
        self._answered_once: BoundedMap[str, None] = BoundedMap(_MOST_ANSWERED)
        #: What the host's other workers found of a destination: until when it is left alone, and why.
        self.outage_of: Callable[[str], tuple[float, int, Outcome] | None] = _no_outage

    def __len__(self) -> int:
        return len(self._destinations) + len(self._resting) + self._quiet

    @property
    def waiting(self) -> int:
        """How many parts wait in memory."""
        return self._known.waiting + self._unknown.waiting + self._failing.waiting

    @property
    def blocked(self) -> int:
        """How many destinations were found down and are not back."""
        return self._blocked

    @property
    def paused_with_mail(self) -> int:
        """How many of the paused destinations are among those that count."""
        return sum(
            1 for name in self.paused if self._state(name) is not None or self._quiet_until(name) < inf
        )

    def find(self, name: str) -> Destination | None:
        """The destination, while something of it is in memory."""
        return self._destinations.get(name)

    def _state(self, name: str) -> Destination | Rest | None:
        destination = self._destinations.get(name)
        return self._resting.get(name) if destination is None else destination

    def has_mail(self, name: str) -> bool:
        """Whether mail waits for the destination, as far as is known here."""
        return self._state(name) is not None or self._quiet_until(name) < inf

    def failures(self, name: str) -> int:
        """How often in a row the destination was found down."""
        destination = self._state(name)
        return 0 if destination is None else destination.failures

    def reason(self, name: str) -> Outcome | None:
        """The outcome when the destination was found down last."""
        destination = self._state(name)
        return None if destination is None else destination.reason

    def turn(self, name: str, sender: Address, now: float) -> float:
        """The place in a destination's line for a new part of this sender's."""
        destination = self._destinations.get(name)
        if destination is None:
            if name not in self._resting and self._quiet_until(name) == inf:
                return now
            destination = self._new_destination(name)
        return destination.turn(sender, now)

    def is_shut(self, name: str, now: float) -> bool:
        """Whether nothing in this destination is attempted now."""
        if name in self.paused:
            return True
        destination = self._state(name)
        return destination is not None and destination.is_shut(now)

    def shut_until(self, name: str) -> float:
        """Up to when nothing in this destination is attempted; 0.0 where it may be, or is not known."""
        destination = self._state(name)
        return 0.0 if destination is None else destination.shut_until

    def shut(self, now: float, most: int) -> list[str]:
        """Destinations in which nothing is attempted now: some of them, where there are very many."""
        names = chain(islice(self._destinations, most), islice(self._resting, most))
        return [
            *self.paused,
            *(name for name in names if name not in self.paused and self.is_shut(name, now)),
        ]

    def is_stalled(self, name: str, now: float, longest: float) -> bool:
        """Whether those under way have kept all others in this destination from an attempt for so long."""
        destination = self._destinations.get(name)
        return destination is not None and destination.is_stalled(now, longest)

    def is_known(self, message: QueuedMessage) -> bool:
        """Whether the part waits in memory or is under way."""
        destination = self._destinations.get(message.destination)
        return destination is not None and message.key in destination.known

    def waits_in_memory(self, message: QueuedMessage) -> bool:
        """Whether the part is next in memory, and not under way nor kept from being taken up."""
        destination = self._destinations.get(message.destination)
        return destination is not None and destination.waits(message.key)

    def is_due(self, name: str, now: float) -> bool:
        """Whether the destination is open, and the spool has something for it that could be attempted now."""
        if name in self.paused:
            return False
        destination = self._state(name)
        if destination is None:
            return self._quiet_until(name) <= now
        return not destination.is_shut(now) and (destination.loading or destination.due <= now)

    def is_about_to_load(self, name: str, now: float) -> bool:
        """Whether the destination is due, and what is due in it will be got next: nothing of it is in
        memory."""
        if not self.is_due(name, now):
            return False
        destination = self._state(name)
        if destination is None:
            return self._has_space(self._first_ring(name))
        return destination.loading or (not destination.waiting and self._has_space(destination.ring))

    def may_know(self, message: QueuedMessage) -> bool:
        """Whether the part is known, or may be in what the spool is being asked."""
        destination = self._destinations.get(message.destination)
        return destination is not None and (destination.loading or message.key in destination.known)

    def names(self) -> tuple[str, ...]:
        """The destinations whose state is known, beyond the time when something is due.

        It is kept for a while, so it is a tuple: the collector of garbage looks at one of strings once.
        """
        return (*self._destinations, *self._resting)

    def is_answering(self, name: str) -> bool:
        """Whether the destination answered before and was not found down since."""
        return self._destination(name).ring is self._known

    def answered_before(self, name: str) -> bool:
        """Whether the destination answered at any time, as far as it is remembered."""
        return name in self._answered or name in self._answered_once

    # Inside

    def _destination(self, name: str) -> Destination:
        return self._destinations[name] if name in self._destinations else self._new_destination(name)

    def _new_destination(self, name: str) -> Destination:
        limit = self._limit(name)
        ring = self._first_ring(name)
        destination = self._destinations[name] = Destination(
            name, self.places if limit is None else limit, ring
        )
        if limit is None:
            destination.window = destination.most
        if not self._resting.give_back(destination) and (due := self._quiet_until(name)) < inf:
            self._quiet -= 1
            destination.due = due
            for each in (self._known, self._unknown):
                each.wakes.discard(name)
            self._schedule(destination)
        if not destination.failures and (outage := self.outage_of(name)) is not None:
            self._is_down(destination, *outage)
        if name in self.paused:
            destination.shut_until = inf
        return destination

    def _is_down(self, destination: Destination, until: float, failures: int, reason: Outcome) -> None:
        """Others found a destination down that is new here."""
        destination.failures, destination.shut_until, destination.reason = failures, until, reason
        destination.regular_probe = until if destination.name in self.paused else 0.0
        destination.epoch += 1
        self._blocked += 1
        self._move(destination, self._failing)
        self._schedule(destination)

    def _first_ring(self, name: str) -> Ring:
        """The ring of a destination without a known state."""
        return self._known if self._limit(name) is None or name in self._answered else self._unknown

    def _quiet_until(self, name: str) -> float:
        """When something is due in a destination without a known state."""
        return min(self._known.wakes.at(name), self._unknown.wakes.at(name))

    def _most(self, name: str) -> int:
        limit = self._limit(name)
        return self.places if limit is None else limit

    def _move(self, destination: Destination, ring: Ring) -> None:
        if destination.ring is not ring:
            destination.ring.hand_over(destination, ring)
            destination.ring = ring

    def _push(self, destination: Destination, message: QueuedMessage, now: float) -> None:
        destination.ring.waiting += 1
        if destination.push(message) is not None:
            destination.ring.waiting -= 1
            destination.due = min(destination.due, now)
        if destination not in destination.ring.turns:
            destination.ring.join(destination)

    def _space(self, ring: Ring) -> int:
        """How many more parts of these destinations may wait in memory."""
        space = MOST_WAITING * ring.eighths // 8 - ring.waiting
        # What waits for unknown ones waits for known ones as soon as they answer, also beyond their share.
        return space if ring is self._known else min(space, MOST_WAITING - self.waiting)

    def _has_space(self, ring: Ring) -> bool:
        return self._space(ring) > enough_space(ring)

    def _is_due(self, destination: Destination, when: float) -> None:
        destination.due = min(destination.due, when)
        self._schedule(destination)

    def _schedule(self, destination: Destination) -> None:
        """Have the destination looked at when there is something to get for it, or when it may go on."""
        if destination.due == inf and not destination.shut_until:
            wakes = destination.ring.wakes
            if destination.name in wakes.times:
                wakes.discard(destination.name)
            return
        wake = inf
        if destination.waiting and destination.shut_until:
            wake = destination.shut_until
        if destination.needs_more:
            wake = min(wake, max(destination.due, destination.shut_until))
        destination.ring.wakes.set(destination.name, wake)

    def _tidy(self, destination: Destination) -> None:
        """Keep no more of a destination than is needed, once nothing of it is in memory."""
        if destination.known or destination.in_use or destination.name not in self._destinations:
            return
        if destination.due == inf:
            del self._destinations[destination.name]
            self._with_turns.pop(destination.name, None)
            destination.ring.forget(destination)
            if destination.failures:
                # It was down, and no mail waits for it any more.
                self._blocked -= 1
        elif destination.has_turns:
            self._with_turns[destination.name] = None
            if len(self._with_turns) > _MOST_WITH_TURNS:
                name, _ = self._with_turns.popitem(last=False)
                oldest = self._destinations.get(name)
                if oldest is not None and not oldest.in_use:
                    self._put_to_rest(oldest)
        else:
            self._put_to_rest(destination)

    def _put_to_rest(self, destination: Destination) -> None:
        del self._destinations[destination.name]
        self._with_turns.pop(destination.name, None)
        if needs_nothing(destination):
            self._quiet += 1
        else:
            self._resting.put(destination)


def _no_outage(_name: str) -> None:
    """This process has no other workers beside it."""


def enough_space(ring: Ring) -> int:
    """So much space has to be there before the spool is asked."""
    return MOST_WAITING * ring.eighths // 64
