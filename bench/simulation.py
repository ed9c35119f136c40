"""Simulates a fleet that is larger than the machines available, event by event, from measured costs.

The model and its assumptions:

- Messages arrive at each node at random (Poisson), each on a connection of its own. All nodes are alike,
  and there are so many clients and senders that a Cluster's servers get equal parts.
- A node is one process on a core of its own. Its event loop takes turns: a turn does all that is ready. A
  message takes the CPU of a node that was measured, in three equal parts: up to the question about the
  client, from its answer to the question about the sender, and from that to the end, where the lease is
  given back.
- The questions of one turn go to Valkey as one call of at most 32. On a Cluster, where each client is a key
  of its own, each is one call, and all calls for one server are one write.
- A Valkey server does one thing at a time, on a core of its own, in the order of arrival. The cost of a
  write, a call and a question in it was measured, with a replica behind the server where there are
  Sentinels or a Cluster. It is multiplied by the ratio of the cost in the live runs to that in a loop of
  its own. The cost of idle nodes is added on every server.
- The network takes the same time for all, each way, loses nothing, and is never full.
- Disk, next hops and clients cause no waiting here: they move the load, not Valkey's part of it.

The model leaves out failures (tests show those), hot keys, floods (a node remembers refusals, and they
make no call), and what a node does when Valkey is late: it would count by itself then.
"""

from __future__ import annotations

import heapq
import itertools
import random
import statistics
from collections import deque
from dataclasses import dataclass, field
from enum import Enum

from costs import BATCH, Costs

DEADLINE = 0.05
PARTS = 3
MESSAGES = 40_000
SHORTEST, LONGEST = 0.4, 20.0
SEED = 20


@dataclass(frozen=True)
class Shape:
    """What nodes count in: so many ``servers`` that share the keys, and whether they are asked key by key."""

    name: str
    servers: int
    by_key: bool


SINGLE = Shape("one server", 1, by_key=False)
SENTINEL = Shape("Sentinel", 1, by_key=False)
CLUSTER = Shape("Cluster of 3", 3, by_key=True)
LARGE_CLUSTER = Shape("Cluster of 6", 6, by_key=True)


@dataclass(frozen=True)
class Fleet:
    """So many nodes with so many messages a second each; ``message`` is what one costs it, in CPU seconds."""

    nodes: int
    rate: float
    message: float
    shape: Shape
    costs: Costs
    idle: float
    way: float


@dataclass(frozen=True)
class Simulated:
    """``busy`` is the share of a core that the busiest server needs. Waits, in seconds, end with the answer.

    ``late`` is the share of questions that waited longer than the deadline.
    """

    offered: float
    done: float
    calls: float
    together: float
    busy: float
    p50: float
    p99: float
    late: float

    @property
    def overloaded(self) -> bool:
        """More is asked than the servers can answer."""
        return self.busy >= 1.0


class _Happens(Enum):
    ARRIVAL = 1
    TURN = 2
    ANSWER = 3


@dataclass(slots=True)
class _Node:
    ready: deque[int] = field(default_factory=deque)  # the parts of messages that can go on
    turning: bool = False


class Simulation:
    """One fleet for so many seconds."""

    def __init__(self, fleet: Fleet, seconds: float, seed: int = SEED) -> None:
        self._fleet = fleet
        self._seconds = seconds
        self._dice = random.Random(seed)
        self._nodes = [_Node() for _ in range(fleet.nodes)]
        self._free = [0.0] * fleet.shape.servers
        self._busy = [0.0] * fleet.shape.servers
        self._events: list[tuple[float, int, _Happens, int, int]] = []
        self._order = itertools.count()
        self._waits: list[float] = []
        self._calls = self._asked = self._done = 0

    def run(self) -> Simulated:
        for number in range(len(self._nodes)):
            self._next_arrival(number, 0.0)
        while self._events:
            now, _, what, number, part = heapq.heappop(self._events)
            if now > self._seconds:
                break
            if what is _Happens.TURN:
                self._turn_ended(number, now, part)
                continue
            node = self._nodes[number]
            if what is _Happens.ARRIVAL:
                node.ready.append(0)
                self._next_arrival(number, now)
            else:
                # So many questions about the same part were answered by one server.
                node.ready.extend([part % PARTS] * (part // PARTS))
            self._begin_turn(number, now)
        return self._summary()

    def _at(self, when: float, what: _Happens, number: int, part: int = 0) -> None:
        heapq.heappush(self._events, (when, next(self._order), what, number, part))

    def _next_arrival(self, number: int, now: float) -> None:
        self._at(now + self._dice.expovariate(self._fleet.rate), _Happens.ARRIVAL, number)

    def _begin_turn(self, number: int, now: float) -> None:
        node = self._nodes[number]
        if node.turning or not node.ready:
            return
        node.turning = True
        size = len(node.ready)
        self._at(now + size * self._fleet.message / PARTS, _Happens.TURN, number, size)

    def _turn_ended(self, number: int, now: float, size: int) -> None:
        """What was asked in it goes out."""
        node = self._nodes[number]
        asked = [0] * PARTS
        for _ in range(size):
            asked[node.ready.popleft()] += 1
        self._done += asked[-1]
        for server in range(self._fleet.shape.servers):
            self._write(number, now, server, [self._share(count, server) for count in asked])
        node.turning = False
        self._begin_turn(number, now)

    def _share(self, count: int, server: int) -> int:
        """How many of the keys are this server's."""
        servers = self._fleet.shape.servers
        if servers == 1:
            return count
        return sum(self._dice.randrange(servers) == server for _ in range(count))

    def _write(self, number: int, now: float, server: int, asked: list[int]) -> None:
        questions = asked[0] + asked[1]
        everything = sum(asked)
        if not everything:
            return
        in_batches = -(-questions // BATCH) + -(-asked[-1] // BATCH)
        calls = everything if self._fleet.shape.by_key else in_batches
        self._calls += calls
        self._asked += everything
        took = self._fleet.costs.of(1, calls, everything)
        begun = max(self._free[server], now + self._fleet.way)
        self._free[server] = begun + took
        self._busy[server] += took
        answered = begun + took + self._fleet.way
        self._waits += [answered - now] * questions
        for part in (0, 1):
            if asked[part]:
                self._at(answered, _Happens.ANSWER, number, asked[part] * PARTS + part + 1)

    def _summary(self) -> Simulated:
        fleet = self._fleet
        idle = fleet.idle * fleet.nodes
        hundredths = statistics.quantiles(self._waits, n=100)
        return Simulated(
            fleet.rate * fleet.nodes,
            self._done / self._seconds,
            self._calls / self._seconds,
            self._asked / self._calls,
            max(self._busy) / self._seconds + idle,
            hundredths[49],
            hundredths[98],
            sum(wait > DEADLINE for wait in self._waits) / len(self._waits),
        )


def simulate(fleet: Fleet) -> Simulated:
    """For as long as some ten thousand messages take."""
    seconds = MESSAGES / (fleet.rate * fleet.nodes)
    return Simulation(fleet, min(LONGEST, max(SHORTEST, seconds))).run()
