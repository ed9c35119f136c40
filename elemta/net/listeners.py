"""The limit of sockets and files that the process may have open.

Listening sockets: bound before privileges are given up, accepting only once the daemon is ready.
"""

from __future__ import annotations

import os
import resource

from twisted.internet.address import IPv4Address, IPv6Address
from twisted.internet.defer import Deferred, maybeDeferred
from twisted.internet.endpoints import serverFromString
from twisted.internet.interfaces import IListeningPort, IProtocolFactory, IReactorCore
from twisted.logger import Logger
from twisted.python.failure import Failure

from elemta.errors import ListenFailed

_log = Logger()

# Listeners, the spool's own files, next hops, DNS lookups, logs.
_BESIDE = 1024
# The socket, and the file of a large message.
_OF_A_CONNECTION = 2


def provide_descriptors(connections: int) -> bool:
    """Raise the limit of open files as far as that many connections need and as the system allows.

    Returns False, with a warning in the log, when they do not have enough.
    """
    needed = connections * _OF_A_CONNECTION + _BESIDE
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY or soft >= needed:
        return True
    allowed = needed if hard == resource.RLIM_INFINITY else min(needed, hard)
    if allowed > soft:
        resource.setrlimit(resource.RLIMIT_NOFILE, (allowed, hard))
    if allowed >= needed:
        return True
    _log.warn(
        "this process may not open as many files as max_connections needs",
        event="descriptors.too_few",
        max_connections=connections,
        needed=needed,
        allowed=allowed,
    )
    return False


class Listener:
    """One endpoint and the factory behind it."""

    def __init__(self, name: str, endpoint: str, factory: IProtocolFactory) -> None:
        self.name = name
        self.endpoint = _with_backlog(endpoint)
        self.factory = factory
        self._port: IListeningPort | None = None

    def bind(self, reactor: IReactorCore) -> None:
        """Bind and listen, but leave new connections in the kernel's backlog until :meth:`accept`.

        Raises :class:`~elemta.errors.ListenFailed` with the reason when that is not possible.
        """
        outcome: list[IListeningPort | Failure] = []
        listening: Deferred[IListeningPort] = maybeDeferred(self._listen, reactor)
        listening.addBoth(outcome.append)
        if not outcome:
            raise ListenFailed(f"listener {self.name}: {self.endpoint} did not bind at once")
        port = outcome[0]
        if isinstance(port, Failure):
            why = port.getErrorMessage()
            if port.check(IndexError, KeyError) and self.endpoint.startswith("systemd:"):
                # All that Twisted says is which index or name it did not find.
                why = "systemd handed over no such socket"
            raise ListenFailed(f"listener {self.name}: {self.endpoint}: {why}") from port.value
        self._port = port
        if hasattr(port, "stopReading"):
            port.stopReading()

    def _listen(self, reactor: IReactorCore) -> Deferred[IListeningPort]:
        listening: Deferred[IListeningPort] = serverFromString(reactor, self.endpoint).listen(self.factory)
        return listening

    def accept(self) -> None:
        """Take connections from the backlog from now on."""
        if self._port is not None and hasattr(self._port, "startReading"):
            self._port.startReading()

    @property
    def address(self) -> str:
        """Where it really listens, such as ``127.0.0.1:2525``; the endpoint while it does not."""
        if self._port is None:
            return self.endpoint
        host = self._port.getHost()
        if isinstance(host, (IPv4Address, IPv6Address)):
            return (
                f"[{host.host}]:{host.port}" if isinstance(host, IPv6Address) else f"{host.host}:{host.port}"
            )
        name = getattr(host, "name", None)
        return os.fsdecode(name) if isinstance(name, (bytes, str)) else str(host)

    @property
    def place(self) -> tuple[str, int] | None:
        """The IP address and port where it listens; None for any other socket, and while it does not."""
        host = None if self._port is None else self._port.getHost()
        return (host.host, host.port) if isinstance(host, (IPv4Address, IPv6Address)) else None

    async def close(self) -> None:
        port, self._port = self._port, None
        if port is not None:
            await maybeDeferred(port.stopListening)


def _with_backlog(endpoint: str) -> str:
    """Twisted's own backlog of 50 overflows when a busy sender reconnects all at once."""
    if endpoint.startswith(("tcp:", "tcp6:")) and ":backlog=" not in endpoint:
        return f"{endpoint}:backlog=1024"
    return endpoint
