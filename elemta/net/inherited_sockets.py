"""Listening sockets that systemd opened for this process, found by their address.

systemd opens the ports that the daemon may not open itself. A unit for each port hands them over in an order
that is not certain, so an endpoint such as ``tcp:587`` takes the one that is bound there.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from twisted.internet.endpoints import AdoptedStreamServerEndpoint, serverFromString
from twisted.internet.interfaces import IReactorCore
from twisted.logger import Logger

from elemta.ip import with_port

_log = Logger()

_WILDCARDS: Mapping[int, str] = {
    int(socket.AF_INET): "0.0.0.0",
    int(socket.AF_INET6): "::",
}


@dataclass(frozen=True, slots=True)
class InheritedSocket:
    """One such socket: its number among those of systemd, its descriptor, and where it listens."""

    index: int
    descriptor: int
    family: int
    host: str
    port: int

    @property
    def is_wildcard(self) -> bool:
        """Whether it listens at all addresses of its family."""
        return self.host == _WILDCARDS.get(self.family)

    @property
    def endpoint(self) -> str:
        """The endpoint that takes it."""
        domain = "INET6" if self.family == socket.AF_INET6 else "INET"
        return f"systemd:domain={domain}:index={self.index}"


def inherited_sockets(reactor: IReactorCore) -> tuple[InheritedSocket, ...]:
    """What systemd handed over and listens over TCP, before any endpoint has taken it."""
    found = []
    for index, descriptor in enumerate(_descriptors(reactor)):
        try:
            with socket.socket(fileno=os.dup(descriptor)) as sock:
                family, address = sock.family, sock.getsockname()
        except OSError:
            # No socket; an endpoint that names it will say so.
            continue
        if family in _WILDCARDS:
            found.append(InheritedSocket(index, descriptor, family, address[0], address[1]))
    return tuple(found)


def _descriptors(reactor: IReactorCore) -> Iterator[int]:
    """Twisted took LISTEN_FDS out of the environment: its endpoints tell what was there."""
    index = 0
    while True:
        try:
            endpoint = serverFromString(reactor, f"systemd:domain=INET:index={index}")
        except IndexError:
            return
        assert isinstance(endpoint, AdoptedStreamServerEndpoint)  # noqa: S101 - what this kind is
        yield endpoint.fileno
        index += 1


def sockets_for(
    endpoints: Iterable[tuple[str, str, int] | None], inherited: Iterable[InheritedSocket]
) -> list[list[InheritedSocket]]:
    """For each endpoint (kind, interface, port) the sockets that it takes; one socket goes to one endpoint.

    An endpoint without an interface takes the socket of all addresses. ``tcp`` takes also that of all IPv6
    addresses at its port, which may take IPv4 as well, unless another endpoint is ``tcp6`` there.
    """
    wanted = list(endpoints)
    left = list(inherited)
    taken: list[list[InheritedSocket]] = []
    for endpoint in wanted:
        own = [each for each in left if endpoint is not None and _is_at(each, endpoint)]
        left = [each for each in left if each not in own]
        taken.append(own)
    for own, endpoint in zip(taken, wanted, strict=True):
        if endpoint is None or endpoint[:2] != ("tcp", ""):
            continue
        more = [each for each in left if each.port == endpoint[2] and each.is_wildcard]
        left = [each for each in left if each not in more]
        own.extend(more)
    return taken


def _is_at(inherited: InheritedSocket, endpoint: tuple[str, str, int]) -> bool:
    kind, interface, port = endpoint
    # Twisted's tcp takes an IPv6 address as its interface, too.
    family = socket.AF_INET6 if kind == "tcp6" or ":" in interface else socket.AF_INET
    host = interface or _WILDCARDS[family]
    return inherited.family == family and inherited.port == port and inherited.host == host


def warn_of_unused(unused: Iterable[InheritedSocket]) -> None:
    """A client that connects to a socket without a listener waits for ever."""
    for each in unused:
        _log.warn(
            "systemd opened a port that no listener serves, so its clients wait in vain",
            event="listener.socket_unused",
            address=with_port(each.host, each.port),
        )
