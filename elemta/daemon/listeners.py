"""The sockets on which the daemon accepts connections."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import TYPE_CHECKING

from twisted.internet.base import ReactorBase
from twisted.internet.defer import Deferred

from elemta.config import Config
from elemta.daemon.components import Components, SharedResources
from elemta.daemon.worker_orders import WorkerOrders
from elemta.metric_registry import LabelledValue
from elemta.net.listeners import Listener, provide_descriptors, take_inherited_sockets
from elemta.net.registry import ConnectionRegistry
from elemta.net.shared_handshakes import SharedHandshakes
from elemta.ops.http import Ready, metrics_site
from elemta.policy_service import MAX_CONNECTIONS, PolicyServiceFactory
from elemta.spool import Spool

if TYPE_CHECKING:
    from elemta.certificates import Certificate
    from elemta.daemon.console import DaemonConsole
    from elemta.daemon.smtp_listeners import SMTPListeners
    from elemta.net.factory import ESMTPFactory

ListenAddress = tuple[IPv4Address | IPv6Address, int]
"""An address and a port."""


class Listeners:
    """Bound while the process may still do so, opened when the daemon can serve them.

    ``smtp`` receive mail; ``monitoring`` and ``console`` are for monitoring and administration.
    """

    def __init__(self, shared: SharedResources, max_connections: int) -> None:
        self.registry = ConnectionRegistry(shared.runtime, max_connections, shared.metrics.net)
        self.registry.trace = shared.trace
        self.registry.credit = shared.fleet.credit
        if shared.fleet.handshakes is not None:
            self.registry.shared_handshakes = SharedHandshakes(shared.fleet.handshakes)
        shared.metrics.net.session_memory.poll_labelled(self._session_memory)
        self.smtp: list[Listener] = []
        self.policy_services: list[Listener] = []
        self.policy_factories: dict[str, PolicyServiceFactory] = {}
        self.monitoring: list[Listener] = []
        self.console: list[Listener] = []
        self.daemon_console: DaemonConsole | None = None
        self._mail = _smtp_listeners(shared, self.registry)
        self._certificates: tuple[Certificate, ...] = ()
        shared.metrics.net.certificate_not_after.poll_labelled(self._expiry_of_certificates)
        self._reactor = shared.runtime.reactor
        self._metrics = shared.metrics
        self._exporter = shared.exporter

    def bind(self, config: Config, ready: Ready) -> None:
        """Bind every socket. Raises :class:`~elemta.errors.ListenFailed`."""
        if config.metrics.endpoint:
            site = metrics_site(self._exporter, ready, self._reactor)
            self.monitoring.append(Listener("metrics", config.metrics.endpoint, site))
        if config.console.endpoint:
            self.daemon_console = _console(self._reactor)
            self.console.append(Listener("console", config.console.endpoint, self.daemon_console.site))
        self._make(config)
        listeners = (*self.smtp, *self.policy_services, *self.monitoring, *self.console)
        take_inherited_sockets(listeners, self._reactor)
        for bound in listeners:
            bound.bind(self._reactor)

    def adopt(self, config: Config, orders: WorkerOrders) -> None:
        """Take connections from the supervisor's sockets. Raises :class:`~elemta.errors.ListenFailed`."""
        self._make(config)
        for listener in self.smtp:
            listener.adopt(orders.listeners.get(listener.name, ()), self._reactor)
        for service in self.policy_services:
            service.adopt(orders.policy_services.get(service.name, ()), self._reactor)

    def _make(self, config: Config) -> None:
        asking = MAX_CONNECTIONS if config.policy_services else 0
        provide_descriptors(config.resources.max_connections, asking)
        if self._mail is not None:
            self.smtp += self._mail.make(config)
        for service in config.policy_services:
            asked = PolicyServiceFactory(service, self._metrics.policy_service, self._reactor)
            self.policy_factories[service.name] = asked
            self.policy_services.append(Listener(service.name, service.endpoint, asked))

    def open_monitoring(self) -> None:
        """Open the sockets for monitoring: during a long recovery it sees a daemon that is not ready."""
        for listener in self.monitoring:
            listener.accept()

    def open(self) -> None:
        """Open all listeners."""
        for listener in (*self.smtp, *self.policy_services):
            listener.accept()
        self.open_console()
        self.registry.closed_with = None

    def open_console(self) -> None:
        """Open the sockets for administration."""
        for listener in self.console:
            listener.accept()

    async def close(self) -> None:
        """Accept no more connections; let open sessions finish."""
        # First of all: at a socket of systemd, clients that come now wait for the next process.
        sockets = (*self.smtp, *self.policy_services, *self.monitoring, *self.console)
        closing = [Deferred.fromCoroutine(listener.close()) for listener in sockets]
        self.registry.drain()
        if self.daemon_console is not None:
            await self.daemon_console.site.close()
        for closed in closing:
            await closed
        for factory in self.policy_factories.values():
            factory.close_connections()

    @property
    def addresses(self) -> tuple[ListenAddress, ...]:
        """Where this host takes mail itself."""
        places = [place for listener in self.smtp for place in listener.places]
        return tuple((ip_address(host), port) for host, port in places)

    def set_context(self, components: Components, spool: Spool) -> None:
        """Let every listener's next session, and every decision, begin under ``components``."""
        self._certificates = components.certificates
        resources = components.config.resources
        if resources.max_connections > self.registry.max_connections:
            provide_descriptors(resources.max_connections)
        self.registry.max_connections = resources.max_connections
        self.registry.max_connections_per_ip = resources.max_connections_per_ip
        if self._mail is not None and components.mail is not None:
            self._mail.set_context(components, components.mail, spool)
        for service in components.config.policy_services:
            if service.name in self.policy_factories:
                self.policy_factories[service.name].set_limits(components.limiter, service.charge_messages_at)

    @property
    def factories(self) -> Mapping[str, ESMTPFactory]:
        """Those of listeners that receive mail, by name."""
        return {} if self._mail is None else self._mail.factories

    def stop(self) -> None:
        """End the threads; no session is left."""
        if self._mail is not None:
            self._mail.stop()

    def _session_memory(self) -> list[LabelledValue]:
        return [((kind,), octets) for kind, octets in asdict(self.registry.memory).items()]

    def _expiry_of_certificates(self) -> list[LabelledValue]:
        return [((certificate.file,), certificate.not_after) for certificate in self._certificates]


def _smtp_listeners(shared: SharedResources, registry: ConnectionRegistry) -> SMTPListeners | None:
    if shared.mail is None:
        return None
    from elemta.daemon.smtp_listeners import SMTPListeners  # noqa: PLC0415 - only where there is mail

    return SMTPListeners(shared, shared.mail, registry)


def _console(reactor: ReactorBase) -> DaemonConsole:
    from elemta.daemon.console import DaemonConsole  # noqa: PLC0415 - with its templates it takes 4 MB

    return DaemonConsole(reactor)
