"""Reads the PROXY header of a load balancer before the session begins."""

from __future__ import annotations

from collections.abc import Callable

from twisted.internet.protocol import Protocol, connectionDone
from twisted.logger import Logger
from twisted.python.failure import Failure

from elemta.errors import ProxyHeaderError
from elemta.ip import IPAddress
from elemta.net.registry import ClientConnection, ConnectionRegistry
from elemta.net.timeouts import PROXY_HEADER_SECONDS
from elemta.smtp.memory import SessionMemory
from elemta.smtp.proxy import ProxyHeader, ProxyResult

_log = Logger()

_DRAIN_SECONDS = 1.0
# Octets of one read: a header, and what a client may send behind it.
_READ = 16 * 1024


SessionMaker = Callable[[IPAddress, int, bool, tuple[IPAddress, int] | None], Protocol]
"""Makes the session when the client's address and port are known, whether it is a health check, and where the
client connected, if the header says so."""


class ProxyPreamble(ClientConnection):
    """Waits for the header, says nothing before it, then hands the transport to a session.

    A header that is malformed, or does not come within five seconds, closes the connection without a reply.
    """

    def __init__(
        self, session_for: SessionMaker, registry: ConnectionRegistry, ip: IPAddress, port: int
    ) -> None:
        super().__init__(ip)
        self._session_for = session_for
        self._registry = registry
        self._peer = (ip, port)
        self._header = ProxyHeader()
        self._deadline = 0.0
        self._done = False

    def connectionMade(self) -> None:
        self._deadline = self._registry.seconds() + PROXY_HEADER_SECONDS
        self._registry.add(self)
        self.transport.bufferSize = _READ

    @property
    def memory(self) -> SessionMemory:
        """The memory that the beginning of a header takes."""
        return SessionMemory(self._header.memory)

    def dataReceived(self, data: bytes) -> None:
        if self._done:
            return
        try:
            result = self._header.feed(data)
        except ProxyHeaderError as error:
            self._give_up(str(error))
            return
        if result is not None:
            self._hand_over(result)

    def connectionLost(self, reason: Failure = connectionDone) -> None:  # noqa: ARG002
        self._registry.remove(self)

    def check_deadline(self, now: float) -> None:
        if now >= self._deadline:
            self._give_up("no PROXY header came in time")
            self.abort()

    def drain(self) -> None:
        """A header that is on its way is waited for, and its client refused; a stop waits no longer."""
        self._deadline = min(self._deadline, self._registry.seconds() + _DRAIN_SECONDS)

    def _give_up(self, why: str) -> None:
        self._done = True
        _log.warn(
            "connection closed: invalid PROXY header",
            event="proxy.refused",
            peer=str(self._peer[0]),
            reason=why,
        )
        self.transport.loseConnection()

    def _hand_over(self, result: ProxyResult) -> None:
        self._done = True
        self._registry.remove(self)
        ip, port = result.source or self._peer
        session = self._session_for(ip, port, result.local, result.destination)
        self.transport.protocol = session
        session.makeConnection(self.transport)
        if result.rest:
            # After makeConnection the transport's protocol may be a TLS layer around the session.
            receiver: Protocol = self.transport.protocol
            receiver.dataReceived(result.rest)
