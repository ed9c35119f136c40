"""The lookups under way, bounded, and shared between users and between zones."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IDelayedCall

from elemta.dns.answers import DnsQuestion, Result
from elemta.dns.names import zone_of

ZONE_SHARE = 4
"""One zone has a quarter of all lookups under way at most."""


@dataclass(slots=True, eq=False)
class UnderWay:
    """A question to servers for ``user``, and the callers that wait for the answer, each with a deadline.

    ``until`` is the reactor's time until which the last of them can use an answer. ``whole`` once one of them
    waits as long as the resolver allows: then trouble says something of the name.
    """

    user: str
    question: DnsQuestion
    zone: str
    until: float = float("-inf")
    whole: bool = False
    work: Deferred[Any] | None = None
    waiting: dict[Deferred[Result], IDelayedCall] = field(default_factory=dict)


class LookupTable:
    """At most ``most`` lookups. Where there is no place for one more, the oldest of those with most ends.

    What a healthy server answers is never the oldest: that is what waits for servers that don't answer. So
    neither a dead zone nor a user that asks for many of them takes the places of others.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._under_way: dict[tuple[str, DnsQuestion], UnderWay] = {}
        self._of_user: dict[str, dict[UnderWay, None]] = {}
        self._of_zone: dict[str, dict[UnderWay, None]] = {}

    def __len__(self) -> int:
        return len(self._under_way)

    def all(self) -> tuple[UnderWay, ...]:
        return tuple(self._under_way.values())

    def find(self, user: str, question: DnsQuestion) -> UnderWay | None:
        return self._under_way.get((user, question))

    def add(self, user: str, question: DnsQuestion) -> tuple[UnderWay, UnderWay | None]:
        """A new lookup, and the one that ends for it."""
        zone = zone_of(question.name)
        ended = self._in_the_way(zone)
        if ended is not None:
            self.remove(ended)
        under_way = UnderWay(user, question, zone)
        self._under_way[user, question] = under_way
        self._of_user.setdefault(user, {})[under_way] = None
        self._of_zone.setdefault(zone, {})[under_way] = None
        return under_way, ended

    def remove(self, under_way: UnderWay) -> None:
        """It ended; once more changes nothing."""
        key = (under_way.user, under_way.question)
        if self._under_way.get(key) is not under_way:
            return
        del self._under_way[key]
        for table, name in ((self._of_user, under_way.user), (self._of_zone, under_way.zone)):
            del table[name][under_way]
            if not table[name]:
                del table[name]

    def _in_the_way(self, zone: str) -> UnderWay | None:
        of_zone = self._of_zone.get(zone, {})
        if len(of_zone) >= max(1, self._most // ZONE_SHARE):
            return next(iter(of_zone))
        if len(self._under_way) < self._most:
            return None
        busiest = max(self._of_user, key=lambda user: len(self._of_user[user]))
        return next(iter(self._of_user[busiest]))
