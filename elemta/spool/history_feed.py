"""What the history of messages hears of the queue, and what it asks of it."""

from __future__ import annotations

import json
from collections.abc import Collection, Sequence
from typing import Any

from twisted.logger import Logger

from elemta.address import Address
from elemta.envelope import Recipient
from elemta.errors import HistoryError, SpoolError
from elemta.history.events import Accepted, Attempted, Changed, HistoryEvent
from elemta.history.history import MessageHistory
from elemta.message.summary import NO_SUMMARY, read_summary
from elemta.metrics import HistoryMetrics
from elemta.outcome import Outcome, Status
from elemta.runtime import Runtime
from elemta.runtime.disk import Disk, FreeSpace
from elemta.spool.bodies import HEAD
from elemta.spool.operations import Batch, DeliveryResult, NewMessage, Operation, OperatorChange
from elemta.spool.partition import Places
from elemta.spool.queue_id import known_key
from elemta.spool.reader import Reader
from elemta.spool.records import SpoolSettings, Submission
from elemta.spool.rows import decode_envelope, encode_envelope

_log = Logger()

# The part of the disk that the history may take, as 1 in so many.
_SHARE = 10
_SPARED = 64 * 1024 * 1024
_QUEUED = """SELECT m.id, m.queue_id, m.received_at, m.size, m.in_file, m.envelope, m.hold_reason, b.header,
    substr(b.content, 1, ?) FROM message m LEFT JOIN body b ON b.id = m.id
    WHERE m.id > ? ORDER BY m.id LIMIT ?"""
_ATTEMPTS = """SELECT a.message_id, a.number, a.position, a.status, a.code, a.enhanced, a.text, a.route,
    a.next_hop, a.at, a.seconds, coalesce(r.pending, 1) FROM attempt a
    LEFT JOIN recipient r ON r.message_id = a.message_id AND r.position = a.position
    WHERE a.message_id IN (SELECT value FROM json_each(?)) ORDER BY a.message_id, a.number"""


def history_of(
    settings: SpoolSettings, places: Places, runtime: Runtime, metrics: HistoryMetrics | None
) -> MessageHistory | None:
    """The history of a partition, which is not open yet; None where the settings name none."""
    if settings.keep_history is None:
        return None
    return MessageHistory(
        places.history,
        settings.node,
        settings.keep_history,
        runtime=runtime,
        queue=QueueForHistory(places, runtime.disk),
        metrics=metrics or HistoryMetrics(),
    )


def spared(space: FreeSpace) -> int:
    """The history that stays though the disk is full: so little that to remove it would help no mail."""
    return 0 if space.total is None else min(_SPARED, space.total // 100)


def allowance(history: MessageHistory, space: FreeSpace, minimum_free: int) -> int | None:
    """The space that the history may take: a tenth of the disk, and half of what it leaves for mail.

    So it alone never brings about that mail is refused. None where nothing is known of the disk.
    """
    if space.total is None:
        return None
    spare = (history.octets + space.free - minimum_free) // 2
    return max(0, min(space.total // _SHARE, spare))


def feed(history: MessageHistory, batch: Batch, now: float) -> None:
    """Note what a transaction changed, which is on stable storage. Never fails."""
    if history.keep <= 0:
        return
    gone = dict.fromkeys(batch.gone)
    for operation in batch.open():
        try:
            event = _event_of(operation)
        except Exception:
            # What was changed is on stable storage, and its callers wait for their answers.
            history.failed(operation.queue_id)
            continue
        if event is None:
            continue
        if event.key in gone:
            event.ended = True
            del gone[event.key]
        history.add(event)
    for key in gone:
        history.add(HistoryEvent(key, "", now, ended=True))


def keep_discarded(history: MessageHistory | None, queue_id: str, size: int, submission: Submission) -> None:
    """Note a message that was accepted and stored nowhere, because a policy said so. Never fails."""
    if history is None or history.keep <= 0:
        return
    try:
        event = Accepted(
            known_key(queue_id),
            queue_id,
            submission.received_at,
            size,
            encode_envelope(submission),
            submission.sender,
            submission.recipients,
            submission.client,
            submission.summary,
            verdicts=submission.verdicts,
            discarded=True,
            ended=True,
        )
    except Exception:
        # The message is accepted all the same.
        history.failed(queue_id)
    else:
        history.add(event)


def _event_of(operation: Operation) -> HistoryEvent | None:
    if isinstance(operation, DeliveryResult):
        held = operation.hold_reason
        if not operation.recorded and held is None:
            return None
        return Attempted(
            operation.key,
            operation.queue_id,
            operation.at,
            operation.recorded,
            operation.before,
            operation.retry_at,
            held,
            "" if held is None else operation.hold.name.lower(),
        )
    if isinstance(operation, NewMessage):
        return _accepted(operation)
    if isinstance(operation, OperatorChange):
        return Changed(
            operation.key,
            operation.queue_id,
            operation.at,
            operation.action.value,
            operation.by,
            operation.reason or "",
        )
    return None


def _accepted(operation: NewMessage) -> Accepted | None:
    submission = operation.submission
    if submission is None:
        return None
    summary = submission.summary
    if summary is NO_SUMMARY:
        # A notice of ours has all of its header there.
        summary = read_summary(b"", submission.header_block)
    return Accepted(
        operation.key,
        operation.queue_id,
        operation.received_at,
        operation.size,
        operation.envelope,
        submission.sender,
        submission.recipients,
        submission.client,
        summary,
        operation.hold_reason,
        operation.hold.name.lower(),
        submission.verdicts,
    )


class QueueForHistory:
    """The queue database, read in the thread of the history. HistoryError."""

    def __init__(self, places: Places, disk: Disk) -> None:
        self._places = places
        self._reader = Reader(places, disk)
        self._newest = -1

    def look(self) -> None:
        """What is in the queue now was there before the history hears of anything. Never fails."""
        try:
            self._newest = self._all("SELECT coalesce(max(id), -1) FROM message", ())[0][0]
        except HistoryError as error:
            # Mail goes on; of what is queued the history knows what happens from now on.
            _log.error(
                "what is queued can't be read for the history",
                event="history.unreadable",
                reason=str(error),
            )

    def queued(self, messages: Collection[int]) -> set[int]:
        """Those of these messages that are in the queue."""
        return {
            row[0]
            for row in self._all(
                "SELECT id FROM message WHERE id IN (SELECT value FROM json_each(?))",
                (json.dumps(list(messages)),),
            )
        }

    def accepted_after(self, message: int, limit: int) -> tuple[list[HistoryEvent], int | None]:
        """What is known of the next messages that were queued at that time."""
        rows = [row for row in self._all(_QUEUED, (HEAD, message, limit)) if row[0] <= self._newest]
        if not rows:
            return [], None
        accepted = [event for row in rows if (event := self._message(row)) is not None]
        by_key = {event.key: event for event in accepted}
        attempts = self._all(_ATTEMPTS, (json.dumps(list(by_key)),))
        return [*accepted, *(_attempt(by_key[row[0]], row) for row in attempts)], rows[-1][0]

    def close(self) -> None:
        """Ask no more."""
        self._reader.close()

    def _message(self, row: Sequence[Any]) -> Accepted | None:
        key, queue_id, received_at, size, in_file, text, hold_reason, header, content = row
        try:
            envelope = decode_envelope(queue_id, received_at, size, text)
            head = self._head(queue_id) if in_file else bytes(content or b"")
        except (ValueError, TypeError, KeyError, IndexError, RecursionError, OSError):
            # The queue puts on hold what it can't read, and says so.
            return None
        return Accepted(
            key,
            queue_id,
            received_at,
            size,
            text,
            envelope.sender,
            envelope.recipients,
            envelope.client,
            read_summary(head, bytes(header or b"")),
            hold_reason,
        )

    def _head(self, queue_id: str) -> bytes:
        with self._places.body(queue_id).open("rb") as body:
            return body.read(HEAD)

    def _all(self, statement: str, values: Sequence[object]) -> list[tuple[Any, ...]]:
        try:
            return self._reader.all(statement, values)
        except SpoolError as error:
            raise HistoryError(str(error)) from error


def _attempt(accepted: Accepted, row: Sequence[Any]) -> Attempted:
    _, number, position, status, code, enhanced, text, route, next_hop, at, seconds, pending = row
    known = accepted.recipients
    recipient = known[position] if 0 <= position < len(known) else Recipient(Address("", ""))
    found = Status(status) if status in _STATUSES else Status.DEFERRED
    if pending and found is Status.FAILED:
        # It failed and is on hold, which is no end of it.
        found = Status.DEFERRED
    outcome = Outcome(
        accepted.queue_id, recipient.address, found, text, route, next_hop, at, seconds, code, enhanced
    )
    return Attempted(accepted.key, accepted.queue_id, at, [(outcome, [position])], number - 1, None, None, "")


_STATUSES = frozenset(status.value for status in Status)
