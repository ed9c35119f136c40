"""Overrides that nodes share, on a real Valkey that is there, away or empty."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
import pytest_twisted
from pytest_twisted import ensureDeferred
from twisted.internet import reactor
from twisted.internet.task import Clock

from elemta.config.valkey_url import parse_valkey_url
from elemta.errors import StoreUnavailable, TooManyOverrides
from elemta.limits import override_registry
from elemta.limits.override_registry import ClusterOverrides, LocalOverrides
from elemta.limits.overrides import Override
from elemta.limits.version_watch import LOOK_SECONDS
from elemta.runtime import Runtime
from elemta.valkey.client import Valkey
from tests.support.valkey import ValkeyServer
from tests.support.waiting import until

PREFIX = "t:"
ONE = Override("ip", "192.0.2.1", ("5/1m",), 0.0, "anna", "a customer's migration")
TWO = Override("ip", "192.0.2.2", (), 0.0, "bert", "")


class Fleet:
    """Nodes that look when the test says so."""

    def __init__(self, server: ValkeyServer) -> None:
        self.server = server
        self.clock = Clock()
        self.valkeys: list[Valkey] = []
        self.nodes: list[ClusterOverrides] = []

    async def add(self) -> ClusterOverrides:
        runtime = Runtime.of(reactor)
        valkey = Valkey(runtime, parse_valkey_url(self.server.unix_url), name="node", deadline=20.0)
        self.valkeys.append(valkey)
        valkey.start()
        await until(lambda: valkey.up)
        node = ClusterOverrides(Runtime.of(self.clock), valkey, PREFIX)
        self.nodes.append(node)
        node.start()
        await self.quiet()
        return node

    async def look(self) -> None:
        self.clock.advance(LOOK_SECONDS)
        await self.quiet()

    async def quiet(self) -> None:
        await until(lambda: all(node._watch.under_way is None for node in self.nodes))


@pytest_twisted.async_yield_fixture
async def fleet(empty_server: ValkeyServer) -> AsyncIterator[Fleet]:
    fleet = Fleet(empty_server)
    yield fleet
    for node in fleet.nodes:
        node.stop()
    for valkey in fleet.valkeys:
        await valkey.stop()


def known(node: ClusterOverrides) -> list[str]:
    return [each.key for each in node.overrides.in_force()]


@ensureDeferred
async def test_every_node_knows_of_a_change_at_its_next_look(fleet: Fleet) -> None:
    one, two = await fleet.add(), await fleet.add()
    made = await one.put(ONE, 60)
    assert (made.author, made.note, made.rates) == ("anna", "a customer's migration", ("5/1m",))
    assert known(one) == ["ip:192.0.2.1"]
    assert known(two) == []
    await fleet.look()
    assert two.overrides.in_force() == one.overrides.in_force()
    await two.put(TWO, 60)
    assert await two.remove("ip", "192.0.2.1")
    assert not await two.remove("ip", "192.0.2.1")
    await fleet.look()
    assert known(one) == known(two) == ["ip:192.0.2.2"]
    third = await fleet.add()
    assert known(third) == ["ip:192.0.2.2"]


@ensureDeferred
async def test_a_look_at_what_has_not_changed_is_one_small_question(fleet: Fleet) -> None:
    one = await fleet.add()
    await one.put(ONE, 60)
    before = fleet.server.calls("evalsha")
    for _ in range(5):
        await fleet.look()
    assert fleet.server.calls("evalsha") == before


@ensureDeferred
async def test_an_override_ends_by_itself_on_every_node_and_in_valkey(fleet: Fleet) -> None:
    one, two = await fleet.add(), await fleet.add()
    await one.put(ONE, 30)
    await one.put(TWO, 90)
    await fleet.look()
    assert 88_000 < fleet.server.command("PTTL", f"{PREFIX}override") <= 90_000
    assert fleet.server.command("PTTL", f"{PREFIX}override:version") > 80_000_000
    fleet.clock.advance(30)
    assert known(one) == known(two) == ["ip:192.0.2.2"]
    # A node's time of day that is set changes nothing: Valkey says until when, a steady clock counts.
    fleet.clock.advance(60)
    assert known(one) == known(two) == []


@ensureDeferred
async def test_while_valkey_is_away_the_last_known_hold_and_no_other_can_be_made(fleet: Fleet) -> None:
    one = await fleet.add()
    await one.put(ONE, 600)
    fleet.server.kill()
    await until(lambda: not fleet.valkeys[0].up)
    try:
        fleet.clock.advance(60)
        assert known(one) == ["ip:192.0.2.1"]
        with pytest.raises(StoreUnavailable):
            await one.put(TWO, 60)
        with pytest.raises(StoreUnavailable):
            await one.remove("ip", "192.0.2.1")
        assert known(one) == ["ip:192.0.2.1"]
    finally:
        fleet.server.start()
    await until(lambda: fleet.valkeys[0].up)
    await fleet.quiet()
    # It came back empty, and has them again.
    assert known(one) == ["ip:192.0.2.1"]
    assert known(await fleet.add()) == ["ip:192.0.2.1"]


@ensureDeferred
async def test_a_change_before_the_first_look_at_an_empty_valkey_loses_no_other(fleet: Fleet) -> None:
    one = await fleet.add()
    await one.put(ONE, 600)
    fleet.server.command("FLUSHALL")
    await one.put(TWO, 600)
    assert known(one) == ["ip:192.0.2.1", "ip:192.0.2.2"]
    fleet.server.command("FLUSHALL")
    assert await one.remove("ip", "192.0.2.1")
    await fleet.look()
    assert known(one) == known(await fleet.add()) == ["ip:192.0.2.2"]


@ensureDeferred
async def test_what_was_removed_while_a_node_was_away_does_not_come_back_with_it(fleet: Fleet) -> None:
    one, two = await fleet.add(), await fleet.add()
    await one.put(ONE, 600)
    await fleet.look()
    assert await one.remove("ip", "192.0.2.1")
    assert known(two) == ["ip:192.0.2.1"]
    connected: list[bool] = []
    fleet.valkeys[1].on_change(connected.append)
    fleet.server.command("CLIENT", "KILL", "TYPE", "normal")
    await until(lambda: connected[-1:] == [True])
    await fleet.look()
    assert known(two) == known(one) == []


@ensureDeferred
async def test_what_another_version_wrote_is_left_alone(fleet: Fleet) -> None:
    one = await fleet.add()
    await one.put(ONE, 60)
    far = "99999999999999"
    for number, value in enumerate(
        ["", "x", f"{far} ", f"{far} null", f'{far} {{"rates": 7}}', f"{far} \xff"]
    ):
        fleet.server.command("HSET", f"{PREFIX}override", f"strange{number}", value)
    fleet.server.command("INCR", f"{PREFIX}override:version")
    await fleet.look()
    assert known(one) == ["ip:192.0.2.1"]


@ensureDeferred
async def test_there_are_only_so_many(fleet: Fleet, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(override_registry, "MAX_OVERRIDES", 1)
    for node in (await fleet.add(), LocalOverrides(Runtime.of(fleet.clock))):
        await node.put(ONE, 60)
        with pytest.raises(TooManyOverrides):
            await node.put(TWO, 60)
        # In place of itself it is no other.
        await node.put(ONE, 90)
        assert [each.key for each in node.overrides.in_force()] == ["ip:192.0.2.1"]


@ensureDeferred
async def test_a_node_without_valkey_keeps_its_own() -> None:
    clock = Clock()
    node = LocalOverrides(Runtime.of(clock))
    node.start()
    await node.put(ONE, 60)
    await node.put(TWO, 30)
    clock.pump([1.0] * 30)
    assert [each.key for each in node.overrides.in_force()] == ["ip:192.0.2.1"]
    assert len(node.overrides) == 1
    assert await node.remove("ip", "192.0.2.1")
    assert not await node.remove("ip", "192.0.2.1")
    node.stop()
