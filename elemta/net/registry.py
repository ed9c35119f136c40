"""All connections of this node: their number is bounded, their deadlines are kept, a stop ends them."""

from __future__ import annotations

import typing
from collections.abc import Callable
from itertools import count

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorTime
from twisted.internet.protocol import Protocol
from twisted.internet.task import deferLater
from twisted.internet.tcp import Connection
from twisted.logger import Logger

from elemta.conversation_trace import ConversationTrace
from elemta.ip import IPAddress
from elemta.limits.identity import ip_identity
from elemta.metrics import NetMetrics
from elemta.net.handshake_log import HandshakeLog
from elemta.net.live_sessions import LiveSession
from elemta.net.overload import OverloadLimit
from elemta.net.recent_refusals import RecentRefusals
from elemta.net.shared_handshakes import SharedHandshakes
from elemta.runtime import Runtime
from elemta.smtp import replies
from elemta.smtp.memory import MemoryBudget, SessionMemory
from elemta.smtp.reply import Reply

_log = Logger()


LOOK_SECONDS = 1.0
"""Seconds from one look at the deadlines to the next."""

STANDSTILL_SECONDS = 2.0
"""A look that comes later than this was kept from coming, and clients from being heard."""


class ClientConnection(Protocol):
    """One client's connection, as the registry knows it.

    The registry keeps it while it is open: a paused transport without a reference would be collected.
    ``listener`` is the name of the session's listener, "" where there is no session yet.
    """

    transport: Connection

    def __init__(self, client_ip: IPAddress, listener: str = "") -> None:
        self.client_ip = client_ip
        self.listener = listener

    @property
    def handshaking(self) -> bool:
        """Whether a TLS handshake is under way."""
        return False

    def refuse_handshake(self) -> None:
        """End it before its handshake is done: its client has too many of them with the host's workers."""
        self.abort()

    def follow(self) -> None:
        """Something watches: show it this conversation from now on."""

    def describe(self) -> LiveSession | None:
        """What the session does now; None where there is none yet."""
        return None

    @property
    def memory(self) -> SessionMemory:
        """The memory that the connection takes beyond that of an idle one."""
        raise NotImplementedError

    def check_deadline(self, now: float) -> None:
        """Called about once a second: act when the deadline has passed."""
        raise NotImplementedError

    def drain(self) -> None:
        """End as soon as no message is under way."""
        raise NotImplementedError

    def abort(self) -> None:
        """Close at once, without another word."""
        self.transport.abortConnection()


class ClientCredit(typing.Protocol):
    """The part of the host's ``max_connections`` that this worker has."""

    def has_one(self, used: int) -> bool:
        """Whether there is a place for one more client beside ``used``."""


class ConnectionRegistry:
    """All connections of this node, over all listeners: their number is bounded, their deadlines are kept.

    ``max_connections`` and ``max_connections_per_ip`` may change at a reload. While ``closed_with`` is a
    reply, every new client gets it. ``credit`` and ``shared_handshakes`` are None where this process has no
    other workers beside it.
    """

    def __init__(self, runtime: Runtime, max_connections: int, metrics: NetMetrics | None = None) -> None:
        self._reactor: IReactorTime = runtime.reactor
        #: The time by which :meth:`seconds` goes.
        self.reactor_seconds = self._reactor.seconds
        self.max_connections = max_connections
        self.max_connections_per_ip = max_connections
        self.credit: ClientCredit | None = None
        self.shared_handshakes: SharedHandshakes | None = None
        self.closed_with: Reply | None = replies.STARTING
        self.connections: dict[ClientConnection, None] = {}
        self.waiting_input = MemoryBudget()
        self.envelopes = MemoryBudget()
        self._prefix = runtime.token(4)
        self._numbers = count(1)
        self._when_empty: list[Callable[[], None]] = []
        self._looked_at = 0.0
        #: For so many seconds this process stood still.
        self.stood_still = 0.0
        self.handshake_log = HandshakeLog(self.seconds)
        self.refusals = RecentRefusals(runtime.wall)
        self.overload = OverloadLimit(
            self._reactor,
            metrics or NetMetrics(),
            lambda: len(self.connections),
            lambda: self.max_connections,
        )
        self.trace = ConversationTrace(runtime.wall, runtime.monotonic)

    def seconds(self) -> float:
        """The clock of sessions. It stands still while this process does: that time is no client's."""
        return self.reactor_seconds() - self.stood_still

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
        used = len(self.connections)
        return used < self.max_connections and (self.credit is None or self.credit.has_one(used))

    def has_handshake_capacity(self, ip: IPAddress) -> bool:
        """Whether a client may begin with a handshake.

        Till that is done no policy is asked and no limit charged, so that one address that stalls its
        handshakes could take all places.
        """
        client = ip_identity(ip)
        stalled = sum(
            ip_identity(connection.client_ip) == client
            for connection in self.connections
            if connection.handshaking
        )
        return stalled < self.max_connections_per_ip

    def handshake_began(self, connection: ClientConnection, *, binding: bool) -> None:
        """Let the host's workers know. ``binding``: it may be ended where its client has too many of them."""
        if self.shared_handshakes is not None:
            self.shared_handshakes.begin(connection, self.max_connections_per_ip, binding=binding)

    def handshake_ended(self, connection: ClientConnection) -> None:
        """It is done, or its connection is gone."""
        if self.shared_handshakes is not None:
            self.shared_handshakes.end(connection)

    def add(self, connection: ClientConnection) -> None:
        if not self.connections:
            self._looked_at = max(self._looked_at, self._reactor.seconds() - LOOK_SECONDS)
        self.connections[connection] = None
        self.overload.watch()

    def remove(self, connection: ClientConnection) -> None:
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
            self.stood_still += late
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

    def undrain(self) -> None:
        """Take new sessions again; those that a drain has told to end still end."""
        self.closed_with = None

    def call_when_empty(self, callback: Callable[[], None]) -> None:
        if self.connections:
            self._when_empty.append(callback)
        else:
            callback()

    def abort_all(self) -> None:
        for connection in tuple(self.connections):
            connection.abort()
