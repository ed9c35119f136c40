"""DNS as a policy asks for it: each lookup gets no more time than the policy's call has left."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

from twisted.internet.interfaces import IReactorTime

from elemta.dns import MailExchanger
from elemta.errors import ResolverTrouble
from elemta.ip import IPAddress
from elemta.policy.call_context import current_call, seconds_left


class Resolver(Protocol):
    """DNS. A lookup ends within the time of the policy's call, within 10 s, and within ``timeout`` seconds.

    A lookup that is cancelled, as when the policy's time is up, frees what it took at once. Answers are
    cached.

    Every method raises :class:`~elemta.errors.NoSuchDomain` where the name does not exist, and
    :class:`~elemta.errors.ResolverTrouble` where no server gave a usable answer in time, which says nothing
    about the name. A name without such a record gives an empty tuple.
    """

    async def addresses(self, host: str, *, timeout: float | None = None) -> tuple[IPAddress, ...]:
        """The addresses of a host, IPv6 first."""

    async def mail_exchangers(
        self, domain: str, *, timeout: float | None = None
    ) -> tuple[MailExchanger, ...]:
        """The MX records, the most preferred first; ``(NULL_MX,)`` where the domain takes no mail."""

    async def text(self, name: str, *, timeout: float | None = None) -> tuple[str, ...]:
        """The TXT records, the strings of each put together."""

    async def reverse(self, ip: str | IPAddress, *, timeout: float | None = None) -> tuple[str, ...]:
        """The names that the owner of an address gives it (PTR). Unconfirmed: an owner can claim any name."""

    async def records(self, name: str, kind: str, *, timeout: float | None = None) -> tuple[str, ...]:
        """The records of any type, such as ``"TLSA"``, each as text in the form of zone files."""


@runtime_checkable
class SharedResolver(Protocol):
    """A resolver that several policies share."""

    def of_user(self, name: str) -> Resolver:
        """The resolver for one of them."""


class NoResolver:
    """A resolver where there is none: every lookup has trouble."""

    async def addresses(self, host: str, *, timeout: float | None = None) -> tuple[IPAddress, ...]:  # noqa: ARG002
        raise ResolverTrouble(f"there is no resolver to look up {host}")

    async def mail_exchangers(
        self,
        domain: str,
        *,
        timeout: float | None = None,  # noqa: ARG002
    ) -> tuple[MailExchanger, ...]:
        raise ResolverTrouble(f"there is no resolver to look up {domain}")

    async def text(self, name: str, *, timeout: float | None = None) -> tuple[str, ...]:  # noqa: ARG002
        raise ResolverTrouble(f"there is no resolver to look up {name}")

    async def reverse(self, ip: str | IPAddress, *, timeout: float | None = None) -> tuple[str, ...]:  # noqa: ARG002
        raise ResolverTrouble(f"there is no resolver to look up {ip}")

    async def records(
        self,
        name: str,
        kind: str,  # noqa: ARG002
        *,
        timeout: float | None = None,  # noqa: ARG002
    ) -> tuple[str, ...]:
        raise ResolverTrouble(f"there is no resolver to look up {name}")


class PolicyResolver:
    """The resolver for one policy. ``longest`` is the time of a lookup that no coroutine of a call makes."""

    def __init__(self, resolver: Resolver, clock: IReactorTime, longest: float) -> None:
        self._resolver = resolver
        self._clock = clock
        self._longest = longest

    async def addresses(self, host: str, *, timeout: float | None = None) -> tuple[IPAddress, ...]:
        return await self._resolver.addresses(host, timeout=self._time(timeout))

    async def mail_exchangers(
        self, domain: str, *, timeout: float | None = None
    ) -> tuple[MailExchanger, ...]:
        return await self._resolver.mail_exchangers(domain, timeout=self._time(timeout))

    async def text(self, name: str, *, timeout: float | None = None) -> tuple[str, ...]:
        return await self._resolver.text(name, timeout=self._time(timeout))

    async def reverse(self, ip: str | IPAddress, *, timeout: float | None = None) -> tuple[str, ...]:
        return await self._resolver.reverse(ip, timeout=self._time(timeout))

    async def records(self, name: str, kind: str, *, timeout: float | None = None) -> tuple[str, ...]:
        return await self._resolver.records(name, kind, timeout=self._time(timeout))

    def _time(self, timeout: float | None) -> float:
        call = current_call()
        if call is not None:
            call.asked_dns = True
        return seconds_left(self._clock.seconds(), self._longest if timeout is None else timeout)
