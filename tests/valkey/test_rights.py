"""Logging in: passwords, users, databases, sockets; and the rights of docs/valkey.md, no more than needed."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from pytest_twisted import ensureDeferred
from twisted.internet import reactor
from twisted.internet.defer import Deferred, maybeDeferred
from twisted.internet.defer import TimeoutError as OutOfTime
from twisted.logger import LogEvent, globalLogPublisher

from elemta.daemon.node_questions import NodeQuestions
from elemta.daemon.peers import PeerRequest
from elemta.errors import StoreUnavailable
from elemta.limits.nodes import About, Nodes, NodeState
from elemta.limits.override_registry import ClusterOverrides
from elemta.limits.overrides import Override
from elemta.limits.push_registry import KeptVersion, PushRegistry
from elemta.limits.pushed_limits import PushedLimits
from elemta.limits.store import LimitSpec, Request
from elemta.limits.valkey_store import ValkeyStore
from elemta.limits.window import Bound
from elemta.runtime import Runtime
from elemta.spool.record_file import RecordFile
from elemta.valkey import Script, ValkeyError, ValkeyFailure
from elemta.valkey.rights import Rights
from tests.support.valkey import Talk, ValkeyServer
from tests.support.valkey_groups import slot_of
from tests.support.waiting import eventually, failure_of, pause, until

# The rights that a single server, and a cluster, needs; HELLO is for every user.
EVERYWHERE = [
    "ping",
    "select",
    "info",
    "time",
    "scan",
    "evalsha",
    "script|load",
    "del",
    "exists",
    "get",
    "set",
    "pexpire",
    "pttl",
    "hget",
    "hgetall",
    "hmget",
    "hset",
    "hdel",
    "hexists",
    "hkeys",
    "hincrby",
    "incr",
    "zadd",
    "zcard",
    "zcount",
    "zrange",
    "zrangebyscore",
    "zrem",
    "zremrangebyrank",
    "zremrangebyscore",
]
# Of these only a script of rare cases makes use, so that a test asks for them by themselves.
RARE = {
    "get": "",
    "hdel": ", 'f'",
    "hexists": ", 'f'",
    "hkeys": "",
    "incr": "",
    "zremrangebyrank": ", 0, 1",
}
IN_A_CLUSTER = ["cluster|slots", "asking"]
OF_SENTINELS = ["ping", "sentinel|master"]

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "valkey.md").read_text(encoding="utf-8")
PREFIX = "elemta:ratelimit:"
MINUTE = 60_000_000


def documented_users() -> str:
    """The users.acl that the page lets a shell write."""
    (command,) = re.findall(r"^cat >/etc/valkey/users\.acl (<<END\n.*?\nEND\n)", PAGE, re.M | re.S)
    return subprocess.run(["sh", "-c", f"cat {command}"], check=True, capture_output=True, text=True).stdout


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
    store = ValkeyStore(valkey, prefix=PREFIX, node_id="mx1", runtime=Runtime.of(reactor))
    log = LimitSpec("ip", (Bound.of(2, MINUTE), Bound.of(3, 60 * MINUTE)))
    buckets = LimitSpec("many", (Bound.of(1000, MINUTE),))
    leases = LimitSpec("connections", leases=2)
    requests = [Request(terms, "192.0.2.1") for terms in (log, buckets, leases)]
    answers = [await store.acquire(requests) for _ in range(3)]
    assert [answer.granted for answer in answers] == [True, True, False]
    await store.renew()
    for receipt in answers[0].receipts:
        await maybeDeferred(store.release if receipt.is_lease else store.refund, [receipt])

    async def returned() -> bool:
        return [fill.used[0] for fill in await store.peek(requests)] == [1, 1, 1]

    await eventually(returned)
    assert len((await store.top(log, 10)).usages) == 1
    for terms in (log, buckets):
        assert await store.reset(terms, "192.0.2.1")
    nodes = Nodes(
        Runtime.of(reactor),
        valkey,
        prefix=PREFIX,
        node_id="mx1",
        about=About("1", "mx1.example.test", "192.0.2.9", 0.0),
        state=NodeState,
    )
    nodes.start()

    async def listed() -> bool:
        return len(await nodes.list()) == 1

    try:
        await eventually(listed)
        await nodes.announce_reset("ip", "192.0.2.1")
    finally:
        await nodes.stop()
    await nodes.list_gone(())
    await ask_another_node(valkey)
    await use_what_operators_share(valkey)


async def ask_another_node(valkey: Any) -> None:
    """A question between nodes, and its answer."""
    runtime = Runtime.of(reactor)
    asking, asked = (NodeQuestions(runtime, valkey, PREFIX, name) for name in ("mx1", "mx2"))

    async def serve(_: str, request: PeerRequest) -> Any:
        return {"uri": request.uri}

    asked.serve(serve)
    asked.start()
    try:
        request = PeerRequest.get("/v1/find", {"text": "x"})
        assert await asking.ask("mx2", request, 30.0) == {"uri": "/v1/find?text=x"}
    finally:
        asked.stop()


async def use_what_operators_share(valkey: Any) -> None:
    """Overrides of limits, and limits that are pushed to the fleet."""
    runtime = Runtime.of(reactor)
    overrides = ClusterOverrides(runtime, valkey, PREFIX)
    await overrides.put(Override("ip", "192.0.2.1", ("5/1m",), 0.0), 60)
    assert await overrides.remove("ip", "192.0.2.1")
    pushed = PushRegistry(runtime, valkey, PREFIX, KeptVersion(RecordFile(Path("/nonexistent"), "none")))
    base = await pushed.current()
    await pushed.push(PushedLimits(0, ""), base)
    assert (await pushed.history())[0].version == base + 1
    assert await pushed.get(base + 1) is not None


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
            assert isinstance(error, ValkeyError)
            assert error.kind is ValkeyFailure.DENIED


def test_no_right_is_documented_that_nothing_needs() -> None:
    scripts = "".join(path.read_text() for path in (ROOT / "elemta/limits/scripts").glob("*.lua"))
    inside = {name.lower() for name in re.findall(r"call\('([A-Za-z]+)'", scripts)}
    code = "".join(
        path.read_text()
        for package in ("valkey", "limits")
        for path in (ROOT / "elemta" / package).glob("*.py")
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


@pytest.fixture
def denied() -> Iterator[list[LogEvent]]:
    """What was logged of rights that are missing."""
    seen: list[LogEvent] = []

    def observe(event: LogEvent) -> None:
        if event.get("event") == "valkey.denied":
            seen.append(event)

    globalLogPublisher.addObserver(observe)
    yield seen
    globalLogPublisher.removeObserver(observe)


async def use_until(denied: list[LogEvent], right: str, valkey: Any) -> None:
    """As a daemon does, which goes on whatever is refused."""
    rare = RARE.get(right.removeprefix("+"))
    script = Script("rare", f"#!lua\nreturn redis.call('{right[1:]}', KEYS[1]{rare})")
    while not any(event["right"] == right for event in denied):
        using = valkey.run(script, [f"{PREFIX}k".encode()]) if rare is not None else use_everything(valkey)
        with suppress(StoreUnavailable, AssertionError, OutOfTime):
            await Deferred.fromCoroutine(_steps(using)).addTimeout(2.0, reactor)
        await pause(0.05)


async def _steps(using: Any) -> None:
    await using


async def assert_named(denied: list[LogEvent], right: str) -> None:
    await until(lambda: [event for event in denied if event["right"] == right], f"{right} is named")
    assert {event["user"] for event in denied} == {"elemta"}
    assert {event["right"] for event in denied} == {right}


def test_the_tables_are_what_is_documented() -> None:
    assert granted() - {"hello"} == {*EVERYWHERE, *IN_A_CLUSTER}
    (rights,) = re.findall(r"need for `sentinel_username`: `([^`]+)`", PAGE)
    assert set(re.findall(r"\+([a-z|]+)", rights)) - {"hello"} == set(OF_SENTINELS)


@pytest.mark.parametrize("right", [*(f"+{name}" for name in EVERYWHERE), f"~{PREFIX}*"])
@ensureDeferred
async def test_a_right_that_is_missing_is_named_in_the_words_of_a_rule(
    right: str, connect: Any, denied: list[LogEvent]
) -> None:
    with WithUsers() as server:
        if right.startswith("~"):
            server.command("ACL", "SETUSER", "elemta", "resetkeys", "~other:*")
        else:
            server.command("ACL", "SETUSER", "elemta", f"-{right[1:]}")
        address = f"valkey://elemta:PASSWORD@{server.address}/2"
        valkey = await connect(address, up=False, prefix=PREFIX, deadline=1.0)
        await use_until(denied, right, valkey)
        await assert_named(denied, right)


@ensureDeferred
async def test_a_cluster_that_does_not_tell_its_slots_names_the_right(
    connect: Any, denied: list[LogEvent]
) -> None:
    with WithUsers(cluster_enabled="yes") as server:
        server.command("CLUSTER", "ADDSLOTSRANGE", 0, 16383)
        server.command("ACL", "SETUSER", "elemta", "-cluster|slots")
        valkey = await connect(f"valkey+cluster://elemta:PASSWORD@{server.address}", up=False)
        await assert_named(denied, "+cluster|slots")
        await until(lambda: "+cluster|slots" in valkey.trouble)


@ensureDeferred
async def test_a_slot_that_moves_is_followed_with_the_documented_rights_and_asking_is_named_without(
    connect: Any, denied: list[LogEvent]
) -> None:
    with WithUsers(cluster_enabled="yes") as old, WithUsers(cluster_enabled="yes") as new:
        slot = slot_of("elemta:ratelimit:k")
        for server in (old, new):
            server.command("CLUSTER", "RESET", "HARD")
        old.command("CLUSTER", "ADDSLOTSRANGE", 0, 16383)
        old.command("CLUSTER", "MEET", "127.0.0.1", new.port, new.cluster_port)
        names = [server.command("CLUSTER", "MYID") for server in (old, new)]
        await until(lambda: names[0] in new.command("CLUSTER", "NODES"))
        await until(lambda: b"cluster_state:ok" in new.command("CLUSTER", "INFO"))
        new.command("CLUSTER", "SETSLOT", slot, "IMPORTING", names[0])
        old.command("CLUSTER", "SETSLOT", slot, "MIGRATING", names[1])
        key = b"elemta:ratelimit:k"
        valkey = await connect(f"valkey+cluster://elemta:PASSWORD@{old.address}")

        async def asked() -> bool:
            return await valkey.command("GET", key, key=key) is None

        await eventually(asked)
        assert new.calls("asking") > 0
        assert denied == []
        for server in (old, new):
            server.command("ACL", "SETUSER", "elemta", "-asking")
        await failure_of(valkey.command("GET", key, key=key))
        await assert_named(denied, "+asking")


@pytest.mark.parametrize("right", OF_SENTINELS)
@ensureDeferred
async def test_a_right_that_sentinels_miss_is_named(right: str, connect: Any, denied: list[LogEvent]) -> None:
    with (
        ValkeyServer() as server,
        ValkeyServer("--sentinel", **{"sentinel monitor limits": f"127.0.0.1 {server.port} 1"}) as sentinel,
    ):
        rights = [f"+{name}" for name in OF_SENTINELS if name != right]
        sentinel.command("ACL", "SETUSER", "elemta", "on", ">pass", "-@all", *rights)
        login = "sentinel_username=elemta&sentinel_password=pass"
        valkey = await connect(f"valkey+sentinel://{sentinel.address}/limits?{login}", up=False)
        await assert_named(denied, f"+{right}")
        await until(lambda: f"+{right}" in valkey.trouble)


def test_a_channel_is_named_too() -> None:
    rights = Rights("", "elemta:[a]*", lambda: 0.0)
    assert rights.missing("NOPERM No permissions to access a channel") == "&*"
    assert rights.missing("NOPERM No permissions to access a key") == "~elemta:\\[a\\]\\**"
    assert rights.missing("ERR no such key") is None


@ensureDeferred
async def test_a_wrong_password_is_said_and_healed_without_a_restart(connect: Any) -> None:
    with ValkeyServer(requirepass="old") as server:
        valkey = await connect(server.url.replace(":old@", ":new@"), up=False)

        async def denied() -> bool:
            error = await failure_of(valkey.command("PING"))
            assert isinstance(error, ValkeyError)
            return error.kind is ValkeyFailure.DENIED

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
