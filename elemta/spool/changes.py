"""The queue database changed by operations, inside a transaction that someone else begins and ends.

Every statement takes a whole batch: the sqlite3 module gives up Python's interpreter lock at each step of a
statement and has to win it back from a busy reactor thread, which costs more than the statement.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from twisted.logger import Logger

from elemta.address import Address
from elemta.errors import SpoolError, UnknownMessage
from elemta.outcome import Outcome, Status
from elemta.spool.operations import Action, Batch, Change, Ledger, NewMessage, Operation, Settlement
from elemta.spool.records import State
from elemta.spool.rows import STATE_CODES, STATES

_log = Logger()

_MESSAGE = (
    "INSERT INTO message (id, queue_id, state, next_attempt_at, received_at, size, in_file, envelope,"
    " pending, hold_reason) VALUES {}"
)
_BODY = "INSERT INTO body (id, header, content) VALUES {}"
_RECIPIENT = (
    "INSERT OR REPLACE INTO recipient (message_id, position, pending, status, code, enhanced, text, route,"
    " next_hop, at) VALUES {}"
)
_ATTEMPT = (
    "INSERT INTO attempt (message_id, number, position, status, code, enhanced, text, route, next_hop, at,"
    " seconds) VALUES {}"
)
# One row for the whole answer, so one step.
_LOAD = """SELECT json_group_array(json_array(
    m.id, m.queue_id, m.state, m.attempts, m.size, m.in_file, m.hold_reason,
    json_extract(m.envelope, '$.to'),
    (SELECT json_group_array(r.position) FROM recipient r WHERE r.message_id = m.id AND NOT r.pending),
    (SELECT max(a.number) FROM attempt a WHERE a.message_id = m.id)))
    FROM message m WHERE m.id IN (SELECT value FROM json_each(?))"""
_UPDATE = (
    "UPDATE message SET state = new.column2, attempts = new.column3, pending = new.column4,"
    " hold_reason = new.column5, next_attempt_at = coalesce(new.column6, next_attempt_at) FROM (VALUES {})"
    " AS new WHERE id = new.column1"
)
_CHUNK = 64


@dataclass(slots=True)
class _Queued:
    """A message under change, as the transaction found it and as it will leave it."""

    key: int
    queue_id: str
    state: State
    attempts: int
    size: int
    in_file: bool
    hold_reason: str | None
    recipients: Sequence[Sequence[Any]]
    finished: set[int]
    attempt: int
    found: State
    next_attempt_at: float | None = None
    gone: bool = False
    changed: bool = False
    outcomes: dict[int, tuple[object, ...]] = field(default_factory=dict)
    history: list[tuple[object, ...]] = field(default_factory=list)
    _places: dict[tuple[str, str], list[int]] | None = None

    def positions(self, address: Address) -> list[int]:
        """Where the address stands among the recipients: more than once if the client named it twice."""
        if self._places is None:
            self._places = {}
            for place, parts in enumerate(self.recipients):
                self._places.setdefault((parts[0], parts[1]), []).append(place)
        return self._places.get((address.local, address.domain), [])

    @property
    def pending(self) -> int:
        return len(self.recipients) - len(self.finished)


def carry_out(
    connection: sqlite3.Connection, operations: Iterable[Operation], batch: Batch, history: int
) -> None:
    """Write the operations; what can't be done for a reason of its own gets its error in the batch.

    Raises what SQLite raises; the caller rolls back and decides what the failure means.
    """
    new: list[NewMessage] = []
    others: list[Settlement | Change] = []
    for operation in operations:
        if isinstance(operation, NewMessage):
            new.append(operation)
        else:
            others.append(operation)
    if new:
        _take_in(connection, new, batch.ledger)
    if others:
        found = _load(connection, {operation.key for operation in others})
        for operation in others:
            message = found.get(operation.key)
            if message is not None and (message.gone or message.queue_id != operation.queue_id):
                message = None
            if isinstance(operation, Settlement):
                if message is not None:
                    _settle(message, operation)
            else:
                error = _change(message, operation)
                if error is not None:
                    batch.errors[operation] = error
        _write_back(connection, found.values(), batch, history)


def storable(text: str) -> str:
    """Text as the database can keep it: half characters, which a hostile peer may cause, are spelled out."""
    return text if text.isascii() else text.encode("utf-8", "backslashreplace").decode()


def remove(connection: sqlite3.Connection, keys: Iterable[int]) -> None:
    """Remove all that is stored of these messages."""
    wanted = json.dumps(list(keys))
    for table, column in (
        ("message", "id"),
        ("body", "id"),
        ("recipient", "message_id"),
        ("attempt", "message_id"),
    ):
        connection.execute(
            f"DELETE FROM {table} WHERE {column} IN (SELECT value FROM json_each(?))",  # noqa: S608 names are ours
            (wanted,),
        )


def _take_in(connection: sqlite3.Connection, new: Sequence[NewMessage], ledger: Ledger) -> None:
    messages: list[tuple[object, ...]] = []
    bodies: list[tuple[object, ...]] = []
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
        ledger.enter(message.state, message.size)
    _write_rows(connection, _MESSAGE, messages)
    _write_rows(connection, _BODY, bodies)


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


def _load(connection: sqlite3.Connection, keys: Iterable[int]) -> dict[int, _Queued]:
    text: str = connection.execute(_LOAD, (json.dumps(list(keys)),)).fetchone()[0]
    found: dict[int, _Queued] = {}
    for key, queue_id, code, attempts, size, in_file, reason, recipients, finished, last in json.loads(text):
        state = STATES[code]
        found[key] = _Queued(
            key,
            queue_id,
            state,
            attempts,
            size,
            bool(in_file),
            reason,
            recipients,
            set(finished),
            last or 0,
            state,
        )
    return found


def _settle(message: _Queued, settlement: Settlement) -> None:
    keep_failed = settlement.hold_reason is not None
    for outcome in settlement.outcomes:
        positions = message.positions(outcome.recipient)
        if not positions:
            _log.warn(
                "an outcome names a recipient that the message does not have",
                event="spool.outcome_without_recipient",
                queue_id=message.queue_id,
                recipient=str(outcome.recipient),
            )
        for position in positions:
            _record(message, position, outcome, keep_failed=keep_failed)
    message.changed = True
    if not message.pending:
        message.gone = True
    elif settlement.hold_reason is not None:
        message.state = State.HOLD
        message.hold_reason = storable(settlement.hold_reason)
        message.attempts += 1
    elif settlement.retry_at is not None:
        # An operator who held the message meanwhile meant it.
        if message.state is not State.HOLD:
            message.state = State.DEFERRED
        message.next_attempt_at = settlement.retry_at
        message.attempts += 1


def _record(message: _Queued, position: int, outcome: Outcome, *, keep_failed: bool) -> None:
    if position in message.finished:
        return
    status = outcome.status
    finished = status is Status.DELIVERED or (status is Status.FAILED and not keep_failed)
    if finished:
        message.finished.add(position)
    said = (
        status.value,
        outcome.code,
        storable(outcome.enhanced),
        storable(outcome.text),
        storable(outcome.route),
        storable(outcome.next_hop),
        outcome.at,
    )
    message.outcomes[position] = (message.key, position, not finished, *said)
    message.attempt += 1
    message.history.append((message.key, message.attempt, position, *said, outcome.seconds))


def _change(message: _Queued | None, change: Change) -> SpoolError | None:
    if message is None:
        return UnknownMessage(f"there is no message {change.queue_id} in the queue")
    if change.action is Action.DELETE:
        message.gone = True
    elif change.action is Action.HOLD:
        message.state, message.hold_reason = State.HOLD, storable(change.reason)
    elif change.action is Action.RETRY:
        if message.state is State.HOLD:
            return SpoolError(f"message {change.queue_id} is on hold; release it instead")
        message.next_attempt_at = change.at
    elif message.state is State.HOLD:
        message.state, message.hold_reason, message.next_attempt_at = State.ACTIVE, None, change.at
    message.changed = True
    return None


def _write_back(connection: sqlite3.Connection, found: Iterable[_Queued], batch: Batch, history: int) -> None:
    gone: list[int] = []
    updates: list[tuple[object, ...]] = []
    outcomes: list[tuple[object, ...]] = []
    attempts: list[tuple[object, ...]] = []
    too_old: list[tuple[int, int]] = []
    for message in found:
        if not message.changed and not message.gone:
            continue
        batch.ledger.leave(message.found, message.size)
        if message.gone:
            gone.append(message.key)
            if message.in_file:
                batch.freed.append(message.queue_id)
            continue
        batch.ledger.enter(message.state, message.size)
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
        outcomes.extend(message.outcomes.values())
        attempts.extend(message.history[-history:])
        if message.history and message.attempt > history:
            too_old.append((message.key, message.attempt - history))
    if gone:
        remove(connection, gone)
    _write_rows(connection, _UPDATE, updates)
    _write_rows(connection, _RECIPIENT, outcomes)
    _write_rows(connection, _ATTEMPT, attempts)
    if too_old:
        connection.executemany("DELETE FROM attempt WHERE message_id = ? AND number <= ?", too_old)
