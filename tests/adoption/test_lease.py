"""The lease of a spool in a real Valkey: its owner, its end, and what owners and others learn."""

from __future__ import annotations

import shutil
import signal
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
import pytest_twisted
from pytest_twisted import ensureDeferred
from twisted.internet import reactor as _reactor
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock

from elemta.config.valkey_url import parse_valkey_url
from elemta.daemon.spool_lease import RENEWED_EVERY, SURE_FOR, TIME_TO_LIVE, LeaseOwner, SpoolLease
from elemta.errors import StoreUnavailable
from elemta.runtime import Runtime
from elemta.valkey.client import Valkey
from tests.adoption.left import REMOTE, left_behind, spools
from tests.cluster.fleet import Fleet, until
from tests.durability.ledger import Ledger
from tests.durability.load import sink
from tests.support.valkey import ValkeyServer, valkey_server

reactor: Any = _reactor
PREFIX = "elemta:ratelimit:"
KEY = f"{PREFIX}spool:abc"
PATIENT = {"valkey_deadline": "4s"}


@pytest.fixture(scope="module")
def server() -> Iterator[ValkeyServer]:
    with valkey_server() as running:
        yield running


@pytest_twisted.async_yield_fixture
async def valkey(server: ValkeyServer) -> AsyncIterator[Valkey]:
    server.command("FLUSHALL")
    connection = Valkey(Runtime.of(reactor), parse_valkey_url(server.url), name="test", deadline=5.0)
    up: Deferred[None] = Deferred()
    connection.on_change(lambda is_up: up.callback(None) if is_up and not up.called else None)
    connection.start()
    await up
    yield connection
    await connection.stop()


class Told:
    """What the owner of a lease learned."""

    def __init__(self) -> None:
        self.lost: list[LeaseOwner] = []
        self.ran_out = 0
        self.one: Deferred[None] = Deferred()

    def note_lost(self, owner: LeaseOwner) -> None:
        self.lost.append(owner)
        self.one.callback(None)

    def note_ran_out(self) -> None:
        self.ran_out += 1


def owner(boot: str, place: str = "") -> LeaseOwner:
    return LeaseOwner(boot, place, f"mx-{boot}", "host")


def lease(valkey: Any, who: LeaseOwner, clock: Clock | None = None) -> SpoolLease:
    clock = clock or Clock()
    return SpoolLease(Runtime.of(clock), valkey, prefix=PREFIX, spool_id="abc", owner=who)


@ensureDeferred
async def test_one_has_it_for_thirty_seconds_and_the_others_hear_who(valkey, server):
    first, second = owner("a", "kernel:1:2"), owner("b", "kernel:1:3")
    assert await lease(valkey, first).take() is None
    assert await lease(valkey, second).take() == first
    assert 0 < server.command("PTTL", KEY) <= TIME_TO_LIVE * 1000
    assert str(first) == "node mx-a on host"


@ensureDeferred
async def test_who_passed_the_same_lock_follows_at_once_and_without_a_place_nobody_does(valkey):
    before, after = owner("a", "kernel:1:2"), owner("b", "kernel:1:2")
    assert await lease(valkey, before).take() is None
    assert await lease(valkey, after).take() is None
    assert await lease(valkey, before).take() is None
    await lease(valkey, after).give_up()
    placeless = lease(valkey, owner("c"))
    assert await placeless.take() == before


@ensureDeferred
async def test_it_is_given_up_by_who_has_it_and_by_nobody_else(valkey, server):
    first, second = lease(valkey, owner("a")), lease(valkey, owner("b"))
    assert await first.take() is None
    await second.give_up()
    assert await second.take() == owner("a")
    await first.give_up()
    assert server.command("EXISTS", KEY) == 0
    assert await second.take() is None


@ensureDeferred
async def test_an_owner_that_finds_another_is_told_at_the_next_renewal_and_renews_no_more(valkey, server):
    clock, told = Clock(), Told()
    mine = lease(valkey, owner("a"), clock)
    assert await mine.take() is None
    mine.keep(told.note_lost, told.note_ran_out)
    server.command("HSET", KEY, "boot", "z", "place", "", "node", "thief", "host", "elsewhere")
    clock.advance(RENEWED_EVERY)
    await told.one
    assert told.lost == [LeaseOwner("z", "", "thief", "elsewhere")]
    assert clock.getDelayedCalls() == []
    assert server.command("HGET", KEY, "node") == b"thief"


class Silent:
    """A Valkey that does not answer."""

    def run(self, *_: Any, **__: Any) -> Deferred[Any]:
        return Deferred.fromCoroutine(self._fail())

    async def _fail(self) -> None:
        raise StoreUnavailable("away")


@ensureDeferred
async def test_an_owner_that_cannot_renew_is_told_well_before_another_can_have_it(valkey, server):
    clock, told = Clock(), Told()
    mine = lease(valkey, owner("a"), clock)
    assert await mine.take() is None
    mine._valkey = Silent()
    mine.keep(told.note_lost, told.note_ran_out)
    clock.pump([1.0] * (int(SURE_FOR) - 1))
    assert told.ran_out == 0
    clock.advance(1.0)
    assert (told.ran_out, told.lost) == (1, [])
    # Deliveries have to be stopped and the spool closed by then.
    assert TIME_TO_LIVE - SURE_FOR >= 10
    assert clock.getDelayedCalls() == []


@ensureDeferred
async def test_a_lease_that_was_not_to_be_had_at_first_is_taken_as_soon_as_it_can_be(valkey, server):
    clock, told = Clock(), Told()
    mine = lease(Silent(), owner("a"), clock)
    mine.keep(told.note_lost)
    clock.advance(60.0)
    mine._valkey = valkey
    clock.advance(RENEWED_EVERY)
    while server.command("HGET", KEY, "boot") != b"a":
        await Deferred.fromCoroutine(_turn())
    assert told.lost == []
    await mine.give_up()


async def _turn() -> None:
    turn: Deferred[None] = Deferred()
    reactor.callLater(0.01, turn.callback, None)
    await turn


# With daemons


@pytest.mark.timeout(300)
def test_where_no_lock_reaches_the_lease_alone_keeps_two_nodes_apart(
    tmp_path: Path, server: ValkeyServer
) -> None:
    server.command("FLUSHALL")
    ledger, shared, same = Ledger(), tmp_path / "shared", tmp_path / "same"
    with sink(ledger) as hop:
        port = hop.port
    tables = f'[[route]]\ndomains = ["{REMOTE}"]\nto = "smtp://127.0.0.1:{port}"\n'
    left_behind(shared, ledger, 5)
    # The same spool under another lock, as on a volume that two hosts have mounted.
    shutil.copytree(shared, same)
    with Fleet(tmp_path, server.url, resources=PATIENT, tables=tables, size=2) as fleet:
        first, second = fleet.nodes
        first.ctl("spool", "adopt", str(shared))
        refused = second.ctl("spool", "adopt", str(same), check=False)
        assert refused.returncode == 1
        assert "node n0 on " in refused.stderr
        assert "by its lease in Valkey" in refused.stderr

        # A lease that another has ends the adoption at once.
        (key,) = [
            key
            for key in server.command("KEYS", f"{PREFIX}spool:*")
            if key.decode().endswith((shared / "p0" / "id").read_text().strip())
        ]
        server.command("HSET", key, "boot", "z", "place", "", "node", "thief", "host", "elsewhere")
        first.wait_for("spool.adoption_cut_off", seconds=60)
        assert first.wait_for("spool.adoption_lost", seconds=60)["owner"] == "thief"
        assert list(spools(first)) == [str(first.spool)]
        server.command("DEL", key)
        assert second.ctl("spool", "adopt", str(same)).returncode == 0


@pytest.mark.timeout(300)
def test_a_node_whose_own_spool_another_host_has_leaves_it_alone_at_once(
    tmp_path: Path, server: ValkeyServer
) -> None:
    server.command("FLUSHALL")
    with Fleet(tmp_path, server.url, resources=PATIENT, size=1) as fleet:
        (node,) = fleet.nodes
        until(lambda: server.command("KEYS", f"{PREFIX}spool:*"), "it has the lease of its own spool")
        (key,) = server.command("KEYS", f"{PREFIX}spool:*")
        server.command("HSET", key, "boot", "z", "place", "", "node", "thief", "host", "elsewhere")
        node.wait_for("spool.ownership_lost", seconds=60)
        assert node._process is not None
        assert node._process.wait(timeout=90) == 75
        # Nor does it come back while the other one has it.
        assert node.launch().wait(timeout=90) == 75
        assert "node thief on elsewhere owns the spool partition" in node.output()
        server.command("DEL", key)
        node.start()
        # A node that dies and is started again on its host need not wait for its own lease.
        node.signal(signal.SIGKILL)
        node.kill()
        node.start()
        assert node.records("spool.lease_awaited") == []


@pytest.mark.timeout(300)
def test_a_node_started_elsewhere_waits_for_the_lease_it_had_before(
    tmp_path: Path, server: ValkeyServer
) -> None:
    server.command("FLUSHALL")
    with Fleet(tmp_path, server.url, resources=PATIENT, size=1) as fleet:
        (node,) = fleet.nodes
        until(lambda: server.command("KEYS", f"{PREFIX}spool:*"), "it has the lease of its own spool")
        (key,) = server.command("KEYS", f"{PREFIX}spool:*")
        node.kill()
        # As if it had lived on another host.
        server.command("HSET", key, "place", "another-kernel:1:2")
        server.command("PEXPIRE", key, 6000)
        node.launch()
        assert "node n0 on " in node.wait_for("spool.lease_awaited", seconds=60)["owner"]
        assert node.records("spool.opened") == []
        node.wait_until_ready()


@pytest.mark.timeout(300)
def test_nothing_is_adopted_while_nobody_can_tell_whose_it_is(tmp_path: Path) -> None:
    shared = tmp_path / "shared"
    left_behind(shared, Ledger(), 1)
    with (
        valkey_server() as own,
        Fleet(tmp_path, own.url, resources={"valkey_deadline": "500ms"}, size=1) as fleet,
    ):
        (node,) = fleet.nodes
        own.kill()
        refused = node.ctl("spool", "adopt", str(shared), check=False)
        assert refused.returncode == 1
        assert "Valkey can't confirm the owner of" in refused.stderr
        assert list(spools(node)) == [str(node.spool)]
        # Its own queue goes on.
        with node.client() as client:
            client.sendmail("a@client.test", ["bob@example.test"], "Subject: on\r\n\r\n")
        node.wait_for_mail("bob")


@pytest.mark.campaign
@pytest.mark.timeout(300)
def test_an_adopted_spool_is_left_alone_while_valkey_is_away_and_goes_on_after_it(tmp_path: Path) -> None:
    ledger, shared = Ledger(), tmp_path / "shared"
    with sink(ledger) as hop:
        port = hop.port
    tables = f'[[route]]\ndomains = ["{REMOTE}"]\nto = "smtp://127.0.0.1:{port}"\n'
    left_behind(shared, ledger, 5)
    with valkey_server() as own, Fleet(tmp_path, own.url, resources=PATIENT, tables=tables, size=1) as fleet:
        (node,) = fleet.nodes
        node.ctl("spool", "adopt", str(shared))
        own.pause()
        node.wait_for("spool.adoption_cut_off", seconds=60)
        until(lambda: spools(node)[str(shared)]["messages"] is None, "it is closed")
        assert spools(node)[str(shared)]["state"] in ("waiting", "opening")
        own.resume()
        until(lambda: spools(node)[str(shared)]["state"] == "delivering", "it goes on", seconds=60)
