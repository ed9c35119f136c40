"""The composition root: configuration in, running services out. The only place that knows every part."""

from __future__ import annotations

import atexit
import enum
import os
import signal
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from ipaddress import ip_address
from pathlib import Path
from types import FrameType

from twisted.application.service import IServiceCollection, Service
from twisted.internet.base import ReactorBase
from twisted.internet.defer import Deferred
from twisted.internet.task import LoopingCall
from twisted.logger import ILogObserver, Logger
from twisted.python.components import Componentized
from twisted.python.failure import Failure

from elemta.assembly import Assembly, Lasting, assemble, needs_restart
from elemta.config import Config, load
from elemta.delivery import Delivery, DeliverySettings
from elemta.delivery.pace import Pace
from elemta.delivery.routes import RouteTable
from elemta.errors import ConfigError, ElemtaError, Fault, ListenFailed, PolicyUnavailable, SpoolError
from elemta.net.descriptors import provide_descriptors
from elemta.net.factory import ESMTPFactory, House
from elemta.net.listeners import Listener
from elemta.net.terms import Terms
from elemta.net.tls import ServerCertificate
from elemta.operations import DaemonOperations
from elemta.ops.admin import AdminSite
from elemta.ops.admin_socket import AdminSocket
from elemta.ops.http import metrics_site
from elemta.ops.log import LogObserver
from elemta.ops.metrics import LoopLag
from elemta.ops.notify import Notifier
from elemta.spool import Spool, SpoolSettings

_log = Logger()

# sysexits.h: EX_TEMPFAIL; another try may succeed, so a supervisor should restart us.
EX_TEMPFAIL = 75


class State(enum.Enum):
    """Where the daemon is in its life."""

    STARTING = "starting"
    SERVING = "serving"
    DRAINING = "draining"
    STOPPING = "stopping"


@dataclass(frozen=True, slots=True)
class Running:
    """The parts that are open once the daemon has started."""

    spool: Spool
    delivery: Delivery
    pace: Pace
    admin: AdminSocket
    loops: tuple[LoopingCall, ...]
    lag: LoopLag


@dataclass(frozen=True, slots=True)
class Reloaded:
    """What a reload came to: faults, and then nothing was changed; else what still needs a restart."""

    faults: tuple[Fault, ...] = ()
    needs_restart: tuple[str, ...] = ()


class Elemta(Service):
    """The daemon: binds before privileges go, starts its parts in order, is ready only when all of them are.

    ``config_path`` and ``environ`` are read again at a reload. ``in_background``: twistd forks, and its first
    process waits to hear how the start went.
    """

    name = "elemta"

    def __init__(
        self,
        reactor: ReactorBase,
        *,
        lasting: Lasting,
        assembly: Assembly,
        config_path: str | None,
        environ: Mapping[str, str],
        log_observer: LogObserver | None = None,
        in_background: bool = False,
    ) -> None:
        self.reactor = reactor
        self.lasting = lasting
        self.assembly = assembly
        self.state = State.STARTING
        self.started_at = time.time()
        self.house = House(reactor, assembly.config.resources.max_connections)
        self.listeners: list[Listener] = []
        self.parts: Running | None = None
        self.factories: dict[str, ESMTPFactory] = {}
        self._extra_listeners: list[Listener] = []
        self._config_path = config_path
        self._environ = environ
        self._log_observer = log_observer
        self._in_background = in_background
        self._started_with = assembly
        self._certificate = ServerCertificate(assembly.context) if assembly.context else None
        self._notifier = Notifier(environ, reactor)
        self._starting: Deferred[None] | None = None

    @property
    def config(self) -> Config:
        return self.assembly.config

    @property
    def state_name(self) -> str:
        return self.state.value

    @property
    def needs_restart(self) -> tuple[str, ...]:
        """The keys of settings that reloads have changed and only a restart puts into force."""
        return needs_restart(self._started_with, self.assembly)

    # What twistd calls

    def setServiceParent(self, parent: IServiceCollection) -> None:
        """Become part of twistd's application, and give it our log observer."""
        if self._log_observer is not None and isinstance(parent, Componentized):
            Componentized.setComponent(parent, ILogObserver, self._log_observer)
        Service.setServiceParent(self, parent)

    def privilegedStartService(self) -> None:
        """Bind every socket while that is still allowed; exits with the reason when one can't be bound."""
        Service.privilegedStartService(self)
        provide_descriptors(self.config.resources.max_connections)
        try:
            self._bind()
        except ListenFailed as error:
            _log.critical("a socket could not be opened", event="listener.failed", error=str(error))
            if self._in_background:
                # twistd passes any other error on to the process that waits, and lets that wait for ever
                # after a SystemExit.
                raise
            raise SystemExit(f"elemta: {error}") from None

    def startService(self) -> None:
        Service.startService(self)
        signal.signal(signal.SIGHUP, self._hang_up)
        self._starting = Deferred.fromCoroutine(self._start())
        self._starting.addErrback(self._start_failed)

    def stopService(self) -> Deferred[None]:
        Service.stopService(self)
        return Deferred.fromCoroutine(self._stop())

    # Start

    def _bind(self) -> None:
        site = metrics_site(self.lasting.metrics, self.why_not_ready, self.reactor)
        metrics = Listener("metrics", self.config.metrics.endpoint, site)
        if metrics.endpoint:
            self._extra_listeners.append(metrics)
        for listener in self.config.listeners:
            factory = ESMTPFactory(self.house, listener, self.lasting.metrics.net)
            self.factories[listener.name] = factory
            self.listeners.append(Listener(listener.name, listener.endpoint, factory))
        for opened in (*self.listeners, *self._extra_listeners):
            opened.bind(self.reactor)

    async def _start(self) -> None:
        for listener in self._extra_listeners:
            # Whoever watches us should see during a long recovery that we live and are not ready.
            listener.accept()
        config = self.config
        spool = await Spool.open(
            SpoolSettings(directory=Path(config.spool.directory), minimum_free=config.spool.minimum_free),
            reactor=self.reactor,
            observer=self.lasting.metrics.spool,
        )
        try:
            self.parts = self._open_parts(spool)
        finally:
            if self.parts is None:
                # Its threads would keep the process from ending.
                await spool.close()
        if self.parts is None:
            return
        self.lasting.metrics.watch_spool(spool.stats)
        self.lasting.metrics.chain.watch_breakers(self._open_breakers)
        self._apply_terms()
        for listener in self.listeners:
            listener.accept()
        self.house.closed_with = None
        self.state = State.SERVING
        self._notifier.ready("serving")
        self._say_ready()

    def _open_parts(self, spool: Spool) -> Running | None:
        """What there is beside the spool; None when the daemon was told to stop meanwhile."""
        if self.state is State.STOPPING:
            return None
        admin = AdminSocket(
            Path(spool.settings.directory) / "admin.sock",
            AdminSite(DaemonOperations(self, spool), self.reactor),
            self.reactor,
        )
        admin.open()
        self.assembly.authenticator.start()
        self.lasting.resolver.start()
        pace = Pace(self.assembly.limiter)
        delivery = Delivery(
            self.reactor,
            spool,
            self.assembly.routes,
            self._delivery_settings(),
            self.lasting.metrics.delivery,
            resolver=self.lasting.resolver,
            pace=pace,
            hooks=self.assembly.chain.delivery_hooks,
        )
        delivery.startService()
        lag = LoopLag(self.lasting.metrics, self.reactor)
        lag.start()
        loops = (self._every(1.0, self.house.check_deadlines), self._every(5.0, self._tell_status))
        return Running(spool, delivery, pace, admin, loops, lag)

    def _open_breakers(self) -> Mapping[str, bool]:
        return self.assembly.chain.open_breakers()

    def _delivery_settings(self) -> DeliverySettings:
        """What delivery is told, with where this host takes mail itself."""
        places = [listener.place for listener in self.listeners]
        own = tuple((ip_address(place[0]), place[1]) for place in places if place is not None)
        return replace(self.assembly.delivery, own_addresses=own)

    def _apply_terms(self) -> None:
        """Let every listener's next session begin under the assembly of the moment."""
        assembly, running = self.assembly, self.parts
        if running is None:
            return
        routes = RouteTable(assembly.routes)
        resources = assembly.config.resources
        if resources.max_connections > self.house.max_connections:
            provide_descriptors(resources.max_connections)
        self.house.max_connections = resources.max_connections
        self.house.max_connections_per_ip = resources.max_connections_per_ip
        configured = {listener.name: listener for listener in self.config.listeners}
        for factory in self.factories.values():
            listener = configured.get(factory.listener.name, factory.listener)
            if listener.endpoint == factory.listener.endpoint:
                factory.listener = listener
            # Else it needs a restart, and stays till then what it was at this address; its clients are
            # judged by the new policies all the same.
            factory.terms = Terms(
                listener=factory.listener,
                server=assembly.config.server,
                session=assembly.session_settings(factory.listener),
                chain=assembly.chain,
                limiter=assembly.limiter,
                authenticator=assembly.authenticator,
                certificate=self._certificate,
                spool=running.spool,
                routes=None if assembly.chain.delivery_hooks.asks else routes,
                observer=self.lasting.metrics.net,
                now=time.time,
            )

    def _every(self, seconds: float, call: Callable[[], object]) -> LoopingCall:
        loop = LoopingCall(call)
        loop.clock = self.reactor
        loop.start(seconds, now=False).addErrback(
            lambda failure: _log.failure("a periodic task ended", failure, event="daemon.task_failed")
        )
        return loop

    def _say_cautions(self) -> None:
        for caution in self.config.cautions():
            _log.warn("a setting is dangerous", event="config.caution", key=caution.key, note=caution.problem)

    def _say_ready(self) -> None:
        self._say_cautions()
        for note in self.config.without_effect():
            _log.warn(
                "a setting has no effect yet", event="config.no_effect", key=note.key, note=note.problem
            )
        _log.info(
            "ready",
            event="daemon.ready",
            config=self.config.source,
            listeners=[f"{listener.name} {listener.address}" for listener in self.listeners],
            metrics=[listener.address for listener in self._extra_listeners],
            spool=self.config.spool.directory,
            policies=list(self.config.policies.chain),
        )

    def _start_failed(self, failure: Failure) -> None:
        _log.critical(
            "the daemon could not start",
            event="daemon.start_failed",
            error=failure.getErrorMessage(),
            log_failure=None if failure.check(ElemtaError) else failure,
        )
        # twistd exits with 0 after a plain stop; its own cleaning (pid file) must still happen first.
        atexit.register(_exit_with, EX_TEMPFAIL)
        if self.state is not State.STOPPING:
            self.reactor.callWhenRunning(self.reactor.stop)

    def why_not_ready(self) -> tuple[str, ...]:
        """Why mail would not be accepted now; empty when it would."""
        running = self.parts
        if self.state is not State.SERVING or running is None:
            return (self.state.value,)
        reasons = []
        if not running.spool.healthy:
            reasons.append("the spool's disk has failed")
        if not running.spool.has_room():
            reasons.append("the spool's disk is below minimum_free")
        return tuple(reasons)

    async def _tell_status(self) -> None:
        if self.parts is None:
            return
        try:
            stats = await self.parts.spool.stats()
        except SpoolError as error:
            self._notifier.status(f"spool: {error}")
        else:
            self._notifier.status(f"queue {stats.total}, sessions {len(self.house.connections)}")

    # Reload

    def _hang_up(self, signum: int, frame: FrameType | None) -> None:  # noqa: ARG002 - what signal gives
        self.reactor.callFromThread(self._reload_on_signal)

    def _reload_on_signal(self) -> None:
        self.reload()

    def reload(self) -> Reloaded:
        """Read the configuration again and put it into force as a whole, or leave everything as it is.

        What needs a new socket or spool stays as it was and is named in the result.
        """
        if self.state is State.STOPPING:
            return self._not_reloaded((Fault(self.config.source, "", "the daemon is stopping"),))
        self._notifier.reloading()
        try:
            assembly = assemble(load(self._config_path, self._environ), self.lasting)
        except ConfigError as error:
            return self._not_reloaded(error.faults)
        except PolicyUnavailable as error:
            return self._not_reloaded((Fault(str(self._config_path), "policies.chain", str(error)),))
        finally:
            self._notifier.ready()
        return self._put_into_force(assembly)

    def _not_reloaded(self, faults: Sequence[Fault]) -> Reloaded:
        for fault in faults:
            _log.error("reload refused; nothing was changed", event="config.reload_refused", fault=str(fault))
        return Reloaded(faults=tuple(faults))

    def _put_into_force(self, assembly: Assembly) -> Reloaded:
        previous, running = self.assembly, self.parts
        assembly.authenticator.inherit(previous.authenticator)
        self.assembly = assembly
        self._renew_log()
        if assembly.context is not None:
            self._certificate = self._certificate or ServerCertificate(assembly.context)
            self._certificate.replace(assembly.context)
        if running is not None:
            assembly.authenticator.start()
            running.pace.limiter = assembly.limiter
            running.delivery.reconfigure(
                assembly.routes, self._delivery_settings(), assembly.chain.delivery_hooks
            )
            self._apply_terms()
            # A session that began under the old terms may still ask the old checkers.
            retire = Deferred.fromCoroutine(previous.authenticator.stop())
            retire.addErrback(
                lambda f: _log.failure("old checkers did not stop", f, event="auth.stop_failed")
            )
        self._say_cautions()
        waiting = self.needs_restart
        _log.info("reloaded", event="config.reloaded", config=self.config.source, needs_restart=waiting)
        return Reloaded(needs_restart=waiting)

    def _renew_log(self) -> None:
        """Level and format as they are set now, in a new file where the old one was rotated away."""
        if self._log_observer is None:
            return
        logging = self.config.logging
        self._log_observer.configure(logging.format, logging.level)
        try:
            self._log_observer.reopen()
        except OSError as error:
            _log.error("the log file can't be opened again", event="log.not_reopened", error=str(error))

    # End

    def drain(self) -> None:
        """Take no new session and end the others as soon as their message is done; delivery goes on."""
        if self.state is State.SERVING:
            self.state = State.DRAINING
            _log.info("draining", event="daemon.draining", sessions=len(self.house.connections))
            self.house.drain()

    async def _stop(self) -> None:
        grace = self.config.server.shutdown_grace
        self.state = State.STOPPING
        self._notifier.stopping("draining")
        if self._starting is not None:
            await self._starting
        self.house.drain()
        for listener in (*self.listeners, *self._extra_listeners):
            await listener.close()
        # Sessions and deliveries have the same grace, not one after the other.
        delivered = self.parts.delivery.stopService() if self.parts is not None else None
        await self._wait_until_empty(grace)
        running, self.parts = self.parts, None
        if running is not None and delivered is not None:
            await delivered
            await self._close_parts(running)
        await self.assembly.authenticator.stop()
        self._notifier.close()
        _log.info("stopped", event="daemon.stopped")

    async def _wait_until_empty(self, grace: float) -> None:
        empty: Deferred[None] = Deferred()
        self.house.call_when_empty(lambda: None if empty.called else empty.callback(None))
        late = self.reactor.callLater(grace, self.house.abort_all)
        try:
            await empty
        finally:
            if late.active():
                late.cancel()

    async def _close_parts(self, running: Running) -> None:
        await running.admin.close()
        for loop in running.loops:
            loop.stop()
        running.lag.stop()
        await self.lasting.resolver.stop()
        await running.spool.close()


def _exit_with(status: int) -> None:
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)
