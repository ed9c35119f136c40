"""The adversary against Elemta's own scripts, in a real Valkey and in real time, from several nodes."""

from __future__ import annotations

import random
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import Any

from algorithms import worst_window
from deciding import PREFIX, remote
from twisted.internet.defer import Deferred, gatherResults
from twisted.internet.task import deferLater, react
from valkeys import ValkeyServer

from elemta.limits.store import Decision, LimitSpec, Request
from elemta.limits.window import Bound

NODES = 3
IDENTITIES = 40  # each begins at another phase
WINDOW = 600_000
WINDOWS = 5
FILLED = 12_000_000  # the window of sub-buckets that are to be weighed
TICK = 0.004
TOGETHER = 20  # attempts that are on their way at once
KINDS = (("exact log", 100), ("sub-buckets", 200))


@dataclass(frozen=True)
class Attacked:
    words: str
    limit: int
    worst: int
    admitted: int
    refused: int


class Attacker:
    """Silent until a phase of the window; then tries from all nodes until refused, again and again."""

    def __init__(self, stores: list[Any], request: Request) -> None:
        self._stores = stores
        self._request = request
        self.times: list[int] = []
        self.refused = 0

    async def attack(self, reactor: Any, begin: float) -> None:
        await deferLater(reactor, begin)
        until = time.monotonic() + WINDOWS * WINDOW / 1e6
        while time.monotonic() < until:
            while not await self._tried():
                pass
            await deferLater(reactor, TICK * random.random() * 2)

    async def _tried(self) -> bool:
        """Try some times at once; whether any was refused."""
        tries = [random.choice(self._stores).acquire([self._request]) for _ in range(TOGETHER)]
        refused = 0
        for answer in await gatherResults(tries, consumeErrors=True):
            assert isinstance(answer, Decision)
            self.times += [receipt.at for receipt in answer.receipts]
            refused += not answer.granted
        self.refused += refused
        return bool(refused)


async def attacked(reactor: Any, server: ValkeyServer) -> AsyncIterator[Attacked]:
    async with AsyncExitStack() as stack:
        stores = [
            await stack.enter_async_context(remote(reactor, server, f"node{number}"))
            for number in range(NODES)
        ]
        for words, limit in KINDS:
            terms = LimitSpec(f"{words[:3]}-{limit}", (Bound.of(limit, WINDOW),))
            attackers = [Attacker(stores, Request(terms, f"192.0.2.{n}")) for n in range(IDENTITIES)]
            step = WINDOW / 1e6 / IDENTITIES
            await gatherResults(
                [
                    Deferred.fromCoroutine(attacker.attack(reactor, number * step))
                    for number, attacker in enumerate(attackers)
                ]
            )
            yield Attacked(
                f"{words}, {NODES} nodes, limit {limit} in {WINDOW / 1e6:.1f} s",
                limit,
                max(worst_window(sorted(attacker.times), WINDOW) for attacker in attackers),
                sum(len(attacker.times) for attacker in attackers),
                sum(attacker.refused for attacker in attackers),
            )


async def fill(reactor: Any, server: ValkeyServer, weigh: Callable[[str, str], None]) -> None:
    """Keys as Elemta writes them, to be weighed while they are there."""
    async with remote(reactor, server, "node") as store:
        for entries in (1, 10, 128):
            log = LimitSpec(f"log-{entries}", (Bound.of(128, 60_000_000),))
            for _ in range(entries):
                await store.acquire([Request(log, "192.0.2.1")])
            weigh(
                f"{PREFIX}{log.name}:192.0.2.1",
                f"exact log, {entries} {'entry' if entries == 1 else 'entries'}",
            )
        lease = LimitSpec("lease", leases=50)
        await store.acquire([Request(lease, "192.0.2.1")])
        weigh(f"{PREFIX}lease:192.0.2.1", "one open connection")
        buckets = LimitSpec("buckets", (Bound.of(1000, FILLED),))
        await store.acquire([Request(buckets, "192.0.2.1")])
        weigh(f"{PREFIX}buckets:192.0.2.1~", "one sub-bucket")
        until = time.monotonic() + FILLED / 1e6
        while time.monotonic() < until:
            await store.acquire([Request(buckets, "192.0.2.1")])
            await deferLater(reactor, FILLED / 1e6 / 120)
        weigh(f"{PREFIX}buckets:192.0.2.1~", "60 sub-buckets")
        await store.leave()


def attack(server: ValkeyServer, weigh: Callable[[str, str], None]) -> list[Attacked]:
    """The worst that happened to any identity, by Valkey's clock; then weighs keys."""
    found: list[Attacked] = []

    async def run(reactor: Any) -> None:
        async for one in attacked(reactor, server):
            found.append(one)
        await fill(reactor, server, weigh)

    try:
        react(lambda reactor: Deferred.fromCoroutine(run(reactor)))
    except SystemExit as end:
        if end.code:
            raise
    return found
