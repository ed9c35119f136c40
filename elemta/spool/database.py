"""The queue database when it is opened to write: connected, counted, and cleaned up after a crash."""

from __future__ import annotations

import sqlite3

from twisted.logger import Logger

from elemta.errors import SpoolError, SpoolFormatError
from elemta.runtime.disk import Disk
from elemta.spool.leftovers import Leftovers
from elemta.spool.operations import QueueCounts
from elemta.spool.partition import Places
from elemta.spool.parts import ROWS_OF_MESSAGE, ROWS_OF_RECIPIENT
from elemta.spool.queue_id import row_key
from elemta.spool.record_file import TEMPORARY
from elemta.spool.records import HoldCause, MessageState
from elemta.spool.rows import STATE_CODES, STATE_INDEXES
from elemta.spool.schema import VERSION, format_of, upgrade

_log = Logger()

# The log is moved by `checkpoint`, after the callers have their answer, never inside their commit.
_PRAGMAS = (
    "synchronous = FULL",
    "wal_autocheckpoint = 0",
    "secure_delete = OFF",
    "cache_size = -8192",
    "temp_store = MEMORY",
)

# Read from the index of a state alone, which is a small part of the database.
_COUNT = {
    state: f"SELECT count(*), coalesce(sum(size), 0) FROM message INDEXED BY {index}"  # noqa: S608
    f" WHERE state = {STATE_CODES[state]}"
    for state, index in STATE_INDEXES.items()
}
# Those of the held ones that operators see as a state of their own; see `records.state_on_hold`.
_ON_HOLD = (
    "SELECT count(*), coalesce(sum(m.size), 0) FROM"
    " (SELECT DISTINCT message_id FROM part INDEXED BY part_held WHERE hold = {0}"
    " AND held_at IS NOT NULL) held CROSS JOIN message m ON m.id = held.message_id WHERE m.state = 2"
)
_NOTHING_ELSE = " AND NOT EXISTS (SELECT 1 FROM part p WHERE p.message_id = m.id AND p.hold <> {0})"
_COUNT_ON_HOLD = {
    MessageState.QUARANTINE: _ON_HOLD.format(HoldCause.QUARANTINE.value),
    MessageState.UNDELIVERABLE: (_ON_HOLD + _NOTHING_ELSE).format(HoldCause.UNDELIVERABLE.value),
}
_UNDELIVERABLE = (
    f"SELECT coalesce(sum(m.size + {ROWS_OF_MESSAGE}"  # noqa: S608 - numbers of ours
    f" + {ROWS_OF_RECIPIENT} * CASE WHEN json_valid(CAST(m.envelope AS TEXT))"
    " THEN coalesce(json_array_length(CAST(m.envelope AS TEXT), '$.to'), 0) ELSE 0 END), 0) FROM"
    " (SELECT DISTINCT message_id FROM part INDEXED BY part_held"
    f" WHERE hold = {HoldCause.UNDELIVERABLE.value} AND held_at IS NOT NULL) held"
    " CROSS JOIN message m ON m.id = held.message_id"
)
_IN_FILES = (
    "SELECT queue_id, id FROM message INDEXED BY message_in_file WHERE in_file = 1 AND id > ?"
    " ORDER BY id LIMIT ?"
)
_FILES_AT_ONCE = 1000


def connect(disk: Disk, places: Places) -> sqlite3.Connection:
    """A connection that writes; the database has the newest format then.

    SpoolFormatError: not ours or newer. SpoolError, sqlite3.Error: it can't be used.
    """
    connection = disk.connect(places.database)
    try:
        format_of(connection)  # before anything is changed
        # Counts in a new database only; lets `maintain` give free pages back to a full disk.
        connection.execute("PRAGMA auto_vacuum = INCREMENTAL")
        mode = connection.execute("PRAGMA journal_mode = WAL").fetchone()[0]
        if mode != "wal":
            raise SpoolError(f"the file system of {places.directory} can't keep a write-ahead log")  # noqa: TRY301
        for pragma in _PRAGMAS:
            connection.execute(f"PRAGMA {pragma}")
        upgrade(connection)
    except BaseException as error:
        connection.close()
        if getattr(error, "sqlite_errorcode", 0) == sqlite3.SQLITE_NOTADB:
            raise SpoolFormatError(f"{places.database} is not a database") from error
        raise
    return connection


def count(connection: sqlite3.Connection) -> QueueCounts:
    """The numbers of the queue, from its indexes."""
    counts = QueueCounts()
    for state, statement in _COUNT.items():
        messages, octets = connection.execute(statement).fetchone()
        counts.messages[state] = messages
        counts.octets[state] = octets
    for state, statement in _COUNT_ON_HOLD.items():
        messages, octets = connection.execute(statement).fetchone()
        counts.messages[state] = messages
        counts.octets[state] = octets
        counts.messages[MessageState.HOLD] -= messages
        counts.octets[MessageState.HOLD] -= octets
    counts.undeliverable = connection.execute(_UNDELIVERABLE).fetchone()[0]
    return counts


def clean_up(connection: sqlite3.Connection, disk: Disk, places: Places, leftovers: Leftovers) -> None:
    """Remove bodies that no row knows (a crash between file and row), and say which rows have none.

    One that the disk does not let go is no reason not to start.
    """
    # Little by little, because other threads wait for the interpreter while a large dict is made.
    names = {name: None for name in disk.names(places.bodies)}  # noqa: C420
    missing: list[str] = []
    after = -1
    while rows := connection.execute(_IN_FILES, (after, _FILES_AT_ONCE)).fetchall():
        after = rows[-1][1]
        for queue_id, _ in rows:
            if queue_id in names:
                del names[queue_id]
            else:
                missing.append(queue_id)
    for name in names:
        ours = name.startswith(TEMPORARY) or row_key(name) is not None
        if ours and leftovers.remove([places.bodies / name]):
            _log.info("removed a body that no message needs", event="spool.orphan_body_removed", file=name)
    for queue_id in missing:
        # It stays where it is: the file may come back. If not, its sender gets a notice when it expires.
        _log.critical(
            "a message's body file is missing",
            event="spool.body_missing",
            queue_id=queue_id,
        )


def write_a_page(connection: sqlite3.Connection) -> None:
    """Have the transaction write in any case, so that its success means a sync that worked."""
    connection.execute(f"PRAGMA user_version = {VERSION}")
