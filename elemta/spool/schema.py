"""The format of the queue database, and the way from every older one to it.

The version is SQLite's ``user_version``; ``application_id`` marks the file as ours. Version 1 is the format
of the first pre-releases: no reason for a hold, no count and no history of attempts. Version 2, of later
ones, had one next attempt for a message; since version 3 recipients that go one way are a part with its own.
Version 4 notes what put a part on hold, and when. Since version 5 the indexes by state say how large the
messages are, so that counting needs no other page, and one index serves all holds that have an end. Version 6
notes whose sender has still to hear of a delivery.
"""

from __future__ import annotations

import sqlite3

from twisted.logger import Logger

from elemta.errors import SpoolFormatError
from elemta.runtime.disk import transaction

_log = Logger()

APPLICATION_ID = 0x454C4D54  # "ELMT"
VERSION = 6

_MARK = f"PRAGMA application_id = {APPLICATION_ID}"
_DUE = "CREATE INDEX message_due ON message (state, next_attempt_at)"
_IN_FILE = "CREATE INDEX message_in_file ON message (id) WHERE in_file = 1"
_BODY = "CREATE TABLE body (id INTEGER PRIMARY KEY, header BLOB NOT NULL, content BLOB)"
# The listing by state pages through these, so does the search for what is too old, and a start counts them.
# A new message is in one of them, and its part in `part_lane`; no other index costs it anything.
_BY_STATE = (
    "CREATE INDEX message_active ON message (id, size, state) WHERE state = 0",
    "CREATE INDEX message_deferred ON message (id, size, state) WHERE state = 1",
    "CREATE INDEX message_held ON message (id, size, state) WHERE state = 2",
)
_BY_STATE_2 = (
    "CREATE INDEX message_deferred ON message (id) WHERE state = 1",
    "CREATE INDEX message_held ON message (id) WHERE state = 2",
)
_ACTIVE_3 = "CREATE INDEX message_active ON message (id) WHERE state = 0"
# A recipient has a row from its first outcome on; until then the envelope says all there is to say.
_RECIPIENT = """CREATE TABLE recipient (
    message_id INTEGER NOT NULL, position INTEGER NOT NULL, pending INTEGER NOT NULL,
    status TEXT NOT NULL, code INTEGER NOT NULL, enhanced TEXT NOT NULL, text TEXT NOT NULL,
    route TEXT NOT NULL, next_hop TEXT NOT NULL, at REAL NOT NULL,
    PRIMARY KEY (message_id, position)) WITHOUT ROWID"""
_ATTEMPT = """CREATE TABLE attempt (
    message_id INTEGER NOT NULL, number INTEGER NOT NULL, position INTEGER NOT NULL,
    status TEXT NOT NULL, code INTEGER NOT NULL, enhanced TEXT NOT NULL, text TEXT NOT NULL,
    route TEXT NOT NULL, next_hop TEXT NOT NULL, at REAL NOT NULL, seconds REAL NOT NULL,
    PRIMARY KEY (message_id, number)) WITHOUT ROWID"""
# What put a part on hold (a `HoldCause`), and when; NULL where the hold has no end.
_HOLD_COLUMNS = ("hold INTEGER NOT NULL DEFAULT 0", "held_at REAL")
_HELD = "CREATE INDEX part_held ON part (hold, held_at) WHERE held_at IS NOT NULL"
_HELD_4 = (
    "CREATE INDEX part_held ON part (held_at) WHERE held_at IS NOT NULL",
    "CREATE INDEX part_undeliverable ON part (held_at) WHERE hold = 1",
)
# Whether a notice of the delivery is still to be sent, and its kind: 1 relayed, 2 to its place; 0 none.
_OWED = (
    "ALTER TABLE recipient ADD COLUMN owed INTEGER NOT NULL DEFAULT 0",
    "CREATE INDEX recipient_owed ON recipient (message_id) WHERE owed > 0",
)
# What is scheduled: recipients of one message that go one way, its destination. ``turn`` orders the parts
# of a destination:
# for an active one its place in the line, for a deferred one the time of its next attempt. ``positions`` is a
# JSON list of the recipients' positions, or NULL for all of them, which is nearly always so.
_PART = (
    """CREATE TABLE part (
    message_id INTEGER NOT NULL, number INTEGER NOT NULL, lane TEXT NOT NULL,
    state INTEGER NOT NULL CHECK (state BETWEEN 0 AND 2), turn REAL NOT NULL,
    attempts INTEGER NOT NULL DEFAULT 0, warned INTEGER NOT NULL DEFAULT 0, positions TEXT,
    PRIMARY KEY (message_id, number)) WITHOUT ROWID""",
    "CREATE INDEX part_lane ON part (lane, state, turn)",
)

VERSION_1 = (
    _MARK,
    """CREATE TABLE message (
    id INTEGER PRIMARY KEY, queue_id TEXT NOT NULL, state INTEGER NOT NULL CHECK (state BETWEEN 0 AND 2),
    next_attempt_at REAL NOT NULL, received_at REAL NOT NULL, size INTEGER NOT NULL,
    in_file INTEGER NOT NULL, envelope TEXT NOT NULL)""",
    _DUE,
    _IN_FILE,
    _BODY,
    """CREATE TABLE recipient (
    message_id INTEGER NOT NULL, position INTEGER NOT NULL, delivered INTEGER NOT NULL,
    text TEXT NOT NULL, at REAL NOT NULL, PRIMARY KEY (message_id, position)) WITHOUT ROWID""",
    "PRAGMA user_version = 1",
)

_CURRENT = (
    _MARK,
    """CREATE TABLE message (
    id INTEGER PRIMARY KEY, queue_id TEXT NOT NULL, state INTEGER NOT NULL CHECK (state BETWEEN 0 AND 2),
    next_attempt_at REAL NOT NULL, received_at REAL NOT NULL, size INTEGER NOT NULL,
    in_file INTEGER NOT NULL, envelope TEXT NOT NULL, attempts INTEGER NOT NULL DEFAULT 0,
    pending INTEGER NOT NULL DEFAULT 0, hold_reason TEXT)""",
    _IN_FILE,
    *_BY_STATE,
    _BODY,
    *_PART,
    *(f"ALTER TABLE part ADD COLUMN {column}" for column in _HOLD_COLUMNS),
    _HELD,
    _RECIPIENT,
    *_OWED,
    _ATTEMPT,
    f"PRAGMA user_version = {VERSION}",
)

# From the version that is the key to the next one.
_STEPS = {
    1: (
        "ALTER TABLE message ADD COLUMN attempts INTEGER NOT NULL DEFAULT 0",
        "ALTER TABLE message ADD COLUMN pending INTEGER NOT NULL DEFAULT 0",
        "ALTER TABLE message ADD COLUMN hold_reason TEXT",
        "ALTER TABLE recipient RENAME TO recipient_1",
        _RECIPIENT,
        """INSERT INTO recipient SELECT message_id, position, NOT delivered,
        CASE WHEN delivered THEN 'delivered' ELSE 'deferred' END, 0, '', text, '', '', at FROM recipient_1""",
        "DROP TABLE recipient_1",
        _ATTEMPT,
        *_BY_STATE_2,
        # A recipient with an outcome means that there was an attempt, though attempts were not counted.
        """UPDATE message SET
        attempts = EXISTS (SELECT 1 FROM recipient r WHERE r.message_id = message.id),
        pending = json_array_length(envelope, '$.to')
            - (SELECT count(*) FROM recipient r WHERE r.message_id = message.id AND NOT r.pending),
        hold_reason = CASE state WHEN 2 THEN 'held before the upgrade; the reason was not recorded' END""",
        "PRAGMA user_version = 2",
    ),
    2: (
        *_PART,
        # Their destination is not known yet: they stand in the destination without a name.
        """INSERT INTO part SELECT id, 0, '', state, next_attempt_at, attempts, 0, NULL FROM message""",
        "DROP INDEX message_due",
        _ACTIVE_3,
        "PRAGMA user_version = 3",
    ),
    3: (
        *(f"ALTER TABLE part ADD COLUMN {column}" for column in _HOLD_COLUMNS),
        *_HELD_4,
        # What others put on hold ends from now on; the cause of the rest is unknown, so it stays.
        """UPDATE part SET hold = 1, held_at = strftime('%s', 'now') + 0.0 WHERE state = 2 AND message_id IN
        (SELECT id FROM message WHERE hold_reason LIKE 'undeliverable, and the sender <> can''t be told%')""",
        """UPDATE part SET hold = 5, held_at = strftime('%s', 'now') + 0.0 WHERE state = 2 AND message_id IN
        (SELECT id FROM message WHERE hold_reason = 'the body file is missing')""",
        "PRAGMA user_version = 4",
    ),
    4: (
        *(f"DROP INDEX message_{state}" for state in ("active", "deferred", "held")),
        *_BY_STATE,
        "DROP INDEX part_held",
        "DROP INDEX part_undeliverable",
        _HELD,
        "PRAGMA user_version = 5",
    ),
    5: (*_OWED, "PRAGMA user_version = 6"),
}


def upgrade(connection: sqlite3.Connection) -> None:
    """Bring a database to the current version, or create it; each step is one transaction.

    SpoolFormatError: written by a newer Elemta, or not a queue database at all (then nothing is changed).
    """
    version = format_of(connection)
    if version == VERSION:
        return
    if version == 0:
        _run(connection, _CURRENT)
        return
    while version < VERSION:
        _log.info(
            "upgrading the spool's format",
            event="spool.upgraded",
            from_version=version,
            to_version=version + 1,
        )
        _run(connection, _STEPS[version])
        version += 1


def format_of(connection: sqlite3.Connection) -> int:
    """The version of a database that is ours, 0 for an empty one; changes nothing. SpoolFormatError."""
    version: int = connection.execute("PRAGMA user_version").fetchone()[0]
    mark: int = connection.execute("PRAGMA application_id").fetchone()[0]
    empty = not connection.execute("SELECT count(*) FROM sqlite_schema").fetchone()[0]
    if empty and version == 0:
        return 0
    if mark != APPLICATION_ID or version == 0:
        raise SpoolFormatError("queue.db is a database, but not of Elemta's spool")
    if version > VERSION:
        raise SpoolFormatError(
            f"the spool has format {version}, written by a newer Elemta; this one knows up to {VERSION}"
        )
    return version


def _run(connection: sqlite3.Connection, statements: tuple[str, ...]) -> None:
    with transaction(connection):
        for statement in statements:
            connection.execute(statement)
