"""Simulates clients that one limit refused together: when each comes again, and what the limit says then.

The limit and the times in its replies are the daemon's own code, on a simulated clock. The schedules
are what the programs do by default, as their documentation says it:

- Postfix: a message waits as long as it is old, at least ``minimal_backoff_time`` (300 s) and at most
  ``maximal_backoff_time`` (4000 s), and is taken at the next scan of the queue, every ``queue_run_delay``
  (300 s): https://www.postfix.org/postconf.5.html, https://www.postfix.org/qmgr.8.html
- Exim: ``F,2h,15m; G,16h,1h,1.5; F,4d,6h``, the retry rule of the default configuration, at the next run of
  the queue; Debian runs it every 30 minutes:
  https://www.exim.org/exim-html-current/doc/html/spec_html/ch-retry_configuration.html
- Exchange: ``MessageRetryInterval``, 15 minutes:
  https://learn.microsoft.com/en-us/previous-versions/office/exchange-server-api/ff345508(v=exchg.150)
- Mailgun: 10, 15 and 30 minutes, 1, 2 and 4 hours:
  https://help.mailgun.com/hc/en-us/articles/28956111811355-Will-Mailgun-retry-my-failed-messages
- KumoMTA: ``retry_interval``, 20 minutes, doubled at each attempt, with jitter. The documentation does not
  say how much; here it is up to a tenth more:
  https://docs.kumomta.com/reference/kumo/make_queue_config/retry_interval

Each client is a host with one message. Hosts began their queue runs at times of their own.
"""

from __future__ import annotations

import heapq
import math
import random
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from ipaddress import IPv4Address

from twisted.internet.task import Clock

from elemta.address import Address
from elemta.config import Counts, LimitConfig, Rate, ResourcesConfig
from elemta.envelope import Recipient
from elemta.limits import Charge, Limiter, LimitRefusal, LocalStore, rules_from_config
from elemta.stage import Stage

MINUTE, HOUR = 60.0, 3600.0
LONGEST = 24 * HOUR
SEED = 15

Told = Callable[[LimitRefusal], float]
"""The seconds that a reply names."""


def exact(refusal: LimitRefusal) -> float:
    """The reply before times were spread."""
    return float(max(1, math.ceil(refusal.retry_after)))


def spread(refusal: LimitRefusal) -> float:
    """The reply as it is."""
    wait = refusal.retry_after if refusal.reply_wait is None else refusal.reply_wait
    return float(max(1, math.ceil(wait)))


@dataclass(frozen=True)
class Attempt:
    """A refused attempt of a client: when, how old its message was, and the seconds in the reply."""

    now: float
    age: float
    number: int
    told: float


Schedule = Callable[[random.Random], Callable[[Attempt], float]]
"""Makes one host: from an attempt that was refused it knows when it comes again."""


def reader(dice: random.Random) -> Callable[[Attempt], float]:
    """A program that comes at the time in the reply, and not exactly then."""
    return lambda last: last.now + last.told + dice.uniform(0.0, 0.2)


def postfix(dice: random.Random) -> Callable[[Attempt], float]:
    phase = dice.uniform(0.0, 5 * MINUTE)
    return lambda last: _next_run(last.now + min(max(5 * MINUTE, last.age), 4000.0), phase, 5 * MINUTE)


def exim(dice: random.Random) -> Callable[[Attempt], float]:
    phase = dice.uniform(0.0, 30 * MINUTE)

    def again(last: Attempt) -> float:
        if last.age < 2 * HOUR:
            wait = 15 * MINUTE
        elif last.age < 16 * HOUR:
            wait = HOUR * 1.5 ** max(0, int(math.log(last.age / (2 * HOUR), 1.5)))
        else:
            wait = 6 * HOUR
        return _next_run(last.now + wait, phase, 30 * MINUTE)

    return again


def exchange(_dice: random.Random) -> Callable[[Attempt], float]:
    return lambda last: last.now + 15 * MINUTE


def mailgun(_dice: random.Random) -> Callable[[Attempt], float]:
    waits = [10 * MINUTE, 15 * MINUTE, 30 * MINUTE, HOUR, 2 * HOUR, 4 * HOUR]
    return lambda last: last.now + (waits[last.number] if last.number < len(waits) else math.inf)


def kumomta(dice: random.Random) -> Callable[[Attempt], float]:
    return lambda last: last.now + 20 * MINUTE * 2**last.number * dice.uniform(1.0, 1.1)


def _next_run(due: float, phase: float, every: float) -> float:
    return phase + math.ceil((due - phase) / every) * every


SCHEDULES: dict[str, Schedule] = {
    "programs that read the time": reader,
    "Postfix": postfix,
    "Exim": exim,
    "Exchange": exchange,
    "Mailgun": mailgun,
    "KumoMTA": kumomta,
}


@dataclass
class _Client:
    client_ip: IPv4Address
    listener: str = "mx"
    helo: str = ""
    user: str | None = None
    sender: Address = field(default_factory=lambda: Address("a", "example.org"))
    recipients: Sequence[Recipient] = ()
    size: int = 0


@dataclass(frozen=True)
class Storm:
    """What became of the clients.

    ``busiest`` is the most attempts in one second after the first, ``refused`` all attempts after a client's
    first that were refused, ``passed`` the clients that passed, and ``last`` the seconds until the last did.
    """

    arrivals: Counter[int]
    refused: int
    passed: int
    last: float

    @property
    def busiest(self) -> int:
        return max((count for second, count in self.arrivals.items() if second > 0), default=0)


def storm(
    schedules: Sequence[Schedule], told: Told, *, clients: int = 1000, rate: Rate, seed: int = SEED
) -> Storm:
    """Refuse ``clients`` in the first second by one limit for all; each comes again until it passes.

    They take their schedules by turns.
    """
    clock, dice = Clock(), random.Random(seed)
    limit = LimitConfig(name="all", per=(), counts=Counts.MESSAGES, rates=(rate,))
    rules = rules_from_config(ResourcesConfig(max_requests_per_window=0), [limit])
    limiter = Limiter(rules, LocalStore(clock))
    for _ in range(rate.limit):
        _refused(limiter, _Client(IPv4Address("192.0.2.1")))
    hosts = [schedules[number % len(schedules)](dice) for number in range(clients)]
    due = [(dice.random(), number, 0) for number in range(clients)]
    began = {number: at for at, number, _ in due}
    heapq.heapify(due)
    arrivals: Counter[int] = Counter()
    refused = passed = 0
    last = 0.0
    while due and due[0][0] < LONGEST:
        now, number, attempts = heapq.heappop(due)
        clock.advance(max(0.0, now - clock.seconds()))
        arrivals[int(now)] += 1
        refusal = _refused(limiter, _Client(IPv4Address(0x0A000000 + number)))
        if refusal is None:
            passed, last = passed + 1, now
            continue
        refused += attempts > 0
        again = hosts[number](Attempt(now, now - began[number], attempts, told(refusal)))
        heapq.heappush(due, (again, number, attempts + 1))
    return Storm(arrivals, refused, passed, last)


def _refused(limiter: Limiter, client: _Client) -> LimitRefusal | None:
    charge = limiter.charge(Stage.MAIL, client, client)
    if not isinstance(charge, Charge):
        raise TypeError("limits in memory answer at once")
    return charge.refusal


def storms(rate: Rate, clients: int) -> Iterator[tuple[str, Storm, Storm]]:
    """Each schedule alone, then all of them by turns: with exact times, and with those that clients get."""
    mixed = {"all six by turns": tuple(SCHEDULES.values())}
    for name, schedules in {**{name: (one,) for name, one in SCHEDULES.items()}, **mixed}.items():
        before, after = (storm(schedules, told, clients=clients, rate=rate) for told in (exact, spread))
        yield name, before, after
