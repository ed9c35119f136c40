"""A whole daemon in one thread: with a clock and a seed, two runs are the same to the last octet."""

from __future__ import annotations

import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from twisted.internet.address import IPv4Address
from twisted.internet.testing import StringTransport
from twisted.logger import globalLogPublisher

from elemta.config import load
from elemta.daemon.admin_operations import admin_calls
from elemta.daemon.components import SharedResources, build_components
from elemta.daemon.daemon_service import DaemonState
from elemta.daemon.service import Elemta
from elemta.metric_registry import MetricRegistry
from elemta.runtime.disk import Disk, FreeSpace
from tests.support.metrics import value
from tests.support.runtime import SimulatedReactor, simulated_runtime

CONFIG = """
[server]
hostname = "mx.example.test"
[spool]
directory = "{directory}/spool"
minimum_free = "0"
[domains]
local = ["example.test"]
[[listener]]
name = "mx"
role = "mx"
endpoint = "tcp:2525:interface=127.0.0.1"
[[route]]
domains = ["example.test"]
to = "maildir:{directory}/mail/{{local}}"
create_mailboxes = true
"""
COMMANDS = (
    b"EHLO client.example\r\n",
    b"MAIL FROM:<alice@example.org>\r\n",
    b"RCPT TO:<bob@example.test>\r\n",
    b"DATA\r\n",
    b"Subject: x\r\n\r\nbody\r\n.\r\n",
    b"QUIT\r\n",
)


class World:
    """A daemon below a directory, whose reactor is a clock and whose randomness is a seed."""

    def __init__(self, directory: Path, seed: int, disk: Disk | None = None) -> None:
        directory.mkdir()
        path = directory / "elemta.toml"
        path.write_text(CONFIG.format(directory=directory))
        config = load(str(path), {})
        self.directory = directory
        self.clock = SimulatedReactor()
        self.clock.advance(1_700_000_000.0)
        runtime = simulated_runtime(self.clock, seed=seed, disk=disk)
        shared = SharedResources.from_config(config, runtime)
        self.daemon = Elemta(
            shared=shared,
            components=build_components(config, shared),
            admin_calls=admin_calls,
            config_path=str(path),
            environ={},
        )

    def run(self, seconds: float) -> None:
        for _ in range(round(seconds * 10)):
            self.clock.advance(0.1)

    def start(self) -> None:
        self.daemon.privilegedStartService()
        self.daemon.startService()
        self.run(1)
        assert self.daemon.state is DaemonState.SERVING

    def stop(self) -> None:
        stopped: list[Any] = []
        self.daemon.stopService().addBoth(stopped.append)
        self.run(60)
        assert stopped == [None]

    def converse(self) -> bytes:
        """One session from the greeting to the end: what the daemon says."""
        factory = next(factory for port, factory, *_ in self.clock.tcpServers if port == 2525)
        protocol = factory.buildProtocol(IPv4Address("TCP", "192.0.2.1", 1025))
        transport = StringTransport(peerAddress=IPv4Address("TCP", "192.0.2.1", 1025))
        protocol.makeConnection(transport)
        self.run(1)
        for command in COMMANDS:
            protocol.dataReceived(command)
            self.run(1)
        said = transport.value()
        protocol.connectionLost()
        return said

    @property
    def mail(self) -> dict[str, bytes]:
        """The messages of the Maildir by the names of their files."""
        return {path.name: path.read_bytes() for path in (self.directory / "mail/bob/new").iterdir()}


def history(directory: Path, seed: int) -> tuple[bytes, dict[str, bytes], list[object]]:
    """What the client saw, what came of it, and what the log had in order."""
    events: list[object] = []

    def observe(event: dict[str, Any]) -> None:
        if event.get("event"):
            events.append((event["event"], event.get("queue_id"), event.get("session_id")))

    globalLogPublisher.addObserver(observe)
    try:
        world = World(directory, seed)
        world.start()
        said = world.converse()
        world.run(5)
        mail = world.mail
        world.stop()
    finally:
        globalLogPublisher.removeObserver(observe)
    return said, mail, events


def test_a_daemon_takes_and_delivers_a_message_without_a_thread_and_as_its_seed_says(tmp_path: Path) -> None:
    before = threading.active_count()
    one, two, other = (history(tmp_path / str(n), seed) for n, seed in enumerate((1, 1, 2)))
    assert b"; queued as " in one[0]
    assert len(one[1]) == 1
    assert one == two
    assert one[0] != other[0]
    assert threading.active_count() == before


def test_all_parts_of_a_daemon_count_in_its_registry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A part that is given no metrics makes a registry of its own, which nothing reads."""
    made: list[MetricRegistry] = []
    begin = MetricRegistry.__init__

    def begin_noted(self: MetricRegistry, node_id: str = "") -> None:
        made.append(self)
        begin(self, node_id)

    monkeypatch.setattr(MetricRegistry, "__init__", begin_noted)
    world = World(tmp_path / "world", 1)
    world.start()
    world.converse()
    world.run(5)
    world.stop()
    (registry,) = made
    assert value(registry, "elemta_messages_accepted_total", listener="mx") == 1
    assert value(registry, "elemta_spool_commit_messages_count") == 1
    route = f"maildir:{world.directory}/mail/{{local}}"
    assert value(registry, "elemta_delivery_attempts_total", route=route, outcome="delivered") == 1


class NoFiles(Disk):
    """A disk on which no file can be made any more."""

    def free_space(self, path: Path) -> FreeSpace:
        return replace(super().free_space(path), files=0)


def test_the_disk_of_a_daemon_is_what_its_runtime_has(tmp_path: Path) -> None:
    world = World(tmp_path / "full", 1, NoFiles())
    world.start()
    assert b"\r\n452 4.3.1 " in world.converse()
    world.stop()
