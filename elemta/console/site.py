"""The listener of the console: the API under ``/v1/``, the pages, and what all answers have in common."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any, cast

from twisted.internet.base import ReactorBase
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IAddress
from twisted.logger import Logger
from twisted.python.failure import Failure
from twisted.web import http
from twisted.web.resource import Resource
from twisted.web.server import NOT_DONE_YET, Request, Site

from elemta.auth.roles import AccessRole
from elemta.console.access import ConsoleAccess
from elemta.console.events import EventStreams
from elemta.console.pages import Pages
from elemta.console.renderer import Renderer
from elemta.console.visit import Answer
from elemta.ops.admin import (
    DEADLINE_SECONDS,
    IDLE_SECONDS,
    AdminExchange,
    AdminRequest,
    AdminResource,
    request_factory,
)
from elemta.ops.admin_calls import CallTable
from elemta.ops.admin_errors import AdminRefusal, refusal_of
from elemta.ops.admin_json import Json
from elemta.ops.http import as_asked

MOST_CONNECTIONS = 256

_HEADERS = {
    b"content-security-policy": b"default-src 'none'; style-src 'self'; script-src 'self'; img-src 'self'; "
    b"connect-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'",
    b"x-content-type-options": b"nosniff",
    b"x-frame-options": b"DENY",
    # Not no-referrer: browsers then send no Origin with a form.
    b"referrer-policy": b"same-origin",
    b"cross-origin-opener-policy": b"same-origin",
    b"cross-origin-resource-policy": b"same-origin",
    b"cache-control": b"no-store",
}
_LONGEST_CACHE = b"public, max-age=31536000, immutable"

_log = Logger()


class ConsoleSite(Site):
    """The factory to listen with. Until :meth:`open` every answer is 503."""

    displayTracebacks = False

    def __init__(self, reactor: ReactorBase) -> None:
        self._root = _Root()
        self._connections = 0
        self._access: ConsoleAccess | None = None
        Site.__init__(self, self._root, timeout=IDLE_SECONDS, reactor=reactor)
        self.requestFactory = request_factory(0)
        self._clock = reactor

    def open(self, calls: CallTable, access: ConsoleAccess, now: Callable[[], float], state: Any) -> None:
        """Serve these calls. ``now`` gives seconds since the epoch; ``state`` what the events say."""
        renderer = Renderer(now)

        async def look() -> Json:
            # For still_valid: the streams may be all that is asked for.
            await access.refresh()
            found: Json = await state()
            return found

        self.requestFactory = request_factory(calls.max_body)
        self._access = access
        self._root.parts = _Parts(
            access=access,
            api=AdminResource(calls, self._clock, DEADLINE_SECONDS, access.identify),
            pages=Pages(calls, access, renderer),
            streams=EventStreams(self._clock, look),
            renderer=renderer,
            clock=self._clock,
        )

    async def close(self) -> None:
        """End the streams and the threads."""
        self._root.close()
        if self._access is not None:
            await self._access.stop()

    def buildProtocol(self, addr: IAddress | None) -> Any:
        if self._connections >= MOST_CONNECTIONS:
            return None
        protocol: Any = Site.buildProtocol(self, addr)
        lost = protocol.connectionLost

        def connection_lost(reason: Failure) -> None:
            self._connections -= 1
            lost(reason)

        protocol.connectionLost = connection_lost
        self._connections += 1
        return protocol

    def log(self, request: http.Request) -> None:
        _log.debug(
            "answered a request to the console",
            event="console.request_answered",
            method=request.method,
            path=request.path,
            status=request.code,
        )


class _Root(Resource):
    """Every path: checks what all have in common, and hands the request on."""

    isLeaf = True

    def __init__(self) -> None:
        Resource.__init__(self)
        self.parts: _Parts | None = None

    def close(self) -> None:
        parts, self.parts = self.parts, None
        if parts is not None:
            parts.streams.close()

    def render(self, request: Request) -> int | bytes:
        for name, value in _HEADERS.items():
            request.setHeader(name, value)
        if self.parts is None:
            return _plain(request, HTTPStatus.SERVICE_UNAVAILABLE, "the daemon is starting, or stopping")
        return self.parts.render(cast(AdminRequest, request))


@dataclass(frozen=True, slots=True)
class _Parts:
    """What is there once the daemon serves."""

    access: ConsoleAccess
    api: AdminResource
    pages: Pages
    streams: EventStreams
    renderer: Renderer
    clock: ReactorBase

    def render(self, request: AdminRequest) -> int | bytes:
        try:
            self.access.check_origin(request)
        except AdminRefusal as refusal:
            AdminExchange(request).refuse(refusal)
            return NOT_DONE_YET
        path = request.path
        if path.startswith(b"/static/"):
            return self._asset(request)
        if path == b"/v1/events":
            return self._later(request, self._events(request))
        if path.startswith(b"/v1/"):
            return self.api.render(request)
        return self._later(request, self._page(request))

    def _later(self, request: AdminRequest, answering: Awaitable[Answer | None]) -> int:
        exchange = AdminExchange(request)
        answer = Deferred.fromCoroutine(cast(Any, answering))
        answer.addTimeout(DEADLINE_SECONDS, self.clock)
        answer.addErrback(self._failed, request, exchange)
        answer.addCallback(lambda found: None if found is None else found.send(exchange))
        answer.addErrback(
            lambda failure: _log.failure("a page could not be sent", failure, event="console.page_failed")
        )
        return NOT_DONE_YET

    def _failed(self, failure: Failure, request: AdminRequest, exchange: AdminExchange) -> Answer | None:
        refusal = refusal_of(failure.value)
        if refusal.status is HTTPStatus.INTERNAL_SERVER_ERROR:
            _log.failure("a page failed", failure, event="console.page_failed", path=request.path)
        if request.path.startswith(b"/v1/"):
            exchange.refuse(refusal)
            return None
        return self.pages.error(refusal)

    async def _page(self, request: AdminRequest) -> Answer:
        return await self.pages.answer(request)

    async def _events(self, request: AdminRequest) -> Answer | None:
        if request.method != b"GET":
            raise AdminRefusal(HTTPStatus.METHOD_NOT_ALLOWED, "only GET is for this path", "GET")
        caller = await self.access.identify(request)
        if not caller.role.may(AccessRole.VIEWER):
            raise AdminRefusal(HTTPStatus.FORBIDDEN, f"the role {caller.role.value} may not do this")
        if not self.streams.add(request, lambda: self.access.still_valid(request)):
            raise AdminRefusal(HTTPStatus.SERVICE_UNAVAILABLE, "too many readers of events", "close some")
        return None

    def _asset(self, request: AdminRequest) -> bytes:
        name = request.path.removeprefix(b"/static/").decode("ascii", "replace")
        asset = self.renderer.assets.get(name)
        if asset is None:
            return _plain(request, HTTPStatus.NOT_FOUND, "there is no such file")
        if request.method not in (b"GET", b"HEAD"):
            # RFC 9110 §15.5.6
            request.setHeader(b"allow", b"GET, HEAD")
            return _plain(request, HTTPStatus.METHOD_NOT_ALLOWED, "only GET and HEAD are for a file")
        request.setHeader(b"content-type", asset.content_type.encode())
        request.setHeader(b"cache-control", _LONGEST_CACHE)
        return as_asked(request, asset.content)


def _plain(request: Request, status: int, text: str) -> bytes:
    request.setResponseCode(status)
    request.setHeader(b"content-type", b"text/plain; charset=utf-8")
    return as_asked(request, text.encode() + b"\n")
