"""Listening sockets: bound before privileges are given up, or handed over by systemd.

They accept only once the daemon is ready. :func:`provide_descriptors` raises the limit of sockets and files
that the process may have open.
"""

from __future__ import annotations

import os
import resource
from collections.abc import Sequence

from twisted.internet.address import IPv4Address, IPv6Address
from twisted.internet.defer import Deferred, maybeDeferred
from twisted.internet.endpoints import serverFromString
from twisted.internet.interfaces import IListeningPort, IProtocolFactory, IReactorCore
from twisted.logger import Logger
from twisted.python.failure import Failure

from elemta.config.endpoint import systemd_index, tcp_endpoint
from elemta.errors import ListenFailed
from elemta.ip import with_port
from elemta.net.handed_sockets import listen_at, shared_descriptor
from elemta.net.inherited_sockets import InheritedSocket, inherited_sockets, sockets_for, warn_of_unused

_log = Logger()

# Listeners, the spool's own files, next hops, DNS lookups, logs.
_BESIDE = 1024
# The socket, and the file of a large message.
_OF_A_CONNECTION = 2


def provide_descriptors(connections: int, others: int = 0) -> bool:
    """Raise the limit of open files as far as that many connections need and as the system allows.

    ``others`` are connections that no policy and no next hop is asked for. Returns False, with a warning in
    the log, when those that are not ``others`` do not have enough.
    """
    needed = connections * _OF_A_CONNECTION + _BESIDE
    wanted = needed + others
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY or soft >= wanted:
        return True
    allowed = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
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
    """One endpoint and the factory behind it. ``inherited`` are sockets of systemd at its place."""

    def __init__(self, name: str, endpoint: str, factory: IProtocolFactory) -> None:
        self.name = name
        self.endpoint = _with_backlog(endpoint)
        self.factory = factory
        self.inherited: Sequence[InheritedSocket] = ()
        self._ports: list[IListeningPort] = []

    def bind(self, reactor: IReactorCore) -> None:
        """Bind and listen, but leave new connections in the kernel's backlog until :meth:`accept`.

        Raises :class:`~elemta.errors.ListenFailed` with the reason when that is not possible.
        """
        for endpoint in [each.endpoint for each in self.inherited] or [self.endpoint]:
            self._bind(endpoint, reactor)

    def _bind(self, endpoint: str, reactor: IReactorCore) -> None:
        outcome: list[IListeningPort | Failure] = []
        listening: Deferred[IListeningPort] = maybeDeferred(self._listen, endpoint, reactor)
        listening.addBoth(outcome.append)
        if not outcome:
            raise ListenFailed(f"listener {self.name}: {endpoint} did not bind at once")
        port = outcome[0]
        if isinstance(port, Failure):
            why = port.getErrorMessage()
            if port.check(IndexError, KeyError) and endpoint.startswith("systemd:"):
                # All that Twisted says is which index or name it did not find.
                why = "systemd handed over no such socket"
            elif isinstance(getattr(port.value, "socketError", None), PermissionError):
                why = (
                    why.rstrip(".")
                    + "; enable the socket unit of this port (docs/install.md, Ports 25, 587 and 465)"
                )
            raise ListenFailed(f"listener {self.name}: {endpoint}: {why}") from port.value
        self._ports.append(port)
        if hasattr(port, "stopReading"):
            port.stopReading()

    def adopt(self, descriptors: Sequence[int], reactor: IReactorCore) -> None:
        """Listen at sockets that another process bound, as :meth:`bind` does. Raises ListenFailed."""
        for descriptor in descriptors:
            try:
                self._ports.append(listen_at(descriptor, self.factory, reactor))
            except OSError as error:
                raise ListenFailed(f"listener {self.name}: descriptor {descriptor}: {error}") from error

    @property
    def descriptors(self) -> tuple[int, ...]:
        """Those of its sockets, for a process that shall accept from them. Raises ListenFailed."""
        return tuple(
            shared_descriptor(port, f"listener {self.name}: {self.endpoint}") for port in self._ports
        )

    def _listen(self, endpoint: str, reactor: IReactorCore) -> Deferred[IListeningPort]:
        listening: Deferred[IListeningPort] = serverFromString(reactor, endpoint).listen(self.factory)
        return listening

    def accept(self) -> None:
        """Take connections from the backlog from now on."""
        for port in self._ports:
            if hasattr(port, "startReading"):
                port.startReading()

    @property
    def address(self) -> str:
        """Where it really listens, such as ``127.0.0.1:2525``; the endpoint while it does not."""
        return ",".join(_address(port) for port in self._ports) or self.endpoint

    @property
    def places(self) -> tuple[tuple[str, int], ...]:
        """The IP addresses and ports where it listens; none for any other socket, and while it does not."""
        hosts = [port.getHost() for port in self._ports]
        return tuple((host.host, host.port) for host in hosts if isinstance(host, (IPv4Address, IPv6Address)))

    async def close(self) -> None:
        """Accept nothing more from this moment on; returns when the sockets are closed."""
        ports, self._ports = self._ports, []
        for closed in [maybeDeferred(port.stopListening) for port in ports]:
            await closed


def take_inherited_sockets(listeners: Sequence[Listener], reactor: IReactorCore) -> None:
    """Give each listener the sockets of systemd at its place, before any of them is bound."""
    inherited = inherited_sockets(reactor)
    if not inherited:
        return
    named = {systemd_index(listener.endpoint) for listener in listeners}
    free = [each for each in inherited if each.index not in named]
    taken = sockets_for([tcp_endpoint(listener.endpoint) for listener in listeners], free)
    for listener, own in zip(listeners, taken, strict=True):
        listener.inherited = own
    used = [each for own in taken for each in own]
    if not any(
        listener.endpoint.startswith("systemd:") and ":name=" in listener.endpoint for listener in listeners
    ):
        warn_of_unused(each for each in free if each not in used)


def _address(port: IListeningPort) -> str:
    host = port.getHost()
    if isinstance(host, (IPv4Address, IPv6Address)):
        return with_port(host.host, host.port)
    name = getattr(host, "name", None)
    return os.fsdecode(name) if isinstance(name, (bytes, str)) else str(host)


def _with_backlog(endpoint: str) -> str:
    """Twisted's own backlog of 50 overflows when a busy sender reconnects all at once."""
    if endpoint.startswith(("tcp:", "tcp6:")) and ":backlog=" not in endpoint:
        return f"{endpoint}:backlog=1024"
    return endpoint
