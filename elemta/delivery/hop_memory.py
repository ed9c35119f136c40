"""What next hops have shown of themselves, for a while: what they refuse, how many recipients they take."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from elemta.address import Address
from elemta.bounded_map import BoundedMap
from elemta.delivery.routes import MxRoute, NextHopRoute, Route
from elemta.domains import canonical_domain
from elemta.smtp.client_commands import Features

Place = tuple[str, int]
"""A host (or the path of a socket) and its port."""

DEFAULT_SECONDS = 3600.0

_MOST_REMEMBERED = 4096
_SMTPUTF8 = "SMTPUTF8"
# In the place of a domain, whose exchangers have places of their own.
_ANY_PORT = -1


class HopMemory:
    """Facts about places, each for so many seconds from the last time that it was seen.

    A place that changes, such as a server that gets a new version, is believed again by then.
    """

    def __init__(self, clock: Callable[[], float], seconds: float = DEFAULT_SECONDS) -> None:
        self.seconds = seconds
        self._clock = clock
        self._refused: BoundedMap[Place, tuple[float, frozenset[str]]] = BoundedMap(_MOST_REMEMBERED)
        self._limits: BoundedMap[Place, tuple[float, int]] = BoundedMap(_MOST_REMEMBERED)
        self._by_ipv4: BoundedMap[Place, tuple[float, bool]] = BoundedMap(_MOST_REMEMBERED)
        self._smtputf8: BoundedMap[Place, tuple[float, bool]] = BoundedMap(_MOST_REMEMBERED)
        self._all: tuple[BoundedMap[Place, Any], ...] = (
            self._refused,
            self._limits,
            self._by_ipv4,
            self._smtputf8,
        )

    def clear(self) -> None:
        """Forget everything."""
        for memory in self._all:
            memory.clear()

    def refused(self, place: Place) -> frozenset[str]:
        """The keywords that the place offers and refuses."""
        found: frozenset[str] | None = self._known(self._refused, place)
        return found or frozenset()

    def refuses(self, place: Place, keyword: str) -> None:
        """The place refused what it offers."""
        self._keep(self._refused, place, self.refused(place) | {keyword})

    def most_recipients(self, place: Place) -> int:
        """How many recipients the place takes with one envelope; 0: any number."""
        return self._known(self._limits, place) or 0

    def takes_recipients(self, place: Place, number: int) -> None:
        """The place took so many recipients with one envelope, and no more."""
        self._keep(self._limits, place, number)

    def prefers_ipv4(self, place: Place) -> bool:
        """Whether the place took by IPv4 what it refused by IPv6."""
        return bool(self._known(self._by_ipv4, place))

    def took_by_ipv4(self, place: Place) -> None:
        """The place took by IPv4 what it refused by IPv6."""
        self._keep(self._by_ipv4, place, True)

    def lacks_smtputf8(self, place: Place) -> bool:
        """Whether it is known that the place does not take SMTPUTF8."""
        return self._known(self._smtputf8, place) is False

    def offers(self, place: Place, features: Features) -> None:
        """The place said to EHLO what it offers; without what is not believed."""
        self._keep(self._smtputf8, place, _SMTPUTF8 in features)

    def domain_offers(self, domain: str, features: Features) -> None:
        """A mail exchanger of the domain said what it offers. One with SMTPUTF8 outweighs those without."""
        place = (domain, _ANY_PORT)
        taken = _SMTPUTF8 in features
        if taken or not self._known(self._smtputf8, place):
            self._keep(self._smtputf8, place, taken)

    def route_lacks_smtputf8(self, route: Route, recipient: Address) -> bool:
        """Whether it is known that an address beyond ASCII can't go to this recipient by its route."""
        if not isinstance(route, NextHopRoute | MxRoute):
            return False
        if _SMTPUTF8 in route.terms.ignored:
            return True
        if isinstance(route, MxRoute):
            return self.lacks_smtputf8((canonical_domain(recipient.domain), _ANY_PORT))
        return self.lacks_smtputf8((route.path, 0) if route.path else (route.host, route.port))

    def _known(self, memory: BoundedMap[Place, tuple[float, Any]], place: Place) -> Any:
        until, value = memory.get(place, (0.0, None))
        return value if until > self._clock() else None

    def _keep(self, memory: BoundedMap[Place, tuple[float, Any]], place: Place, value: Any) -> None:
        memory.keep(place, (self._clock() + self.seconds, value))
