"""The read side of the queue database: one connection, used by the reading thread alone."""

from __future__ import annotations

import io
import json
import sqlite3
from collections.abc import Collection, Sequence
from contextlib import suppress
from typing import Any

from twisted.logger import Logger

from elemta.errors import SpoolError, UnknownMessage
from elemta.outcome import Status
from elemta.spool.content import Content
from elemta.spool.disk import Disk
from elemta.spool.partition import Places
from elemta.spool.queueid import row_key
from elemta.spool.records import (
    AttemptRecord,
    MessageRecord,
    MessageSummary,
    QueuedMessage,
    RecipientRecord,
    State,
)
from elemta.spool.rows import MESSAGE_COLUMNS, STATE_CODES, message_of

_log = Logger()

_FINISHED = (
    "(SELECT json_group_array(r.position) FROM recipient r WHERE r.message_id = m.id AND NOT r.pending)"
)
_NOT_THESE = "m.id NOT IN (SELECT value FROM json_each(?))"
# The state is spelled out in every condition, so that SQLite sees that a partial index serves.
_INDEX = {State.DEFERRED: "message_deferred", State.HOLD: "message_held", State.ACTIVE: "message_due"}


class Queries:
    """Answers questions about the queue; opens its connection when it needs one, and anew after a failure."""

    def __init__(self, places: Places, disk: Disk) -> None:
        self._places = places
        self._disk = disk
        self._connection: sqlite3.Connection | None = None

    def close(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            with suppress(sqlite3.Error):  # it only read
                connection.close()

    def due(self, now: float, limit: int, excluding: Collection[str]) -> list[QueuedMessage]:
        """Messages to attempt: the active ones first, then the deferred ones whose time has come."""
        excluded = _keys(excluding)
        rows = self._due_rows("m.state = 0", (), excluded, limit)
        if len(rows) < limit:
            rows += self._due_rows(
                "m.state = 1 AND m.next_attempt_at <= ?", (now,), excluded, limit - len(rows)
            )
        return [message_of(row, json.loads(row[-1])) for row in rows]

    def next_due(self, excluding: Collection[str]) -> float | None:
        """When the next attempt is due, in seconds since the epoch; None if no message waits for one."""
        excluded = _keys(excluding)
        for state in (0, 1):
            row = self._one(
                f"SELECT m.next_attempt_at FROM message m WHERE m.state = {state} AND {_NOT_THESE}"  # noqa: S608
                " ORDER BY m.next_attempt_at LIMIT 1",
                (excluded,),
            )
            if row is not None:
                found: float = row[0]
                return found
        return None

    def oldest(self) -> float | None:
        """When the oldest message came in; keys are in the order of time."""
        row = self._one("SELECT received_at FROM message ORDER BY id LIMIT 1", ())
        return None if row is None else float(row[0])

    def content(self, queue_id: str) -> Content:
        """The message as it is sent on. UnknownMessage; SpoolError when its body can't be read."""
        row = self._one(
            "SELECT b.header, b.content, m.size FROM message m JOIN body b ON b.id = m.id"
            " WHERE m.id = ? AND m.queue_id = ?",
            (row_key(queue_id), queue_id),
        )
        if row is None:
            raise _unknown(queue_id)
        header, content, size = row
        if content is not None:
            return Content(header, io.BytesIO(content), len(content))
        try:
            return Content(header, self._places.body(queue_id).open("rb"), size - len(header))
        except OSError as error:
            _log.critical(
                "the body file of a message can't be opened",
                event="spool.body_unreadable",
                queue_id=queue_id,
                reason=str(error),
            )
            raise SpoolError(f"the body of {queue_id} can't be opened: {error}") from error

    def page(self, state: State | None, limit: int, after: str | None) -> list[MessageSummary]:
        """A page of the queue in the order of arrival, from behind ``after`` on."""
        start = -1 if after is None else _position(after)
        table, condition = "message m", ""
        if state is not None:
            table += f" INDEXED BY {_INDEX[state]}"
            condition = f"AND m.state = {STATE_CODES[state]}"
        rows = self._all(
            f"SELECT {MESSAGE_COLUMNS} FROM {table} WHERE m.id > ? {condition} ORDER BY m.id LIMIT ?",  # noqa: S608
            (start, limit),
        )
        return [_summary(row) for row in rows]

    def show(self, queue_id: str) -> MessageRecord:
        """All that is known of one message. UnknownMessage."""
        key = row_key(queue_id)
        row = self._one(
            f"SELECT {MESSAGE_COLUMNS}, {_FINISHED}, m.in_file FROM message m"  # noqa: S608
            " WHERE m.id = ? AND m.queue_id = ?",
            (key, queue_id),
        )
        if row is None:
            raise _unknown(queue_id)
        message = message_of(row, json.loads(row[-2]))
        recipients = message.envelope.recipients
        said = {
            position: rest
            for position, *rest in self._all(
                "SELECT position, pending, status, code, enhanced, text, route, next_hop, at FROM recipient"
                " WHERE message_id = ?",
                (key,),
            )
        }
        records = tuple(
            RecipientRecord(recipient, bool(rest[0]), Status(rest[1]), *rest[2:])
            if (rest := said.get(position)) is not None
            else RecipientRecord(recipient, pending=True)
            for position, recipient in enumerate(recipients)
        )
        history = tuple(
            AttemptRecord(number, recipients[position].address, Status(status), *rest)
            for number, position, status, *rest in self._all(
                "SELECT number, position, status, code, enhanced, text, route, next_hop, at, seconds"
                " FROM attempt WHERE message_id = ? ORDER BY number",
                (key,),
            )
        )
        return MessageRecord(message, records, history, bool(row[-1]))

    def _due_rows(
        self, condition: str, values: tuple[object, ...], excluded: str, limit: int
    ) -> list[tuple[Any, ...]]:
        return self._all(
            f"SELECT {MESSAGE_COLUMNS}, {_FINISHED} FROM message m INDEXED BY message_due"  # noqa: S608
            f" WHERE {condition} AND {_NOT_THESE} ORDER BY m.next_attempt_at LIMIT ?",
            (*values, excluded, limit),
        )

    def _one(self, statement: str, values: Sequence[object]) -> tuple[Any, ...] | None:
        rows = self._all(statement, values)
        return rows[0] if rows else None

    def _all(self, statement: str, values: Sequence[object]) -> list[tuple[Any, ...]]:
        try:
            if self._connection is None:
                self._connection = self._disk.connect(self._places.database)
                self._connection.execute("PRAGMA query_only = ON")
            return self._connection.execute(statement, tuple(values)).fetchall()
        except sqlite3.Error as error:
            self.close()
            _log.error("the queue could not be read", event="spool.read_failed", reason=str(error))
            raise SpoolError(f"the queue could not be read: {error}") from error


def _keys(queue_ids: Collection[str]) -> str:
    return json.dumps([row_key(queue_id) for queue_id in queue_ids])


def _position(queue_id: str) -> int:
    key = row_key(queue_id)
    if key is None:
        raise _unknown(queue_id)
    return key


def _unknown(queue_id: str) -> UnknownMessage:
    return UnknownMessage(f"there is no message {queue_id} in the queue")


def _summary(row: Sequence[Any]) -> MessageSummary:
    message = message_of(row, ())
    return MessageSummary(
        queue_id=message.queue_id,
        state=message.state,
        sender=message.envelope.sender,
        recipients=len(message.envelope.recipients),
        pending=row[8],
        size=message.envelope.size,
        received_at=message.envelope.received_at,
        next_attempt_at=message.next_attempt_at,
        attempts=message.attempts,
        hold_reason=message.hold_reason,
    )
