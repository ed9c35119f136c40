"""The composition root: configuration in, running services out. The only place that knows every part."""

from __future__ import annotations

import atexit
import enum
import os
import signal
import sys
from collections.abc import Callable, Mapping, Sequence
from types import FrameType

from twisted.application.service import IServiceCollection, Service
from twisted.internet.base import ReactorBase
from twisted.internet.defer import Deferred, DeferredLock
from twisted.logger import ILogObserver, Logger
from twisted.python.components import Componentized
from twisted.python.failure import Failure

from elemta.config import Config
from elemta.daemon.adoption import SpoolOpener
from elemta.daemon.adoption_registry import AdoptionRegistry
from elemta.daemon.components import Components, SharedResources, needs_restart
from elemta.daemon.console import open_console
from elemta.daemon.listeners import Listeners
from elemta.daemon.membership import Membership
from elemta.daemon.reload import ConfigReloader, ReloadReport, refused, say_cautions
from elemta.daemon.running_services import QueueForPolicies, RunningServices
from elemta.daemon.spool_ownership import PartitionOwnership
from elemta.daemon.worker_orders import WorkerOrders
from elemta.deferred_value import MaybeDeferred, Steps, run, value_of
from elemta.errors import ElemtaError, Fault, ListenFailed, SpoolError
from elemta.limits.refusals import RememberedRefusal
from elemta.net.registry import LOOK_SECONDS
from elemta.ops.admin_calls import CallTable
from elemta.ops.log import LogObserver
from elemta.ops.systemd import Notifier
from elemta.ops.traffic import SAMPLE_SECONDS
from elemta.policy.lifecycle import PolicyLives
from elemta.spool import Spool

_log = Logger()

# sysexits.h: EX_TEMPFAIL; another try may succeed, so a supervisor should restart us.
EX_TEMPFAIL = 75
# What comes after the grace: the last commits, the files.
_CLOSING_SECONDS = 60.0


class DaemonState(enum.Enum):
    """Where the daemon is in its life."""

    STARTING = "starting"
    SERVING = "serving"
    DRAINING = "draining"
    STOPPING = "stopping"


class Elemta(Service):
    """The daemon: binds before privileges go, starts its parts in order, is ready only when all of them are.

    ``admin_calls`` makes the calls of the admin API on it. ``config_path`` and ``environ`` are read again
    at a reload. ``in_background``: twistd forks, and its first process waits to hear how the start went.
    ``orders`` and ``notifier`` are those of a worker: it has what the supervisor does not, and says to that
    what a daemon says to systemd.
    """

    name = "elemta"

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
        self.shared = shared
        self.components = components
        self.state = DaemonState.STARTING
        self._started = shared.runtime.monotonic()
        self.listeners = Listeners(shared, components.config.resources.max_connections)
        self.parts: RunningServices | None = None
        self.queued = 0
        self._admin_calls = admin_calls
        self._log_observer = log_observer
        self._in_background = in_background
        self._started_with = components
        self._orders = orders
        self._notifier = notifier or Notifier(environ, shared.runtime)
        self._reloading = ConfigReloader(
            config_path,
            environ,
            shared,
            self._put_into_force,
            notifier=self._notifier,
            log_observer=log_observer,
        )
        self._starting: Deferred[None] | None = None
        self._lives = PolicyLives(shared.runtime.reactor, shared.policy_backends)
        # One reload, or the start, puts a configuration into force at a time.
        self._changing = DeferredLock()
        self._policies_started = False

    @property
    def config(self) -> Config:
        return self.components.config

    @property
    def fleet(self) -> Membership:
        return self.shared.fleet

    @property
    def started_at(self) -> float:
        """When it was started, in seconds since the epoch: by the time of day as that is set now."""
        runtime = self.shared.runtime
        return runtime.wall() - (runtime.monotonic() - self._started)

    @property
    def reactor(self) -> ReactorBase:
        return self.shared.runtime.reactor

    @property
    def state_name(self) -> str:
        return self.state.value

    @property
    def needs_restart(self) -> tuple[str, ...]:
        """The keys of settings that reloads have changed and only a restart puts into force."""
        return needs_restart(self._started_with, self.components)

    # What twistd calls

    def setServiceParent(self, parent: IServiceCollection) -> None:
        """Become part of twistd's application, and give it our log observer."""
        if self._log_observer is not None and isinstance(parent, Componentized):
            Componentized.setComponent(parent, ILogObserver, self._log_observer)
        Service.setServiceParent(self, parent)

    def privilegedStartService(self) -> None:
        """Bind every socket while that is still allowed; exits with the reason when one can't be bound."""
        Service.privilegedStartService(self)
        try:
            if self._orders is None:
                self.listeners.bind(self.config, self.why_not_ready)
            else:
                self.listeners.adopt(self.config, self._orders)
        except ListenFailed as error:
            _log.critical("a socket could not be opened", event="listener.failed", error=str(error))
            if self._in_background:
                # twistd passes any other error on to the process that waits, and lets that wait for ever
                # after a SystemExit.
                raise
            raise SystemExit(f"elemta: {error}") from None

    def startService(self) -> None:
        Service.startService(self)
        if self._orders is None:
            signal.signal(signal.SIGHUP, self._hang_up)
        self._starting = Deferred.fromCoroutine(self._start())
        self._starting.addErrback(self._start_failed)

    def stopService(self) -> Deferred[None]:
        Service.stopService(self)
        return Deferred.fromCoroutine(self._stop())

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
            await value_of(run(self._start_policies()))
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
        if self.config.console.endpoint and self._orders is None:
            await open_console(
                self.listeners.console_site,
                self.parts.calls,
                self.config,
                lambda: self.components.limiter,
                self.shared.runtime,
            )
        self.listeners.open()
        self.state = DaemonState.SERVING
        self._notifier.ready("serving")
        if self._orders is None:
            # Of workers their supervisor says it, for all.
            say_ready(self.components, self.listeners, self.shared.runtime.wall())

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

    def _start_failed(self, failure: Failure) -> None:
        self._notifier.failed(failure.getErrorMessage())
        _log.critical(
            "the daemon could not start",
            event="daemon.start_failed",
            error=failure.getErrorMessage(),
            log_failure=None if failure.check(ElemtaError) else failure,
        )
        # twistd exits with 0 after a plain stop; its own cleaning (pid file) must still happen first.
        atexit.register(exit_with, EX_TEMPFAIL)
        if self.state is not DaemonState.STOPPING:
            self.reactor.callWhenRunning(self.reactor.stop)

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

    @property
    def draining(self) -> bool:
        """Whether it takes no new session, and serves those that are open."""
        return self.state in (DaemonState.DRAINING, DaemonState.STOPPING)

    def refused(self) -> Sequence[RememberedRefusal]:
        return self.components.limiter.refused()

    def forget(self, limit: str, identity: str) -> None:
        self.components.limiter.forget(limit, identity)

    def _hang_up(self, signum: int, frame: FrameType | None) -> None:  # noqa: ARG002 - what signal gives
        self.reactor.callFromThread(self._reload_on_signal)

    def _reload_on_signal(self) -> None:
        Deferred.fromCoroutine(value_of(self.reload())).addErrback(
            lambda failure: _log.failure(
                "a reload failed with an internal error", failure, event="config.reload_failed"
            )
        )

    def reload(self, text: str | None = None) -> MaybeDeferred[ReloadReport]:
        """Read the configuration again and put it into force as a whole, or leave everything as it is.

        ``text`` is the file's where another process has read it. What needs a new socket or spool stays as it
        was and is named in the result. It takes time only where a policy takes time to start, or another
        reload is under way.
        """
        return run(self._reload(text))

    def _reload(self, text: str | None) -> Steps[ReloadReport]:
        yield self._changing.acquire()
        try:
            if self.state is DaemonState.STOPPING:
                return refused((Fault(self.config.source, "", "the daemon is stopping"),))
            return (yield from self._reloading.reload(text))
        finally:
            self._changing.release()

    async def take_limits(self) -> None:
        await value_of(run(self._take_limits()))

    def _take_limits(self) -> Steps[None]:
        yield self._changing.acquire()
        try:
            if self.state is not DaemonState.STOPPING:
                yield from self._reloading.rebuild(self.components.own_config)
        finally:
            self._changing.release()

    def _start_policies(self) -> Steps[None]:
        """Start the policies of the configuration that the daemon begins with."""
        yield self._changing.acquire()
        try:
            self._policies_started = True
            yield self._lives.start(self.components.chain)
        finally:
            self._changing.release()

    def _put_into_force(self, components: Components) -> Steps[tuple[str, ...] | None]:
        if self._policies_started:
            yield self._lives.start(components.chain)
        if self.state is DaemonState.STOPPING:
            return None
        components.authenticator.inherit(self.components.authenticator)
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
        if self.state is DaemonState.SERVING:
            self.state = DaemonState.DRAINING
            registry = self.listeners.registry
            _log.info("draining", event="daemon.draining", sessions=self.sessions)
            registry.drain()

    def undrain(self) -> None:
        """End a drain: take new sessions again."""
        if self.state is DaemonState.DRAINING:
            self.state = DaemonState.SERVING
            _log.info("serving again", event="daemon.undrained", sessions=self.sessions)
            self.listeners.registry.undrain()

    async def _stop(self) -> None:
        grace = self.config.server.shutdown_grace
        self.state = DaemonState.STOPPING
        self._notifier.stopping("draining")
        # The unit's own timeout may be less than the grace that was set.
        self._notifier.extend(grace + _CLOSING_SECONDS)
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
        self.listeners.mailboxes.stop()
        await self.fleet.stop()
        await self.components.authenticator.stop()
        self._notifier.close()
        _log.info("stopped", event="daemon.stopped")

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


def say_ready(components: Components, listeners: Listeners, now: float) -> None:
    """Say in the log that mail is taken, where, and what is remarkable about the configuration."""
    config = components.config
    say_cautions(components.cautions(now))
    for note in config.without_effect():
        _log.warn("a setting has no effect", event="config.effect_missing", key=note.key, note=note.problem)
    _log.info(
        "ready",
        event="daemon.ready",
        config=config.source,
        listeners=[f"{listener.name} {listener.address}" for listener in listeners.smtp],
        policy_services=[f"{each.name} {each.address}" for each in listeners.policy_services],
        metrics=[listener.address for listener in listeners.monitoring],
        console=[listener.address for listener in listeners.console],
        spool=config.spool.directory,
        policies=list(config.policies.chain),
    )


def exit_with(status: int) -> None:
    """End the process at once."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)
