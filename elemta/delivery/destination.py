"""One destination: the parts of messages that wait for it, their order, and how the destination does."""

from __future__ import annotations

from bisect import insort
from math import inf
from typing import TYPE_CHECKING

from elemta.address import Address
from elemta.outcome import Outcome
from elemta.spool.records import MessageState, QueuedMessage

if TYPE_CHECKING:
    from elemta.delivery.rings import Ring

Key = tuple[str, int]

# How many may be under way before one has succeeded: what a dead destination costs when it is met first.
FIRST_WINDOW = 2
# Attempts that broke off in a row without a success before the destination counts as down.
MOST_BROKEN_OFF = 3
_MOST_SENDERS = 10_000


class Destination:
    """The line before one destination.

    What is due is in the spool; a few parts of it wait here in memory: active ones in the order of their
    turns, deferred ones in the order of their times, and each kind has every second go. ``due`` is when the
    spool has more of it (a lower bound), ``shut_until`` when the next attempt may be made, ``failures`` how
    often in a row the destination was found down, and ``reason`` what was said then. ``back_until`` is not 0
    where it is tried before its time: what is deferred up to then is due, but for the parts ``tried`` since.
    ``regular_probe`` is the time that it would have had, 0 where it is tried at its time.
    ``started_at`` is when the last attempt began.
    ``ring`` are the destinations that do like this one, and ``waiting`` is how many parts wait in memory.
    """

    __slots__ = (
        "_active",
        "_deferred",
        "_deferred_next",
        "_served",
        "_turns",
        "back_until",
        "broken_off",
        "due",
        "epoch",
        "failures",
        "known",
        "last_success",
        "loading",
        "most",
        "name",
        "reason",
        "regular_probe",
        "ring",
        "settled_meanwhile",
        "shut_until",
        "started_at",
        "tried",
        "under_way",
        "waiting",
        "window",
    )

    def __init__(self, name: str, most: int, ring: Ring) -> None:
        self.name = name
        self.ring = ring
        self.most = most
        self.window = min(FIRST_WINDOW, most)
        self.under_way = 0
        self.waiting = 0
        self.due = inf
        self.shut_until = 0.0
        self.failures = 0
        self.broken_off = 0
        self.epoch = 0
        self.last_success = 0.0
        self.started_at = 0.0
        self.reason: Outcome | None = None
        self.loading = False
        self.known: set[Key] = set()
        self.settled_meanwhile: set[Key] = set()
        self.back_until = 0.0
        self.regular_probe = 0.0
        self.tried: set[Key] = set()
        self._active: list[tuple[float, str, int, QueuedMessage]] = []
        self._deferred: list[tuple[float, str, int, QueuedMessage]] = []
        self._deferred_next = False
        self._served = 0.0
        self._turns: dict[Address, float] = {}

    def waits(self, key: Key) -> bool:
        """Whether the part waits in memory: it is known, and not under way."""
        return any(each[-1].key == key for line in (self._active, self._deferred) for each in line)

    @property
    def capacity(self) -> int:
        """How many parts may wait in memory."""
        if self.failures:
            return 1
        capacity = 4 * self.window
        return 8 if capacity < 8 else 500 if capacity > 500 else capacity

    @property
    def needs_more(self) -> bool:
        """Whether there should soon be more of it in memory."""
        return self.waiting <= self.capacity // 2 and not self.loading

    @property
    def limit(self) -> int:
        """How many may be under way: one, as a probe, where the destination was down."""
        return 1 if self.failures else self.window

    def is_shut(self, now: float) -> bool:
        """Whether nothing in this destination is attempted now."""
        return self.shut_until > now or self.failures > 0

    def is_stalled(self, now: float, longest: float) -> bool:
        """Whether those under way have kept all others from an attempt for longer than so many seconds."""
        return 0.0 < self.started_at < now - longest and self.under_way >= self.limit

    def bring_forward(self) -> None:
        """What was put off since the destination is down does not wait for the end of that."""
        if self.failures and self.shut_until < inf:
            self.back_until = max(self.back_until, self.shut_until)
            self.regular_probe = max(self.regular_probe, self.shut_until)

    def end_bringing_forward(self) -> None:
        """What is deferred waits for its time again."""
        self.back_until = 0.0
        self.tried.clear()

    @property
    def in_use(self) -> bool:
        """Whether something of it is in memory, or on its way there."""
        return bool(self.known or self.loading or self.under_way or self.tried)

    @property
    def has_turns(self) -> bool:
        """Whether the next part of some sender stands behind those of others."""
        return any(turn >= self._served for turn in self._turns.values())

    def turn(self, sender: Address, now: float) -> float:
        """The place in the line for a new part.

        Each part of a sender stands one second behind the one before it, and at the earliest behind what
        was served last, as in start-time fair queueing: the sender of a flood waits behind it, while
        others pass.
        """
        base = self._served or now
        last = self._turns.get(sender)
        turn = base if last is None or last < base else last + 1.0
        if last is None and len(self._turns) >= _MOST_SENDERS:
            self._forget_senders(base)
        self._turns[sender] = turn
        return turn

    def _forget_senders(self, base: float) -> None:
        self._turns = {sender: turn for sender, turn in self._turns.items() if turn > base}
        if len(self._turns) >= _MOST_SENDERS:
            self._turns.clear()

    def precedes(self, message: QueuedMessage) -> bool:
        """Whether a new part goes before one that waits in memory, and so before all that wait in the spool.

        Parts are loaded in the order of their turns, and the last one leaves where there is no space.
        """
        return bool(self._active) and message.next_attempt_at < self._active[-1][0]

    def push(self, message: QueuedMessage) -> QueuedMessage | None:
        """Let a part wait in memory; gives the one that has to leave for it, perhaps itself."""
        line = self._active if message.state is MessageState.ACTIVE else self._deferred
        key = message.key
        insort(line, (message.next_attempt_at, *key, message))
        self.known.add(key)
        self.waiting += 1
        if self.waiting <= self.capacity:
            return None
        longer = self._active if len(self._active) > len(self._deferred) else self._deferred
        last = longer.pop()[-1]
        self.waiting -= 1
        self.known.discard(last.key)
        return last

    def pop(self) -> QueuedMessage:
        """The next part in turn; it counts as under way."""
        deferred = self._deferred and (self._deferred_next or not self._active)
        line = self._deferred if deferred else self._active
        self._deferred_next = not deferred
        turn, _, _, message = line.pop(0)
        if line is self._active and turn > self._served:
            self._served = turn
        self.waiting -= 1
        self.under_way += 1
        return message

    def unload(self) -> None:
        """Forget what waits in memory: the spool has it."""
        for *_, message in (*self._active, *self._deferred):
            self.known.discard(message.key)
        self._active.clear()
        self._deferred.clear()
        self.waiting = 0
        self.due = 0.0
