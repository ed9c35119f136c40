"""The addresses of a host by the name that an operator gave it: /etc/hosts first, then DNS."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import Protocol

from elemta.dns.servers import RESOLV_CONF
from elemta.dns.system_file import SystemFile
from elemta.domains import canonical_domain
from elemta.errors import NoSuchDomain
from elemta.ip import IPAddress

HOSTS = "/etc/hosts"

_MOST_DOMAINS = 6
_MOST_DOTS = 15
_LOOPBACK = (IPv6Address("::1"), IPv4Address("127.0.0.1"))


class AddressResolver(Protocol):
    """What is asked of DNS; :class:`elemta.dns.questions.Questions` is one."""

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
        self._hosts = SystemFile(hosts, addresses_in, seconds)
        self._search_list = SystemFile(resolv_conf, SearchList.of, seconds)

    async def addresses(self, host: str) -> tuple[IPAddress, ...]:
        """The addresses of a host; none where it exists without one. NoSuchDomain, ResolverTrouble."""
        name = canonical_domain(host)
        known = self._hosts.contents().get(name)
        if known:
            return known
        if name.rpartition(".")[2] == "localhost":
            return _LOOPBACK  # RFC 6761 §6.3
        if self._resolver is None:
            raise NoSuchDomain(f"{host} is not in {self._hosts.path}, and there is no resolver")
        absent: NoSuchDomain | None = None
        for whole in self._search_list.contents().names(host):
            try:
                found = await self._resolver.addresses(whole)
            except NoSuchDomain as error:
                absent = absent or error
                continue
            if found:
                return found
        if absent is not None:
            raise absent
        return ()


def addresses_in(lines: tuple[str, ...]) -> Mapping[str, tuple[IPAddress, ...]]:
    """What the lines of a hosts(5) file say of each name, in their order."""
    found: dict[str, dict[IPAddress, None]] = {}
    for line in lines:
        text, *names = line.partition("#")[0].split() or [""]
        try:
            address = ip_address(text)
        except ValueError:
            continue
        for name in names:
            found.setdefault(name.lower().rstrip("."), {})[address] = None
    return {name: tuple(addresses) for name, addresses in found.items()}


@dataclass(frozen=True, slots=True)
class SearchList:
    """What a resolv.conf(5) says of short names: the domains they may be in, and how many dots end that."""

    domains: tuple[str, ...] = ()
    dots: int = 1

    @classmethod
    def of(cls, lines: tuple[str, ...]) -> SearchList:
        """The list in the lines of such a file."""
        domains: list[str] = []
        dots = 1
        for line in lines:
            words = line.split()
            if len(words) > 1 and words[0] in ("search", "domain"):
                domains = [word.rstrip(".") for word in words[1:] if word.rstrip(".")][:_MOST_DOMAINS]
            elif words and words[0] == "options":
                values = [word.removeprefix("ndots:") for word in words[1:] if word.startswith("ndots:")]
                dots = next((min(int(value), _MOST_DOTS) for value in values if value.isdecimal()), dots)
        return cls(tuple(domains), dots)

    def names(self, host: str) -> tuple[str, ...]:
        """The whole names that a name may stand for, in the order in which to ask."""
        if host.endswith("."):
            return (host,)
        longer = tuple(f"{host}.{domain}" for domain in self.domains)
        return (host, *longer) if host.count(".") >= self.dots else (*longer, host)
