"""Keeps what became of each recipient in the outbox, which outlives a crash."""

from __future__ import annotations

from twisted.internet.defer import Deferred
from twisted.plugin import IPlugin
from zope.interface import implementer

from elemta.policy import (
    Envelope,
    IDeliveryObserver,
    ILifecycle,
    IPolicyPlugin,
    NoOptions,
    Outcome,
    Recipient,
    Services,
)


@implementer(IDeliveryObserver, ILifecycle)
class KeepDeliveries:
    """The policy: a result is recorded in the queue when it is in the outbox."""

    def __init__(self, services: Services) -> None:
        self._outbox = services.outbox

    async def start(self, predecessor: object | None) -> None:
        if predecessor is None:
            await self._outbox.start()

    async def stop(self) -> None:
        """Where it was replaced by a reload, the outbox goes on."""

    def attempted(self, outcome: Outcome) -> None:
        """The queue may not know of it yet."""

    def recording(self, envelope: Envelope, recipient: Recipient, outcome: Outcome) -> Deferred[int]:
        return self._outbox.append(f"{outcome.reason} {recipient}".encode())


@implementer(IPlugin, IPolicyPlugin)
class KeepDeliveriesPlugin:
    """Keeps what became of each recipient."""

    name = "keep-deliveries"
    contract = "2.1"
    options = NoOptions

    def build(self, options: NoOptions, services: Services) -> KeepDeliveries:
        return KeepDeliveries(services)
