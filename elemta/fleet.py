"""This node among the others: where limits are counted, and who else counts there."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from elemta.limits import ILimitStore, MemoryStore
from elemta.limits.store import Request
from elemta.ops.admin_operations import LimiterStatus, NodeStatus


@dataclass(frozen=True, slots=True)
class RefusalElsewhere:
    """A node refuses this identity without asking anybody, for ``wait`` more seconds."""

    node_id: str
    limit: str
    identity: str
    wait: float

    @property
    def key(self) -> str:
        return f"{self.limit}:{self.identity}"


class Fleet(Protocol):
    """The nodes that count together, as this one sees them."""

    @property
    def store(self) -> ILimitStore:
        """Where limits are counted."""

    def status(self) -> LimiterStatus: ...

    async def others(self) -> Sequence[NodeStatus]:
        """The other nodes that live. Raises StoreUnavailable."""

    async def refusals(self) -> Sequence[RefusalElsewhere]:
        """What other nodes refuse by themselves now; nothing where they can't be asked."""

    async def tell_reset(self, request: Request) -> None:
        """Let the other nodes know that a limit was reset for an identity."""


class Alone:
    """A node that counts in its own memory, and knows no other."""

    def __init__(self, store: ILimitStore | None = None) -> None:
        self.store: ILimitStore = MemoryStore() if store is None else store

    def status(self) -> LimiterStatus:
        return LimiterStatus()

    async def others(self) -> Sequence[NodeStatus]:
        return ()

    async def refusals(self) -> Sequence[RefusalElsewhere]:
        return ()

    async def tell_reset(self, request: Request) -> None:
        """There is nobody to tell."""
