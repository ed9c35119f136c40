"""The admin API: JSON over HTTP, for ``elemtactl`` and all others that may open the daemon's socket.

What it can do is a :class:`~elemta.ops.admin_calls.CallTable`; ``docs/elemtactl.md`` lists the calls. An
error is ``{"error": …, "hint": …}`` with a status that fits.
"""

from __future__ import annotations

import json
from http import HTTPStatus
from typing import cast

from twisted.internet.base import ReactorBase
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger
from twisted.python.failure import Failure
from twisted.web import http
from twisted.web.resource import Resource
from twisted.web.server import NOT_DONE_YET, Request, Site

from elemta.ops.admin_calls import CallTable
from elemta.ops.admin_errors import AdminRefusal, refusal_of
from elemta.ops.admin_json import Json, to_json

_log = Logger()

MAX_BODY = 64 * 1024
DEADLINE_SECONDS = 30.0
IDLE_SECONDS = 60


class AdminRequest(Request):
    """A request whose body is counted and dropped: no call takes one, and it must not fill memory."""

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

    def __init__(self, calls: CallTable, clock: IReactorTime, deadline: float) -> None:
        Resource.__init__(self)
        self._calls = calls
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
            problem = f"a body of more than {MAX_BODY} octets"
            raise AdminRefusal(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, problem)
        return await self._calls.answer(method, uri.decode("ascii", "replace"))

    def _refuse(self, failure: Failure, exchange: _Exchange) -> None:
        refusal = refusal_of(failure.value)
        if refusal.status is HTTPStatus.INTERNAL_SERVER_ERROR:
            _log.failure("an admin call failed", failure, event="admin.failed", path=exchange.path)
        exchange.send(to_json(refusal.content), refusal.status, allow=refusal.hint)


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

    def send(self, content: Json, status: int = http.OK, allow: str = "") -> None:
        if self._gone:
            return
        body = json.dumps(content, ensure_ascii=True).encode("ascii") + b"\n"
        self._request.setResponseCode(status)
        self._request.setHeader(b"content-type", b"application/json")
        self._request.setHeader(b"cache-control", b"no-store")
        self._request.setHeader(b"content-length", str(len(body)).encode("ascii"))
        if status == http.NOT_ALLOWED:
            self._request.setHeader(b"allow", allow.encode("ascii"))
        self._request.write(body)
        self._request.finish()


class AdminSite(Site):
    """The factory to listen with: the admin API with these calls; ``deadline`` is seconds for one call."""

    displayTracebacks = False
    requestFactory = AdminRequest

    def __init__(self, calls: CallTable, reactor: ReactorBase, *, deadline: float = DEADLINE_SECONDS) -> None:
        resource = AdminResource(calls, reactor, deadline)
        Site.__init__(self, resource, timeout=IDLE_SECONDS, reactor=reactor)

    def log(self, request: http.Request) -> None:
        _log.debug(
            "answered an admin call",
            event="admin.call_answered",
            method=request.method,
            path=request.path,
            status=request.code,
        )
