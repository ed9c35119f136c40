"""The queue database changed by operations, inside a transaction that the caller begins and ends.

Every statement takes a whole batch: the sqlite3 module gives up Python's interpreter lock at each step of a
statement and has to win it back from a busy reactor thread, which costs more than the statement.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from elemta.errors import SpoolError
from elemta.spool.operations import (
    Assignment,
    Batch,
    DeliveryResult,
    NewMessage,
    Operation,
    OperatorChange,
    Payment,
    QueueCounts,
)
from elemta.spool.parts import Part, StoredMessage, assign, change, pay, settle, storable
from elemta.spool.records import HoldCause, MessageState, state_on_hold
from elemta.spool.rows import STATE_CODES, state_of

_MESSAGE = (
    "INSERT INTO message (id, queue_id, state, next_attempt_at, received_at, size, in_file, envelope,"
    " pending, hold_reason) VALUES {}"
)
_PART = (
    "INSERT OR REPLACE INTO part (message_id, number, lane, state, turn, attempts, warned, positions, hold,"
    " held_at) VALUES {}"
)
_NEW_PART = "INSERT INTO part (message_id, number, lane, state, turn, positions) VALUES {}"
_NEW_HELD_PART = (
    "INSERT INTO part (message_id, number, lane, state, turn, positions, hold, held_at) VALUES {}"
)
_BODY = "INSERT INTO body (id, header, content) VALUES {}"
_RECIPIENT = (
    "INSERT OR REPLACE INTO recipient (message_id, position, pending, status, code, enhanced, text, route,"
    " next_hop, at, owed) VALUES {}"
)
_PAID = """UPDATE recipient SET owed = 0 WHERE (message_id, position) IN
    (SELECT json_extract(value, '$[0]'), json_extract(value, '$[1]') FROM json_each(?))"""
_ATTEMPT = (
    "INSERT INTO attempt (message_id, number, position, status, code, enhanced, text, route, next_hop, at,"
    " seconds) VALUES {}"
)
# One row for the whole answer, so one step. A damaged row must not fail it, for it would fail the operations
# on all others: JSON has neither blobs nor infinity, so every value is cast, counts stay where one can be
# added, and recipients that can't be read are NULL.
_LOAD = """SELECT json_group_array(json_array(
    m.id, CAST(m.queue_id AS TEXT), CAST(m.state AS INTEGER),
    min(CAST(m.attempts AS INTEGER), 1000000000), CAST(m.size AS INTEGER),
    CAST(m.in_file AS INTEGER), CAST(m.hold_reason AS TEXT),
    CASE WHEN json_valid(CAST(m.envelope AS TEXT)) THEN json_extract(CAST(m.envelope AS TEXT), '$.to') END,
    (SELECT json_group_array(CAST(r.position AS INTEGER)) FROM recipient r
        WHERE r.message_id = m.id AND NOT r.pending),
    (SELECT min(max(CAST(a.number AS INTEGER)), 1000000000) FROM attempt a WHERE a.message_id = m.id),
    (SELECT json_group_array(CAST(r.position AS INTEGER)) FROM recipient r
        WHERE r.message_id = m.id AND r.owed > 0),
    (SELECT json_group_array(json_array(CAST(p.number AS INTEGER), CAST(p.lane AS TEXT),
        CAST(p.state AS INTEGER), printf('%!.17g', p.turn),
        min(CAST(p.attempts AS INTEGER), 1000000000), CAST(p.warned AS INTEGER),
        CAST(p.positions AS TEXT), CAST(p.hold AS INTEGER),
        CASE WHEN p.held_at IS NOT NULL THEN printf('%!.17g', p.held_at) END))
        FROM part p WHERE p.message_id = m.id), CAST(m.pending AS INTEGER)))
    FROM message m WHERE m.id IN (SELECT value FROM json_each(?))"""
_UPDATE = (
    "UPDATE message SET state = new.column2, attempts = new.column3, pending = new.column4,"
    " hold_reason = new.column5, next_attempt_at = coalesce(new.column6, next_attempt_at) FROM (VALUES {})"
    " AS new WHERE id = new.column1"
)
# The members of the list are [message, number].
_REMOVE_PARTS = """DELETE FROM part WHERE (message_id, number) IN
    (SELECT json_extract(value, '$[0]'), json_extract(value, '$[1]') FROM json_each(?))"""
_CHUNK = 64
_HOLD_CAUSES = {cause.value: cause for cause in HoldCause}

_Other = DeliveryResult | Assignment | OperatorChange | Payment


def apply(
    connection: sqlite3.Connection, operations: Iterable[Operation], batch: Batch, history: int
) -> None:
    """Write the operations; what can't be done for a reason of its own gets its error in the batch.

    Raises what SQLite raises; the caller rolls back and decides what the failure means.
    """
    new: list[NewMessage] = []
    others: list[_Other] = []
    for operation in operations:
        if type(operation) is NewMessage:
            new.append(operation)
        elif not isinstance(operation, NewMessage):
            others.append(operation)
    payments: dict[Operation, Operation] = {each.pays: each for each in new if each.pays is not None}
    others.extend(each.pays for each in new if each.pays is not None)
    found: dict[int, StoredMessage] = {}
    if others:
        found = _load(connection, {operation.key for operation in others})
        for operation in others:
            message = found.get(operation.key)
            if message is not None and (message.gone or message.queue_id != operation.queue_id):
                message = None
            error = _carry_out(message, operation)
            if error is not None:
                batch.errors[payments.get(operation, operation)] = error
    if new:
        _take_in(connection, [each for each in new if each not in batch.errors], batch.counts)
    if found:
        _write_back(connection, found.values(), batch, history)


def _carry_out(message: StoredMessage | None, operation: _Other) -> SpoolError | None:
    # Of one that is gone there is nothing more to say.
    if type(operation) is DeliveryResult:
        if message is not None:
            settle(message, operation)
    elif isinstance(operation, OperatorChange):
        return change(message, operation)
    elif isinstance(operation, Payment):
        return pay(message, operation)
    elif isinstance(operation, Assignment) and message is not None:
        assign(message, operation)
    return None


def remove(connection: sqlite3.Connection, keys: Iterable[int]) -> None:
    """Remove all that is stored of these messages."""
    wanted = json.dumps(list(keys))
    for table, column in (
        ("message", "id"),
        ("body", "id"),
        ("part", "message_id"),
        ("recipient", "message_id"),
        ("attempt", "message_id"),
    ):
        connection.execute(
            f"DELETE FROM {table} WHERE {column} IN (SELECT value FROM json_each(?))",  # noqa: S608 names are ours
            (wanted,),
        )


def _take_in(connection: sqlite3.Connection, new: Sequence[NewMessage], counts: QueueCounts) -> None:
    messages: list[tuple[object, ...]] = []
    bodies: list[tuple[object, ...]] = []
    parts: list[tuple[object, ...]] = []
    held: list[tuple[object, ...]] = []
    for message in new:
        key = message.key
        code = STATE_CODES[message.state]
        messages.append(
            (
                key,
                message.queue_id,
                code,
                message.received_at,
                message.received_at,
                message.size,
                message.content is None,
                message.envelope,
                message.pending,
                None if message.hold_reason is None else storable(message.hold_reason),
            )
        )
        bodies.append((key, message.header, message.content))
        for number, part in enumerate(message.parts):
            places = None if part.positions is None else json.dumps(part.positions)
            row = (key, number, storable(part.destination), code, part.turn, places)
            if message.state is MessageState.HOLD and message.hold is not HoldCause.OPERATOR:
                held.append((*row, message.hold.value, message.received_at))
            else:
                parts.append(row)
        on_hold = message.state is MessageState.HOLD
        counts.enter(state_on_hold([message.hold]) if on_hold else message.state, message.size)
    _write_rows(connection, _MESSAGE, messages)
    _write_rows(connection, _BODY, bodies)
    _write_rows(connection, _NEW_PART, parts)
    _write_rows(connection, _NEW_HELD_PART, held)


_statements: dict[tuple[str, int, int], str] = {}


def _write_rows(connection: sqlite3.Connection, statement: str, rows: Sequence[tuple[object, ...]]) -> None:
    """Execute a statement that has ``{}`` where a list of rows goes."""
    for part in _chunks(rows):
        shape = (statement, len(part), len(part[0]))
        text = _statements.get(shape)
        if text is None:
            marks = "(" + ",".join("?" * len(part[0])) + ")"
            text = _statements[shape] = statement.format(",".join([marks] * len(part)))
        connection.execute(text, [value for row in part for value in row])


def _chunks(rows: Sequence[tuple[object, ...]]) -> Iterator[Sequence[tuple[object, ...]]]:
    # Nearly every batch is one statement, and there are few enough of them to stay prepared.
    for start in range(0, len(rows), _CHUNK):
        yield rows[start : start + _CHUNK]


def _load(connection: sqlite3.Connection, keys: Iterable[int]) -> dict[int, StoredMessage]:
    text: str = connection.execute(_LOAD, (json.dumps(list(keys)),)).fetchone()[0]
    found: dict[int, StoredMessage] = {}
    for row in json.loads(text):
        key, queue_id, code, attempts, size, in_file, reason, recipients, finished, last = row[:10]
        owed, parts, pending = row[10:]
        state = state_of(code)
        readable = _are_recipients(recipients) and all(_are_places(part[6]) for part in parts)
        queued = found[key] = StoredMessage(
            key,
            queue_id,
            state,
            attempts,
            size,
            bool(in_file),
            reason,
            recipients if readable else (),
            set(finished),
            last or 0,
            [_part_of(part) for part in parts],
            state,
            set(owed),
            pending_unread=None if readable else pending,
        )
        queued.found = queued.seen_as
        queued.found_undeliverable = queued.undeliverable
    return found


def _are_recipients(value: Any) -> bool:
    if type(value) is not list or not value:
        return False
    for parts in value:
        if type(parts) is not list or len(parts) < 2 or not (type(parts[0]) is type(parts[1]) is str):
            return False
    return True


def _are_places(text: str | None) -> bool:
    if text is None:
        return True
    try:
        places = json.loads(text)
    except (ValueError, RecursionError):
        return False
    return isinstance(places, list) and all(type(place) is int for place in places)


def _part_of(values: Sequence[Any]) -> Part:
    number, destination, code, turn, attempts, warned, positions, hold, held_at = values
    # What can't be read becomes a part without recipients, which goes nowhere.
    places = None if positions is None else json.loads(positions) if _are_places(positions) else []
    return Part(
        number,
        destination,
        state_of(code),
        float(turn),
        attempts,
        bool(warned),
        places,
        _HOLD_CAUSES.get(hold, HoldCause.OPERATOR),
        None if held_at is None else float(held_at),
    )


def _write_back(
    connection: sqlite3.Connection, found: Iterable[StoredMessage], batch: Batch, history: int
) -> None:
    gone: list[int] = []
    updates: list[tuple[object, ...]] = []
    outcomes: list[tuple[object, ...]] = []
    attempts: list[tuple[object, ...]] = []
    too_old: list[tuple[int, int]] = []
    parts: list[tuple[object, ...]] = []
    left: list[tuple[int, int]] = []
    paid: list[tuple[int, int]] = []
    for message in found:
        if not message.changed and not message.gone:
            continue
        batch.counts.leave(message.found, message.size)
        batch.counts.undeliverable -= message.found_undeliverable
        if message.gone:
            gone.append(message.key)
            if message.in_file:
                batch.freed.append(message.queue_id)
            continue
        batch.counts.enter(message.seen_as, message.size)
        batch.counts.undeliverable += message.undeliverable
        updates.append(
            (
                message.key,
                STATE_CODES[message.state],
                message.attempts,
                message.pending,
                message.hold_reason,
                message.next_attempt_at,
            )
        )
        parts.extend(_part_row(message.key, part) for part in message.parts if part.changed and not part.gone)
        left.extend((message.key, part.number) for part in message.parts if part.gone)
        outcomes.extend(message.outcomes.values())
        paid.extend((message.key, position) for position in message.paid)
        attempts.extend(message.history[-history:])
        if message.history and message.attempt > history:
            too_old.append((message.key, message.attempt - history))
    if gone:
        remove(connection, gone)
        batch.gone.extend(gone)
    if left:
        connection.execute(_REMOVE_PARTS, (json.dumps(left),))
    _write_rows(connection, _UPDATE, updates)
    _write_rows(connection, _PART, parts)
    _write_rows(connection, _RECIPIENT, outcomes)
    if paid:
        connection.execute(_PAID, (json.dumps(paid),))
    _write_rows(connection, _ATTEMPT, attempts)
    if too_old:
        connection.executemany("DELETE FROM attempt WHERE message_id = ? AND number <= ?", too_old)


def _part_row(key: int, part: Part) -> tuple[object, ...]:
    places = None if part.positions is None else json.dumps(part.positions)
    state = STATE_CODES[part.state]
    return (
        key,
        part.number,
        part.destination,
        state,
        part.turn,
        part.attempts,
        part.warned,
        places,
        part.hold.value,
        part.held_at,
    )
