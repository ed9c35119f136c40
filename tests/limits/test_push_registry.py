"""Versions of pushed limits on one node: taken one after the other, whatever comes meanwhile."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_twisted
from pytest_twisted import ensureDeferred
from twisted.internet import defer, reactor
from twisted.internet.task import Clock

from elemta.config.valkey_url import parse_valkey_url
from elemta.errors import ConfigError, Fault, PushedMeanwhile
from elemta.limits.push_registry import RECORD, KeptVersion, PushRegistry
from elemta.limits.pushed_limits import PushedLimits
from elemta.limits.version_watch import LOOK_SECONDS
from elemta.runtime import Runtime
from elemta.spool.record_file import RecordFile
from elemta.valkey.client import Valkey
from tests.support.runtime import simulated_runtime
from tests.support.valkey import ValkeyServer
from tests.support.waiting import eventually, until

PREFIX = "t:"


def limits(name: str) -> PushedLimits:
    return PushedLimits(0, f'[[limit]]\nname = "{name}"\n', "anna", "a test")


class Node:
    """A node that takes a version, or refuses it, when the test says so."""

    def __init__(self, valkey: Valkey, place: Path) -> None:
        place.mkdir()
        self.clock = Clock()
        self.kept = KeptVersion(RecordFile(place, RECORD))
        self.registry = PushRegistry(simulated_runtime(self.clock), valkey, PREFIX, self.kept)
        self.under_way: list[defer.Deferred[None]] = []
        self.tried: list[int] = []
        self.registry.start(self._apply)

    async def _apply(self) -> None:
        self.tried.append(self.registry.version)
        waiting: defer.Deferred[None] = defer.Deferred()
        self.under_way.append(waiting)
        await waiting

    async def take(self) -> None:
        await until(lambda: self.under_way)
        self.under_way.pop(0).callback(None)

    async def refuse(self) -> None:
        await until(lambda: self.under_way)
        self.under_way.pop(0).errback(ConfigError([Fault("pushed", "limit[1].key", "is unknown")]))

    def look(self) -> None:
        self.clock.advance(LOOK_SECONDS)

    async def quiet(self) -> None:
        await until(lambda: self.registry._watch.under_way is None)


class Nodes:
    def __init__(self, server: ValkeyServer, place: Path) -> None:
        self._server = server
        self._place = place
        self.all: list[Node] = []
        self.valkeys: list[Valkey] = []

    async def add(self) -> Node:
        valkey = Valkey(
            Runtime.of(reactor), parse_valkey_url(self._server.unix_url), name="node", deadline=20.0
        )
        self.valkeys.append(valkey)
        valkey.start()
        await until(lambda: valkey.up)
        node = Node(valkey, self._place / str(len(self.all)))
        self.all.append(node)
        await node.quiet()
        return node


@pytest_twisted.async_yield_fixture
async def nodes(empty_server: ValkeyServer, tmp_path: Path) -> AsyncIterator[Nodes]:
    made = Nodes(empty_server, tmp_path)
    yield made
    for node in made.all:
        node.registry.stop()
    for valkey in made.valkeys:
        await valkey.stop()


async def push(node: Node, name: str, base: int) -> None:
    pushing = defer.ensureDeferred(node.registry.push(limits(name), base))
    await node.take()
    await pushing


async def both_at_one(nodes: Nodes) -> tuple[Node, Node]:
    """Two nodes that have taken version 1."""
    node, other = await nodes.add(), await nodes.add()
    await push(node, "one", 0)
    other.look()
    await other.take()
    return node, other


async def two_under_way(nodes: Nodes) -> tuple[Node, defer.Deferred[PushedLimits]]:
    """A node that sees version 2 and takes it, while an operator pushes version 3 through it."""
    node, other = await both_at_one(nodes)
    await push(other, "two", 1)
    node.look()
    await until(lambda: node.under_way)
    third = defer.ensureDeferred(node.registry.push(limits("three"), 2))

    async def pushed() -> bool:
        return await node.registry.current() == 3

    await eventually(pushed)
    return node, third


@ensureDeferred
async def test_a_version_that_is_refused_does_not_undo_one_that_came_meanwhile(nodes: Nodes) -> None:
    """The second waits for the first; what it gives way to is what held before the first."""
    node, third = await two_under_way(nodes)
    await node.refuse()
    await node.take()
    assert (await third).version == 3
    assert node.tried == [1, 2, 3]
    assert node.registry.version == 3
    node.look()
    await node.quiet()
    assert node.registry.version == 3
    await until(lambda: (kept := node.kept.read()) is not None and kept.version == 3)


@ensureDeferred
async def test_both_of_two_versions_that_are_refused_leave_what_held(nodes: Nodes) -> None:
    node, third = await two_under_way(nodes)
    await node.refuse()
    await node.refuse()
    await third
    assert node.registry.version == 1
    # It is not tried again each second.
    for _ in range(3):
        node.look()
        await node.quiet()
    assert node.tried == [1, 2, 3]


@ensureDeferred
async def test_what_was_refused_is_tried_again_under_another_configuration_and_not_before(
    nodes: Nodes,
) -> None:
    node, other = await both_at_one(nodes)
    await push(other, "two", 1)
    node.look()
    await node.refuse()
    await node.quiet()
    node.look()
    await node.quiet()
    assert (node.tried, node.registry.version) == ([1, 2], 1)
    node.registry.try_again()
    node.look()
    await node.take()
    await node.quiet()
    assert (node.tried, node.registry.version) == ([1, 2, 2], 2)


@ensureDeferred
async def test_one_of_two_operators_wins_and_the_other_changes_nothing(nodes: Nodes) -> None:
    node, other = await both_at_one(nodes)
    pushes = [
        defer.ensureDeferred(each.registry.push(limits(name), 1))
        for each, name in ((node, "left"), (other, "right"), (node, "again"), (other, "late"))
    ]
    won, lost = [], []
    for each, one in zip((node, other, node, other), pushes, strict=True):
        await until(lambda one=one, each=each: one.called or each.under_way)
        if not one.called:
            await each.take()
        try:
            won.append(await one)
        except PushedMeanwhile as error:
            lost.append(error)
    assert len(won) == 1
    assert len(lost) == 3
    assert await node.registry.current() == 2
    history = await other.registry.history()
    assert [each.version for each in history] == [2, 1]
    assert history[0].toml == won[0].toml


@pytest.mark.parametrize(
    "text",
    [
        "",
        "no json",
        "[1]",
        '{"toml": 1}',
        '{"toml": "", "made_at": "soon"}',
        '{"toml": null, "made_at": {}}',
        "[" * 100_000,
        '{"toml": null, "made_at": 1' + "0" * 400 + "}",
        '{"toml": "' + "x" * 1_000_000 + '"}',
    ],
)
@ensureDeferred
async def test_what_another_program_wrote_in_valkey_is_refused_once(
    nodes: Nodes, empty_server: ValkeyServer, text: str
) -> None:
    node = await nodes.add()
    await push(node, "one", 0)
    empty_server.command("HSET", f"{PREFIX}pushed", 2, text)
    empty_server.command("SET", f"{PREFIX}pushed:version", 2)
    node.look()
    await node.refuse()
    await node.quiet()
    for _ in range(3):
        node.look()
        await node.quiet()
    assert node.tried == [1, 2]
    assert node.registry.version == 1
