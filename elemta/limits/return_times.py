"""When refused clients are asked to come back: spread, since all that one limit refused would come at once.

The exact time at which a limit passes again is the same for every client that it refused, and often for many
identities of one limit. The first of them get that time, and the others later ones.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import count

from elemta.bounded_map import BoundedMap
from elemta.config import Counts
from elemta.limits.rules import Subject
from elemta.limits.store import LimitSpec, Request

MAX_PROMISES = 10_000
"""Clients whose time is remembered, so that it stays the same."""
MAX_SECONDS = 4096
CLIENTS_A_SECOND = 10
"""Clients of one limit that get one second from one node, unless the limit itself passes more a second."""
SHORTEST_SPREAD, LONGEST_SPREAD = 60, 300
"""Seconds by which a client gets a later time at most: the window, between these two."""
_PACED = frozenset({Counts.CONNECTIONS, Counts.MESSAGES, Counts.RECIPIENTS})
_MICROSECONDS = 1_000_000
_SAME = 1e-3
"""Seconds. Times of one refusal differ by less: what is remembered of it is rounded to microseconds."""


@dataclass(frozen=True, slots=True)
class _Promise:
    """What a client got: the time, and by how many seconds it is later than the exact one."""

    at: float
    later: int


class ReturnTimes:
    """The times that refused clients got from this node. All times are of the store's ``seconds()``."""

    __slots__ = ("_full", "_overflow", "_promises", "_taken")

    def __init__(self) -> None:
        # By a hash, since a client chose how long its names are. A collision gives two clients one time.
        self._promises: BoundedMap[int, _Promise] = BoundedMap(MAX_PROMISES)
        self._taken: BoundedMap[tuple[str, int], int] = BoundedMap(MAX_SECONDS)
        self._full: dict[str, tuple[int, int]] = {}
        self._overflow = count()

    def __len__(self) -> int:
        """The clients that are remembered."""
        return len(self._promises)

    def follow(self, other: ReturnTimes) -> None:
        """Know what ``other`` told until now."""
        self._promises.update(other._promises)
        self._taken.update(other._taken)
        self._full.update(other._full)

    def wait(self, request: Request, counts: Counts, exact: float, now: float, subject: Subject) -> float:
        """The seconds for the reply to a client that is refused for ``exact`` seconds from now; never less.

        A client gets the same time until then, unless the limit passes later by now.
        """
        if not math.isfinite(exact):
            return exact
        client = _client(request.key, subject)
        told = self._promises.get(client)
        if told is None or told.at <= now:
            later = self._place(request.spec, counts, math.floor(now + exact))
        elif request.spec.leases is None and told.at >= now + exact - _SAME:
            return max(exact, told.at - now) if told.later else exact
        else:
            # Others were charged since, or the exact time is a guess: the client keeps its place.
            later = told.later
        self._promises.keep(client, _Promise(now + exact + later, later))
        return exact + later

    def _place(self, spec: LimitSpec, counts: Counts, first: int) -> int:
        """Take a place in the first second from ``first`` on that has one; by how many seconds it is later.

        Where none has, the seconds take turns.
        """
        seconds = [bound.window / _MICROSECONDS for bound in spec.bounds]
        spread = round(min(max(SHORTEST_SPREAD, *seconds, 0), LONGEST_SPREAD))
        places = CLIENTS_A_SECOND
        if counts in _PACED and spec.bounds:
            pace = min(bound.limit / bound.window * _MICROSECONDS for bound in spec.bounds)
            places = max(places, math.ceil(pace))
        # The seconds that are known to be full, to look at none of them twice.
        full = self._full.get(spec.name, (first, first))
        known = full[0] <= first <= full[1]
        second = full[1] if known else first
        while second <= first + spread and self._taken.get((spec.name, second), 0) >= places:
            second += 1
        self._full[spec.name] = (full[0] if known else first, second)
        if second > first + spread:
            second = first + next(self._overflow) % (spread + 1)
        place = (spec.name, second)
        self._taken.keep(place, self._taken.get(place, 0) + 1)
        return second - first


def _client(key: str, subject: Subject) -> int:
    session, transaction = subject.session, subject.transaction
    sender = None if transaction is None else transaction.sender
    return hash((key, session.client_ip, session.helo, session.user, sender))
