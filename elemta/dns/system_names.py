"""The addresses of a host by the name that an operator gave it: /etc/hosts first, then DNS."""

from __future__ import annotations

import os
from collections.abc import Callable
from ipaddress import IPv4Address, IPv6Address, ip_address
from pathlib import Path
from typing import Protocol

from elemta.dns.answers import IPAddress
from elemta.dns.servers import RESOLV_CONF
from elemta.domains import canonical_domain
from elemta.errors import NoSuchDomain

HOSTS = "/etc/hosts"

_LOOK_AGAIN = 5.0
_LONGEST_FILE = 1024 * 1024
_MOST_DOMAINS = 6
_MOST_DOTS = 15
_LOOPBACK = (IPv6Address("::1"), IPv4Address("127.0.0.1"))


class AddressResolver(Protocol):
    """What is asked of DNS; :class:`elemta.dns.Questions` is one."""

    async def addresses(self, host: str) -> tuple[IPAddress, ...]:
        """The addresses of a host by its whole name. NoSuchDomain, ResolverTrouble."""


class SystemNames:
    """Finds hosts by their names in this system, without a thread.

    A name in ``hosts`` has the addresses that stand there, and no others. Else DNS is asked, with the
    ``search`` list of ``resolv_conf`` for short names (resolv.conf(5)). Both files are read again when they
    have changed, which is looked for every few seconds. ``seconds`` is a clock that only goes forward.
    """

    def __init__(
        self,
        resolver: AddressResolver | None,
        seconds: Callable[[], float],
        *,
        hosts: str = HOSTS,
        resolv_conf: str = RESOLV_CONF,
    ) -> None:
        self._resolver = resolver
        self._hosts = _File(hosts, seconds)
        self._resolv_conf = _File(resolv_conf, seconds)

    async def addresses(self, host: str) -> tuple[IPAddress, ...]:
        """The addresses of a host; none where it exists without one. NoSuchDomain, ResolverTrouble."""
        known = addresses_in(self._hosts.lines(), host)
        if known:
            return known
        if canonical_domain(host).rpartition(".")[2] == "localhost":
            return _LOOPBACK  # RFC 6761 §6.3
        if self._resolver is None:
            raise NoSuchDomain(f"{host} is not in {self._hosts.path}, and there is no resolver")
        absent: NoSuchDomain | None = None
        for name in names_to_try(self._resolv_conf.lines(), host):
            try:
                found = await self._resolver.addresses(name)
            except NoSuchDomain as error:
                absent = absent or error
                continue
            if found:
                return found
        if absent is not None:
            raise absent
        return ()


def addresses_in(lines: tuple[str, ...], host: str) -> tuple[IPAddress, ...]:
    """What the lines of a hosts(5) file say of a name, in their order."""
    name = canonical_domain(host)
    found: list[IPAddress] = []
    for line in lines:
        address, *names = line.partition("#")[0].split() or [""]
        if any(each.lower().rstrip(".") == name for each in names):
            try:
                found.append(ip_address(address))
            except ValueError:
                continue
    return tuple(dict.fromkeys(found))


def names_to_try(lines: tuple[str, ...], host: str) -> tuple[str, ...]:
    """The whole names that a name may stand for by a resolv.conf(5), in the order in which to ask."""
    domains: list[str] = []
    dots = 1
    for line in lines:
        words = line.split()
        if len(words) > 1 and words[0] in ("search", "domain"):
            domains = [word.rstrip(".") for word in words[1:] if word.rstrip(".")][:_MOST_DOMAINS]
        elif words and words[0] == "options":
            values = [word.removeprefix("ndots:") for word in words[1:] if word.startswith("ndots:")]
            dots = next((min(int(value), _MOST_DOTS) for value in values if value.isdecimal()), dots)
    if host.endswith("."):
        return (host,)
    longer = tuple(f"{host}.{domain}" for domain in domains)
    return (host, *longer) if host.count(".") >= dots else (*longer, host)


class _File:
    """The lines of a small file, which may be changed or not be there."""

    def __init__(self, path: str, seconds: Callable[[], float]) -> None:
        self.path = path
        self._seconds = seconds
        self._looked_at = float("-inf")
        self._version: tuple[int, int, int] | None = None
        self._lines: tuple[str, ...] = ()

    def lines(self) -> tuple[str, ...]:
        now = self._seconds()
        if now - self._looked_at >= _LOOK_AGAIN:
            self._looked_at = now
            self._read()
        return self._lines

    def _read(self) -> None:
        try:
            status = os.stat(self.path)
            version = (status.st_mtime_ns, status.st_ino, status.st_size)
            if version != self._version:
                with Path(self.path).open(encoding="utf-8", errors="replace") as file:
                    self._lines = tuple(file.read(_LONGEST_FILE).splitlines())
                self._version = version
        except OSError:
            self._lines, self._version = (), None
