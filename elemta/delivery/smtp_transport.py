"""Delivery to a server that a route names, by SMTP or LMTP."""

from __future__ import annotations

from collections.abc import Coroutine, Sequence
from typing import Any

from elemta.delivery.connections import Connections
from elemta.delivery.next_hop import NextHop, hop_of
from elemta.delivery.routes import NextHopRoute
from elemta.delivery.transport import MessageToDeliver, Transport, TransportKind, TransportServices
from elemta.envelope import Recipient
from elemta.message.header_reader import header_size
from elemta.outcome import Outcome
from elemta.smtp.client_commands import ClientTransaction

# Policies may choose a new route for each message.
_MOST_HOPS = 1000


class SmtpTransport(Transport):
    """Delivers over connections that are kept and counted; see :mod:`elemta.delivery.connections`."""

    def __init__(self, services: TransportServices) -> None:
        self._connections = services.connections
        # By the identity of the route, which is kept beside its hop.
        self._hops: dict[int, tuple[NextHopRoute, NextHop]] = {}

    def deliver(
        self, message: MessageToDeliver[NextHopRoute], recipients: Sequence[Recipient]
    ) -> Coroutine[Any, Any, Sequence[Outcome]]:
        return send(self._connections, message, recipients, self._hop_of(message.route))

    def _hop_of(self, route: NextHopRoute) -> NextHop:
        known = self._hops.get(id(route))
        if known is not None:
            return known[1]
        if len(self._hops) >= _MOST_HOPS:
            self._hops.clear()
        hop = hop_of(route)
        self._hops[id(route)] = (route, hop)
        return hop


def send(
    connections: Connections, message: MessageToDeliver[Any], recipients: Sequence[Recipient], hop: NextHop
) -> Coroutine[Any, Any, tuple[Outcome, ...]]:
    """Send a message to a next hop."""
    if message.envelope.parameters.smtputf8:
        return _send_utf8(connections, message, recipients, hop)
    return connections.send(hop, _transaction(message, recipients), message.open_content)


async def _send_utf8(
    connections: Connections, message: MessageToDeliver[Any], recipients: Sequence[Recipient], hop: NextHop
) -> tuple[Outcome, ...]:
    with await message.open_content() as content:
        head = await connections.read(content)
    transaction = _transaction(message, recipients, utf8_header=not head[: header_size(head)].isascii())
    return await connections.send(hop, transaction, message.open_content)


def _transaction(
    message: MessageToDeliver[Any], recipients: Sequence[Recipient], *, utf8_header: bool = False
) -> ClientTransaction:
    envelope = message.envelope
    return ClientTransaction(
        envelope.sender, tuple(recipients), envelope.parameters, envelope.size, utf8_header, message.attempt
    )


TRANSPORT = TransportKind(NextHopRoute, NextHopRoute.from_config, SmtpTransport)
