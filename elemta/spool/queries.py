"""The connection that reads the queue database, used by the reading thread alone.

What is to be done in the queue, and when: the questions of delivery, each answered from an index.

However many messages there are, no question costs more than what it gives: a destination whose next hop is
down is never looked into, and the destinations themselves are found by leaping from one name to the next.

What people and next hops ask of the queue: lists, records, contents.
"""

from __future__ import annotations

import io
import json
import sqlite3
from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any

from twisted.logger import Logger

from elemta.address import Address
from elemta.envelope import Recipient
from elemta.errors import SpoolError, UnknownMessage
from elemta.outcome import Outcome, Status
from elemta.runtime.disk import Disk
from elemta.spool.content import Content
from elemta.spool.damaged_rows import DAMAGE, Found, read_rows, reason_of
from elemta.spool.filters import QueueFilter
from elemta.spool.partition import Places
from elemta.spool.parts import OWED_FINAL
from elemta.spool.queue_id import row_key
from elemta.spool.records import (
    AttemptRecord,
    DestinationDue,
    HeldPart,
    HoldCause,
    Listing,
    MessageRecord,
    MessageState,
    MessageSummary,
    OwedNotice,
    Page,
    RecipientRecord,
)
from elemta.spool.rows import MESSAGE_COLUMNS, PART_COLUMNS, STATE_CODES, message_of, part_of, state_of

_log = Logger()


class Reader:
    """Asks the database; opens its connection when it needs one, and anew after a failure."""

    def __init__(self, places: Places, disk: Disk) -> None:
        self.places = places
        self._disk = disk
        self._connection: sqlite3.Connection | None = None

    def close(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            with suppress(sqlite3.Error):  # it only read
                connection.close()

    def one(self, statement: str, values: Sequence[object] = ()) -> tuple[Any, ...] | None:
        """The first row of the answer, None for an empty one. SpoolError."""
        rows = self.all(statement, values)
        return rows[0] if rows else None

    def all(self, statement: str, values: Sequence[object] = ()) -> list[tuple[Any, ...]]:
        """All rows of the answer. SpoolError."""
        try:
            if self._connection is None:
                self._connection = self._disk.connect(self.places.database)
                self._connection.execute("PRAGMA query_only = ON")
            return self._connection.execute(statement, tuple(values)).fetchall()
        except sqlite3.Error as error:
            self.close()
            _log.error("the queue could not be read", event="spool.read_failed", reason=str(error))
            raise SpoolError(f"the queue could not be read: {error}") from error


_FINISHED = (
    "(SELECT json_group_array(CAST(r.position AS INTEGER)) FROM recipient r"
    " WHERE r.message_id = m.id AND NOT r.pending)"
)
# CROSS JOIN keeps SQLite to this order of the tables, and so to the order of the index.
_DUE = (
    f"SELECT {PART_COLUMNS}, {_FINISHED}, m.id FROM part p INDEXED BY part_lane"  # noqa: S608 - names are ours
    " CROSS JOIN message m ON m.id = p.message_id"
    " WHERE p.lane = ? AND p.state = {}"
    " AND (p.message_id, p.number) NOT IN"
    " (SELECT json_extract(value, '$[0]'), json_extract(value, '$[1]') FROM json_each(?))"
    " ORDER BY p.turn, p.message_id, p.number LIMIT ?"
)
_ACTIVE = _DUE.format("0")
_DEFERRED = _DUE.format("1 AND p.turn <= ?")
_NEXT_DEFERRED = "SELECT min(turn) FROM part WHERE lane = ? AND state = 1 AND turn > ?"
# One row for the whole page, so one step: each gives up Python's interpreter lock and has to win it back.
_DESTINATIONS = """WITH RECURSIVE found(lane) AS (
    SELECT min(lane) FROM part WHERE lane {} ?1
    UNION ALL SELECT (SELECT min(p.lane) FROM part p WHERE p.lane > found.lane) FROM found
    WHERE found.lane IS NOT NULL LIMIT ?2)
    SELECT json_group_array(json_array(CAST(lane AS TEXT),
    EXISTS (SELECT 1 FROM part p WHERE p.lane = found.lane AND p.state = 0),
    (SELECT printf('%!.17g', p.turn) FROM part p WHERE p.lane = found.lane AND p.state = 1
        ORDER BY p.turn LIMIT 1)))
    FROM found WHERE lane IS NOT NULL"""
_FIRST_DESTINATIONS, _NEXT_DESTINATIONS = _DESTINATIONS.format(">="), _DESTINATIONS.format(">")
_OLD = (
    f"SELECT {PART_COLUMNS}, {_FINISHED}, m.id FROM part p"  # noqa: S608 - names are ours
    " CROSS JOIN message m ON m.id = p.message_id"
    " WHERE p.message_id IN (SELECT value FROM json_each(?)) AND p.state < 2 AND p.warned <= ?"
    " ORDER BY p.message_id, p.number"
)
_HELD = (
    f"SELECT {PART_COLUMNS}, {_FINISHED}, p.hold, p.held_at, m.id FROM ({{}}) held"  # noqa: S608 - names are ours
    " CROSS JOIN part p ON p.message_id = held.message_id AND p.number = held.number"
    " CROSS JOIN message m ON m.id = p.message_id"
)
_BY_CAUSE = (
    "SELECT message_id, number, held_at FROM part INDEXED BY part_held"
    " WHERE hold = {} AND held_at IS NOT NULL AND held_at <= ?1"
)
# Holds of each cause are in the order of their ages, so a page of all of them is a merge.
_ENDING = _HELD.format(
    " UNION ALL ".join(_BY_CAUSE.format(cause.value) for cause in HoldCause if cause.has_end)
    + " ORDER BY held_at LIMIT ?2"
)
_UNDELIVERABLE = _HELD.format(
    "SELECT message_id, number, held_at FROM part INDEXED BY part_held"  # noqa: S608 - a number of ours
    f" WHERE hold = {HoldCause.UNDELIVERABLE.value} AND held_at IS NOT NULL ORDER BY held_at LIMIT ?1"
)
_OWED = (
    f"SELECT {MESSAGE_COLUMNS}, m.id FROM message m WHERE m.id IN"  # noqa: S608 - names are ours
    " (SELECT DISTINCT message_id FROM recipient INDEXED BY recipient_owed"
    " WHERE owed > 0 AND message_id > ? ORDER BY message_id LIMIT ?) ORDER BY m.id"
)
_OWED_OF = (
    "SELECT position, status, text, route, next_hop, at, code, enhanced, owed FROM recipient"
    " WHERE message_id = ? AND owed > 0 ORDER BY position"
)
# The queued ones in the order of arrival.
_WALK_STATE = (
    "SELECT id, CAST(received_at AS REAL) FROM message INDEXED BY message_{} WHERE state = {} AND id > ?1"
)
_WALK = (
    f"{_WALK_STATE.format('active', 0)} UNION ALL {_WALK_STATE.format('deferred', 1)} ORDER BY id LIMIT ?2"
)


class Schedule:
    """Answers when what is to be attempted."""

    def __init__(self, reader: Reader) -> None:
        self._reader = reader

    def destinations(self, after: str | None, limit: int) -> list[tuple[str, float | None]]:
        """Some destinations in the order of their names, from behind ``after`` on, and when each has
        something due.

        That is 0.0 for one with active parts, None for one where all is on hold.
        """
        statement = _FIRST_DESTINATIONS if after is None else _NEXT_DESTINATIONS
        (text,) = self._reader.one(statement, (after or "", limit)) or ("[]",)
        return [
            (destination, 0.0 if active else None if due is None else float(due))
            for destination, active, due in json.loads(text)
        ]

    def owed(self, after: str | None, limit: int) -> Found[list[OwedNotice]]:
        """Messages of whose deliveries a sender has still to hear, from behind a queue id on."""
        key = None if after is None else row_key(after)
        rows = self._reader.all(_OWED, (-1 if key is None else key, limit))
        found, damaged = read_rows(rows, self._owed_of)
        return Found(found, tuple(damaged))

    def _owed_of(self, row: Sequence[Any]) -> OwedNotice:
        message = message_of(row, ())
        pending: list[Recipient] = []
        outcomes: list[Outcome] = []
        for position, status, text, route, next_hop, at, code, enhanced, owed in self._reader.all(
            _OWED_OF, (row[-1],)
        ):
            recipient = message.envelope.recipients[position]
            pending.append(recipient)
            outcomes.append(
                Outcome(
                    message.queue_id,
                    recipient.address,
                    Status(status),
                    text,
                    route,
                    next_hop,
                    at,
                    code=code,
                    enhanced=enhanced,
                    final=owed == OWED_FINAL,
                )
            )
        return OwedNotice(replace(message, pending=tuple(pending)), tuple(outcomes))

    def due(
        self,
        now: float,
        wanted: Mapping[str, int],
        excluding: Mapping[str, Collection[tuple[str, int]]],
        until: Mapping[str, float],
    ) -> Found[list[DestinationDue]]:
        """What is due in each of the destinations: at most so many parts, but for those ``excluding`` names.

        In a destination that ``until`` names, what is deferred up to that time is due now.

        Half of the places are for parts that were never attempted, in the order of their turns; the other
        half for deferred ones, by time; what one kind leaves is the other's.
        """
        found = [
            self._due_in(
                destination, now, max(now, until.get(destination, now)), most, excluding.get(destination, ())
            )
            for destination, most in wanted.items()
        ]
        return Found(
            [each.value for each in found], tuple(damaged for each in found for damaged in each.damaged)
        )

    def _due_in(
        self, destination: str, now: float, until: float, most: int, known: Collection[tuple[str, int]]
    ) -> Found[DestinationDue]:
        excluded = json.dumps([(row_key(queue_id), number) for queue_id, number in known])
        active = self._reader.all(_ACTIVE, (destination, excluded, most + 1))
        deferred = self._reader.all(_DEFERRED, (destination, until, excluded, most + 1))
        half = most - most // 2
        places_for_active = max(half, most - len(deferred))
        taken = active[:places_for_active]
        taken += deferred[: most - len(taken)]
        if len(taken) < len(active) + len(deferred):
            next_due: float | None = now
        else:
            next_due = (self._reader.one(_NEXT_DEFERRED, (destination, now)) or (None,))[0]
        messages, damaged = read_rows(taken, part_of)
        return Found(DestinationDue(destination, tuple(messages), next_due), tuple(damaged))

    def older(self, before: float, after: int, limit: int, *, unwarned: bool) -> Found[Page]:
        """Parts that wait, of messages received at ``before`` or earlier, in the order of arrival.

        ``limit`` bounds the messages that are looked at, from behind the place ``after`` on. With
        ``unwarned``, only parts whose sender got no notice of the delay.
        """
        walked = self._reader.all(_WALK, (after, limit))
        old = [key for key, received_at in walked if received_at <= before]
        rows: list[tuple[Any, ...]] = []
        if old:
            rows = self._reader.all(_OLD, (json.dumps(old), 0 if unwarned else 1))
        place = after
        for key, received_at in walked:
            if received_at > before:
                break
            place = key
        messages, damaged = read_rows(rows, part_of)
        more = len(walked) == limit and place == walked[-1][0]
        return Found(Page(tuple(messages), place, more), tuple(damaged))

    def held(self, before: float, limit: int) -> Found[list[HeldPart]]:
        """Parts whose hold has an end and began then or earlier, the oldest hold first."""
        return _held(self._reader.all(_ENDING, (before, limit)))

    def undeliverable(self, limit: int) -> Found[list[HeldPart]]:
        """Undeliverable notices on hold, the oldest hold first."""
        return _held(self._reader.all(_UNDELIVERABLE, (limit,)))


def _held(rows: Sequence[Sequence[Any]]) -> Found[list[HeldPart]]:
    found, damaged = read_rows(rows, lambda row: HeldPart(part_of(row), HoldCause(row[13]), float(row[14])))
    return Found(sorted(found, key=lambda held: held.held_at), tuple(damaged))


# The state is spelled out in every condition, so that SQLite sees that a partial index serves.
_INDEX = {
    MessageState.DEFERRED: "message_deferred",
    MessageState.HOLD: "message_held",
    MessageState.ACTIVE: "message_active",
}


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
            raise _unknown(queue_id)
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

    def page(self, state: MessageState | None, limit: int, after: str | None) -> list[MessageSummary]:
        """A page of the queue in the order of arrival, from behind ``after`` on."""
        return [_summary(row) for row in self._rows(state, limit, after)]

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

    def _rows(self, state: MessageState | None, limit: int, after: str | None) -> list[tuple[Any, ...]]:
        start = -1 if after is None else _position(after)
        table, condition = "message m", ""
        if state is not None:
            table += f" INDEXED BY {_INDEX[state]}"
            condition = f"AND m.state = {STATE_CODES[state]}"
        return self._reader.all(
            f"SELECT {MESSAGE_COLUMNS} FROM {table} WHERE m.id > ? {condition} ORDER BY m.id LIMIT ?",  # noqa: S608
            (start, limit),
        )

    def show(self, queue_id: str) -> MessageRecord:
        """All that is known of one message. UnknownMessage."""
        key = row_key(queue_id)
        row = self._reader.one(
            f"SELECT {MESSAGE_COLUMNS}, {_FINISHED}, m.in_file FROM message m"  # noqa: S608
            " WHERE m.id = ? AND m.queue_id = ?",
            (key, queue_id),
        )
        if row is None:
            raise _unknown(queue_id)
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
                "SELECT position, pending, status, code, enhanced, text, route, next_hop, at, owed"
                " FROM recipient WHERE message_id = ?",
                (key,),
            )
        }
        records = tuple(
            _record(recipient, said.get(position)) for position, recipient in enumerate(recipients)
        )
        history = tuple(
            AttemptRecord(number, recipients[position].address, Status(status), *rest)
            for number, position, status, *rest in self._reader.all(
                "SELECT number, position, status, code, enhanced, text, route, next_hop, at, seconds"
                " FROM attempt WHERE message_id = ? ORDER BY number",
                (key,),
            )
        )
        return MessageRecord(message, records, history, bool(row[-1]))


def _record(recipient: Recipient, said: Sequence[Any] | None) -> RecipientRecord:
    if said is None:
        return RecipientRecord(recipient, pending=True)
    pending, status, code, enhanced, text, route, next_hop, at, owed = said
    return RecipientRecord(
        recipient, bool(pending), Status(status), code, enhanced, text, route, next_hop, at, bool(owed)
    )


def _position(queue_id: str) -> int:
    key = row_key(queue_id)
    if key is None:
        raise _unknown(queue_id)
    return key


def _unknown(queue_id: str) -> UnknownMessage:
    return UnknownMessage(f"there is no message {queue_id} in the queue")


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
