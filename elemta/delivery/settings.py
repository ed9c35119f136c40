"""The settings of delivery: names, limits, the retry schedule."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from ipaddress import IPv4Address, IPv6Address

from elemta.address import Address
from elemta.config import Config
from elemta.conversation_trace import ConversationTrace
from elemta.domains import Domains
from elemta.runtime import SYSTEM_RANDOMNESS, Runtime
from elemta.smtp.client import ClientTimeouts


@dataclass(frozen=True, slots=True)
class Retries:
    """When a deferred message is tried again. Durations are seconds.

    ``delays`` are the waits after the first, second, … attempt; the last repeats. ``expire`` counts from
    when the message was received; there is always an attempt at that moment, and none after it. A destination
    that is down is probed after the same waits, but for those that are longer than ``longest_probe``.
    ``uniform`` draws what is added at random.
    """

    delays: tuple[float, ...] = (60.0, 300.0, 900.0, 3600.0, 10800.0, 21600.0)
    expire: float = 432000.0
    jitter: float = 0.1
    longest_probe: float = 600.0
    uniform: Callable[[float, float], float] = field(
        default=SYSTEM_RANDOMNESS.uniform, repr=False, compare=False
    )

    def next_attempt(self, attempts: int, received_at: float, now: float) -> float | None:
        """When to try again after ``attempts`` attempts, in seconds since the epoch; None: no more.

        The wait grows by up to ``jitter`` of it, so that what failed together does not come back together.
        """
        end = received_at + self.expire
        if now >= end:
            return None
        return min(self.after_failures(attempts, now), end)

    @property
    def longest_wait(self) -> float:
        """The longest that any message waits for its next attempt."""
        return max(self.delays) * (1.0 + self.jitter)

    def after_failures(self, failures: int, now: float) -> float:
        """When to try again what failed so many times in a row."""
        delay = self.delays[min(max(failures, 1), len(self.delays)) - 1]
        return now + delay * self.uniform(1.0, 1.0 + self.jitter)

    def next_probe(self, failures: int, now: float) -> float:
        """When to try a destination again that was found down so many times in a row."""
        longest = self.longest_probe * self.uniform(1.0 - self.jitter, 1.0)
        return min(self.after_failures(failures, now), now + longest)


def _itself(address: Address) -> tuple[Address, ...]:
    return (address,)


@dataclass(frozen=True, slots=True)
class DeliverySettings:
    """``hostname`` is this host's name for next hops and Maildir file names; durations are seconds.

    At most ``max_messages`` messages are under way at one time and ``max_recipients`` go with one
    transaction; ``maildir_threads`` write to Maildirs, ``read_threads`` read contents for next hops;
    a thread whose file system gives no answer for ``maildir_deadline`` is left alone, and replaced for up to
    ``stuck_threads``;
    ``grace`` is how long a stop waits for deliveries under way; ``lifetime`` bounds a transaction as a whole;
    ``poll`` is the longest time between two looks into the queue. After ``warn_after`` (0: never) a sender
    gets a notice that a message waits. ``ahead`` is in that and in ``retries``, see
    :meth:`for_a_clock_ahead`. A notice returns a failed message of up to ``bounce_size_limit``
    octets whole. ``expand`` gives the addresses that mail for an address goes to, by the aliases. ``trace``
    has the watches that conversations with next hops are shown to.

    ``mx_port`` is where mail exchangers listen; ``own_names`` and ``own_addresses`` (with their ports) are
    what this host itself is called and takes mail at. Next hops that are named are looked up in the file
    ``hosts`` and in DNS, with the search list of ``resolv_conf``.

    One attempt to connect may take ``connect_timeout``, and the next address of a host is tried
    ``head_start`` after the one before it, or when that failed. At most ``max_per_destination`` connections
    go to one destination where its route says nothing else, and ``max_by_mx`` to all that are found by
    ``mx:`` together; ``connection_wait`` is the longest wait for one to become free. A connection is
    kept for ``keep_idle`` without a message, and for ``messages_per_connection`` messages.
    ``no_tls_memory`` is how long a host whose handshake failed is spoken to in the clear where that may be,
    ``silence_memory`` how long one that did not answer stands behind the other hosts of its domain.
    """

    hostname: str
    retries: Retries = field(default_factory=Retries)
    grace: float = 30.0
    max_messages: int = 500
    max_recipients: int = 100
    maildir_threads: int = 2
    maildir_deadline: float = 30.0
    stuck_threads: int = 4
    read_threads: int = 4
    connect_timeout: float = 30.0
    head_start: float = 0.25
    max_per_destination: int = 20
    max_by_mx: int = 500
    connection_wait: float = 300.0
    keep_idle: float = 10.0
    messages_per_connection: int = 100
    no_tls_memory: float = 600.0
    silence_memory: float = 600.0
    lifetime: float = 7200.0
    poll: float = 5.0
    warn_after: float = 14400.0
    ahead: float = 0.0
    bounce_size_limit: int = 50 * 1024
    mx_port: int = 25
    own_names: tuple[str, ...] = ()
    own_addresses: tuple[tuple[IPv4Address | IPv6Address, int], ...] = ()
    deadlines: ClientTimeouts = field(default_factory=ClientTimeouts)
    hosts: str = "/etc/hosts"
    resolv_conf: str = "/etc/resolv.conf"
    expand: Callable[[Address], tuple[Address, ...]] = field(default=_itself, repr=False, compare=False)
    trace: ConversationTrace | None = field(default=None, repr=False, compare=False)

    @property
    def threads(self) -> int:
        """All threads that delivery may use, with those that hang in the file system of a Maildir."""
        return self.maildir_threads + self.read_threads + self.stuck_threads

    def for_a_clock_ahead(self, seconds: float) -> DeliverySettings:
        """The same by a clock that is so much ahead of the one that says when a message was received."""
        if not seconds:
            return self
        retries = replace(self.retries, expire=self.retries.expire + seconds)
        warn_after = self.warn_after and self.warn_after + seconds
        return replace(self, retries=retries, warn_after=warn_after, ahead=self.ahead + seconds)

    @classmethod
    def from_config(cls, config: Config, runtime: Runtime, domains: Domains) -> DeliverySettings:
        """What the configuration says about it."""
        return cls(
            hostname=config.server.hostname,
            retries=Retries(config.spool.retry, config.spool.expire, uniform=runtime.randomness.uniform),
            grace=config.server.shutdown_grace,
            warn_after=config.spool.warn_after,
            bounce_size_limit=config.spool.bounce_size_limit,
            own_names=(config.server.hostname,),
            expand=domains.expand,
        )
