"""The admin calls about the queue: the messages that wait, and what an operator does to them."""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass
from http import HTTPStatus
from typing import Annotated, Any

from twisted.internet.defer import Deferred, DeferredList, DeferredSemaphore
from twisted.logger import Logger
from twisted.python.failure import Failure

from elemta.address import Address
from elemta.delivery.notices import ReturnedMessage
from elemta.envelope import Client, MailParameters, Notify, Recipient
from elemta.ops.admin_calls import route
from elemta.ops.admin_errors import AdminRefusal, refusal_of
from elemta.ops.admin_json import Count, Text
from elemta.outcome import Outcome, Status
from elemta.spool.combined import CombinedQueue
from elemta.spool.filters import QueueFilter
from elemta.spool.queue_id import unknown_message
from elemta.spool.records import (
    MessageRecord,
    MessageState,
    MessageSummary,
    RecipientRecord,
    SpoolStats,
)

_log = Logger()

# Those of one call about many fit the line of a request.
MOST_IDS = 200
MAX_REASON = 200
# Each may have a notice in memory.
_RETURNS_AT_ONCE = 20

_QUEUE_ID = re.compile(r"[0-9A-Z]{1,64}")


@dataclass(frozen=True, slots=True)
class QueueIdList:
    """Queue ids with commas between them."""

    @property
    def schema(self) -> Mapping[str, Any]:
        return {"type": "string", "pattern": f"^[0-9A-Za-z]+(,[0-9A-Za-z]+){{0,{MOST_IDS - 1}}}$"}

    def parse(self, name: str, text: str) -> tuple[str, ...]:
        ids = tuple(queue_id for queue_id in text.split(",") if queue_id)
        if not 1 <= len(ids) <= MOST_IDS:
            hint = f"{name}=ID,ID,… takes 1 to {MOST_IDS}"
            raise AdminRefusal(HTTPStatus.BAD_REQUEST, f"{len(ids)} queue ids", hint)
        return ids


_Ids = Annotated[Sequence[str], QueueIdList()]
_Reason = Annotated[str, Text(MAX_REASON, problem=f"a reason of more than {MAX_REASON} characters")]


@dataclass(frozen=True, slots=True)
class QueueSize:
    """How many messages, and how large they are together."""

    messages: int
    octets: int


@dataclass(frozen=True, slots=True)
class QueueStats:
    """The queue in numbers, and its disk: whether it can be trusted, and what is free on it."""

    healthy: bool
    free: int
    oldest_age: float
    total: QueueSize
    states: Mapping[MessageState, QueueSize]

    @classmethod
    def of(cls, stats: SpoolStats) -> QueueStats:
        return cls(
            healthy=stats.healthy,
            free=stats.free,
            oldest_age=stats.oldest_age,
            total=QueueSize(stats.total, stats.total_octets),
            states={
                state: QueueSize(count, stats.octets.get(state, 0)) for state, count in stats.messages.items()
            },
        )


@dataclass(frozen=True, slots=True)
class QueueEntry:
    """One message in the listing; a held one has no next attempt."""

    queue_id: str
    state: MessageState
    sender: Address
    recipients: int
    pending: int
    size: int
    received_at: float
    next_attempt_at: float | None
    attempts: int
    hold_reason: str | None

    @classmethod
    def of(cls, summary: MessageSummary) -> QueueEntry:
        return cls(
            summary.queue_id,
            summary.state,
            summary.sender,
            summary.recipients,
            summary.pending,
            summary.size,
            summary.received_at,
            _next_attempt(summary.state, summary.next_attempt_at),
            summary.attempts,
            summary.hold_reason,
        )


@dataclass(frozen=True, slots=True)
class QueuePage:
    """A page of the listing; ``next`` is the ``after`` of the next one, None at the end."""

    messages: tuple[QueueEntry, ...]
    next: str | None


@dataclass(frozen=True, slots=True)
class RecipientDetails:
    """One recipient of a message, and its last outcome."""

    address: Address
    pending: bool
    status: Status | None
    code: int
    enhanced: str
    text: str
    route: str
    next_hop: str
    at: float | None
    notify: tuple[str, ...] | None
    orcpt: str | None

    @classmethod
    def of(cls, record: RecipientRecord) -> RecipientDetails:
        outcome = record.outcome
        return cls(
            record.recipient.address,
            record.pending,
            outcome.status if outcome else None,
            outcome.code if outcome else 0,
            outcome.enhanced if outcome else "",
            outcome.text if outcome else "",
            outcome.route if outcome else "",
            outcome.next_hop if outcome else "",
            outcome.at if outcome else None,
            _notify(record.recipient),
            record.recipient.orcpt,
        )


@dataclass(frozen=True, slots=True)
class AttemptDetails:
    """One attempt for one recipient; ``number`` counts the attempts of the message."""

    number: int
    recipient: Address
    status: Status
    code: int
    enhanced: str
    text: str
    route: str
    next_hop: str
    at: float
    seconds: float

    @classmethod
    def of(cls, number: int, outcome: Outcome) -> AttemptDetails:
        return cls(
            number,
            outcome.recipient,
            outcome.status,
            outcome.code,
            outcome.enhanced,
            outcome.text,
            outcome.route,
            outcome.next_hop,
            outcome.at,
            outcome.seconds,
        )


@dataclass(frozen=True, slots=True)
class MessageDetails:
    """One message with its client, recipients and attempts."""

    queue_id: str
    state: MessageState
    hold_reason: str | None
    sender: Address
    size: int
    received_at: float
    next_attempt_at: float | None
    attempts: int
    client: Client
    parameters: MailParameters
    recipients: tuple[RecipientDetails, ...]
    history: tuple[AttemptDetails, ...]

    @classmethod
    def of(cls, record: MessageRecord) -> MessageDetails:
        message, envelope = record.message, record.envelope
        return cls(
            queue_id=record.queue_id,
            state=message.state,
            hold_reason=message.hold_reason,
            sender=envelope.sender,
            size=envelope.size,
            received_at=envelope.received_at,
            next_attempt_at=_next_attempt(message.state, message.next_attempt_at),
            attempts=message.attempts,
            client=envelope.client,
            parameters=envelope.parameters,
            recipients=tuple(RecipientDetails.of(each) for each in record.recipients),
            history=tuple(AttemptDetails.of(*each) for each in record.history),
        )


@dataclass(frozen=True, slots=True)
class QueueChange:
    """What was done to a message."""

    queue_id: str
    done: str


@dataclass(frozen=True, slots=True)
class QueueReturn:
    """What was done, the recipients that were given up, and the notices to the sender."""

    queue_id: str
    done: str
    recipients: int
    notices: int


@dataclass(frozen=True, slots=True)
class QueueRefusal:
    """Why nothing was done to one message of several: as the call about it alone would say."""

    queue_id: str
    status: int
    error: str
    hint: str


@dataclass(frozen=True, slots=True)
class QueueResults:
    """What came of each message, in the order of the ids."""

    results: tuple[QueueChange | QueueReturn | QueueRefusal, ...]


class QueueOperations:
    """Shows and changes the messages in ``queue``; ``return_to_sender`` gives one up with a notice."""

    def __init__(
        self, queue: CombinedQueue, return_to_sender: Callable[[str], Awaitable[ReturnedMessage]]
    ) -> None:
        self._queue = queue
        self._return_to_sender = return_to_sender

    @route("GET", "/v1/queue")
    async def list(
        self,
        state: MessageState | None = None,
        from_: str | None = None,
        to: str | None = None,
        limit: Annotated[int, Count()] = 100,
        after: str | None = None,
    ) -> QueuePage:
        """The messages in the order of their arrival, page by page."""
        chosen = QueueFilter(state, from_, to)
        page = await self._queue.find(chosen, limit=limit, after=after.upper() if after else None)
        return QueuePage(tuple(QueueEntry.of(each) for each in page.messages), page.after)

    @route("GET", "/v1/queue/stats")
    async def stats(self) -> QueueStats:
        """The queue in numbers."""
        return QueueStats.of(await self._queue.stats())

    @route("GET", "/v1/queue/{queue_id}")
    async def show(self, queue_id: str) -> MessageDetails:
        """One message with its client, recipients and attempts."""
        return MessageDetails.of(await self._queue.show(_known(queue_id)))

    @route("DELETE", "/v1/queue/{queue_id}")
    async def delete(self, queue_id: str) -> QueueChange:
        """Remove a message for good, without a notice."""
        return await _change(queue_id, self._queue.delete, "deleted")

    @route("POST", "/v1/queue/{queue_id}/hold")
    async def hold(self, queue_id: str, reason: _Reason | None = None) -> QueueChange:
        """Keep a message from being delivered; without a reason a held one keeps the reason that it has."""
        return await _change(queue_id, lambda known: self._queue.hold(known, reason), "held")

    @route("POST", "/v1/queue/{queue_id}/release")
    async def release(self, queue_id: str) -> QueueChange:
        """Deliver a held message now."""
        return await _change(queue_id, self._queue.release, "released")

    @route("POST", "/v1/queue/{queue_id}/retry")
    async def retry(self, queue_id: str) -> QueueChange:
        """Attempt a deferred message now."""
        return await _change(queue_id, self._queue.retry, "to be retried")

    @route("POST", "/v1/queue/{queue_id}/bounce")
    async def bounce(self, queue_id: str) -> QueueReturn:
        """Give up a message and tell its sender with a failure notice."""
        known = _known(queue_id)
        returned = await self._return_to_sender(known)
        change = _changed(known, "returned to the sender")
        return QueueReturn(change.queue_id, change.done, returned.recipients, returned.notices)

    @route("POST", "/v1/queue/delete")
    async def delete_many(self, ids: _Ids) -> QueueResults:
        """Remove messages for good, without a notice."""
        return await _each(ids, self.delete)

    @route("POST", "/v1/queue/hold")
    async def hold_many(self, ids: _Ids, reason: _Reason | None = None) -> QueueResults:
        """Keep messages from being delivered."""
        return await _each(ids, lambda queue_id: self.hold(queue_id, reason))

    @route("POST", "/v1/queue/release")
    async def release_many(self, ids: _Ids) -> QueueResults:
        """Deliver held messages now."""
        return await _each(ids, self.release)

    @route("POST", "/v1/queue/retry")
    async def retry_many(self, ids: _Ids) -> QueueResults:
        """Attempt deferred messages now."""
        return await _each(ids, self.retry)

    @route("POST", "/v1/queue/bounce")
    async def bounce_many(self, ids: _Ids) -> QueueResults:
        """Give up messages and tell their senders with failure notices."""
        turns = DeferredSemaphore(_RETURNS_AT_ONCE)

        async def bounce(queue_id: str) -> QueueReturn:
            await turns.acquire()
            try:
                return await self.bounce(queue_id)
            finally:
                turns.release()

        return await _each(ids, bounce)


async def _each(
    ids: Sequence[str], one: Callable[[str], Coroutine[Deferred[Any], Any, QueueChange | QueueReturn]]
) -> QueueResults:
    """A call about one message as a call about each of ``ids``, in their order; they share a commit.

    What one of them is refused is in its result. What concerns all of them fails the call.
    """
    doing = [Deferred.fromCoroutine(one(queue_id)) for queue_id in ids]
    done = await DeferredList(doing, consumeErrors=True)
    results = zip(ids, (result for _, result in done), strict=True)
    return QueueResults(tuple(_result(queue_id, result) for queue_id, result in results))


def _result(
    queue_id: str, result: QueueChange | QueueReturn | Failure
) -> QueueChange | QueueReturn | QueueRefusal:
    if not isinstance(result, Failure):
        return result
    refusal = refusal_of(result.value)
    if refusal.status not in (HTTPStatus.NOT_FOUND, HTTPStatus.CONFLICT):
        result.raiseException()
    return QueueRefusal(queue_id, refusal.status, refusal.error, refusal.hint)


async def _change(queue_id: str, change: Callable[[str], Awaitable[None]], done: str) -> QueueChange:
    known = _known(queue_id)
    await change(known)
    return _changed(known, done)


def _changed(queue_id: str, done: str) -> QueueChange:
    _log.info("an operator changed the queue", event="admin.queue_changed", queue_id=queue_id, done=done)
    return QueueChange(queue_id, done)


def _known(text: str) -> str:
    # Ids are written in capitals; an operator may type them in lower case.
    queue_id = text.upper()
    if not _QUEUE_ID.fullmatch(queue_id):
        raise unknown_message(text[:64])
    return queue_id


def _next_attempt(state: MessageState, at: float) -> float | None:
    return None if state is MessageState.HOLD else at


def _notify(recipient: Recipient) -> tuple[str, ...] | None:
    if recipient.notify is None:
        return None
    # RFC 3461 §4.1: NEVER stands alone
    flags = tuple(flag.name for flag in Notify if flag in recipient.notify and flag.name)
    return flags or ("NEVER",)
