"""The end of holds: mail that others put on hold goes after its time, or when it takes too much space."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from twisted.internet.defer import Deferred, DeferredList
from twisted.logger import Logger
from twisted.python.failure import Failure

from elemta.errors import SpoolError
from elemta.metrics import SpoolMetrics
from elemta.outcome import Outcome, Status
from elemta.runtime.disk import FreeSpace
from elemta.spool.operations import QueueCounts
from elemta.spool.parts import space_of
from elemta.spool.records import HeldPart

_log = Logger()

# The part of the disk that undeliverable notices may take, as 1 in so many.
_SHARE = 10
# Notices that are removed with one commit.
_TOGETHER = 100
_OVER_SHARE = "undeliverable notices take more than their share of the spool's disk; the oldest go first"


class HoldQueue(Protocol):
    """What ending a hold needs of the spool."""

    async def undeliverable(self, limit: int) -> list[HeldPart]:
        """Undeliverable notices on hold, the oldest hold first."""

    async def end_settled(self, held: HeldPart, outcomes: Sequence[Outcome]) -> bool:
        """Record that the part's recipients failed, durably; False where it is no longer on that hold."""


@dataclass(slots=True)
class _Snapshot:
    """The disk as it was looked at last, and the space that undeliverable notices took then."""

    space: FreeSpace
    undeliverable: int


class Holds:
    """Ends holds, and keeps undeliverable notices to their share.

    They may take a tenth of the disk, and at most half of what they would leave above ``minimum_free`` if
    they all went: so they alone never bring about that new mail is refused.
    """

    def __init__(
        self,
        queue: HoldQueue,
        counts: Callable[[], QueueCounts],
        metrics: SpoolMetrics,
        *,
        minimum_free: int,
        now: Callable[[], float],
    ) -> None:
        self._queue = queue
        self._counts = counts
        self._metrics = metrics
        self._minimum_free = minimum_free
        self._now = now
        self._known: _Snapshot | None = None
        self._at_work = False

    @property
    def share(self) -> int | None:
        """The space that undeliverable notices may take, in octets; None while the disk is not known."""
        known = self._known
        if known is None or known.space.total is None:
            return None
        spare = (known.undeliverable + known.space.free - self._minimum_free) // 2
        return max(0, min(known.space.total // _SHARE, spare))

    def look(self, space: FreeSpace) -> None:
        """The disk is like this now."""
        self._known = _Snapshot(space, self._counts().undeliverable)
        self.keep_share()

    def keep_share(self) -> None:
        """Remove the oldest undeliverable notices while all together take too much."""
        share = self.share
        if self._at_work or share is None or self._counts().undeliverable <= share:
            return
        self._at_work = True
        Deferred.fromCoroutine(self._remove_oldest(share)).addBoth(self._removed)

    async def end(self, held: HeldPart, outcomes: Sequence[Outcome], reason: str) -> bool:
        """Let a part on hold go, for ``reason``; no effect on one that an operator cares for now. SpoolError.

        ``removed`` or ``returned`` to its sender after its time, ``over_share`` for the sake of the disk.
        """
        if not await self._queue.end_settled(held, outcomes):
            return False
        self._metrics.holds_ended.labels(reason).inc()
        message = held.message
        _log.warn(
            "mail on hold came to its end",
            event="hold.ended",
            queue_id=message.queue_id,
            reason=reason,
            hold_reason=message.hold_reason,
            sender=str(message.envelope.sender),
            recipients=[str(recipient.address) for recipient in message.pending[:10]],
            count=len(message.pending),
            size=message.envelope.size,
            seconds=round(self._now() - held.held_at, 1),
        )
        return True

    async def _remove_oldest(self, share: int) -> None:
        while (excess := self._counts().undeliverable - share) > 0:
            ending = []
            for held in await self._queue.undeliverable(_TOGETHER):
                ending.append(self.end(held, self._outcomes(held), "over_share"))
                envelope = held.message.envelope
                excess -= space_of(envelope.size, len(envelope.recipients))
                if excess <= 0:
                    break
            ended = await DeferredList([Deferred.fromCoroutine(each) for each in ending], consumeErrors=True)
            for _, result in ended:
                if isinstance(result, Failure):
                    result.raiseException()
            # New ones may come as fast as these go, so what counts is whether any went.
            if not any(gone for _, gone in ended):
                return

    def _outcomes(self, held: HeldPart) -> list[Outcome]:
        message, now = held.message, self._now()
        return [
            # RFC 3463 §3.4 X.3.1: the mail system is full.
            Outcome(message.queue_id, each.address, Status.FAILED, _OVER_SHARE, "", "", now, enhanced="5.3.1")
            for each in message.pending
        ]

    def _removed(self, result: Failure | None) -> None:
        self._at_work = False
        if not isinstance(result, Failure):
            return
        if result.check(SpoolError) is None:
            _log.failure("undeliverable notices could not be removed", result, event="hold.not_ended")
        else:
            _log.warn(
                "undeliverable notices can't be removed now",
                event="hold.not_ended",
                reason=result.getErrorMessage(),
            )
