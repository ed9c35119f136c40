"""What goes wrong here with one message again and again: it is left alone for a while, then put on hold."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Generic, TypeVar

from twisted.logger import Logger

from elemta.bounded_map import BoundedMap
from elemta.delivery.delivery_record import may_owe, settle_surely
from elemta.delivery.queue import DeliveryQueue
from elemta.outcome import Outcome
from elemta.spool.records import QueuedMessage

_log = Logger()

K = TypeVar("K")

MOST_REMEMBERED = 10_000
"""Faults that are remembered. Beyond that the one whose last fault is longest ago is forgotten."""

LONGEST_REASON = 500
"""Characters of the reason of a hold."""


class RecentFaults(Generic[K]):
    """Remembers with what something went wrong the last time, and until when each is left alone."""

    def __init__(self) -> None:
        self._until: BoundedMap[K, float] = BoundedMap(MOST_REMEMBERED)

    def __len__(self) -> int:
        return len(self._until)

    def __contains__(self, key: K) -> bool:
        return key in self._until

    def is_left_alone(self, key: K, now: float) -> bool:
        """Whether nothing is to be done about it now."""
        return self._until.get(key, now) > now

    def note(self, key: K, until: float = 0.0) -> bool:
        """Something went wrong; leave it alone until then. Whether that is the second time in a row."""
        again = key in self._until
        self._until.keep(key, until)
        return again

    def forget(self, key: K) -> None:
        """All went well."""
        self._until.pop(key, None)


async def hold_faulty(
    queue: DeliveryQueue, part: QueuedMessage, outcomes: Sequence[Outcome], what: str, error: Exception
) -> None:
    """Put on hold a part that can't be recorded as it should be."""
    reason = f"{what}: {error!r}"[:LONGEST_REASON]
    await settle_surely(queue, part, outcomes, hold_reason=reason, owes=may_owe(part, outcomes))
    _log.error(
        "message put on hold",
        event="delivery.held",
        queue_id=part.queue_id,
        sender=str(part.envelope.sender),
        reason=reason,
    )
