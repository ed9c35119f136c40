"""Where a connection goes, and what is said first."""

from __future__ import annotations

from dataclasses import dataclass, field
from ipaddress import ip_address
from typing import TYPE_CHECKING, Any

from twisted.internet.endpoints import (
    HostnameEndpoint,
    TCP4ClientEndpoint,
    TCP6ClientEndpoint,
    UNIXClientEndpoint,
    wrapClientTLS,
)
from twisted.internet.interfaces import IStreamClientEndpoint

from elemta.ip import with_port

if TYPE_CHECKING:
    from elemta.valkey.tls_handshake import ValkeyHandshake


CONNECT_SECONDS = 1.0
"""How long opening a connection may take, and how long its greeting."""


@dataclass(frozen=True, slots=True)
class ServerAddress:
    """Where a server listens: host and port, or the path of a Unix socket."""

    host: str = ""
    port: int = 0
    path: str = ""

    def __str__(self) -> str:
        if self.path:
            return self.path
        return with_port(self.host, self.port)


@dataclass(frozen=True, slots=True)
class ValkeyLogin:
    """What a connection says first. ``primary`` refuses a replica; a Sentinel has no databases."""

    username: str = ""
    password: str = field(default="", repr=False)
    database: int = 0
    name: str = ""
    primary: bool = False

    def hello(self) -> tuple[str, ...]:
        auth = ("AUTH", self.username or "default", self.password) if self.password else ()
        return ("HELLO", "2", *auth, *(("SETNAME", self.name) if self.name else ()))


def endpoint(
    reactor: Any, address: ServerAddress, handshake: ValkeyHandshake | None
) -> IStreamClientEndpoint:
    """The endpoint of a server."""
    if address.path:
        return UNIXClientEndpoint(reactor, address.path, timeout=CONNECT_SECONDS)
    plain = _tcp(reactor, address)
    return plain if handshake is None else wrapClientTLS(handshake, plain)


def _tcp(reactor: Any, address: ServerAddress) -> IStreamClientEndpoint:
    # Without a name there is nothing to resolve, and no thread is needed for it.
    try:
        version = ip_address(address.host).version
    except ValueError:
        return HostnameEndpoint(reactor, address.host, address.port, timeout=CONNECT_SECONDS)
    kind = TCP4ClientEndpoint if version == 4 else TCP6ClientEndpoint
    return kind(reactor, address.host, address.port, timeout=CONNECT_SECONDS)
