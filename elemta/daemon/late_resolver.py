"""DNS where nothing of the daemon needs it: made at the first question that a policy asks."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from elemta.dns import MailExchanger
from elemta.ip import IPAddress
from elemta.metrics import DnsMetrics
from elemta.policy import Resolver
from elemta.runtime import Runtime

if TYPE_CHECKING:
    from elemta.dns.resolver import DnsResolver


class _LateQuestions:
    """The questions of a policy."""

    async def addresses(self, host: str, *, timeout: float | None = None) -> tuple[IPAddress, ...]:
        return await self._real().addresses(host, timeout=timeout)

    async def mail_exchangers(
        self, domain: str, *, timeout: float | None = None
    ) -> tuple[MailExchanger, ...]:
        return await self._real().mail_exchangers(domain, timeout=timeout)

    async def text(self, name: str, *, timeout: float | None = None) -> tuple[str, ...]:
        return await self._real().text(name, timeout=timeout)

    async def reverse(self, ip: str | IPAddress, *, timeout: float | None = None) -> tuple[str, ...]:
        return await self._real().reverse(ip, timeout=timeout)

    async def records(self, name: str, kind: str, *, timeout: float | None = None) -> tuple[str, ...]:
        return await self._real().records(name, kind, timeout=timeout)

    def _real(self) -> Resolver:
        raise NotImplementedError


class LateResolver(_LateQuestions):
    """A resolver for several policies, which loads what asks name servers when one of them asks."""

    def __init__(self, runtime: Runtime, metrics: DnsMetrics) -> None:
        self._runtime = runtime
        self._metrics = metrics
        self._resolver: DnsResolver | None = None
        self._started = False

    def of_user(self, name: str) -> Resolver:
        """The resolver for one policy."""
        return _OfUser(self._real, name)

    def start(self) -> None:
        """Begin to ask. After the fork of twistd, never before."""
        self._started = True
        if self._resolver is not None:
            self._resolver.start()

    async def stop(self) -> None:
        """End the lookups under way, whose callers get ResolverTrouble."""
        self._started = False
        if self._resolver is not None:
            await self._resolver.stop()

    def _real(self) -> DnsResolver:
        """The resolver that asks."""
        if self._resolver is None:
            from elemta.dns.resolver import DnsResolver  # noqa: PLC0415 - dnspython takes 3 MB

            self._resolver = DnsResolver(self._runtime, metrics=self._metrics)
            if self._started:
                self._resolver.start()
        return self._resolver


class _OfUser(_LateQuestions):
    """The resolver for one policy."""

    def __init__(self, ask: Callable[[], DnsResolver], name: str) -> None:
        self._ask = ask
        self._name = name

    def _real(self) -> Resolver:
        return self._ask().of_user(self._name)
