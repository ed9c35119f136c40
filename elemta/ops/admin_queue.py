"""The calls of the admin API about the queue."""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable

from twisted.logger import Logger
from twisted.web import http

from elemta.errors import UnknownMessage
from elemta.ops.admin_calls import Call, Refusal, count_of
from elemta.ops.admin_json import Json, record_json, stats_json, summary_json
from elemta.ops.admin_operations import Operations, Returned
from elemta.spool.records import State

_log = Logger()

DEFAULT_PAGE = 100
MAX_REASON = 200

_QUEUE_ID = re.compile(r"[0-9A-Z]{1,64}")


class QueueCalls:
    """What waits in the spool, and what an operator does about it."""

    def __init__(self, operations: Operations) -> None:
        self._operations = operations
        self._spool = operations.spool

    async def page(self, call: Call) -> Json:
        call.only("state", "limit", "after")
        limit = count_of(call, "limit", DEFAULT_PAGE)
        # One more than asked for tells whether there is a next page.
        found = await self._spool.list(
            state=_state(call.query.get("state")),
            limit=limit + 1,
            after=call.query.get("after", "").upper() or None,
        )
        page = found[:limit]
        return {
            "messages": [summary_json(summary) for summary in page],
            "next": page[-1].queue_id if len(found) > limit else None,
        }

    async def stats(self, call: Call) -> Json:
        call.only()
        return stats_json(await self._spool.stats())

    async def show(self, call: Call) -> Json:
        call.only()
        return record_json(await self._spool.show(_queue_id(call)))

    async def hold(self, call: Call) -> Json:
        call.only("reason")
        reason = call.query.get("reason") or "held by the operator"
        if not call.query.get("reason"):
            message = (await self._spool.show(_queue_id(call))).message
            if message.state is State.HOLD and message.hold_reason:
                # It keeps the reason that it is held for; but now somebody wants it so, and it has no end.
                reason = message.hold_reason
        elif len(reason) > MAX_REASON:
            raise Refusal(http.BAD_REQUEST, f"a reason of more than {MAX_REASON} characters")

        async def hold(queue_id: str) -> None:
            await self._spool.hold(queue_id, reason)

        return await self._change(call, hold, "held")

    async def release(self, call: Call) -> Json:
        call.only()
        return await self._change(call, self._spool.release, "released")

    async def retry(self, call: Call) -> Json:
        call.only()
        if await self._is_held(call):
            raise Refusal(http.CONFLICT, "the message is on hold", "release it instead")
        return await self._change(call, self._spool.retry, "to be retried")

    async def bounce(self, call: Call) -> Json:
        call.only()
        record = await self._spool.show(_queue_id(call))
        if not record.envelope.sender:
            hint = "delete it, or hold it"
            raise Refusal(http.CONFLICT, "the sender is <>: nobody can be told", hint)
        returned: list[Returned] = []

        async def give_up(queue_id: str) -> None:
            returned.append(await self._operations.return_to_sender(queue_id))

        answer = await self._change(call, give_up, "returned to the sender")
        return {**answer, "recipients": returned[0].recipients, "notices": returned[0].notices}

    async def delete(self, call: Call) -> Json:
        call.only()
        return await self._change(call, self._spool.delete, "deleted")

    async def _is_held(self, call: Call) -> bool:
        record = await self._spool.show(_queue_id(call))
        return record.message.state is State.HOLD

    async def _change(self, call: Call, change: Callable[[str], Awaitable[None]], done: str) -> Json:
        queue_id = _queue_id(call)
        await change(queue_id)
        _log.info("an operator changed the queue", event="admin.queue", queue_id=queue_id, done=done)
        return {"queue_id": queue_id, "done": done}


def _queue_id(call: Call) -> str:
    # Ids are written in capitals; who types one need not hold the key.
    queue_id = call.parts[0].upper()
    if not _QUEUE_ID.fullmatch(queue_id):
        raise UnknownMessage(call.parts[0][:64])
    return queue_id


def _state(text: str | None) -> State | None:
    if not text:
        return None
    try:
        return State(text)
    except ValueError:
        known = ", ".join(state.value for state in State)
        raise Refusal(http.BAD_REQUEST, f"unknown state {text[:32]!r}", f"known: {known}") from None
