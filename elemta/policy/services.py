"""The services of the daemon that a policy may use."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field, replace
from ipaddress import IPv4Address, IPv6Address
from typing import Protocol

from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger

from elemta.deferred_value import MaybeDeferred
from elemta.dns import DnsResolver as SharedResolver
from elemta.dns import MailExchanger
from elemta.domains import Domains
from elemta.envelope import Recipient
from elemta.errors import ResolverTrouble
from elemta.limits import Charge, Receipt
from elemta.policy.views import Session, Transaction
from elemta.stage import Stage

METRIC_NAME = re.compile(r"[a-z][a-z0-9_]*")


class Limits(Protocol):
    """The cluster-wide limits of the configuration, as a policy uses them.

    ``session`` and ``transaction`` are the policy's views. The bundled policy ``limits`` charges at every
    stage; another policy rarely needs to.
    """

    def charges(self, stage: Stage) -> bool:
        """Whether any limit is charged at ``stage``."""

    def charge(
        self,
        stage: Stage,
        session: Session,
        transaction: Transaction | None = None,
        recipient: Recipient | None = None,
        *,
        already: Collection[str] = (),
        may_delay: bool = False,
    ) -> MaybeDeferred[Charge]:
        """Charge what this stage counts: all limits or none. ``already`` are keys charged before.

        ``may_delay``: the caller will wait and charge once more where the refusal ``delays``.
        """

    def charge_login(self, session: Session, username: str) -> MaybeDeferred[Charge]:
        """Charge an attempt to log in as a failed one, before the password is looked at: all or none.

        Refund it unless the password was wrong. So there are never more failures than the limit, however
        many attempts are under way at the same moment.
        """

    def remember_login(self, session: Session, username: str) -> None:
        """Note a good login: the guesses of others count less for this user at this address."""

    def refund(self, receipts: Iterable[Receipt]) -> MaybeDeferred[None]:
        """Give back what was charged, but not what is held open."""

    def release(self, receipts: Iterable[Receipt]) -> MaybeDeferred[None]:
        """Give back what is held open: connections."""


class Resolver(Protocol):
    """DNS. Each lookup ends within 10 s, or within ``timeout`` seconds; answers are cached.

    A lookup that is cancelled, as when the policy's time is up, frees what it took at once.

    Every method raises :class:`~elemta.errors.NoSuchDomain` where the name does not exist, and
    :class:`~elemta.errors.ResolverTrouble` where no server gave a usable answer in time, which says nothing
    about the name. A name without such a record gives an empty tuple.
    """

    async def addresses(
        self, host: str, *, timeout: float | None = None
    ) -> tuple[IPv4Address | IPv6Address, ...]:
        """The addresses of a host, IPv6 first."""

    async def mail_exchangers(
        self, domain: str, *, timeout: float | None = None
    ) -> tuple[MailExchanger, ...]:
        """The MX records, the most preferred first; ``(NULL_MX,)`` where the domain takes no mail."""

    async def text(self, name: str, *, timeout: float | None = None) -> tuple[str, ...]:
        """The TXT records, the strings of each put together."""

    async def reverse(
        self, ip: str | IPv4Address | IPv6Address, *, timeout: float | None = None
    ) -> tuple[str, ...]:
        """The names that the owner of an address gives it (PTR). Unconfirmed: an owner can claim any name."""


class NoResolver:
    """A resolver where there is none: every lookup has trouble."""

    async def addresses(
        self,
        host: str,
        *,
        timeout: float | None = None,  # noqa: ARG002
    ) -> tuple[IPv4Address | IPv6Address, ...]:
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

    async def reverse(
        self,
        ip: str | IPv4Address | IPv6Address,
        *,
        timeout: float | None = None,  # noqa: ARG002
    ) -> tuple[str, ...]:
        raise ResolverTrouble(f"there is no resolver to look up {ip}")


class Counter(Protocol):
    """A number that only grows."""

    def inc(self, amount: float = 1) -> None:
        """Add ``amount``, at least 0."""

    def labels(self, *values: str) -> Counter:
        """The counter with these label values, in the order of the labels' names."""


class Histogram(Protocol):
    """A distribution of numbers."""

    def observe(self, amount: float) -> None:
        """Count one more number."""

    def labels(self, *values: str) -> Histogram:
        """The histogram with these label values, in the order of the labels' names."""


class PluginMetrics(Protocol):
    """Where a policy registers metrics of its own, usually in ``build``.

    A policy gives the short name (``lookups_total``); Prometheus sees
    ``elemta_plugin_POLICY_lookups_total``. The same name gives the same metric again, as at a reload. Never
    give a label a value that a client chose: each value is kept until the daemon ends.
    """

    def counter(self, name: str, words: str, labels: Sequence[str] = ()) -> Counter:
        """A counter; its name ends in ``_total`` by Prometheus' custom."""

    def histogram(
        self, name: str, words: str, labels: Sequence[str] = (), buckets: Sequence[float] | None = None
    ) -> Histogram:
        """A histogram; ``buckets`` are upper bounds, by default those for seconds."""


class PrefixedMetrics:
    """The metrics of one policy: every name is put under ``elemta_plugin_POLICY_``."""

    def __init__(self, policy: str, registry: PluginMetrics) -> None:
        self._prefix = f"elemta_plugin_{re.sub('[^a-z0-9]', '_', policy.lower())}_"
        self._registry = registry

    def counter(self, name: str, words: str, labels: Sequence[str] = ()) -> Counter:
        return self._registry.counter(self._full(name), words, labels)

    def histogram(
        self, name: str, words: str, labels: Sequence[str] = (), buckets: Sequence[float] | None = None
    ) -> Histogram:
        return self._registry.histogram(self._full(name), words, labels, buckets)

    def _full(self, name: str) -> str:
        if not METRIC_NAME.fullmatch(name):
            raise ValueError(f"a metric's name has lower case letters, digits and underscores: {name!r}")
        return self._prefix + name


@dataclass(frozen=True, slots=True)
class Services:
    """What a policy may use.

    ``reactor`` for time, threads and connections (do not import it); ``limits`` of the configuration;
    ``domains``: the local ones and the networks that may relay; ``metrics`` for counters of the policy's own;
    ``log`` under the policy's namespace, which names it in every record; ``resolver`` for DNS.
    """

    reactor: IReactorTime
    limits: Limits
    domains: Domains
    metrics: PluginMetrics
    log: Logger
    resolver: Resolver = field(default_factory=NoResolver)

    def of_policy(self, name: str) -> Services:
        """The services with ``metrics`` and ``log`` under the name of one policy."""
        resolver = self.resolver
        return replace(
            self,
            resolver=resolver.of_user(name) if isinstance(resolver, SharedResolver) else resolver,
            metrics=PrefixedMetrics(name, self.metrics),
            log=Logger(namespace=f"elemta.policy.{name}", observer=self.log.observer),
        )
