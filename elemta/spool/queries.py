"""What people and next hops ask of one message: its record, its content."""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from twisted.logger import Logger

from elemta.envelope import Envelope, Recipient
from elemta.errors import SpoolError
from elemta.outcome import Outcome, Status
from elemta.spool.content import Content
from elemta.spool.damaged_rows import DAMAGE, reason_of
from elemta.spool.queue_id import known_key, row_key, unknown_message
from elemta.spool.queue_list import PARTS, parts_of, words
from elemta.spool.reader import Reader
from elemta.spool.records import MessageRecord, RecipientRecord, StoredPart
from elemta.spool.rows import FINISHED, MESSAGE_COLUMNS, message_of

_log = Logger()


class Queries:
    """Answers questions about messages."""

    def __init__(self, reader: Reader) -> None:
        self._reader = reader

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

    def received_since(self, at: float, limit: int, after: str | None) -> tuple[list[Envelope], str | None]:
        """Envelopes of messages received at ``at`` or later, of so many messages from behind ``after`` on.

        And the queue id to go on behind; None at the end. What can't be read is left out.
        """
        start = -1 if after is None else known_key(after)
        rows = self._reader.all(
            f"SELECT {MESSAGE_COLUMNS} FROM message m WHERE m.id > ? ORDER BY m.id LIMIT ?",  # noqa: S608
            (start, limit + 1),
        )
        found: list[Envelope] = []
        for row in rows[:limit]:
            try:
                if row[3] >= at:
                    found.append(message_of(row, ()).envelope)
            except DAMAGE:
                continue
        return found, str(rows[limit - 1][0]) if len(rows) > limit else None

    def show(self, queue_id: str) -> MessageRecord:
        """All that is known of one message. UnknownMessage."""
        key = row_key(queue_id)
        row = self._reader.one(
            f"SELECT {MESSAGE_COLUMNS}, {FINISHED}, {PARTS}, m.in_file FROM message m"  # noqa: S608
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
        message = message_of(row, json.loads(row[-3]))
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
        stored = tuple(_with_reason(part, records) for part in parts_of(row[-2], None))
        return MessageRecord(message, records, history, bool(row[-1]), stored)


def _with_reason(part: StoredPart, records: Sequence[RecipientRecord]) -> StoredPart:
    """The part with the words of the last outcome of one of its recipients that is not done."""
    places = range(len(records)) if part.positions is None else part.positions
    outcomes = [
        outcome
        for place in places
        if place < len(records) and records[place].pending and (outcome := records[place].outcome) is not None
    ]
    if not outcomes:
        return part
    last = max(outcomes, key=lambda outcome: outcome.at)
    return replace(part, reason=words(last.code, last.enhanced, last.text))


def _record(queue_id: str, recipient: Recipient, said: Sequence[Any] | None) -> RecipientRecord:
    if said is None:
        return RecipientRecord(recipient, pending=True)
    pending, owed, status, text, route, next_hop, at, code, enhanced = said
    outcome = _outcome(queue_id, recipient, status, text, route, next_hop, at, 0.0, code, enhanced)
    return RecipientRecord(recipient, bool(pending), outcome, bool(owed))


def _outcome(queue_id: str, recipient: Recipient, status: str, *rest: Any) -> Outcome:
    return Outcome(queue_id, recipient.address, Status(status), *rest)
