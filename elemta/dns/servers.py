"""The servers to ask: those of the configuration, or those of the system."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from elemta.dns.system_file import SystemFile
from elemta.ip import is_ip_address, with_port

RESOLV_CONF = "/etc/resolv.conf"
PORT = 53

_MOST = 8
_SHUN = 30.0


@dataclass(frozen=True, slots=True)
class Nameserver:
    """A recursive server: an IP ``address``, with its zone where it is link-local, and a ``port``."""

    address: str
    port: int = PORT

    def __str__(self) -> str:
        if self.port == PORT:
            return self.address
        return with_port(self.address, self.port)


class Nameservers:
    """The servers in the order in which they are asked.

    Without ``configured`` ones they are read from ``resolv_conf``, again when that file changes. A server
    that did not answer goes behind the others for a while: a dead first one must not slow every lookup.
    ``seconds`` is a clock that only goes forward.
    """

    def __init__(
        self,
        configured: Sequence[Nameserver],
        seconds: Callable[[], float],
        resolv_conf: str = RESOLV_CONF,
    ) -> None:
        self._configured = tuple(configured)
        self._seconds = seconds
        self._file = SystemFile(resolv_conf, nameservers_in, seconds)
        self._system: tuple[Nameserver, ...] = ()
        self._silent: dict[Nameserver, float] = {}

    def in_order(self) -> tuple[Nameserver, ...]:
        """The servers to ask now, first to last; at least one. Reads a small file now and then."""
        now = self._seconds()
        servers = self._configured or self._of_the_system()
        return tuple(sorted(servers, key=lambda server: self._silent.get(server, now) > now))

    def was_silent(self, server: Nameserver) -> None:
        """It did not answer in time, or can't be reached."""
        self._silent[server] = self._seconds() + _SHUN

    def answered(self, server: Nameserver) -> None:
        """It said something."""
        self._silent.pop(server, None)

    def _of_the_system(self) -> tuple[Nameserver, ...]:
        servers = self._file.contents()
        if servers is not self._system:
            self._system = servers
            self._silent.clear()
        return servers


def nameservers_in(lines: tuple[str, ...]) -> tuple[Nameserver, ...]:
    """The servers that a resolv.conf(5) names; where it names none one on this host."""
    found = []
    for line in lines:
        words = line.split()
        if len(words) >= 2 and words[0] == "nameserver" and is_ip_address(words[1]):
            found.append(Nameserver(words[1]))
    return tuple(dict.fromkeys(found))[:_MOST] or (Nameserver("127.0.0.1"),)
