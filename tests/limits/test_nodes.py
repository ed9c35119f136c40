"""The registry of nodes, on a real Valkey: which live, what each says of itself, and resets for all."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator

import pytest
import pytest_twisted
from pytest_twisted import ensureDeferred
from twisted.internet import reactor
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.logger import LogEvent, globalLogPublisher

from elemta.config.valkey_url import parse_valkey_url
from elemta.errors import StoreUnavailable
from elemta.limits.nodes import HEARTBEAT, MAX_PUBLISHED, TIME_TO_LIVE, About, Nodes, NodeState
from elemta.limits.past_nodes import KEPT_SECONDS
from elemta.limits.refusals import RememberedRefusal
from elemta.runtime import Runtime
from elemta.valkey.client import Valkey
from tests.support.valkey import ValkeyServer
from tests.support.waiting import failure_of, until

PREFIX = "t:"


class Fleet:
    """Nodes whose hearts beat when the test says so."""

    def __init__(self, server: ValkeyServer) -> None:
        self.server = server
        self.clock = Clock()
        self.valkeys: list[Valkey] = []
        self.nodes: list[Nodes] = []
        self.states: dict[str, NodeState] = {}
        self.heard: list[tuple[str, str, str]] = []

    async def add(self, node_id: str, version: str = "1.0") -> Nodes:
        valkey = Valkey(
            Runtime.of(reactor), parse_valkey_url(self.server.unix_url), name=node_id, deadline=20.0
        )
        self.valkeys.append(valkey)
        valkey.start()
        await until(lambda: valkey.up)
        nodes = Nodes(
            Runtime.of(self.clock),
            valkey,
            prefix=PREFIX,
            node_id=node_id,
            about=About(version, f"{node_id}.example", "tcp:25", 1000.5),
            state=lambda: self.states.get(node_id, NodeState(mode="cluster")),
        )
        nodes.on_reset(lambda limit, identity: self.heard.append((node_id, limit, identity)))
        self.nodes.append(nodes)
        nodes.start()
        await self.quiet()
        return nodes

    async def beat(self) -> None:
        self.clock.advance(HEARTBEAT)
        await self.quiet()

    async def quiet(self) -> None:
        await until(lambda: all(nodes._heartbeat_due is None for nodes in self.nodes))

    def age(self, member_of: str, seconds: float) -> None:
        """Let the last sign of life of a node be that much older."""
        for member in self.server.command("ZRANGE", f"{PREFIX}nodes", 0, -1):
            if member.startswith(f"{member_of}/".encode()):
                micros = -int(seconds * 1_000_000)
                self.server.command("ZINCRBY", f"{PREFIX}nodes", micros, member)


@pytest_twisted.async_yield_fixture
async def fleet(empty_server: ValkeyServer) -> AsyncIterator[Fleet]:
    fleet = Fleet(empty_server)
    yield fleet
    for nodes in fleet.nodes:
        await nodes.stop()
    for valkey in fleet.valkeys:
        await valkey.stop()


@pytest.fixture
def errors() -> Iterator[Callable[[str], list[LogEvent]]]:
    seen: list[LogEvent] = []
    globalLogPublisher.addObserver(seen.append)
    yield lambda name: [event for event in seen if event.get("event") == name]
    globalLogPublisher.removeObserver(seen.append)


@ensureDeferred
async def test_every_node_knows_how_many_live(fleet: Fleet) -> None:
    one = await fleet.add("one")
    assert one.live == 1
    two, _three = await fleet.add("two"), await fleet.add("three")
    assert two.live == 2
    await fleet.beat()
    assert [nodes.live for nodes in fleet.nodes] == [3, 3, 3]


@ensureDeferred
async def test_a_node_that_is_silent_for_too_long_counts_no_more(fleet: Fleet) -> None:
    one, two = await fleet.add("one"), await fleet.add("two")
    two._heartbeats.stop()
    fleet.age("two", TIME_TO_LIVE - 5)
    await fleet.beat()
    assert one.live == 2
    fleet.age("two", 6)
    await fleet.beat()
    assert one.live == 1
    assert [node.node_id for node in await one.list()] == ["one"]


@ensureDeferred
async def test_a_node_that_leaves_is_gone_at_once(fleet: Fleet) -> None:
    one, two = await fleet.add("one"), await fleet.add("two")
    await two.stop()
    assert [node.node_id for node in await one.list()] == ["one"]
    assert fleet.server.command("EXISTS", f"{PREFIX}node:two") == 0
    await fleet.beat()
    assert one.live == 1


@ensureDeferred
async def test_nodes_are_listed_with_what_they_say(fleet: Fleet) -> None:
    fleet.states["two"] = NodeState(
        7, 9, "local", (RememberedRefusal("ip", "2001:db8::/64", 30.0), RememberedRefusal("m", "a@b", 0.0))
    )
    one = await fleet.add("one", "1.0")
    await fleet.add("two", "2.0")
    first, second = await one.list()
    assert (first.node_id, first.this, second.node_id, second.this) == ("one", True, "two", False)
    assert second.about == About("2.0", "two.example", "tcp:25", 1000.5)
    assert (second.state.sessions, second.state.queue, second.state.mode) == (7, 9, "local")
    (refused,) = second.state.refused
    assert (refused.limit, refused.identity) == ("ip", "2001:db8::/64")
    assert 0 < refused.seconds <= 30
    assert 0 <= second.age < TIME_TO_LIVE


@ensureDeferred
async def test_a_node_tells_of_so_many_refusals_and_no_more(fleet: Fleet) -> None:
    fleet.states["one"] = NodeState(
        refused=tuple(RememberedRefusal("ip", str(number), 60.0) for number in range(MAX_PUBLISHED * 3))
    )
    one = await fleet.add("one")
    (node,) = await one.list()
    assert len(node.state.refused) == MAX_PUBLISHED


@ensureDeferred
async def test_a_node_of_another_version_is_listed_with_what_it_says(fleet: Fleet) -> None:
    one = await fleet.add("one")
    now = int(fleet.server.command("TIME")[0]) * 1_000_000
    fleet.server.command("ZADD", f"{PREFIX}nodes", now, "old/x")
    fleet.server.command("HSET", f"{PREFIX}node:old", "version", "0.1")
    listed = await one.list()
    assert [(node.node_id, node.about.version) for node in listed] == [("old", "0.1"), ("one", "1.0")]


@ensureDeferred
async def test_everything_a_node_writes_ends_with_it(fleet: Fleet) -> None:
    one = await fleet.add("one")
    await one.announce_reset("ip", "192.0.2.1")
    keys = sorted(fleet.server.command("KEYS", "*"))
    assert keys == [b"t:node:one", b"t:nodepast:one", b"t:nodes", b"t:nodes_past", b"t:resets"]
    week = int(KEPT_SECONDS * 1000)
    for key in keys:
        left = fleet.server.command("PTTL", key)
        assert 0 < left <= (week if b"past" in key else 60_000)


@ensureDeferred
async def test_a_reset_reaches_all_others_once_and_is_not_news_to_who_comes_later(fleet: Fleet) -> None:
    one, two, three = [await fleet.add(name) for name in ("one", "two", "three")]
    await one.announce_reset("ip", "2001:db8::/64")
    await two.announce_reset("m", "jane:doe@example.org")
    four = await fleet.add("four")
    for _ in range(3):
        await fleet.beat()
    assert sorted(fleet.heard) == [
        ("one", "m", "jane:doe@example.org"),
        ("three", "ip", "2001:db8::/64"),
        ("three", "m", "jane:doe@example.org"),
        ("two", "ip", "2001:db8::/64"),
    ]
    fleet.heard.clear()
    await four.announce_reset("m", "jane:doe@example.org")
    await fleet.beat()
    assert sorted(name for name, _, _ in fleet.heard) == ["one", "three", "two"]
    assert three.live == 4


@ensureDeferred
async def test_without_valkey_a_node_remembers_how_many_there_were(
    fleet: Fleet, errors: Callable[[str], list[LogEvent]]
) -> None:
    one, _two = await fleet.add("one"), await fleet.add("two")
    await fleet.beat()
    fleet.server.kill()
    try:
        await until(lambda: not any(valkey.up for valkey in fleet.valkeys))
        for _ in range(5):
            await fleet.beat()
        assert one.live == 2
        assert isinstance(await failure_of(Deferred.fromCoroutine(one.list())), StoreUnavailable)
        assert isinstance(await failure_of(one.announce_reset("m", "x")), StoreUnavailable)
        await one.stop()
    finally:
        fleet.server.start()
    await until(lambda: all(valkey.up for valkey in fleet.valkeys))
    await fleet.quiet()
    # A node that is connected again says so at once, without being asked to.
    assert fleet.server.command("EXISTS", f"{PREFIX}node:two") == 1
    assert errors("nodes.internal_error") == []
    # It knows no other node yet, and may be gone again before it does.
    two = fleet.nodes[1]
    assert two.live == 2
    for _ in range(4):
        await fleet.beat()
    assert two.live == 1


@ensureDeferred
async def test_a_second_daemon_with_the_same_name_is_complained_about(
    fleet: Fleet, errors: Callable[[str], list[LogEvent]]
) -> None:
    one = await fleet.add("same")
    # That there was one before is nothing special: it was restarted.
    assert errors("nodes.duplicate_found") == []
    await fleet.add("same")
    for _ in range(5):
        await fleet.beat()
    told = errors("nodes.duplicate_found")
    assert 1 <= len(told) <= 2
    assert told[0]["name"] == "same"
    # Each takes its own share all the same.
    assert one.live == 2


@ensureDeferred
async def test_when_the_primarys_clock_is_behind_resets_are_still_heard(fleet: Fleet) -> None:
    one, _two = await fleet.add("one"), await fleet.add("two")
    for nodes in fleet.nodes:
        nodes._heard_until = str(int(nodes._heard_until or 0) + 3_600_000_000)
    await fleet.beat()
    await one.announce_reset("m", "x")
    await fleet.beat()
    assert fleet.heard == [("two", "m", "x")]


@ensureDeferred
async def test_a_node_that_writes_in_another_way_hides_neither_itself_nor_others(fleet: Fleet) -> None:
    one, _ = await fleet.add("mx1"), await fleet.add("mx2")
    strange = ("sessions", "many", "seen", "inf", "started_at", "", "refused", '{"ip": 1}')
    fleet.server.command("HSET", f"{PREFIX}node:mx2", *strange)
    listed = {node.node_id: node for node in await one.list()}
    assert set(listed) == {"mx1", "mx2"}
    assert listed["mx2"].state.sessions == 0
    assert listed["mx2"].state.refused == ()


def _silence(fleet: Fleet, node_id: str) -> None:
    """Let a node die: its heart stops, and its last sign of life is too old."""
    for nodes in fleet.nodes:
        if nodes.node_id == node_id:
            nodes._heartbeats.stop()
    fleet.age(node_id, TIME_TO_LIVE + 1)


@ensureDeferred
async def test_a_node_that_dies_is_logged_once_by_each_other_and_listed_with_what_it_held(
    fleet: Fleet, errors: Callable[[str], list[LogEvent]]
) -> None:
    fleet.states["two"] = NodeState(sessions=7, queue=9, mode="cluster", limits_version=4)
    one, _two, _three = [await fleet.add(name) for name in ("one", "two", "three")]
    await fleet.beat()
    assert errors("nodes.lost") == []
    assert sorted(event["name"] for event in errors("nodes.joined")) == ["three", "three", "two"]
    _silence(fleet, "two")
    for _ in range(3):
        await fleet.beat()
    told = errors("nodes.lost")
    assert [(event["name"], event["queued"], event["sessions"]) for event in told] == [("two", 9, 7)] * 2
    live = [node.node_id for node in await one.list()]
    assert live == ["one", "three"]
    (gone,) = await one.list_gone(live)
    assert (gone.node_id, gone.gone, gone.left) == ("two", True, False)
    assert (gone.state.sessions, gone.state.queue, gone.state.limits_version) == (7, 9, 4)
    assert gone.about.version == "1.0"
    assert gone.age >= 0
    # It comes back, as another process.
    await fleet.add("two")
    await fleet.beat()
    assert [event["name"] for event in errors("nodes.returned")] == ["two", "two"]
    assert await one.list_gone([node.node_id for node in await one.list()]) == ()
    assert len(errors("nodes.lost")) == 2


@ensureDeferred
async def test_a_node_that_stops_in_order_has_left(
    fleet: Fleet, errors: Callable[[str], list[LogEvent]]
) -> None:
    fleet.states["two"] = NodeState(queue=2, draining=True)
    one, two = await fleet.add("one"), await fleet.add("two")
    await fleet.beat()
    assert [node.state.draining for node in await one.list()] == [False, True]
    await two.stop()
    await fleet.beat()
    assert [event["name"] for event in errors("nodes.left")] == ["two"]
    assert errors("nodes.lost") == []
    (gone,) = await one.list_gone(["one"])
    assert (gone.node_id, gone.left, gone.state.queue) == ("two", True, 2)


@ensureDeferred
async def test_a_valkey_that_lost_its_memory_makes_no_node_gone(
    fleet: Fleet, errors: Callable[[str], list[LogEvent]]
) -> None:
    one, _two = await fleet.add("one"), await fleet.add("two")
    await fleet.beat()
    fleet.server.kill()
    await until(lambda: not any(valkey.up for valkey in fleet.valkeys))
    fleet.server.start()
    await until(lambda: all(valkey.up for valkey in fleet.valkeys))
    await fleet.quiet()
    for _ in range(5):
        await fleet.beat()
    assert errors("nodes.lost") == []
    assert errors("nodes.joined") == [event for event in errors("nodes.joined") if event["name"] == "two"][:1]
    assert await one.list_gone(["one", "two"]) == ()
