"""What policies reach the world with: threads, connections, HTTP, and a store.

They belong to a policy's name and outlive a reload, so the connections that are kept stay open. What a name
has is closed when no chain has the name any more.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from elemta.policy.http_client import AgentClient
from elemta.policy.policy_store import MemoryStore, Store
from elemta.policy.policy_threads import PolicyThreads
from elemta.policy.streams import StreamConnector
from elemta.runtime import Threads

if TYPE_CHECKING:
    from twisted.internet.base import ReactorBase

DEFAULT_TIMEOUT = 5.0
"""Seconds for one wait where the policy's own timeout is not known."""


@dataclass(frozen=True, slots=True)
class Backends:
    """The threads, the HTTP client and the store of one policy's name."""

    threads: PolicyThreads
    http: AgentClient
    store: Store


class PolicyBackends:
    """The backends of all policies, by name.

    ``store_of`` gives the store of a name in Valkey; without it the stores are in this node's memory.
    """

    def __init__(
        self,
        reactor: ReactorBase,
        threads: Threads,
        store_of: Callable[[str], Store] | None = None,
    ) -> None:
        self._reactor = reactor
        self._threads = threads
        self._store_of = store_of or (lambda _: MemoryStore(reactor.seconds))
        self._by_name: dict[str, Backends] = {}
        self._connectors: list[StreamConnector] = []

    def of_policy(self, name: str) -> Backends:
        """Those of one policy's name, made when they are first asked for."""
        known = self._by_name.get(name)
        if known is None:
            threads = PolicyThreads(self._threads, name)
            client = AgentClient(self._reactor, threads)
            known = self._by_name[name] = Backends(threads, client, self._store_of(name))
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

    def close(self) -> None:
        """The daemon ends: close everything."""
        self.retire(frozenset(self._by_name))
        for connector in self._connectors:
            connector.close_all()
