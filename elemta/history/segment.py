"""One file of the history: records in the order in which they were written, and an index of their words.

A segment is written until it is full or old enough, and then sealed: its keys are sorted once, which costs a
fraction of keeping them sorted all the time, and nothing in it changes any more. It goes as a whole.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from elemta.errors import HistoryError
from elemta.runtime.disk import Disk, transaction

APPLICATION_ID = 0x454C4D48  # "ELMH"
FORMAT = 1

_NUMBER_BITS = 31
_CHUNK = 100
# What a power cut takes of what was not synced is some seconds of history, and never mail. The log of the
# open segment is moved into it when it has grown to 4 MiB.
_PRAGMAS = ("journal_mode = WAL", "synchronous = NORMAL", "cache_size = -2048", "wal_autocheckpoint = 1000")
_SCHEMA = (
    f"PRAGMA application_id = {APPLICATION_ID}",
    f"PRAGMA user_version = {FORMAT}",
    "CREATE TABLE about (name TEXT PRIMARY KEY, value) WITHOUT ROWID",
    """CREATE TABLE record (number INTEGER PRIMARY KEY, message INTEGER NOT NULL, at REAL NOT NULL,
    ended INTEGER NOT NULL, data TEXT NOT NULL)""",
    "CREATE INDEX record_message ON record (message)",
    # Keys as they came; a sealed segment has them in the table `key` instead.
    "CREATE TABLE fresh (key INTEGER NOT NULL)",
)
_SEAL = (
    "CREATE TABLE key (key INTEGER PRIMARY KEY)",
    "INSERT OR IGNORE INTO key SELECT key FROM fresh ORDER BY key",
    "DROP TABLE fresh",
)
_UNENDED = """SELECT DISTINCT message FROM record WHERE message > ? AND message NOT IN
    (SELECT message FROM record WHERE ended) ORDER BY message LIMIT ?"""


HistoryRow = tuple[int, float, bool, str]
"""A record: the key of a message, the time of what happened to it last, whether it ended with that, and all
of that as JSON objects with commas between them."""


class FoundRow(NamedTuple):
    """A record as it is found; ``number`` is its place in its segment."""

    number: int
    message: int
    at: float
    ended: bool
    data: str


@dataclass(slots=True)
class SegmentFigures:
    """What is known of a segment without reading its records. ``newest`` is the time of its last event."""

    node: str
    opened_at: float
    messages: int = 0
    newest: float = 0.0
    sealed: bool = False
    octets: int = 0


class HistorySegment:
    """A segment that is open. Used by one thread at a time. Raises `HistoryError`."""

    def __init__(self, path: Path, connection: sqlite3.Connection, figures: SegmentFigures) -> None:
        self.path = path
        self.figures = figures
        self._connection = connection
        last = connection.execute("SELECT max(number) FROM record").fetchone()[0]
        self._next = (last or 0) + 1

    @classmethod
    def create(cls, disk: Disk, path: Path, node: str, at: float) -> HistorySegment:
        """A new one, for what happens on a node from now on."""
        try:
            # It exists, with its mode, before SQLite writes to it.
            disk.close(disk.create(path))
            connection = disk.connect(path)
            try:
                for pragma in _PRAGMAS:
                    connection.execute(f"PRAGMA {pragma}")
                with transaction(connection):
                    for statement in _SCHEMA:
                        connection.execute(statement)
                    about = (("node", node), ("opened_at", at), ("messages", 0), ("newest", at))
                    connection.executemany("INSERT INTO about VALUES (?, ?)", about)
                return cls(path, connection, SegmentFigures(node, at, newest=at))
            except BaseException:
                connection.close()
                raise
        except (sqlite3.Error, OSError) as error:
            raise HistoryError(f"{path} can't be made: {error}") from error

    @classmethod
    def open(cls, disk: Disk, path: Path) -> HistorySegment:
        """One that is there. HistoryError: it is none, is damaged, or a newer Elemta wrote it."""
        try:
            connection = disk.connect(path)
            try:
                return cls(path, connection, _figures(connection, path))
            except BaseException:
                connection.close()
                raise
        except (sqlite3.Error, OSError, ValueError, TypeError, KeyError) as error:
            raise HistoryError(f"{path} can't be read: {error}") from error

    def close(self) -> None:
        """Its log is moved into it on the way."""
        try:
            self._connection.close()
        except sqlite3.Error as error:
            raise HistoryError(f"{self.path} can't be closed: {error}") from error

    def begin_writes(self) -> None:
        """Prepare a segment that was opened to be written to."""
        try:
            for pragma in _PRAGMAS:
                self._connection.execute(f"PRAGMA {pragma}")
        except sqlite3.Error as error:
            raise HistoryError(f"{self.path} can't be written: {error}") from error

    @property
    def records(self) -> int:
        """How many records were written to it."""
        return self._next - 1

    def append(self, rows: Sequence[HistoryRow], keys: Sequence[Collection[int]], messages: int) -> None:
        """Write records, each with the keys of its words, at once; ``messages`` of them are new."""
        first, figures = self._next, self.figures
        packed = [key << _NUMBER_BITS | number for number, each in enumerate(keys, first) for key in each]
        newest = max([figures.newest, *[row[1] for row in rows]])
        connection = self._connection
        try:
            with transaction(connection):
                # Statements that take many rows: at each step of one, Python's lock is given up and won back.
                for start in range(0, len(rows), _CHUNK):
                    part = rows[start : start + _CHUNK]
                    # Numbers follow each other by themselves.
                    marks = ",".join(["(?,?,?,?)"] * len(part))
                    connection.execute(
                        f"INSERT INTO record (message, at, ended, data) VALUES {marks}",  # noqa: S608
                        [value for row in part for value in row],
                    )
                connection.execute("INSERT INTO fresh SELECT value FROM json_each(?)", (str(packed),))
                connection.execute(
                    "UPDATE about SET value = CASE name WHEN 'messages' THEN ? ELSE ? END"
                    " WHERE name IN ('messages', 'newest')",
                    (figures.messages + messages, newest),
                )
        except sqlite3.Error as error:
            raise HistoryError(f"{self.path} can't be written: {error}") from error
        self._next = first + len(rows)
        figures.messages += messages
        figures.newest = newest

    def seal(self) -> None:
        """Sort its keys, and let nothing change in it any more."""
        connection = self._connection
        try:
            with transaction(connection):
                for statement in _SEAL:
                    connection.execute(statement)
            # One file from now on, and nothing to recover when it is read.
            connection.execute("PRAGMA journal_mode = DELETE")
        except sqlite3.Error as error:
            raise HistoryError(f"{self.path} can't be sealed: {error}") from error
        self.figures.sealed = True

    # What it has

    def with_key(self, key: int, below: int | None, limit: int) -> list[int]:
        """The numbers of records that have a word with this key, the newest first, below a number."""
        table = "key" if self.figures.sealed else "fresh"
        first, end = key << _NUMBER_BITS, (key + 1) << _NUMBER_BITS
        if below is not None:
            end = min(end, first + below)
        found = self._all(
            f"SELECT DISTINCT key FROM {table} WHERE key >= ? AND key < ? ORDER BY key DESC LIMIT ?",  # noqa: S608
            (first, end, limit),
        )
        return [row[0] - first for row in found]

    def numbers_of(self, message: int, below: int | None, limit: int) -> list[int]:
        """The numbers of a message's records, the newest first, below a number."""
        found = self._all(
            "SELECT number FROM record WHERE message = ? AND number < ? ORDER BY number DESC LIMIT ?",
            (message, 2**_NUMBER_BITS if below is None else below, limit),
        )
        return [row[0] for row in found]

    def rows(self, numbers: Collection[int]) -> list[FoundRow]:
        """These records, in their order."""
        return self._rows("number", numbers)

    def rows_of(self, messages: Collection[int]) -> list[FoundRow]:
        """All records of these messages, in their order."""
        return self._rows("message", messages)

    def known(self, messages: Collection[int]) -> set[int]:
        """Those of these messages that have a record in it."""
        found = self._all(
            "SELECT DISTINCT message FROM record WHERE message IN (SELECT value FROM json_each(?))",
            (str(list(messages)),),
        )
        return {row[0] for row in found}

    def newest_message(self) -> int:
        """The largest key of a message in it; -1 where there is none."""
        return int(self._all("SELECT coalesce(max(message), -1) FROM record")[0][0])

    def unended(self, after: int, limit: int) -> list[int]:
        """Messages that have no end in it, from behind a key on."""
        return [row[0] for row in self._all(_UNENDED, (after, limit))]

    def _rows(self, column: str, wanted: Collection[int]) -> list[FoundRow]:
        found = self._all(
            f"SELECT number, message, at, ended, data FROM record WHERE {column} IN"  # noqa: S608 ours
            " (SELECT value FROM json_each(?)) ORDER BY number",
            (str(list(wanted)),),
        )
        return [
            FoundRow(number, message, at, bool(ended), data) for number, message, at, ended, data in found
        ]

    def _all(self, statement: str, values: Sequence[object] = ()) -> list[tuple[Any, ...]]:
        try:
            return self._connection.execute(statement, values).fetchall()
        except sqlite3.Error as error:
            raise HistoryError(f"{self.path} can't be read: {error}") from error


def _figures(connection: sqlite3.Connection, path: Path) -> SegmentFigures:
    mark = connection.execute("PRAGMA application_id").fetchone()[0]
    version = connection.execute("PRAGMA user_version").fetchone()[0]
    if mark != APPLICATION_ID or version != FORMAT:
        raise ValueError(f"it is no history of format {FORMAT}")
    about = dict(connection.execute("SELECT name, value FROM about").fetchall())
    tables = connection.execute("SELECT count(*) FROM sqlite_schema WHERE name = 'key'").fetchone()[0]
    return SegmentFigures(
        node=str(about["node"]),
        opened_at=float(about["opened_at"]),
        messages=int(about["messages"]),
        newest=float(about["newest"]),
        sealed=bool(tables),
        octets=path.stat().st_size,
    )
