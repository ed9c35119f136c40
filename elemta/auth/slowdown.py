"""Counts failed logins per client and user, and delays the reply to each further one."""

from __future__ import annotations

from dataclasses import dataclass
from ipaddress import IPv6Address, ip_address, ip_network

from twisted.internet.interfaces import IReactorTime

from elemta.bounded_map import BoundedMap
from elemta.ip import unmapped

FIRST_SECONDS = 1.0
MOST_SECONDS = 10.0
FORGET_SECONDS = 15 * 60.0
CAPACITY = 10_000


@dataclass(slots=True)
class _Failures:
    count: int
    last: float


class Slowdown:
    """The answer to the n-th failure in a row waits 1, 2, 4, 8, then 10 seconds.

    A success, or a quarter of an hour without a failure, starts over. At most ``capacity`` pairs of
    client and user are remembered; the ones that failed longest ago go first.
    """

    def __init__(self, clock: IReactorTime, capacity: int = CAPACITY) -> None:
        self._clock = clock
        self._failures: BoundedMap[tuple[str, str], _Failures] = BoundedMap(capacity)

    def __len__(self) -> int:
        return len(self._failures)

    def failed(self, client: str, user: str) -> float:
        """Count a failure; the seconds that its answer has to wait."""
        now = self._clock.seconds()
        key = (network_of(client), user)
        failures = self._failures.get(key)
        if failures is None or now - failures.last > FORGET_SECONDS:
            failures = _Failures(0, now)
        failures.count += 1
        failures.last = now
        self._failures.keep(key, failures)
        self._drop_old(now)
        return float(min(FIRST_SECONDS * 2 ** min(failures.count - 1, 16), MOST_SECONDS))

    def succeeded(self, client: str, user: str) -> None:
        """Forget the failures of ``user`` from ``client``."""
        self._failures.pop((network_of(client), user), None)

    def _drop_old(self, now: float) -> None:
        while self._failures:
            key, oldest = next(iter(self._failures.items()))
            if now - oldest.last <= FORGET_SECONDS:
                return
            del self._failures[key]


def network_of(client: str) -> str:
    """``client`` itself, but the /64 of an IPv6 address: one host has all of it to itself."""
    try:
        address = unmapped(ip_address(client))
    except ValueError:
        return client
    if not isinstance(address, IPv6Address):
        return str(address)
    return str(ip_network((int(address), 64), strict=False))
