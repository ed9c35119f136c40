"""The history of messages as the rest of Elemta sees it: what happens is noted at once, and written later.

The reactor's thread puts what is to be written in a list. A thread of the history's own writes it, about
once a second, in one transaction. So a crash loses the last second of history. Nothing waits for it: where
the disk fails or is behind, events are dropped, and counted.
"""

from __future__ import annotations

from pathlib import Path

from twisted.internet.interfaces import IDelayedCall
from twisted.logger import Logger
from twisted.python.failure import Failure

from elemta.errors import HistoryError
from elemta.history.events import HistoryEntry, HistoryEvent, entry_of
from elemta.history.finder import FoundLives, HistoryFinder, Sought
from elemta.history.store import HistoryStore, SpoolOutcomes
from elemta.metrics import HistoryMetrics
from elemta.runtime import OrderedWorker, Runtime

_log = Logger()

INTERVAL = 1.0
"""Seconds after which what happened is written, at the latest."""

TOGETHER = 500
"""Events that are written with one transaction."""

MOST_WAITING = 20_000
MOST_OCTETS = 16 * 1024 * 1024
"""Events, and octets of them, that wait at most; beyond that they are dropped."""

# Between two steps of what is done little by little.
_STEP_PAUSE = 0.02


class MessageHistory:
    """Keeps what became of messages for ``keep`` seconds after their end; with 0 nothing is kept.

    For the thread of the reactor.
    """

    def __init__(
        self,
        directory: Path,
        node: str,
        keep: float,
        *,
        runtime: Runtime,
        queue: SpoolOutcomes,
        metrics: HistoryMetrics,
    ) -> None:
        self.keep = keep
        self._metrics = metrics
        self._queue = queue
        self._reactor = runtime.reactor
        self._runtime = runtime
        self._store = HistoryStore(directory, node, runtime, queue, self._drop)
        self._finder = HistoryFinder(runtime.disk)
        self._waiting: list[HistoryEntry] = []
        self._octets = 0
        self._writer: OrderedWorker | None = None
        self._reader: OrderedWorker | None = None
        self._allowance: int | None = None
        self._spared = 0
        self._call: IDelayedCall | None = None
        self._step_call: IDelayedCall | None = None
        self._writing = 0
        self._stepping = False
        self._closed = False

    @property
    def messages(self) -> int:
        """The messages that are kept."""
        return sum(each.figures.messages for each in self._store.segments)

    @property
    def octets(self) -> int:
        """The space that they take."""
        return sum(each.figures.octets for each in self._store.segments)

    @property
    def oldest_age(self) -> float:
        """How long ago the oldest part of it began, in seconds."""
        segments = self._store.segments
        return max(0.0, self._runtime.wall() - segments[0].figures.opened_at) if segments else 0.0

    @property
    def oldest_end(self) -> float:
        """Messages that ended before this time are not kept any more, though parts of them may be."""
        return self._runtime.wall() - self.keep

    def prepare(self) -> None:
        """In a thread, before anything happens: note what is queued."""
        self._queue.look()

    def open(self) -> None:
        """Begin, and find out in a thread what there is."""
        threads = self._runtime.threads
        self._writer = threads.ordered("history-write")
        self._reader = threads.ordered("history-read")
        self._writer.start(self._store.open)

    def add(self, event: HistoryEvent) -> None:
        """Note what happened. Costs next to nothing, and never fails."""
        if self.keep <= 0 or self._closed:
            return
        waiting = self._waiting
        if len(waiting) >= MOST_WAITING or self._octets >= MOST_OCTETS:
            self._metrics.dropped.labels("backlog").inc()
            return
        try:
            if event.is_kept:
                entry = entry_of(event)
                self._octets += len(entry[4])
                waiting.append(entry)
        except Exception:
            # The mail that it is about is stored, and goes on.
            self.failed(event.queue_id)
        if len(waiting) >= TOGETHER and not self._writing:
            self._write()
        elif self._call is None:
            self._call = self._reactor.callLater(INTERVAL, self._is_time)

    def failed(self, queue_id: str) -> None:
        """Log and count the exception that is handled: what happened to a message can't be kept."""
        _log.failure(
            "an event can't be kept in the history",
            event="history.internal_error",
            queue_id=queue_id,
        )
        self._metrics.dropped.labels("fault").inc()

    def tidy(self, allowance: int | None, spared: int = 0) -> None:
        """Do what is due; ``allowance`` is the space that the history may take, None where unknown.

        What is there stays up to ``spared`` octets.
        """
        self._allowance, self._spared = allowance, spared
        if not self._stepping and not self._closed:
            self._step()

    async def find(self, sought: Sought, limit: int, after: str | None) -> FoundLives:
        """A page of the messages that match, what has just happened included. HistoryError."""
        if self._writer is None or self._reader is None or self._closed:
            raise HistoryError("the history is closed")
        # A commit is answered before it is noted here: what the caller knows of is noted after a turn.
        await self._writer.call(_nothing)
        self._write()
        # Behind what was handed to the writer before.
        await self._writer.call(_nothing)
        return await self._reader.call(self._finder.find, self._store.segments, sought, limit, after)

    async def close(self) -> None:
        """Write what is left, and stop."""
        if self._closed or self._writer is None or self._reader is None:
            self._closed = True
            return
        self._write()
        self._closed = True
        for call in (self._call, self._step_call):
            if call is not None and call.active():
                call.cancel()
        self._call = self._step_call = None
        await self._writer.call(self._store.close)
        self._writer.stop()
        self._reader.stop()

    def _is_time(self) -> None:
        self._call = None
        # What the thread does not come to would wait there without a bound.
        if not self._writing:
            self._write()

    def _write(self) -> None:
        """Hand what waits to the thread."""
        if not self._waiting or self._writer is None:
            return
        entries, self._waiting, self._octets = self._waiting, [], 0
        if self._call is not None:
            self._call.cancel()
            self._call = None
        self._writing += 1
        self._writer.call(self._write_in_pieces, entries).addBoth(self._written)

    def _write_in_pieces(self, entries: list[HistoryEntry]) -> None:
        """In the thread."""
        for start in range(0, len(entries), TOGETHER):
            piece = entries[start : start + TOGETHER]
            try:
                self._store.write(piece)
            except Exception:
                # A fault of ours costs this piece, and is counted.
                _log.failure("the history could not be written", event="history.write_failed")
                self._drop("fault", len(piece))

    def _written(self, result: Failure | None) -> None:
        self._writing -= 1
        if isinstance(result, Failure):
            _log.failure("the history could not be written", result, event="history.write_failed")
        is_time = self._call is None or len(self._waiting) >= TOGETHER
        if is_time and not self._writing and not self._closed:
            self._write()

    def _step(self) -> None:
        self._step_call = None
        if self._writer is None:
            return
        self._stepping = True
        self._writer.call(self._store.step, self.keep, self._allowance, self._spared).addBoth(self._stepped)

    def _stepped(self, more: bool | Failure) -> None:
        self._stepping = False
        if isinstance(more, Failure):
            _log.failure("the history could not be tidied", more, event="history.write_failed")
        elif more and not self._closed:
            self._stepping = True
            self._step_call = self._reactor.callLater(_STEP_PAUSE, self._step)

    def _drop(self, reason: str, events: int) -> None:
        """In the writing thread."""
        self._reactor.callFromThread(self._metrics.dropped.labels(reason).inc, events)


def _nothing() -> None:
    """Work that is done when all before it is."""
