"""Where users logged in before: what exempts them from the guesses of others.

It is kept in the store of the limits: the nodes of a cluster share it, it is bounded, and it ends by itself.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Sequence
from contextlib import suppress

from elemta.bounded_map import BoundedMap
from elemta.deferred_value import MaybeDeferred, Steps, run
from elemta.errors import StoreUnavailable
from elemta.ip import IPAddress
from elemta.limits.identity import ip_identity, joined, name_identity, network_identity
from elemta.limits.store import ILimitStore, LimitSpec, Request, Usage
from elemta.limits.window import Bound

PERIOD_SECONDS = 15 * 86400
"""A login is noted once in such a period, and counts until the end of the next: for 15 to 30 days."""

UNKNOWN_SECONDS = 1.0
"""So long a user counts as unknown in a network without another question, so that a flood asks little."""

KNOWN_SECONDS = 1.0
"""So long a user counts as known at an address without another question: one login asks twice."""

MAX_REMEMBERED = 10_000
_MICROSECONDS = 1_000_000

# No limit of a configuration can have this name.
_SPEC = LimitSpec("_logins", (Bound.of(1, 2 * PERIOD_SECONDS * _MICROSECONDS),), binding=False)


class LoginHistory(enum.Enum):
    """What is known of a user where an attempt to log in comes from."""

    UNKNOWN = "never logged in from this network"
    KNOWN_NETWORK = "logged in from this network"
    KNOWN_ADDRESS = "logged in from this address"


class KnownLogins:
    """Good logins of the last weeks. ``now`` gives seconds since the epoch, by which periods are numbered."""

    def __init__(self, store: ILimitStore, now: Callable[[], float]) -> None:
        self._store = store
        self._now = now
        self._unknown: BoundedMap[tuple[str, str], float] = BoundedMap(MAX_REMEMBERED)
        self._known: BoundedMap[tuple[str, str], tuple[float, LoginHistory]] = BoundedMap(MAX_REMEMBERED)

    def standing(self, username: str, ip: IPAddress) -> MaybeDeferred[LoginHistory]:
        """What is known of this user at this address. Unknown where the store can't be asked."""
        return run(self._find_standing(username, ip))

    def _find_standing(self, username: str, ip: IPAddress) -> Steps[LoginHistory]:
        user, network = name_identity(username), network_identity(ip)
        if self._store.seconds() < self._unknown.get((user, network), 0.0):
            return LoginHistory.UNKNOWN
        until, standing = self._known.get((user, ip_identity(ip)), (0.0, LoginHistory.UNKNOWN))
        if self._store.seconds() < until:
            return standing
        period = self._period()
        at_address = [_request(user, ip_identity(ip), each) for each in (period, period - 1)]
        in_network = [_request(user, network, each) for each in (period, period - 1)]
        try:
            usages: Sequence[Usage] = yield self._store.peek(list(dict.fromkeys(at_address + in_network)))
        except StoreUnavailable:
            return LoginHistory.UNKNOWN
        standing = self._judge(usages, at_address, (user, network))
        if standing is not LoginHistory.UNKNOWN:
            self._known.keep((user, ip_identity(ip)), (self._store.seconds() + KNOWN_SECONDS, standing))
        return standing

    def remember(self, username: str, ip: IPAddress) -> None:
        """This user logged in from this address."""
        run(self._remember(username, ip))

    def _remember(self, username: str, ip: IPAddress) -> Steps[None]:
        user, network = name_identity(username), network_identity(ip)
        self._unknown.pop((user, network), None)
        self._known.pop((user, ip_identity(ip)), None)
        period = self._period()
        requests = dict.fromkeys(_request(user, place, period) for place in (ip_identity(ip), network))
        # Where it can't be noted, others' guesses count for this user until the next login.
        with suppress(StoreUnavailable):
            yield self._store.acquire(list(requests))

    def _period(self) -> int:
        return int(self._now() // PERIOD_SECONDS)

    def _judge(
        self, usages: Sequence[Usage], at_address: Sequence[Request], user_in_network: tuple[str, str]
    ) -> LoginHistory:
        known = {usage.request for usage in usages if any(usage.used)}
        if not known:
            self._unknown.keep(user_in_network, self._store.seconds() + UNKNOWN_SECONDS)
            return LoginHistory.UNKNOWN
        return LoginHistory.KNOWN_NETWORK if known.isdisjoint(at_address) else LoginHistory.KNOWN_ADDRESS


def _request(user: str, place: str, period: int) -> Request:
    return Request(_SPEC, joined((user, place, str(period))))
