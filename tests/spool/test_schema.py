"""A spool of an older format becomes one of the current, with all that is in it."""

from __future__ import annotations

import json
import sqlite3
import time
from collections import Counter
from random import Random

import pytest
from pytest_twisted import ensureDeferred

from elemta.errors import SpoolFormatError
from elemta.outcome import Status
from elemta.spool import MessageState
from elemta.spool.queue_id import QueueIds, row_key
from elemta.spool.schema import _STEPS, VERSION, VERSION_1, upgrade
from tests.spool.mail import outcome, put, read, recipients

STORED = (MessageState.ACTIVE, MessageState.DEFERRED, MessageState.HOLD)


@pytest.fixture
def version_1(tmp_path):
    """A spool as a pre-release left it: one message of each state, one with a recipient already served."""
    partition = tmp_path / "spool" / "p0"
    (partition / "bodies").mkdir(parents=True)
    connection = sqlite3.connect(partition / "queue.db", isolation_level=None)
    for statement in VERSION_1:
        connection.execute(statement)
    ids = QueueIds(time.time, Random(1))
    made = []
    for state, body in enumerate((b"active", b"deferred", b"held" * 50_000)):
        queue_id = ids.next()
        envelope = {
            "from": ["alice", "example.org"],
            "to": [["bob", "example.com"], ["eve", "example.com"]],
            "client": ["192.0.2.1", "helo", "mx", "SID", None, None],
        }
        in_file = len(body) > 64 * 1024
        connection.execute(
            "INSERT INTO message VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
            (row_key(queue_id), queue_id, state, 10.5, 5.25, len(body) + 3, in_file, json.dumps(envelope)),
        )
        connection.execute(
            "INSERT INTO body VALUES (?, ?, ?)", (row_key(queue_id), b"H\r\n", None if in_file else body)
        )
        if in_file:
            (partition / "bodies" / queue_id).write_bytes(body)
        made.append((queue_id, body))
    key = row_key(made[1][0])
    connection.execute(
        "INSERT INTO recipient VALUES (?, 0, 1, 'ok', 6.0), (?, 1, 0, 'later', 7.0)", (key, key)
    )
    connection.close()
    return made


@ensureDeferred
async def test_a_version_1_spool_is_upgraded_with_its_mail(open_spool, version_1, tmp_path):
    spool = await open_spool()
    (active, _), (deferred, _), (held, _) = version_1
    for queue_id, body in version_1:
        assert await read(spool, queue_id) == b"H\r\n" + body
    assert (await spool.show(active)).message.pending == recipients("bob", "eve")
    record = await spool.show(deferred)
    assert (record.message.state, record.message.attempts) == (MessageState.DEFERRED, 1)
    assert record.message.pending == recipients("eve")
    assert [(last.status, last.text, last.at) for last in (said.outcome for said in record.recipients)] == [
        (Status.DELIVERED, "ok", 6.0),
        (Status.DEFERRED, "later", 7.0),
    ]
    assert [line.pending for line in await spool.list()] == [2, 1, 2]
    # Their destination is not stored yet, so they stand in the destination without a name.
    assert await spool.destinations(None, 10) == [("", 0.0)]
    (found,) = await spool.due(time.time(), {"": 10})
    assert [
        (message.queue_id, message.part, message.attempts, message.pending) for message in found.messages
    ] == [(active, 0, 0, recipients("bob", "eve")), (deferred, 0, 1, recipients("eve"))]
    assert "before the upgrade" in ((await spool.show(held)).message.hold_reason or "")
    # And it lives on: what is left can be settled, new mail comes in.
    await spool.settle(
        deferred, [outcome(deferred, "eve", Status.DELIVERED)], retry_at=None, hold_reason=None
    )
    fresh = await put(spool, b"new")
    await spool.close()
    again = await open_spool()
    assert [line.queue_id for line in await again.list()] == [active, held, fresh.queue_id]


@pytest.mark.parametrize("version", range(1, VERSION))
@ensureDeferred
async def test_a_spool_of_every_older_version_is_upgraded_in_place(open_spool, version_1, tmp_path, version):
    database = tmp_path / "spool" / "p0" / "queue.db"
    connection = sqlite3.connect(database, isolation_level=None)
    for step in range(1, version):
        for statement in _STEPS[step]:
            connection.execute(statement)
    assert connection.execute("PRAGMA user_version").fetchone() == (version,)
    connection.close()
    spool = await open_spool()
    stats = await spool.stats()
    assert +Counter(stats.messages) == dict.fromkeys(STORED, 1)
    assert +Counter(stats.octets) == {
        state: len(body) + 3 for state, (_, body) in zip(STORED, version_1, strict=True)
    }
    for state, (queue_id, body) in zip(STORED, version_1, strict=True):
        assert [line.queue_id for line in await spool.list(state)] == [queue_id]
        assert await read(spool, queue_id) == b"H\r\n" + body
    assert await spool.destinations(None, 10) == [("", 0.0)]


@ensureDeferred
async def test_an_upgraded_spool_has_the_tables_of_a_new_one(open_spool, version_1, tmp_path):
    await (await open_spool()).close()
    await (await open_spool(tmp_path / "new")).close()
    shapes = []
    for directory in ("spool", "new"):
        connection = sqlite3.connect(tmp_path / directory / "p0" / "queue.db")
        tables = [
            name for (name,) in connection.execute("SELECT name FROM sqlite_schema WHERE type = 'table'")
        ]
        shapes.append(
            {
                "version": connection.execute("PRAGMA user_version").fetchone(),
                "indexes": sorted(
                    connection.execute("SELECT name, sql FROM sqlite_schema WHERE type = 'index'")
                ),
                **{
                    name: connection.execute(f"PRAGMA table_info({name})").fetchall()
                    for name in sorted(tables)
                },
            }
        )
        connection.close()
    assert shapes[0] == shapes[1]
    assert shapes[0]["version"] == (VERSION,)


def test_an_upgrade_that_fails_changes_nothing(version_1, tmp_path):
    class Full(sqlite3.Connection):
        def execute(self, statement, *values):
            if statement.startswith("UPDATE message"):
                raise sqlite3.OperationalError("database or disk is full")
            return super().execute(statement, *values)

    database = tmp_path / "spool" / "p0" / "queue.db"
    before = _dump(database)
    connection = sqlite3.connect(database, isolation_level=None, factory=Full)
    with pytest.raises(sqlite3.OperationalError):
        upgrade(connection)
    connection.close()
    assert _dump(database) == before


@ensureDeferred
async def test_a_spool_of_a_newer_elemta_is_refused_and_left_alone(open_spool, tmp_path):
    await (await open_spool()).close()
    database = tmp_path / "spool" / "p0" / "queue.db"
    connection = sqlite3.connect(database)
    connection.execute(f"PRAGMA user_version = {VERSION + 1}")
    connection.close()
    before = _dump(database)
    with pytest.raises(SpoolFormatError, match=f"format {VERSION + 1}, written by a newer Elemta"):
        await open_spool()
    assert _dump(database) == before


def _dump(database):
    connection = sqlite3.connect(database)
    try:
        return [connection.execute("PRAGMA user_version").fetchone(), *connection.iterdump()]
    finally:
        connection.close()
