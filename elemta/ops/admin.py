"""The admin API: JSON over HTTP, for ``elemtactl`` and all others that may open the daemon's socket.

========================================  ===========================================================
``GET /v1/status``                        the daemon and its queue in numbers
``GET /v1/nodes``                         the nodes of the cluster that are alive
``GET /v1/plugins``                       the installed policy plugins
``GET /v1/config``                        the configuration in force, as TOML in ``toml``
``POST /v1/reload``                       reread it; 422 with ``faults`` when nothing was changed
``POST /v1/drain``                        take no new session
``GET /v1/limits``                        the limits in force
``GET /v1/limits/top?limit=&count=``      the identities nearest to a limit, or above it
``GET /v1/limits/show?id=``               how full the limits are for an identity
``POST /v1/limits/reset?id=``             forgets what was counted for an identity, in the whole cluster
``GET /v1/spools``                        the spools that are delivered from
``POST /v1/spools/adopt?directory=``      deliver from another node's, too, until it is empty
``POST /v1/spools/give-back?directory=``  stop that, and let its node have it
``GET /v1/queue?state=&limit=&after=``    messages in the order of their ids; ``next`` is for ``after``
``GET /v1/queue/stats``                   the queue in numbers
``GET /v1/queue/ID``                      one message with recipients and history
``POST /v1/queue/ID/retry|hold|release``  what it says; ``hold`` takes ``?reason=``
``POST /v1/queue/ID/bounce``              returned to its sender with a notice; ``notices`` says how many
``DELETE /v1/queue/ID``                   the message is gone, no bounce is sent
========================================  ===========================================================

An error is ``{"error": …, "hint": …}`` with a status that fits.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import cast

from twisted.internet.base import ReactorBase
from twisted.internet.defer import Deferred
from twisted.internet.defer import TimeoutError as OutOfTime
from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger
from twisted.python.failure import Failure
from twisted.web import http
from twisted.web.resource import Resource
from twisted.web.server import NOT_DONE_YET, Request, Site

from elemta.errors import SpoolError, StoreUnavailable, UnknownMessage
from elemta.ops.admin_api import Api
from elemta.ops.admin_calls import AdminRefusal, no_such_message
from elemta.ops.admin_json import Json
from elemta.ops.admin_operations import Operations

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
            raise AdminRefusal(http.REQUEST_ENTITY_TOO_LARGE, f"a body of more than {MAX_BODY} octets")
        return await self._api.answer(method, uri.decode("ascii", "replace"))

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

    ``deadline`` is seconds for one call; ``now`` gives seconds since the epoch; without it the
    reactor's clock does.
    """

    displayTracebacks = False
    requestFactory = AdminRequest

    def __init__(
        self,
        operations: Operations,
        reactor: ReactorBase,
        *,
        deadline: float = DEADLINE_SECONDS,
        now: Callable[[], float] | None = None,
    ) -> None:
        resource = AdminResource(Api(operations, now or reactor.seconds), reactor, deadline)
        Site.__init__(self, resource, timeout=IDLE_SECONDS, reactor=reactor)

    def log(self, request: http.Request) -> None:
        _log.debug(
            "answered an admin call",
            event="admin.call_answered",
            method=request.method,
            path=request.path,
            status=request.code,
        )


def _refusal_of(failure: Failure) -> AdminRefusal:
    error = failure.value
    if isinstance(error, AdminRefusal):
        return error
    if isinstance(error, UnknownMessage):
        return no_such_message()
    if isinstance(error, StoreUnavailable):
        return AdminRefusal(
            http.SERVICE_UNAVAILABLE, f"the limits could not be asked: {error}", "see the log"
        )
    if isinstance(error, OutOfTime):
        return AdminRefusal(http.GATEWAY_TIMEOUT, "no answer in time", "it may still be carried out")
    if isinstance(error, SpoolError):
        return AdminRefusal(http.SERVICE_UNAVAILABLE, f"the spool could not do it: {error}", "see the log")
    return AdminRefusal(http.INTERNAL_SERVER_ERROR, "internal error", "see the log")
