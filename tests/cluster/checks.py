"""What a fleet has to prove on one Valkey as on a cluster of them; and what the tests ask Valkey."""

from __future__ import annotations

import re
import socket
import time
from collections.abc import Callable, Iterable
from typing import Any

import pytest

from tests.cluster.crowd import Visit, burst, new_client, percentile
from tests.cluster.fleet import PREFIX, Fleet, Node, until
from tests.support.valkey import ValkeyServer
from tests.support.wire import Wire

# Those that have the keys now: the one, or the primaries.
Servers = Callable[[], Iterable[ValkeyServer]]
LIMIT = 100
REFUSAL = re.compile(r"(421 4\.7\.0|450 4\.7\.1) .*\bip\b.*try again in \d+ seconds?$")

# Further listeners, because the limits of [resources] are everywhere.
TABLES = """
[[listener]]
name = "once"
endpoint = "tcp:0:interface=127.0.0.1"
[[limit]]
name = "once"
per = ["ip", "listener"]
counts = "connections"
rates = ["1/10m"]
except = ["mx", "lines"]
[[limit]]
name = "tally"
per = ["listener"]
counts = "connections"
rates = ["90000/10m"]
except = ["mx", "lines"]
[[listener]]
name = "lines"
endpoint = "tcp:0:interface=127.0.0.1"
[[limit]]
name = "lines"
per = ["ip", "listener"]
counts = "open_connections"
rates = ["5"]
except = ["mx", "once"]
[[limit]]
name = "log"
per = ["listener"]
counts = "connections"
rates = ["120/10m"]
except = ["mx", "once"]
"""


def resources(window: int, deadline: str = "2s") -> dict[str, int | str]:
    """What is in that table. With a long deadline a machine that stumbles changes no exact count."""
    return {
        "valkey_deadline": deadline,
        "max_connections": 5000,
        "max_connections_per_ip": 5000,
        "max_requests_per_window": LIMIT,
        "rate_limit_window": window,
    }


def enter(node: Node, client: str, listener: str = "mx") -> Wire:
    """A connection from this client's address."""
    address = ("127.0.0.1", node.port_of(listener))
    return Wire(socket.create_connection(address, timeout=60.0, source_address=(client, 0)))


def calls(servers: Servers) -> int:
    """How many scripts the servers have run."""
    return sum(server.calls("evalsha") + server.calls("eval") for server in servers())


def ends_of_leases(valkey: ValkeyServer, client: str) -> list[float]:
    """In how many seconds the leases of a client's connections end without a renewal."""
    seconds, micros = valkey.command("TIME")
    now = int(seconds) + int(micros) / 1e6
    found = valkey.command("ZRANGE", f"{PREFIX}connections-per-ip:{client}", "0", "-1", "WITHSCORES")
    return [float(end) / 1e6 - now for end in found[1::2]]


def contents(servers: Servers, pattern: str) -> dict[bytes, Any]:
    """What is counted in the keys that match; not when leases end, nor when a window was last asked for."""
    found: dict[bytes, Any] = {}
    for server in servers():
        for key in server.command("KEYS", PREFIX + pattern):
            kind = server.command("TYPE", key)  # "none" when it expired meanwhile
            if kind == b"zset":
                found[key] = server.command("ZRANGE", key, "0", "-1")
            elif kind == b"hash":
                parts = server.command("HGETALL", key)
                fields = zip(parts[::2], parts[1::2], strict=True)
                found[key] = {name: value for name, value in fields if not name.startswith(b"u")}
    return found


def four_hundred(fleet: Fleet, client: str, window: float) -> list[Visit]:
    """400 connections of one client in one second, over all nodes."""
    visits = burst(fleet.ports(), [client] * 400, within=0.9)
    took = max(visit.ended for visit in visits) - visits[0].began
    millis = [1000 * visit.seconds for visit in visits]
    print(
        f"\n400 connections in {took:.2f} s: {sum(visit.passed for visit in visits)} greeted, greeting "
        f"p50 {percentile(millis, 0.5):.1f} ms, p99 {percentile(millis, 0.99):.1f} ms"
    )
    if took >= window:
        pytest.skip(f"this machine needs {took:.1f} s for 400 connections")
    return visits


def check_four_hundred(fleet: Fleet, servers: Servers, client: str, key: str, window: float) -> None:
    """Exactly the limit is greeted, Valkey has counted as many, and the time told is the right one."""
    visits = four_hundred(fleet, client, window)
    assert sum(visit.passed for visit in visits) == LIMIT
    assert [len(members) for members in contents(servers, key).values()] == [LIMIT]
    refused = [visit for visit in visits if not visit.passed]
    assert [visit.greeting for visit in refused if not REFUSAL.fullmatch(visit.greeting)] == []

    first = min(visit.began for visit in visits if visit.passed)
    time.sleep(max(0.0, first + window - 1.5 - time.monotonic()))
    (early,) = burst(fleet.ports()[:1], [client])
    assert not early.passed or early.ended > first + window
    told = min(visit.ended + visit.retry_after for visit in refused)
    time.sleep(max(0.0, told - time.monotonic()))
    (late,) = burst(fleet.ports()[1:], [client])
    assert late.passed, late


def check_refusals_by_rate(fleet: Fleet, servers: Servers, settles: float = 0.0) -> None:
    """A thousand refusals by a full limit, each decided by Valkey, leave what else is counted as it is.

    ``settles`` are the seconds until then: limits in several slots are taken back where one is full.
    """
    clients = [new_client() for _ in range(1000)]
    first, second, _ = fleet.ports("once")
    assert all(visit.passed for visit in burst([first], clients, within=1.0))
    before = contents(servers, "tally:*")
    assert len(before) == 1
    until(lambda: contents(servers, "connections-per-ip:*") == {}, "no open connection any more")

    # Another node: it does not know yet and has to ask.
    asked = calls(servers)
    visits = burst([second], clients, within=1.0)
    assert {visit.greeting.partition(",")[0] for visit in visits} == {
        "421 4.7.0 Too many connections from your address on this port (limit once"
    }
    print(f"\n1,000 refusals by a rate, {calls(servers) - asked} script calls")
    assert calls(servers) > asked
    until(lambda: contents(servers, "tally:*") == before, "the other rate as it was", settles)
    until(lambda: contents(servers, "connections-per-ip:*") == {}, "no open connection")


def check_refusals_by_open_connections(fleet: Fleet, servers: Servers, settles: float = 0.0) -> None:
    """A thousand refusals by open connections, which no node remembers, leave the rates as they are."""
    client = new_client()
    held = [enter(fleet.nodes[number % 3], client, "lines") for number in range(5)]
    try:
        assert [wire.reply()[:3] for wire in held] == ["220"] * 5
        before = contents(servers, "log:*")
        assert len(before) == 1
        visits = burst(fleet.ports("lines"), [client] * 1000, within=1.0)
        assert {visit.passed for visit in visits} == {False}
        until(lambda: contents(servers, "log:*") == before, "the rate as it was", settles)
        assert len(contents(servers, f"lines:*{client}*").popitem()[1]) == 5
    finally:
        for wire in held:
            wire.sock.close()
