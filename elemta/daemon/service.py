"""The composition root: configuration in, running services out. The only place that knows every part."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from twisted.internet.defer import Deferred
from twisted.logger import Logger

from elemta.daemon.adoption import SpoolOpener
from elemta.daemon.adoption_registry import AdoptionRegistry
from elemta.daemon.components import Components, SharedResources
from elemta.daemon.daemon_service import EX_TEMPFAIL, DaemonService, DaemonState, exit_with
from elemta.daemon.running_services import QueueForPolicies, RunningServices
from elemta.daemon.spool_ownership import PartitionOwnership
from elemta.daemon.worker_orders import WorkerOrders
from elemta.deferred_value import Steps, run, value_of
from elemta.errors import SpoolError
from elemta.limits.refusals import RememberedRefusal
from elemta.net.registry import LOOK_SECONDS
from elemta.ops.admin_calls import CallTable
from elemta.ops.log import LogObserver
from elemta.ops.systemd import Notifier
from elemta.ops.traffic import SAMPLE_SECONDS
from elemta.policy.lifecycle import PolicyLives
from elemta.spool import Spool

_log = Logger()


class Elemta(DaemonService):
    """The daemon: binds before privileges go, starts its parts in order, is ready only when all of them are.

    ``admin_calls`` makes the calls of the admin API on it. ``orders`` and ``notifier`` are those of a worker:
    it has what the supervisor does not, and says to that what a daemon says to systemd. The rest is as in
    :class:`~elemta.daemon.daemon_service.DaemonService`.
    """

    def __init__(
        self,
        *,
        shared: SharedResources,
        components: Components,
        admin_calls: Callable[[Elemta, AdoptionRegistry], CallTable],
        config_path: str | None,
        environ: Mapping[str, str],
        log_observer: LogObserver | None = None,
        in_background: bool = False,
        orders: WorkerOrders | None = None,
        notifier: Notifier | None = None,
    ) -> None:
        DaemonService.__init__(
            self,
            shared=shared,
            components=components,
            notifier=notifier or Notifier(environ, shared.runtime),
            config_path=config_path,
            environ=environ,
            log_observer=log_observer,
            in_background=in_background,
        )
        self.parts: RunningServices | None = None
        self.queued = 0
        self._admin_calls = admin_calls
        self._orders = orders
        self._lives = PolicyLives(shared.runtime.reactor, shared.policy_backends)
        self._policies_started = False

    def _bind(self) -> None:
        if self._orders is None:
            self.listeners.bind(self.config, self.why_not_ready)
        else:
            self.listeners.adopt(self.config, self._orders)

    def startService(self) -> None:
        DaemonService.startService(self)
        if self._orders is None:
            self._reload_on_hang_up()
        self._begin()

    # Start

    async def _start(self) -> None:
        self.listeners.open_monitoring()
        self.fleet.start(self)
        spools = SpoolOpener(self.shared, self.config)
        number = 0 if self._orders is None else self._orders.number
        spool, ownership = await spools.open_own(lambda: self.state is not DaemonState.STOPPING, number)
        ownership.watch(self._lost_spool)
        try:
            # Before anything asks them: deliveries do as soon as the parts are open.
            self.shared.resolver.start()
            self.shared.policy_backends.attach(spool.directory / "outbox", QueueForPolicies(spool))
            await value_of(run(self._in_turn(self._start_policies())))
            # Unless a stop came meanwhile.
            if self.state is not DaemonState.STOPPING:
                self.parts = self._open_parts(spool, ownership, spools)
        finally:
            if self.parts is None:
                # Its threads would keep the process from ending.
                await spool.close()
                await ownership.leave()
        if self.parts is None:
            return
        self.listeners.set_context(self.components, spool)
        if self.listeners.daemon_console is not None:
            await self.listeners.daemon_console.open(
                self.parts.calls, self.config, lambda: self.components.limiter, self.shared.runtime
            )
        self.listeners.open()
        self.state = DaemonState.SERVING
        self._notifier.ready("serving")
        if self._orders is None:
            # Of workers their supervisor says it, for all.
            self._say_ready()

    def _open_parts(
        self, spool: Spool, ownership: PartitionOwnership, spools: SpoolOpener
    ) -> RunningServices:
        return RunningServices.open(
            spool,
            ownership,
            admin_calls=lambda adoptions: self._admin_calls(self, adoptions),
            environment=lambda deliver: spools.adoption_environment(spool, deliver),
            shared=self.shared,
            components=self.components,
            places=self.listeners.addresses,
            tasks=(
                (LOOK_SECONDS, self.listeners.registry.check_deadlines),
                (5.0, self._update_status),
                (SAMPLE_SECONDS, self.shared.traffic.sample),
            ),
            ready=self.why_not_ready,
            orders=self._orders,
        )

    def _lost_spool(self, reason: str) -> None:
        """Another host works on the spool: every further word of ours in it would do harm."""
        _log.critical("another node owns this spool", event="spool.ownership_lost", reason=reason)
        exit_with(EX_TEMPFAIL)

    # While it runs

    def why_not_ready(self) -> tuple[str, ...]:
        """Why mail would not be accepted now; empty when it would."""
        running = self.parts
        if self.state is not DaemonState.SERVING or running is None:
            return (self.state.value,)
        reasons = []
        if not running.spool.healthy:
            reasons.append("the spool's disk has failed")
        if not running.spool.has_space():
            reasons.append("the spool's disk is below minimum_free")
        return tuple(reasons)

    async def _update_status(self) -> None:
        if self.parts is None:
            return
        try:
            stats = await self.parts.adoptions.queue.stats()
        except SpoolError as error:
            self._notifier.status(f"spool: {error}")
        else:
            self.queued = stats.total
            away = ", limits counted alone: Valkey is away" if self.fleet.status().mode == "local" else ""
            self._notifier.status(f"queue {stats.total}, sessions {self.sessions}{away}")

    @property
    def sessions(self) -> int:
        return len(self.listeners.registry.connections)

    def refused(self) -> Sequence[RememberedRefusal]:
        return self.components.limiter.refused()

    def forget(self, limit: str, identity: str) -> None:
        self.components.limiter.forget(limit, identity)

    def _start_policies(self) -> Steps[None]:
        """Start the policies of the configuration that the daemon begins with."""
        self._policies_started = True
        yield self._lives.start(self.components.chain)

    def _put_into_force(self, components: Components) -> Steps[tuple[str, ...] | None]:
        if self._policies_started:
            yield self._lives.start(components.chain)
        if self.state is DaemonState.STOPPING:
            return None
        components.inherit(self.components)
        self.components = components
        if self.parts is not None:
            self.parts.follow(components, self.listeners.addresses)
            self.listeners.set_context(components, self.parts.spool)
        if self._policies_started:
            self._lives.retire_others(components.chain)
        return self.needs_restart

    # End

    def drain(self) -> None:
        """Take no new session and end the others as soon as their message is done; delivery goes on."""
        if self._begin_drain():
            self.listeners.registry.drain()

    def undrain(self) -> None:
        """End a drain: take new sessions again."""
        if self._end_drain():
            self.listeners.registry.undrain()

    async def _stop_parts(self, grace: float) -> None:
        if self._starting is not None:
            await self._starting
        await self.listeners.close()
        # Sessions and deliveries have the same grace, not one after the other.
        delivered = self.parts.stop_deliveries() if self.parts is not None else None
        await self._wait_until_empty(grace)
        running, self.parts = self.parts, None
        if running is not None and delivered is not None:
            await delivered
        await self._lives.stop()
        await self.shared.resolver.stop()
        if running is not None:
            await running.close()
        self.listeners.stop()

    async def _wait_until_empty(self, grace: float) -> None:
        registry = self.listeners.registry
        empty: Deferred[None] = Deferred()
        registry.call_when_empty(lambda: None if empty.called else empty.callback(None))
        late = self.reactor.callLater(grace, registry.abort_all)
        try:
            await empty
        finally:
            if late.active():
                late.cancel()
