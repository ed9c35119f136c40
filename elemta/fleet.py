"""This node among the others: where limits are counted, and which other nodes count there."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from elemta.config import Config
from elemta.limits import ILimitStore, MemoryStore
from elemta.limits.refusals import Refused
from elemta.limits.store import Request
from elemta.ops.admin_operations import LimiterStatus, NodeStatus
from elemta.spool.lease import SpoolLease


@dataclass(frozen=True, slots=True)
class RefusalElsewhere:
    """A node refuses this identity from memory, for ``wait`` more seconds."""

    node_id: str
    limit: str
    identity: str
    wait: float

    @property
    def key(self) -> str:
        return f"{self.limit}:{self.identity}"


class Member(Protocol):
    """What the fleet asks of this node."""

    @property
    def sessions(self) -> int:
        """Open ones."""

    @property
    def queued(self) -> int:
        """Messages in the queue, as of the last few seconds."""

    def refused(self) -> Sequence[Refused]:
        """The identities that this node refuses from memory."""

    def forget(self, limit: str, identity: str) -> None:
        """Another node has reset a limit for an identity: ask anew."""


class Fleet(Protocol):
    """The nodes that count together, as this one sees them."""

    @property
    def store(self) -> ILimitStore:
        """Where limits are counted."""

    def start(self, member: Member) -> None:
        """Look for the others, in the background."""

    async def joined(self) -> None:
        """Return when limits are counted together, or after a moment in which that did not come to pass."""

    async def stop(self) -> None:
        """Leave the others, within seconds, whatever they say."""

    def status(self) -> LimiterStatus: ...

    async def others(self) -> Sequence[NodeStatus]:
        """The other nodes that live. Raises StoreUnavailable."""

    async def refusals(self) -> Sequence[RefusalElsewhere]:
        """What other nodes refuse by themselves now; nothing where they can't be asked."""

    async def tell_reset(self, request: Request) -> None:
        """Let the other nodes forget, too, what each has counted for itself. Raises StoreUnavailable."""

    def lease(self, spool_id: str, place: str) -> SpoolLease | None:
        """The lease that shows the owner of a spool to other nodes; None where there are no others."""


def endpoints(config: Config) -> str:
    """Where a node takes mail, in the words of its configuration."""
    return " ".join(listener.endpoint for listener in config.listeners)


class Alone:
    """A node that counts in its own memory, and knows no other."""

    def __init__(self, store: ILimitStore | None = None) -> None:
        self.store: ILimitStore = MemoryStore() if store is None else store

    def start(self, member: Member) -> None:
        """There are no other nodes."""

    async def joined(self) -> None:
        """There are no other nodes."""

    async def stop(self) -> None:
        """There are no other nodes."""

    def status(self) -> LimiterStatus:
        return LimiterStatus()

    async def others(self) -> Sequence[NodeStatus]:
        return ()

    async def refusals(self) -> Sequence[RefusalElsewhere]:
        return ()

    async def tell_reset(self, request: Request) -> None:
        """There are no other nodes."""

    def lease(self, spool_id: str, place: str) -> SpoolLease | None:  # noqa: ARG002 - there are no other nodes
        return None
