"""Three nodes on one Valkey: any of them answers for all, and names those that do not answer."""

from __future__ import annotations

import json
import signal
import socket
import time
from collections.abc import Iterator
from typing import Any

import pytest

from elemta.ctl.client import AdminClient
from tests.cluster.fleet import Fleet, Node, until
from tests.support.valkey import ValkeyServer, valkey_server

pytestmark = pytest.mark.timeout(300)

RESOURCES = {"max_requests_per_window": 0, "valkey_deadline": "4s"}
# A node that does not answer is waited for this long, with time enough for a slow machine.
AT_ONCE = 10.0


@pytest.fixture(scope="module")
def valkey() -> Iterator[ValkeyServer]:
    with valkey_server() as server:
        yield server


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory, valkey: ValkeyServer) -> Iterator[Fleet]:
    with socket.socket() as kept:
        kept.bind(("127.0.0.1", 0))
        tables = f"""
[[route]]
domains = ["down.test"]
to = "smtp://127.0.0.1:{kept.getsockname()[1]}"
[[route]]
domains = ["held.test"]
to = "hold:"
[[limit]]
name = "here"
per = ["sender"]
counts = "messages"
rates = ["100/1h"]
scope = "node"
"""
        directory = tmp_path_factory.mktemp("fleet")
        relay = 'relay_from = ["127.0.0.0/8"]'
        with Fleet(directory, valkey.url, resources=RESOURCES, tables=tables, domains=relay) as fleet:
            fleet.introduce()
            yield fleet


def send(node: Node, recipient: str, subject: str, sender: str = "a@client.test") -> str:
    with node.client() as client:
        client.ehlo("client.test")
        client.mail(sender)
        client.rcpt(recipient)
        code, reply = client.data(f"Subject: {subject}\r\nX-Long: {'x' * 900}\r\n\r\nx\r\n".encode())
    assert code == 250
    return str(reply.decode().split()[-1])


def ask(node: Node, *path: str, **query: str) -> dict[str, Any]:
    client = AdminClient(str(node.spool / "admin.sock"), timeout=90)
    try:
        return client.get(*path, **query)
    finally:
        client.close()


def answered(answer: dict[str, Any]) -> dict[str, bool]:
    return {node["node_id"]: node["answered"] for node in answer["nodes"]}


def all_answered(node: Node) -> bool:
    return answered(ask(node, "destinations")) == {"n0": True, "n1": True, "n2": True}


def test_any_node_answers_for_all(fleet: Fleet) -> None:
    asked, *_ = fleet.nodes
    until(lambda: all_answered(asked), "all nodes answer")
    sent = {
        send(node, "bob@held.test", f"{number} on {node.name}"): node.name
        for number in range(3)
        for node in fleet.nodes
    }
    send(fleet.nodes[1], "carl@down.test", "waits")
    send(fleet.nodes[2], "carl@down.test", "waits")

    def found() -> dict[str, str]:
        messages = ask(asked, "find", text="bob@held.test")["messages"]
        return {each["queue_id"]: each["node_id"] for each in messages}

    until(lambda: found() == sent, "the messages of all nodes are found")

    # The newest first, page by page, each once. On a busy machine a node may miss the second that it has.
    def paged() -> list[str]:
        pages, after = [], ""
        while True:
            page = ask(asked, "find", text="bob@held.test", limit="2", **({"after": after} if after else {}))
            pages.append([each["queue_id"] for each in page["messages"]])
            assert len(pages[-1]) <= 2
            after = page["next"]
            if after is None:
                return [each for page in pages for each in page]

    until(lambda: paged() == list(reversed(sent)), "the pages have each message once, in order")

    def waiting() -> list[tuple[str, str, int]]:
        rows = ask(asked, "destinations")["destinations"]
        return [(each["name"], each["node_id"], each["waiting"]) for each in rows]

    until(lambda: [row[1:] for row in waiting()] == [("n1", 1), ("n2", 1)], "both rows are there")
    (destination,) = {row[0] for row in waiting()}

    def listed() -> list[str]:
        return [line.split()[-1] for line in asked.ctl("destinations").stdout.splitlines()]

    until(lambda: listed() == ["NODE", "n1", "n2"], "the command lists both")
    # What changes something acts on the node that is asked, and says so.
    assert "on node n0: paused" in asked.ctl("destinations", "pause", destination).stdout
    asked.ctl("destinations", "resume", destination)

    def top() -> set[tuple[str, int]]:
        fills = ask(asked, "limits", "top", limit="here")["limits"]
        return {(each["node_id"], each["bounds"][0]["used"]) for each in fills}

    until(lambda: top() == {("n0", 3), ("n1", 4), ("n2", 4)}, "what each node counts by itself is listed")

    def shown() -> list[str]:
        fills = ask(asked, "limits", "show", id="here:a@client.test")["limits"]
        return [each["node_id"] for each in fills]

    until(lambda: shown() == ["n0", "n1", "n2"], "the same for one identity")

    with fleet.nodes[2].client() as client:
        client.docmd("NONSENSE")

    def refused() -> list[str]:
        return [each["node_id"] for each in ask(asked, "refused")["refused"]]

    until(lambda: refused()[:1] == ["n2"], "what another node refused is listed")
    assert fleet.faults() == []


def test_a_hostile_message_and_many_rows_stay_within_bounds(fleet: Fleet) -> None:
    asked, other, _ = fleet.nodes
    with other.client() as client:
        client.sendmail(
            "h@client.test",
            ["bob@held.test"],
            "Subject: " + "\r\n ".join(["y" * 900] * 1100) + "\r\n\r\nx\r\n",
        )

    def found() -> list[dict[str, Any]]:
        return list(ask(asked, "find", text="h@client.test")["messages"])

    until(found, "it is found")
    assert all(len(each["subject"]) <= 100 for each in found())
    for query, wrong in (({"after": "nodes:x"}, "after"), ({"limit": "0"}, "limit"), ({"x": "y"}, "x")):
        with pytest.raises(Exception, match=wrong):
            ask(asked, "find", text="h@client.test", **query)


def test_what_other_nodes_may_not_ask_is_refused(fleet: Fleet, valkey: ValkeyServer) -> None:
    def answer(document: Any) -> bytes | None:
        valkey.command("HSET", "elemta:ratelimit:questions:n1", "abc", json.dumps(document))
        end = time.monotonic() + 20
        while time.monotonic() < end:
            found = valkey.command("GET", "elemta:ratelimit:answer:abc")
            if found is not None:
                valkey.command("DEL", "elemta:ratelimit:answer:abc")
                return bytes(found) if isinstance(found, bytes) else str(found).encode()
            time.sleep(0.02)
        return None

    del fleet
    assert answer({"from": "x", "method": "GET", "uri": "/v1/find?text=x"})
    for document in (
        {"from": "x", "method": "POST", "uri": "/v1/drain"},
        {"from": "x", "method": "GET", "uri": "/v1/queue/ABC/content"},
        {"from": "x", "method": "GET", "uri": "/v1/config"},
    ):
        assert answer(document)


def test_nodes_that_do_not_answer_are_named_and_stall_nothing(fleet: Fleet, valkey: ValkeyServer) -> None:
    asked, stopped, killed = fleet.nodes
    until(lambda: all_answered(asked), "all nodes answer")
    stopped.signal(signal.SIGSTOP)
    try:
        began = time.monotonic()
        answer = ask(asked, "find", text="bob@held.test")
        assert time.monotonic() - began < AT_ONCE
        assert answered(answer)["n1"] is False
        until(
            lambda: answered(ask(asked, "find", text="bob@held.test"))["n2"],
            "the other one answers all the same",
        )
        killed.kill()
        answer = ask(asked, "destinations")
        assert answered(answer) == {"n0": True, "n1": False, "n2": False}
        said = asked.ctl("find", "bob@held.test")
        assert "node n1: it is not in this" in said.stderr
        assert "node n2: it is not in this" in said.stderr
        # They are gone for the others by and by, and still named.
        until(
            lambda: any("vanished" in node["problem"] for node in ask(asked, "find", text="x")["nodes"]),
            "a node that vanished is named",
        )
        # What it counted by itself is gone with it: nothing is missing of the limits.
        for answer in (ask(asked, "limits", "top"), ask(asked, "limits", "show", id="192.0.2.1")):
            assert [node for node in answer["nodes"] if "vanished" in node["problem"]] == []
    finally:
        stopped.signal(signal.SIGCONT)
    until(lambda: answered(ask(asked, "destinations")).get("n1"), "the node that went on answers")
    valkey.pause()
    try:
        answer = ask(asked, "find", text="bob@held.test")
        assert answered(answer)["n0"] is True
        assert answered(answer)["n1"] is False
        assert {each["node_id"] for each in answer["messages"]} == {"n0"}
        assert ask(asked, "limits", "top")["complete"] is False
    finally:
        valkey.resume()
