"""The site of ``[metrics] endpoint``: ``/metrics`` for Prometheus, ``/healthz``, ``/readyz``."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence

from prometheus_client import CONTENT_TYPE_LATEST
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger
from twisted.python.failure import Failure
from twisted.web import http
from twisted.web.resource import Resource
from twisted.web.server import NOT_DONE_YET, Request, Site

from elemta.ops.metrics import MetricsExporter

_log = Logger()

#: Seconds that a connection may be idle.
IDLE_TIMEOUT = 60

#: Why mail would not be accepted now, in words; empty when it would.
Ready = Callable[[], Sequence[str]]


class NamelessRequest(Request):
    """A request whose answer names no software."""

    def render(self, resrc: Resource) -> None:
        self.responseHeaders.removeHeader(b"server")
        Request.render(self, resrc)


class BodilessRequest(NamelessRequest):
    """One whose own body is discarded as it comes."""

    def handleContentChunk(self, data: bytes) -> None:
        pass


def as_asked(request: Request, body: bytes) -> bytes:
    """The body of an answer, or for HEAD its length alone: Twisted logs each body that it does not send."""
    if request.method != b"HEAD":
        return body
    request.setHeader(b"content-length", str(len(body)).encode("ascii"))
    return b""


class QuietSite(Site):
    """A site whose accesses are debug records and whose faults show no traceback to the client."""

    displayTracebacks = False
    requestFactory = BodilessRequest

    def __init__(self, root: Resource, reactor: IReactorTime) -> None:
        Site.__init__(self, root, timeout=IDLE_TIMEOUT, reactor=reactor)

    def log(self, request: http.Request) -> None:
        _log.debug(
            "answered an HTTP request",
            event="http.request_answered",
            method=request.method,
            path=request.path,
            status=request.code,
        )


class _Page(Resource):
    """A page that is only read, and without children, so that only its own path leads to it."""

    def __init__(self) -> None:
        Resource.__init__(self)

    def render(self, request: Request) -> bytes | int:
        if request.method not in (b"GET", b"HEAD"):
            request.setHeader("allow", "GET, HEAD")
            return self._answer(
                request, http.NOT_ALLOWED, "text/plain; charset=utf-8", b"only GET and HEAD\n"
            )
        return self.render_GET(request)

    def render_GET(self, request: Request) -> bytes | int:
        raise NotImplementedError

    def _answer(self, request: Request, status: int, content_type: str, body: bytes) -> bytes:
        request.setResponseCode(status)
        request.setHeader("content-type", content_type)
        request.setHeader("cache-control", "no-store")
        return as_asked(request, body)

    def _json(self, request: Request, status: int, value: object) -> bytes:
        return self._answer(request, status, "application/json", json.dumps(value).encode() + b"\n")

    def getChild(self, path: bytes, request: Request) -> Resource:  # noqa: ARG002
        return NotFound()


class NotFound(_Page):
    """There is no such page."""

    def render_GET(self, request: Request) -> bytes:
        return self._answer(request, http.NOT_FOUND, "text/plain; charset=utf-8", b"not found\n")


class MetricsPage(_Page):
    """The metrics in Prometheus' text format."""

    def __init__(self, exporter: MetricsExporter, clock: IReactorTime) -> None:
        super().__init__()
        self._exporter = exporter
        self._clock = clock

    def render_GET(self, request: Request) -> int:
        gone: list[bool] = []
        request.notifyFinish().addErrback(lambda _: gone.append(True))
        scrape = Deferred.fromCoroutine(self._exporter.scrape(self._clock))
        scrape.addCallback(self._finish, request, gone)
        scrape.addErrback(self._failed, request, gone)
        return NOT_DONE_YET

    def _finish(self, text: bytes, request: Request, gone: Sequence[bool]) -> None:
        if not gone:
            request.write(self._answer(request, http.OK, CONTENT_TYPE_LATEST, text))
            request.finish()

    def _failed(self, failure: Failure, request: Request, gone: Sequence[bool]) -> None:
        _log.failure("the metrics could not be rendered", failure, event="metrics.failed")
        if not gone and not request.finished:
            request.write(
                self._answer(request, http.INTERNAL_SERVER_ERROR, "text/plain; charset=utf-8", b"failed\n")
            )
            request.finish()


class HealthPage(_Page):
    """Alive: a daemon that can answer this is."""

    def render_GET(self, request: Request) -> bytes:
        return self._json(request, http.OK, {"alive": True})


class ReadyPage(_Page):
    """Ready: whether mail would be accepted now, and if not, why."""

    def __init__(self, ready: Ready) -> None:
        super().__init__()
        self._ready = ready

    def render_GET(self, request: Request) -> bytes:
        reasons = list(self._ready())
        status = http.SERVICE_UNAVAILABLE if reasons else http.OK
        return self._json(request, status, {"ready": not reasons, "reasons": reasons})


def metrics_site(exporter: MetricsExporter, ready: Ready, reactor: IReactorTime) -> Site:
    """The factory to listen with. ``ready()`` gives the reasons why mail would not be accepted now."""
    root = NotFound()
    root.putChild(b"metrics", MetricsPage(exporter, reactor))
    root.putChild(b"healthz", HealthPage())
    root.putChild(b"readyz", ReadyPage(ready))
    return QuietSite(root, reactor)
