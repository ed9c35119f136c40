"""``ESMTPFactory``: which connections get a session, and what the others get."""

from __future__ import annotations

from collections.abc import Callable
from ipaddress import IPv4Address, IPv6Address, ip_address
from itertools import count

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IAddress, IReactorTime
from twisted.internet.protocol import Factory, Protocol
from twisted.internet.task import deferLater
from twisted.logger import Logger

from elemta.config import ListenerConfig, ListenerTLS
from elemta.limits.identity import ip_identity
from elemta.metrics import NetMetrics
from elemta.net.context import ListenerContext
from elemta.net.protocol import ESMTPProtocol
from elemta.net.proxy import ProxyPreamble
from elemta.runtime import Runtime
from elemta.smtp import replies
from elemta.smtp.memory import MemoryBudget, SessionMemory
from elemta.smtp.reply import Reply
from elemta.smtp.session_info import SessionInfo

_log = Logger()

IPAddress = IPv4Address | IPv6Address

# A Unix socket's clients are on this host, and are counted and allowed as such.
_LOCAL = IPv4Address("127.0.0.1")

LOOK_SECONDS = 1.0
"""Seconds from one look at the deadlines to the next."""

STANDSTILL_SECONDS = 2.0
"""A look that comes later than this was kept from coming, and clients from being heard."""


class ConnectionRegistry:
    """All connections of this node, over all listeners: their number is bounded, their deadlines are kept.

    ``max_connections`` and ``max_connections_per_ip`` may change at a reload. While ``closed_with`` is a
    reply, every new client gets it.
    """

    def __init__(self, runtime: Runtime, max_connections: int) -> None:
        self._reactor: IReactorTime = runtime.reactor
        self.max_connections = max_connections
        self.max_connections_per_ip = max_connections
        self.closed_with: Reply | None = replies.STARTING
        self.connections: dict[ESMTPProtocol | ProxyPreamble, None] = {}
        self.waiting_input = MemoryBudget()
        self.envelopes = MemoryBudget()
        self._prefix = runtime.token(4)
        self._numbers = count(1)
        self._when_empty: list[Callable[[], None]] = []
        self._looked_at = 0.0
        self._stood_still = 0.0

    def seconds(self) -> float:
        """The clock of sessions. It stands still while this process does: that time is no client's."""
        return self._reactor.seconds() - self._stood_still

    def pause(self, seconds: float) -> Deferred[None]:
        """Fires after so many seconds."""
        return deferLater(self._reactor, seconds)

    def next_session_id(self) -> str:
        return f"{self._prefix}-{next(self._numbers):x}"

    @property
    def memory(self) -> SessionMemory:
        """What all sessions take; counted when it is asked for."""
        return sum((connection.memory for connection in self.connections), SessionMemory())

    def has_capacity(self) -> bool:
        return len(self.connections) < self.max_connections

    def has_handshake_capacity(self, ip: IPAddress) -> bool:
        """Whether a client may begin with a handshake.

        Till that is done no policy is asked and no limit charged, so that one address that stalls its
        handshakes could take all places.
        """
        client = ip_identity(ip)
        stalled = sum(
            ip_identity(connection.facts.client_ip) == client
            for connection in self.connections
            if isinstance(connection, ESMTPProtocol) and connection.handshaking
        )
        return stalled < self.max_connections_per_ip

    def add(self, connection: ESMTPProtocol | ProxyPreamble) -> None:
        if not self.connections:
            self._looked_at = max(self._looked_at, self._reactor.seconds() - LOOK_SECONDS)
        self.connections[connection] = None

    def remove(self, connection: ESMTPProtocol | ProxyPreamble) -> None:
        self.connections.pop(connection, None)
        if not self.connections:
            waiting, self._when_empty = self._when_empty, []
            for callback in waiting:
                callback()

    def check_deadlines(self) -> None:
        """Called once a second: one look at every connection is cheaper than a timer for every command."""
        if self.connections:
            self._note_standstill()
        now = self.seconds()
        for connection in tuple(self.connections):
            try:
                connection.check_deadline(now)
            except Exception:  # one connection's failure must not end all deadlines
                _log.failure("a deadline could not be enforced", event="session.timeout_failed")
                connection.abort()

    def _note_standstill(self) -> None:
        """This process was suspended, or had no time: what clients said meanwhile is yet to be read."""
        before, self._looked_at = self._looked_at, self._reactor.seconds()
        late = self._looked_at - before - LOOK_SECONDS
        if late > STANDSTILL_SECONDS:
            self._stood_still += late
            _log.warn(
                "the daemon stood still; sessions get that time back",
                event="daemon.stood_still",
                seconds=round(late, 1),
            )

    def drain(self) -> None:
        """From now on no new session; every session ends as soon as its message under way is done."""
        self.closed_with = replies.SHUTTING_DOWN
        for connection in tuple(self.connections):
            connection.drain()

    def call_when_empty(self, callback: Callable[[], None]) -> None:
        if self.connections:
            self._when_empty.append(callback)
        else:
            callback()

    def abort_all(self) -> None:
        for connection in tuple(self.connections):
            connection.abort()


class RefusalProtocol(Protocol):
    """Says why there is no session, and closes."""

    def __init__(self, reply: Reply | None) -> None:
        self._reply = reply

    def connectionMade(self) -> None:
        assert self.transport is not None  # noqa: S101 - Twisted sets it before this call
        if self._reply is not None:
            self.transport.write(self._reply.encode())
        self.transport.loseConnection()


class ESMTPFactory(Factory):
    """Builds the sessions of one listener under :attr:`terms`, which the start sets and a reload replaces."""

    noisy = False

    def __init__(self, registry: ConnectionRegistry, listener: ListenerConfig, metrics: NetMetrics) -> None:
        self._registry = registry
        self._metrics = metrics
        self.listener = listener
        self.context: ListenerContext | None = None
        self.open_sessions = 0

    def buildProtocol(self, addr: IAddress | None) -> Protocol | None:
        ip, port = _peer(addr)
        if any(ip in network for network in self.listener.proxy_protocol_from):
            if not self._registry.has_capacity():
                return self._refuse(replies.TOO_MANY_CONNECTIONS, "max_connections", ip)
            return ProxyPreamble(self, self._registry, ip, port)
        return self.session_for(ip, port, health_check=False)

    def session_for(self, ip: IPAddress, port: int, *, health_check: bool) -> Protocol:
        """The protocol for a client whose address is known: a session, or a refusal."""
        closed_with = self._registry.closed_with
        if self.context is None or closed_with is not None:
            if health_check:
                return self._refuse_health_check(closed_with or replies.STARTING)
            return self._refuse(closed_with or replies.STARTING, "closed", ip)
        if not self._registry.has_capacity():
            return self._refuse(replies.TOO_MANY_CONNECTIONS, "max_connections", ip)
        if self.context.implicit_tls and not (health_check or self._registry.has_handshake_capacity(ip)):
            return self._refuse(replies.TOO_MANY_CONNECTIONS, "max_connections_per_ip", ip)
        facts = SessionInfo(
            id=self._registry.next_session_id(), client_ip=ip, client_port=port, listener=self.listener.name
        )
        return ESMTPProtocol(self, self.context, facts, health_check=health_check)

    def _refuse(self, reply: Reply, reason: str, ip: IPAddress) -> RefusalProtocol:
        self._metrics.connections_refused.labels(self.listener.name, reason).inc()
        _log.info(
            "connection refused",
            event="connection.refused",
            listener=self.listener.name,
            client_ip=str(ip),
            reason=reason,
        )
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

    # The protocol's home

    @property
    def waiting_input(self) -> MemoryBudget:
        return self._registry.waiting_input

    @property
    def envelopes(self) -> MemoryBudget:
        return self._registry.envelopes

    def seconds(self) -> float:
        return self._registry.seconds()

    def pause(self, seconds: float) -> Deferred[None]:
        return self._registry.pause(seconds)

    def opened(self, connection: ESMTPProtocol) -> None:
        self._registry.add(connection)
        self.open_sessions += 1
        if connection.health_check:
            self._metrics.health_checks.labels(self.listener.name).inc()
        else:
            self._metrics.connections_opened.labels(self.listener.name).inc()
            self._metrics.connections_open.labels(self.listener.name).inc()

    def closed(self, connection: ESMTPProtocol) -> None:
        self._registry.remove(connection)
        self.open_sessions -= 1
        if not connection.health_check:
            self._metrics.connections_open.labels(self.listener.name).dec()
            self._metrics.session_duration.labels(self.listener.name).observe(connection.seconds_open)


def _peer(addr: IAddress | None) -> tuple[IPAddress, int]:
    host = getattr(addr, "host", None)
    if host is None:
        return _LOCAL, 0
    ip = ip_address(host.partition("%")[0])
    mapped = ip.ipv4_mapped if isinstance(ip, IPv6Address) else None
    return mapped or ip, int(getattr(addr, "port", 0))
