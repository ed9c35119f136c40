"""A spool with any number of messages, written past the spool: a million of them takes half a minute."""

from __future__ import annotations

import json
import sqlite3
from pathlib import Path
from random import Random

from elemta.spool.queue_id import QueueIds, row_key
from elemta.spool.schema import upgrade

_TOGETHER = 10_000
# Where the time of arrival of the first message lies.
BEGIN = 1_700_000_000.0


def domain(number: int) -> str:
    return f"d{number:06d}.example"


def fill(root: Path, messages: int, domains: int, begin: float = BEGIN) -> None:
    """Messages one second apart, each for the next of the domains; every second one is deferred."""
    (root / "p0" / "bodies").mkdir(parents=True)
    connection = sqlite3.connect(root / "p0" / "queue.db", isolation_level=None)
    for pragma in ("auto_vacuum = INCREMENTAL", "journal_mode = WAL", "synchronous = OFF"):
        connection.execute(f"PRAGMA {pragma}").fetchall()
    upgrade(connection)
    at = begin
    ids = QueueIds(lambda: at, Random(1))
    connection.execute("BEGIN")
    for start in range(0, messages, _TOGETHER):
        rows = []
        for number in range(start, min(start + _TOGETHER, messages)):
            at = begin + number
            queue_id = ids.next()
            rows.append((row_key(queue_id), queue_id, number // domains % 2, at, domain(number % domains)))
        _write(connection, rows)
    connection.execute("COMMIT")
    connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
    connection.close()


def envelope(name: str) -> str:
    value = {
        "from": ["alice", "example.org"],
        "to": [["bob", name]],
        "client": ["192.0.2.1", "client.example", "mx", "SESSION", None, None],
    }
    return json.dumps(value, separators=(",", ":"))


def _write(connection: sqlite3.Connection, rows: list[tuple[int | None, str, int, float, str]]) -> None:
    connection.executemany(
        "INSERT INTO message (id, queue_id, state, next_attempt_at, received_at, size, in_file, envelope,"
        " pending) VALUES (?, ?, ?, ?, ?, 503, 0, ?, 1)",
        [(key, queue_id, state, at, at, envelope(name)) for key, queue_id, state, at, name in rows],
    )
    connection.executemany(
        "INSERT INTO body (id, header, content) VALUES (?, x'480d0a', zeroblob(500))",
        [(row[0],) for row in rows],
    )
    connection.executemany(
        "INSERT INTO part (message_id, number, lane, state, turn) VALUES (?, 0, ?, ?, ?)",
        [(key, name, state, at) for key, _, state, at, name in rows],
    )
