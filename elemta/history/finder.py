"""Looking for messages in the history: by a word, or by queue id; the newest records first, page by page."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from elemta.errors import HistoryError, UnknownPlace
from elemta.history.lives import RecordedLife, words_of_data
from elemta.history.segment import FoundRow, HistorySegment
from elemta.history.store import KnownSegment
from elemta.history.words import key_of
from elemta.runtime.disk import Disk

_CURSOR = re.compile(r"([0-9]{1,10})\.([0-9]{1,10})")
# Records that one page looks at: more than match only where two words have one key.
_LOOKED_AT = 1000
_AT_ONCE = 50


@dataclass(frozen=True, slots=True)
class Sought:
    """What is looked for: words, each in the form of `normal`, and the key of a message where it may be an
    id."""

    words: tuple[str, ...]
    message: int | None = None


@dataclass(frozen=True, slots=True)
class FoundLives:
    """A page; ``after`` is the place to go on behind, None at the end."""

    lives: tuple[RecordedLife, ...]
    after: str | None


@dataclass(slots=True, order=True)
class _Place:
    """A record: its segment, and its number in that."""

    segment: int
    number: int


class HistoryFinder:
    """Reads segments, in a thread of its own. Raises `HistoryError`, for a cursor that is none too."""

    def __init__(self, disk: Disk) -> None:
        self._disk = disk

    def find(
        self, segments: Sequence[KnownSegment], sought: Sought, limit: int, after: str | None
    ) -> FoundLives:
        """The messages that have one of the words, from behind a place on."""
        start = None if after is None else _place(after)
        with _OpenSegments(self._disk, segments) as opened:
            return self._page(opened, sought, limit, start)

    def _page(self, opened: _OpenSegments, sought: Sought, limit: int, start: _Place | None) -> FoundLives:
        found: dict[int, RecordedLife] = {}
        for looked_at, (place, row) in enumerate(_candidates(opened, sought, start), 1):
            if row.message not in found and _matches(row, sought):
                life = opened.life(row.message)
                if not _was_shown(life, sought, place):
                    found[row.message] = life.recorded
            if len(found) >= limit or looked_at >= _LOOKED_AT:
                return FoundLives(tuple(found.values()), f"{place.segment}.{place.number}")
        return FoundLives(tuple(found.values()), None)


@dataclass(slots=True)
class _PlacedLife:
    """A life, and where each of its records is."""

    recorded: RecordedLife
    records: list[tuple[_Place, FoundRow]]


class _OpenSegments:
    """The segments of one question, each opened when it is needed; those that are gone are left out."""

    def __init__(self, disk: Disk, segments: Sequence[KnownSegment]) -> None:
        self._disk = disk
        self._segments = segments
        self._opened: dict[int, HistorySegment | None] = {}

    def __enter__(self) -> _OpenSegments:
        return self

    def __exit__(self, *_: object) -> None:
        for segment in self._opened.values():
            if segment is not None:
                segment.close()

    def from_newest(self, start: int | None) -> Iterator[tuple[int, HistorySegment]]:
        """Each segment and its number, from this one on."""
        for known in reversed(self._segments):
            if start is None or known.number <= start:
                segment = self._open(known)
                if segment is not None:
                    yield known.number, segment

    def life(self, message: int) -> _PlacedLife:
        """All that is recorded of a message."""
        life = _PlacedLife(RecordedLife(message, ""), [])
        for known in self._segments:
            segment = self._open(known)
            if segment is None:
                continue
            for row in segment.rows_of([message]):
                life.recorded.add(segment.figures.node, row.at, row.ended, row.data)
                life.records.append((_Place(known.number, row.number), row))
        return life

    def _open(self, known: KnownSegment) -> HistorySegment | None:
        if known.number not in self._opened:
            try:
                segment = HistorySegment.open(self._disk, known.path) if known.path.exists() else None
            except HistoryError:
                segment = None  # the writer has said so
            self._opened[known.number] = segment
        return self._opened[known.number]


def _candidates(
    opened: _OpenSegments, sought: Sought, start: _Place | None
) -> Iterator[tuple[_Place, FoundRow]]:
    """Records that may match, the newest first."""
    keys = sorted({key_of(word) for word in sought.words})
    for number, segment in opened.from_newest(None if start is None else start.segment):
        below = start.number if start is not None and start.segment == number else None
        while True:
            numbers = sorted(_numbers(segment, keys, sought.message, below), reverse=True)[:_AT_ONCE]
            for row in reversed(segment.rows(numbers)):
                yield _Place(number, row.number), row
            if len(numbers) < _AT_ONCE:
                break
            below = numbers[-1]


def _numbers(
    segment: HistorySegment, keys: Sequence[int], message: int | None, below: int | None
) -> set[int]:
    found = {number for key in keys for number in segment.with_key(key, below, _AT_ONCE)}
    if message is not None:
        found.update(segment.numbers_of(message, below, _AT_ONCE))
    return found


def _matches(row: FoundRow, sought: Sought) -> bool:
    if row.message == sought.message:
        return True
    words = words_of_data(row.data)
    return any(word in words for word in sought.words)


def _was_shown(life: _PlacedLife, sought: Sought, place: _Place) -> bool:
    """Whether a newer record of the same message matches, so that it was on the page before."""
    return any(other > place and _matches(row, sought) for other, row in life.records)


def _place(cursor: str) -> _Place:
    match = _CURSOR.fullmatch(cursor)
    if match is None:
        raise UnknownPlace(f"{cursor!r} is no place in the history")
    return _Place(int(match[1]), int(match[2]))
