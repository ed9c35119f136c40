"""The HTTP client of policies: answers, bounds, deadlines, and connections that are kept and then closed."""

from __future__ import annotations

import io
from collections.abc import AsyncIterator
from typing import Any

import pytest
import pytest_twisted
from pytest_twisted import ensureDeferred
from twisted.internet import reactor
from twisted.internet.defer import CancelledError, Deferred, gatherResults
from twisted.internet.task import Clock
from twisted.web.resource import Resource
from twisted.web.server import NOT_DONE_YET, Site

from elemta.errors import BackendError
from elemta.policy import http_agent, http_client
from elemta.policy.call_context import CallContext, calling
from elemta.policy.doubles import ScriptedHttp, http_answer
from elemta.policy.http_client import AgentClient, HttpHeaders, TimedClient
from elemta.policy.policy_threads import PolicyThreads
from elemta.runtime import Runtime
from tests.support.waiting import until


class Root(Resource):
    isLeaf = True

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.asked: list[tuple[bytes, bytes, bytes]] = []
        self.waiting: list[Any] = []

    def render(self, request: Any) -> Any:
        body = request.content.read()
        self.asked.append((request.method, request.uri, body))
        request.setHeader(b"X-Twice", b"a")
        request.responseHeaders.addRawHeader(b"x-twice", b"b")
        if request.path == b"/who":
            return b":".join((request.getUser(), request.getPassword()))
        if request.path == b"/echo":
            return body
        if request.path == b"/large":
            return b"x" * 100_000
        if request.path == b"/error":
            request.setResponseCode(503)
            return b"busy"
        if request.path == b"/redirect":
            request.setResponseCode(302)
            request.setHeader(b"location", b"/echo")
            return b""
        if request.path == b"/half":
            request.setHeader(b"content-length", b"100")
            request.write(b"half")
            reactor.callLater(0, request.channel.transport.abortConnection)  # type: ignore[attr-defined]
        self.waiting.append(request)
        return NOT_DONE_YET


class Server:
    def __init__(self) -> None:
        self.root = Root()
        self.site = Site(self.root)  # type: ignore[no-untyped-call]
        self.port = reactor.listenTCP(0, self.site, interface="127.0.0.1")  # type: ignore[attr-defined]
        self.url = f"http://127.0.0.1:{self.port.getHost().port}"
        self.threads = PolicyThreads(Runtime.of(reactor).threads, "test")  # type: ignore[arg-type]
        self.agent = AgentClient(reactor, self.threads)
        self.client = TimedClient(self.agent, 5.0)

    @property
    def connections(self) -> int:
        kept = self.agent._agent
        return 0 if kept is None else sum(map(len, kept._pool._connections.values()))


@pytest_twisted.async_yield_fixture
async def server() -> AsyncIterator[Server]:
    server = Server()
    yield server
    server.agent.close()
    server.threads.close()
    for request in server.root.waiting:
        if request.channel is not None:
            request.channel.transport.abortConnection()
    await server.port.stopListening()


@pytest.mark.parametrize(
    ("credentials", "seen"),
    [
        ("", b":"),
        ("anna@", b"anna:"),
        ("anna:se:cret@", b"anna:se:cret"),
        ("a%40b:%C3%BC%2F@", "a@b:ü/".encode()),
    ],
)
@ensureDeferred
async def test_a_user_and_a_password_in_the_url_are_sent(
    server: Server, credentials: str, seen: bytes
) -> None:
    url = server.url.replace("//", f"//{credentials}") + "/who?x=1"
    assert (await server.client.request("GET", url)).body == seen
    assert server.root.asked[-1][1] == b"/who?x=1"


@ensureDeferred
async def test_an_answer_has_its_status_fields_and_body(server: Server) -> None:
    answer = await server.client.request(
        "POST", f"{server.url}/echo?a=b", headers={"X-Test": "1"}, body=b"octets\x00"
    )
    assert (answer.status, answer.body) == (200, b"octets\x00")
    assert answer.headers["X-TWICE"] == "b"
    assert answer.headers.get_all("x-Twice") == ("a", "b")
    assert server.root.asked == [(b"POST", b"/echo?a=b", b"octets\x00")]
    for path, status in (("error", 503), ("redirect", 302)):
        assert (await server.client.request("GET", f"{server.url}/{path}")).status == status


@ensureDeferred
async def test_connections_are_kept_for_the_next_request_and_closed_at_the_end(server: Server) -> None:
    for _ in range(20):
        await server.client.request("GET", f"{server.url}/echo")
    await until(lambda: server.connections == 1)
    await gatherResults(
        [Deferred.fromCoroutine(server.client.request("GET", f"{server.url}/echo")) for _ in range(30)]
    )
    await until(lambda: 1 <= server.connections <= http_agent.CONNECTIONS)
    server.agent.close()
    assert server.connections == 0


@ensureDeferred
async def test_a_body_in_a_file_is_sent_whole_from_its_position(server: Server) -> None:
    content = bytes(range(256)) * 4000
    file = io.BytesIO(b"skip" + content)
    file.seek(4)
    answer = await server.client.request("POST", f"{server.url}/echo", body=file)
    assert answer.body == content


class Broken(io.BytesIO):
    def read(self, size: int | None = -1) -> bytes:
        raise OSError("the disk fails")


class Shorter(io.BytesIO):
    def read(self, size: int | None = -1) -> bytes:
        return b""


@pytest.mark.parametrize("kind", [Broken, Shorter])
@ensureDeferred
async def test_a_file_that_can_not_be_read_fails_the_request(server: Server, kind: Any) -> None:
    with pytest.raises(BackendError):
        await server.client.request("POST", f"{server.url}/echo", body=kind(b"x" * 1000))


@ensureDeferred
async def test_an_answer_over_the_limit_fails_and_closes_its_connection(server: Server) -> None:
    with pytest.raises(BackendError, match="more than 1000"):
        await server.client.request("GET", f"{server.url}/large", limit=1000)
    assert len((await server.client.request("GET", f"{server.url}/large", limit=100_000)).body) == 100_000


@ensureDeferred
async def test_an_answer_that_breaks_off_is_no_answer(server: Server) -> None:
    with pytest.raises(BackendError):
        await server.client.request("GET", f"{server.url}/half")


@ensureDeferred
async def test_a_silent_server_costs_the_deadline_and_the_connection_is_closed(server: Server) -> None:
    with pytest.raises(BackendError, match="within"):
        await server.client.request("GET", f"{server.url}/silent", timeout=0.1)
    await until(lambda: server.root.waiting[0].channel is None)
    assert server.connections == 0


@ensureDeferred
async def test_no_request_takes_longer_than_the_call_has_left(server: Server) -> None:
    context = CallContext(reactor.seconds() + 0.3)  # type: ignore[attr-defined]
    began = reactor.seconds()  # type: ignore[attr-defined]
    with calling(context):
        asking = Deferred.fromCoroutine(server.client.request("GET", f"{server.url}/silent"))
    with pytest.raises(BackendError):
        await asking
    assert reactor.seconds() - began < 0.3 + 0.5  # type: ignore[attr-defined]
    assert context.backend_failed


@ensureDeferred
async def test_a_server_error_counts_as_a_failure_of_the_backend(server: Server) -> None:
    for path, failed in (("error", True), ("echo", False)):
        context = CallContext(reactor.seconds() + 30)  # type: ignore[attr-defined]
        with calling(context):
            asking = Deferred.fromCoroutine(server.client.request("GET", f"{server.url}/{path}"))
        await asking
        assert context.backend_failed is failed


@ensureDeferred
async def test_where_nothing_listens_there_is_no_answer(server: Server) -> None:
    port = reactor.listenTCP(0, server.site, interface="127.0.0.1")  # type: ignore[attr-defined]
    number = port.getHost().port
    await port.stopListening()
    with pytest.raises(BackendError, match=f"127.0.0.1:{number}"):
        await server.client.request("GET", f"http://127.0.0.1:{number}/")


@ensureDeferred
async def test_requests_have_a_bound(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_client, "MOST_REQUESTS", 2)
    waiting = [Deferred.fromCoroutine(server.client.request("GET", f"{server.url}/silent")) for _ in range(2)]
    with pytest.raises(BackendError, match="under way"):
        await server.client.request("GET", f"{server.url}/echo")
    for each in waiting:
        each.addErrback(lambda _: None)
        each.cancel()
    assert (await server.client.request("GET", f"{server.url}/echo")).status == 200


@pytest.mark.parametrize(
    ("url", "headers"),
    [
        ("", {}),
        ("ftp://host/", {}),
        ("http://", {}),
        ("http://host/a b", {}),
        ("http://host/\r\nX: y", {}),
        ("http://höst/", {}),
        ("/path", {}),
        (None, {}),
        ("http://host/", {"X": "a\r\nY: b"}),
        ("http://host/", {"X\n": "a"}),
    ],
)
@ensureDeferred
async def test_what_can_not_be_asked_is_an_error_at_once(server: Server, url: Any, headers: Any) -> None:
    with pytest.raises(ValueError, match=r"no URL|no header"):
        await server.client.request("GET", url, headers=headers)


def test_headers_are_found_in_any_case() -> None:
    headers = HttpHeaders({"Content-Type": "text/plain", "X": "1"})
    assert headers["content-type"] == headers["CONTENT-TYPE"] == "text/plain"
    assert "x" in headers
    assert headers.get("none") is None
    assert list(headers) == ["content-type", "x"]
    assert len(headers) == 2


@pytest.mark.parametrize(
    ("script", "failed"),
    [
        (http_answer(200), False),
        (http_answer(404), False),
        (http_answer(503), True),
        (http_answer(200, b"x" * 11), True),
        (ConnectionRefusedError("gone"), True),
        (CancelledError(), False),
        (Deferred, True),
    ],
    ids=["200", "404", "503", "too large", "refused", "cancelled", "silent"],
)
def test_the_double_counts_the_failures_of_a_backend_as_the_client_does(script: Any, failed: bool) -> None:
    clock, context = Clock(), CallContext(10.0)
    scripted = ScriptedHttp(clock, {"http://a/": (lambda _: Deferred()) if script is Deferred else script})
    with calling(context):
        asking = Deferred.fromCoroutine(scripted.request("GET", "http://a/", limit=10))
    asking.addErrback(lambda _: None)
    clock.advance(10)
    assert asking.called
    assert (context.backend_failed, context.waits_for_backend) == (failed, 0)
