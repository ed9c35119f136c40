"""Logging in: passwords, users, databases, sockets; and the rights of docs/valkey.md, no more than needed."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from pytest_twisted import ensureDeferred
from twisted.internet import reactor
from twisted.internet.defer import maybeDeferred

from elemta.limits.nodes import About, Nodes, NodeState
from elemta.limits.store import Request, Terms
from elemta.limits.valkey_store import ValkeyStore
from elemta.limits.window import Bound
from elemta.valkey import Trouble, ValkeyTrouble
from tests.support.valkey import Talk, ValkeyServer
from tests.support.waiting import eventually, failure_of, until

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "valkey.md").read_text(encoding="utf-8")
PREFIX = "elemta:ratelimit:"
MINUTE = 60_000_000


def documented_users() -> str:
    """The users.acl of the page, as a file takes it."""
    (block,) = re.findall(r"```\n(# /etc/valkey/users\.acl\n.*?)```", PAGE, re.DOTALL)
    return "".join(f"{line}\n" for line in block.splitlines() if not line.startswith("#"))


def granted() -> set[str]:
    return set(re.findall(r" \+([a-z|]+)", documented_users()))


class WithUsers(ValkeyServer):
    """Has the documented users, and one for the test."""

    def __init__(self, *arguments: str, **settings: str | int) -> None:
        super().__init__(*arguments, aclfile="", **settings)
        users = self.directory / "users.acl"
        users.write_text(documented_users() + "user test on >test ~* &* +@all\n")
        self._settings["aclfile"] = str(users)

    def talk(self) -> Any:
        return Talk(self.socket, "test", "test")


async def use_everything(valkey: Any) -> None:
    """All that Elemta ever asks of a Valkey."""
    store = ValkeyStore(valkey, prefix=PREFIX, node_id="mx1", reactor=reactor)
    log = Terms("ip", (Bound.of(2, MINUTE), Bound.of(3, 60 * MINUTE)))
    buckets = Terms("many", (Bound.of(1000, MINUTE),))
    leases = Terms("connections", leases=2)
    requests = [Request(terms, "192.0.2.1") for terms in (log, buckets, leases)]
    answers = [await store.acquire(requests) for _ in range(3)]
    assert [answer.granted for answer in answers] == [True, True, False]
    await store.renew()
    for receipt in answers[0].receipts:
        await maybeDeferred(store.release if receipt.is_lease else store.refund, [receipt])

    async def returned() -> bool:
        return [fill.used[0] for fill in await store.peek(requests)] == [1, 1, 1]

    await eventually(returned)
    assert len((await store.top(log, 10)).fills) == 1
    for terms in (log, buckets):
        assert await store.reset(terms, "192.0.2.1")
    nodes = Nodes(
        reactor,
        valkey,
        prefix=PREFIX,
        node_id="mx1",
        about=About("1", "mx1.example.test", "192.0.2.9", 0.0),
        state=NodeState,
    )
    nodes.start()

    async def listed() -> bool:
        return len(await nodes.list()) == 1

    await eventually(listed)
    await nodes.announce_reset("ip", "192.0.2.1")
    await nodes.stop()


def refusals(server: ValkeyServer) -> list[Any]:
    """What the server did not allow, by its own account."""
    return [dict(zip(entry[::2], entry[1::2], strict=True)) for entry in server.command("ACL", "LOG")]


@ensureDeferred
async def test_the_documented_rights_suffice_for_everything(connect: Any) -> None:
    with WithUsers() as server:
        valkey = await connect(f"valkey://elemta:PASSWORD@{server.address}/2")
        await use_everything(valkey)
        await until(lambda: server.calls("info"))
        assert refusals(server) == []


@ensureDeferred
async def test_the_documented_rights_suffice_on_a_cluster(connect: Any) -> None:
    with WithUsers(cluster_enabled="yes") as server:
        server.command("CLUSTER", "ADDSLOTSRANGE", 0, 16383)
        await until(lambda: b"cluster_state:ok" in server.command("CLUSTER", "INFO"))
        valkey = await connect(f"valkey+cluster://elemta:PASSWORD@{server.address}")
        await use_everything(valkey)
        assert refusals(server) == []


@ensureDeferred
async def test_the_documented_rights_let_nobody_touch_what_is_not_elemtas(connect: Any) -> None:
    with WithUsers() as server:
        valkey = await connect(f"valkey://elemta:PASSWORD@{server.address}")
        for words in (
            ("GET", "other"),
            ("FLUSHALL",),
            ("CONFIG", "GET", "*"),
            ("KEYS", "*"),
            ("ACL", "LIST"),
        ):
            error = await failure_of(valkey.command(*words))
            assert isinstance(error, ValkeyTrouble)
            assert error.kind is Trouble.DENIED


def test_no_right_is_documented_that_nothing_needs() -> None:
    scripts = "".join(path.read_text() for path in (ROOT / "elemta/limits/scripts").glob("*.lua"))
    inside = {name.lower() for name in re.findall(r"call\('([A-Za-z]+)'", scripts)}
    code = "".join(
        path.read_text() for room in ("valkey", "limits") for path in (ROOT / "elemta" / room).glob("*.py")
    )
    words = {name.lower().replace('", "', "|") for name in re.findall(r'"([A-Z]+(?:", "[A-Z]+)?)"', code)}
    assert inside <= granted()
    assert granted() <= inside | words


@ensureDeferred
async def test_sentinels_need_no_more_rights_than_documented(connect: Any) -> None:
    (rights,) = re.findall(r"need for `sentinel_username`: `([^`]+)`", PAGE)
    with (
        ValkeyServer() as server,
        ValkeyServer("--sentinel", **{"sentinel monitor limits": f"127.0.0.1 {server.port} 1"}) as sentinel,
    ):
        sentinel.command("ACL", "SETUSER", "elemta", "on", ">pass", *rights.split())
        login = "sentinel_username=elemta&sentinel_password=pass"
        valkey = await connect(f"valkey+sentinel://{sentinel.address}/limits?{login}")
        assert await valkey.command("PING") == b"PONG"


@ensureDeferred
async def test_a_wrong_password_is_said_and_healed_without_a_restart(connect: Any) -> None:
    with ValkeyServer(requirepass="old") as server:
        valkey = await connect(server.url.replace(":old@", ":new@"), up=False)

        async def denied() -> bool:
            error = await failure_of(valkey.command("PING"))
            assert isinstance(error, ValkeyTrouble)
            return error.kind is Trouble.DENIED

        await eventually(denied)
        server.command("CONFIG", "SET", "requirepass", "new")
        await until(lambda: valkey.up)


@ensureDeferred
async def test_a_server_without_hello_is_said_and_the_password_that_it_repeats_is_not(connect: Any) -> None:
    with ValkeyServer(rename_command='HELLO ""') as server:
        valkey = await connect(f"valkey://:hunter2@{server.address}", up=False)

        async def said() -> bool:
            words = str(await failure_of(valkey.command("PING")))
            assert "hunter2" not in words
            return "HELLO" in words

        await eventually(said)


@ensureDeferred
async def test_a_user_who_is_taken_away_and_given_back_is_logged_in_again(
    server: ValkeyServer, connect: Any
) -> None:
    server.command("ACL", "SETUSER", "elemta", "on", ">pass", "~*", "+@all")
    valkey = await connect(f"unix://elemta:pass@{server.socket}?db=5")
    await valkey.command("SET", "k", 1)
    assert server.info("keyspace")["db5"].startswith("keys=1,")
    server.command("ACL", "DELUSER", "elemta")
    await until(lambda: not valkey.up)
    server.command("ACL", "SETUSER", "elemta", "on", ">pass", "~*", "+@all")
    await until(lambda: valkey.up)


@ensureDeferred
async def test_a_database_that_is_not_there_is_said(connect: Any) -> None:
    with ValkeyServer(databases=2) as server:
        valkey = await connect(server.url.replace("/0", "/2"), up=False)

        async def said() -> bool:
            return "out of range" in str(await failure_of(valkey.command("PING")))

        await eventually(said)
        assert not valkey.up
