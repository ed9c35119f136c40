"""The metrics site, over a real socket."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from dataclasses import dataclass, field

import pytest_twisted
from prometheus_client import CONTENT_TYPE_LATEST
from pytest_twisted import ensureDeferred
from twisted.internet import reactor
from twisted.internet.defer import Deferred
from twisted.internet.endpoints import TCP4ClientEndpoint, TCP4ServerEndpoint, connectProtocol
from twisted.internet.error import ConnectionDone
from twisted.internet.protocol import Protocol
from twisted.python.failure import Failure

from elemta.metrics import Metrics
from elemta.ops.http import metrics_site
from elemta.ops.metrics import MetricsExporter


class Collect(Protocol):
    def __init__(self) -> None:
        self.data = b""
        self.done: Deferred[bytes] = Deferred()

    def dataReceived(self, data: bytes) -> None:
        self.data += data

    def connectionLost(self, reason: Failure = Failure(ConnectionDone())) -> None:  # noqa: B008
        self.done.callback(self.data)


@dataclass
class Server:
    port: int
    metrics: Metrics
    exporter: MetricsExporter
    reasons: list[str] = field(default_factory=list)

    async def ask(self, text: bytes) -> bytes:
        """The answer to the bytes of one request, as the bytes it is."""
        collect = await connectProtocol(TCP4ClientEndpoint(reactor, "127.0.0.1", self.port), Collect())
        collect.transport.write(text)
        return await collect.done

    async def get(self, path: str, method: str = "GET") -> tuple[int, dict[str, str], bytes]:
        raw = await self.ask(f"{method} {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".encode())
        head, _, body = raw.partition(b"\r\n\r\n")
        status, *lines = head.decode().split("\r\n")
        headers = {name.lower(): text.strip() for name, _, text in (line.partition(":") for line in lines)}
        if headers.get("transfer-encoding") == "chunked" and body:
            body = _unchunked(body)
        return int(status.split()[1]), headers, body


def _unchunked(body: bytes) -> bytes:
    out = b""
    while True:
        size, _, body = body.partition(b"\r\n")
        if int(size, 16) == 0:
            return out
        out, body = out + body[: int(size, 16)], body[int(size, 16) + 2 :]


@pytest_twisted.async_yield_fixture
async def server() -> AsyncIterator[Server]:
    metrics = Metrics("mx1")
    exporter = MetricsExporter(metrics)
    reasons: list[str] = []
    site = metrics_site(exporter, lambda: tuple(reasons), reactor)
    port = await TCP4ServerEndpoint(reactor, 0, interface="127.0.0.1").listen(site)
    yield Server(port.getHost().port, metrics, exporter, reasons)
    await port.stopListening()


@ensureDeferred
async def test_metrics_are_served_as_prometheus_reads_them(server: Server) -> None:
    server.metrics.net.replies.labels("MAIL", 250).inc()
    status, headers, body = await server.get("/metrics")
    assert status == 200
    assert headers["content-type"] == CONTENT_TYPE_LATEST
    assert b'elemta_commands_total{code="250",node_id="mx1",verb="MAIL"} 1.0' in body or (
        b'elemta_commands_total{node_id="mx1",verb="MAIL",code="250"} 1.0' in body
    )


@ensureDeferred
async def test_alive_is_alive_even_when_it_is_not_ready(server: Server) -> None:
    server.reasons.append("the spool is full")
    status, _, body = await server.get("/healthz")
    assert (status, json.loads(body)) == (200, {"alive": True})


@ensureDeferred
async def test_ready_says_why_it_is_not(server: Server) -> None:
    status, headers, body = await server.get("/readyz")
    assert (status, json.loads(body)) == (200, {"ready": True, "reasons": []})
    assert headers["content-type"] == "application/json"
    assert headers["cache-control"] == "no-store"
    server.reasons += ["draining", "the spool is full"]
    status, _, body = await server.get("/readyz")
    assert (status, json.loads(body)) == (503, {"ready": False, "reasons": ["draining", "the spool is full"]})


@ensureDeferred
async def test_there_is_nothing_else_and_no_answer_names_the_software(server: Server) -> None:
    for path in ("/", "/metrics/x", "/healthz/", "/../etc/passwd", "/%2e%2e", "/metrics.php"):
        status, headers, _ = await server.get(path)
        assert status == 404, path
        assert "server" not in headers
    for path in ("/metrics", "/healthz", "/readyz"):
        _, headers, _ = await server.get(path)
        assert "server" not in headers


@ensureDeferred
async def test_head_has_the_answers_head_and_no_body(server: Server) -> None:
    for path, expected in (("/metrics", 200), ("/healthz", 200), ("/readyz", 200), ("/nothing", 404)):
        status, headers, body = await server.get(path, "HEAD")
        assert status == expected
        assert "content-type" in headers
        assert body == b""


@ensureDeferred
async def test_other_methods_are_not_allowed_and_a_body_is_not_kept(server: Server) -> None:
    body = b"x" * 300_000
    request = b"POST /metrics HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: %d\r\n\r\n" % len(
        body
    )
    answer = await server.ask(request + body)
    assert answer.startswith(b"HTTP/1.1 405 ")
    assert b"Server:" not in answer


@ensureDeferred
async def test_a_ready_check_that_raises_shows_no_traceback_to_the_client(
    server: Server, unhandled_errors: list[object]
) -> None:
    server.reasons.append(object())  # type: ignore[arg-type]
    status, headers, body = await server.get("/readyz")
    assert status == 500
    assert b"Traceback" not in body
    assert b"JSON" not in body
    assert "server" not in headers
    unhandled_errors.clear()


@ensureDeferred
async def test_a_client_that_leaves_while_figures_are_polled_breaks_nothing(server: Server) -> None:
    polled: Deferred[None] = Deferred()
    begun: Deferred[None] = Deferred()

    async def slow() -> None:
        begun.callback(None)
        await polled

    server.exporter.poll("slow", slow)
    collect = await connectProtocol(TCP4ClientEndpoint(reactor, "127.0.0.1", server.port), Collect())
    collect.transport.write(b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n")
    await begun
    collect.transport.abortConnection()
    await collect.done
    gone: Deferred[None] = Deferred()
    reactor.callLater(0.02, gone.callback, None)
    await gone
    polled.callback(None)

    async def quick() -> None:
        pass

    server.exporter.poll("slow", quick)
    status, _, _ = await server.get("/metrics")
    assert status == 200
