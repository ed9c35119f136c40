"""The segments of a history: written to, closed, and removed when their time is over or space is short.

Everything here is done by one thread, in steps of some milliseconds. Nothing here raises: what can't be
written is dropped and counted, for no mail waits for it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from twisted.logger import Logger

from elemta.errors import HistoryError
from elemta.history.events import HistoryEntry, HistoryEvent, entry_of, joined
from elemta.history.lives import words_of_data
from elemta.history.retention import PARTS, Overdue, confirmed_after, last_times
from elemta.history.segment import HistorySegment, SegmentFigures
from elemta.history.words import MOST_WORDS, keys_of
from elemta.runtime import Runtime

_log = Logger()

MOST_RECORDS = 50_000
"""Records of a segment. It is searched without an index while it is written to."""

_NAME = re.compile(r"(\d{8})\.db")
# Messages that one step carries over, or looks for in the queue.
_TOGETHER = 100
# With less than this there is no history.
_LEAST_ALLOWANCE = 1024 * 1024
# A minute of the time that message keys begin with.
_OVERLAP = 60_000_000 << 9


class SpoolOutcomes(Protocol):
    """What the history asks of the queue, in its own thread. HistoryError: the queue can't be read."""

    def queued(self, messages: Collection[int]) -> set[int]:
        """Those of these messages that are in the queue."""

    def look(self) -> None:
        """Note what is queued before the history hears of anything. Never fails."""

    def accepted_after(self, message: int, limit: int) -> tuple[list[HistoryEvent], int | None]:
        """What is known of the next messages behind a key, and the key to go on behind; None at the end."""

    def close(self) -> None:
        """Ask no more."""


@dataclass(frozen=True, slots=True)
class KnownSegment:
    """A segment as others see it; ``number`` is its place in the order of time."""

    number: int
    path: Path
    figures: SegmentFigures


class HistoryStore:
    """The history in one directory. ``segments`` may be read by any thread."""

    def __init__(
        self,
        directory: Path,
        node: str,
        runtime: Runtime,
        queue: SpoolOutcomes,
        dropped: Callable[[str, int], None],
    ) -> None:
        self.segments: tuple[KnownSegment, ...] = ()
        self._directory = directory
        self._node = node
        self._disk = runtime.disk
        self._wall = runtime.wall
        self._monotonic = runtime.monotonic
        self._queue = queue
        self._dropped = dropped
        self._current: HistorySegment | None = None
        self._failed = False
        self._full = False
        self._overdue = Overdue()
        # The oldest segment while what is not over in it is carried over, and how far that is.
        self._oldest: HistorySegment | None = None
        self._carried = -1
        # From where on messages of the queue may be missing; None: from nowhere.
        self._missing_after: int | None = -1

    def open(self) -> None:
        """Find out what there is."""
        try:
            self._directory.mkdir(mode=0o700, exist_ok=True)
            names = sorted(self._disk.names(self._directory))
        except OSError as error:
            self._fail(HistoryError(f"{self._directory} can't be used: {error}"))
            return
        found = []
        for name in names:
            if match := _NAME.fullmatch(name):
                path = self._directory / name
                found.append(KnownSegment(int(match[1]), path, self._look(path)))
        self.segments = tuple(found)
        self._missing_after = self._newest_message()

    def _look(self, path: Path) -> SegmentFigures:
        """What is known of a segment; one that can't be read is left alone until it is old."""
        try:
            segment = HistorySegment.open(self._disk, path)
        except HistoryError as error:
            _unreadable(error)
            try:
                status = path.stat()
            except OSError:
                return SegmentFigures("", 0.0, sealed=True)
            return SegmentFigures(
                "", status.st_mtime, newest=status.st_mtime, sealed=True, octets=status.st_size
            )
        figures = segment.figures
        self._close(segment)
        return figures

    def _newest_message(self) -> int:
        for known in reversed(self.segments):
            try:
                segment = HistorySegment.open(self._disk, known.path)
            except HistoryError:
                continue  # `_look` has said so
            try:
                newest = segment.newest_message()
            except HistoryError as error:
                _unreadable(error)
                newest = -1
            finally:
                self._close(segment)
            if newest >= 0:
                # Ids begin with the time; what came in a little before it may have been on its way.
                return max(-1, newest - _OVERLAP)
        return -1

    # Writing

    def write(self, entries: Sequence[HistoryEntry]) -> None:
        """Write down what happened, a record for each message."""
        if not entries:
            return
        if self._full:
            self._dropped("space", len(entries))
            return
        records: dict[int, HistoryEntry] = {}
        for entry in entries:
            known = records.get(entry[0])
            records[entry[0]] = entry if known is None else joined(known, entry)
        rows = [(key, at, ended, data) for key, at, ended, _, data, _ in records.values()]
        try:
            current = self._current or self._begin()
            messages = sum([entry[3] for entry in records.values()])
            current.append(rows, [entry[5] for entry in records.values()], messages)
        except HistoryError as error:
            self._fail(error)
            self._dropped("disk", len(entries))
            return
        if self._failed:
            self._failed = False
            _log.info("the history is written again", event="history.recovered")

    def _begin(self) -> HistorySegment:
        """The segment to write to: the last one, if it is ours and not sealed, or a new one."""
        last = self.segments[-1] if self.segments else None
        if last is not None and not last.figures.sealed and last.figures.node == self._node:
            segment = HistorySegment.open(self._disk, last.path)
            segment.begin_writes()
            known = KnownSegment(last.number, last.path, segment.figures)
            self.segments = (*self.segments[:-1], known)
        else:
            number = 1 if last is None else last.number + 1
            path = self._directory / f"{number:08}.db"
            segment = HistorySegment.create(self._disk, path, self._node, self._wall())
            self.segments = (*self.segments, KnownSegment(number, path, segment.figures))
        self._current = segment
        return segment

    def _fail(self, error: HistoryError) -> None:
        if not self._failed:
            _log.error(
                "the history can't be written; what happens to messages meanwhile is not kept",
                event="history.failed",
                reason=str(error),
            )
        self._failed = True
        current, self._current = self._current, None
        if current is not None:
            self._close(current)
            self._forget_unwritten(current.path)

    def _forget_unwritten(self, path: Path) -> None:
        # Whatever the failure left: the next try looks at the file, or makes another one.
        self.segments = tuple(
            KnownSegment(each.number, each.path, self._look(each.path)) if each.path == path else each
            for each in self.segments
        )

    # Tidiness

    def step(self, keep: float, allowance: int | None, spared: int = 0) -> bool:
        """Do a little of what there is to do; whether there is more.

        ``keep`` is how many seconds history is kept, ``allowance`` the octets that it may take (None:
        unknown). What is there stays up to ``spared`` octets, though nothing is added where less is allowed.
        """
        try:
            return self._step(keep, allowance, spared)
        except HistoryError as error:
            self._fail(error)
        except OSError as error:
            self._fail(HistoryError(str(error)))
        except Exception:
            # A fault of ours: what could not be done is tried again the next time.
            _log.failure("the history could not be tidied", event="history.internal_error", queue_id=None)
        return False

    def _step(self, keep: float, allowance: int | None, spared: int) -> bool:
        if keep <= 0:
            return self._erase()
        self._measure()
        if self._keep_allowance(allowance, spared):
            return True
        if self._missing_after is not None:
            self._look_for_missing()
            return True
        self._seal_when_old(keep, allowance)
        return self._remove_when_over(keep)

    def _erase(self) -> bool:
        """History is not kept: remove what there is, a segment at a time."""
        self._full = False
        if not self.segments:
            return False
        self._remove_oldest()
        return True

    def _measure(self) -> None:
        current = self._current
        if current is not None:
            octets = sum(
                path.stat().st_size
                for path in (current.path, current.path.with_name(current.path.name + "-wal"))
                if path.exists()
            )
            current.figures.octets = octets

    def _keep_allowance(self, allowance: int | None, spared: int) -> bool:
        """Let the oldest go where all take too much of the disk; whether one went."""
        self._full = allowance is not None and allowance < _LEAST_ALLOWANCE
        taken = sum(each.figures.octets for each in self.segments)
        if allowance is None or taken <= max(allowance, spared) or not self.segments:
            return False
        oldest = self.segments[0]
        _log.warn(
            "history goes before its time: it takes more than its share of the spool's disk",
            event="history.shortened",
            messages=oldest.figures.messages,
            seconds=round(max(0.0, self._wall() - oldest.figures.newest)),
        )
        self._dropped("space", oldest.figures.messages)
        self._remove_oldest()
        return True

    def _look_for_missing(self) -> None:
        """Write down the next messages of the queue that the history does not know."""
        assert self._missing_after is not None  # noqa: S101 - it was just looked at
        events, self._missing_after = self._queue.accepted_after(self._missing_after, _TOGETHER)
        known = self._known_in(self.segments[-2:], {event.key for event in events})
        self.write([entry_of(event) for event in events if event.key not in known])

    def _known_in(self, segments: Iterable[KnownSegment], messages: Collection[int]) -> set[int]:
        known: set[int] = set()
        if not messages:
            return known
        for each in segments:
            current = self._current
            if current is not None and each.path == current.path:
                known |= current.known(messages)
                continue
            try:
                segment = HistorySegment.open(self._disk, each.path)
            except HistoryError:
                continue  # it is logged once: when it is the oldest
            try:
                known |= segment.known(messages)
            finally:
                self._close(segment)
        return known

    def _seal_when_old(self, keep: float, allowance: int | None) -> None:
        if not self.segments or self.segments[-1].figures.sealed:
            return
        figures = self.segments[-1].figures
        age = abs(self._wall() - figures.opened_at)
        current = self._current or self._begin()
        large = current.records >= MOST_RECORDS or (
            allowance is not None and figures.octets > max(allowance, _LEAST_ALLOWANCE) // PARTS
        )
        if current.records and (large or age >= keep / PARTS):
            self._end_current()

    def _end_current(self) -> None:
        """Seal the segment that is written to; the next record begins another one."""
        current = self._current or self._begin()
        current.seal()
        self._current = None
        self._close(current)
        current.figures.octets = current.path.stat().st_size

    def _remove_when_over(self, keep: float) -> bool:
        """Let the oldest segment go, once all in it is over; whether there is more to do for that."""
        if not self.segments or not self.segments[0].figures.sealed:
            return False
        now = self._wall()
        time = last_times([each.figures.newest for each in self.segments], now)[0]
        if not self._overdue.is_over(time < now - keep, self._monotonic(), confirmed_after(keep)):
            self._end_carry()
            return False
        if self._carry():
            return True
        self._remove_oldest()
        return True

    def _carry(self) -> bool:
        """Copy what is not over from the oldest segment to the newest; whether there is more of it."""
        if self._oldest is None:
            try:
                self._oldest = HistorySegment.open(self._disk, self.segments[0].path)
            except HistoryError as error:
                # It goes with what is not over in it: nothing can be copied from it.
                _unreadable(error)
                return False
            self._carried = -1
        messages = self._oldest.unended(self._carried, _TOGETHER)
        if not messages:
            return False
        kept = self._queue.queued(messages)
        kept |= self._known_in(self.segments[1:], [each for each in messages if each not in kept])
        rows = self._oldest.rows_of(kept)
        if rows:
            current = self._current or self._begin()
            current.append(
                [(row.message, row.at, row.ended, row.data) for row in rows],
                [keys_of(words_of_data(row.data)[:MOST_WORDS]) for row in rows],
                sum('"k":"accepted"' in row.data for row in rows),
            )
        self._carried = messages[-1]
        return True

    def _end_carry(self) -> None:
        oldest, self._oldest = self._oldest, None
        self._carried = -1
        if oldest is not None:
            self._close(oldest)

    def _remove_oldest(self) -> None:
        self._end_carry()
        oldest, self.segments = self.segments[0], self.segments[1:]
        current = self._current
        if current is not None and current.path == oldest.path:
            self._current = None
            self._close(current)
        for suffix in ("", "-wal", "-shm"):
            path = oldest.path.with_name(oldest.path.name + suffix)
            with suppress(FileNotFoundError):
                self._disk.unlink(path)

    def close(self) -> None:
        """Write no more."""
        self._end_carry()
        current, self._current = self._current, None
        if current is not None:
            self._close(current)
        self._queue.close()

    def _close(self, segment: HistorySegment) -> None:
        try:
            segment.close()
        except HistoryError as error:
            _log.error("a part of the history can't be closed", event="history.failed", reason=str(error))


def _unreadable(error: HistoryError) -> None:
    _log.error("a part of the history can't be read", event="history.unreadable", reason=str(error))
