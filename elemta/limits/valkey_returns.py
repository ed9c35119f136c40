"""What goes back to Valkey: charges that came to nothing, leases, and calls without an answer."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from twisted.internet.defer import Deferred, DeferredList
from twisted.python.failure import Failure

from elemta.errors import StoreUnavailable, ValkeyError
from elemta.limits.valkey_leases import BACKGROUND_DEADLINE
from elemta.limits.valkey_scripts import CANCEL, RETURN
from elemta.valkey.client import Valkey

RETURNED_AT_ONCE = 128
RETRIED_AFTER = 0.5
CANCELLED_AFTER = 1.0
"""Between a call without an answer and its cancellation, and between that and the second one."""
CANCELLED_AT_ONCE = 4
"""So many calls: Valkey has to answer probes and decisions meanwhile."""
_FORGOTTEN_AFTER = 10.0
_MOST_CANCELLED = 512


class TimerClock(Protocol):
    """The part of ``IReactorTime`` that is used here."""

    def seconds(self) -> float: ...
    def callLater(self, delay: float, callable: Any, *args: Any) -> Any: ...  # noqa: A002


class Handover:
    """Several entries that one caller waits for together."""

    __slots__ = ("_failure", "_open", "deferred")

    def __init__(self, entries: int) -> None:
        self.deferred: Deferred[None] = Deferred()
        self._open = entries
        self._failure: Failure | None = None

    def done(self, failure: Failure | None = None) -> None:
        self._open -= 1
        self._failure = self._failure or failure
        if self._open:
            return
        if self._failure is None:
            self.deferred.callback(None)
        else:
            self.deferred.errback(self._failure)


@dataclass(slots=True, eq=False)
class PendingReturn:
    """One charge or lease that is to be given back; ``at`` is 0 for a lease.

    ``repeatable`` is what is found by its member alone: to give it back twice is to do it once.
    """

    key: bytes
    member: bytes
    amount: int
    at: int
    tag: str
    repeatable: bool
    handover: Handover
    tries: int = 0


class Returns:
    """Gives back everything of one turn of the reactor together, and tries once more what may be tried."""

    def __init__(self, reactor: TimerClock, valkey: Valkey) -> None:
        self._reactor = reactor
        self._valkey = valkey
        self._waiting: list[PendingReturn] = []
        self._patient = True
        self._under_way: dict[Deferred[Any], None] = {}
        self._turn: Any = None

    def add(self, entries: Iterable[PendingReturn]) -> None:
        self._waiting += entries
        if self._turn is None and self._waiting:
            self._turn = self._reactor.callLater(0, self.send)

    def send(self) -> None:
        """Do not wait for the end of this turn."""
        if self._turn is not None and self._turn.active():
            self._turn.cancel()
        self._turn = None
        waiting, self._waiting = self._waiting, []
        by_tag: dict[str, list[PendingReturn]] = {}
        for entry in waiting:
            by_tag.setdefault(entry.tag, []).append(entry)
        for entries in by_tag.values():
            for start in range(0, len(entries), RETURNED_AT_ONCE):
                self._call(entries[start : start + RETURNED_AT_ONCE])

    async def settled(self) -> None:
        """Send what is waiting, and wait for the replies. From now on nothing is tried a second time."""
        self._patient = False
        self.send()
        await DeferredList(list(self._under_way))

    def _call(self, entries: Sequence[PendingReturn]) -> None:
        args: list[bytes] = []
        for entry in entries:
            entry.tries += 1
            args += (entry.member, b"%d" % entry.amount, b"%d" % entry.at)
        answer = self._valkey.run(
            RETURN, [entry.key for entry in entries], args, deadline=BACKGROUND_DEADLINE
        )
        answer.addCallbacks(self._returned, self._lost, callbackArgs=(entries,), errbackArgs=(entries,))
        self._under_way[answer] = None
        answer.addCallback(lambda _: self._under_way.pop(answer, None))

    def _returned(self, _reply: object, entries: Sequence[PendingReturn]) -> None:
        for entry in entries:
            entry.handover.done()

    def _lost(self, failure: Failure, entries: Sequence[PendingReturn]) -> None:
        failure.trap(StoreUnavailable)
        maybe_done = not isinstance(failure.value, ValkeyError) or failure.value.maybe_done
        again = []
        for entry in entries:
            if not self._patient or entry.tries > 1 or (maybe_done and not entry.repeatable):
                entry.handover.done(failure)
                continue
            if maybe_done:
                # Its member alone; in the slots of nodes with other numbers it might be taken away twice.
                entry.at = 0
            again.append(entry)
        if again:
            self._reactor.callLater(RETRIED_AFTER, self.add, again)


@dataclass(slots=True, eq=False)
class _Lost:
    """A call that may or may not have been executed."""

    keys: Sequence[bytes]
    args: Sequence[bytes]
    due: float
    until: float
    answered: bool = False


class Cancellations:
    """Takes back what was charged without our knowing, if Valkey answers within a few seconds.

    Each call is cancelled twice: the first time may have overtaken the call itself on another connection.
    What is lost here makes a limit stricter for one window, and no more.
    """

    def __init__(self, reactor: TimerClock, valkey: Valkey) -> None:
        self._reactor = reactor
        self._valkey = valkey
        self._lost: deque[_Lost] = deque(maxlen=_MOST_CANCELLED)
        self._under_way = 0
        self._timer: Any = None

    def add(self, keys: Sequence[bytes], args: Sequence[bytes]) -> None:
        """``keys`` and ``args`` of the acquiring call, without its specs."""
        now = self._reactor.seconds()
        self._lost.append(_Lost(keys, args, now + CANCELLED_AFTER, now + _FORGOTTEN_AFTER))
        self._wind()

    def stop(self) -> None:
        self._lost.clear()
        if self._timer is not None and self._timer.active():
            self._timer.cancel()
        self._timer = None

    def _wind(self) -> None:
        if self._timer is None and self._lost and self._under_way < CANCELLED_AT_ONCE:
            delay = max(0.0, min(lost.due for lost in self._lost) - self._reactor.seconds())
            self._timer = self._reactor.callLater(delay, self._cancel)

    def _cancel(self) -> None:
        self._timer = None
        now = self._reactor.seconds()
        for lost in list(self._lost):
            if lost.until <= now:
                self._lost.remove(lost)
            elif lost.due <= now and self._under_way < CANCELLED_AT_ONCE:
                lost.due = now + CANCELLED_AFTER
                if self._valkey.up:
                    self._under_way += 1
                    answer = self._valkey.run(CANCEL, lost.keys, lost.args, deadline=BACKGROUND_DEADLINE / 2)
                    answer.addCallbacks(self._cancelled, self._failed, callbackArgs=(lost,))
                    answer.addCallback(self._next)
        self._wind()

    def _next(self, _: None) -> None:
        self._under_way -= 1
        self._wind()

    def _cancelled(self, _reply: object, lost: _Lost) -> None:
        if lost.answered and lost in self._lost:
            self._lost.remove(lost)
        lost.answered = True

    def _failed(self, failure: Failure) -> None:
        failure.trap(StoreUnavailable)
