"""Destinations that are down perhaps for a fault on this side: one that answers has them probed soon."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import ceil, inf

from twisted.internet.interfaces import IDelayedCall, IReactorTime

from elemta.delivery.local_faults import NAME_LOOKUPS
from elemta.outcome import LocalFault

AT_ONCE = 10
"""Destinations that are probed together, where they are few."""

MOST_AT_ONCE = 100
"""Destinations that are probed together, however many there are."""

SPREAD = 0.1
"""Seconds from some to the next."""

WITHIN = 50.0
"""Seconds in which all are probed, where ``MOST_AT_ONCE`` and the free places allow it."""

# A fault of this side is none where something worked so shortly before the attempt; seconds.
_STILL_WORKED = 60.0
# Early probes that are remembered; some never report how they ended.
_MOST_PROBED = 100_000

# Names that join others at once; more than that stay a lot of their own.
_FEW = 100

Probe = Callable[[Sequence[str]], None]


@dataclass(slots=True)
class _Stretch:
    """A time in which something worked again and again."""

    began: float
    last: float = 0.0


class EarlyProbes:
    """Remembers the destinations that may be down for a fault here, and has them probed when it is over.

    An answer shows that what it took works here; all destinations that lacked only that are then given to
    ``probe``, a few at a time and never more than there are ``free`` places for them. Those that answered
    before they were down come first. One that is still down at its early probe, and lacks nothing else, gets
    no other before its regular one. ``seconds`` is the time of attempts.
    """

    def __init__(
        self, clock: IReactorTime, seconds: Callable[[], float], probe: Probe, free: Callable[[], int]
    ) -> None:
        self._clock = clock
        self._seconds = seconds
        self._probe = probe
        self._free = free
        self._timer: IDelayedCall | None = None
        # Names by what they lacked and by whether they answered before; each is in one of these, or in one
        # of those to be probed, with all that it lacked since its last regular probe.
        self._suspects: dict[tuple[LocalFault, bool], dict[str, LocalFault]] = {}
        self._to_probe: tuple[list[dict[str, LocalFault]], list[dict[str, LocalFault]]] = ([], [])
        # When they were probed early, and what had been lacking: as a number, at which the collector of
        # garbage does not look, however many there are.
        self._probed: dict[str, tuple[float, int]] = {}
        self._at_once = AT_ONCE
        self._worked: dict[tuple[LocalFault, bool], _Stretch] = {}

    @property
    def suspects(self) -> int:
        """How many destinations may be down for a fault here."""
        return sum(map(len, self._suspects.values()))

    @property
    def _waiting(self) -> int:
        """How many destinations are to be probed."""
        return sum(len(lot) for lots in self._to_probe for lot in lots)

    def answered(self, works: LocalFault, now: float, *, names_known: bool) -> None:
        """A destination answered, so that this works here, but for lookups if its names are known."""
        stretch = self._worked.get((works, names_known))
        if stretch is None or stretch.last < now - _STILL_WORKED:
            stretch = self._worked[works, names_known] = _Stretch(now)
        stretch.last = now
        if self._suspects:
            self._release(_shown(works, names_known=names_known))

    def failed(self, name: str, lacked: LocalFault, started: float, *, answered_before: bool) -> None:
        """A destination is down by an attempt that began then; ``lacked`` is what may be missing here."""
        probed_at, number = self._probed.get(name, (inf, 0))
        lacked_before = LocalFault(number)
        early = probed_at <= started
        self.forget(name)
        if not lacked or (early and lacked in lacked_before):
            return
        stretches = self._stretches(lacked)
        if any(each.began <= started <= each.last + _STILL_WORKED for each in stretches):
            return
        # An outage may end in steps, as when a network is back before its name servers are.
        lacked_so_far = lacked | lacked_before if early else lacked
        self._suspects.setdefault((lacked, answered_before), {})[name] = lacked_so_far
        if any(each.began > started for each in stretches):
            # The fault was over before the attempt was.
            self._release(lacked)

    def _stretches(self, lacked: LocalFault) -> list[_Stretch]:
        """When all that was lacking was last seen to work."""
        return [
            stretch
            for (works, names_known), stretch in self._worked.items()
            if lacked in _shown(works, names_known=names_known)
        ]

    def forget(self, name: str) -> None:
        """The destination is not down any more, or not for a fault here."""
        self._probed.pop(name, None)
        for key, names in list(self._suspects.items()):
            if name in names:
                del names[name]
                if not names:
                    del self._suspects[key]
        for lots in self._to_probe:
            for lot in lots:
                if name in lot:
                    del lot[name]
                    break
            lots[:] = filter(None, lots)

    def clear(self) -> None:
        """Forget all, and probe nothing more."""
        self._suspects.clear()
        self._probed.clear()
        for lots in self._to_probe:
            lots.clear()
        self._at_once = AT_ONCE
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _release(self, works: LocalFault) -> None:
        for key in [key for key in self._suspects if key[0] in works]:
            names = self._suspects.pop(key)
            lots = self._to_probe[not key[1]]
            if lots and len(names) <= _FEW:
                lots[-1].update(names)
            else:
                lots.append(names)
        waiting = self._waiting
        needed = ceil(waiting * SPREAD / WITHIN)
        self._at_once = min(max(self._at_once, needed), MOST_AT_ONCE)
        if self._timer is None and waiting:
            self._timer = self._clock.callLater(0.0, self._probe_some)

    def _probe_some(self) -> None:
        self._timer = None
        names = self._next(min(self._at_once, self._free()))
        if names or self._waiting:
            self._timer = self._clock.callLater(SPREAD, self._probe_some)
        else:
            self._at_once = AT_ONCE
        if names:
            if len(self._probed) > _MOST_PROBED:
                self._probed.clear()
            now = self._seconds()
            self._probed.update({name: (now, lacked.value) for name, lacked in names.items()})
            self._probe(list(names))

    def _next(self, most: int) -> dict[str, LocalFault]:
        names: dict[str, LocalFault] = {}
        for lots in self._to_probe:
            while lots and len(names) < most:
                if lots[-1]:
                    name, lacked = lots[-1].popitem()
                    names[name] = lacked
                else:
                    lots.pop()
        return names


def _shown(works: LocalFault, *, names_known: bool) -> LocalFault:
    """What works for certain: names that are known may not have been looked up now."""
    return works & ~NAME_LOOKUPS if names_known else works
