"""The calls of the admin API about the queue."""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any

from twisted.internet.defer import Deferred, DeferredList
from twisted.logger import Logger
from twisted.python.failure import Failure
from twisted.web import http

from elemta.errors import MessageOnHold, UnknownMessage
from elemta.ops.admin_calls import AdminCall, AdminRefusal, Answer, count_of, no_such_message
from elemta.ops.admin_json import Json, record_json, stats_json, summary_json
from elemta.ops.admin_operations import Operations, ReturnResult
from elemta.spool.filters import QueueFilter
from elemta.spool.records import MessageState

_log = Logger()

DEFAULT_PAGE = 100
MAX_REASON = 200
# Those of one call about many fit the line of a request.
MOST_IDS = 200

_QUEUE_ID = re.compile(r"[0-9A-Z]{1,64}")


class QueueCalls:
    """The calls that show and change the messages in the spool."""

    def __init__(self, operations: Operations) -> None:
        self._operations = operations
        self._spool = operations.spool

    async def page(self, call: AdminCall) -> Json:
        call.only("state", "from", "to", "limit", "after")
        chosen = QueueFilter(
            _state(call.query.get("state")), call.query.get("from") or None, call.query.get("to") or None
        )
        page = await self._spool.find(
            chosen,
            limit=count_of(call, "limit", DEFAULT_PAGE),
            after=call.query.get("after", "").upper() or None,
        )
        return {"messages": [summary_json(summary) for summary in page.messages], "next": page.after}

    async def stats(self, call: AdminCall) -> Json:
        call.only()
        return stats_json(await self._spool.stats())

    async def show(self, call: AdminCall) -> Json:
        call.only()
        return record_json(await self._spool.show(_queue_id(call)))

    async def hold(self, call: AdminCall) -> Json:
        call.only("reason")
        reason = call.query.get("reason") or "held by the operator"
        if not call.query.get("reason"):
            message = (await self._spool.show(_queue_id(call))).message
            if message.state is MessageState.HOLD and message.hold_reason:
                # It keeps its reason; but now the operator holds it, and the hold has no end.
                reason = message.hold_reason
        elif len(reason) > MAX_REASON:
            raise AdminRefusal(http.BAD_REQUEST, f"a reason of more than {MAX_REASON} characters")

        async def hold(queue_id: str) -> None:
            await self._spool.hold(queue_id, reason)

        return await self._change(call, hold, "held")

    async def release(self, call: AdminCall) -> Json:
        call.only()
        return await self._change(call, self._spool.release, "released")

    async def retry(self, call: AdminCall) -> Json:
        call.only()
        try:
            return await self._change(call, self._spool.retry, "to be retried")
        except MessageOnHold as error:
            raise AdminRefusal(http.CONFLICT, "the message is on hold", "release it instead") from error

    async def bounce(self, call: AdminCall) -> Json:
        call.only()
        record = await self._spool.show(_queue_id(call))
        if not record.envelope.sender:
            hint = "delete it, or hold it"
            raise AdminRefusal(http.CONFLICT, "the sender is <>: there is no address for a notice", hint)
        returned: list[ReturnResult] = []

        async def give_up(queue_id: str) -> None:
            returned.append(await self._operations.return_to_sender(queue_id))

        answer = await self._change(call, give_up, "returned to the sender")
        return {**answer, "recipients": returned[0].recipients, "notices": returned[0].notices}

    async def delete(self, call: AdminCall) -> Json:
        call.only()
        return await self._change(call, self._spool.delete, "deleted")

    def of_many(self, one: Callable[[AdminCall], Coroutine[Deferred[Any], Any, Json]]) -> Answer:
        """A call about one message as a call about each of ``ids``, in their order; they share a commit.

        What one of them is refused is in its result. What concerns all of them fails the call.
        """

        async def answer(call: AdminCall) -> Json:
            rest = {name: value for name, value in call.query.items() if name != "ids"}
            doing = [Deferred.fromCoroutine(one(AdminCall((queue_id,), rest))) for queue_id in _ids(call)]
            done = await DeferredList(doing, consumeErrors=True)
            results = zip(_ids(call), (result for _, result in done), strict=True)
            return {"results": [_result(queue_id, result) for queue_id, result in results]}

        return answer

    async def _change(self, call: AdminCall, change: Callable[[str], Awaitable[None]], done: str) -> Json:
        queue_id = _queue_id(call)
        await change(queue_id)
        _log.info("an operator changed the queue", event="admin.queue_changed", queue_id=queue_id, done=done)
        return {"queue_id": queue_id, "done": done}


def _ids(call: AdminCall) -> list[str]:
    ids = [queue_id for queue_id in call.query.get("ids", "").split(",") if queue_id]
    if not 1 <= len(ids) <= MOST_IDS:
        raise AdminRefusal(http.BAD_REQUEST, f"{len(ids)} queue ids", f"ids=ID,ID,… takes 1 to {MOST_IDS}")
    return ids


def _result(queue_id: str, result: Json | Failure) -> Json:
    if not isinstance(result, Failure):
        return result
    error = no_such_message() if result.check(UnknownMessage) else result.value
    if not isinstance(error, AdminRefusal) or error.status not in (http.NOT_FOUND, http.CONFLICT):
        result.raiseException()
    return {"queue_id": queue_id, "status": error.status, **error.content}


def _queue_id(call: AdminCall) -> str:
    # Ids are written in capitals; an operator may type them in lower case.
    queue_id = call.parts[0].upper()
    if not _QUEUE_ID.fullmatch(queue_id):
        raise UnknownMessage(call.parts[0][:64])
    return queue_id


def _state(text: str | None) -> MessageState | None:
    if not text:
        return None
    try:
        return MessageState(text)
    except ValueError:
        known = ", ".join(state.value for state in MessageState)
        raise AdminRefusal(http.BAD_REQUEST, f"unknown state {text[:32]!r}", f"known: {known}") from None
