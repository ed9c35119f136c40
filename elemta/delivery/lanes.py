"""All lanes: whose turn it is, which destination is left alone for a while, and what to get from the spool.

There is no loop over all lanes here and no list of all messages: a lane is touched when something happens in
it or when its time has come.
"""

from __future__ import annotations

from collections.abc import Iterable
from math import inf

from elemta.delivery.lane import FIRST_WINDOW, MOST_BROKEN_OFF, Key, Lane
from elemta.delivery.lane_table import LaneTable, enough_room
from elemta.delivery.rings import Ring
from elemta.outcome import Outcome
from elemta.spool.records import LaneDue, QueuedMessage

# Destinations of which it is remembered that they answer, though no mail for them waits.
_MOST_ANSWERED = 10_000
# Parts of a lane that are tried while it is brought forward.
_MOST_TRIED = 1000


class Lanes(LaneTable):
    """The lanes that have something to do."""

    # What comes in

    def enter(self, message: QueuedMessage, now: float) -> None:
        """A part is due; it waits in memory if there is room, else in the spool."""
        lane = self._lanes.get(message.lane)
        if lane is None:
            rest = self._resting.get(message.lane)
            if rest is not None and rest.is_shut(now):
                self.due_at(message.lane, now)
                return
            lane = self._new_lane(message.lane)
        if message.key in lane.known:
            return
        if lane.failures or lane.shut_until > now or self._room(lane.ring) <= 0:
            self._is_due(lane, now)
            self._tidy(lane)
            return
        self._push(lane, message, now)
        self._schedule(lane)

    def due_at(self, name: str, when: float) -> None:
        """The spool has something in this lane for then."""
        lane = self._state(name)
        if isinstance(lane, Lane):
            self._is_due(lane, when)
        elif lane is not None:
            lane.due = min(lane.due, when)
            lane.ring.wakes.set(name, lane.wake)
        else:
            before = self._quiet_until(name)
            self._quiet += before == inf
            if when < before:
                ring = self._known if name in self._known.wakes else self._first_ring(name)
                ring.wakes.set(name, when)

    def wanted(self, now: float) -> dict[str, int]:
        """Which lanes to look into now, and how many parts to take from each.

        To be followed by :meth:`loaded` for each of them, or by :meth:`not_loaded`.
        """
        wanted: dict[str, int] = {}
        for ring in self._rings:
            self._add_wanted(ring, wanted, now)
        return wanted

    def _add_wanted(self, ring: Ring, wanted: dict[str, int], now: float) -> None:
        room, most = self._room(ring), len(wanted) + ring.looked_into
        while len(wanted) < most and room > enough_room(ring) and (name := ring.wakes.pop(now)) is not None:
            lane = self._lanes.get(name) or self._wake_up(name)
            if lane.shut_until <= now:
                lane.shut_until = 0.0
                ring.join(lane)
            if lane.due <= now and lane.hungry and not lane.shut_until:
                lane.loading, lane.due = True, inf
                # Never all the room, so that there is always some for another lane.
                wanted[name] = max(1, min(lane.capacity - lane.waiting, room // 4))
                room -= wanted[name]
            else:
                self._schedule(lane)
                self._tidy(lane)

    def _wake_up(self, name: str) -> Lane:
        """The lane whose time has come, and was taken out of its ring."""
        was_quiet = name not in self._resting
        self._quiet -= was_quiet
        lane = self._new_lane(name)
        if was_quiet:
            lane.due = 0.0
        return lane

    def known(self, names: Iterable[str]) -> dict[str, tuple[Key, ...]]:
        """What of these lanes needs no telling."""
        lanes = [lane for name in names if (lane := self._lanes.get(name)) is not None]
        return {lane.name: (*lane.known, *lane.tried) for lane in lanes}

    def brought_forward(self, names: Iterable[str]) -> dict[str, float]:
        """In which of these lanes what is deferred up to when is due already."""
        lanes = [lane for name in names if (lane := self._lanes.get(name)) is not None]
        return {lane.name: lane.back_until for lane in lanes if lane.back_until}

    def loaded(self, found: LaneDue, now: float) -> None:
        """This is due in a lane."""
        lane = self._lane(found.lane)
        lane.loading = False
        done, lane.settled_meanwhile = lane.settled_meanwhile, set()
        for message in found.messages:
            # What was done since the question was asked may still stand in the answer.
            if message.key not in lane.known and message.key not in done:
                self._push(lane, message, now)
        if found.next_due is not None:
            lane.due = min(lane.due, found.next_due)
        if lane.back_until and (found.next_due is None or found.next_due > now):
            lane.end_bringing_forward()
        self._schedule(lane)
        self._tidy(lane)

    def not_loaded(self, names: Iterable[str], again_at: float) -> None:
        """The spool did not say what is due."""
        for name in names:
            lane = self._lane(name)
            lane.loading = False
            lane.settled_meanwhile.clear()
            self._is_due(lane, again_at)
            self._tidy(lane)

    def next_wake(self) -> float:
        """When the next lane has to be looked at; never, before there is room for what it has."""
        first = inf
        for ring in self._rings:
            if ring.wakes and (when := ring.wakes.first()) < first and self._has_room(ring):
                first = when
        return first

    # What goes out

    def take(self, now: float, free: int) -> QueuedMessage | None:
        """The next part to attempt, if any may be, with ``free`` places for parts under way left.

        Lanes take turns. A lane may have as many under way as there are places left, so that there is always
        one for a lane that has none. Destinations that were down together get a quarter of the places, those
        that never answered yet all but a quarter: they may stall all of them.
        """
        for _ in self._rings:
            ring = self._rings[self._next_ring]
            self._next_ring = (self._next_ring + 1) % len(self._rings)
            if ring and self._may_start_in(ring, free):
                lane = ring.next(now, free)
                if lane is not None:
                    return self._start(lane)
        return None

    def _may_start_in(self, ring: Ring, free: int) -> bool:
        if ring is self._known:
            return True
        return free > self.places // 4 if ring is self._unknown else len(self._probing) <= free // 3

    def _start(self, lane: Lane) -> QueuedMessage:
        message = lane.pop()
        lane.ring.waiting -= 1
        if lane.ring is self._failing:
            self._probing.add(lane.name)
        lane.ring.join(lane)
        self._schedule(lane)
        return message

    def epoch(self, name: str) -> int:
        """A number that grows whenever the lane is found down; to be given to :meth:`failed` later."""
        return self._lane(name).epoch

    def finished(self, message: QueuedMessage, *, known: bool = False) -> None:
        """A part is not under way any more. ``known``: it must not be taken up again yet, see `release`."""
        lane = self._lane(message.lane)
        lane.under_way -= 1
        self._probing.discard(lane.name)
        if not known:
            self._release(lane, message)
        lane.ring.join(lane)
        self._schedule(lane)
        self._tidy(lane)

    def release(self, message: QueuedMessage, when: float) -> None:
        """A part that was finished as known may be taken up from the spool then."""
        lane = self._lane(message.lane)
        self._release(lane, message)
        self._is_due(lane, when)

    def put_back(self, message: QueuedMessage, until: float) -> None:
        """A part was taken, but may not go before then; nor may the others in its lane."""
        lane = self._lane(message.lane)
        lane.shut_until = max(lane.shut_until, until)
        lane.due = 0.0
        self._schedule(lane)

    # How destinations do

    def answered(self, name: str, now: float, *, delivered: bool) -> bool:
        """A destination took a message, or at least answered for it; whether it had been down."""
        lane = self._lane(name)
        lane.last_success = now
        self._remember_answer(lane)
        lane.broken_off = 0
        if delivered:
            lane.window = min(lane.window + 1, lane.most)
        if not lane.failures:
            return False
        self._open(lane)
        return True

    def _remember_answer(self, lane: Lane) -> None:
        _remember(self._answered, lane.name)
        if lane.ring is self._unknown:
            self._move(lane, self._known)

    def broke_off(self, name: str) -> bool:
        """A destination broke off while it answered; whether that makes it one that is down."""
        lane = self._lane(name)
        lane.broken_off += 1
        lane.window = 1
        return lane.broken_off >= MOST_BROKEN_OFF

    def failed(self, name: str, epoch: int, started: float) -> bool:
        """A destination could not be reached; whether the lane must be blocked for it.

        Not if that is known already, nor if others got through after that attempt began: then there are
        too many at one time, and their number is halved.
        """
        lane = self._lane(name)
        if lane.epoch != epoch:
            return False
        if not lane.failures and lane.last_success >= started > 0.0:
            lane.window = max(1, min(lane.window, lane.under_way) // 2)
            return False
        return True

    def block(self, name: str, until: float, reason: Outcome) -> None:
        """Leave a destination alone until then; after that one part may probe it."""
        lane = self._lane(name)
        if not lane.failures:
            self._blocked += 1
        lane.failures += 1
        lane.epoch += 1
        if self._answered.pop(name, self) is None:
            _remember(self._answered_once, name)
        lane.end_bringing_forward()
        lane.shut_until, lane.reason = until, reason
        lane.window = min(FIRST_WINDOW, lane.most)
        lane.broken_off = 0
        lane.ring.waiting -= lane.waiting
        lane.drop()
        self._move(lane, self._failing)
        self._schedule(lane)

    def probe_now(self, names: Iterable[str]) -> None:
        """Let the next attempts in these lanes be made now, whatever was known of them."""
        for name in names:
            rest = self._resting.get(name)
            if rest is not None:
                rest.bring_forward()
                rest.ring.wakes.set(name, 0.0)
                continue
            lane = self._lane(name)
            lane.most = self._most(lane.name)
            lane.window = min(lane.window, lane.most)
            lane.bring_forward()
            lane.shut_until = lane.due = 0.0
            lane.ring.join(lane)
            self._schedule(lane)
            self._tidy(lane)

    def probe_early(self, names: Iterable[str]) -> None:
        """Let one attempt be made in each of these lanes that are down, before its time.

        Nobody knows how they do: so they take the room and the places of unknown destinations.
        """
        for lane in [self._lane(name) for name in names]:
            if lane.failures and lane.shut_until and not lane.under_way:
                lane.bring_forward()
                lane.shut_until = lane.due = 0.0
                self._move(lane, self._unknown)
                self._schedule(lane)
            self._tidy(lane)

    def drop_all(self) -> None:
        """Forget everything that waits."""
        for lane in self._lanes.values():
            lane.drop()
            lane.known.clear()
        self._lanes.clear()
        self._resting.clear()
        self._with_turns.clear()
        self._quiet = 0
        for ring in self._rings:
            ring.clear()
        self._probing.clear()
        self._blocked = 0

    # Inside

    def _open(self, lane: Lane) -> None:
        lane.bring_forward()
        lane.failures = 0
        lane.epoch += 1
        lane.shut_until, lane.reason = 0.0, None
        lane.due = 0.0
        self._blocked -= 1
        self._move(lane, self._known)
        self._schedule(lane)

    def _release(self, lane: Lane, message: QueuedMessage) -> None:
        lane.known.discard(message.key)
        if lane.back_until:
            lane.tried.add(message.key)
            if len(lane.tried) >= _MOST_TRIED:
                lane.end_bringing_forward()
        if lane.loading:
            lane.settled_meanwhile.add(message.key)


def _remember(names: dict[str, None], name: str) -> None:
    names.pop(name, None)
    names[name] = None
    if len(names) > _MOST_ANSWERED:
        del names[next(iter(names))]
