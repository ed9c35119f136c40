"""The admin API: JSON over HTTP, on the daemon's socket and on the listener of the console.

What it can do is a :class:`~elemta.ops.admin_calls.CallTable`; ``docs/elemtactl.md`` lists the calls. An
error is ``{"error": …, "hint": …}`` with a status that fits.
"""

from __future__ import annotations

import json
import socket
import struct
from collections.abc import Awaitable, Callable, Sequence
from http import HTTPStatus
from typing import Any, cast
from urllib.parse import quote, unquote

from twisted.internet.base import ReactorBase
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger
from twisted.python.failure import Failure
from twisted.web import http
from twisted.web.resource import Resource
from twisted.web.server import NOT_DONE_YET, Request, Site

from elemta.auth.roles import AccessRole, Caller
from elemta.ops.admin_calls import MAX_BODY, CallTable
from elemta.ops.admin_errors import AdminRefusal, refusal_of
from elemta.ops.admin_json import Json, to_json
from elemta.ops.http import NamelessRequest

_log = Logger()

DEADLINE_SECONDS = 30.0
IDLE_SECONDS = 60

_ACTOR, _ROLE = "x-elemta-actor", "x-elemta-role"
_UCRED = struct.Struct("3i")


Identify = Callable[["AdminRequest"], Awaitable[Caller]]
"""The peer that makes a request. Raises :class:`~elemta.ops.admin_errors.AdminRefusal`."""


class AdminRequest(NamelessRequest):
    """A request with a bounded body, which is kept apart from Twisted's: it reads no form in it.

    A client whose body is larger than ``max_body`` octets is disconnected.
    """

    max_body = MAX_BODY

    def __init__(self, *args: Any, **named: Any) -> None:
        Request.__init__(self, *args, **named)
        self.received_octets = 0
        self._body: list[bytes] = []

    def gotLength(self, length: int | None) -> None:  # noqa: ARG002
        # Twisted would make a temporary file for a large body; nothing is written to it here.
        Request.gotLength(self, 0)

    def handleContentChunk(self, data: bytes) -> None:
        self.received_octets += len(data)
        if self.received_octets <= self.max_body:
            self._body.append(data)
            return
        self._body.clear()
        if self.channel is not None:
            self.channel.loseConnection()

    @property
    def body(self) -> bytes:
        """The whole body. Raises :class:`AdminRefusal` for one that is too large."""
        if self.received_octets > self.max_body:
            problem = f"a body of more than {self.max_body} octets"
            raise AdminRefusal(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, problem)
        return b"".join(self._body)

    @property
    def content_type(self) -> str:
        return self.header(b"content-type") or ""

    def header(self, name: bytes) -> str | None:
        """The last field of this name, each octet as one character; None where there is none.

        Twisted raises for what is not UTF-8.
        """
        values = self.requestHeaders.getRawHeaders(name)
        return values[-1].decode("latin-1") if values else None


class AdminResource(Resource):
    """Every path of the API; errors and panics become JSON, tracebacks only go to the log."""

    isLeaf = True

    def __init__(self, calls: CallTable, clock: IReactorTime, deadline: float, identify: Identify) -> None:
        Resource.__init__(self)
        self._calls = calls
        self._clock = clock
        self._deadline = deadline
        self._identify = identify

    def render(self, request: Request) -> int:
        exchange = AdminExchange(request)
        answer = Deferred.fromCoroutine(self._answer(cast(AdminRequest, request)))
        answer.addTimeout(self._deadline, self._clock)
        answer.addCallback(exchange.send)
        answer.addErrback(self._refuse, exchange)
        return NOT_DONE_YET

    async def _answer(self, request: AdminRequest) -> Json:
        caller = await self._identify(request)
        # RFC 9110 §9.3.2: HEAD is GET without the content, which Twisted leaves out.
        asked = b"GET" if request.method == b"HEAD" else request.method
        method, uri = asked.decode("ascii", "replace"), request.uri.decode("ascii", "replace")
        return await self._calls.answer(method, uri, request.body, request.content_type, caller)

    def _refuse(self, failure: Failure, exchange: AdminExchange) -> None:
        refusal = refusal_of(failure.value)
        if refusal.status is HTTPStatus.INTERNAL_SERVER_ERROR:
            _log.failure("an admin call failed", failure, event="admin.failed", path=exchange.path)
        exchange.refuse(refusal)


class AdminExchange:
    """One request and its one answer, unless the client went away before it."""

    def __init__(self, request: Request) -> None:
        self._request = request
        self._gone = False
        self.path = request.path
        request.notifyFinish().addErrback(self._client_left)

    def _client_left(self, _: Failure) -> None:
        # The call goes on: a message that was to be held is held.
        self._gone = True

    def send(self, content: Json) -> None:
        self._send_json(content, http.OK)

    def refuse(self, refusal: AdminRefusal) -> None:
        """Answer with what is wrong; a 401 says how credentials are given, a 405 which methods there are."""
        headers: tuple[tuple[bytes, bytes], ...] = ()
        if refusal.status is HTTPStatus.UNAUTHORIZED:
            # RFC 6750 §3
            headers = ((b"www-authenticate", b'Bearer realm="elemta"'),)
        elif refusal.status is HTTPStatus.METHOD_NOT_ALLOWED:
            headers = ((b"allow", refusal.hint.encode("ascii")),)
        self._send_json(to_json(refusal.content), refusal.status, headers)

    def _send_json(self, content: Json, status: int, headers: Sequence[tuple[bytes, bytes]] = ()) -> None:
        body = json.dumps(content, ensure_ascii=True).encode("ascii") + b"\n"
        self.send_octets(body, status, "application/json", headers)

    def send_octets(
        self, body: bytes, status: int, content_type: str, headers: Sequence[tuple[bytes, bytes]] = ()
    ) -> None:
        """Answer with a document of another type."""
        if self._gone:
            return
        self._request.setResponseCode(status)
        self._request.setHeader(b"content-type", content_type.encode("ascii"))
        self._request.setHeader(b"cache-control", b"no-store")
        self._request.setHeader(b"content-length", str(len(body)).encode("ascii"))
        for name, value in headers:
            self._request.setHeader(name, value)
        self._request.write(body)
        self._request.finish()


class AdminSite(Site):
    """The factory of the admin socket: these calls, for any peer that may open it.

    ``deadline`` is seconds for one call. ``identify`` says which peer makes it; by default the process at the
    other end of the socket.
    """

    displayTracebacks = False
    requestFactory = AdminRequest

    def __init__(
        self,
        calls: CallTable,
        reactor: ReactorBase,
        *,
        deadline: float = DEADLINE_SECONDS,
        identify: Identify | None = None,
    ) -> None:
        resource = AdminResource(calls, reactor, deadline, identify or _peer)
        Site.__init__(self, resource, timeout=IDLE_SECONDS, reactor=reactor)
        self.requestFactory = request_factory(calls.max_body)

    def log(self, request: http.Request) -> None:
        _log.debug(
            "answered an admin call",
            event="admin.call_answered",
            method=request.method,
            path=request.path,
            status=request.code,
        )


def request_factory(max_body: int) -> type[AdminRequest]:
    """The class of requests whose bodies have up to so many octets."""
    return type("AdminRequest", (AdminRequest,), {"max_body": max(max_body, MAX_BODY)})


def caller_headers(caller: Caller) -> dict[str, str]:
    """The headers by which a supervisor says to its worker which peer makes a call."""
    return {_ACTOR: quote(caller.actor, safe=""), _ROLE: caller.role.value}


async def identify_handed_on(request: AdminRequest) -> Caller:
    """The peer that the supervisor named; without a name, the process at the other end of the Unix socket."""
    actor, role = request.header(_ACTOR.encode()), request.header(_ROLE.encode())
    if actor is None or role is None:
        return await _peer(request)
    try:
        return Caller(unquote(actor), AccessRole(role))
    except ValueError:
        raise AdminRefusal(HTTPStatus.BAD_REQUEST, "an unknown role") from None


async def _peer(request: AdminRequest) -> Caller:
    """The process at the other end of the Unix socket: it may do all that root may."""
    return Caller(f"uid:{_peer_uid(request)}", AccessRole.OPERATOR)


def _peer_uid(request: AdminRequest) -> str:
    transport = getattr(request.channel, "transport", None)
    handle = getattr(transport, "socket", None)
    if handle is None:
        return "unknown"
    # unix(7): struct ucred has pid, uid and gid
    found = handle.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size)
    return str(_UCRED.unpack(found)[1])
