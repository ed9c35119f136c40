"""What delivery needs of the spool, and no more."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import BinaryIO, Protocol

from twisted.internet.defer import Deferred

from elemta.address import Address
from elemta.delivery.bounces import BounceSpool
from elemta.outcome import Outcome
from elemta.spool.records import (
    HeldPart,
    HoldCause,
    LaneDue,
    MessageRecord,
    OwedNotice,
    Page,
    Plan,
    PlannedPart,
    QueuedMessage,
)


class Queue(BounceSpool, Protocol):
    """The durable queue; :class:`elemta.spool.Spool` is one."""

    @property
    def healthy(self) -> bool:
        """Whether its disk is trusted. While it is not, nothing can be recorded."""

    @property
    def settled(self) -> bool:
        """Whether an attempt may be made: the disk is trusted, and every earlier result is written."""

    async def lanes(self, after: str | None, limit: int) -> list[tuple[str, float | None]]:
        """Lanes by name, and when something is due in each: 0.0 now, None where all is held."""

    async def due(
        self,
        now: float,
        wanted: Mapping[str, int],
        excluding: Mapping[str, Collection[tuple[str, int]]],
        until: Mapping[str, float],
    ) -> list[LaneDue]:
        """For each of these lanes at most so many parts to attempt now, without those named.

        In lanes that ``until`` names those are due, too, whose time is not after that one.
        """

    async def older(
        self, before: float, after: int = -1, limit: int = 500, *, unwarned: bool = False
    ) -> Page:
        """Parts that wait, of messages received at ``before`` or earlier."""

    async def show(self, queue_id: str) -> MessageRecord:
        """All that is known of a message."""

    async def open_content(self, queue_id: str) -> BinaryIO:
        """The whole message as it is sent on."""

    def settle(
        self,
        queue_id: str,
        outcomes: Sequence[Outcome],
        *,
        part: int | None = None,
        retry_at: float | None,
        hold_reason: str | None,
        warned: bool = False,
        attempted: bool = True,
        hold: HoldCause = HoldCause.FAULT,
        owes: Collection[Address] = (),
    ) -> Deferred[None]:
        """Record an attempt; fires when that is durable."""

    async def owed(self, after: str | None, limit: int) -> list[OwedNotice]:
        """Messages of whose deliveries a sender has still to hear, from behind a queue id on."""

    async def write_off(self, owed: OwedNotice) -> None:
        """Let nobody hear of these deliveries."""

    async def held(self, before: float, limit: int) -> list[HeldPart]:
        """Parts whose hold has an end and began at ``before`` or earlier."""

    async def end_hold(self, held: HeldPart, outcomes: Sequence[Outcome], reason: str) -> None:
        """Let a part on hold go, unless an operator cares for it now."""

    def assign(self, queue_id: str, part: int, ways: Sequence[PlannedPart]) -> Deferred[None]:
        """Let recipients of a part go other ways; fires when that is durable."""

    def use_plan(self, plan: Plan) -> None:
        """Ask this which ways a new message goes."""

    def on_committed(self, callback: Callable[[QueuedMessage], None]) -> None:
        """Be called with every part of a message that comes in, after its commit."""

    def on_due(self, callback: Callable[[Collection[str]], None]) -> None:
        """Be called with lanes in which something became due otherwise than by time."""

    def on_settled(self, callback: Callable[[], None]) -> None:
        """Be called when ``settled`` is true again."""
