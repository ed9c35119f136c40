"""What this node remembers of refusals: a flood of refused attempts asks nothing of the store.

:class:`ObservedLog` logs what limits in observe mode would have refused.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import islice

from twisted.logger import Logger

from elemta.bounded_map import BoundedMap
from elemta.limits.store import Denial, Request

_log = Logger()

LOG_INTERVAL = 10.0
MAX_REMEMBERED = 10_000
RETURNABLE_REMEMBERED = 1.0
"""Seconds for which a refusal is repeated without asking, where what fills the limit may be given back."""
LEASE_REMEMBERED = 0.1
"""The same for open connections: another node may close one at any moment, and a flood still asks little."""
_MICROSECONDS = 1_000_000


@dataclass(frozen=True, slots=True)
class RememberedRefusal:
    """The identities that are refused, by which limit, and for how many seconds from now on."""

    limit: str
    identity: str
    seconds: float


@dataclass(frozen=True, slots=True)
class _RefusalEntry:
    request: Request
    until: float
    ask_from: float


class RememberedRefusals:
    """Refusals that hold until a known time. When it is full the oldest is forgotten: one more question.

    All times are of the store's ``seconds()``.
    """

    __slots__ = ("known",)

    def __init__(self, capacity: int = MAX_REMEMBERED) -> None:
        #: By the keys of the requests.
        self.known: BoundedMap[str, _RefusalEntry] = BoundedMap(capacity)

    def __len__(self) -> int:
        return len(self.known)

    def follow(self, other: RememberedRefusals) -> None:
        """Remember what ``other`` remembers now."""
        for key, entry in other.known.items():
            self.known.keep(key, entry)

    def remember(self, request: Request, until: float, ask_from: float | None = None) -> None:
        """This request would be refused before ``until``, and so would every larger one for the same key.

        Where charges may be given back earlier the store is asked again from ``ask_from`` on.
        """
        entry = _RefusalEntry(request, until, until if ask_from is None else ask_from)
        self.known.keep(request.key, entry)

    def remember_all(self, denials: Iterable[Denial], now: float) -> None:
        """Remember these refusals of the store for as long as they hold for sure."""
        for denial in denials:
            if denial.wait is None:
                continue
            request = denial.request
            until = now + denial.wait / _MICROSECONDS
            if denial.provisional:
                # The time when the shared store is back is unknown.
                self.remember(request, until, now)
            elif request.spec.leases is not None:
                # When another node closes a connection of theirs is unknown; this one forgets when it does.
                self.remember(request, until, min(until, now + LEASE_REMEMBERED))
            elif not request.spec.of_session:
                # Attempts that turn out to be good, and messages that come to nothing, on any node.
                self.remember(request, until, min(until, now + RETURNABLE_REMEMBERED))
            else:
                self.remember(request, until)

    def wait(self, request: Request, now: float) -> float:
        """The seconds for which this request is known to be refused; 0 when the store must be asked."""
        if not self.known:
            return 0.0
        refused = self.known.get(request.key)
        if refused is None or request.amount < refused.request.amount:
            return 0.0
        if refused.until <= now:
            del self.known[request.key]
        return refused.until - now if now < refused.ask_from else 0.0

    def latest(self, count: int, now: float) -> tuple[RememberedRefusal, ...]:
        """The identities that are refused now, the latest first; forgets what is over."""
        for key in [key for key, refused in self.known.items() if refused.until <= now]:
            del self.known[key]
        found = islice(reversed(self.known.values()), count)
        return tuple(
            RememberedRefusal(one.request.spec.name, one.request.identity, one.until - now) for one in found
        )

    def forget(self, key: str) -> None:
        """Something was given back for this key: it may pass earlier."""
        self.known.pop(key, None)

    def clear(self) -> None:
        """Forget all."""
        self.known.clear()


class ObservedLog:
    """Logs what limits in observe mode would have refused: of each limit once in :data:`LOG_INTERVAL`."""

    def __init__(self) -> None:
        self._next: dict[str, float] = {}
        self._unlogged: dict[str, int] = {}

    def note(self, denial: Denial, now: float) -> None:
        """A limit would have refused this."""
        name = denial.request.spec.name
        if now < self._next.get(name, -math.inf):
            self._unlogged[name] = self._unlogged.get(name, 0) + 1
            return
        self._next[name] = now + LOG_INTERVAL
        _log.info(
            "a limit with mode = observe would have refused",
            event="limit.observed",
            limit=name,
            identity=denial.request.identity,
            retry_after=math.inf if denial.wait is None else denial.wait / _MICROSECONDS,
            others_since=self._unlogged.pop(name, 0),
        )
