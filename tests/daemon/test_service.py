"""The service in this process: a stop or a reload in the middle of something."""

from __future__ import annotations

import signal
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import pytest_twisted
from pytest_twisted import ensureDeferred
from twisted.internet import reactor
from twisted.internet.defer import Deferred
from twisted.internet.threads import deferToThread

from elemta.config import ListenerTLS, load
from elemta.daemon.admin_operations import admin_calls
from elemta.daemon.components import SharedResources, build_components
from elemta.daemon.daemon_service import DaemonState
from elemta.daemon.reload import ReloadReport
from elemta.daemon.service import Elemta
from elemta.errors import SpoolError
from elemta.runtime import Runtime
from elemta.spool import Spool

CONFIG = """
[server]
hostname = "mx.example.test"
shutdown_grace = "1s"
[domains]
local = ["example.test"]
[spool]
directory = "{spool}"
minimum_free = 0
[metrics]
endpoint = "tcp:0:interface=127.0.0.1"
[console]
endpoint = ""
{listeners}
"""
MX = '[[listener]]\nname = "mx"\nendpoint = "tcp:0:interface=127.0.0.1"\n'


class Reactor:
    """The reactor, but for its end, which is only noted."""

    def __init__(self) -> None:
        self.stopped = 0

    def stop(self) -> None:
        self.stopped += 1

    def __getattr__(self, name: str) -> Any:
        return getattr(reactor, name)


class Slow:
    """In place of ``Spool.open``: it waits until the test lets it, or fails as the test says."""

    def __init__(self) -> None:
        self.opening: Deferred[None] = Deferred()
        self.open = Spool.open

    async def __call__(self, *args: Any, **options: Any) -> Spool:
        await self.opening
        return await self.open(*args, **options)


@pytest.fixture
def recovery(monkeypatch: pytest.MonkeyPatch) -> Slow:
    """A recovery of the spool that takes as long as the test wants."""
    slow = Slow()
    monkeypatch.setattr("elemta.daemon.service.Spool.open", slow)
    return slow


@pytest.fixture
def service(tmp_path: Path) -> Iterator[Elemta]:
    before = signal.getsignal(signal.SIGHUP)
    service = make_service(tmp_path)
    yield service
    signal.signal(signal.SIGHUP, before)
    if service.state is not DaemonState.STOPPING:
        # Whatever failed: its threads must not keep the tests from ending.
        pytest_twisted.blockon(service.stopService())


def write_config(directory: Path, listeners: str = MX) -> Path:
    path = directory / "elemta.toml"
    path.write_text(CONFIG.format(spool=directory / "spool", listeners=listeners))
    return path


def make_service(directory: Path) -> Elemta:
    path = str(write_config(directory))
    config = load(path, {})
    the_reactor: Any = Reactor()
    shared = SharedResources.from_config(config, Runtime.of(the_reactor))
    return Elemta(
        shared=shared,
        components=build_components(config, shared),
        admin_calls=admin_calls,
        config_path=path,
        environ={},
    )


def start(service: Elemta) -> None:
    service.privilegedStartService()
    service.startService()


async def until_serving(service: Elemta) -> None:
    starting = service._starting
    assert starting is not None
    await starting
    assert service.state is DaemonState.SERVING


def fetch(service: Elemta, path: str) -> Deferred[int]:
    port = service.listeners.monitoring[0].address

    def ask() -> int:
        try:
            with urllib.request.urlopen(f"http://{port}{path}", timeout=5) as answer:
                return int(answer.status)
        except urllib.error.HTTPError as error:
            with error:
                return error.code

    return deferToThread(ask)


@ensureDeferred
async def test_during_a_long_recovery_the_daemon_is_alive_and_not_ready(
    service: Elemta, recovery: Slow
) -> None:
    start(service)
    assert await fetch(service, "/healthz") == 200
    assert await fetch(service, "/readyz") == 503
    assert await fetch(service, "/metrics") == 200
    recovery.opening.callback(None)
    await until_serving(service)
    assert await fetch(service, "/readyz") == 200


@ensureDeferred
async def test_who_is_told_to_stop_during_recovery_never_becomes_ready(
    service: Elemta, recovery: Slow
) -> None:
    start(service)
    stopping = service.stopService()
    recovery.opening.callback(None)
    await stopping
    assert service.state is DaemonState.STOPPING
    assert service.listeners.registry.closed_with is not None
    assert service.parts is None
    # Nothing of it is left: another one may have the spool.
    again = make_service(Path(service.config.spool.directory).parent)
    start(again)
    await until_serving(again)
    await again.stopService()


@ensureDeferred
async def test_a_recovery_that_fails_when_the_daemon_is_already_stopping_is_no_second_stop(
    service: Elemta, recovery: Slow, monkeypatch: pytest.MonkeyPatch
) -> None:
    exits: list[object] = []
    monkeypatch.setattr("elemta.daemon.daemon_service.atexit.register", lambda *call: exits.append(call))
    start(service)
    stopping = service.stopService()
    recovery.opening.errback(SpoolError("the disk is gone"))
    await stopping
    assert service.reactor.stopped == 0
    assert len(exits) == 1


@ensureDeferred
async def test_a_start_that_fails_stops_the_reactor_once(
    service: Elemta, recovery: Slow, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("elemta.daemon.daemon_service.atexit.register", lambda *call: None)
    start(service)
    recovery.opening.errback(SpoolError("the disk is gone"))
    assert service.reactor.stopped == 1


@ensureDeferred
async def test_a_reload_before_the_start_is_over_holds_once_it_is(service: Elemta, recovery: Slow) -> None:
    start(service)
    path = Path(service.config.source)
    path.write_text(path.read_text() + "[resources]\nmax_connections = 7\n")
    assert service.reload().faults == ()
    recovery.opening.callback(None)
    await until_serving(service)
    assert service.listeners.registry.max_connections == 7


@ensureDeferred
async def test_a_daemon_that_stops_is_not_reloaded(service: Elemta) -> None:
    start(service)
    await until_serving(service)
    before = service.components
    stopping = service.stopService()
    assert "stopping" in str(service.reload().faults[0])
    assert service.components is before
    await stopping


@ensureDeferred
async def test_a_listener_whose_endpoint_changed_stays_what_it_was_but_under_the_new_policies(
    service: Elemta, tmp_path: Path
) -> None:
    start(service)
    await until_serving(service)
    write_config(tmp_path, MX.replace("tcp:0", "tcp:2") + 'tls = "none"\n')
    for _ in range(2):  # also the second time the restart is still to be done
        assert service.reload() == ReloadReport(needs_restart=("listener",))
        factory = service.listeners.factories["mx"]
        assert factory.context is not None
        assert factory.context.listener.tls is ListenerTLS.STARTTLS
        assert factory.context.chain is service.components.chain
    write_config(tmp_path)
    assert service.reload() == ReloadReport()


@ensureDeferred
async def test_a_listener_that_is_no_longer_configured_gets_the_new_policies_until_the_restart(
    service: Elemta, tmp_path: Path
) -> None:
    start(service)
    await until_serving(service)
    write_config(tmp_path, MX.replace('"mx"', '"other"'))
    assert service.reload() == ReloadReport(needs_restart=("listener",))
    assert set(service.listeners.factories) == {"mx"}
    context = service.listeners.factories["mx"].context
    assert context is not None
    assert context.chain is service.components.chain


@ensureDeferred
async def test_a_listener_with_the_same_endpoint_takes_what_changed(service: Elemta, tmp_path: Path) -> None:
    start(service)
    await until_serving(service)
    write_config(tmp_path, MX + 'tls = "none"\n')
    assert service.reload() == ReloadReport()
    context = service.listeners.factories["mx"].context
    assert context is not None
    assert context.listener.tls is ListenerTLS.NONE


@ensureDeferred
async def test_a_status_that_the_spool_can_not_give_does_not_end_the_status(
    service: Elemta, monkeypatch: pytest.MonkeyPatch
) -> None:
    start(service)
    await until_serving(service)
    assert service.parts is not None

    async def fails(**_: object) -> None:
        raise SpoolError("the disk is gone")

    monkeypatch.setattr(service.parts.spool, "stats", fails)
    await service._update_status()
