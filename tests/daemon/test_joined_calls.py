"""Two daemons as the workers of one: what is asked of their supervisor is answered by both, as by one."""

from __future__ import annotations

import json
import signal
import socket
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path
from typing import Any, cast

import pytest
from pytest_twisted import ensureDeferred
from twisted.internet import reactor
from twisted.internet.base import ReactorBase
from twisted.internet.defer import Deferred, fail, succeed
from twisted.internet.task import Clock

from elemta.auth.roles import AccessRole, Caller
from elemta.daemon.joined_calls import JoinedCalls
from elemta.daemon.peers import PeerRequest
from elemta.daemon.supervisor_operations import WORKER_CALLS
from elemta.daemon.worker_peer import WorkerPeer
from elemta.errors import PeerFailed
from elemta.ops.admin import AdminSite, identify_handed_on
from elemta.ops.admin_calls import CallTable, route
from elemta.ops.admin_errors import AdminRefusal
from elemta.ops.admin_socket import AdminSocket
from tests.support.daemon import Daemon
from tests.support.waiting import eventually

pytestmark = pytest.mark.timeout(300)

ANNA = Caller("anna", AccessRole.OPERATOR)


class Own:
    """What the supervisor answers itself."""

    @route("GET", "/v1/workers")
    async def workers(self) -> Any:
        """The workers."""
        return {"workers": [{"number": number} for number in range(2)]}


@dataclass
class Two:
    """Two daemons, and the calls of what would be their supervisor."""

    daemons: list[Daemon]
    calls: JoinedCalls

    async def get(self, path: str) -> Any:
        return await self.calls.answer("GET", path)

    async def post(self, path: str, caller: Caller = ANNA, **keys: Any) -> Any:
        return await self.calls.answer("POST", path, json.dumps(keys).encode(), "application/json", caller)


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Two]:
    with socket.socket() as kept:
        kept.bind(("127.0.0.1", 0))
        tables = f"""
[[route]]
domains = ["down.test"]
to = "smtp://127.0.0.1:{kept.getsockname()[1]}"
[[route]]
domains = ["held.test"]
to = "hold:"
"""
        directory = tmp_path_factory.mktemp("two")
        relay = 'relay_from = ["127.0.0.0/8"]'
        daemons = [
            Daemon(directory / str(number), tables, server='node_id = "mx1"', domains=relay)
            for number in range(2)
        ]
        try:
            for daemon in daemons:
                daemon.launch()
            for daemon in daemons:
                daemon.wait_until_ready()
            real = cast(ReactorBase, reactor)
            sockets = [each.spool / "admin.sock" for each in daemons]
            peers = [WorkerPeer(str(number), each, real) for number, each in enumerate(sockets)]
            yield Two(daemons, JoinedCalls(CallTable(Own()), WORKER_CALLS, lambda: peers, cast(Any, reactor)))
        finally:
            for daemon in daemons:
                daemon.kill()


def send(daemon: Daemon, recipient: str, subject: str = "hello") -> str:
    with daemon.client() as client:
        client.ehlo("client.test")
        client.mail("a@client.test")
        client.rcpt(recipient)
        code, reply = client.data(f"Subject: {subject}\r\n\r\nx\r\n".encode())
    assert code == 250
    return str(reply.decode().split()[-1])


def mails(two: Two, number: int, recipient: str) -> list[str]:
    return [send(two.daemons[each % 2], recipient, str(each)) for each in range(number)]


@ensureDeferred
async def test_the_queue_is_listed_page_by_page_and_each_message_is_acted_on_where_it_is(two: Two) -> None:
    sent = mails(two, 7, "bob@held.test")
    listed, after = [], ""
    while True:
        page = await two.get(f"/v1/queue?to=bob&limit=2{after and '&after='}{after}")
        listed += [each["queue_id"] for each in page["messages"]]
        assert len(page["messages"]) <= 2
        if page["next"] is None:
            break
        after = page["next"]
    assert listed == sent
    stats = await two.get("/v1/queue/stats")
    assert stats["states"]["hold"]["messages"] == 7
    for queue_id in sent[:2]:
        assert (await two.get(f"/v1/queue/{queue_id}"))["queue_id"] == queue_id
        content = await two.get(f"/v1/queue/{queue_id}/content?headers=true")
        assert "Subject: " in content["content"]
        assert (await two.post(f"/v1/queue/{queue_id}/hold", reason="mine"))["done"] == "held"
        assert (await two.get(f"/v1/queue/{queue_id}"))["hold_reason"] == "mine"
    # Of many there is one result for each, in the order of the ids.
    unknown = sent[0][:-1] + ("0" if sent[0][-1] != "0" else "1")
    answer = await two.post("/v1/queue/hold", ids=",".join([*sent[:4], unknown]))
    results = [(each["queue_id"], each.get("status", each.get("done"))) for each in answer["results"]]
    assert results == [*((each, "held") for each in sent[:4]), (unknown, 404)]
    deleted: Any = await two.calls.answer("DELETE", f"/v1/queue/{sent[6]}", caller=ANNA)
    assert deleted["done"] == "deleted"
    with pytest.raises(AdminRefusal) as refused:
        await two.get(f"/v1/queue/{unknown}")
    assert refused.value.status is HTTPStatus.NOT_FOUND

    async def found() -> bool:
        answer = await two.get("/v1/find?text=bob@held.test&limit=100")
        return [each["queue_id"] for each in answer["messages"]][-6:] == list(reversed(sent[:6]))

    await eventually(found)


@ensureDeferred
async def test_destinations_are_one_each_and_paused_everywhere(two: Two) -> None:
    mails(two, 3, "bob@down.test")

    async def waits() -> bool:
        (row,) = (await two.get("/v1/destinations"))["destinations"]
        return bool(row["waiting"] == 3)

    await eventually(waits)
    (row,) = (await two.get("/v1/destinations"))["destinations"]
    name = row["name"]
    paused = await two.post(f"/v1/destinations/{name.replace('/', '%2F')}/pause")
    assert (paused["name"], paused["state"], paused["waiting"]) == (name, "paused", 3)
    for daemon in two.daemons:
        assert "paused" in daemon.ctl("destinations").stdout
    await two.post(f"/v1/destinations/{name.replace('/', '%2F')}/resume")
    with pytest.raises(AdminRefusal) as refused:
        await two.post("/v1/destinations/no%2Fsuch/pause")
    assert refused.value.status is HTTPStatus.NOT_FOUND


@ensureDeferred
async def test_status_sessions_refusals_traffic_policies_and_limits_are_of_both(two: Two) -> None:
    first, second = (daemon.client() for daemon in two.daemons)
    with first, second:
        for client in (first, second):
            client.ehlo("client.test")
            client.docmd("NONSENSE")
        sessions = await two.get("/v1/sessions")
        assert (len(sessions["sessions"]), sessions["total"]) == (2, 2)
        status = await two.get("/v1/status")
        assert status["sessions"] == 2
        assert [each["connections"] for each in status["listeners"]] == [2]
        assert [each["number"] for each in status["workers"]] == [0, 1]
    refused = await two.get("/v1/refused?count=2")
    assert len(refused["refused"]) == 2
    assert refused["total"] >= 2
    each = [json.loads(daemon.ctl("--json", "status").stdout) for daemon in two.daemons]
    total = sum(one["spool"]["total"]["messages"] for one in each)
    assert (await two.get("/v1/status"))["spool"]["total"]["messages"] == total
    traffic = await two.get("/v1/traffic")
    assert sum(traffic["hour"]["accepted"]) == 10
    policies = (await two.get("/v1/policies"))["policies"]
    assert [policy["name"] for policy in policies] == status["policies"]
    assert [limit["name"] for limit in (await two.get("/v1/limits"))["limits"]]
    assert (await two.get("/v1/spools"))["spools"]
    assert "[server]" in (await two.get("/v1/config"))["toml"]
    explained = await two.post("/v1/explain", ip="192.0.2.1", to=["bob@held.test"])
    assert explained["listener"] == "mx"


@ensureDeferred
async def test_a_trace_has_the_conversations_of_both(two: Two) -> None:
    name = (await two.post("/v1/trace"))["id"]
    with two.daemons[0].client() as first, two.daemons[1].client() as second:
        first.ehlo("first.test")
        second.ehlo("second.test")
    seen = ""
    while not ("first.test" in seen and "second.test" in seen):
        page: Any = await two.calls.answer("GET", f"/v1/trace/{name}", caller=ANNA)
        assert not page["ended"]
        seen += "".join(line["text"] for line in page["lines"])
    last: Any = await two.calls.answer("DELETE", f"/v1/trace/{name}", caller=ANNA)
    assert last["ended"] is True
    with pytest.raises(AdminRefusal):
        await two.calls.answer("GET", f"/v1/trace/{name}", caller=ANNA)


@ensureDeferred
async def test_roles_and_wrong_questions_are_refused_as_by_one(two: Two) -> None:
    viewer = Caller("v", AccessRole.VIEWER)
    for method, path, caller, status in (
        ("POST", "/v1/drain", viewer, 403),
        ("GET", "/v1/queue?x=y", ANNA, 400),
        ("GET", "/v1/find?text=x&after=nodes:e30=", ANNA, 400),
        ("GET", "/v1/queue/nothing", ANNA, 404),
        ("GET", "/v1/nothing", ANNA, 404),
        ("PUT", "/v1/queue", ANNA, 405),
        ("POST", "/v1/queue/hold", ANNA, 400),
    ):
        with pytest.raises(AdminRefusal) as refused:
            await two.calls.answer(method, path, caller=caller)
        assert refused.value.status == status, path


@ensureDeferred
async def test_a_worker_that_hangs_or_is_gone_is_named_and_the_other_answers(
    two: Two, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("elemta.daemon.joined_calls.READ_SECONDS", 0.5)
    monkeypatch.setattr("elemta.daemon.joined_calls.NODE_READ_SECONDS", 0.1)
    sent = [send(daemon, "carl@held.test") for daemon in two.daemons]
    hung = two.daemons[1]
    hung.signal(signal.SIGSTOP)
    try:
        answer = await two.get("/v1/queue?to=carl")
        assert [each["queue_id"] for each in answer["messages"]] == sent[:1]
        assert answer["problems"] == ["worker 1: no answer in time"]
        found = await two.get("/v1/find?text=carl@held.test")
        assert "worker 1" in found["nodes"][0]["problem"]
        assert (await two.get(f"/v1/queue/{sent[0]}"))["queue_id"] == sent[0]
        # It may have it.
        with pytest.raises(AdminRefusal) as refused:
            await two.get(f"/v1/queue/{sent[1]}")
        assert refused.value.status is HTTPStatus.SERVICE_UNAVAILABLE
    finally:
        hung.signal(signal.SIGCONT)

    async def whole() -> bool:
        return "problems" not in await two.get("/v1/queue?to=carl")

    await eventually(whole)
    hung.kill()
    answer = await two.get("/v1/queue?to=carl")
    assert "does not listen" in answer["problems"][0]
    begun = await two.post("/v1/trace")
    assert "does not listen" in begun["problems"][0]
    last: Any = await two.calls.answer("DELETE", f"/v1/trace/{begun['id']}", caller=ANNA)
    assert last["ended"] is True


class Names:
    """Says which peer makes a call."""

    @route("POST", "/v1/queue/{queue_id}/hold")
    async def hold(self, queue_id: str, caller: Caller) -> Any:
        """Hold."""
        return {"by": caller.actor, "role": caller.role.value}

    @route("GET", "/v1/queue/{queue_id}")
    async def show(self, queue_id: str) -> Any:
        """Show."""
        return {}


@ensureDeferred
async def test_a_worker_knows_the_operator_that_asked_its_supervisor(tmp_path: Path) -> None:
    real = cast(ReactorBase, reactor)
    table = CallTable(Names())
    worker = AdminSocket(tmp_path / "a.sock", AdminSite(table, real, identify=identify_handed_on), real)
    worker.open()
    try:
        peer = WorkerPeer("0", tmp_path / "a.sock", real)
        calls = JoinedCalls(CallTable(), table.calls, lambda: [peer], cast(Any, reactor))
        odd = Caller("anna\r\nx: y/\u00e4", AccessRole.OPERATOR)
        answer = await calls.answer("POST", "/v1/queue/A/hold", caller=odd)
        assert answer == {"by": odd.actor, "role": "operator"}
        with pytest.raises(AdminRefusal):
            await calls.answer("POST", "/v1/queue/A/hold", caller=Caller("v", AccessRole.VIEWER))
    finally:
        await worker.close()


@ensureDeferred
async def test_a_socket_with_a_long_name_and_one_that_is_not_there(
    make_daemon: Callable[..., Daemon], tmp_path: Path
) -> None:
    daemon = make_daemon(name="x" * 120).start()
    peer = WorkerPeer("0", daemon.spool / "admin.sock", cast(ReactorBase, reactor))
    peers = [peer]
    calls = JoinedCalls(CallTable(), WORKER_CALLS, lambda: peers, cast(Any, reactor))
    status: Any = await calls.answer("GET", "/v1/status")
    assert status["ready"]
    peers[0] = WorkerPeer("0", tmp_path / "none.sock", cast(ReactorBase, reactor))
    with pytest.raises(AdminRefusal, match="does not answer"):
        await calls.answer("GET", "/v1/status")


class Leaving:
    """A worker that has each message, and is gone as soon as it has said so."""

    name = "0"

    def __init__(self) -> None:
        self.workers: list[Leaving] = [self]

    def ask(self, request: PeerRequest, _seconds: float) -> Deferred[Any]:
        if request.method != "GET":
            return fail(PeerFailed("it is gone"))
        self.workers.clear()
        return succeed({"queue_id": "1"})


@ensureDeferred
async def test_a_worker_that_leaves_between_two_questions_is_named() -> None:
    worker = Leaving()
    calls = JoinedCalls(CallTable(), WORKER_CALLS, lambda: list(worker.workers), Clock())
    with pytest.raises(AdminRefusal, match="worker 0: it is gone"):
        await calls.answer("POST", "/v1/queue/1/hold", caller=ANNA)
