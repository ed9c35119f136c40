"""Losing Valkey in every way: no client waits, each limit does what it says, and all comes back by itself."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.cluster.crowd import Stream, Visit, burst, new_client, percentile
from tests.cluster.fleet import CLUSTER, LOCAL, NODES, PREFIX, Fleet, until
from tests.support.valkey import ServerError, ValkeyServer, free_port

LIMIT = 60
SHARE = LIMIT // NODES
RESOURCES: dict[str, int | str] = {
    "max_connections": 5000,
    "max_connections_per_ip": 600,
    "max_requests_per_window": LIMIT,
    "rate_limit_window": 600,
}
TABLES = """
[[listener]]
name = "open"
endpoint = "tcp:0:interface=127.0.0.1"
[[limit]]
name = "open"
per = ["ip", "listener"]
counts = "connections"
rates = ["5/10m"]
when_valkey_is_down = "allow"
except = ["mx", "shut"]
[[listener]]
name = "shut"
endpoint = "tcp:0:interface=127.0.0.1"
[[limit]]
name = "shut"
per = ["ip", "listener"]
counts = "connections"
rates = ["5/10m"]
when_valkey_is_down = "defer"
except = ["mx", "open"]
"""


@dataclass(frozen=True)
class Fault:
    """One way to lose Valkey. ``end`` returns when Valkey would answer again."""

    name: str
    begin: Callable[[ValkeyServer], None]
    end: Callable[[ValkeyServer], None]


def make_replica(valkey: ValkeyServer) -> None:
    valkey.command("REPLICAOF", "127.0.0.1", free_port())


def fill(valkey: ValkeyServer) -> None:
    valkey.command("CONFIG", "SET", "maxmemory", int(valkey.info("memory")["used_memory"]) + 2_000_000)
    number = 0
    with contextlib.suppress(ServerError):
        while True:
            valkey.command("SET", f"filler:{number}", b"x" * 10_000)
            number += 1
    with contextlib.suppress(ServerError):
        while True:
            valkey.command("SET", f"filler:{number}", b"x")
            number += 1


def make_room(valkey: ValkeyServer) -> None:
    valkey.command("CONFIG", "SET", "maxmemory", 0)
    for key in valkey.command("KEYS", "filler:*"):
        valkey.command("DEL", key)


def keep_busy(valkey: ValkeyServer) -> None:
    valkey.command("CONFIG", "SET", "busy-reply-threshold", 100)
    talk = valkey.talk()

    def loop() -> None:
        with contextlib.suppress(ServerError):
            talk("EVAL", "while true do end", 0)
        talk.close()

    threading.Thread(target=loop, daemon=True).start()
    time.sleep(0.3)


STOPPED = Fault("stopped", ValkeyServer.pause, ValkeyServer.resume)
KILLED = Fault("killed", ValkeyServer.kill, lambda valkey: valkey.restart_empty())
REPLICA = Fault("made a replica", make_replica, lambda valkey: valkey.command("REPLICAOF", "NO", "ONE"))
FULL = Fault("full", fill, make_room)
BUSY = Fault("busy", keep_busy, lambda valkey: valkey.command("SCRIPT", "KILL"))


@dataclass(frozen=True)
class Scale:
    """How long things last, in seconds, and whether times are asserted as promised or with a tolerance.

    ``greeting`` is the longest p99 of a greeting, ``back`` the longest time until all nodes count together.
    """

    before: float
    during: float
    per_second: float
    greeting: float
    back: float


SMALL = Scale(before=0.3, during=0.5, per_second=40, greeting=10.0, back=45.0)
LARGE = Scale(before=5.0, during=20.0, per_second=100, greeting=0.1, back=2.0)
SCALES = [pytest.param(SMALL, id="small"), pytest.param(LARGE, id="large", marks=pytest.mark.campaign)]
OUTAGES = [
    *(pytest.param(fault, SMALL, id=f"{fault.name}, small") for fault in (STOPPED, REPLICA, FULL, KILLED)),
    *(
        pytest.param(fault, LARGE, id=f"{fault.name}, large", marks=pytest.mark.campaign)
        for fault in (STOPPED, REPLICA, FULL, BUSY, KILLED)
    ),
]


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory, valkey: ValkeyServer) -> Iterator[Fleet]:
    with Fleet(tmp_path_factory.mktemp("fleet"), valkey.url, resources=RESOURCES, tables=TABLES) as fleet:
        fleet.introduce()
        yield fleet
        assert fleet.faults() == []


def admitted(visits: list[Visit]) -> int:
    return sum(visit.passed for visit in visits)


def by_node(visits: list[Visit]) -> list[int]:
    return [admitted([visit for visit in visits if visit.node == node]) for node in range(NODES)]


@pytest.mark.parametrize(("fault", "scale"), OUTAGES)
def test_without_valkey_nobody_waits_each_limit_keeps_its_word_and_all_comes_back(
    fleet: Fleet, valkey: ValkeyServer, fault: Fault, scale: Scale
) -> None:
    fleet.wait_for_mode(CLUSTER)
    known, newcomer = new_client(), new_client()
    assert by_node(burst(fleet.ports(), [known] * (LIMIT // 2), within=0.3)) == [SHARE // 2] * NODES

    with Stream(fleet.ports(), scale.per_second) as stream:
        time.sleep(scale.before)
        begun, began = time.monotonic(), time.time()
        fault.begin(valkey)
        try:
            until(lambda: fleet.has_changed(LOCAL, began), "local mode")
            opened = fleet.last_to_change(LOCAL, began) - began
            check_nodes_without_valkey(fleet, known, newcomer)
            time.sleep(scale.during)
        finally:
            ended = time.monotonic()
            fault.end(valkey)
            returned = time.time()
        until(lambda: fleet.has_changed(CLUSTER, began), "its return")
        time.sleep(scale.before)
    back = fleet.last_to_change(CLUSTER, began) - returned

    report(fault, stream.visits, begun, ended)
    print(f"all nodes local after {opened:.2f} s, back {back:.2f} s after Valkey's return")
    during = [visit for visit in stream.visits if begun <= visit.began]
    assert [visit for visit in stream.visits if not visit.passed] == []
    beyond_the_first = [visit.seconds for visit in during[5 * NODES :]]
    assert percentile(beyond_the_first, 0.99) < scale.greeting
    assert back < scale.back
    check_bound(fleet, valkey)


def check_bound(fleet: Fleet, valkey: ValkeyServer) -> None:
    """All nodes count together again."""
    client = new_client()
    failed = fleet.failures()
    visits = burst(fleet.ports(), [client] * (2 * LIMIT), within=0.3)
    if fleet.failures() == failed:
        assert admitted(visits) == LIMIT
        assert valkey.command("ZCARD", f"{PREFIX}ip:{client}") == LIMIT
    else:  # a machine on which Valkey can't answer within 50 ms
        assert admitted(visits) <= 2 * LIMIT


def check_nodes_without_valkey(fleet: Fleet, known: str, newcomer: str) -> None:
    """Each node lets its share pass, which begins with what it knew; and each limit does as configured."""
    assert by_node(burst(fleet.ports(), [newcomer] * (3 * LIMIT), within=0.3)) == [SHARE] * NODES
    assert by_node(burst(fleet.ports(), [known] * (3 * LIMIT), within=0.3)) == [SHARE - SHARE // 2] * NODES
    guest = new_client()
    assert admitted(burst(fleet.ports("open"), [guest] * 30)) == 30
    refused = burst(fleet.ports("shut"), [guest] * 9)
    assert {visit.greeting.partition(",")[0] for visit in refused} == {
        "421 4.3.0 Rate limit shut can't be checked now"
    }


def report(fault: Fault, visits: list[Visit], begun: float, ended: float) -> None:
    print(f"\nValkey {fault.name} for {ended - begun:.1f} s, {len(visits)} clients")
    for words, first, last in (("before", 0.0, begun), ("meanwhile", begun, ended), ("after", ended, 1e12)):
        millis = [1000 * visit.seconds for visit in visits if first <= visit.began < last]
        if millis:
            figures = (percentile(millis, share) for share in (0.5, 0.99, 1.0))
            print(f"  {words:9} p50 %.1f, p99 %.1f, worst %.1f ms" % tuple(figures))


@pytest.mark.campaign
@pytest.mark.parametrize("scale", [LARGE], ids=["large"])
def test_a_restart_of_valkey_is_survived_with_nothing_but_its_counts_lost(
    fleet: Fleet, valkey: ValkeyServer, scale: Scale
) -> None:
    fleet.wait_for_mode(CLUSTER)
    client = new_client()
    burst(fleet.ports(), [client] * LIMIT, within=0.3)
    with Stream(fleet.ports(), scale.per_second) as stream:
        time.sleep(scale.before)
        begun = time.monotonic()
        valkey.restart_empty()
        ended, returned = time.monotonic(), time.time()
        counting = new_client()
        until(lambda: count_reaches_valkey(fleet, valkey, counting), "counts in Valkey")
        back = time.time() - returned
        fleet.wait_for_mode(CLUSTER)
    report(Fault("restarted", valkey_kill, valkey_kill), stream.visits, begun, ended)
    print(f"counted in Valkey {back:.2f} s after its return")
    assert [visit for visit in stream.visits if not visit.passed] == []
    assert back < scale.back
    # 60 before, and 60 after at most: Valkey has forgotten.
    assert admitted(burst(fleet.ports(), [client] * (2 * LIMIT), within=0.3)) <= LIMIT


def test_an_outage_soon_after_a_restart_finds_the_shares_as_they_were(
    fleet: Fleet, valkey: ValkeyServer
) -> None:
    fleet.wait_for_mode(CLUSTER)
    began = time.time()
    valkey.restart_empty()
    until(lambda: fleet.has_changed(CLUSTER, began), "its return")
    # What it knew of the nodes is gone, and they tell it again one by one.
    make_replica(valkey)
    try:
        until(lambda: fleet.has_changed(LOCAL, began), "local mode")
        assert by_node(burst(fleet.ports(), [new_client()] * (3 * LIMIT), within=0.3)) == [SHARE] * NODES
    finally:
        valkey.command("REPLICAOF", "NO", "ONE")


def valkey_kill(valkey: ValkeyServer) -> None:
    valkey.kill()


def count_reaches_valkey(fleet: Fleet, valkey: ValkeyServer, client: str) -> bool:
    burst(fleet.ports(), [client] * NODES)
    return int(valkey.command("ZCARD", f"{PREFIX}ip:{client}")) >= NODES


@pytest.mark.parametrize("scale", SCALES)
def test_nodes_that_start_without_valkey_greet_and_join_when_it_comes(tmp_path: Path, scale: Scale) -> None:
    valkey = ValkeyServer()
    try:
        with Fleet(tmp_path, valkey.url, resources=RESOURCES, tables=TABLES, waits=False) as fleet:
            assert {node.mode for node in fleet.nodes} == {LOCAL}
            with Stream(fleet.ports(), scale.per_second) as stream:
                begun = time.monotonic()
                client = new_client()
                # A node that has never seen the others is alone as far as it knows.
                assert by_node(burst(fleet.ports(), [client] * (4 * LIMIT), within=0.5)) == [LIMIT] * NODES
                time.sleep(scale.during)
                ended = time.monotonic()
                valkey.start()
                came = time.time()
                fleet.wait_for_mode(CLUSTER)
            back = fleet.last_to_change(CLUSTER, came - 1) - came
            report(Fault("down at start", valkey_kill, valkey_kill), stream.visits, begun, ended)
            print(f"all nodes joined {back:.2f} s after Valkey came")
            assert [visit for visit in stream.visits if not visit.passed] == []
            assert percentile([visit.seconds for visit in stream.visits], 0.99) < scale.greeting
            assert back < scale.back
            check_bound(fleet, valkey)
    finally:
        valkey.stop()
