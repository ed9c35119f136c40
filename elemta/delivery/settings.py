"""What delivery is told: names, limits, the retry schedule; and what it tells."""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from typing import Protocol

from elemta.config import Config
from elemta.outcome import Outcome
from elemta.smtp.client import Deadlines


class DeliveryObserver(Protocol):
    """What delivery tells the metrics, in the reactor thread."""

    def attempted(self, outcome: Outcome) -> None:
        """One attempt for one recipient came to this."""


class Unobserved:
    """An observer that does not care."""

    def attempted(self, outcome: Outcome) -> None:
        pass


@dataclass(frozen=True, slots=True)
class Retries:
    """When a deferred message is tried again. Durations are seconds.

    ``delays`` are the waits after the first, second, … attempt; the last repeats. ``expire`` counts from
    when the message was received; there is always an attempt at that moment, and none after it.
    """

    delays: tuple[float, ...] = (60.0, 300.0, 900.0, 3600.0, 10800.0, 21600.0)
    expire: float = 432000.0
    jitter: float = 0.1

    def next_attempt(self, attempts: int, received_at: float, now: float) -> float | None:
        """When to try again after ``attempts`` attempts, in seconds since the epoch; None: no more.

        The wait grows by up to ``jitter`` of it, so that what failed together does not come back together.
        """
        end = received_at + self.expire
        if now >= end:
            return None
        delay = self.delays[min(max(attempts, 1), len(self.delays)) - 1]
        return min(now + delay * random.uniform(1.0, 1.0 + self.jitter), end)  # noqa: S311


@dataclass(frozen=True, slots=True)
class DeliverySettings:
    """``hostname`` is this host's name for next hops and Maildir file names; durations are seconds.

    At most ``max_messages`` messages are under way at one time and ``max_recipients`` go with one
    transaction; ``maildir_threads`` write to Maildirs, ``read_threads`` read contents for next hops;
    ``grace`` is how long a stop waits for deliveries under way; ``lifetime`` bounds a connection as a whole;
    ``poll`` is the longest time between two looks into the queue.
    """

    hostname: str
    retries: Retries = field(default_factory=Retries)
    grace: float = 30.0
    max_messages: int = 500
    max_recipients: int = 100
    maildir_threads: int = 2
    read_threads: int = 4
    connect_timeout: float = 30.0
    lifetime: float = 7200.0
    poll: float = 5.0
    deadlines: Deadlines = field(default_factory=Deadlines)

    @property
    def threads(self) -> int:
        """All threads that delivery may use."""
        return self.maildir_threads + self.read_threads

    @classmethod
    def from_config(cls, config: Config) -> DeliverySettings:
        """What the configuration says about it."""
        return cls(
            hostname=config.server.hostname,
            retries=Retries(config.spool.retry, config.spool.expire),
            grace=config.server.shutdown_grace,
        )
