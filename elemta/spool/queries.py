"""What people and next hops ask of the queue: lists, records, contents."""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from typing import Any

from twisted.logger import Logger

from elemta.address import Address
from elemta.envelope import Envelope, Recipient
from elemta.errors import SpoolError
from elemta.outcome import Outcome, Status
from elemta.spool.content import Content
from elemta.spool.damaged_rows import DAMAGE, reason_of
from elemta.spool.filters import QueueFilter
from elemta.spool.queue_id import known_key, row_key, unknown_message
from elemta.spool.reader import Reader
from elemta.spool.records import (
    Listing,
    MessageRecord,
    MessageState,
    MessageSummary,
    RecipientRecord,
)
from elemta.spool.rows import FINISHED, MESSAGE_COLUMNS, STATE_CODES, STATE_INDEXES, message_of, state_of

_log = Logger()

# Messages that a page of a filter looks at.
_LOOKED_AT = 1000
# Stands for a sender that can't be read.
UNREADABLE = Address("(unreadable)", "")


class Queries:
    """Answers questions about messages."""

    def __init__(self, reader: Reader) -> None:
        self._reader = reader

    def oldest(self) -> float | None:
        """When the oldest message came in; keys are in the order of time."""
        row = self._reader.one("SELECT CAST(received_at AS REAL) FROM message ORDER BY id LIMIT 1", ())
        return None if row is None else float(row[0])

    def content(self, queue_id: str) -> Content:
        """The message as it is sent on. UnknownMessage; SpoolError when its body can't be read."""
        row = self._reader.one(
            "SELECT b.header, b.content, m.size FROM message m LEFT JOIN body b ON b.id = m.id"
            " WHERE m.id = ? AND m.queue_id = ?",
            (row_key(queue_id), queue_id),
        )
        if row is None:
            raise unknown_message(queue_id)
        header, content, size = row
        if header is None:
            raise SpoolError(f"the body of {queue_id} is missing from the queue database")
        if content is not None:
            return Content(header, io.BytesIO(content), len(content))
        try:
            return Content(header, self._reader.places.body(queue_id).open("rb"), size - len(header))
        except OSError as error:
            _log.critical(
                "the body file of a message can't be opened",
                event="spool.body_unreadable",
                queue_id=queue_id,
                reason=str(error),
            )
            raise SpoolError(f"the body of {queue_id} can't be opened: {error}") from error

    def find(self, chosen: QueueFilter, limit: int, after: str | None) -> Listing:
        """A page of those that are chosen, of a bounded number of messages from behind ``after`` on."""
        most = _LOOKED_AT if chosen.looks_inside else limit
        # One more tells whether there is a next page.
        rows = self._rows(chosen.state, most + 1, after)
        found: list[MessageSummary] = []
        place: str | None = None
        for row in rows[:most]:
            if len(found) == limit:
                return Listing(tuple(found), place)
            place = str(row[0])
            if not chosen.looks_inside or _is_chosen(row, chosen):
                found.append(_summary(row))
        return Listing(tuple(found), place if len(rows) > most else None)

    def received_since(self, at: float, limit: int, after: str | None) -> tuple[list[Envelope], str | None]:
        """Envelopes of messages received at ``at`` or later, of so many messages from behind ``after`` on.

        And the queue id to go on behind; None at the end. What can't be read is left out.
        """
        rows = self._rows(None, limit + 1, after)
        found: list[Envelope] = []
        for row in rows[:limit]:
            try:
                if row[3] >= at:
                    found.append(message_of(row, ()).envelope)
            except DAMAGE:
                continue
        return found, str(rows[limit - 1][0]) if len(rows) > limit else None

    def _rows(self, state: MessageState | None, limit: int, after: str | None) -> list[tuple[Any, ...]]:
        start = -1 if after is None else known_key(after)
        table, condition = "message m", ""
        if state is not None:
            # Spelled out, so that SQLite sees that the partial index serves.
            table += f" INDEXED BY {STATE_INDEXES[state]}"
            condition = f"AND m.state = {STATE_CODES[state]}"
        return self._reader.all(
            f"SELECT {MESSAGE_COLUMNS} FROM {table} WHERE m.id > ? {condition} ORDER BY m.id LIMIT ?",  # noqa: S608
            (start, limit),
        )

    def show(self, queue_id: str) -> MessageRecord:
        """All that is known of one message. UnknownMessage."""
        key = row_key(queue_id)
        row = self._reader.one(
            f"SELECT {MESSAGE_COLUMNS}, {FINISHED}, m.in_file FROM message m"  # noqa: S608
            " WHERE m.id = ? AND m.queue_id = ?",
            (key, queue_id),
        )
        if row is None:
            raise unknown_message(queue_id)
        try:
            return self._record(key, row)
        except DAMAGE as error:
            raise SpoolError(f"message {queue_id}: {reason_of(error)}") from error

    def _record(self, key: int | None, row: Sequence[Any]) -> MessageRecord:
        message = message_of(row, json.loads(row[-2]))
        recipients = message.envelope.recipients
        said = {
            position: rest
            for position, *rest in self._reader.all(
                "SELECT position, pending, owed, status, text, route, next_hop, at, code, enhanced"
                " FROM recipient WHERE message_id = ?",
                (key,),
            )
        }
        records = tuple(
            _record(message.queue_id, recipient, said.get(position))
            for position, recipient in enumerate(recipients)
        )
        history = tuple(
            (number, _outcome(message.queue_id, recipients[position], *rest))
            for number, position, *rest in self._reader.all(
                "SELECT number, position, status, text, route, next_hop, at, seconds, code, enhanced"
                " FROM attempt WHERE message_id = ? ORDER BY number",
                (key,),
            )
        )
        return MessageRecord(message, records, history, bool(row[-1]))


def _record(queue_id: str, recipient: Recipient, said: Sequence[Any] | None) -> RecipientRecord:
    if said is None:
        return RecipientRecord(recipient, pending=True)
    pending, owed, status, text, route, next_hop, at, code, enhanced = said
    outcome = _outcome(queue_id, recipient, status, text, route, next_hop, at, 0.0, code, enhanced)
    return RecipientRecord(recipient, bool(pending), outcome, bool(owed))


def _outcome(queue_id: str, recipient: Recipient, status: str, *rest: Any) -> Outcome:
    return Outcome(queue_id, recipient.address, Status(status), *rest)


def _is_chosen(row: Sequence[Any], chosen: QueueFilter) -> bool:
    try:
        return chosen.fits(message_of(row, ()).envelope)
    except DAMAGE:
        # Its sender is unknown; it is listed where no filter asks.
        return False


def _summary(row: Sequence[Any]) -> MessageSummary:
    try:
        message = message_of(row, ())
    except DAMAGE as error:
        return _summary_of_damaged(row, error)
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


def _summary_of_damaged(row: Sequence[Any], error: Exception) -> MessageSummary:
    """What the columns say of a message whose envelope can't be read; no sender has the address."""
    queue_id, state, next_attempt_at, received_at, size, attempts, hold_reason, _, pending = row
    return MessageSummary(
        queue_id=str(queue_id),
        state=state_of(state),
        sender=UNREADABLE,
        recipients=pending,
        pending=pending,
        size=_number(size),
        received_at=float(_number(received_at)),
        next_attempt_at=float(_number(next_attempt_at)),
        attempts=attempts,
        hold_reason=hold_reason if isinstance(hold_reason, str) else reason_of(error),
    )


def _number(value: Any) -> Any:
    return value if isinstance(value, int | float) else 0
