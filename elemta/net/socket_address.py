"""The address and port of a connection's end."""

from __future__ import annotations

from functools import lru_cache
from ipaddress import ip_address

from elemta.ip import IPAddress, unmapped
from elemta.smtp.session_info import LOOPBACK


def address_of(end: object) -> tuple[IPAddress, int]:
    """Address and port of one of Twisted's addresses, IPv4-mapped as IPv4; of a Unix socket 127.0.0.1, 0."""
    host = getattr(end, "host", None)
    if host is None:
        # Its clients are on this host, and are counted and allowed as such.
        return LOOPBACK, 0
    return _ip_of(host), int(getattr(end, "port", 0))


# Clients come again, and to read an address takes as long as a command.
@lru_cache(maxsize=1024)
def _ip_of(host: str) -> IPAddress:
    return unmapped(ip_address(host.partition("%")[0]))
