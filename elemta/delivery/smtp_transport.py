"""Delivery to a server that a route names, by SMTP or LMTP."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from elemta.delivery.connections import Connections
from elemta.delivery.next_hop import NextHop, hop_of
from elemta.delivery.routes import NextHopRoute
from elemta.delivery.transport import MessageToDeliver, Transport, TransportKind, TransportServices
from elemta.envelope import Recipient
from elemta.message.header_reader import header_size
from elemta.outcome import Outcome
from elemta.smtp.client_commands import ClientTransaction


class SmtpTransport(Transport):
    """Delivers over connections that are kept and counted; see :mod:`elemta.delivery.connections`."""

    def __init__(self, services: TransportServices) -> None:
        self._connections = services.connections

    async def deliver(
        self, message: MessageToDeliver[NextHopRoute], recipients: Sequence[Recipient]
    ) -> Sequence[Outcome]:
        return await send(self._connections, message, recipients, hop_of(message.route))


async def send(
    connections: Connections, message: MessageToDeliver[Any], recipients: Sequence[Recipient], hop: NextHop
) -> tuple[Outcome, ...]:
    """Send a message to a next hop."""
    envelope = message.envelope
    utf8_header = False
    if envelope.parameters.smtputf8:
        with await message.open_content() as content:
            head = await connections.read(content)
        utf8_header = not head[: header_size(head)].isascii()
    transaction = ClientTransaction(
        envelope.sender,
        tuple(recipients),
        envelope.parameters,
        envelope.size,
        utf8_header,
        message.attempt,
    )
    return await connections.send(hop, transaction, message.open_content)


TRANSPORT = TransportKind(NextHopRoute, NextHopRoute.from_config, SmtpTransport)
