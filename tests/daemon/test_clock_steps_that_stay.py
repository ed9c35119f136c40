"""The time of day of running daemons is wrong for minutes, while Valkey answers and while it hangs."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.clocks import WallClock
from tests.support.daemon import Daemon
from tests.support.valkey import ValkeyServer, eventually
from tests.support.wire import Wire

STEPS = [60.0, -60.0, 120.0, -120.0, 3600.0, -3600.0]
#: Longer than each lease, sign of life and timeout of these daemons.
HELD = 150.0
ROUND = 5.0
LEASE = 35.0
SESSIONS = 3
#: The best of a few, for a busy machine. With a Valkey that hangs a check takes 50 ms, and a fault stays.
GREETING, GREETINGS = 2.5, 4


class Stepped:
    """A daemon of its own fleet, with its own clock, and sessions that were open before the step."""

    def __init__(
        self, directory: Path, make_daemon: Callable[..., Daemon], valkey: ValkeyServer, number: int
    ) -> None:
        self.wall = WallClock(directory)
        self.prefix = f"t{number}:"
        self._valkey = valkey
        self.daemon = make_daemon(
            "[[limit]]\nname = 'open'\nper = ['ip']\ncounts = 'open_connections'\nrates = ['100']\n",
            name=f"node{number}",
            server='node_id = "mx1"\ncommand_timeout = "20s"',
            environ={
                **self.wall.environ,
                "ELEMTA_RESOURCES_VALKEY_URL": valkey.url,
                "ELEMTA_RESOURCES_VALKEY_KEY_PREFIX": self.prefix,
                "ELEMTA_RESOURCES_MAX_REQUESTS_PER_WINDOW": "100000",
            },
        )
        self.daemon.launch()
        self.sessions: list[Wire] = []

    def begin(self) -> None:
        self.daemon.wait_until_ready()
        self.daemon.wait_for("limits.mode_changed", mode="cluster")
        for _ in range(SESSIONS):
            wire = Wire(self.daemon.socket())
            assert wire.reply().startswith("220")
            self.sessions.append(wire)
        self.owner = self._owner()
        assert self.connections() == SESSIONS

    def _owner(self) -> list[bytes]:
        spool = eventually(lambda: self._valkey.command("KEYS", f"{self.prefix}spool:*"), "a lease")[0]
        flat = self._valkey.command("HGETALL", spool)
        assert self._valkey.command("PTTL", spool) > 15_000, "the lease of the spool is not renewed"
        return list(flat)

    def connections(self) -> int:
        keys = self._valkey.command("KEYS", f"{self.prefix}open:*")
        return sum(self._valkey.command("ZCARD", key) for key in keys)

    def look(self, *, valkey_answers: bool) -> None:
        took = []
        while not took or (took[-1] >= GREETING and len(took) < GREETINGS):
            began = time.monotonic()
            with Wire(self.daemon.socket(timeout=30)) as one_more:
                assert one_more.reply().startswith("220")
                took.append(time.monotonic() - began)
        assert min(took) < GREETING, took
        for session in self.sessions:
            assert session.command("NOOP").startswith("250")
        if valkey_answers:
            assert self._owner() == self.owner, "the spool has another owner"
            eventually(lambda: self.connections() == SESSIONS, "the open connections are counted", 20)

    def end(self) -> None:
        for session in self.sessions:
            session.sock.close()
        eventually(lambda: self.connections() == 0, "no connection is left", 45)
        assert not self.daemon.records("session.timeout")
        self.daemon.stop()
        assert self.daemon.records("daemon.stopped")


@pytest.mark.campaign
@pytest.mark.servers
@pytest.mark.parametrize("hangs", [False, True], ids=["valkey answers", "valkey hangs"])
def test_minutes_of_a_wrong_clock_change_no_session_lease_count_or_greeting(
    tmp_path: Path, make_daemon: Callable[..., Daemon], *, hangs: bool
) -> None:
    with ValkeyServer() as valkey:
        places = [tmp_path / f"clock{number}" for number in range(len(STEPS))]
        for place in places:
            place.mkdir()
        nodes = [Stepped(place, make_daemon, valkey, number) for number, place in enumerate(places)]
        for node in nodes:
            node.begin()
        for node, step in zip(nodes, STEPS, strict=True):
            node.wall.set(step)
        if hangs:
            valkey.pause()
        _watch(nodes, HELD, valkey_answers=not hangs)
        if hangs:
            valkey.resume()
            for node in nodes:
                eventually(lambda node=node: node.daemon.metric("valkey_up{") == 1, "Valkey is back", 30)
            # What Valkey charged too late for any caller ends with its lease.
            _watch(nodes, LEASE, valkey_answers=False)
        # Back to the right time, which is a step, too.
        for node in nodes:
            node.wall.set(0)
        _watch(nodes, HELD / 3, valkey_answers=True)
        for node in nodes:
            node.end()


def _watch(nodes: list[Stepped], seconds: float, *, valkey_answers: bool) -> None:
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        began = time.monotonic()
        for node in nodes:
            node.look(valkey_answers=valkey_answers)
        time.sleep(max(0.0, ROUND - (time.monotonic() - began)))
