"""The services of the daemon that a policy may use."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Protocol

from twisted.internet.defer import Deferred, fail
from twisted.logger import Logger

from elemta.deferred_value import MaybeDeferred
from elemta.domains import Domains
from elemta.envelope import Recipient
from elemta.errors import BackendError
from elemta.limits import Charge, Receipt
from elemta.policy.backends import DEFAULT_TIMEOUT, PolicyBackends
from elemta.policy.explained_services import SwitchedLog, SwitchedMetric, SwitchedStore
from elemta.policy.http_client import HttpAnswer, HttpClient, TimedClient
from elemta.policy.outbox import NoOutbox, NoQueue, Outbox, QueueView
from elemta.policy.policy_resolver import NoResolver, PolicyResolver, Resolver, SharedResolver
from elemta.policy.policy_store import MemoryStore, Store
from elemta.policy.policy_threads import InThreads
from elemta.policy.streams import Connect, Stream
from elemta.policy.views import Session, Transaction
from elemta.stage import Stage

if TYPE_CHECKING:
    from twisted.internet.base import ReactorBase

METRIC_NAME = re.compile(r"[a-z][a-z0-9_]*")
RESERVED_LABELS = frozenset({"node_id", "le", "quantile"})


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
        return SwitchedMetric(self._registry.counter(self._full(name, labels), words, labels))

    def histogram(
        self, name: str, words: str, labels: Sequence[str] = (), buckets: Sequence[float] | None = None
    ) -> Histogram:
        return SwitchedMetric(self._registry.histogram(self._full(name, labels), words, labels, buckets))

    def _full(self, name: str, labels: Sequence[str]) -> str:
        if not METRIC_NAME.fullmatch(name):
            raise ValueError(f"a metric's name has lower case letters, digits and underscores: {name!r}")
        for label in labels:
            if not METRIC_NAME.fullmatch(label):
                raise ValueError(f"a label has lower case letters, digits and underscores: {label!r}")
            if label in RESERVED_LABELS:
                raise ValueError(f"the label {label!r} has a meaning of its own")
        return self._prefix + name


def _no_threads(_f: Any, /, *_args: Any, **_kwargs: Any) -> Deferred[Any]:
    return fail(BackendError("there are no threads"))


async def _no_connections(endpoint: str, **_: Any) -> Stream:
    raise BackendError(f"there are no connections to {endpoint}")


class _NoHttp:
    async def request(self, method: str, url: str, **_: Any) -> HttpAnswer:  # noqa: ARG002
        raise BackendError(f"there is no HTTP to {url}")


def _no_wall() -> float:
    return 0.0


@dataclass(frozen=True, slots=True)
class Services:
    """What a policy may use.

    - ``reactor`` for time and whatever the others do not do (do not import it).
    - ``limits`` of the configuration.
    - ``domains``: the local ones, and the networks that may relay.
    - ``metrics`` for counters of the policy's own.
    - ``log`` under the policy's namespace, which names it in every record.
    - ``resolver`` for DNS.
    - ``threads`` for work that blocks: ``await services.threads(function, *arguments)``.
    - ``store`` for what is kept beyond a session, in the whole cluster.
    - ``connect`` for connections to a service of the policy's own.
    - ``http``, a client for HTTP and HTTPS.
    - ``outbox`` for what has to be sent on after a crash, too.
    - ``queue``: the messages that this node has in its queue.
    - ``wall()``: seconds since the epoch, for what other hosts read. Measure with ``reactor``.
    - ``hostname`` and ``node_id`` as configured.
    """

    reactor: ReactorBase
    limits: Limits
    domains: Domains
    metrics: PluginMetrics
    log: Logger
    resolver: Resolver = field(default_factory=NoResolver)
    threads: InThreads = field(default_factory=lambda: _no_threads)
    store: Store = field(default_factory=lambda: MemoryStore(lambda: 0.0))
    connect: Connect = field(default_factory=lambda: _no_connections)
    http: HttpClient = field(default_factory=_NoHttp)
    outbox: Outbox = field(default_factory=NoOutbox)
    queue: QueueView = field(default_factory=NoQueue)
    wall: Callable[[], float] = _no_wall
    hostname: str = "localhost"
    node_id: str = "localhost"
    backends: PolicyBackends | None = field(default=None, repr=False)

    def of_policy(self, name: str, timeout: float = DEFAULT_TIMEOUT) -> Services:
        """The services of one policy, whose waits take no longer than its ``timeout``."""
        own = replace(
            self,
            metrics=PrefixedMetrics(name, self.metrics),
            log=Logger(namespace=f"elemta.policy.{name}", observer=SwitchedLog(self.log.observer)),
        )
        if isinstance(self.resolver, SharedResolver):
            resolver = PolicyResolver(self.resolver.of_user(name), self.reactor, max(timeout, LONGEST_LOOKUP))
            own = replace(own, resolver=resolver)
        if self.backends is None:
            return own
        backends = self.backends.of_policy(name)
        return replace(
            own,
            threads=backends.threads,
            store=SwitchedStore(name, backends.store),
            http=TimedClient(backends.http, timeout),
            outbox=backends.outbox,
            queue=self.backends,
            connect=self.backends.connector(timeout),
        )


LONGEST_LOOKUP = 10.0
"""Seconds of a lookup that is made outside of a policy's call."""
