"""Overrides: other rates, or none at all, for one identity of a limit or for a network, and for a while.

Every node looks at the same overrides (:mod:`elemta.limits.override_registry`). An override changes what is
asked of the store and not where it is counted: what was counted before it, during it and after it is one
count.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from ipaddress import ip_network
from typing import Any, TypeAlias

from elemta.config import Counts, Identity, Rate
from elemta.config.limit_rates import MOST_RATES, misfit
from elemta.config.values import Unacceptable, parse_network, parse_rate
from elemta.ip import IPAddress, IPNetwork, unmapped
from elemta.limits.identity import JOINT
from elemta.limits.rules import Rule, bound_of
from elemta.limits.store import LimitSpec, Request

MAX_NOTE = 500
"""The characters that a note may have."""

_OF_ADDRESSES = frozenset({Identity.IP, Identity.NETWORK})

Clock: TypeAlias = Callable[[], float]


@dataclass(frozen=True, slots=True)
class Override:
    """What holds for one identity of a limit in place of its rates: ``rates``, or nothing at all (exempt).

    ``identity`` is that of a key, or a network whose addresses it is about. ``until`` and ``made_at`` are
    seconds since the epoch by the clock that all nodes share; ``author`` made it, and ``note`` says why.
    """

    limit: str
    identity: str
    rates: tuple[str, ...]
    until: float
    author: str = ""
    note: str = ""
    made_at: float = 0.0

    @property
    def exempt(self) -> bool:
        return not self.rates

    @property
    def words(self) -> str:
        """What holds: the rates, or ``exempt``."""
        return " ".join(self.rates) or "exempt"

    @property
    def key(self) -> str:
        return f"{self.limit}:{self.identity}"

    @property
    def network(self) -> IPNetwork | None:
        """The network that it is about; None where it is about one identity."""
        try:
            return parse_network(self.identity) if "/" in self.identity else None
        except Unacceptable:
            return None

    def to_json(self) -> str:
        """As it is kept; :meth:`of_json` reads it."""
        fields = {
            "limit": self.limit,
            "identity": self.identity,
            "rates": list(self.rates),
            "until": self.until,
            "author": self.author,
            "note": self.note,
            "made_at": self.made_at,
        }
        return json.dumps(fields, ensure_ascii=False)

    @classmethod
    def of_json(cls, text: str) -> Override | None:
        """None for what no node of this version would write."""
        try:
            found: Mapping[str, Any] = json.loads(text)
            rates = tuple(str(rate) for rate in found["rates"])
            for rate in rates:
                parse_rate(rate)
            return cls(
                str(found["limit"]),
                str(found["identity"]),
                rates,
                float(found["until"]),
                str(found.get("author", "")),
                str(found.get("note", "")),
                float(found.get("made_at", 0.0)),
            )
        except (ValueError, TypeError, KeyError, OverflowError, RecursionError, Unacceptable):
            return None


def check_rates(rule: Rule, rates: Sequence[str]) -> None:
    """Raises :class:`~elemta.config.values.Unacceptable` when ``rates`` can't be those of this limit."""
    if len(rates) > MOST_RATES:
        raise Unacceptable(f"found {len(rates)} rates: must be at most {MOST_RATES}")
    for text in rates:
        wrong = misfit(rule.counts, parse_rate(text))
        if wrong is not None:
            raise Unacceptable(*wrong)


def client_of(rule: Rule, identity: str) -> IPAddress | None:
    """An address of the clients that an identity of this limit stands for; None where it has none."""
    parts = identity.split(JOINT)
    if len(parts) != len(rule.per):
        return None
    of_clients = [part for kind, part in zip(rule.per, parts, strict=True) if kind in _OF_ADDRESSES]
    # A part that is an address says more than one that is its network.
    for part in sorted(of_clients, key=lambda part: "/" in part):
        try:
            return ip_network(part).network_address
        except ValueError:
            continue
    return None


def takes_networks(rule: Rule) -> bool:
    """Whether an override of this limit can be for a network of clients."""
    return not _OF_ADDRESSES.isdisjoint(rule.per)


@dataclass(slots=True)
class _OfLimit:
    """The overrides of one limit; those of networks with the smallest first."""

    exact: dict[str, Override] = field(default_factory=dict)
    networks: list[tuple[IPNetwork, Override]] = field(default_factory=list)

    def find(self, identity: str, client: IPAddress | None, now: float) -> Override | None:
        found = self.exact.get(identity)
        if found is not None and found.until > now:
            return found
        if client is None or not self.networks:
            return None
        client = unmapped(client)
        for network, override in self.networks:
            if override.until > now and client.version == network.version and client in network:
                return override
        return None


class Overrides:
    """The overrides that this node knows, and what they make of requests. It outlives every limiter.

    ``seconds`` is the clock by which an override ends: seconds since the epoch, as all nodes see it.
    """

    def __init__(self, seconds: Clock) -> None:
        self._seconds = seconds
        self._known: tuple[Override, ...] = ()
        #: Those of each limit that has any.
        self.by_limit: dict[str, _OfLimit] = {}
        self._specs: dict[tuple[int, tuple[str, ...]], tuple[LimitSpec, LimitSpec]] = {}
        self._callbacks: list[Callable[[], object]] = []
        self.generation = 0
        """Another number whenever others hold than before."""

    def __len__(self) -> int:
        return len(self._known)

    def seconds(self) -> float:
        """The time by which overrides end: seconds since the epoch."""
        return self._seconds()

    def on_change(self, callback: Callable[[], object]) -> None:
        """Have it called whenever others hold than before."""
        self._callbacks.append(callback)

    def replace(self, overrides: Iterable[Override]) -> None:
        """From now on these hold."""
        now = self._seconds()
        known = tuple(sorted((each for each in overrides if each.until > now), key=lambda each: each.key))
        if known == self._known:
            return
        self._known = known
        self.by_limit, self._specs = {}, {}
        for override in known:
            of_limit = self.by_limit.setdefault(override.limit, _OfLimit())
            of_limit.exact[override.identity] = override
            network = override.network
            if network is not None:
                of_limit.networks.append((network, override))
        for of_limit in self.by_limit.values():
            of_limit.networks.sort(key=lambda entry: -entry[0].prefixlen)
        self.generation += 1
        for callback in self._callbacks:
            callback()

    def drop_ended(self) -> None:
        """Forget those that have ended. To be called every second or so."""
        if self._known:
            self.replace(self._known)

    def in_force(self) -> tuple[Override, ...]:
        """Those that hold now, by limit and identity."""
        now = self._seconds()
        return tuple(each for each in self._known if each.until > now)

    def of(self, rule: Rule, identity: str, client: IPAddress | None = None) -> Override | None:
        """The one that holds for this identity of the limit, and a client at this address."""
        of_limit = self.by_limit.get(rule.name)
        if of_limit is None:
            return None
        return of_limit.find(identity, client if takes_networks(rule) else None, self._seconds())

    def named(self, limit: str, identity: str) -> Override | None:
        """The one that was made for just this."""
        of_limit = self.by_limit.get(limit)
        found = None if of_limit is None else of_limit.exact.get(identity)
        return found if found is not None and found.until > self._seconds() else None

    def applied(self, rule: Rule, requests: list[Request], client: IPAddress | None) -> list[Request]:
        """The requests with the rates that hold for them, without those that are exempt."""
        of_limit = self.by_limit.get(rule.name)
        if of_limit is None or not requests:
            return requests
        now = self._seconds()
        client = client if takes_networks(rule) else None
        found = []
        for request in requests:
            override = of_limit.find(request.identity, client, now)
            if override is None:
                found.append(request)
            elif not override.exempt:
                found.append(replace(request, spec=self.spec(rule, override)))
        return found

    def spec(self, rule: Rule, override: Override) -> LimitSpec:
        """What the store is asked of this limit in place of its own spec: the same object each time.

        Rates that can't be those of the limit, which has another kind since, leave it as it is.
        """
        key = (id(rule.spec), override.rates)
        known = self._specs.get(key)
        if known is None:
            # With the limit's own spec, so that its id stays its own.
            known = self._specs[key] = (_spec(rule, override), rule.spec)
        return known[0]


def _spec(rule: Rule, override: Override) -> LimitSpec:
    try:
        check_rates(rule, override.rates)
    except Unacceptable:
        return rule.spec
    rates: Collection[Rate] = [parse_rate(rate) for rate in override.rates]
    if rule.spec.leases is not None:
        return replace(rule.spec, leases=min(rate.limit for rate in rates))
    weighted = rule.counts is Counts.BYTES
    return replace(rule.spec, bounds=tuple(bound_of(rule.name, rate, weighted=weighted) for rate in rates))
