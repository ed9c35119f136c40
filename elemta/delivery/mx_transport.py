"""Delivery by SMTP to the mail exchangers of the recipients' domain."""

from __future__ import annotations

from collections.abc import Sequence

from elemta.delivery.local_faults import WORKS_BY_MX
from elemta.delivery.mx import Exchangers, find_exchangers
from elemta.delivery.next_hop import Candidate, NextHop
from elemta.delivery.routes import MxRoute
from elemta.delivery.settings import DeliverySettings
from elemta.delivery.smtp_transport import send
from elemta.delivery.transport import MessageToDeliver, Transport, TransportKind, TransportServices
from elemta.domains import canonical_domain
from elemta.envelope import Recipient
from elemta.outcome import Outcome, ReachedStage, Status


class MxTransport(Transport):
    """Delivers where DNS says; all recipients of a message that comes here are of one domain."""

    def __init__(self, services: TransportServices) -> None:
        self._settings = services.settings
        self._resolver = services.resolver
        self._connections = services.connections
        self._shuffle = services.runtime.randomness.shuffle

    def reconfigure(self, settings: DeliverySettings) -> None:
        self._settings = settings

    async def deliver(
        self, message: MessageToDeliver[MxRoute], recipients: Sequence[Recipient]
    ) -> Sequence[Outcome]:
        attempt, route, settings = message.attempt, message.route, self._settings
        if self._resolver is None:
            text = "nothing here asks DNS for mail exchangers"
            everyone = [recipient.address for recipient in recipients]
            return attempt.same_for_all(
                everyone, Status.DEFERRED, "4.3.5", text, reached=ReachedStage.NOWHERE
            )
        found = await find_exchangers(
            self._resolver,
            canonical_domain(recipients[0].domain),
            own_names=settings.own_names,
            own_addresses=settings.own_addresses,
            port=settings.mx_port,
            refuse_networks=route.refuse_networks,
            shuffle=self._shuffle,
            attempt=attempt,
            recipients=recipients,
        )
        if isinstance(found, Exchangers):
            return await send(self._connections, message, recipients, _hop(found, route, settings))
        return found


def _hop(found: Exchangers, route: MxRoute, settings: DeliverySettings) -> NextHop:
    return NextHop(
        found.domain,
        tuple(Candidate(host.host, settings.mx_port, host.addresses) for host in found.hosts),
        tls=route.tls,
        # Routes with other numbers are counted apart.
        route=f"{route.target}{route.max_connections}/{hash(route.refuse_networks)}",
        max_connections=settings.max_by_mx,
        destination=found.domain,
        per_destination=route.max_connections,
        works=WORKS_BY_MX,
        terms=route.terms,
    )


TRANSPORT = TransportKind(MxRoute, MxRoute.from_config, MxTransport)
