"""Taking a part of a message to where its routes lead, and reporting what became of it."""

from __future__ import annotations

from collections.abc import Coroutine, Iterable, Mapping, Sequence
from functools import partial
from typing import Any, BinaryIO

from twisted.internet.defer import Deferred, DeferredList
from twisted.python.failure import Failure

from elemta.delivery.connections import Connections
from elemta.delivery.delivery_record import Taken
from elemta.delivery.hop_memory import HopMemory
from elemta.delivery.mx import MailResolver
from elemta.delivery.outbound_limits import OutboundLimiter
from elemta.delivery.pool import HostSlots
from elemta.delivery.queue import DeliveryQueue
from elemta.delivery.routes import Route
from elemta.delivery.settings import DeliverySettings
from elemta.delivery.transport import MessageToDeliver, TransportServices, make_transports
from elemta.envelope import Recipient
from elemta.errors import SpoolError
from elemta.metrics import DeliveryMetrics
from elemta.outcome import Attempt, LocalFault, Outcome, Status
from elemta.policy.delivery_hooks import DeliveryHooks
from elemta.runtime import Runtime, WorkerPool
from elemta.runtime.fast_logger import FastLogger
from elemta.spool.records import QueuedMessage

_log = FastLogger()

_CHUNK = 64 * 1024


class Transports:
    """Gives messages to the transports of their routes."""

    def __init__(
        self,
        runtime: Runtime,
        queue: DeliveryQueue,
        pool: WorkerPool,
        settings: DeliverySettings,
        metrics: DeliveryMetrics,
        *,
        resolver: MailResolver | None = None,
        hooks: DeliveryHooks | None = None,
        limiter: OutboundLimiter | None = None,
        memory: HopMemory | None = None,
        host: HostSlots | None = None,
    ) -> None:
        self._settings = settings
        self._runtime = runtime
        self._queue = queue
        self._pool = pool
        self._metrics = metrics
        self._hooks = hooks
        self._connections = Connections(
            runtime.reactor,
            settings,
            self._read,
            metrics,
            gate=limiter,
            host=host,
            resolver=resolver,
            memory=memory,
        )
        self._transports = make_transports(
            TransportServices(runtime, pool, self._connections, settings, resolver)
        )

    def is_kept_from(self, destination: str) -> bool:
        """Whether all attempts in a destination wait for a limit on open connections."""
        return self._connections.pool.is_kept_from(destination)

    @property
    def has_stuck_thread(self) -> bool:
        """Whether a thread hangs in work for an attempt that is over."""
        return any(transport.has_stuck_thread for transport in self._transports.values())

    def deliver(
        self, message: QueuedMessage, by_route: Mapping[Route, Sequence[Recipient]], taken: Taken
    ) -> Coroutine[Any, Any, tuple[Outcome, ...]]:
        """Try each of these recipients once. What goes wrong here defers.

        ``taken`` gets the recipients that have the message, the moment that is known: it counts, whatever
        else this gives or raises.
        """
        if len(by_route) == 1:
            ((route, recipients),) = by_route.items()
            if len(recipients) <= self._settings.max_recipients:
                return self._deliver_part(message, route, recipients, taken)
        return self._deliver_parts(message, by_route, taken)

    async def _deliver_parts(
        self, message: QueuedMessage, by_route: Mapping[Route, Sequence[Recipient]], taken: Taken
    ) -> tuple[Outcome, ...]:
        most = self._settings.max_recipients
        parts = [
            (route, recipients[start : start + most])
            for route, recipients in by_route.items()
            for start in range(0, len(recipients), most)
        ]
        # All of them have to be over: what one takes after the attempt ended is not recorded.
        done: list[Outcome] = []
        broken: Failure | None = None
        for _, result in await DeferredList(
            [Deferred.fromCoroutine(self._deliver_part(message, *part, taken)) for part in parts],
            consumeErrors=True,
        ):
            if isinstance(result, Failure):
                broken = result
            else:
                done += result
        if broken is not None:
            broken.raiseException()
        return tuple(done)

    def reconfigure(self, settings: DeliverySettings, hooks: DeliveryHooks | None = None) -> None:
        """Use these for every attempt from now on."""
        self._settings = settings
        self._hooks = hooks
        self._connections.reconfigure(settings)
        for transport in self._transports.values():
            transport.reconfigure(settings)

    def abandon(self) -> None:
        """Cut every connection; what was under way on it is deferred."""
        self._connections.abandon()

    async def stop(self) -> None:
        """Close what is still open when nothing is under way any more."""
        await self._connections.stop()

    # One route

    async def _deliver_part(
        self, message: QueuedMessage, route: Route, recipients: Sequence[Recipient], taken: Taken
    ) -> tuple[Outcome, ...]:
        queue_id = message.queue_id
        attempt = Attempt(
            queue_id, route.target, taken, wall=self._runtime.wall, monotonic=self._runtime.monotonic
        )
        attempt.next_hop = route.next_hop
        try:
            outgoing = MessageToDeliver(
                message.envelope, route, attempt, partial(self._queue.open_content, queue_id)
            )
            return tuple(await self._transports[type(route)].deliver(outgoing, recipients))
        except SpoolError as error:
            text = f"the message could not be read here: {error}"
        except Exception:
            # A fault of ours must neither lose the message nor stop the others.
            _log.failure(
                "a delivery attempt failed with an internal error",
                event="delivery.internal_error",
                queue_id=queue_id,
            )
            text = "a fault inside Elemta; the log has it"
        attempt.next_hop = route.next_hop
        everyone = [recipient.address for recipient in recipients]
        return attempt.same_for_all(everyone, Status.DEFERRED, "4.3.0", text, local=LocalFault.NONE)

    async def _read(self, content: BinaryIO) -> bytes:
        if getattr(content, "in_memory", False):
            return content.read(_CHUNK)
        return await self._pool.call(content.read, _CHUNK)

    def tell(self, message: QueuedMessage, outcomes: Iterable[Outcome]) -> None:
        """Report attempts to metrics, policies and the log. Does not raise: each has its own failures."""
        tells = [self._tell_log, self._tell_metrics]
        if self._hooks is not None and self._hooks.tells:
            tells.append(self._tell_policies)
        for outcome in outcomes:
            for tell in tells:
                try:
                    tell(message, outcome)
                except Exception:
                    _log.failure(
                        "a delivery attempt could not be reported to the metrics or a policy",
                        event="delivery.not_reported",
                        queue_id=message.queue_id,
                    )

    def _tell_metrics(self, _: QueuedMessage, outcome: Outcome) -> None:
        # A label takes an enum as it is.
        self._metrics.attempts.labels(outcome.route, outcome.status).inc()
        self._metrics.duration.labels(outcome.route, outcome.status).observe(outcome.seconds)

    def _tell_policies(self, message: QueuedMessage, outcome: Outcome) -> None:
        if self._hooks is not None:
            self._hooks.attempted(outcome, message.envelope)

    def _tell_log(self, message: QueuedMessage, outcome: Outcome) -> None:
        _log.info(
            "delivery attempt",
            event="delivery.attempted",
            queue_id=outcome.queue_id,
            session_id=message.envelope.client.session_id,
            recipient=str(outcome.recipient),
            status=outcome.status.value,
            route=outcome.route,
            next_hop=outcome.next_hop,
            code=outcome.code,
            enhanced=outcome.enhanced,
            reply=outcome.text,
            command=outcome.command,
            seconds=round(outcome.seconds, 4),
        )
