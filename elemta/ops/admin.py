"""The admin API: JSON over HTTP, for ``elemtactl`` and whoever else may open the daemon's socket.

========================================  ===========================================================
``GET /v1/status``                        the daemon and its queue in numbers
``GET /v1/plugins``                       the installed policy plugins
``GET /v1/config``                        the configuration in force, as TOML in ``toml``
``POST /v1/reload``                       reread it; 422 with ``faults`` when nothing was changed
``POST /v1/drain``                        take no new session
``GET /v1/queue?state=&limit=&after=``    messages in the order of their ids; ``next`` is for ``after``
``GET /v1/queue/stats``                   the queue in numbers
``GET /v1/queue/ID``                      one message with recipients and history
``POST /v1/queue/ID/retry|hold|release``  what it says; ``hold`` takes ``?reason=``
``POST /v1/queue/ID/bounce``              returned to its sender, who is told; ``notices`` says how often
``DELETE /v1/queue/ID``                   the message is gone, no bounce is sent
========================================  ===========================================================

An error is ``{"error": …, "hint": …}`` with a status that fits.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import cast
from urllib.parse import parse_qsl

from twisted.internet.base import ReactorBase
from twisted.internet.defer import Deferred
from twisted.internet.defer import TimeoutError as OutOfTime
from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger
from twisted.python.failure import Failure
from twisted.web import http
from twisted.web.resource import Resource
from twisted.web.server import NOT_DONE_YET, Request, Site

from elemta.errors import SpoolError, UnknownMessage
from elemta.ops.admin_json import (
    Json,
    fault_json,
    plugin_json,
    record_json,
    reload_json,
    stats_json,
    status_json,
    summary_json,
)
from elemta.ops.admin_operations import Operations, Returned
from elemta.spool.records import State

_log = Logger()

MAX_BODY = 64 * 1024
MAX_PAGE = 1000
DEFAULT_PAGE = 100
DEADLINE_SECONDS = 30.0
IDLE_SECONDS = 60
MAX_REASON = 200
# RFC 9110 §15.5.21; Twisted 22.4 has no name for it
UNPROCESSABLE = 422

_QUEUE_ID = re.compile(r"[0-9A-Z]{1,64}")


class Refusal(Exception):
    """An answer other than 200."""

    def __init__(self, status: int, error: str, hint: str = "", more: Json | None = None) -> None:
        super().__init__(error)
        self.status = status
        self.content: Json = {"error": error, "hint": hint, **(more or {})}


@dataclass(frozen=True, slots=True)
class Call:
    """One request: the variable parts of its path, and its query."""

    parts: tuple[str, ...]
    query: Mapping[str, str]

    def only(self, *names: str) -> None:
        """Refuse a query with other names: a misspelt filter must not mean "everything"."""
        for name in self.query:
            if name not in names:
                known = f"known: {', '.join(names)}" if names else "it takes none"
                raise Refusal(http.BAD_REQUEST, f"unknown query parameter {name!r}", known)


Answer = Callable[["Api", Call], Awaitable[Json]]


class Api:
    """The operations of the daemon as calls with JSON answers; knows no connection."""

    def __init__(self, operations: Operations, now: Callable[[], float]) -> None:
        self._operations = operations
        self._now = now

    async def status(self, call: Call) -> Json:
        call.only()
        try:
            spool = stats_json(await self._operations.spool.stats())
        except SpoolError as error:
            # The status is what one asks for when the disk has failed.
            spool = {"healthy": False, "error": str(error)}
        return status_json(self._operations.status(), spool, self._now())

    async def plugins(self, call: Call) -> Json:
        call.only()
        return {"plugins": [plugin_json(plugin) for plugin in self._operations.plugins()]}

    async def config(self, call: Call) -> Json:
        call.only()
        waiting = list(self._operations.status().needs_restart)
        return {"toml": self._operations.config_dump(), "needs_restart": waiting}

    async def reload(self, call: Call) -> Json:
        call.only()
        result = self._operations.reload()
        if result.faults:
            raise Refusal(
                UNPROCESSABLE,
                "the configuration can't be used; nothing was changed",
                "mend the faults and reload again",
                {"faults": [fault_json(fault) for fault in result.faults]},
            )
        return reload_json(result)

    async def drain(self, call: Call) -> Json:
        call.only()
        self._operations.drain()
        return {"state": self._operations.status().state}

    async def queue(self, call: Call) -> Json:
        call.only("state", "limit", "after")
        limit = _page_size(call.query.get("limit"))
        # One more than asked for tells whether there is a next page.
        found = await self._operations.spool.list(
            state=_state(call.query.get("state")),
            limit=limit + 1,
            after=call.query.get("after", "").upper() or None,
        )
        page = found[:limit]
        return {
            "messages": [summary_json(summary) for summary in page],
            "next": page[-1].queue_id if len(found) > limit else None,
        }

    async def queue_stats(self, call: Call) -> Json:
        call.only()
        return stats_json(await self._operations.spool.stats())

    async def show(self, call: Call) -> Json:
        call.only()
        return record_json(await self._operations.spool.show(_queue_id(call)))

    async def hold(self, call: Call) -> Json:
        call.only("reason")
        if not call.query.get("reason") and await self._is_held(call):
            # It keeps the reason that it is held for.
            return {"queue_id": _queue_id(call), "done": "held"}
        reason = call.query.get("reason") or "held by the operator"
        if len(reason) > MAX_REASON:
            raise Refusal(http.BAD_REQUEST, f"a reason of more than {MAX_REASON} characters")

        async def hold(queue_id: str) -> None:
            await self._operations.spool.hold(queue_id, reason)

        return await self._change(call, hold, "held")

    async def release(self, call: Call) -> Json:
        call.only()
        return await self._change(call, self._operations.spool.release, "released")

    async def retry(self, call: Call) -> Json:
        call.only()
        if await self._is_held(call):
            raise Refusal(http.CONFLICT, "the message is on hold", "release it instead")
        return await self._change(call, self._operations.spool.retry, "to be retried")

    async def bounce(self, call: Call) -> Json:
        call.only()
        record = await self._operations.spool.show(_queue_id(call))
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
        return await self._change(call, self._operations.spool.delete, "deleted")

    async def _is_held(self, call: Call) -> bool:
        record = await self._operations.spool.show(_queue_id(call))
        return record.message.state is State.HOLD

    async def _change(self, call: Call, change: Callable[[str], Awaitable[None]], done: str) -> Json:
        queue_id = _queue_id(call)
        await change(queue_id)
        _log.info("an operator changed the queue", event="admin.queue", queue_id=queue_id, done=done)
        return {"queue_id": queue_id, "done": done}


# Method, path with * for a variable part, and what answers; the first path that fits decides.
ROUTES: Sequence[tuple[str, str, Answer]] = (
    ("GET", "status", Api.status),
    ("GET", "plugins", Api.plugins),
    ("GET", "config", Api.config),
    ("POST", "reload", Api.reload),
    ("POST", "drain", Api.drain),
    ("GET", "queue", Api.queue),
    ("GET", "queue/stats", Api.queue_stats),
    ("GET", "queue/*", Api.show),
    ("DELETE", "queue/*", Api.delete),
    ("POST", "queue/*/bounce", Api.bounce),
    ("POST", "queue/*/hold", Api.hold),
    ("POST", "queue/*/release", Api.release),
    ("POST", "queue/*/retry", Api.retry),
)


class AdminRequest(Request):
    """A request whose body is counted and dropped: no call takes one, and nobody fills memory with it."""

    received_octets = 0

    def handleContentChunk(self, data: bytes) -> None:
        self.received_octets += len(data)
        if self.received_octets > MAX_BODY and self.channel is not None:
            self.channel.loseConnection()

    def render(self, resrc: Resource) -> None:
        self.responseHeaders.removeHeader(b"server")
        Request.render(self, resrc)


class AdminResource(Resource):
    """Every path of the API; errors and panics become JSON, tracebacks only go to the log."""

    isLeaf = True

    def __init__(self, api: Api, clock: IReactorTime, deadline: float) -> None:
        Resource.__init__(self)
        self._api = api
        self._clock = clock
        self._deadline = deadline

    def render(self, request: Request) -> int:
        exchange = _Exchange(request)
        method = request.method.decode("ascii", "replace")
        answer = Deferred.fromCoroutine(self._answer(method, request.uri, cast(AdminRequest, request)))
        answer.addTimeout(self._deadline, self._clock)
        answer.addCallback(exchange.send)
        answer.addErrback(self._refuse, exchange)
        return NOT_DONE_YET

    async def _answer(self, method: str, uri: bytes, request: AdminRequest) -> Json:
        if request.received_octets > MAX_BODY:
            raise Refusal(http.REQUEST_ENTITY_TOO_LARGE, f"a body of more than {MAX_BODY} octets")
        path, _, query = uri.decode("ascii", "replace").partition("?")
        answer, parts = _find(method, path)
        return await answer(self._api, Call(parts, _query(query)))

    def _refuse(self, failure: Failure, exchange: _Exchange) -> None:
        refusal = _refusal_of(failure)
        if refusal.status == http.INTERNAL_SERVER_ERROR:
            _log.failure("an admin call failed", failure, event="admin.failed", path=exchange.path)
        exchange.send(refusal.content, refusal.status)


class _Exchange:
    """One request and its one answer, unless the client went away before it."""

    def __init__(self, request: Request) -> None:
        self._request = request
        self._gone = False
        self.path = request.path
        request.notifyFinish().addErrback(self._client_left)

    def _client_left(self, _: Failure) -> None:
        # The call goes on: a message that was to be held is held.
        self._gone = True

    def send(self, content: Json, status: int = http.OK) -> None:
        if self._gone:
            return
        body = json.dumps(content, ensure_ascii=True).encode("ascii") + b"\n"
        self._request.setResponseCode(status)
        self._request.setHeader(b"content-type", b"application/json")
        self._request.setHeader(b"cache-control", b"no-store")
        self._request.setHeader(b"content-length", str(len(body)).encode("ascii"))
        if status == http.NOT_ALLOWED:
            self._request.setHeader(b"allow", str(content["hint"]).encode("ascii"))
        self._request.write(body)
        self._request.finish()


class AdminSite(Site):
    """The factory to listen with: the admin API over ``operations``.

    ``deadline`` is seconds for one call; ``now`` gives seconds since the epoch.
    """

    displayTracebacks = False
    requestFactory = AdminRequest

    def __init__(
        self,
        operations: Operations,
        reactor: ReactorBase,
        *,
        deadline: float = DEADLINE_SECONDS,
        now: Callable[[], float] = time.time,
    ) -> None:
        resource = AdminResource(Api(operations, now), reactor, deadline)
        Site.__init__(self, resource, timeout=IDLE_SECONDS, reactor=reactor)

    def log(self, request: http.Request) -> None:
        _log.debug(
            "an admin call was answered",
            event="admin.call",
            method=request.method,
            path=request.path,
            status=request.code,
        )


def _find(method: str, path: str) -> tuple[Answer, tuple[str, ...]]:
    segments = path.split("/")
    if segments[:2] != ["", "v1"]:
        raise Refusal(http.NOT_FOUND, "no such path", "every path begins with /v1/")
    allowed: list[str] = []
    for known_method, pattern, answer in ROUTES:
        parts = _match(pattern.split("/"), segments[2:])
        if parts is None:
            continue
        if known_method == method:
            return answer, parts
        allowed.append(known_method)
    if allowed:
        raise Refusal(http.NOT_ALLOWED, f"{method[:16]} is not for this path", ", ".join(allowed))
    raise Refusal(http.NOT_FOUND, "no such path")


def _match(pattern: Sequence[str], segments: Sequence[str]) -> tuple[str, ...] | None:
    if len(pattern) != len(segments):
        return None
    pairs = tuple(zip(pattern, segments, strict=True))
    if any(part not in ("*", segment) for part, segment in pairs):
        return None
    return tuple(segment for part, segment in pairs if part == "*")


def _query(text: str) -> Mapping[str, str]:
    try:
        return dict(parse_qsl(text, keep_blank_values=True, strict_parsing=bool(text), max_num_fields=16))
    except ValueError:
        raise Refusal(http.BAD_REQUEST, "the query is malformed", "NAME=VALUE&NAME=VALUE") from None


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


def _page_size(text: str | None) -> int:
    if text is None:
        return DEFAULT_PAGE
    if not (text.isascii() and text.isdigit() and 1 <= int(text[:9]) <= MAX_PAGE):
        raise Refusal(http.BAD_REQUEST, f"limit {text[:16]!r} is not a number from 1 to {MAX_PAGE}")
    return int(text)


def _refusal_of(failure: Failure) -> Refusal:
    error = failure.value
    if isinstance(error, Refusal):
        return error
    if isinstance(error, UnknownMessage):
        return Refusal(http.NOT_FOUND, "no message has this queue id", "it may be delivered by now")
    if isinstance(error, OutOfTime):
        return Refusal(http.GATEWAY_TIMEOUT, "no answer in time", "it may still be carried out")
    if isinstance(error, SpoolError):
        return Refusal(http.SERVICE_UNAVAILABLE, f"the spool could not do it: {error}", "see the log")
    return Refusal(http.INTERNAL_SERVER_ERROR, "internal error", "see the log")
