"""The queue as operators list it: pages of messages that a filter chooses, in the order of arrival.

The filter is part of the question to the database, so that a message that it does not choose costs little.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from elemta.address import Address
from elemta.spool.damaged_rows import DAMAGE, reason_of
from elemta.spool.filters import QueueFilter, fits, fragment, fragment_of_address
from elemta.spool.queue_id import known_key, place_of
from elemta.spool.reader import Reader
from elemta.spool.records import (
    DestinationMail,
    HoldCause,
    MessageState,
    MessageSummary,
    PartView,
    QueuedMessage,
    StoredPart,
    state_on_hold,
)
from elemta.spool.rows import FINISHED, MESSAGE_COLUMNS, STATE_CODES, STATE_INDEXES, message_of, state_of
from elemta.spool.waits import KnownWaits, Waits, leading, shown_hold_reason, view_of_part

# Messages that one question to the database looks at, where a filter looks into them.
LOOKED_AT = 10_000
# Stands for a sender that can't be read.
UNREADABLE = Address("(unreadable)", "")

_HOLD_CAUSES = {cause.value: cause for cause in HoldCause}
PARTS = (
    "(SELECT json_group_array(json_array(CAST(p.number AS INTEGER), CAST(p.lane AS TEXT),"
    " CAST(p.state AS INTEGER), printf('%!.17g', p.turn), CAST(p.hold AS INTEGER),"
    " CAST(p.positions AS TEXT)))"
    " FROM part p WHERE p.message_id = m.id)"
)
# The last outcome of a recipient that is not done; where a filter asks for reasons, one that it chooses.
_LAST = (
    "(SELECT json_array(CAST(r.position AS INTEGER), CAST(r.code AS INTEGER), CAST(r.enhanced AS TEXT),"
    " CAST(r.text AS TEXT)) FROM recipient r WHERE r.message_id = m.id AND r.pending"
    " ORDER BY {}r.at DESC LIMIT 1)"
)
# As `words` has it.
_OUTCOME = (
    "lower(CASE WHEN r.code THEN r.code || ' ' ELSE '' END"
    " || CASE WHEN r.enhanced <> '' THEN r.enhanced || ' ' ELSE '' END || r.text)"
)
_NULL_SENDER = """substr(CAST(m.envelope AS TEXT), 1, 14) = '{"from":["",""'"""
_HOLD = "EXISTS (SELECT 1 FROM part p WHERE p.message_id = m.id AND p.hold {})"
_QUARANTINE = _HOLD.format(f"= {HoldCause.QUARANTINE.value}")
_UNDELIVERABLE = (
    f"({_HOLD.format(f'= {HoldCause.UNDELIVERABLE.value}')}"
    f" AND NOT {_HOLD.format(f'<> {HoldCause.UNDELIVERABLE.value}')})"
)
_OF_HELD = {
    MessageState.QUARANTINE: _QUARANTINE,
    MessageState.UNDELIVERABLE: f"NOT {_QUARANTINE} AND {_UNDELIVERABLE}",
    MessageState.HOLD: f"NOT {_QUARANTINE} AND NOT {_UNDELIVERABLE}",
}
# Whether a part goes on now, or is under way.
_MOVES = (
    "(EXISTS (SELECT 1 FROM part p WHERE p.message_id = m.id AND p.state = 0"
    " AND p.lane NOT IN (SELECT value FROM json_each({0})))"
    " OR m.id IN (SELECT value FROM json_each({1})))"
)
# The first messages that wait, and those on hold from a place on, undeliverable notices left out.
_OLDEST_WAITING = (
    "SELECT min(id) FROM message INDEXED BY message_active WHERE state = 0 AND id > -1"
    " UNION ALL SELECT min(id) FROM message INDEXED BY message_deferred WHERE state = 1 AND id > -1"
)
_OLDEST_HELD = (
    "SELECT m.id FROM message m INDEXED BY message_held"  # noqa: S608 - names are ours
    f" WHERE m.state = 2 AND m.id >= ? AND NOT {_UNDELIVERABLE} ORDER BY m.id LIMIT 1"
)
# Behind every message.
_NOWHERE = 1 << 62

# Not the destination without a name, in which mail is whose way is not known yet.
_DESTINATIONS = """SELECT CAST(found.lane AS TEXT), found.messages, found.active,
    (SELECT CAST(received_at AS REAL) FROM message WHERE id = found.first), found.due,
    (SELECT trim(CASE WHEN r.code THEN r.code ELSE '' END || ' ' || r.enhanced || ' ' || r.text)
        FROM part p CROSS JOIN recipient r ON r.message_id = p.message_id AND r.pending
        WHERE p.lane = found.lane AND p.state = 1
        AND (p.positions IS NULL OR r.position IN (SELECT value FROM json_each(
            CASE WHEN json_valid(CAST(p.positions AS TEXT)) THEN CAST(p.positions AS TEXT) ELSE '[]' END)))
        LIMIT 1)
    FROM (SELECT lane, count(*) AS messages, max(state = 0) AS active, min(message_id) AS first,
        min(CASE WHEN state = 1 THEN turn END) AS due
        FROM part INDEXED BY part_lane WHERE lane {} ? AND state < 2 GROUP BY lane ORDER BY lane
        LIMIT ?) found"""


class QueueList:
    """Lists messages and counts them as operators see them."""

    def __init__(self, reader: Reader) -> None:
        self._reader = reader

    def find(
        self, chosen: QueueFilter, waits: KnownWaits, limit: int, after: str | None
    ) -> tuple[list[tuple[MessageSummary, list[StoredPart]]], str | None]:
        """Some messages behind ``after``, with their parts, and the place to go on behind; None at the end.

        Of messages that a filter looks into a bounded number is looked at.
        """
        start = -1 if after is None else known_key(after)
        query = _Query(chosen, waits)
        last = self._bound(query, start) if query.is_bounded else None
        rows = self._reader.all(*query.statement(start, last, limit + 1))
        found = []
        for row in rows[:limit]:
            entry = _entry(row, chosen)
            if entry is not None:
                found.append(entry)
        if len(rows) > limit:
            return found, str(rows[limit - 1][0])
        return found, None if last is None else place_of(last)

    def _bound(self, query: _Query, start: int) -> int | None:
        """The last message to look at; None where all can be."""
        row = self._reader.one(
            f"SELECT m.id FROM {query.table} WHERE m.id > ? {query.stored}"  # noqa: S608 - names are ours
            " ORDER BY m.id LIMIT 1 OFFSET ?",
            (start, LOOKED_AT - 1),
        )
        return None if row is None else int(row[0])

    def still_moving(self, waits: KnownWaits) -> tuple[int, int]:
        """How many messages that were never tried do not wait for anything, and their octets."""
        moves = _MOVES.format("?1", "?2")
        row = self._reader.one(
            "SELECT count(*), coalesce(sum(m.size), 0) FROM message m INDEXED BY message_active"  # noqa: S608
            f" WHERE m.state = 0 AND {moves}",
            (json.dumps(list(waits.destinations)), json.dumps(list(waits.under_way))),
        )
        return (0, 0) if row is None else (int(row[0]), int(row[1]))

    def oldest(self, held_from: int) -> tuple[float | None, int]:
        """When the oldest message came in that is no undeliverable notice, and a place in the queue.

        All on hold before the place are undeliverable notices. ``held_from`` is that of the last time, as
        long as nothing else was put on hold, else 0: so that the question does not walk over many of them.
        """
        keys = [row[0] for row in self._reader.all(_OLDEST_WAITING) if row[0] is not None]
        held = self._reader.one(_OLDEST_HELD, (held_from,))
        held_from = _NOWHERE if held is None else held[0]
        if held is not None:
            keys.append(held_from)
        if not keys:
            return None, held_from
        # Keys are in the order of time.
        row = self._reader.one("SELECT CAST(received_at AS REAL) FROM message WHERE id = ?", (min(keys),))
        return None if row is None else float(row[0]), held_from

    def destinations(self, after: str | None, limit: int) -> list[DestinationMail]:
        """The destinations that mail waits for, in the order of their names, from behind one on."""
        rows = self._reader.all(_DESTINATIONS.format(">"), (after or "", limit))
        return [_destination_mail(*row) for row in rows]

    def destination(self, name: str) -> DestinationMail | None:
        """The mail that waits for one destination; None where there is none."""
        row = self._reader.one(_DESTINATIONS.format("="), (name, 1))
        return None if row is None else _destination_mail(*row)


class _Query:
    """One question, made of a filter."""

    def __init__(self, chosen: QueueFilter, waits: KnownWaits) -> None:
        self._chosen = chosen
        self._waits = waits
        self._values: list[object] = []
        self._conditions: list[str] = []
        self._order = ""
        self.table, self.stored = "message m", ""
        #: Whether the database may look at many messages for one that is chosen.
        self.is_bounded = chosen.looks_inside
        if chosen.state is not None:
            self._choose_state(chosen.state)
        self._choose_envelope()
        if chosen.destination is not None:
            lane = self._has("lower(p.lane)", fragment(chosen.destination))
            of_message = "SELECT 1 FROM part p WHERE p.message_id = m.id"
            self._conditions.append(f"EXISTS ({of_message} AND {lane})")
        if chosen.reason is not None:
            self._choose_reason(chosen.reason)
        if chosen.received_by is not None:
            self._conditions.append(f"m.received_at <= {self._value(chosen.received_by)}")

    def statement(self, start: int, last: int | None, limit: int) -> tuple[str, list[object]]:
        """The question for some messages behind ``start`` up to ``last``, and its values."""
        conditions = [f"m.id > {self._value(start)}", *self._conditions]
        if last is not None:
            conditions.append(f"m.id <= {self._value(last)}")
        columns = ", ".join((MESSAGE_COLUMNS, FINISHED, PARTS, _LAST.format(self._order)))
        text = (
            f"SELECT {columns} FROM {self.table}"  # noqa: S608 - names are ours
            f" WHERE {' AND '.join(conditions)} {self.stored} ORDER BY m.id LIMIT {self._value(limit)}"
        )
        return text, self._values

    def _value(self, value: object) -> str:
        self._values.append(value)
        return f"?{len(self._values)}"

    def _has(self, expression: str, wanted: str) -> str:
        return f"instr({expression}, {self._value(wanted)}) > 0" if wanted else "1"

    def _choose_state(self, state: MessageState) -> None:
        stored = STATE_CODES.get(state, STATE_CODES[MessageState.HOLD])
        index = STATE_INDEXES.get(state, STATE_INDEXES[MessageState.HOLD])
        # Spelled out, so that SQLite sees that the partial index serves.
        self.table, self.stored = f"message m INDEXED BY {index}", f"AND m.state = {stored}"
        if state in _OF_HELD:
            self.is_bounded = True
            self._conditions.append(_OF_HELD[state])
        elif self._waits.destinations:
            self.is_bounded = True
            destinations = self._value(json.dumps(list(self._waits.destinations)))
            moves = _MOVES.format(destinations, self._value(json.dumps(list(self._waits.under_way))))
            if state is MessageState.ACTIVE:
                self._conditions.append(moves)
            else:
                self.table, self.stored = "message m", "AND m.state < 2"
                self._conditions.append(f"(m.state = 1 OR NOT {moves})")

    def _choose_envelope(self) -> None:
        for wanted, place in ((self._chosen.sender, "$.from"), (self._chosen.recipient, "$.to")):
            # Damaged envelopes have no sender, and are listed where no filter asks.
            if wanted is not None:
                envelope = "CAST(m.envelope AS TEXT)"
                part = f"json_extract({envelope}, '{place}')"
                if wanted == "<>" and place == "$.from":
                    has = _NULL_SENDER
                else:
                    has = self._has(f"lower({part})", fragment_of_address(wanted))
                self._conditions.append(
                    f"CASE WHEN json_valid(CAST(m.envelope AS TEXT)) THEN {has} ELSE 0 END"
                )

    def _choose_reason(self, reason: str) -> None:
        text = fragment(reason)
        destinations = [name for name, why in self._waits.destinations.items() if fits(why, reason)]
        messages = [key for key, why in self._waits.messages.items() if fits(why, reason)]
        held, outcome = self._has("lower(coalesce(m.hold_reason, ''))", text), self._has(_OUTCOME, text)
        self._order = f"{outcome} DESC, "
        self._conditions.append(
            f"({held} OR EXISTS (SELECT 1 FROM recipient r"  # noqa: S608 - names are ours
            f" WHERE r.message_id = m.id AND r.pending AND {outcome})"
            " OR EXISTS (SELECT 1 FROM part p WHERE p.message_id = m.id AND p.state < 2"
            f" AND p.lane IN (SELECT value FROM json_each({self._value(json.dumps(destinations))})))"
            f" OR m.id IN (SELECT value FROM json_each({self._value(json.dumps(messages))})))"
        )


def _destination_mail(
    name: str, messages: int, active: int, oldest: float | None, *more: Any
) -> DestinationMail:
    due, last = more
    return DestinationMail(name, messages, bool(active), oldest or 0.0, due, last or "")


def _entry(row: Sequence[Any], chosen: QueueFilter) -> tuple[MessageSummary, list[StoredPart]] | None:
    try:
        message = message_of(row, json.loads(row[9]))
        last = None if row[11] is None else json.loads(row[11])
        parts = parts_of(row[10], last)
    except DAMAGE as error:
        # Its sender is unknown; it is listed where no filter asks.
        return None if chosen.looks_inside else (_summary_of_damaged(row, error), [])
    if not _is_chosen(message, parts, chosen):
        return None
    envelope = message.envelope
    return MessageSummary(
        queue_id=message.queue_id,
        state=message.state,
        sender=envelope.sender,
        recipients=len(envelope.recipients),
        pending=row[8],
        size=envelope.size,
        received_at=envelope.received_at,
        next_attempt_at=message.next_attempt_at,
        attempts=message.attempts,
        hold_reason=message.hold_reason,
        recipient=_recipient(message, chosen, last),
    ), parts


def parts_of(text: str, last: Sequence[Any] | None) -> list[StoredPart]:
    """The parts in the answer to `PARTS`; ``last`` is position, code, enhanced code, text of an outcome."""
    parts = []
    for number, destination, state, turn, hold, positions in json.loads(text):
        places = None if positions is None else tuple(json.loads(positions))
        concerned = last is not None and (places is None or last[0] in places)
        parts.append(
            StoredPart(
                number,
                destination,
                state_of(state),
                float(turn),
                _HOLD_CAUSES.get(hold, HoldCause.OPERATOR),
                places,
                words(*last[1:]) if concerned and last is not None else "",
            )
        )
    return parts


def words(code: int, enhanced: str, text: str) -> str:
    """An outcome in words."""
    return " ".join(str(each) for each in (code, enhanced, text) if each)


def _is_chosen(message: QueuedMessage, parts: Sequence[StoredPart], chosen: QueueFilter) -> bool:
    """Whether the patterns fit as a whole: the database has looked for fragments of them."""
    if chosen.sender is not None and not fits(str(message.envelope.sender), chosen.sender):
        return False
    to, destination = chosen.recipient, chosen.destination
    if to is not None and not any(fits(str(each.address), to) for each in message.envelope.recipients):
        return False
    return destination is None or any(fits(each.destination, destination) for each in parts)


def _recipient(message: QueuedMessage, chosen: QueueFilter, last: Sequence[Any] | None) -> Address | None:
    """The recipient to show: one that is not done, else any that the filter chose."""
    pending = [each.address for each in message.pending]
    if chosen.recipient is not None:
        everyone = [*pending, *(each.address for each in message.envelope.recipients)]
        return next((each for each in everyone if fits(str(each), chosen.recipient)), None)
    if last is not None and 0 <= (place := int(last[0])) < len(message.envelope.recipients):
        return message.envelope.recipients[place].address
    return pending[0] if pending else None


def seen(
    summary: MessageSummary, parts: Sequence[StoredPart], waits: Waits | None, chosen: QueueFilter
) -> MessageSummary | None:
    """A line of the listing as operators see it; None where its state or reason is not the filter's."""
    views = [view_of_part(part, summary.queue_id, summary.hold_reason, waits) for part in parts]
    leader = leading(views)
    state, next_attempt_at = summary.state, summary.next_attempt_at
    if summary.state is MessageState.HOLD:
        state, next_attempt_at = state_on_hold([part.hold for part in parts]), None
    elif leader is not None:
        state, next_attempt_at = leader.state, leader.next_attempt_at
    if chosen.state is not None and state is not chosen.state:
        return None
    # Where it goes and why it waits is said of a part that the filter means.
    meant = [view for view in views if _is_meant(view, chosen)]
    if views and not meant:
        return None
    shown = leading(meant)
    return replace(
        summary,
        state=state,
        next_attempt_at=next_attempt_at,
        hold_reason=shown_hold_reason(state, summary.hold_reason),
        destination=shown.destination if shown is not None else "",
        reason=shown.reason if shown is not None else "",
    )


def _is_meant(view: PartView, chosen: QueueFilter) -> bool:
    if chosen.destination is not None and not fits(view.destination, chosen.destination):
        return False
    return chosen.reason is None or fits(view.reason, chosen.reason)


def _summary_of_damaged(row: Sequence[Any], error: Exception) -> MessageSummary:
    """What the columns say of a message whose envelope can't be read; no sender has the address."""
    queue_id, state, next_attempt_at, received_at, size, attempts, hold_reason, _, pending = row[:9]
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
