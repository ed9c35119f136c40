"""Policies with a life in the real service: a port is handed over, and connections do not add up."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import pytest_twisted
from pytest_twisted import ensureDeferred
from twisted.internet import reactor
from twisted.internet.defer import Deferred
from twisted.internet.protocol import Factory, Protocol
from zope.interface import implementer

from elemta.config import load
from elemta.daemon.admin_operations import admin_calls
from elemta.daemon.components import SharedResources, build_components
from elemta.daemon.daemon_service import DaemonState
from elemta.daemon.service import Elemta
from elemta.deferred_value import value_of
from elemta.policy import CONTINUE, ILifecycle, IPolicyPlugin, IRcptPolicy, NoOptions, Services, discovery
from elemta.runtime import Runtime
from tests.daemon.test_service import Reactor
from tests.support.waiting import until

CONFIG = """
[server]
hostname = "mx.example.test"
shutdown_grace = "1s"
[[listener]]
name = "mx"
endpoint = "tcp:0:interface=127.0.0.1"
[domains]
local = ["example.test"]
[policies]
chain = ["listening", "relay"]
[policy.listening]
timeout = "2s"
[spool]
directory = "{spool}"
minimum_free = 0
[metrics]
endpoint = ""
[console]
endpoint = ""
"""


class Backend(Protocol):
    def connectionMade(self) -> None:
        self.factory.open.append(self)  # type: ignore[union-attr]

    def connectionLost(self, reason: Any = None) -> None:
        self.factory.open.remove(self)  # type: ignore[union-attr]


@implementer(IRcptPolicy, ILifecycle)
class Listening:
    """Listens at one port, and has one connection to a backend."""

    def __init__(self, services: Services, world: World) -> None:
        self.services, self.world = services, world
        self.port: Any = None
        self.stream: Any = None
        world.built.append(self)

    async def start(self, predecessor: Any) -> None:
        if self.world.fail_start:
            raise OSError("Address already in use")
        self.services.log.info("starting")
        if predecessor is not None and predecessor.port is not None:
            self.port, predecessor.port = predecessor.port, None
            self.stream, predecessor.stream = predecessor.stream, None
            return
        self.port = reactor.listenTCP(self.world.number, Factory.forProtocol(Protocol), interface="127.0.0.1")  # type: ignore[attr-defined]
        self.world.number = self.port.getHost().port
        self.stream = await self.services.connect(self.world.endpoint)

    async def stop(self) -> None:
        self.world.stopped += 1
        if self.port is not None:
            await self.port.stopListening()
            await self.stream.close()

    def rcpt(self, session: Any, transaction: Any, recipient: Any) -> Any:
        return CONTINUE


@implementer(IRcptPolicy)
class Careless:
    """Opens a connection at its first question and never closes it."""

    def __init__(self, services: Services, world: World) -> None:
        self.services, self.world = services, world
        world.built.append(self)

    async def rcpt(self, session: Any, transaction: Any, recipient: Any) -> Any:
        await self.services.connect(self.world.endpoint)
        return CONTINUE


class World:
    def __init__(self, directory: Path) -> None:
        self.number = 0
        self.fail_start = False
        self.stopped = 0
        self.kind: Any = Listening
        self.built: list[Any] = []
        self.factory: Any = Factory.forProtocol(Backend)
        self.factory.open = []
        self.endpoint = f"unix:{directory / 'b'}"
        self.backend = reactor.listenUNIX(str(directory / "b"), self.factory)  # type: ignore[attr-defined]
        world = self

        @implementer(IPolicyPlugin)
        class Plugin:
            name = "listening"
            options = NoOptions

            def build(self, options: Any, services: Services) -> Any:
                return world.kind(services, world)

        self.plugin = Plugin()


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    world = World(tmp_path)
    found = discovery._twisted_plugins

    def plugins() -> Iterator[Any]:
        yield from found()
        yield discovery.FoundPlugin("listening", world.plugin, "this test")

    monkeypatch.setattr(discovery, "_twisted_plugins", plugins)
    yield world
    pytest_twisted.blockon(world.backend.stopListening())


@pytest.fixture
def service(tmp_path: Path, world: World) -> Iterator[Elemta]:
    before = signal.getsignal(signal.SIGHUP)
    path = tmp_path / "elemta.toml"
    path.write_text(CONFIG.format(spool=tmp_path / "spool"))
    config = load(str(path), {})
    the_reactor: Any = Reactor()
    shared = SharedResources.from_config(config, Runtime.of(the_reactor))
    service = Elemta(
        shared=shared,
        components=build_components(config, shared),
        admin_calls=admin_calls,
        config_path=str(path),
        environ={},
    )
    yield service
    signal.signal(signal.SIGHUP, before)
    if service.state is not DaemonState.STOPPING:
        pytest_twisted.blockon(service.stopService())


async def serve(service: Elemta) -> None:
    service.privilegedStartService()
    service.startService()
    assert service._starting is not None
    await service._starting
    assert service.state is DaemonState.SERVING


@ensureDeferred
async def test_six_reloads_leave_as_many_connections_open_as_one_and_hand_the_port_over(
    service: Elemta, world: World
) -> None:
    await serve(service)
    number = world.number
    await until(lambda: len(world.factory.open) == 1)
    for _ in range(6):
        report = await value_of(service.reload())
        assert not report.faults
    await until(lambda: world.stopped == 6)
    assert len(world.factory.open) == 1
    assert world.built[-1].port.getHost().port == number
    assert [policy.port is not None for policy in world.built] == [False] * 6 + [True]
    await service.stopService()
    assert world.stopped == 7
    await until(lambda: not world.factory.open)


@ensureDeferred
async def test_reloads_under_way_at_the_same_time_come_one_after_the_other(
    service: Elemta, world: World
) -> None:
    await serve(service)
    for report in [service.reload() for _ in range(6)]:
        assert not (await value_of(report)).faults
    await until(lambda: world.stopped == 6)
    assert service.components.chain.policies[0].policy is world.built[-1]
    await until(lambda: len(world.factory.open) == 1)


@ensureDeferred
async def test_what_a_policy_leaves_open_is_closed_after_its_last_session(
    service: Elemta, world: World
) -> None:
    world.kind = Careless
    service.components = build_components(service.config, service.shared)
    await serve(service)
    for _ in range(6):
        await world.built[-1].rcpt(None, None, None)
        await value_of(service.reload())
    await until(lambda: not world.factory.open)


@ensureDeferred
async def test_a_policy_that_can_not_start_keeps_the_daemon_from_nothing(
    service: Elemta, world: World
) -> None:
    world.fail_start = True
    await serve(service)
    assert service.why_not_ready() == ()
    world.fail_start = False
    await value_of(service.reload())
    assert world.built[-1].port is not None


@ensureDeferred
async def test_a_stop_while_a_reload_waits_for_a_start_ends_both(service: Elemta, world: World) -> None:
    await serve(service)
    waiting: Deferred[None] = Deferred()

    class Slow(Listening):
        def start(self, predecessor: Any) -> Any:
            return waiting

    world.kind = Slow
    reloading = Deferred.fromCoroutine(value_of(service.reload()))
    assert not reloading.called
    await service.stopService()
    report = await reloading
    assert [fault.problem for fault in report.faults] == ["the daemon is stopping"]
