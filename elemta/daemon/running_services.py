"""The services that are open once the daemon has started, and how it delivers from each spool."""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Iterable, Sequence
from dataclasses import dataclass, replace
from ipaddress import IPv4Address, IPv6Address
from pathlib import Path
from typing import Any, BinaryIO, cast

from twisted.internet.base import ReactorBase
from twisted.internet.defer import Deferred, DeferredList
from twisted.internet.task import LoopingCall
from twisted.logger import Logger

from elemta.daemon.adoption import AdoptionEnvironment
from elemta.daemon.adoption_registry import AdoptionRegistry
from elemta.daemon.components import Components, SharedResources
from elemta.daemon.destination_pauses import DestinationPauses
from elemta.daemon.listeners import ListenAddress
from elemta.daemon.spool_ownership import PartitionOwnership
from elemta.daemon.worker_orders import (
    METRICS_SOCKET,
    WorkerOrders,
    leftover_partitions,
    worker_directory,
)
from elemta.deferred_value import MaybeDeferred
from elemta.delivery import DeliveryScheduler
from elemta.delivery.delivery_record import tell_ended
from elemta.delivery.outbound_limits import OutboundLimiter
from elemta.envelope import Envelope, Recipient
from elemta.errors import BackendError, SpoolError
from elemta.history.history import MessageHistory
from elemta.metric_registry import LabelledValue
from elemta.ops.admin import AdminSite, identify_handed_on
from elemta.ops.admin_calls import CallTable
from elemta.ops.admin_socket import SOCKET_NAME, AdminSocket
from elemta.ops.http import Ready, metrics_site
from elemta.ops.metrics import LoopLag
from elemta.outcome import Outcome, Status
from elemta.policy import QueuePage
from elemta.policy.delivery_hooks import DeliveryHooks
from elemta.policy.message_view import MessageContent
from elemta.spool import MessageWriter, Spool, Submission
from elemta.spool.content import Content
from elemta.spool.partition import partitions_in
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


class QueueForPolicies:
    """A spool as policies see it."""

    _PAGE = 1000

    def __init__(self, spool: Spool) -> None:
        self._spool = spool

    async def received_since(self, at: float, after: str | None = None) -> QueuePage:
        try:
            return QueuePage(*await self._spool.received_since(at, self._PAGE, after))
        except SpoolError as error:
            raise BackendError(f"the queue can't be read: {error}") from error


class DeliveryFactory:
    """Makes deliveries from spools under the assembly of the moment.

    ``places`` are the addresses and ports where this host takes mail itself; ``pauses`` are the destinations
    to which nothing is delivered.
    """

    def __init__(
        self,
        shared: SharedResources,
        components: Components,
        places: Sequence[tuple[IPv4Address | IPv6Address, int]],
        pauses: DestinationPauses,
    ) -> None:
        self._shared = shared
        self._pauses = pauses
        self._components = components
        self._settings = replace(components.delivery, own_addresses=tuple(places), trace=self._shared.trace)
        self._pace = OutboundLimiter(components.limiter)

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
            self._components.routes,
            self._settings,
            self._shared.metrics.delivery,
            resolver=self._shared.resolver.deliveries,
            pace=self._pace,
            hooks=self._components.chain.delivery_hooks,
            memory=self._shared.hop_memory,
            host=self._shared.fleet.slots,
        )
        delivery.commands.pause(self._pauses.names)
        spool.waits = delivery.waits
        return delivery

    def follow(
        self,
        components: Components,
        places: Sequence[tuple[IPv4Address | IPv6Address, int]],
        deliveries: Iterable[DeliveryScheduler],
    ) -> None:
        """Go on under another assembly, these deliveries too."""
        self._components = components
        self._settings = replace(components.delivery, own_addresses=tuple(places), trace=self._shared.trace)
        self._pace.limiter = components.limiter
        for delivery in deliveries:
            delivery.reconfigure(components.routes, self._settings, components.chain.delivery_hooks)


_log = Logger()

Task = tuple[float, Callable[[], object]]
"""What is done again and again, and every how many seconds."""


@dataclass(slots=True)
class RunningServices:
    """The spool and what works on it, under the assembly of the moment."""

    shared: SharedResources
    components: Components
    spool: Spool
    ownership: PartitionOwnership
    delivery_factory: DeliveryFactory
    delivery: DeliveryScheduler
    adoptions: AdoptionRegistry
    pauses: DestinationPauses
    sockets: tuple[AdminSocket, ...]
    calls: CallTable
    loops: tuple[LoopingCall, ...]
    lag: LoopLag

    @classmethod
    def open(
        cls,
        spool: Spool,
        ownership: PartitionOwnership,
        *,
        admin_calls: Callable[[AdoptionRegistry], CallTable],
        environment: Callable[[Callable[[Spool], DeliveryScheduler]], AdoptionEnvironment],
        shared: SharedResources,
        components: Components,
        places: Sequence[ListenAddress],
        tasks: Sequence[Task],
        ready: Ready,
        orders: WorkerOrders | None = None,
    ) -> RunningServices:
        """Open everything beside the spool, in order; ``places`` are where this host takes mail itself.

        ``ready`` says why mail would not be accepted now. A worker with ``orders`` has sockets of its own.
        """
        reactor = shared.runtime.reactor
        root = Path(spool.settings.directory)
        own = root if orders is None else worker_directory(str(root), orders.number)
        own.mkdir(0o700, parents=True, exist_ok=True)
        pauses = DestinationPauses(root, shared.runtime.disk, spool.in_disk_thread)
        pauses.read()
        delivering = DeliveryFactory(shared, components, places, pauses)
        delivery = delivering.from_own(spool)
        number, count = (0, 1) if orders is None else (orders.number, orders.count)
        adoptions = AdoptionRegistry(
            shared.runtime,
            spool,
            environment(delivering.from_adopted),
            leftover=leftover_partitions(partitions_in(root), number, count),
            record_in=root if number == 0 else own,
        )
        calls = admin_calls(adoptions)
        # A supervisor says which operator asks it.
        identify = None if orders is None else identify_handed_on
        site = AdminSite(calls, reactor, identify=identify)
        sockets = [AdminSocket(own / SOCKET_NAME, site, reactor)]
        if orders is not None:
            shown = metrics_site(shared.exporter, ready, reactor)
            sockets.append(AdminSocket(own / METRICS_SOCKET, shown, reactor))
        for each in sockets:
            each.open()
        components.authenticator.start()
        shared.resolver.start()
        delivery.startService()
        lag = LoopLag(shared.metrics, reactor)
        lag.start()
        loops = tuple(_every(reactor, seconds, call) for seconds, call in tasks)
        running = cls(
            shared,
            components,
            spool,
            ownership,
            delivery_factory=delivering,
            delivery=delivery,
            adoptions=adoptions,
            pauses=pauses,
            sockets=tuple(sockets),
            calls=calls,
            loops=loops,
            lag=lag,
        )
        shared.exporter.watch_spool(adoptions.queue.stats)
        kept = shared.metrics.history
        kept.messages.poll(lambda: float(sum(each.messages for each in running.histories)))
        kept.octets.poll(lambda: float(sum(each.octets for each in running.histories)))
        kept.oldest_age.poll(lambda: max((each.oldest_age for each in running.histories), default=0.0))
        shared.metrics.policy.breaker_open.poll_labelled(running._breaker_states)
        adoptions.start()
        return running

    @property
    def deliveries(self) -> Sequence[DeliveryScheduler]:
        """From the node's own spool, and from those that it adopted."""
        return (self.delivery, *self.adoptions.deliveries)

    def follow(self, components: Components, places: Sequence[ListenAddress]) -> None:
        """Go on under another assembly."""
        previous, self.components = self.components, components
        for history in self.histories:
            history.keep = components.config.spool.history
        components.authenticator.start()
        self.delivery_factory.follow(components, places, (self.delivery, *self.adoptions.deliveries))
        # A session that began under the old terms may still ask the old checkers.
        retire = Deferred.fromCoroutine(previous.authenticator.stop())
        retire.addErrback(
            lambda f: _log.failure(
                "credentials checkers of the old configuration did not stop", f, event="auth.stop_failed"
            )
        )

    def stop_deliveries(self) -> Deferred[Any]:
        """Stop all of them at the same time; fires when nothing is under way any more."""
        return DeferredList([self.delivery.stopService(), Deferred.fromCoroutine(self.adoptions.stop())])

    async def close(self) -> None:
        """Close everything; delivery has been stopped, and no session is left."""
        for each in self.sockets:
            await each.close()
        for loop in self.loops:
            loop.stop()
        self.lag.stop()
        await self.shared.resolver.stop()
        await self.spool.close()
        await self.ownership.leave()

    @property
    def histories(self) -> Sequence[MessageHistory]:
        """Those of the own spool and of adopted ones."""
        spools = (self.spool, *self.adoptions.spools)
        return [spool.history for spool in spools if spool.history is not None]

    def _breaker_states(self) -> list[LabelledValue]:
        breakers = self.components.chain.open_breakers()
        return [((name,), int(is_open)) for name, is_open in breakers.items()]


def _every(reactor: ReactorBase, seconds: float, call: Callable[[], object]) -> LoopingCall:
    def once() -> object:
        # Twisted 22.4's LoopingCall would let a coroutine lie.
        result = call()
        return Deferred.fromCoroutine(result) if isinstance(result, Coroutine) else result

    loop = LoopingCall(once)
    loop.clock = reactor
    loop.start(seconds, now=False).addErrback(
        lambda failure: _log.failure(
            "a periodic task ended with an internal error", failure, event="daemon.task_failed"
        )
    )
    return loop
