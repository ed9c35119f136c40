"""What delivery needs of the spool, and no more."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import BinaryIO, Protocol

from twisted.internet.defer import Deferred

from elemta.outcome import Outcome
from elemta.spool.records import QueuedMessage


class Queue(Protocol):
    """The durable queue; :class:`elemta.spool.Spool` is one."""

    async def due(self, now: float, limit: int, excluding: Collection[str]) -> list[QueuedMessage]:
        """Messages whose next attempt is due, oldest first, without those named."""

    async def next_due(self, excluding: Collection[str]) -> float | None:
        """When the next message is due, in seconds since the epoch; None where none waits."""

    async def open_content(self, queue_id: str) -> BinaryIO:
        """The whole message as it is sent on."""

    def settle(
        self, queue_id: str, outcomes: Sequence[Outcome], *, retry_at: float | None, hold_reason: str | None
    ) -> Deferred[None]:
        """Record an attempt; fires when that is durable."""

    def on_committed(self, callback: Callable[[QueuedMessage], None]) -> None:
        """Be called with every message that comes in, after its commit."""

    def on_due(self, callback: Callable[[], None]) -> None:
        """Be called when messages became due otherwise than by time."""
