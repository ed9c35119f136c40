"""What the script calls of a message cost Valkey, taken apart into parts that a simulation can put together.

A message on a connection of its own asks twice, about its client and about its sender, and gives back its
connection's lease: three calls when a node is quiet; shared with other messages when it is busy.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import raw
from deciding import NODE, PATIENCE, PREFIX, address, connected
from servers import BenchError, free_port
from twisted.internet.defer import ensureDeferred, gatherResults
from twisted.internet.task import deferLater, react
from valkeys import ValkeyServer, Word, valkey

from elemta.limits.store import LimitSpec, Request
from elemta.limits.valkey_calls import DECISIONS
from elemta.limits.valkey_store import ValkeyStore
from elemta.limits.window import Bound
from elemta.runtime import Runtime

ASKED = 3
"""What a message wants of Valkey: two decisions, and a lease that is given back."""
BATCH = DECISIONS
PIPELINE = 16
SINGLE = 6_000
BATCHES = 400
ROUNDS = 5
SECONDS = 1.0
IP = LimitSpec("ip", (Bound.of(10_000_000, 60_000_000),))
LEASE = LimitSpec("connections-per-ip", leases=1000)
SENDER = LimitSpec("mail-per-sender", (Bound.of(10_000_000, 60_000_000),))
Calls = list[tuple[Any, list[Word]]]


@dataclass(frozen=True)
class Costs:
    """Seconds of Valkey's CPU: for a write that it reads and answers, a call in it, a thing asked in that."""

    write: float
    call: float
    asked: float

    def of(self, writes: float, calls: float, asked: float) -> float:
        return writes * self.write + calls * self.call + asked * self.asked

    def times(self, factor: float) -> Costs:
        return Costs(self.write * factor, self.call * factor, self.asked * factor)

    @classmethod
    def solved(cls, one: float, pipelined: float, together: float) -> Costs:
        """From the cost of what is asked alone in a call and a write; 16 calls in a write; many in a call."""
        write = max(0.0, (one - pipelined) * PIPELINE / (PIPELINE - 1))
        call_and_asked = pipelined - write / PIPELINE
        asked = (BATCH * together - write - call_and_asked) / (BATCH - 1)
        return cls(write, call_and_asked - asked, asked)


async def _recorded(reactor: Any, server: ValkeyServer, each: int, times: int) -> Calls:
    """The calls that so many messages at a time make, so often."""
    calls: Calls = []
    async with connected(reactor, server, PATIENCE) as connection:
        store = ValkeyStore(connection, prefix=PREFIX, node_id=NODE, runtime=Runtime.of(reactor))
        run = connection.run

        def record(script: Any, keys: Any, args: Any, **options: Any) -> Any:
            calls.append((script, [len(keys), *keys, *args]))
            return run(script, keys, args, **options)

        connection.run = record  # type: ignore[method-assign]
        for first in range(0, each * times, each):
            clients = [str(address(number % 10_000)) for number in range(first, first + each)]
            answers = await gatherResults(
                [store.acquire([Request(IP, client), Request(LEASE, client)]) for client in clients]
            )
            await gatherResults([store.acquire([Request(SENDER, f"{client}@x")]) for client in clients])
            wanted = len(calls) + 1
            for answer in answers:
                store.release([receipt for receipt in answer.receipts if receipt.request.spec is LEASE])
            late = time.monotonic() + PATIENCE
            while len(calls) < wanted:
                if time.monotonic() > late:
                    raise BenchError("leases are not given back")
                await deferLater(reactor, 0)
        connection.run = run  # type: ignore[method-assign]
    # A machine that stumbles cuts a batch in two now and then.
    if not ASKED * times <= len(calls) <= ASKED * times * 1.02:
        raise BenchError(f"{times} times {each} messages made {len(calls)} calls")
    return calls


async def _measured(reactor: Any) -> tuple[Costs, Costs]:
    """Of a server alone, and of one with a replica, in turns: the machine is never the same for long."""
    with ExitStack() as stack:
        port = free_port()
        servers = [stack.enter_context(valkey()), stack.enter_context(valkey("--port", str(port)))]
        replica = stack.enter_context(valkey("--replicaof", f"127.0.0.1 {port}"))
        _wait_for(lambda: _linked(replica), "a replica")
        single = await _recorded(reactor, servers[0], 1, SINGLE)
        batches = await _recorded(reactor, servers[0], BATCH, BATCHES)
        ways = ((single, 1, 1), (single, 1, PIPELINE), (batches, BATCH, 1))
        figures: list[list[list[float]]] = [[[] for _ in ways] for _ in servers]
        for _ in range(ROUNDS):
            for place, (calls, each, together) in enumerate(ways):
                for server, found in zip(servers, figures, strict=True):
                    row = raw.replayed(server, calls, each, together, SECONDS)
                    found[place].append(float(row["valkey cpu us"]) / 1e6)
        if not _linked(replica):
            raise BenchError("the replica was lost")
    alone, replicated = (Costs.solved(*map(statistics.median, found)) for found in figures)
    return alone, replicated


def _linked(replica: ValkeyServer) -> bool:
    with replica.client() as client:
        return client.info("replication").get("master_link_status") == "up"


def _wait_for(done: Callable[[], bool], what: str) -> None:
    late = time.monotonic() + PATIENCE
    while not done():
        if time.monotonic() > late:
            raise BenchError(f"{what} is not there")
        time.sleep(0.05)


def measured() -> tuple[Costs, Costs]:
    """Of a server alone, and of one with a replica. In a process of its own, because a reactor runs once."""
    command = [sys.executable, str(Path(__file__))]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        raise BenchError("the costs of calls were not measured")
    alone, replicated = (Costs(**each) for each in json.loads(done.stdout))
    return alone, replicated


def main() -> None:
    async def run(reactor: Any) -> None:
        print(json.dumps([asdict(costs) for costs in await _measured(reactor)]))

    react(lambda reactor: ensureDeferred(run(reactor)))


if __name__ == "__main__":
    main()
