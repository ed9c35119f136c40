"""The services that are open once the daemon has started."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

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
from elemta.errors import BackendError, SpoolError
from elemta.history.history import MessageHistory
from elemta.metric_registry import LabelledValue
from elemta.ops.admin import AdminSite, identify_handed_on
from elemta.ops.admin_calls import CallTable
from elemta.ops.admin_socket import SOCKET_NAME, AdminSocket
from elemta.ops.http import Ready, metrics_site
from elemta.ops.metrics import LoopLag
from elemta.policy import QueuePage
from elemta.runtime.periodic_task import start_periodic_task
from elemta.spool import Spool
from elemta.spool.partition import partitions_in

if TYPE_CHECKING:
    from elemta.daemon.delivery_factory import DeliveryFactory
    from elemta.delivery import DeliveryScheduler


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


_log = Logger()

Task = tuple[float, Callable[[], object]]
"""What is done again and again, and every how many seconds."""


@dataclass(slots=True)
class RunningServices:
    """The spool and what works on it, under the components of the moment.

    A daemon without mail has no ``delivery``.
    """

    shared: SharedResources
    components: Components
    spool: Spool
    ownership: PartitionOwnership
    delivery_factory: DeliveryFactory | None
    delivery: DeliveryScheduler | None
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
        environment: Callable[[Callable[[Spool], DeliveryScheduler] | None], AdoptionEnvironment],
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
        delivering = _delivery_factory(shared, components, places, pauses)
        delivery = None if delivering is None else delivering.from_own(spool)
        number, count = (0, 1) if orders is None else (orders.number, orders.count)
        adoptions = AdoptionRegistry(
            shared.runtime,
            spool,
            environment(None if delivering is None else delivering.from_adopted),
            leftover=leftover_partitions(partitions_in(root), number, count),
            record_in=root if number == 0 else own,
        )
        calls = admin_calls(adoptions)
        sockets = _sockets(own, calls, shared, None if orders is None else ready)
        for each in sockets:
            each.open()
        if components.mail is not None:
            components.mail.authenticator.start()
        if delivery is not None:
            delivery.startService()
        lag = LoopLag(shared.metrics, reactor)
        lag.start()
        loops = tuple(start_periodic_task(reactor, seconds, call) for seconds, call in tasks)
        running = cls(
            shared,
            components,
            spool,
            ownership,
            delivery_factory=delivering,
            delivery=delivery,
            adoptions=adoptions,
            pauses=pauses,
            sockets=sockets,
            calls=calls,
            loops=loops,
            lag=lag,
        )
        running._report()
        adoptions.start()
        return running

    def _report(self) -> None:
        """Let metrics ask for what is read at a scrape."""
        self.shared.exporter.watch_spool(self.adoptions.queue.stats)
        kept = self.shared.metrics.history
        kept.messages.poll(lambda: float(sum(each.messages for each in self.histories)))
        kept.octets.poll(lambda: float(sum(each.octets for each in self.histories)))
        kept.oldest_age.poll(lambda: max((each.oldest_age for each in self.histories), default=0.0))
        self.shared.metrics.policy.breaker_open.poll_labelled(self._breaker_states)

    @property
    def deliveries(self) -> Sequence[DeliveryScheduler]:
        """From the node's own spool, and from those that it adopted."""
        own = () if self.delivery is None else (self.delivery,)
        return (*own, *self.adoptions.deliveries)

    def follow(self, components: Components, places: Sequence[ListenAddress]) -> None:
        """Go on under other components."""
        previous, self.components = self.components, components
        for history in self.histories:
            history.keep = components.config.spool.history
        if self.delivery_factory is None or components.mail is None:
            return
        components.mail.authenticator.start()
        self.delivery_factory.follow(components, components.mail, places, self.deliveries)
        if previous.mail is None:
            return
        # A session that began under the old components may still ask the old checkers.
        retire = Deferred.fromCoroutine(previous.mail.authenticator.stop())
        retire.addErrback(
            lambda f: _log.failure(
                "credentials checkers of the old configuration did not stop", f, event="auth.stop_failed"
            )
        )

    def stop_deliveries(self) -> Deferred[Any]:
        """Stop all of them at the same time; fires when nothing is under way any more."""
        stops = [Deferred.fromCoroutine(self.adoptions.stop())]
        if self.delivery is not None:
            stops.append(self.delivery.stopService())
        return DeferredList(stops)

    async def close(self) -> None:
        """Close everything; delivery has been stopped, and no session is left."""
        for each in self.sockets:
            await each.close()
        for loop in self.loops:
            loop.stop()
        self.lag.stop()
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


def _sockets(
    directory: Path, calls: CallTable, shared: SharedResources, ready: Ready | None
) -> tuple[AdminSocket, ...]:
    """The sockets of a directory. With ``ready`` it is a worker's, and its supervisor reads metrics there."""
    reactor = shared.runtime.reactor
    # A supervisor says which operator asks it.
    identify = None if ready is None else identify_handed_on
    admin = AdminSocket(directory / SOCKET_NAME, AdminSite(calls, reactor, identify=identify), reactor)
    if ready is None:
        return (admin,)
    shown = metrics_site(shared.exporter, ready, reactor)
    return admin, AdminSocket(directory / METRICS_SOCKET, shown, reactor)


def _delivery_factory(
    shared: SharedResources,
    components: Components,
    places: Sequence[ListenAddress],
    pauses: DestinationPauses,
) -> DeliveryFactory | None:
    """What delivers; None where there is no mail."""
    if shared.mail is None or components.mail is None:
        return None
    from elemta.daemon.delivery_factory import DeliveryFactory  # noqa: PLC0415 - only where there is mail

    return DeliveryFactory(shared, shared.mail, components, components.mail, places=places, pauses=pauses)
