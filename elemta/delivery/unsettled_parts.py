"""The parts whose attempt is under way, or over without a record, and the stop while none can be written."""

from __future__ import annotations

from typing import Any

from twisted.internet.defer import Deferred
from twisted.logger import Logger
from twisted.python.failure import Failure

from elemta.delivery.destination import Key
from elemta.delivery.destinations import Destinations
from elemta.errors import SpoolError
from elemta.spool.records import QueuedMessage

_log = Logger()


class PartsUnderWay(dict[Key, QueuedMessage]):
    """The parts by key, and the wait for their end."""

    def __init__(self, reactor: Any) -> None:
        super().__init__()
        self._reactor = reactor
        self._empty: Deferred[None] | None = None

    def notify_empty(self) -> None:
        if self._empty is not None and not self:
            empty, self._empty = self._empty, None
            empty.callback(None)

    async def wait_until_empty(self, seconds: float) -> bool:
        """Whether nothing is under way any more, at the latest after so many seconds."""
        if not self:
            return True
        empty = self._empty = Deferred()
        late = self._reactor.callLater(seconds, lambda: None if empty.called else empty.callback(None))
        await empty
        self._empty = None
        if late.active():
            late.cancel()
        return not self


class PartsSetAside(dict[Key, tuple[QueuedMessage, float]]):
    """The parts by key, each with when it may be taken up again.

    The queue keeps what it could not write and writes it later. Until then the part still stands there as
    due, and is not, however long that takes.
    """

    @property
    def messages(self) -> list[QueuedMessage]:
        """The parts themselves."""
        return [message for message, _ in self.values()]

    def put(self, message: QueuedMessage, until: float) -> None:
        """Let a part be taken up again then, and not before."""
        self[message.key] = message, until

    def release(self, destinations: Destinations, now: float) -> None:
        """Let those be taken up whose time has come."""
        for message in [message for message, until in self.values() if until <= now]:
            destinations.release(message, now)
            del self[message.key]


class SpoolStop:
    """No attempt begins while the spool can't be written: one without a record is made again."""

    def __init__(self, under_way: PartsUnderWay) -> None:
        self._under_way = under_way
        self._stopped = False

    def may_begin(self, settled: bool) -> bool:
        """Whether attempts may begin, as the spool is ``settled`` or not; each change is logged."""
        if settled is self._stopped:
            self._stopped = not settled
            self._log_change()
        return settled

    def _log_change(self) -> None:
        if self._stopped:
            _log.warn(
                "the spool can't be written; no delivery begins before it can",
                event="delivery.stopped_by_spool",
                under_way=len(self._under_way),
            )
        else:
            _log.info("the spool can be written; deliveries go on", event="delivery.resumed")


def log_not_recorded(failure: Failure, queue_id: str) -> None:
    """Log that what came of an attempt is not on stable storage yet."""
    if failure.check(SpoolError) is None:
        _log.failure(
            "an attempt could not be recorded", failure, event="delivery.not_recorded", queue_id=queue_id
        )
    else:
        # The disk's failure itself is logged once, by the spool.
        _log.error(
            "an attempt could not be recorded yet",
            event="delivery.not_recorded",
            queue_id=queue_id,
            reason=failure.getErrorMessage(),
        )
