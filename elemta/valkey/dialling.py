"""How a connection is opened: the place, TLS, and what is said first."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from functools import lru_cache
from ipaddress import ip_address
from pathlib import Path
from typing import Any

from OpenSSL import SSL
from twisted.internet.endpoints import (
    HostnameEndpoint,
    TCP4ClientEndpoint,
    TCP6ClientEndpoint,
    UNIXClientEndpoint,
    wrapClientTLS,
)
from twisted.internet.interfaces import IOpenSSLClientConnectionCreator, IStreamClientEndpoint
from twisted.internet.ssl import (
    Certificate,
    PrivateCertificate,
    optionsForClientTLS,
    trustRootFromCertificates,
)

from elemta.config.valkey_url import ValkeyURL

CONNECT_SECONDS = 1.0
"""How long opening a connection may take, and how long its greeting."""

_PEM = re.compile(rb"-----BEGIN CERTIFICATE-----.+?-----END CERTIFICATE-----\s", re.DOTALL)


@dataclass(frozen=True, slots=True)
class Address:
    """Where a server listens: host and port, or the path of a Unix socket."""

    host: str = ""
    port: int = 0
    path: str = ""

    def __str__(self) -> str:
        if self.path:
            return self.path
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


@dataclass(frozen=True, slots=True)
class Login:
    """What a connection says first. ``primary`` refuses a replica; a Sentinel has no databases."""

    username: str = ""
    password: str = field(default="", repr=False)
    database: int = 0
    name: str = ""
    primary: bool = False

    def hello(self) -> tuple[str, ...]:
        auth = ("AUTH", self.username or "default", self.password) if self.password else ()
        return ("HELLO", "2", *auth, *(("SETNAME", self.name) if self.name else ()))


@dataclass(frozen=True, slots=True)
class TLS:
    """How servers are verified, and with what we show who we are; see ``ValkeyURL``."""

    server_name: str = ""
    ca: str = ""
    certificate: str = ""
    private_key: str = ""

    @classmethod
    def of(cls, url: ValkeyURL) -> TLS | None:
        return cls(url.tls_server_name, url.ca, url.certificate, url.private_key) if url.tls else None


class Unreachable(Exception):
    """A connection can't even be tried, for a reason that an operator has to see to."""


def endpoint(reactor: Any, address: Address, tls: TLS | None) -> IStreamClientEndpoint:
    """The endpoint of a server. Files are read again when they have changed; Unreachable if they can't be."""
    if address.path:
        return UNIXClientEndpoint(reactor, address.path, timeout=CONNECT_SECONDS)
    plain = _tcp(reactor, address)
    if tls is None:
        return plain
    try:
        creator = _creator(tls, tls.server_name or address.host, _states(tls))
    except (OSError, SSL.Error, ValueError) as error:
        raise Unreachable(f"TLS can't be used: {error}") from error
    return wrapClientTLS(creator, plain)


def _tcp(reactor: Any, address: Address) -> IStreamClientEndpoint:
    # Without a name there is nothing to resolve, and no thread is needed for it.
    try:
        version = ip_address(address.host).version
    except ValueError:
        return HostnameEndpoint(reactor, address.host, address.port, timeout=CONNECT_SECONDS)
    kind = TCP4ClientEndpoint if version == 4 else TCP6ClientEndpoint
    return kind(reactor, address.host, address.port, timeout=CONNECT_SECONDS)


def _states(tls: TLS) -> tuple[tuple[int, int], ...]:
    """What changes when one of the files does."""
    found = [Path(name).stat() for name in (tls.ca, tls.certificate, tls.private_key) if name]
    return tuple((each.st_mtime_ns, each.st_ino) for each in found)


@lru_cache(maxsize=64)
def _creator(tls: TLS, name: str, _files: tuple[tuple[int, int], ...]) -> IOpenSSLClientConnectionCreator:
    trust = None
    if tls.ca:
        found = _PEM.findall(Path(tls.ca).read_bytes() + b"\n")
        if not found:
            raise ValueError(f"no certificate in {tls.ca}")
        trust = trustRootFromCertificates([Certificate.loadPEM(each) for each in found])
    own = None
    if tls.certificate:
        pair = Path(tls.certificate).read_bytes() + b"\n" + Path(tls.private_key).read_bytes()
        own = PrivateCertificate.loadPEM(pair)
    return optionsForClientTLS(name, trustRoot=trust, clientCertificate=own)
