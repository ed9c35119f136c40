"""``ESMTPFactory``: which connections get a session, and what the others get."""

from __future__ import annotations

from twisted.internet.interfaces import IAddress
from twisted.internet.protocol import Factory, Protocol

from elemta.config import ListenerConfig, ListenerTLS
from elemta.directwrite import write_at_once
from elemta.ip import IPAddress
from elemta.metrics import NetMetrics
from elemta.net.connection_log import log_refused_connection
from elemta.net.context import ListenerContext
from elemta.net.protocol import ESMTPProtocol
from elemta.net.proxy import ProxyPreamble
from elemta.net.registry import ConnectionRegistry
from elemta.net.socket_address import address_of
from elemta.smtp import replies
from elemta.smtp.reply import Reply
from elemta.smtp.session_info import SessionInfo

# A reason for which each refused connection has no record of its own: there are very many of them.
_OVERLOAD = "overload"


class RefusalProtocol(Protocol):
    """Says why there is no session, and closes."""

    def __init__(self, reply: Reply | None) -> None:
        self._reply = reply

    def connectionMade(self) -> None:
        assert self.transport is not None  # noqa: S101 - Twisted sets it before this call
        if self._reply is not None:
            write_at_once(self.transport, self._reply.encode())
        self.transport.loseConnection()


class ESMTPFactory(Factory):
    """Builds the sessions of one listener under ``context``, which the start sets and a reload replaces."""

    noisy = False

    def __init__(self, registry: ConnectionRegistry, listener: ListenerConfig, metrics: NetMetrics) -> None:
        self._registry = registry
        self._metrics = metrics
        self.listener = listener
        self.context: ListenerContext | None = None

    def buildProtocol(self, addr: IAddress | None) -> Protocol | None:
        ip, port = address_of(addr)
        networks = self.listener.proxy_protocol_from
        if networks and any(ip in network for network in networks):
            if not self._registry.has_capacity():
                return self._refuse(replies.TOO_MANY_CONNECTIONS, "max_connections", ip)
            return ProxyPreamble(self.session_for, self._registry, ip, port)
        return self.session_for(ip, port, False)

    @property
    def open_sessions(self) -> int:
        """How many sessions of this listener are open; counted when it is asked for."""
        name = self.listener.name
        return sum(connection.listener == name for connection in self._registry.connections)

    def session_for(
        self, ip: IPAddress, port: int, health_check: bool, server: tuple[IPAddress, int] | None = None
    ) -> Protocol:
        """The protocol for a client whose address is known: a session, or a refusal.

        ``server`` is where the client connected; None: where its transport ends.
        """
        refused = self.why_refused(ip, health_check=health_check)
        if self.context is None or refused is not None:
            reply, reason = refused or (replies.STARTING, "closed")
            if health_check and reason == "closed":
                return self._refuse_health_check(reply)
            return self._refuse(reply, reason, ip)
        facts = SessionInfo(
            id=self._registry.next_session_id(),
            client_ip=ip,
            client_port=port,
            listener=self.listener.name,
            hostname=self.context.server.hostname,
        )
        if server is not None:
            facts.server_ip, facts.server_port = server
        return ESMTPProtocol(self._registry, self.context, facts, health_check=health_check)

    def why_refused(self, ip: IPAddress, *, health_check: bool = False) -> tuple[Reply, str] | None:
        """The reply in place of a session, and why; None where a client gets one."""
        closed_with = self._registry.closed_with
        if self.context is None or closed_with is not None:
            return closed_with or replies.STARTING, "closed"
        if not self._registry.has_capacity():
            return replies.TOO_MANY_CONNECTIONS, "max_connections"
        if not (health_check or self._registry.overload.has_capacity):
            return replies.OVERLOADED, _OVERLOAD
        if self.context.implicit_tls and not (health_check or self._registry.has_handshake_capacity(ip)):
            return replies.TOO_MANY_CONNECTIONS, "max_connections_per_ip"
        return None

    def _refuse(self, reply: Reply, reason: str, ip: IPAddress) -> RefusalProtocol:
        if reason == _OVERLOAD:
            self._metrics.connections_refused.labels(self.listener.name, reason).inc()
            self._registry.refusals.no_session(str(ip), self.listener.name, reply, reason)
            self._registry.overload.refused += 1
        else:
            name = self.listener.name
            log_refused_connection(self._registry, self._metrics, name, str(ip), (reply, reason))
        return self._refusal_protocol(reply)

    def _refuse_health_check(self, reply: Reply) -> RefusalProtocol:
        """Answer a load balancer so that it sends no client here.

        It asks every second or two and gets the right answer, so this is no client's refused connection.
        """
        self._metrics.health_checks.labels(self.listener.name).inc()
        return self._refusal_protocol(reply)

    def _refusal_protocol(self, reply: Reply) -> RefusalProtocol:
        # Plain text would be noise to a client that expects a handshake.
        return RefusalProtocol(None if self.listener.tls is ListenerTLS.IMPLICIT else reply)
