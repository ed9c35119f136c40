"""All destinations: whose turn it is, which one is left alone for a while, and what to get from the spool.

There is no loop over all destinations here and no list of all messages: a destination is touched when
something happens in it or when its time has come.
"""

from __future__ import annotations

from collections.abc import Iterable
from math import inf

from elemta.delivery.destination import FIRST_WINDOW, MOST_BROKEN_OFF, Destination, Key
from elemta.delivery.destination_table import DestinationTable, enough_space
from elemta.delivery.rings import Ring, Standing
from elemta.outcome import Outcome
from elemta.spool.records import DestinationDue, QueuedMessage

_STANDINGS = len(Standing)
# Parts of a destination that are tried while it is brought forward.
_MOST_TRIED = 1000


class Destinations(DestinationTable):
    """The destinations that have something to do."""

    # What comes in

    def enter(self, message: QueuedMessage, now: float) -> None:
        """A part is due; it waits in memory if there is space, else in the spool."""
        destination = self._destinations.get(message.destination)
        if destination is None:
            rest = self._resting.get(message.destination)
            if rest is not None and rest.is_shut(now):
                self.due_at(message.destination, now)
                return
            destination = self._new_destination(message.destination)
        if message.key in destination.known:
            return
        if (
            destination.failures
            or destination.shut_until > now
            # What waits in the spool came before it, and would wait as long as others arrive.
            or (destination.due <= now and not destination.precedes(message))
            or self._space(destination.ring) <= 0
        ):
            self._is_due(destination, now)
            self._tidy(destination)
            return
        self._push(destination, message, now)
        self._schedule(destination)

    def due_at(self, name: str, when: float) -> None:
        """The spool has something in this destination for then."""
        destination = self._destinations.get(name)
        if destination is not None:
            self._is_due(destination, when)
        elif name in self._resting:
            self._resting.due_at(name, when)
        else:
            before = self._quiet_until(name)
            self._quiet += before == inf
            if when < before:
                ring = self._known if name in self._known.wakes else self._first_ring(name)
                ring.wakes.set(name, when)

    def wanted(self, now: float) -> dict[str, int]:
        """Which destinations to look into now, and how many parts to take from each.

        To be followed by :meth:`loaded` for each of them, or by :meth:`not_loaded`.
        """
        wanted: dict[str, int] = {}
        for ring in self._rings:
            self._add_wanted(ring, wanted, now)
        return wanted

    def _add_wanted(self, ring: Ring, wanted: dict[str, int], now: float) -> None:
        space, most = self._space(ring), len(wanted) + ring.looked_into
        while len(wanted) < most and space > enough_space(ring) and (name := ring.wakes.pop(now)) is not None:
            destination = self._destinations.get(name) or self._wake_up(name)
            if destination.shut_until <= now:
                destination.shut_until = 0.0
                ring.join(destination)
            if destination.due <= now and destination.needs_more and not destination.shut_until:
                destination.loading, destination.due = True, inf
                # Never all the space, so that there is always some for another destination.
                wanted[name] = max(1, min(destination.capacity - destination.waiting, space // 4))
                space -= wanted[name]
            else:
                self._schedule(destination)
                self._tidy(destination)

    def _wake_up(self, name: str) -> Destination:
        """The destination whose time has come, and was taken out of its ring."""
        was_quiet = name not in self._resting
        self._quiet -= was_quiet
        destination = self._new_destination(name)
        if was_quiet:
            destination.due = 0.0
        return destination

    def known(self, names: Iterable[str]) -> dict[str, tuple[Key, ...]]:
        """What of these destinations needs no telling."""
        destinations = [
            destination for name in names if (destination := self._destinations.get(name)) is not None
        ]
        return {destination.name: (*destination.known, *destination.tried) for destination in destinations}

    def brought_forward(self, names: Iterable[str]) -> dict[str, float]:
        """In which of these destinations what is deferred up to when is due already."""
        destinations = [
            destination for name in names if (destination := self._destinations.get(name)) is not None
        ]
        return {
            destination.name: destination.back_until for destination in destinations if destination.back_until
        }

    def loaded(self, found: DestinationDue, now: float) -> None:
        """This is due in a destination."""
        destination = self._destination(found.destination)
        destination.loading = False
        done, destination.settled_meanwhile = destination.settled_meanwhile, set()
        for message in found.messages:
            # What was done since the question was asked may still stand in the answer.
            if message.key not in destination.known and message.key not in done:
                self._push(destination, message, now)
        if found.next_due is not None:
            destination.due = min(destination.due, found.next_due)
        if destination.back_until and (found.next_due is None or found.next_due > now):
            _end_bringing_forward(destination)
        self._schedule(destination)
        self._tidy(destination)

    def not_loaded(self, names: Iterable[str], again_at: float) -> None:
        """The spool did not say what is due."""
        for name in names:
            destination = self._destination(name)
            destination.loading = False
            destination.settled_meanwhile.clear()
            self._is_due(destination, again_at)
            self._tidy(destination)

    def next_due(self) -> float:
        """When the next destination has to be looked at; never, before there is space for what it has."""
        first = inf
        for ring in self._rings:
            if ring.wakes.times and (when := ring.wakes.first()) < first and self._has_space(ring):
                first = when
        return first

    # What goes out

    def take(self, now: float, free: int) -> QueuedMessage | None:
        """The next part to attempt, if any may be, with ``free`` places for parts under way left.

        Destinations take turns. A destination may have as many under way as there are places left, so there
        is always one for a destination that has none. Destinations that were down together get a quarter of
        the places, those that never answered yet all but a quarter: they may stall all of them.
        """
        for _ in self._rings:
            ring = self._rings[self._next_ring]
            self._next_ring = (self._next_ring + 1) % _STANDINGS
            if ring.turns and (ring is self._known or self._may_start_in(ring, free)):
                destination = ring.next(now, free)
                if destination is not None:
                    return self._start(destination, now)
        return None

    def _may_start_in(self, ring: Ring, free: int) -> bool:
        if ring is self._unknown:
            return self.free_for_unknown(free) > 0
        return len(self._probing) <= free // 3

    def free_for_unknown(self, free: int) -> int:
        """How many of the free places are for destinations that never answered yet."""
        return free - self.places // 4

    def _start(self, destination: Destination, now: float) -> QueuedMessage:
        message = destination.pop()
        destination.started_at = now
        ring = destination.ring
        ring.waiting -= 1
        if ring is self._failing:
            self._probing.add(destination.name)
        # With as many under way as may be it has no turn before one of them is over.
        may_go_on = destination.waiting and destination.under_way < destination.limit
        if may_go_on and destination not in ring.turns:
            ring.join(destination)
        self._schedule(destination)
        return message

    def epoch(self, name: str) -> int:
        """A number that grows whenever the destination is found down; to be given to :meth:`failed` later."""
        return self._destination(name).epoch

    def finished(self, message: QueuedMessage, *, known: bool = False) -> None:
        """A part is not under way any more. ``known``: it must not be taken up again yet, see `release`."""
        destination = self._destination(message.destination)
        destination.under_way -= 1
        if self._probing:
            self._probing.discard(destination.name)
        if not known:
            self._release(destination, message)
        if destination.waiting and destination not in destination.ring.turns:
            destination.ring.join(destination)
        self._schedule(destination)
        if not destination.known:
            self._tidy(destination)

    def release(self, message: QueuedMessage, when: float) -> None:
        """A part that was finished as known may be taken up from the spool then."""
        destination = self._destination(message.destination)
        self._release(destination, message)
        self._is_due(destination, when)

    def put_back(self, message: QueuedMessage, until: float) -> None:
        """A part was taken, but may not go before then; nor may the others in its destination."""
        destination = self._destination(message.destination)
        destination.shut_until = max(destination.shut_until, until)
        destination.due = 0.0
        self._schedule(destination)

    # How destinations do

    def answered(self, name: str, now: float, *, delivered: bool) -> bool:
        """A destination took a message, or at least answered for it; whether it had been down."""
        destination = self._destination(name)
        destination.last_success = now
        if destination.name not in self._answered or destination.ring is self._unknown:
            self._remember_answer(destination)
        destination.broken_off = 0
        if delivered and destination.window < destination.most:
            destination.window += 1
        if not destination.failures:
            return False
        self._open(destination)
        return True

    def _remember_answer(self, destination: Destination) -> None:
        if destination.name not in self._answered:
            # Where it was dropped for others, its next answer brings it back.
            self._answered.keep(destination.name, None)
        if destination.ring is self._unknown:
            self._move(destination, self._known)

    def broke_off(self, name: str) -> bool:
        """A destination broke off while it answered; whether that makes it one that is down."""
        destination = self._destination(name)
        destination.broken_off += 1
        destination.window = 1
        return destination.broken_off >= MOST_BROKEN_OFF

    def failed(self, name: str, epoch: int, started: float) -> bool:
        """A destination could not be reached; whether the destination must be blocked for it.

        Not if that is known already, nor if others got through after that attempt began: then there are
        too many at one time, and their number is halved.
        """
        destination = self._destination(name)
        if destination.epoch != epoch:
            return False
        if not destination.failures and destination.last_success >= started > 0.0:
            destination.window = max(1, min(destination.window, destination.under_way) // 2)
            return False
        return True

    def regular_probe(self, name: str, now: float) -> float | None:
        """When a destination that is down has its next probe, where it is tried before that time now."""
        destination = self.find(name)
        if destination is None or not destination.failures or destination.regular_probe <= now:
            return None
        return destination.regular_probe

    def block(self, name: str, until: float, reason: Outcome, *, early: bool = False) -> None:
        """Leave a destination alone until then; after that one part may probe it.

        ``early``: this was a probe before its time, which is not counted as one more failure.
        """
        destination = self._destination(name)
        if not destination.failures:
            self._blocked += 1
        destination.failures += not early
        destination.regular_probe = 0.0
        destination.epoch += 1
        if self._answered.pop(name, self) is None:
            self._answered_once.keep(name, None)
        destination.end_bringing_forward()
        destination.shut_until, destination.reason = until, reason
        if name in self.paused:
            # The back-off goes on as it would without the pause.
            destination.shut_until, destination.regular_probe = inf, until
        destination.window = min(FIRST_WINDOW, destination.most)
        destination.broken_off = 0
        destination.ring.waiting -= destination.waiting
        destination.unload()
        self._move(destination, self._failing)
        self._schedule(destination)

    def learn_outage(self, name: str, until: float, failures: int, reason: Outcome) -> bool:
        """Leave a destination alone that others found down; whether it was open here till now.

        One that is down here, too, is not probed before that time, unless its probe is under way.
        """
        destination = self._destination(name)
        if destination.failures:
            if destination.shut_until == inf:
                destination.regular_probe = max(destination.regular_probe, until)
            elif destination.shut_until:
                destination.shut_until = max(destination.shut_until, until)
            self._schedule(destination)
        else:
            self.block(name, until, reason)
            destination.failures = failures
        self._tidy(destination)
        return destination.reason is reason

    def learn_answer(self, name: str) -> bool:
        """Open a destination that answers others; whether it was down here."""
        state = self._state(name)
        if state is None or not state.failures:
            return False
        destination = self._destination(name)
        self._open(destination)
        self._tidy(destination)
        return True

    def probe_now(self, names: Iterable[str]) -> None:
        """Let the next attempts in these destinations be made now, whatever was known of them."""
        for name in names:
            if name in self.paused:
                continue
            if name in self._resting:
                self._resting.bring_forward(name)
                continue
            destination = self._destination(name)
            destination.most = self._most(destination.name)
            destination.window = min(destination.window, destination.most)
            destination.bring_forward()
            destination.shut_until = destination.due = 0.0
            destination.ring.join(destination)
            self._schedule(destination)
            self._tidy(destination)

    def probe_early(self, names: Iterable[str]) -> None:
        """Let one attempt be made in each of these destinations that are down, before its time.

        Their state is unknown now: so they use the space and the places of unknown destinations.
        """
        for destination in [self._destination(name) for name in names]:
            down = destination.failures and destination.shut_until and not destination.under_way
            if down and destination.name not in self.paused:
                destination.bring_forward()
                destination.shut_until = destination.due = 0.0
                self._move(destination, self._unknown)
                self._schedule(destination)
            self._tidy(destination)

    def probe(self, name: str, now: float, first_due: float = 0.0) -> None:
        """Let one attempt be made in a destination now, also where all of its mail waits for a later time.

        ``first_due`` is when the spool has the first of it. What is known here may be the time of a message
        that is held by now, or gone.
        """
        destination = self._destination(name)
        due = max(destination.due, first_due) if destination.due < inf else first_due
        if not destination.failures and now < due:
            destination.back_until = max(destination.back_until, due)
        self._tidy(destination)
        self.probe_now([name])

    def pause(self, name: str) -> None:
        """Attempt nothing more in a destination; what is under way goes on."""
        if name in self.paused:
            return
        destination = self._destination(name)
        # The back-off of one that is down goes on after the pause.
        destination.bring_forward()
        self.paused[name] = None
        destination.shut_until = inf
        self._schedule(destination)
        self._tidy(destination)

    def resume(self, name: str, now: float, first_due: float = 0.0) -> None:
        """End a pause: what is due is attempted, and one in any case, as a probe."""
        if name in self.paused:
            del self.paused[name]
            self._destination(name).shut_until = 0.0
            self.probe(name, now, first_due)

    def start_over(self, under_way: Iterable[QueuedMessage], aside: Iterable[QueuedMessage]) -> None:
        """Forget everything that waits, but not what is under way, nor what must not be taken up yet."""
        self.drop_all()
        for message in under_way:
            destination = self._destination(message.destination)
            destination.under_way += 1
            destination.known.add(message.key)
            destination.ring.join(destination)
        for message in aside:
            self._destination(message.destination).known.add(message.key)

    def drop_all(self) -> None:
        """Forget everything that waits."""
        for destination in self._destinations.values():
            destination.unload()
            destination.known.clear()
        self._destinations.clear()
        self._resting.clear()
        self._with_turns.clear()
        self._quiet = 0
        for ring in self._rings:
            ring.clear()
        self._probing.clear()
        self._blocked = 0

    # Inside

    def _open(self, destination: Destination) -> None:
        destination.bring_forward()
        destination.failures = 0
        destination.regular_probe = 0.0
        destination.epoch += 1
        destination.shut_until = inf if destination.name in self.paused else 0.0
        destination.reason = None
        destination.due = 0.0
        self._blocked -= 1
        self._move(destination, self._known)
        self._schedule(destination)

    def _release(self, destination: Destination, message: QueuedMessage) -> None:
        destination.known.discard(message.key)
        if destination.back_until:
            destination.tried.add(message.key)
            if len(destination.tried) >= _MOST_TRIED:
                _end_bringing_forward(destination)
        if destination.loading:
            destination.settled_meanwhile.add(message.key)


def _end_bringing_forward(destination: Destination) -> None:
    if destination.tried:
        # The spool was not asked for these, and their time may have come meanwhile.
        destination.due = 0.0
    destination.end_bringing_forward()
