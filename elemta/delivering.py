"""How the daemon delivers, whichever spool it is from."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from ipaddress import IPv4Address, IPv6Address

from twisted.internet.base import ReactorBase

from elemta.assembly import Assembly, Lasting
from elemta.delivery import Delivery
from elemta.delivery.pace import Pace
from elemta.delivery.settings import DeliveryObserver
from elemta.outcome import Outcome
from elemta.spool import Spool


class Delivering:
    """Makes deliveries from spools under the assembly of the moment.

    ``places`` are the addresses and ports where this host takes mail itself.
    """

    def __init__(
        self,
        reactor: ReactorBase,
        lasting: Lasting,
        assembly: Assembly,
        places: Sequence[tuple[IPv4Address | IPv6Address, int]],
    ) -> None:
        self._reactor = reactor
        self._lasting = lasting
        self._assembly = assembly
        self._settings = replace(assembly.delivery, own_addresses=tuple(places))
        self._pace = Pace(assembly.limiter)

    def from_own(self, spool: Spool) -> Delivery:
        """For this node's own spool; it is not started."""
        return self._from(spool, self._lasting.metrics.delivery)

    def from_adopted(self, spool: Spool) -> Delivery:
        """For another node's; it is not started."""
        return self._from(spool, _Adopted(self._lasting.metrics.delivery))

    def follow(
        self,
        assembly: Assembly,
        places: Sequence[tuple[IPv4Address | IPv6Address, int]],
        deliveries: Iterable[Delivery],
    ) -> None:
        """Go on under another assembly, these deliveries too."""
        self._assembly = assembly
        self._settings = replace(assembly.delivery, own_addresses=tuple(places))
        self._pace.limiter = assembly.limiter
        for delivery in deliveries:
            delivery.reconfigure(assembly.routes, self._settings, assembly.chain.delivery_hooks)

    def _from(self, spool: Spool, observer: DeliveryObserver) -> Delivery:
        return Delivery(
            self._reactor,
            spool,
            self._assembly.routes,
            self._settings,
            observer,
            resolver=self._lasting.resolver.deliveries,
            pace=self._pace,
            hooks=self._assembly.chain.delivery_hooks,
            clocks=self._lasting.clocks,
        )


class _Adopted:
    """Passes all on but the destinations: metrics show those of the own spool."""

    def __init__(self, observer: DeliveryObserver) -> None:
        self._observer = observer

    def connection(self, outcome: str) -> None:
        self._observer.connection(outcome)

    def connection_closed(self) -> None:
        self._observer.connection_closed()

    def tls(self, outcome: str) -> None:
        self._observer.tls(outcome)

    def attempted(self, outcome: Outcome) -> None:
        self._observer.attempted(outcome)

    def lanes(self, known: int, blocked: int) -> None:
        """They would take the place of the own spool's."""
