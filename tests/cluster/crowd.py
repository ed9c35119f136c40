"""Many clients at once: they connect to several nodes, read a greeting, and note when and what.

Each client has an address of its own below 127.0.0.0/8, which is all loopback. A crowd runs in an event loop
of its own, in this thread or, while a test does something to the servers, in another one.
"""

from __future__ import annotations

import asyncio
import itertools
import math
import random
import re
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Self

PATIENCE = 20.0
"""Seconds that a client waits for a greeting."""

_numbers = itertools.count(1)


def new_client() -> str:
    """An address that no test of this run has used."""
    number = next(_numbers)
    return f"127.{1 + number // 62500}.{1 + number // 250 % 250}.{1 + number % 250}"


@dataclass(frozen=True, slots=True)
class Visit:
    """One connection: the node, the client, when (steady seconds), what the node said after how long.

    ``greeting`` is empty when there was none: refused, reset, or silent for :data:`PATIENCE`.
    """

    node: int
    client: str
    began: float
    seconds: float
    greeting: str

    @property
    def ended(self) -> float:
        return self.began + self.seconds

    @property
    def passed(self) -> bool:
        return self.greeting.startswith("220 ")

    @property
    def retry_after(self) -> float:
        """The seconds that a refusal names."""
        found = re.search(r"try again in (\d+) seconds?$", self.greeting)
        assert found, self.greeting
        return float(found.group(1))


class _Visitor(asyncio.Protocol):
    """Takes the greeting, says QUIT, and goes."""

    def __init__(self) -> None:
        self.greeting: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self._heard = b""
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        self._heard += data
        if b"\n" in self._heard and not self.greeting.done():
            self.greeting.set_result(self._heard.partition(b"\n")[0].decode().rstrip("\r"))

    def connection_lost(self, reason: Exception | None) -> None:
        if not self.greeting.done():
            self.greeting.set_result("")

    def leave(self) -> None:
        if self._transport is not None and not self._transport.is_closing():
            self._transport.write(b"QUIT\r\n")
            self._transport.close()


async def visit(ports: Sequence[int], node: int, client: str) -> Visit:
    """One connection, from before it is made until its greeting is there."""
    began = time.monotonic()
    visitor: _Visitor | None = None
    greeting = ""
    try:
        async with asyncio.timeout(PATIENCE):
            _, visitor = await asyncio.get_running_loop().create_connection(
                _Visitor, "127.0.0.1", ports[node], local_addr=(client, 0)
            )
            greeting = await visitor.greeting
    except OSError:  # TimeoutError is one
        pass
    seconds = time.monotonic() - began
    if visitor is not None:
        visitor.leave()
    return Visit(node, client, began, seconds, greeting)


async def _burst(ports: Sequence[int], plan: Sequence[tuple[float, int, str]]) -> list[Visit]:
    began = time.monotonic()

    async def one(at: float, node: int, client: str) -> Visit:
        await asyncio.sleep(max(0.0, began + at - time.monotonic()))
        return await visit(ports, node, client)

    return list(await asyncio.gather(*(one(*step) for step in plan)))


def burst(ports: Sequence[int], clients: Sequence[str], *, within: float = 0.0) -> list[Visit]:
    """One visit of each client, spread over the nodes in turn and over ``within`` seconds."""
    plan = [
        (within * number / len(clients), number % len(ports), client) for number, client in enumerate(clients)
    ]
    return asyncio.run(_burst(ports, plan))


class Stream:
    """Clients that come at a steady pace, to the nodes in turn, until the with-block ends.

    ``next_client`` names each of them.
    """

    def __init__(
        self, ports: Sequence[int], per_second: float, next_client: Callable[[], str] = new_client
    ) -> None:
        self.visits: list[Visit] = []
        self._ports = ports
        self._pause = 1.0 / per_second
        self._next_client = next_client
        self._over = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._run()), name="stream of clients")

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._over.set()
        self._thread.join()
        self.visits.sort(key=lambda visit: visit.began)

    async def _run(self) -> None:
        due = time.monotonic()
        nodes = itertools.cycle(range(len(self._ports)))
        async with asyncio.TaskGroup() as group:
            while not self._over.is_set():
                group.create_task(self._one(next(nodes), self._next_client()))
                # A stream that falls behind does not catch up in one burst: that would be another load.
                due = max(due + self._pause, time.monotonic() - self._pause)
                await asyncio.sleep(max(0.0, due - time.monotonic()))

    async def _one(self, node: int, client: str) -> None:
        self.visits.append(await visit(self._ports, node, client))


class Adversary:
    """Bursts at all phases of a window, each of more than the limit, over all nodes at once."""

    def __init__(self, ports: Sequence[int], client: str, *, limit: int, window: float, seed: int) -> None:
        self._ports = ports
        self._client = client
        self._limit = limit
        self._window = window
        self._dice = random.Random(seed)

    def run(self, seconds: float) -> list[Visit]:
        return asyncio.run(self._run(seconds))

    async def _run(self, seconds: float) -> list[Visit]:
        visits: list[Visit] = []
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            # A full window's worth and a half at once, a trickle, or a rest that moves the phase.
            size = self._dice.choice((self._limit * 3 // 2, self._limit // 2, 1 + self._limit // 8))
            plan = [(0.0, self._dice.randrange(len(self._ports)), self._client) for _ in range(size)]
            visits += await _burst(self._ports, plan)
            await asyncio.sleep(self._dice.choice((0.0, 0.05, self._dice.uniform(0.0, self._window * 0.7))))
        return visits


class Attack:
    """An adversary at work, in another thread, while the with-block lasts and until its time is over."""

    def __init__(self, adversary: Adversary, seconds: float) -> None:
        self.visits: list[Visit] = []
        self._thread = threading.Thread(target=lambda: self.visits.extend(adversary.run(seconds)))

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._thread.join()


def surely_within(visits: Iterable[Visit], window: float) -> int:
    """The most admissions that lie in one window whatever happened between a client and its node.

    An admission happened at some time between the begin of the connection and the end of its greeting.
    """
    passed = sorted((visit for visit in visits if visit.passed), key=lambda visit: visit.began)
    most = 0
    for number, first in enumerate(passed):
        count = 0
        for other in passed[number:]:
            if other.began >= first.began + window:
                break
            count += other.ended < first.began + window
        most = max(most, count)
    return most


def worst_window(times: Iterable[int], window: int) -> int:
    """The most of these moments that lie in one half-open window of this length."""
    ordered = sorted(times)
    most = first = 0
    for number, moment in enumerate(ordered):
        while moment - ordered[first] >= window:
            first += 1
        most = max(most, number - first + 1)
    return most


def percentile(values: Iterable[float], share: float) -> float:
    """The value that ``share`` of them do not exceed."""
    ordered = sorted(values)
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)]
