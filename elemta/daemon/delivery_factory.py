"""How the daemon delivers from each spool: its own, and those that it adopted."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from ipaddress import IPv4Address, IPv6Address
from typing import BinaryIO, cast

from twisted.internet.defer import Deferred

from elemta.daemon.components import Components, SharedResources
from elemta.daemon.destination_pauses import DestinationPauses
from elemta.daemon.mail_parts import MailParts, SharedMailParts
from elemta.deferred_value import MaybeDeferred
from elemta.delivery import DeliveryScheduler
from elemta.delivery.delivery_record import tell_ended
from elemta.delivery.outbound_limits import OutboundLimiter
from elemta.envelope import Envelope, Recipient
from elemta.outcome import Outcome, Status
from elemta.policy.delivery_hooks import DeliveryHooks
from elemta.policy.message_view import MessageContent
from elemta.spool import MessageWriter, Spool, Submission
from elemta.spool.content import Content
from elemta.spool.records import QueuedMessage

_DELETED = "removed by an operator"


def sign_by(
    hooks: DeliveryHooks, envelope: Envelope, writer: MessageWriter, submission: Submission
) -> MaybeDeferred[bytes]:
    """Let the policies of a chain sign a message that is about to be stored."""
    block, size = submission.header_block, writer.size
    content = MessageContent(
        len(block) + size,
        block + writer.head,
        lambda: cast(BinaryIO, Content(block, writer.open(), size)),
        utf8=submission.parameters.smtputf8,
    )
    return hooks.sign(envelope, content)


@dataclass(frozen=True, slots=True)
class _Observed:
    """What :func:`tell_ended` reads of a queue."""

    observer: DeliveryFactory


class DeliveryFactory:
    """Makes deliveries from spools under the components of the moment.

    ``places`` are the addresses and ports where this host takes mail itself; ``pauses`` are the destinations
    to which nothing is delivered.
    """

    def __init__(
        self,
        shared: SharedResources,
        mail: SharedMailParts,
        components: Components,
        parts: MailParts,
        *,
        places: Sequence[tuple[IPv4Address | IPv6Address, int]],
        pauses: DestinationPauses,
    ) -> None:
        self._shared = shared
        self._mail = mail
        self._pauses = pauses
        self._components, self._parts = components, parts
        self._settings = replace(parts.delivery, own_addresses=tuple(places), trace=self._shared.trace)
        self._outbound_limiter = OutboundLimiter(components.limiter)

    def from_own(self, spool: Spool) -> DeliveryScheduler:
        """For this node's own spool; it is not started."""
        delivery = self._from(spool)
        self._shared.metrics.delivery.destinations.poll_labelled(delivery.waits.states)
        return delivery

    def from_adopted(self, spool: Spool) -> DeliveryScheduler:
        """For another node's; it is not started. The metrics do not show its destinations."""
        return self._from(spool)

    # As the signer of each spool

    @property
    def signs(self) -> bool:
        """Whether any policy signs what leaves."""
        return self._components.chain.delivery_hooks.signs

    def sign(self, envelope: Envelope, writer: MessageWriter, submission: Submission) -> MaybeDeferred[bytes]:
        """Let the policies sign a message, which is whole but for their fields."""
        return sign_by(self._components.chain.delivery_hooks, envelope, writer, submission)

    # As what hears of the end of deliveries

    @property
    def tells_end(self) -> bool:
        """Whether any policy observes the end of deliveries."""
        return self._components.chain.delivery_hooks.tells_end

    def ended(self, envelope: Envelope, recipient: Recipient, outcome: Outcome) -> None:
        """Tell the policies what came of a recipient."""
        self._components.chain.delivery_hooks.ended(envelope, recipient, outcome)

    @property
    def keeps(self) -> bool:
        """Whether any policy keeps what came of recipients before that is recorded."""
        return self._components.chain.delivery_hooks.keeps

    def recording(
        self, envelope: Envelope, recipient: Recipient, outcome: Outcome
    ) -> Sequence[Deferred[None]]:
        """Let the policies keep what came of a recipient."""
        return self._components.chain.delivery_hooks.recording(envelope, recipient, outcome)

    def deleted(self, message: QueuedMessage) -> None:
        """Tell the policies that an operator removed a message."""
        at = self._shared.runtime.wall()
        tell_ended(
            _Observed(self),
            message,
            [
                Outcome(message.queue_id, each.address, Status.FAILED, _DELETED, "", "", at)
                for each in message.pending
            ],
            "deleted",
        )

    def _from(self, spool: Spool) -> DeliveryScheduler:
        spool.signer = self
        spool.observer = self
        delivery = DeliveryScheduler(
            self._shared.runtime,
            spool,
            self._parts.routes,
            self._settings,
            self._shared.metrics.delivery,
            resolver=self._mail.resolver.deliveries,
            limiter=self._outbound_limiter,
            hooks=self._components.chain.delivery_hooks,
            memory=self._mail.hop_memory,
            host=self._shared.fleet.slots,
        )
        delivery.commands.pause(self._pauses.names)
        spool.waits = delivery.waits
        return delivery

    def follow(
        self,
        components: Components,
        parts: MailParts,
        places: Sequence[tuple[IPv4Address | IPv6Address, int]],
        deliveries: Iterable[DeliveryScheduler],
    ) -> None:
        """Go on under other components, these deliveries too."""
        self._components, self._parts = components, parts
        self._settings = replace(parts.delivery, own_addresses=tuple(places), trace=self._shared.trace)
        self._outbound_limiter.limiter = components.limiter
        for delivery in deliveries:
            delivery.reconfigure(parts.routes, self._settings, components.chain.delivery_hooks)
