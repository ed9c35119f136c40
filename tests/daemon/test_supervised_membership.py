"""What workers share over their channels: limits, overrides, pushed limits, resets, and policies' stores."""

from __future__ import annotations

from collections.abc import Coroutine, Sequence
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock

from elemta.config import load
from elemta.daemon.membership import LimiterStatus, Membership, SingleNode, ValkeyStatus
from elemta.daemon.membership_server import MembershipServer, supervisor_config
from elemta.daemon.supervised_membership import SupervisedMembership
from elemta.errors import ConfigError, Fault, StoreUnavailable, TooManyOverrides
from elemta.limits import override_registry
from elemta.limits.overrides import Override
from elemta.limits.pushed_limits import PushedLimits
from elemta.limits.refusals import RememberedRefusal
from elemta.limits.store import LimitSpec, Request
from elemta.limits.window import Bound
from elemta.metrics import Metrics
from elemta.workers import host_state
from elemta.workers.channel import Channel
from tests.support.channels import ChannelPair, carry_all
from tests.support.runtime import simulated_runtime
from tests.support.waiting import answered

RATE = LimitSpec("rate", (Bound.of(8, 60_000_000),))
HERE = LimitSpec("here", (Bound.of(8, 60_000_000),), cluster=False)


class Member:
    """What the fleet asks of a worker."""

    sessions = 0
    queued = 0
    draining = False

    def __init__(self) -> None:
        self.forgot: list[tuple[str, str]] = []
        self.taken = 0
        self.refuses_now: tuple[RememberedRefusal, ...] = ()
        self.refuses = False

    def refused(self) -> Sequence[RememberedRefusal]:
        return self.refuses_now

    async def take_limits(self) -> None:
        if self.refuses:
            raise ConfigError([Fault("pushed", "limit[1]", "does not fit")])
        self.taken += 1

    def forget(self, limit: str, identity: str) -> None:
        self.forgot.append((limit, identity))


class Pushes:
    """The pushed limits of a supervisor."""

    in_force: PushedLimits | None = None
    version = 0

    def give_up(self, error: ConfigError) -> None:
        raise error


class Host:
    """A supervisor that is a single node, and its workers."""

    def __init__(self, workers: int = 2, *, start: bool = True) -> None:
        self.clock = Clock()
        self.runtime = simulated_runtime(self.clock)
        self.config = load(None, {"ELEMTA_SERVER_HOSTNAME": "mx1.example.org"})
        self.fleet = SingleNode(self.runtime)
        self.fleet.pushed = Pushes()  # type: ignore[assignment]
        self.server = MembershipServer(self.runtime, self.fleet, max_connections=lambda: 20)
        self.server.start()
        self.pairs: list[ChannelPair] = []
        self.workers: list[SupervisedMembership] = []
        self.members: list[Member] = []
        for _ in range(workers):
            self.add(workers, start=start)

    def add(self, workers: int, *, start: bool = True) -> SupervisedMembership:
        pair = ChannelPair(self.clock)
        self.server.serve(pair.supervisor)
        worker = SupervisedMembership(self.runtime, self.config, Metrics("n"), pair.worker, workers=workers)
        self.pairs.append(pair.open())
        self.workers.append(worker)
        self.members.append(Member())
        if start:
            worker.start(self.members[-1])
            joined = Deferred.fromCoroutine(worker.joined())
            self.carry()
            assert joined.called
        return worker

    def carry(self, seconds: float = 0.0) -> None:
        self.clock.advance(seconds)
        carry_all(self.clock, self.pairs)

    def now(self, work: Coroutine[Any, Any, Any] | Any) -> Any:
        """The result of what is over when all octets have arrived."""
        if isinstance(work, Coroutine):
            work = Deferred.fromCoroutine(work)
        self.carry()
        return answered(work)


def override(identity: str = "jane", **more: Any) -> Override:
    return Override("rate", identity, ("100/1m",), 0.0, author="op", note="wegen \udcff ü", **more)


def test_a_worker_is_a_membership() -> None:
    worker: Membership = Host().workers[0]
    assert worker.lease("spool", "place") is None


# Limits and resets


def test_limits_are_counted_at_the_supervisor_those_of_the_node_too() -> None:
    host = Host()
    for spec in (RATE, HERE):
        answers = [host.workers[number % 2].store.acquire([Request(spec, "jane")]) for number in range(11)]
        host.carry()
        assert sum(host.now(answer).granted for answer in answers) == 8
    assert host.workers[0].status() == LimiterStatus()


@pytest.mark.parametrize("spec", [RATE, HERE])
def test_a_reset_anywhere_is_one_everywhere(spec: LimitSpec) -> None:
    host = Host()
    assert host.now(host.workers[0].store.acquire([Request(spec, "jane", 8)])).granted
    assert host.now(host.workers[0].store.reset(spec, "jane")) is True
    host.now(host.workers[0].announce_reset(Request(spec, "jane")))
    assert host.members[1].forgot[0] == (spec.name, "jane")
    assert host.now(host.workers[1].store.acquire([Request(spec, "jane", 8)])).granted
    # One that an operator asked of the supervisor.
    host.now(host.fleet.announce_reset(Request(spec, "joe")))
    assert [member.forgot[-1] for member in host.members] == [(spec.name, "joe")] * 2
    # One that reached the supervisor from another node.
    host.server.forget(spec.name, "jane")
    host.carry()
    assert [member.forgot[-1] for member in host.members] == [(spec.name, "jane")] * 2


def test_the_supervisor_knows_what_its_workers_refuse_from_memory() -> None:
    host = Host()
    host.members[0].refuses_now = (
        RememberedRefusal("rate", "jane", 5.0),
        RememberedRefusal("rate", "joe", 9.0),
    )
    host.members[1].refuses_now = (RememberedRefusal("rate", "jane", 7.0),)
    host.carry(1.0)
    known = {one.identity: one.seconds for one in host.server.refused()}
    assert known == {"jane": 7.0, "joe": 9.0}
    host.members[0].refuses_now = ()
    host.members[1].refuses_now = ()
    host.carry(0.5)
    assert {one.seconds for one in host.server.refused()} == {6.5, 8.5}
    host.pairs[0].kill_worker()
    host.carry()
    assert [one.identity for one in host.server.refused()] == ["jane"]
    host.carry(0.5)
    assert host.server.refused() == ()


def test_a_worker_whose_supervisor_is_gone_counts_alone_by_its_share() -> None:
    host = Host()
    host.pairs[0].supervisor.close()
    host.carry()
    answers = [host.now(host.workers[0].store.acquire([Request(HERE, "jane")])) for _ in range(6)]
    assert sum(answer.granted for answer in answers) == 4
    assert host.workers[0].status().mode == "local"
    with pytest.raises(StoreUnavailable):
        raise host.now(host.workers[0].policy_store("p").get("key"))
    with pytest.raises(StoreUnavailable):
        raise host.now(host.workers[0].overrides.put(override(), 60))
    host.now(host.workers[0].stop())


# Overrides


def test_overrides_hold_in_all_workers() -> None:
    host = Host()
    made = host.now(host.workers[0].overrides.put(override(), 60))
    assert made.note == override().note
    assert made == host.fleet.overrides.overrides.named("rate", "jane")
    for worker in (*host.workers, host.add(3)):
        assert worker.overrides.overrides.in_force() == (made,)
    # Made at the supervisor.
    host.now(host.fleet.overrides.put(override("joe"), 30))
    host.carry()
    assert [len(worker.overrides.overrides) for worker in host.workers] == [2, 2, 2]
    assert host.now(host.workers[1].overrides.remove("rate", "jane")) is True
    assert host.now(host.workers[1].overrides.remove("rate", "jane")) is False
    host.carry()
    assert [len(worker.overrides.overrides) for worker in host.workers] == [1, 1, 1]
    host.carry(31)
    assert [worker.overrides.overrides.in_force() for worker in host.workers] == [(), (), ()]


def test_too_many_overrides(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(override_registry, "MAX_OVERRIDES", 1)
    host = Host()
    host.now(host.workers[0].overrides.put(override(), 60))
    assert isinstance(host.now(host.workers[0].overrides.put(override("joe"), 60)), TooManyOverrides)


# Pushed limits


def test_pushed_limits_reach_all_workers_before_they_serve() -> None:
    host = Host()
    assert [worker.pushed.version for worker in host.workers] == [0, 0]
    first = host.fleet.pushed.in_force = PushedLimits(3, "[[limit]]\n", "op", "why \u2026")  # type: ignore[union-attr,misc]
    host.carry(host_state.LOOK_SECONDS)
    third = host.add(3)
    assert [worker.pushed.in_force for worker in host.workers] == [first] * 3
    assert [member.taken for member in host.members] == [1] * 3
    # One that can't take the next keeps what it has, until there is another.
    host.members[0].refuses = True
    second = host.fleet.pushed.in_force = PushedLimits(4, None)  # type: ignore[union-attr,misc]
    host.carry(host_state.LOOK_SECONDS)
    assert [worker.pushed.in_force for worker in host.workers] == [first, second, second]
    host.members[0].refuses = False
    host.fleet.pushed.in_force = None  # type: ignore[union-attr,misc]
    host.carry(host_state.LOOK_SECONDS)
    assert [worker.pushed.in_force for worker in host.workers] == [None] * 3
    host.now(third.stop())


def test_a_worker_that_can_not_take_them_at_its_start_gives_up_by_itself() -> None:
    worker = Host().workers[0]
    worker.pushed.in_force = PushedLimits(3, "[[limit]]\n")
    worker.pushed.give_up(ConfigError([Fault("pushed", "limit[1]", "does not fit")]))
    assert worker.pushed.in_force is None


# What the supervisor says of the cluster


def test_a_worker_shows_what_the_supervisor_knows_of_valkey() -> None:
    host = Host()
    said = LimiterStatus("local", 3, ValkeyStatus("valkey://v", False, "open", "no answer"))
    host.fleet.status = lambda: said  # type: ignore[method-assign]
    host.carry(host_state.LOOK_SECONDS)
    assert host.workers[0].status() == said
    # Of 8 an eighth part would be for each of two workers on three nodes; one at least.
    host.pairs[0].worker.close()
    answers = [host.now(host.workers[0].store.acquire([Request(RATE, "jane")])) for _ in range(3)]
    assert sum(answer.granted for answer in answers) == 1


def test_the_start_waits_for_the_supervisor_within_a_bound() -> None:
    host = Host(start=False)
    pair = ChannelPair(host.clock).open()
    worker = SupervisedMembership(host.runtime, host.config, Metrics("n"), pair.worker, workers=2)
    worker.start(Member())
    joined = Deferred.fromCoroutine(worker.joined())
    assert not joined.called
    for _ in range(30):
        host.clock.advance(0.1)
    assert joined.called


def test_the_supervisor_waits_for_valkey_less_long_than_its_workers_for_it() -> None:
    config = load(None, {"ELEMTA_SERVER_HOSTNAME": "mx1.example.org"})
    assert supervisor_config(config).resources.valkey_deadline < config.resources.valkey_deadline


# Places for connections


def test_workers_have_places_for_clients_and_connections_before_they_serve() -> None:
    host = Host()
    assert [worker.credit.granted > 0 for worker in host.workers] == [True, True]
    taken = [host.now(worker.slots.take("mx:", "b.example", 20, 1)) for worker in host.workers]
    assert taken == [True, False]
    host.pairs[0].kill_worker()
    host.carry()
    assert host.now(host.workers[1].slots.take("mx:", "b.example", 20, 1)) is True


# The stores of policies


def test_policies_of_all_workers_have_one_store() -> None:
    host = Host()
    one, other = (worker.policy_store("greylist") for worker in host.workers)
    assert host.now(one.get("key")) is None
    assert host.now(one.set("key", b"\0\n\xff", ttl=60)) is True
    assert host.now(other.get("key")) == b"\0\n\xff"
    assert host.now(other.set("key", b"", ttl=60, only_if_absent=True)) is False
    assert host.now(one.set("key", b"", ttl=60)) is True
    assert host.now(other.get("key")) == b""
    assert host.now(host.workers[1].policy_store("srs").get("key")) is None
    assert [host.now(each.add("n\udcff", 2, ttl=60)) for each in (one, other)] == [2, 4]
    assert host.now(other.delete("key")) is True
    assert host.now(one.delete("key")) is False
    host.carry(61)
    assert host.now(one.get("n\udcff")) is None


def test_what_a_store_refuses_it_refuses_over_the_channel() -> None:
    host = Host()
    store = host.workers[0].policy_store("greylist")
    host.now(store.set("text", b"words", ttl=60))
    assert isinstance(host.now(store.add("text", ttl=60)), ValueError)
    for wrong in (store.get(""), store.set("k", b"", ttl=0), store.set("k", b"x" * 65_537, ttl=1)):
        assert isinstance(host.now(wrong), ValueError)
    assert host.pairs[0].worker.is_open


def test_a_store_that_is_away_fails_at_once_and_is_no_failure_of_the_channel() -> None:
    host = Host()

    async def away(key: str) -> bytes | None:
        raise StoreUnavailable("Valkey does not answer")

    store = host.workers[0].policy_store("greylist")
    host.now(store.get("key"))
    host.server._stores._stores["greylist"].get = away  # type: ignore[method-assign]
    for _ in range(5):
        assert isinstance(host.now(store.get("key")), StoreUnavailable)
    assert host.workers[0].status().mode == "memory"


# Hostile bodies


@settings(max_examples=150, deadline=None)
@given(
    st.sampled_from(["store", "host.put_override", "host.remove_override", "host.announce_reset"]),
    st.binary(max_size=20)
    | st.sampled_from(
        [b'["p","get","k"]\n', b'["p","set","k",1,0]\n', b'["p","add","k",-1,"x"]\n', b'["",1]']
    ),
)
def test_no_body_makes_the_supervisor_raise(name: str, body: bytes) -> None:
    clock = Clock()
    runtime = simulated_runtime(clock)
    pair = ChannelPair(clock)
    MembershipServer(runtime, SingleNode(runtime), max_connections=lambda: 1).serve(pair.supervisor)
    pair.worker.handle_notice("host.overrides", lambda _: None)
    pair.worker.handle_notice("host.pushed", lambda _: None)
    pair.worker.handle_notice("host.status", lambda _: None)
    pair.open()
    pair.worker.ask(name, body, 1).addErrback(lambda _: None)
    pair.carry()


@pytest.mark.parametrize("body", [b"x", b"[1]", b'[["rate","jane",null]]', b'[["rate",1,1]]'])
def test_a_garbled_list_of_refusals_closes_the_channel(body: bytes) -> None:
    host = Host(1)
    host.pairs[0].worker.tell("host.refused", body)
    host.carry()
    assert not host.pairs[0].supervisor.is_open


@pytest.mark.parametrize("name", ["host.overrides", "host.pushed", "host.status", "limits.forget"])
@pytest.mark.parametrize("body", [b"\xff", b"x\ny", b"{}", b"[1,2,3]", b'["cluster",0,null]'])
def test_a_garbled_notice_closes_the_channel(name: str, body: bytes) -> None:
    host = Host(1)
    supervisor: Channel = host.pairs[0].supervisor
    supervisor.tell(name, body)
    host.carry()
    assert not host.pairs[0].worker.is_open
