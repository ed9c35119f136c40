"""A node's queue outlives the node: another one adopts its spool, and delivers each message exactly once."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from tests.adoption.left import REMOTE, left_behind, spools, undelivered
from tests.cluster.fleet import Fleet, Node, until
from tests.durability.ledger import Ledger
from tests.durability.load import sink
from tests.support.daemon import Daemon
from tests.support.valkey import ValkeyServer, valkey_server

PATIENT = {"valkey_deadline": "4s"}
LEASES = "elemta:ratelimit:spool:*"


@pytest.fixture
def valkey() -> Iterator[ValkeyServer]:
    with valkey_server() as server:
        yield server


@pytest.fixture
def make_daemon(tmp_path: Path) -> Iterator[Callable[..., Daemon]]:
    made: list[Daemon] = []

    def make(name: str, tables: str = "", **options: Any) -> Daemon:
        options.setdefault("server", f'node_id = "{name}"')
        daemon = Daemon(tmp_path / name, tables, **options)
        made.append(daemon)
        return daemon

    yield make
    for daemon in made:
        daemon.kill()


def to_sink(port: int) -> str:
    return f'[[route]]\ndomains = ["{REMOTE}"]\nto = "smtp://127.0.0.1:{port}"\nmax_connections = 10\n'


def adopt(node: Daemon, directory: Path) -> tuple[int, str]:
    done = node.ctl("spool", "adopt", str(directory), check=False)
    return done.returncode, done.stdout + done.stderr


def all_adopt(nodes: list[Node], directory: Path) -> list[tuple[int, str]]:
    with ThreadPoolExecutor(len(nodes)) as threads:
        return list(threads.map(lambda node: adopt(node, directory), nodes))


@pytest.mark.timeout(300)
def test_of_three_nodes_told_at_once_one_adopts_and_the_messages_leave_once(
    tmp_path: Path, valkey: ValkeyServer
) -> None:
    shared, ledger = tmp_path / "shared", Ledger()
    left_behind(shared, ledger, 200)
    left_behind(shared, ledger, 100, part=1)
    with (
        sink(ledger) as hop,
        Fleet(tmp_path, valkey.url, resources=PATIENT, tables=to_sink(hop.port)) as fleet,
    ):
        answers = all_adopt(fleet.nodes, shared)
        (winner,) = [node for node, (code, _) in zip(fleet.nodes, answers, strict=True) if code == 0]
        for code, words in answers:
            # Its owner is written after the lock is taken: a node that asks in between learns only that.
            owner = f"(node {re.escape(winner.name)}, which has adopted it,|another process)"
            assert code == 0 or re.search(f"{owner} owns the spool", words), words
        winner.wait_for("spool.adoption_done", seconds=60)
        ledger.close()
        ledger.judge()
        assert ledger.duplicates == 0
        assert list(spools(winner)) == [str(winner.spool)]
        assert undelivered(shared) == undelivered(shared, part=1) == set()
        # Three nodes' own.
        until(lambda: len(valkey.command("KEYS", LEASES)) == len(fleet.nodes), "its leases are given up")
        assert fleet.faults() == []


@pytest.mark.timeout(300)
def test_an_adoption_goes_on_after_kill_9_and_repeats_only_what_was_out(
    tmp_path: Path, valkey: ValkeyServer
) -> None:
    shared, ledger = tmp_path / "shared", Ledger()
    ids = left_behind(shared, ledger, 500)
    with (
        sink(ledger, delay=0.1) as hop,
        Fleet(tmp_path, valkey.url, resources=PATIENT, tables=to_sink(hop.port), size=1) as fleet,
    ):
        (adopter,) = fleet.nodes
        assert adopt(adopter, shared)[0] == 0
        until(lambda: len(ledger.deliveries) > 100, "part of it is delivered", words=adopter.output)
        adopter.kill()
        until(lambda: hop.conversations == 0, "what was under way at the next hop is over")
        out = set(ledger.deliveries)
        left = undelivered(shared)
        assert 0 < len(left) < len(ids)
        adopter.start()
        adopter.wait_for("spool.adoption_done", seconds=90)
        assert len(adopter.records("spool.adopted")) == 1
        ledger.close()
        ledger.judge()
        twice = {delivery for delivery, count in ledger.deliveries.items() if count > 1}
        assert twice <= out
        # What was noted to be delivered is not delivered again.
        assert {ids[int(ident.rpartition("-")[2])] for ident, _ in twice} <= left


@pytest.mark.timeout(300)
def test_a_node_whose_spool_was_adopted_stays_down_until_it_is_given_back(make_daemon) -> None:
    ledger = Ledger()
    # The next hop does not listen, so it stays full.
    with sink(ledger) as hop:
        port = hop.port
    original = make_daemon("original", to_sink(port))
    left_behind(original.spool, ledger, 3, node="original")
    adopter = make_daemon("adopter").start()
    adopter.configure(to_sink(port), server='node_id = "adopter"')
    adopter.ctl("reload")
    assert adopt(adopter, original.spool) == (0, f"{original.spool} adopted: 3 messages\n")
    assert adopt(adopter, original.spool)[0] == 0
    listed = spools(adopter)[str(original.spool)]
    assert (listed["state"], listed["messages"]) == ("delivering", 3)

    process = original.launch()
    assert process.wait(timeout=90) == 75
    assert "of node adopter, which has adopted it, owns the spool partition" in original.output()

    # And so it is after a restart of the adopter.
    adopter.stop()
    adopter.start()
    until(lambda: spools(adopter)[str(original.spool)]["state"] == "delivering", "it is adopted again")
    assert adopter.ctl("spool", "give-back", str(original.spool)).stdout == f"{original.spool} given back\n"
    assert list(spools(adopter)) == [str(adopter.spool)]
    original.start()
    assert json.loads(original.ctl("--json", "queue", "stats").stdout)["total"]["messages"] == 3
    # Now it is the other's turn to stay away.
    code, words = adopt(adopter, original.spool)
    assert code == 1
    assert f"process {original.pid} of node original owns the spool partition" in words


@pytest.mark.timeout(300)
def test_what_its_own_node_took_back_while_the_adopter_was_away_is_not_taken_again(make_daemon) -> None:
    ledger = Ledger()
    with sink(ledger) as hop:
        port = hop.port
    original, adopter = make_daemon("original", to_sink(port)), make_daemon("adopter", to_sink(port)).start()
    left_behind(original.spool, ledger, 3, node="original")
    assert adopt(adopter, original.spool)[0] == 0
    adopter.kill()
    original.start()
    original.kill()
    adopter.start()
    assert adopter.wait_for("spool.adoption_lost")["owner"] == "original"
    assert list(spools(adopter)) == [str(adopter.spool)]
    assert (adopter.spool / "adopted").read_text() == "[]\n"


@pytest.mark.timeout(300)
def test_the_queue_commands_reach_messages_in_an_adopted_spool(make_daemon, tmp_path: Path) -> None:
    ledger, shared = Ledger(), tmp_path / "shared"
    with sink(ledger) as hop:
        node = make_daemon("mx", to_sink(hop.port)).start()
        first, second, third, fourth = left_behind(shared, ledger, 4, hold="quarantined")
        with node.client() as client:
            client.sendmail("a@client.test", ["bob@example.test"], "Subject: own\r\n\r\n")
        node.wait_for_mail("bob")
        assert adopt(node, shared)[0] == 0

        listing = node.ctl("queue", "list").stdout
        assert [line.split()[0] for line in listing.splitlines()[1:]] == [first, second, third, fourth]
        assert "hold: quarantined" in node.ctl("queue", "show", second).stdout
        assert "4 messages (0 active, 0 deferred, 4 hold)" in node.ctl("status").stdout
        assert node.metric(r'elemta_spool_messages\{.*state="hold"') == 4
        node.ctl("queue", "delete", first)
        node.ctl("queue", "release", second)
        until(lambda: sum(ledger.deliveries.values()) == 1, "a released message leaves")
        node.ctl("queue", "bounce", third, "--yes")
        assert b"returned by the operator" in node.wait_for_mail("sender")[0]
        node.ctl("queue", "delete", "--all", "--state", "hold", "--yes")
        assert node.ctl("queue", "show", fourth, check=False).returncode == 1


def test_what_is_no_spool_or_this_nodes_own_is_not_adopted(make_daemon, tmp_path: Path) -> None:
    node = make_daemon("mx").start()
    (tmp_path / "empty").mkdir()
    for wrong in (tmp_path / "empty", tmp_path / "nowhere", tmp_path / "mx" / "elemta.toml"):
        code, words = adopt(node, wrong)
        assert (code, "there is no spool in" in words) == (1, True), words
    assert "own spool" in adopt(node, node.spool)[1]
    assert list((tmp_path / "empty").iterdir()) == []
    assert list(spools(node)) == [str(node.spool)]
    assert node.ctl("spool", "give-back", str(tmp_path / "empty"), check=False).returncode == 1
