"""What policies reach the world with: threads, connections, HTTP, a store, and an outbox.

They belong to a policy's name and outlive a reload, so the connections that are kept stay open. What a name
has is closed when no chain has the name any more.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from elemta.policy.http_client import AgentClient
from elemta.policy.outbox import NoOutbox, NoQueue, Outbox, PolicyOutbox, QueuePage, QueueView
from elemta.policy.policy_store import MemoryStore, Store
from elemta.policy.policy_threads import PolicyThreads
from elemta.policy.streams import StreamConnector
from elemta.runtime import Runtime, Threads

if TYPE_CHECKING:
    from twisted.internet.base import ReactorBase

DEFAULT_TIMEOUT = 5.0
"""Seconds for one wait where the policy's own timeout is not known."""


@dataclass(frozen=True, slots=True)
class Backends:
    """The threads, the HTTP client, the store and the outbox of one policy's name."""

    threads: PolicyThreads
    http: AgentClient
    store: Store
    outbox: Outbox


class PolicyBackends:
    """The backends of all policies, by name.

    ``store_of`` gives the store of a name in Valkey; without it the stores are in this node's memory. There
    are outboxes with ``runtime`` only, and from :meth:`attach` on.
    """

    def __init__(
        self,
        reactor: ReactorBase,
        threads: Threads,
        store_of: Callable[[str], Store] | None = None,
        runtime: Runtime | None = None,
    ) -> None:
        self._reactor = reactor
        self._threads = threads
        self._store_of = store_of or (lambda _: MemoryStore(reactor.seconds))
        self._by_name: dict[str, Backends] = {}
        self._connectors: list[StreamConnector] = []
        self._runtime = runtime
        self._directory: Path | None = None
        self._queue: QueueView = NoQueue()

    def attach(self, directory: Path, queue: QueueView) -> None:
        """The spool is open: outboxes are in this directory, and this is the queue."""
        self._directory, self._queue = directory, queue

    async def received_since(self, at: float, after: str | None = None) -> QueuePage:
        """As :class:`QueueView`, which this is before the spool is open, too."""
        return await self._queue.received_since(at, after)

    def _outbox_of(self, name: str) -> Outbox:
        if self._runtime is None:
            return NoOutbox()

        def path() -> Path | None:
            return None if self._directory is None else self._directory / f"{name}.db"

        return PolicyOutbox(path, name, self._runtime)

    def of_policy(self, name: str) -> Backends:
        """Those of one policy's name, made when they are first asked for."""
        known = self._by_name.get(name)
        if known is None:
            threads = PolicyThreads(self._threads, name)
            client = AgentClient(self._reactor, threads)
            known = self._by_name[name] = Backends(
                threads, client, self._store_of(name), self._outbox_of(name)
            )
        return known

    def connector(self, timeout: float) -> StreamConnector:
        """What opens the connections of one policy that was built."""
        connector = StreamConnector(self._reactor, timeout)
        self._connectors.append(connector)
        return connector

    def release(self, connector: object, *, close: bool) -> None:
        """The policy that had this connector has stopped. Without ``close`` its connections stay open."""
        for known in self._connectors:
            if known is connector:
                if close:
                    known.close_all()
                if not known.open:
                    self._connectors.remove(known)
                return

    def retire(self, names: frozenset[str]) -> None:
        """No chain has these names any more."""
        for name in sorted(names):
            known = self._by_name.pop(name, None)
            if known is not None:
                known.http.close()
                known.threads.close()
                if isinstance(known.outbox, PolicyOutbox):
                    known.outbox.close()

    def close(self) -> None:
        """The daemon ends: close everything."""
        self.retire(frozenset(self._by_name))
        for connector in self._connectors:
            connector.close_all()
