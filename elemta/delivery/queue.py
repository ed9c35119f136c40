"""What delivery needs of the spool, and no more.

:func:`why_unreadable` says whether a queued message can still be read. It is asked before one is given up,
because the notice says what is lost.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import BinaryIO, Protocol

from twisted.internet.defer import Deferred

from elemta.address import Address
from elemta.delivery.bounces import BounceSpool
from elemta.errors import SpoolError, UnknownMessage
from elemta.message.notice import Notice
from elemta.outcome import Outcome
from elemta.spool.records import (
    ArrivalPage,
    DestinationDue,
    HeldPart,
    HoldCause,
    MessageRecord,
    Plan,
    PlannedPart,
    QueuedMessage,
)


class DeliveryQueue(BounceSpool, Protocol):
    """The durable queue; :class:`elemta.spool.Spool` is one."""

    @property
    def healthy(self) -> bool:
        """Whether its disk is trusted. While it is not, nothing can be recorded."""

    @property
    def settled(self) -> bool:
        """Whether an attempt may be made: the disk is trusted, and every earlier result is written."""

    async def destinations(self, after: str | None, limit: int) -> list[tuple[str, float | None]]:
        """Destinations by name, and when something is due in each: 0.0 now, None where all is held."""

    async def due(
        self,
        now: float,
        wanted: Mapping[str, int],
        excluding: Mapping[str, Collection[tuple[str, int]]],
        until: Mapping[str, float],
    ) -> list[DestinationDue]:
        """For each of these destinations at most so many parts to attempt now, without those named.

        In destinations that ``until`` names those are due, too, whose time is not after that one.
        """

    async def older(
        self, before: float, after: int = -1, limit: int = 500, *, unwarned: bool = False
    ) -> ArrivalPage:
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

    async def owed(self, after: str | None, limit: int) -> list[Notice]:
        """Messages of whose deliveries a sender has still to hear, from behind a queue id on."""

    async def write_off(self, owed: Notice) -> None:
        """Drop the notices of these deliveries."""

    async def held(self, before: float, limit: int) -> list[HeldPart]:
        """Parts whose hold has an end and began at ``before`` or earlier."""

    async def end_hold(self, held: HeldPart, outcomes: Sequence[Outcome], reason: str) -> None:
        """Let a part on hold go, unless an operator cares for it now."""

    def assign(self, queue_id: str, part: int, parts: Sequence[PlannedPart]) -> Deferred[None]:
        """Give recipients of a part other destinations; fires when that is durable."""

    def use_plan(self, plan: Plan) -> None:
        """Ask this for the parts of each new message."""

    def on_committed(self, callback: Callable[[QueuedMessage], None]) -> None:
        """Be called with every part of a message that comes in, after its commit."""

    def on_due(self, callback: Callable[[Collection[str]], None]) -> None:
        """Be called with destinations in which something became due otherwise than by time."""

    def on_settled(self, callback: Callable[[], None]) -> None:
        """Be called when ``settled`` is true again."""


_CHUNK = 64 * 1024


async def why_unreadable(queue: DeliveryQueue, message: QueuedMessage) -> str | None:
    """What is wrong with the stored message; None where it is whole, or gone."""
    try:
        content = await queue.open_content(message.queue_id)
    except UnknownMessage:
        return None
    except (SpoolError, OSError) as error:
        return str(error)
    try:
        return await queue.in_disk_thread(_fault_in, content, message.envelope.size)
    except (SpoolError, OSError) as error:
        return str(error)


def _fault_in(content: BinaryIO, size: int) -> str | None:
    """In a disk thread; closes the content. SpoolError, OSError."""
    with content:
        found = content.seek(0, 2)
        if found != size:
            return f"the stored message has {found} octets of {size}"
        content.seek(0)
        # All of it: a bad block may be anywhere. It costs no more than the last attempt did.
        while content.read(_CHUNK):
            pass
    return None
