"""The admin API over a real Unix socket, with a real spool behind it."""

from __future__ import annotations

import http.client
import json
import os
import socket
import stat
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import pytest_twisted
from pytest_twisted import ensureDeferred
from twisted.internet import reactor
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.internet.threads import deferToThread

from elemta.address import NULL, Address
from elemta.daemon.membership import RemoteRefusal
from elemta.daemon.reload import ReloadReport
from elemta.envelope import Client, MailParameters, Recipient
from elemta.errors import Fault, ListenFailed, SpoolError, StoreUnavailable
from elemta.limits.store import LimitSpec, Request
from elemta.ops.admin import MAX_BODY, AdminSite
from elemta.ops.admin_socket import AdminSocket
from elemta.policy.discovery import PluginInfo
from elemta.runtime import Runtime
from elemta.spool import MessageState, Spool, SpoolSettings, Submission
from elemta.spool.operations import Batch, Operation
from elemta.spool.writer import QueueWriter
from tests.support.administered import Administered


@dataclass
class Daemon(Administered):
    """A daemon with one plugin and one line of configuration."""

    installed: tuple[PluginInfo, ...] = (
        PluginInfo("relay", "elemta", words="Who may relay.", in_chain=True, interfaces=("rcpt",)),
    )
    toml: str = '[server]\nhostname = "mx1.example.org"\n'


async def queue(spool: Spool, sender: Address = NULL, *to: str, hold: str | None = None) -> str:
    writer = spool.begin()
    writer.write(b"Subject: hello\r\n\r\nhello\r\n")
    recipients = tuple(Recipient(Address(*each.split("@"))) for each in to or ("anna@example.com",))
    client = Client(ip="192.0.2.1", helo="client.example", listener="mx", session_id="s1")
    submission = Submission(sender, recipients, MailParameters(), client, b"X: y\r\n", time.time(), hold)
    envelope = await spool.commit(writer, submission)
    return envelope.queue_id


@pytest_twisted.async_yield_fixture
async def daemon(tmp_path: Path) -> AsyncIterator[Daemon]:
    spool = await Spool.open(
        SpoolSettings(directory=tmp_path / "spool", minimum_free=0), runtime=Runtime.of(reactor)
    )
    daemon = Daemon(spool)
    opened = AdminSocket(tmp_path / "admin.sock", AdminSite(daemon.calls, reactor), reactor)
    opened.open()
    yield daemon
    await opened.close()
    await spool.close()


def exchange(path: Path, request: bytes) -> tuple[int, dict[str, str], bytes]:
    """Send raw octets, read one response as HTTP has it."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
        sock.settimeout(45)
        sock.connect(str(path))
        sock.sendall(request)
        response = http.client.HTTPResponse(sock)
        response.begin()
        body = response.read()
        return response.status, {name.lower(): value for name, value in response.getheaders()}, body


async def ask(tmp_path: Path, method: str, target: str) -> tuple[int, dict[str, Any]]:
    request = f"{method} {target} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n".encode()
    status, headers, body = await deferToThread(exchange, tmp_path / "admin.sock", request)
    assert headers["content-type"] == "application/json"
    assert "server" not in headers
    return status, json.loads(body)


@ensureDeferred
async def test_the_status_tells_the_daemon_its_listeners_and_its_queue(
    daemon: Daemon, tmp_path: Path
) -> None:
    await queue(daemon.spool)
    await queue(daemon.spool, hold="looks odd")
    status, answer = await ask(tmp_path, "GET", "/v1/status")
    assert status == 200
    assert (answer["node_id"], answer["state"], answer["ready"]) == ("mx1", "serving", True)
    assert 100 <= answer["uptime"] < 160
    assert answer["listeners"][0] == {
        "name": "mx",
        "role": "mx",
        "tls": "starttls",
        "address": "127.0.0.1:2525",
        "connections": 3,
    }
    assert answer["spool"]["states"]["active"]["messages"] == 1
    assert answer["spool"]["states"]["hold"]["messages"] == 1
    assert answer["spool"]["total"]["messages"] == 2
    assert answer["notes"][0]["key"] == "server.workers"


@ensureDeferred
async def test_the_status_answers_when_the_disk_does_not(daemon: Daemon, tmp_path: Path, monkeypatch) -> None:
    class Broken:
        async def stats(self, *, as_listed: bool) -> None:
            raise SpoolError("disk on fire")

    monkeypatch.setattr(daemon, "spool", Broken())
    opened = AdminSocket(tmp_path / "second.sock", AdminSite(daemon.calls, reactor), reactor)
    opened.open()
    request = b"GET /v1/status HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
    status, _, body = await deferToThread(exchange, tmp_path / "second.sock", request)
    await opened.close()
    assert status == 200
    assert json.loads(body)["spool"] == {
        "directory": "/var/spool/elemta",
        "healthy": False,
        "error": "disk on fire",
    }


@ensureDeferred
async def test_a_message_is_shown_with_its_client_and_recipients(daemon: Daemon, tmp_path: Path) -> None:
    queue_id = await queue(
        daemon.spool, Address("berta", "example.net"), "anna@example.com", "o'x@example.com"
    )
    status, answer = await ask(tmp_path, "GET", f"/v1/queue/{queue_id}")
    assert status == 200
    assert answer["sender"] == "berta@example.net"
    assert [recipient["address"] for recipient in answer["recipients"]] == [
        "anna@example.com",
        "o'x@example.com",
    ]
    assert all(recipient["pending"] for recipient in answer["recipients"])
    assert (answer["client"]["ip"], answer["client"]["helo"]) == ("192.0.2.1", "client.example")
    assert answer["history"] == []


@ensureDeferred
async def test_a_queue_id_in_small_letters_is_the_same_message(daemon: Daemon, tmp_path: Path) -> None:
    queue_id = await queue(daemon.spool)
    status, answer = await ask(tmp_path, "GET", f"/v1/queue/{queue_id.lower()}")
    assert (status, answer["queue_id"]) == (200, queue_id)


@ensureDeferred
async def test_the_listing_comes_in_pages_that_lead_to_each_other(daemon: Daemon, tmp_path: Path) -> None:
    ids = [await queue(daemon.spool) for _ in range(5)]
    seen, after, pages = [], "", 0
    while True:
        _, page = await ask(tmp_path, "GET", f"/v1/queue?limit=2&after={after}")
        seen += [message["queue_id"] for message in page["messages"]]
        pages += 1
        after = page["next"]
        if after is None:
            break
    assert seen == ids
    assert pages == 3


@pytest.mark.parametrize("action", ["hold", "release", "retry", "delete"])
@ensureDeferred
async def test_many_messages_are_changed_by_one_commit_in_their_order(
    daemon: Daemon, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, action: str
) -> None:
    ids = [await queue(daemon.spool) for _ in range(20)]
    # Another order than that of their arrival, and one that is gone.
    ids = [*reversed(ids), "335V5EZ2Y5XAYCKM6W"]
    if action == "retry":
        await daemon.spool.hold(ids[3])
    batches: list[list[str]] = []
    apply = QueueWriter.apply

    def noting(store: QueueWriter, operations: Sequence[Operation]) -> Batch:
        batches.append([operation.queue_id for operation in operations])
        return apply(store, operations)

    monkeypatch.setattr(QueueWriter, "apply", noting)
    more = "&reason=odd" if action == "hold" else ""
    status, answer = await ask(tmp_path, "POST", f"/v1/queue/{action}?ids={','.join(ids)}{more}")
    assert status == 200
    assert batches == [ids]
    results = answer["results"]
    assert [result["queue_id"] for result in results] == ids
    refused = {result["queue_id"]: result["status"] for result in results if "error" in result}
    assert refused == ({ids[-1]: 404, ids[3]: 409} if action == "retry" else {ids[-1]: 404})


@ensureDeferred
async def test_a_hold_without_a_reason_reads_no_message_and_keeps_the_reasons_that_there_are(
    daemon: Daemon, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ids = [await queue(daemon.spool, hold="looks odd" if number % 2 else None) for number in range(6)]

    async def read(_spool: Spool, _queue_id: str) -> None:
        raise AssertionError("a hold reads no message")

    with monkeypatch.context() as patch:
        patch.setattr(Spool, "show", read)
        status, answer = await ask(tmp_path, "POST", f"/v1/queue/hold?ids={','.join(ids)}")
        assert (status, [result["done"] for result in answer["results"]]) == (200, ["held"] * 6)
        assert (await ask(tmp_path, "POST", f"/v1/queue/{ids[0]}/hold?reason="))[0] == 200
    reasons = [(await daemon.spool.show(queue_id)).message.hold_reason for queue_id in ids]
    assert reasons == ["held by the operator", "looks odd"] * 3


@ensureDeferred
async def test_many_messages_are_returned_by_one_call_and_each_has_its_answer(
    daemon: Daemon, tmp_path: Path
) -> None:
    jane = Address("jane", "example.org")
    ids = [await queue(daemon.spool, jane) for _ in range(30)]
    from_nobody = await queue(daemon.spool)
    ids = [*ids, from_nobody, "335V5EZ2Y5XAYCKM6W"]
    status, answer = await ask(tmp_path, "POST", f"/v1/queue/bounce?ids={','.join(ids)}")
    assert status == 200
    results = answer["results"]
    assert [result["queue_id"] for result in results] == ids
    returned = {"done": "returned to the sender", "recipients": 1, "notices": 1}
    assert results[:30] == [{"queue_id": queue_id, **returned} for queue_id in ids[:30]]
    assert [result["status"] for result in results[30:]] == [409, 404]
    left = [line.queue_id for line in await daemon.spool.list()]
    assert (len(left), set(left) & set(ids)) == (31, {from_nobody})


@pytest.mark.parametrize("ids", ["", ",", ",".join(["335V5EZ2Y5XAYCKM6W"] * 201)])
@ensureDeferred
async def test_a_call_about_no_message_or_too_many_is_refused(
    daemon: Daemon, tmp_path: Path, ids: str
) -> None:
    status, answer = await ask(tmp_path, "POST", f"/v1/queue/retry?ids={ids}")
    assert status == 400
    assert "1 to 200" in answer["hint"]


@ensureDeferred
async def test_a_misspelt_parameter_of_a_call_about_many_changes_nothing(
    daemon: Daemon, tmp_path: Path
) -> None:
    queue_id = await queue(daemon.spool)
    status, _ = await ask(tmp_path, "POST", f"/v1/queue/delete?ids={queue_id}&reson=odd")
    assert status == 400
    assert [line.queue_id for line in await daemon.spool.list()] == [queue_id]


@ensureDeferred
async def test_a_message_is_held_released_retried_and_deleted(daemon: Daemon, tmp_path: Path) -> None:
    queue_id = await queue(daemon.spool)
    status, answer = await ask(tmp_path, "POST", f"/v1/queue/{queue_id}/hold?reason=looks%20odd")
    assert (status, answer["queue_id"]) == (200, queue_id)
    _, held = await ask(tmp_path, "GET", "/v1/queue?state=hold")
    assert held["messages"][0]["hold_reason"] == "looks odd"
    status, answer = await ask(tmp_path, "POST", f"/v1/queue/{queue_id}/retry")
    assert status == 409
    assert "release" in answer["hint"]
    assert (await ask(tmp_path, "POST", f"/v1/queue/{queue_id}/release"))[0] == 200
    assert (await daemon.spool.show(queue_id)).message.state is MessageState.ACTIVE
    assert (await ask(tmp_path, "POST", f"/v1/queue/{queue_id}/retry"))[0] == 200
    assert (await ask(tmp_path, "DELETE", f"/v1/queue/{queue_id}"))[0] == 200
    status, answer = await ask(tmp_path, "GET", f"/v1/queue/{queue_id}")
    assert (status, answer["error"]) == (404, "no message has this queue id")


@pytest.mark.parametrize(
    "target", ["/v1/queue/NOSUCH", "/v1/queue/../etc", "/v1/queue/%00", "/v1/queue/STATS"]
)
@ensureDeferred
async def test_an_unknown_id_is_404(daemon: Daemon, tmp_path: Path, target: str) -> None:
    status, answer = await ask(tmp_path, "GET", target)
    assert status == 404
    assert set(answer) == {"error", "hint"}


@pytest.mark.parametrize("target", ["/", "/v1", "/v2/status", "/v1/status/", "/v1/queue/X/hold/now", "/v1/"])
@ensureDeferred
async def test_an_unknown_path_is_404(daemon: Daemon, tmp_path: Path, target: str) -> None:
    assert (await ask(tmp_path, "GET", target))[0] == 404


@pytest.mark.parametrize(
    ("method", "target", "allowed"),
    [
        ("POST", "/v1/status", "GET"),
        ("GET", "/v1/reload", "POST"),
        ("PUT", "/v1/queue/ABC", "GET, DELETE"),
        ("GET", "/v1/queue/ABC/hold", "POST"),
        ("DELETE", "/v1/queue", "GET"),
    ],
)
@ensureDeferred
async def test_a_wrong_method_is_405_and_tells_the_right_ones(
    daemon: Daemon, tmp_path: Path, method: str, target: str, allowed: str
) -> None:
    request = f"{method} {target} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".encode()
    status, headers, _ = await deferToThread(exchange, tmp_path / "admin.sock", request)
    assert (status, headers["allow"]) == (405, allowed)


@pytest.mark.parametrize(
    "query",
    [
        "state=odd",
        "limit=0",
        "limit=1001",
        "limit=-1",
        "limit=x",
        "stat=hold",
        "limit",
        "&".join(["a=b"] * 99),
    ],
)
@ensureDeferred
async def test_a_query_that_is_not_understood_is_400_and_never_everything(
    daemon: Daemon, tmp_path: Path, query: str
) -> None:
    status, answer = await ask(tmp_path, "GET", f"/v1/queue?{query}")
    assert status == 400
    assert answer["error"]


@ensureDeferred
async def test_a_reload_that_is_refused_is_422_with_every_fault(daemon: Daemon, tmp_path: Path) -> None:
    daemon.reloaded = ReloadReport(faults=(Fault("f", "a.b", "bad", "try c"), Fault("f", "d", "worse")))
    status, answer = await ask(tmp_path, "POST", "/v1/reload")
    assert status == 422
    assert answer["faults"][0] == {"place": "f", "key": "a.b", "problem": "bad", "hint": "try c"}
    assert len(answer["faults"]) == 2
    daemon.reloaded = ReloadReport(needs_restart=("listener",))
    assert await ask(tmp_path, "POST", "/v1/reload") == (200, {"faults": [], "needs_restart": ["listener"]})


@ensureDeferred
async def test_a_drain_is_done_and_seen(daemon: Daemon, tmp_path: Path) -> None:
    assert await ask(tmp_path, "POST", "/v1/drain") == (200, {"state": "draining"})
    _, answer = await ask(tmp_path, "GET", "/v1/status")
    assert (answer["ready"], answer["not_ready"]) == (False, ["draining"])


@ensureDeferred
async def test_the_configuration_in_force_is_told(daemon: Daemon, tmp_path: Path) -> None:
    _, answer = await ask(tmp_path, "GET", "/v1/config")
    assert "mx1.example.org" in answer["toml"]


@ensureDeferred
async def test_a_panic_is_500_without_a_word_of_the_inside(daemon: Daemon, tmp_path: Path) -> None:
    daemon.broken = True
    status, answer = await ask(tmp_path, "GET", "/v1/plugins")
    assert (status, answer) == (500, {"error": "internal error", "hint": "see the log"})


@ensureDeferred
async def test_a_call_that_takes_too_long_is_504(tmp_path: Path) -> None:
    class Stuck:
        def stats(self, *, as_listed: bool) -> Deferred[None]:
            reactor.callLater(0, asked.callback, None)
            return Deferred()

    clock, asked = Clock(), Deferred()
    site = AdminSite(Daemon(Stuck()).calls, reactor, deadline=30)
    site.resource._clock = clock
    opened = AdminSocket(tmp_path / "admin.sock", site, reactor)
    opened.open()
    answer = ask(tmp_path, "GET", "/v1/queue/stats")
    waiting = Deferred.fromCoroutine(answer)
    await asked
    clock.advance(31)
    status, content = await waiting
    await opened.close()
    assert (status, content["error"]) == (504, "no answer in time")


@pytest.mark.parametrize("chunked", [False, True])
@ensureDeferred
async def test_a_body_beyond_the_bound_is_cut_off(daemon: Daemon, tmp_path: Path, chunked: bool) -> None:
    def flood() -> int:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
            sock.settimeout(45)
            sock.connect(str(tmp_path / "admin.sock"))
            kind = b"Transfer-Encoding: chunked" if chunked else b"Content-Length: 100000000"
            sock.sendall(b"POST /v1/drain HTTP/1.1\r\nHost: x\r\n" + kind + b"\r\n\r\n")
            block = b"x" * 4096
            sent = 0
            try:
                while sent < 100 * MAX_BODY:
                    sock.sendall(b"1000\r\n" + block + b"\r\n" if chunked else block)
                    sent += len(block)
            except (BrokenPipeError, ConnectionResetError):
                pass
            return sent

    assert await deferToThread(flood) < 100 * MAX_BODY
    assert daemon.state_name == "serving"


@ensureDeferred
async def test_a_client_that_leaves_before_the_answer_harms_nobody(daemon: Daemon, tmp_path: Path) -> None:
    def leave() -> None:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
            sock.connect(str(tmp_path / "admin.sock"))
            sock.sendall(b"GET /v1/queue HTTP/1.1\r\nHost: x\r\n\r\n")

    await deferToThread(leave)
    assert (await ask(tmp_path, "GET", "/v1/status"))[0] == 200


@ensureDeferred
async def test_only_the_owner_may_open_the_socket(daemon: Daemon, tmp_path: Path) -> None:
    found = (tmp_path / "admin.sock").stat()
    assert stat.S_ISSOCK(found.st_mode)
    assert stat.S_IMODE(found.st_mode) == 0o600
    assert found.st_uid == os.geteuid()


@ensureDeferred
async def test_the_socket_of_a_living_daemon_is_left_alone(daemon: Daemon, tmp_path: Path) -> None:
    second = AdminSocket(tmp_path / "admin.sock", AdminSite(daemon.calls, reactor), reactor)
    with pytest.raises(ListenFailed, match="another daemon listens"):
        second.open()
    assert (await ask(tmp_path, "GET", "/v1/status"))[0] == 200


@ensureDeferred
async def test_the_socket_of_a_dead_daemon_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "admin.sock"
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as dead:
        dead.bind(str(path))
        dead.listen()
    opened = AdminSocket(path, AdminSite(Daemon(None).calls, reactor), reactor)
    opened.open()
    assert (await ask(tmp_path, "GET", "/v1/plugins"))[0] == 200
    await opened.close()
    assert not path.exists()


@ensureDeferred
async def test_something_that_is_no_socket_is_never_removed(tmp_path: Path) -> None:
    path = tmp_path / "admin.sock"
    path.write_text("precious")
    with pytest.raises(ListenFailed, match="no socket"):
        AdminSocket(path, AdminSite(Daemon(None).calls, reactor), reactor).open()
    assert path.read_text() == "precious"


@ensureDeferred
async def test_a_directory_that_is_not_there_is_a_clear_error(tmp_path: Path) -> None:
    with pytest.raises(ListenFailed, match="absent"):
        AdminSocket(
            tmp_path / "absent" / "admin.sock", AdminSite(Daemon(None).calls, reactor), reactor
        ).open()


@ensureDeferred
async def test_a_path_longer_than_a_socket_address_works(tmp_path: Path) -> None:
    deep = tmp_path / ("d" * 100) / ("e" * 100)
    deep.mkdir(parents=True)
    opened = AdminSocket(deep / "admin.sock", AdminSite(Daemon(None).calls, reactor), reactor)
    opened.open()
    assert stat.S_IMODE((deep / "admin.sock").stat().st_mode) == 0o600
    await opened.close()
    assert list(deep.iterdir()) == []


@ensureDeferred
async def test_the_status_says_where_limits_are_counted(daemon: Daemon, tmp_path: Path) -> None:
    _, answer = await ask(tmp_path, "GET", "/v1/status")
    assert (answer["limiter"], answer["live_nodes"], answer["valkey"]) == ("memory", 1, None)
    daemon.overseen.mode = "local"
    _, answer = await ask(tmp_path, "GET", "/v1/status")
    assert (answer["limiter"], answer["live_nodes"]) == ("local", 2)
    assert answer["valkey"] == {
        "url": "valkey://cache",
        "up": False,
        "breaker": "half_open",
        "trouble": "connection refused",
    }


@ensureDeferred
async def test_the_nodes_tell_what_they_do_and_when_they_were_seen(daemon: Daemon, tmp_path: Path) -> None:
    status, answer = await ask(tmp_path, "GET", "/v1/nodes")
    assert status == 200
    (node,) = answer["nodes"]
    assert (node["node_id"], node["sessions"], node["queue"], node["this"]) == ("mx2", 7, 11, False)
    assert 0 < node["seen_ago"] < 30
    assert 60 <= node["uptime"] < 90
    assert answer["complete"] is True
    daemon.overseen.away = True
    _, answer = await ask(tmp_path, "GET", "/v1/nodes")
    assert answer == {"nodes": [], "complete": False}


@ensureDeferred
async def test_the_limits_in_force_are_told_in_the_words_of_the_configuration(
    daemon: Daemon, tmp_path: Path
) -> None:
    _, answer = await ask(tmp_path, "GET", "/v1/limits")
    assert [limit["name"] for limit in answer["limits"]] == ["ip", "connections-per-ip", "watch"]
    assert answer["limits"][2] == {
        "name": "watch",
        "per": ["network"],
        "counts": "connections",
        "rates": ["1/1h"],
        "scope": "cluster",
        "on_exceed": "defer",
        "when_valkey_is_down": "local",
        "mode": "observe",
        "today": {},
    }
    assert answer["limits"][1]["rates"] == ["2"]


@ensureDeferred
async def test_who_is_refused_comes_first_among_those_who_are_counted(daemon: Daemon, tmp_path: Path) -> None:
    daemon.overseen.connect("192.0.2.1", 2)
    daemon.overseen.connect("198.51.100.1", 5)
    _, answer = await ask(tmp_path, "GET", "/v1/limits/top?limit=ip")
    assert [(each["identity"], each["bounds"]) for each in answer["limits"]] == [
        ("198.51.100.1", [{"used": 3, "limit": 3, "window": 60.0, "share": None}]),
        ("192.0.2.1", [{"used": 2, "limit": 3, "window": 60.0, "share": None}]),
    ]
    assert [each["retry_after"] for each in answer["limits"]] == [60.0, 0.0]
    assert (answer["counted_in"], answer["complete"]) == ("memory", True)
    _, answer = await ask(tmp_path, "GET", "/v1/limits/top?count=1")
    assert len(answer["limits"]) == 1


@ensureDeferred
async def test_a_limit_that_there_is_not_is_told_with_those_there_are(daemon: Daemon, tmp_path: Path) -> None:
    status, answer = await ask(tmp_path, "GET", "/v1/limits/top?limit=nope")
    assert (status, answer["hint"]) == (404, "known: ip, connections-per-ip, watch")


@ensureDeferred
async def test_what_another_node_refuses_is_seen_here_with_its_name(daemon: Daemon, tmp_path: Path) -> None:
    daemon.overseen.elsewhere = [
        RemoteRefusal("mx2", "ip", "203.0.113.9", 42.0),
        RemoteRefusal("mx2", "gone", "203.0.113.9", 42.0),
    ]
    for path in ("/v1/limits/top", "/v1/limits/show?id=203.0.113.9"):
        _, answer = await ask(tmp_path, "GET", path)
        (fill,) = answer["limits"]
        assert (fill["limit"], fill["refused_by"], fill["retry_after"]) == ("ip", ["mx2"], 42.0)


@ensureDeferred
async def test_one_client_is_shown_with_every_limit_that_counts_it(daemon: Daemon, tmp_path: Path) -> None:
    daemon.overseen.connect("192.0.2.1", 1)
    _, answer = await ask(tmp_path, "GET", "/v1/limits/show?id=::ffff:192.0.2.1")
    shown = [(each["limit"], each["identity"], each["mode"]) for each in answer["limits"]]
    assert shown == [("ip", "192.0.2.1", "enforce"), ("watch", "192.0.2.0/24", "observe")]
    _, answer = await ask(tmp_path, "GET", "/v1/limits/show?id=watch:192.0.2.1")
    assert [each["limit"] for each in answer["limits"]] == ["watch"]


@ensureDeferred
async def test_what_nobody_can_tell_while_valkey_is_away_is_left_out_and_said_to_be_missing(
    daemon: Daemon, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    daemon.overseen.connect("192.0.2.1", 1)
    peek = daemon.overseen.store.peek

    def away(requests: Sequence[Request]) -> Any:
        if any(request.spec.name == "watch" for request in requests):
            raise StoreUnavailable("Valkey does not answer")
        return peek(requests)

    def only_here(_terms: LimitSpec, _identity: str) -> bool:
        raise StoreUnavailable("Valkey does not answer, so only this node forgot what it had counted")

    monkeypatch.setattr(daemon.overseen.store, "peek", away)
    monkeypatch.setattr(daemon.overseen.store, "reset", only_here)
    status, answer = await ask(tmp_path, "GET", "/v1/limits/show?id=192.0.2.1")
    assert status == 200
    assert [each["limit"] for each in answer["limits"]] == ["ip"]
    assert answer["complete"] is False
    status, answer = await ask(tmp_path, "POST", "/v1/limits/reset?id=watch:192.0.2.1")
    assert (status, "Valkey does not answer" in answer["error"]) == (503, True)


@ensureDeferred
async def test_the_fullest_identities_are_not_complete_when_valkey_does_not_answer(
    daemon: Daemon, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []

    def away(spec: LimitSpec, _count: int) -> Any:
        asked.append(spec.name)
        raise StoreUnavailable("Valkey does not answer")

    monkeypatch.setattr(daemon.overseen.store, "top", away)
    status, answer = await ask(tmp_path, "GET", "/v1/limits/top")
    assert (status, answer["limits"], answer["complete"]) == (200, [], False)
    # One question waits for the deadline, not each.
    assert len(asked) == 1


@ensureDeferred
async def test_a_reset_lets_a_client_in_again_and_is_told_to_the_other_nodes(
    daemon: Daemon, tmp_path: Path
) -> None:
    daemon.overseen.connect("192.0.2.1", 5)
    status, answer = await ask(tmp_path, "POST", "/v1/limits/reset?id=ip:192.0.2.1")
    assert (status, answer) == (200, {"reset": [{"limit": "ip", "identity": "192.0.2.1"}]})
    assert [request.key for request in daemon.overseen.told] == ["ip:192.0.2.1"]
    _, answer = await ask(tmp_path, "GET", "/v1/limits/show?id=ip:192.0.2.1")
    assert answer["limits"] == []


@ensureDeferred
async def test_there_is_nothing_to_reset_for_who_was_never_counted(daemon: Daemon, tmp_path: Path) -> None:
    status, _ = await ask(tmp_path, "POST", "/v1/limits/reset?id=192.0.2.1")
    assert status == 404
    assert daemon.overseen.told == []
    for query in ("", "?id=", "?id=" + "x" * 3000, "?ip=192.0.2.1"):
        status, _ = await ask(tmp_path, "POST", f"/v1/limits/reset{query}")
        assert status == 400


@ensureDeferred
async def test_spools_are_listed_the_own_one_first(daemon: Daemon, tmp_path: Path) -> None:
    status, answer = await ask(tmp_path, "GET", "/v1/spools")
    assert status == 200
    own, waiting = answer["spools"]
    assert own == {
        "directory": "/var/spool/elemta",
        "state": "own",
        "reason": "",
        "messages": 3,
        "states": {"active": 1, "deferred": 2, "hold": 0},
        "left": [],
    }
    assert (waiting["state"], waiting["messages"], waiting["states"]) == ("waiting", None, None)


@ensureDeferred
async def test_a_spool_is_adopted_and_given_back(daemon: Daemon, tmp_path: Path) -> None:
    status, answer = await ask(tmp_path, "POST", "/v1/spools/adopt?directory=/shared/mx1")
    assert (status, answer["state"], answer["left"]) == (200, "delivering", ["/shared/mx0"])
    status, answer = await ask(tmp_path, "POST", "/v1/spools/give-back?directory=/shared/mx1")
    assert (status, answer["state"]) == (200, "given back")
    status, answer = await ask(tmp_path, "POST", "/v1/spools/give-back?directory=/shared/mx1")
    assert (status, answer["error"]) == (404, "this node has not adopted /shared/mx1")


@pytest.mark.parametrize(
    ("query", "refused"),
    [
        ("directory=/shared/mx2", (409, "process 7 of node mx2 owns the spool partition /shared/mx2/p0")),
        ("directory=/shared/mx9", (404, "there is no spool in /shared/mx9")),
        ("directory=", (400, "directory is missing or too long")),
        ("directory=%00", (400, "directory is missing or too long")),
        ("folder=/shared/mx1", (400, "unknown query parameter 'folder'")),
        (
            "directory=/shared/mx3",
            (503, "the spool could not do it: Valkey can't confirm the owner of /shared/mx3/p0: no answer"),
        ),
    ],
)
@ensureDeferred
async def test_a_spool_that_cannot_be_adopted_is_refused_with_the_reason(
    daemon: Daemon, tmp_path: Path, query: str, refused: tuple[int, str]
) -> None:
    status, answer = await ask(tmp_path, "POST", f"/v1/spools/adopt?{query}")
    assert (status, answer["error"]) == refused
    assert answer.get("owner") == ("mx2" if status == 409 else None)
