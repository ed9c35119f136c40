"""What is to be done in the queue, and when: the questions of delivery, each answered from an index.

However many messages there are, no question costs more than what it gives: a destination whose next hop is
down is never looked into, and the destinations themselves are found by leaping from one name to the next.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from elemta.envelope import Recipient
from elemta.message.notice import Notice, NoticeKind
from elemta.outcome import Outcome, Status
from elemta.spool.damaged_rows import Found, read_rows
from elemta.spool.parts import OWED_FINAL
from elemta.spool.queue_id import known_key, row_key
from elemta.spool.reader import Reader
from elemta.spool.records import ArrivalPage, DestinationDue, HeldPart, HoldCause, MessageState
from elemta.spool.rows import (
    FINISHED,
    MESSAGE_COLUMNS,
    PART_COLUMNS,
    STATE_CODES,
    STATE_INDEXES,
    part_of,
    whole_of,
)

# CROSS JOIN keeps SQLite to this order of the tables, and so to the order of the index.
_DUE = (
    f"SELECT {PART_COLUMNS}, {FINISHED}, m.id FROM part p INDEXED BY part_lane"  # noqa: S608 - names are ours
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
    f"SELECT {PART_COLUMNS}, {FINISHED}, m.id FROM part p"  # noqa: S608 - names are ours
    " CROSS JOIN message m ON m.id = p.message_id"
    " WHERE p.message_id IN (SELECT value FROM json_each(?)) AND p.state < 2 AND p.warned <= ?"
    " ORDER BY p.message_id, p.number"
)
_HELD = (
    f"SELECT {PART_COLUMNS}, {FINISHED}, p.hold, p.held_at, m.id FROM ({{}}) held"  # noqa: S608 - names are ours
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
_WALK_STATE = "SELECT id, CAST(received_at AS REAL) FROM message INDEXED BY {} WHERE state = {} AND id > ?1"
_WALK = " UNION ALL ".join(
    _WALK_STATE.format(STATE_INDEXES[state], STATE_CODES[state])
    for state in (MessageState.ACTIVE, MessageState.DEFERRED)
)
_WALK += " ORDER BY id LIMIT ?2"


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

    def owed(self, after: str | None, limit: int) -> Found[list[Notice]]:
        """What senders have still to hear of deliveries, from behind the message with a queue id on."""
        rows = self._reader.all(_OWED, (-1 if after is None else known_key(after), limit))
        found, damaged = read_rows(rows, self._owed_of)
        return Found(found, tuple(damaged))

    def _owed_of(self, row: Sequence[Any]) -> Notice:
        message = whole_of(row)
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
        envelope = message.envelope
        return Notice(NoticeKind.SUCCESS, envelope, tuple(pending), tuple(outcomes), envelope.received_at)

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

    def older(self, before: float, after: int, limit: int, *, unwarned: bool) -> Found[ArrivalPage]:
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
        return Found(ArrivalPage(tuple(messages), place, more), tuple(damaged))

    def held(self, before: float, limit: int) -> Found[list[HeldPart]]:
        """Parts whose hold has an end and began then or earlier, the oldest hold first."""
        return _held(self._reader.all(_ENDING, (before, limit)))

    def undeliverable(self, limit: int) -> Found[list[HeldPart]]:
        """Undeliverable notices on hold, the oldest hold first."""
        return _held(self._reader.all(_UNDELIVERABLE, (limit,)))


def _held(rows: Sequence[Sequence[Any]]) -> Found[list[HeldPart]]:
    found, damaged = read_rows(rows, lambda row: HeldPart(part_of(row), HoldCause(row[13]), float(row[14])))
    return Found(sorted(found, key=lambda held: held.held_at), tuple(damaged))
