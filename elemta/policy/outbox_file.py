"""The file of an outbox: an SQLite database for one thread at a time. All methods block."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Concatenate, ParamSpec, TypeVar

from twisted.logger import Logger

from elemta.policy.outbox_record import OutboxRecord, OutboxStart
from elemta.runtime.disk import Disk

_log = Logger()

P = ParamSpec("P")
R = TypeVar("R")

MOST_OCTETS = 64 * 1024 * 1024
"""What the records of one outbox may take. Beyond that its oldest go."""

OVERHEAD = 64
"""Octets that each record counts for beside its own."""

# The share of the whole that is freed at a time: to count anew for each record would cost too much.
_FREED = 16

_PRAGMAS = (
    "journal_mode = WAL",
    "synchronous = FULL",
    "secure_delete = OFF",
    "cache_size = -1024",
)
_TABLES = (
    "CREATE TABLE IF NOT EXISTS record (number INTEGER PRIMARY KEY AUTOINCREMENT, octets BLOB NOT NULL)",
    # One row: when a record was appended last, and whether the run that did so came to its end.
    """CREATE TABLE IF NOT EXISTS state (
        id INTEGER PRIMARY KEY CHECK (id = 0), at REAL NOT NULL, complete INTEGER NOT NULL)""",
)
_DAMAGE = (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)


class OutboxFile:
    """The database of one outbox, opened when it is first needed, and again after a failure."""

    def __init__(self, path: Path, disk: Disk, most: int = MOST_OCTETS) -> None:
        self._path = path
        self._disk = disk
        self._most = most
        self._connection: sqlite3.Connection | None = None
        self._octets = 0
        self._caught_up = False

    def start(self, now: float) -> OutboxStart:
        """What is there. From here on the run of this process is not complete. sqlite3.Error, OSError."""
        return self._safely(self._start, now)

    def caught_up(self) -> None:
        """Nothing of an earlier run is missing any more."""
        self._caught_up = True

    def append(self, records: Sequence[bytes], now: float) -> int:
        """Add records, synced. Returns how many of the oldest went for them. sqlite3.Error, OSError."""
        return self._safely(self._append, records, now)

    def read(self, most: int, octets: int) -> list[OutboxRecord]:
        """The oldest records: so many at most, and one at least. sqlite3.Error, OSError."""
        return self._safely(self._read, most, octets)

    def remove(self, number: int) -> None:
        """Remove the records up to this one. sqlite3.Error, OSError."""
        self._safely(self._remove, number)

    def finish(self, now: float) -> None:
        """This run is complete: nothing that was appended is missing. sqlite3.Error, OSError."""
        self._safely(self._note, now, 1)

    def close(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            try:
                connection.close()
            except sqlite3.Error as error:
                _log.error("closing an outbox failed", event="policy.outbox_failed", reason=str(error))

    def _safely(
        self, work: Callable[Concatenate[sqlite3.Connection, P], R], *args: P.args, **kwargs: P.kwargs
    ) -> R:
        try:
            if self._connection is None:
                self._connection = self._connect()
            return work(self._connection, *args, **kwargs)
        except (sqlite3.Error, OSError) as error:
            # After a failed sync nothing that this connection believes counts.
            self.close()
            if getattr(error, "sqlite_errorcode", 0) in _DAMAGE:
                self._set_aside(error)
            raise

    def _connect(self) -> sqlite3.Connection:
        directory = self._path.parent
        if not directory.exists():
            directory.mkdir(0o700, parents=True, exist_ok=True)
            self._disk.sync_directory(directory.parent)
        # SQLite gives its side files the mode of the database.
        os.close(os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
        connection = self._disk.connect(self._path)
        try:
            for pragma in _PRAGMAS:
                connection.execute(f"PRAGMA {pragma}").fetchall()
            for table in _TABLES:
                connection.execute(table)
            found = "SELECT coalesce(sum(length(octets) + ?), 0) FROM record"
            self._octets = connection.execute(found, (OVERHEAD,)).fetchone()[0]
            self._disk.sync_directory(directory)
        except BaseException:
            connection.close()
            raise
        return connection

    def _set_aside(self, error: Exception) -> None:
        aside = self._path.with_name(self._path.name + ".damaged")
        _log.critical(
            "an outbox is damaged: it is set aside, and what it held is not sent",
            event="policy.outbox_damaged",
            file=str(aside),
            reason=str(error),
        )
        os.replace(self._path, aside)
        for suffix in ("-wal", "-shm"):
            self._path.with_name(self._path.name + suffix).unlink(missing_ok=True)

    def _start(self, connection: sqlite3.Connection, now: float) -> OutboxStart:
        records = connection.execute("SELECT count(*) FROM record").fetchone()[0]
        state = connection.execute("SELECT at, complete FROM state").fetchone()
        at, complete = (now, 1) if state is None else state
        self._caught_up = bool(complete)
        self._note(connection, at, 0)
        return OutboxStart(records, bool(complete), at)

    def _note(self, connection: sqlite3.Connection, at: float, complete: int) -> None:
        connection.execute("INSERT OR REPLACE INTO state VALUES (0, ?, ?)", (at, complete))

    def _append(self, connection: sqlite3.Connection, records: Sequence[bytes], now: float) -> int:
        octets = sum(len(each) + OVERHEAD for each in records)
        connection.execute("BEGIN IMMEDIATE")
        connection.executemany("INSERT INTO record (octets) VALUES (?)", ((each,) for each in records))
        if self._caught_up:
            # What an earlier run left out is looked for from its own last time on, until it is found.
            connection.execute("UPDATE state SET at = max(at, ?)", (now,))
        excess = self._octets + octets - self._most
        dropped = freed = 0
        if excess > 0:
            dropped, freed = self._drop(connection, excess + self._most // _FREED)
        connection.execute("COMMIT")
        self._octets += octets - freed
        return dropped

    def _drop(self, connection: sqlite3.Connection, octets: int) -> tuple[int, int]:
        """Remove the oldest until so many octets are free; returns their number and their octets."""
        dropped = freed = last = 0
        for number, size in connection.execute("SELECT number, length(octets) FROM record ORDER BY number"):
            if freed >= octets:
                break
            dropped, freed, last = dropped + 1, freed + size + OVERHEAD, number
        connection.execute("DELETE FROM record WHERE number <= ?", (last,))
        return dropped, freed

    def _read(self, connection: sqlite3.Connection, most: int, octets: int) -> list[OutboxRecord]:
        found: list[OutboxRecord] = []
        size = 0
        rows = connection.execute("SELECT number, octets FROM record ORDER BY number LIMIT ?", (most,))
        for number, record in rows:
            size += len(record)
            if found and size > octets:
                break
            found.append(OutboxRecord(number, bytes(record)))
        return found

    def _remove(self, connection: sqlite3.Connection, number: int) -> None:
        connection.execute("BEGIN IMMEDIATE")
        freed = "SELECT coalesce(sum(length(octets) + ?), 0) FROM record WHERE number <= ?"
        octets = connection.execute(freed, (OVERHEAD, number)).fetchone()[0]
        connection.execute("DELETE FROM record WHERE number <= ?", (number,))
        connection.execute("COMMIT")
        self._octets -= octets
