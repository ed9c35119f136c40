"""A worker in a process of its own: ``python -m tests.support.worker_process FD COUNT``.

It asks for so many charges and as many leases of one limit, prints how many it got of each, and lives until
the channel closes.
"""

from __future__ import annotations

import sys
from typing import Any

from twisted.internet import reactor
from twisted.internet.defer import Deferred, gatherResults

from elemta.limits.memory import LocalStore
from elemta.limits.store import LimitSpec, Request
from elemta.limits.window import Bound
from elemta.workers.channel import Channel, open_channel
from elemta.workers.limit_client import worker_store

RATE = LimitSpec("rate", (Bound.of(100, 3_600_000_000),))
OPEN = LimitSpec("open", leases=40)


class OneHost:
    """No other nodes, and two workers."""

    node_id = "here"
    live = 2

    def announce_reset(self, limit: str, identity: str) -> None:
        """No other node."""

    def on_reset(self, callback: Any) -> None:
        """No other node."""


async def work(channel: Channel, count: int) -> None:
    store = worker_store(reactor, channel, LocalStore(reactor), nodes=OneHost(), deadline=20.0)
    store.start()
    assert await store.joined(20.0)
    charged = await gatherResults([store.acquire([Request(RATE, "jane")]) for _ in range(count)])
    held = await gatherResults([store.acquire([Request(OPEN, "jane")]) for _ in range(count)])
    print(sum(one.granted for one in charged), sum(one.granted for one in held), flush=True)
    gone: Deferred[str] = Deferred()
    channel.on_close(gone.callback)
    await gone


def main() -> None:
    channel = Channel(reactor, "the supervisor")
    open_channel(reactor, channel, int(sys.argv[1]))
    done = Deferred.fromCoroutine(work(channel, int(sys.argv[2])))
    done.addErrback(lambda failure: failure.printTraceback())
    done.addBoth(lambda _: reactor.stop())
    reactor.run()


if __name__ == "__main__":
    main()
