"""The time of day of a running daemon is set: what it measures goes on as if nothing had happened."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.support.clocks import WallClock
from tests.support.daemon import Daemon
from tests.support.valkey import ValkeyServer, eventually

STEPS = [-120.0, 3600.0]


@pytest.fixture
def wall(tmp_path: Path) -> WallClock:
    return WallClock(tmp_path)


@pytest.fixture
def valkey() -> Iterator[ValkeyServer]:
    with ValkeyServer() as server:
        yield server


def in_fleet(make_daemon: Callable[..., Daemon], wall: WallClock, valkey: ValkeyServer) -> Daemon:
    daemon = make_daemon(
        "[[limit]]\nname = 'open'\nper = ['ip']\ncounts = 'open_connections'\nrates = ['100']\n",
        server='node_id = "mx1"',
        environ={
            **wall.environ,
            "ELEMTA_RESOURCES_VALKEY_URL": valkey.url,
            "ELEMTA_RESOURCES_VALKEY_KEY_PREFIX": "t:",
            "ELEMTA_RESOURCES_MAX_REQUESTS_PER_WINDOW": "1000",
        },
    ).start()
    daemon.wait_for("limits.mode_changed", mode="cluster")
    return daemon


@pytest.mark.parametrize("step", [-60.0, 3600.0])
def test_with_a_valkey_that_hangs_a_client_is_greeted_within_the_deadline_after_a_step(
    make_daemon: Callable[..., Daemon], wall: WallClock, valkey: ValkeyServer, step: float
) -> None:
    daemon = in_fleet(make_daemon, wall, valkey)
    wall.set(step)
    valkey.pause()
    for _ in range(3):
        began = time.monotonic()
        with daemon.client(timeout=20) as client:
            assert client.noop()[0] == 250
        assert time.monotonic() - began < 2.5
    daemon.wait_for("limits.mode_changed", mode="local", seconds=5)


@pytest.mark.parametrize("step", STEPS)
def test_leases_and_signs_of_life_are_renewed_after_a_step(
    make_daemon: Callable[..., Daemon], wall: WallClock, valkey: ValkeyServer, step: float
) -> None:
    daemon = in_fleet(make_daemon, wall, valkey)
    talk = valkey.command
    with daemon.client() as client:
        client.ehlo()
        spool = eventually(lambda: talk("KEYS", "t:spool:*"), "the spool has a lease")[0]
        wall.set(step)

        def times_to_live() -> list[int]:
            keys = [spool, *talk("KEYS", "t:node:*"), *talk("KEYS", "t:open:*")]
            assert len(keys) >= 3, keys
            return [talk("PTTL", key) for key in keys]

        before = times_to_live()
        after = time.monotonic() + 12
        renewed = [False] * len(before)
        while not all(renewed) and time.monotonic() < after:
            time.sleep(0.25)
            now = times_to_live()
            renewed = [was or new > old for was, new, old in zip(renewed, now, before, strict=True)]
            before = now
        assert all(renewed), "not every lease was renewed within 12 seconds"


@pytest.mark.parametrize("step", STEPS)
def test_a_session_outlives_a_step_and_still_times_out(
    make_daemon: Callable[..., Daemon], wall: WallClock, step: float
) -> None:
    daemon = make_daemon(server='command_timeout = "4s"', environ=wall.environ).start()
    with daemon.client() as client:
        client.ehlo()
        wall.set(step)
        time.sleep(2.0)
        assert client.noop()[0] == 250
        client.sock.settimeout(30)
        began = time.monotonic()
        assert client.getreply()[0] == 421
        assert 2.0 < time.monotonic() - began < 15.0
