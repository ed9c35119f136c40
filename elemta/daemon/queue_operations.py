"""The admin calls about the queue: the messages that wait, and what an operator does to them."""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from http import HTTPStatus
from typing import Annotated, Any, BinaryIO

from twisted.internet.defer import Deferred, DeferredList, DeferredSemaphore
from twisted.logger import Logger
from twisted.python.failure import Failure

from elemta.auth.roles import Caller
from elemta.daemon.queue_answers import MessageDetails, MessagePage, QueueEntry, QueueStats
from elemta.message.header_reader import header_size
from elemta.ops.admin_calls import route
from elemta.ops.admin_errors import AdminRefusal, refusal_of
from elemta.ops.admin_json import Count, Duration, Flag, Text
from elemta.outcome import ReturnedMessage
from elemta.spool.combined_queue import CombinedQueue
from elemta.spool.filters import QueueFilter
from elemta.spool.queue_id import unknown_message
from elemta.spool.records import MessageState

_log = Logger()

# Those of one call about many fit the line of a request.
MOST_IDS = 200
MAX_REASON = 200
# Octets of a message that one call reads: as JSON they are built in a turn of the reactor.
MOST_OCTETS = 256 * 1024
# Headers are looked for so far into a message.
_LONGEST_HEADER = 4 * 1024 * 1024
_LARGEST = 10**9
_LONGEST_PATTERN = 1000
# Each may have a notice in memory.
_RETURNS_AT_ONCE = 20

_QUEUE_ID = re.compile(r"[0-9A-Z]{1,64}")


@dataclass(frozen=True, slots=True)
class QueueIdList:
    """Queue ids with commas between them."""

    @property
    def schema(self) -> Mapping[str, Any]:
        return {"type": "string", "pattern": f"^,*[^,]+(,+[^,]+){{0,{MOST_IDS - 1}}},*$"}

    def parse(self, name: str, text: str) -> tuple[str, ...]:
        ids = tuple(queue_id for queue_id in text.split(",") if queue_id)
        if not 1 <= len(ids) <= MOST_IDS:
            hint = f"{name}=ID,ID,… takes 1 to {MOST_IDS}"
            raise AdminRefusal(HTTPStatus.BAD_REQUEST, f"{len(ids)} queue ids", hint)
        return ids


_Pattern = Annotated[str, Text(_LONGEST_PATTERN)]
_Ids = Annotated[Sequence[str], QueueIdList()]
_Reason = Annotated[str, Text(MAX_REASON, problem=f"a reason of more than {MAX_REASON} characters")]


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


@dataclass(frozen=True, slots=True)
class QueuedContent:
    """Some octets of a message, or of its header, from ``offset`` on; ``size`` is that of all of it.

    ``content`` is text in the ``charset``: ``utf-8`` where the octets are that, else ``latin-1``, in which
    each character stands for one octet. ``next`` is the offset of the rest, None at the end.
    """

    queue_id: str
    size: int
    offset: int
    content: str
    charset: str
    next: int | None

    @classmethod
    def of(cls, queue_id: str, size: int, offset: int, octets: bytes) -> QueuedContent:
        whole = octets if offset + len(octets) >= size else _without_cut_character(octets)
        try:
            charset, text = "utf-8", whole.decode("utf-8")
        except UnicodeDecodeError:
            charset, text, whole = "latin-1", octets.decode("latin-1"), octets
        end = offset + len(whole)
        return cls(queue_id, size, offset, text, charset, end if octets and end < size else None)


def _without_cut_character(octets: bytes) -> bytes:
    """The octets without the beginning of a character of UTF-8 at their end: the next page has all of it."""
    # RFC 3629 §3: a character has up to four octets, and the first of them says how many.
    for back in range(1, min(4, len(octets)) + 1):
        octet = octets[-back]
        if octet & 0xC0 != 0x80:
            wanted = 4 if octet >= 0xF0 else 3 if octet >= 0xE0 else 2 if octet >= 0xC0 else 1
            return octets[:-back] if back < wanted and back < len(octets) else octets
    return octets


def _read(content: BinaryIO, headers: bool, offset: int, limit: int) -> tuple[int, bytes]:
    """The size of a message or of its header, and some octets of it. In a thread; closes it."""
    with content:
        size = content.seek(0, 2)
        if headers:
            content.seek(0)
            found = header_size(content.read(_LONGEST_HEADER))
            size = min(size, _LONGEST_HEADER) if found is None else found
        content.seek(min(offset, size))
        return size, content.read(max(0, min(limit, size - offset)))


class QueueOperations:
    """Shows and changes the messages in ``queue``.

    ``return_to_sender`` gives one up with a notice; ``now`` gives seconds since the epoch.
    """

    def __init__(
        self,
        queue: CombinedQueue,
        return_to_sender: Callable[[str], Awaitable[ReturnedMessage]],
        now: Callable[[], float],
    ) -> None:
        self._queue = queue
        self._now = now
        self._return_to_sender = return_to_sender

    @route("GET", "/v1/queue")
    async def list(
        self,
        *,
        state: MessageState | None = None,
        from_: _Pattern | None = None,
        to: _Pattern | None = None,
        destination: _Pattern | None = None,
        reason: _Pattern | None = None,
        older_than: Annotated[float, Duration()] | None = None,
        limit: Annotated[int, Count()] = 100,
        after: str | None = None,
    ) -> MessagePage:
        """The messages in the order of their arrival, page by page."""
        received_by = None if older_than is None else self._now() - older_than
        chosen = QueueFilter(state, from_, to, destination, reason, received_by)
        page = await self._queue.find(chosen, limit=limit, after=after.upper() if after else None)
        return MessagePage(tuple(QueueEntry.of(each) for each in page.messages), page.after)

    @route("GET", "/v1/queue/stats")
    async def stats(self) -> QueueStats:
        """The queue in numbers."""
        return QueueStats.of(await self._queue.stats(as_listed=True))

    @route("GET", "/v1/queue/{queue_id}")
    async def show(self, queue_id: str) -> MessageDetails:
        """One message with its client, recipients and attempts."""
        return MessageDetails.of(await self._queue.show(_known(queue_id)))

    @route("GET", "/v1/queue/{queue_id}/content", audited=True)
    async def content(
        self,
        queue_id: str,
        headers: Annotated[bool, Flag()] = False,
        offset: Annotated[int, Count(0, _LARGEST)] = 0,
        limit: Annotated[int, Count(1, MOST_OCTETS)] = MOST_OCTETS,
    ) -> QueuedContent:
        """A message as it is sent on, or its header alone, some octets at a time."""
        known = _known(queue_id)
        spool = await self._queue.of(known)
        content = await spool.open_content(known)
        size, octets = await spool.in_disk_thread(_read, content, headers, offset, limit)
        return QueuedContent.of(known, size, offset, octets)

    @route("DELETE", "/v1/queue/{queue_id}")
    async def delete(self, queue_id: str, caller: Caller) -> QueueChange:
        """Remove a message for good, without a notice."""
        return await _change(queue_id, partial(self._queue.delete, by=caller.actor), "deleted")

    @route("POST", "/v1/queue/{queue_id}/hold")
    async def hold(self, queue_id: str, caller: Caller, reason: _Reason | None = None) -> QueueChange:
        """Keep a message from being delivered; without a reason a held one keeps the reason that it has."""
        return await _change(queue_id, partial(self._queue.hold, reason=reason, by=caller.actor), "held")

    @route("POST", "/v1/queue/{queue_id}/release")
    async def release(self, queue_id: str, caller: Caller) -> QueueChange:
        """Deliver a held message now."""
        return await _change(queue_id, partial(self._queue.release, by=caller.actor), "released")

    @route("POST", "/v1/queue/{queue_id}/retry")
    async def retry(self, queue_id: str, caller: Caller) -> QueueChange:
        """Attempt a deferred message now."""
        return await _change(queue_id, partial(self._queue.retry, by=caller.actor), "to be retried")

    @route("POST", "/v1/queue/{queue_id}/bounce")
    async def bounce(self, queue_id: str) -> QueueReturn:
        """Give up a message and tell its sender with a failure notice."""
        known = _known(queue_id)
        returned = await self._return_to_sender(known)
        change = _changed(known, "returned to the sender")
        return QueueReturn(change.queue_id, change.done, returned.recipients, returned.notices)

    @route("POST", "/v1/queue/delete")
    async def delete_many(self, ids: _Ids, caller: Caller) -> QueueResults:
        """Remove messages for good, without a notice."""
        return await _each(ids, partial(self.delete, caller=caller))

    @route("POST", "/v1/queue/hold")
    async def hold_many(self, ids: _Ids, caller: Caller, reason: _Reason | None = None) -> QueueResults:
        """Keep messages from being delivered."""
        return await _each(ids, partial(self.hold, caller=caller, reason=reason))

    @route("POST", "/v1/queue/release")
    async def release_many(self, ids: _Ids, caller: Caller) -> QueueResults:
        """Deliver held messages now."""
        return await _each(ids, partial(self.release, caller=caller))

    @route("POST", "/v1/queue/retry")
    async def retry_many(self, ids: _Ids, caller: Caller) -> QueueResults:
        """Attempt deferred messages now."""
        return await _each(ids, partial(self.retry, caller=caller))

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
