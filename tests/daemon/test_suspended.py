"""A daemon that stands still, as when its machine is suspended, goes on as if nothing had happened."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Iterator

import pytest

from tests.support.daemon import Daemon
from tests.support.valkey import ValkeyServer, eventually
from tests.support.wire import Wire

#: Longer than the leases of connections and spools live.
LONG = 45.0
OPEN = 5


def _stand_still(daemon: Daemon, seconds: float, meanwhile: Callable[[], None] = lambda: None) -> None:
    daemon.signal(signal.SIGSTOP)
    try:
        began = time.monotonic()
        meanwhile()
        time.sleep(seconds - (time.monotonic() - began))
    finally:
        daemon.signal(signal.SIGCONT)


def _session(daemon: Daemon) -> Wire:
    wire = Wire(daemon.socket())
    assert wire.reply().startswith("220")
    return wire


def test_what_clients_said_while_the_daemon_stood_still_is_answered(
    make_daemon: Callable[..., Daemon],
) -> None:
    daemon = make_daemon(server='command_timeout = "5s"\ndata_timeout = "5s"').start()
    with _session(daemon) as command, _session(daemon) as data, _session(daemon) as idle:
        for line in ("EHLO client.test", "MAIL FROM:<a@client.test>", "RCPT TO:<b@example.test>", "DATA"):
            reply = data.command(line)
        assert reply.startswith("354")

        def speak() -> None:
            command.send(b"NOOP\r\n")
            data.send(b"Subject: x\r\n\r\nx\r\n.\r\n")

        _stand_still(daemon, 12.0, speak)
        assert command.reply().startswith("250")
        assert data.reply().startswith("250")
        # It gets the rest of its time, and no more.
        assert idle.reply().startswith("421")


@pytest.fixture
def valkey() -> Iterator[ValkeyServer]:
    with ValkeyServer() as server:
        yield server


@pytest.mark.campaign
@pytest.mark.parametrize("hangs", [False, True], ids=["valkey answers", "valkey hangs, too"])
def test_after_standing_still_for_longer_than_any_lease_a_node_is_what_it_was(
    make_daemon: Callable[..., Daemon], valkey: ValkeyServer, *, hangs: bool
) -> None:
    daemon = make_daemon(
        f"[[limit]]\nname = 'open'\nper = ['ip']\ncounts = 'open_connections'\nrates = ['{OPEN}']\n",
        server='node_id = "mx1"',
        environ={
            "ELEMTA_RESOURCES_VALKEY_URL": valkey.url,
            "ELEMTA_RESOURCES_VALKEY_KEY_PREFIX": "t:",
        },
    ).start()
    daemon.wait_for("limits.mode_changed", mode="cluster")
    spool = eventually(lambda: valkey.command("KEYS", "t:spool:*"), "the spool has a lease")[0]
    owner = valkey.command("HGETALL", spool)
    sessions = [_session(daemon) for _ in range(OPEN)]
    try:
        (key,) = valkey.command("KEYS", "t:open:*")
        assert valkey.command("ZCARD", key) == OPEN
        if hangs:
            valkey.pause()
        _stand_still(daemon, LONG)
        began = time.monotonic()
        with Wire(daemon.socket()) as one_more:
            # The share of a single node is the whole limit.
            assert one_more.reply().startswith("421")
        assert time.monotonic() - began < 2.5
        for session in sessions:
            assert session.command("NOOP").startswith("250")
        if hangs:
            valkey.resume()
        eventually(lambda: valkey.command("HGETALL", spool) == owner, "the spool is this node's", 30)
        eventually(lambda: valkey.command("ZCARD", key) == OPEN, "its connections are known", 30)
        eventually(lambda: valkey.command("PTTL", spool) > 20_000, "the lease is renewed", 30)
        daemon.ctl("status")
        with daemon.socket() as sock, Wire(sock) as one_more:
            assert one_more.reply().startswith("421")
        sessions.pop().sock.close()
        eventually(lambda: valkey.command("ZCARD", key) == OPEN - 1, "one has left", 30)
        _session(daemon).sock.close()
    finally:
        for session in sessions:
            session.sock.close()
    daemon.stop()
    assert daemon.records("daemon.stopped")
