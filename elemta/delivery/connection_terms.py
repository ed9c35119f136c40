"""How a route makes its connections: to and from which addresses, which authorities and offers it trusts."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from OpenSSL import crypto

from elemta.config import AddressFamily, RouteConfig
from elemta.errors import ConfigError, Fault
from elemta.ip import IPAddress

# All authorities of a usual system take 250 KiB.
_LONGEST = 4 * 1024 * 1024
_CERTIFICATE = re.compile(rb"-----BEGIN CERTIFICATE-----.*?-----END CERTIFICATE-----", re.DOTALL)
_VERSIONS = {AddressFamily.IPV4: 4, AddressFamily.IPV6: 6}


@dataclass(frozen=True, slots=True)
class ConnectionTerms:
    """What a ``[[route]]`` says about its connections.

    ``authorities`` are certificates in PEM, empty for those of the system; ``ignored`` are keywords in upper
    case. ``chosen`` says that a policy chose how some mail goes: what fails for that says nothing about the
    destination.
    """

    authorities: str = field(default="", repr=False)
    family: AddressFamily = AddressFamily.ANY
    source: tuple[IPAddress, ...] = ()
    ignored: frozenset[str] = frozenset()
    chosen: bool = False

    @classmethod
    def of(cls, config: RouteConfig, key: str) -> ConnectionTerms:
        """Those of a ``[[route]]``; its file of authorities is read here. ConfigError."""
        return cls(
            read_authorities(config.ca, f"{key}.ca") if config.ca else "",
            config.address_family,
            config.source,
            frozenset(keyword.upper() for keyword in config.ignore_offers),
        )

    def allowed(self, addresses: Iterable[IPAddress]) -> list[IPAddress]:
        """The addresses that may be connected to."""
        only = _VERSIONS.get(self.family)
        return [address for address in addresses if only is None or address.version == only]

    def source_for(self, address: IPAddress) -> tuple[str, int] | None:
        """Where a connection to this address comes from; None: as the system chooses."""
        own = next((each for each in self.source if each.version == address.version), None)
        return None if own is None else (str(own), 0)


DEFAULT_TERMS = ConnectionTerms()
"""Those of a route that says nothing."""


def read_authorities(path: str, key: str) -> str:
    """Read a PEM file of authorities; ``key`` names the setting that says where it is. ConfigError."""
    try:
        with Path(path).open("rb") as file:
            text = file.read(_LONGEST + 1)
    except OSError as error:
        raise ConfigError([Fault(path, key, f"can't be read: {error.strerror or error}")]) from error
    if len(text) > _LONGEST:
        raise ConfigError([Fault(path, key, f"is longer than {_LONGEST} octets")])
    found = _CERTIFICATE.findall(text)
    if not found:
        raise ConfigError([Fault(path, key, "has no certificate in PEM")])
    for number, pem in enumerate(found, start=1):
        try:
            crypto.load_certificate(crypto.FILETYPE_PEM, pem)
        except (crypto.Error, ValueError) as error:
            raise ConfigError([Fault(path, key, f"its certificate {number} can't be read")]) from error
    return b"\n".join(found).decode("ascii", "replace") + "\n"


def load_authorities(store: crypto.X509Store | None, authorities: str) -> None:
    """Let a store trust these certificates in PEM."""
    assert store is not None  # noqa: S101 - each context has one
    for pem in _CERTIFICATE.findall(authorities.encode()):
        store.add_cert(crypto.load_certificate(crypto.FILETYPE_PEM, pem))
