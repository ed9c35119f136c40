"""The store of a node in a cluster, over a shared store that can be slow, silent or away."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.task import Clock
from twisted.logger import LogEvent

from elemta.config import WhenValkeyIsDown
from elemta.errors import StoreUnavailable
from elemta.limits.failover import JOINING, BreakerState
from elemta.limits.local_fallback import Shares
from elemta.limits.memory import LocalStore
from elemta.limits.pending_returns import MAX_PENDING
from elemta.limits.store import LEASE_SECONDS, Decision, LimitSpec, Request
from elemta.limits.window import Bound
from tests.support.remote import DEADLINE, Network, Node, pass_time, used

MINUTE = 60_000_000
RATE = LimitSpec("rate", (Bound.of(9, MINUTE),))
OPEN = LimitSpec("open", leases=9)
HERE = LimitSpec("here", (Bound.of(9, MINUTE),), cluster=False)
ALLOW = LimitSpec("allow", (Bound.of(1, MINUTE),), when_down=WhenValkeyIsDown.ALLOW)
DEFER = LimitSpec("defer", (Bound.of(9, MINUTE),), when_down=WhenValkeyIsDown.DEFER)


def one(terms: LimitSpec, amount: int = 1) -> Request:
    return Request(terms, "jane", amount)


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def server(clock: Clock) -> LocalStore:
    return LocalStore(clock)


def modes(events: list[LogEvent]) -> list[str]:
    return [event["mode"] for event in events if event.get("event") == "limits.mode_changed"]


# While the shared store answers


def test_nodes_count_together(clock: Clock, server: LocalStore) -> None:
    nodes = [Node(clock, server, name, live=3) for name in "abc"]
    granted = [nodes[number % 3].ask(one(RATE)).granted for number in range(12)]
    assert granted == [True] * 9 + [False] * 3
    assert all(node.mode == "cluster" for node in nodes)


def test_what_the_node_alone_refuses_the_shared_store_is_not_asked(clock: Clock, server: LocalStore) -> None:
    node = Node(clock, server)
    full = LimitSpec("here", (Bound.of(0, MINUTE),), cluster=False)
    asked = node.remote.asked("acquire")
    assert not node.ask(one(full), one(RATE)).granted
    assert node.remote.asked("acquire") == asked


def test_what_the_shared_store_refuses_is_not_charged_here_either(clock: Clock, server: LocalStore) -> None:
    node = Node(clock, server)
    full = LimitSpec("full", (Bound.of(0, MINUTE),))
    own_lease = LimitSpec("own", leases=5, cluster=False)
    for _ in range(20):
        answer = node.ask(one(HERE), one(own_lease), one(full))
        assert [short.request.spec.name for short in answer.denials] == ["full"]
    assert used(node.local, HERE, "jane") == 0
    assert used(node.local, own_lease, "jane") == 0
    assert used(node.local, full, "jane") == 0


def test_what_is_only_observed_is_charged_beside_what_binds(clock: Clock, server: LocalStore) -> None:
    node = Node(clock, server)
    watched = LimitSpec("watched", (Bound.of(0, MINUTE),), binding=False)
    watched_here = LimitSpec("watched-here", (Bound.of(0, MINUTE),), binding=False, cluster=False)
    answer = node.ask(one(watched), one(watched_here), one(RATE), one(HERE))
    assert answer.granted
    assert {receipt.request.spec.name for receipt in answer.receipts} == {"rate", "here"}
    assert {short.request.spec.name for short in answer.denials} == {"watched", "watched-here"}


def test_what_is_given_back_is_given_back_in_both_places(clock: Clock, server: LocalStore) -> None:
    node = Node(clock, server)
    answer = node.ask(one(RATE), one(OPEN), one(HERE))
    assert [used(store, RATE, "jane") for store in (server, node.local)] == [1, 1]
    assert [used(store, OPEN, "jane") for store in (server, node.local)] == [1, 1]
    node.give_back(answer, answer)
    assert [used(store, RATE, "jane") for store in (server, node.local)] == [0, 0]
    assert [used(store, OPEN, "jane") for store in (server, node.local)] == [0, 0]
    assert used(node.local, HERE, "jane") == 0


def test_a_lease_that_a_worker_gave_by_itself_is_known_from_the_next_renewal_on(
    clock: Clock, server: LocalStore
) -> None:
    node = Node(clock, server)
    receipt = node.store.hold(one(OPEN))
    assert [used(store, OPEN, "jane") for store in (server, node.local)] == [0, 1]
    node.store.renew()
    pass_time(clock, 0.1)
    assert [used(store, OPEN, "jane") for store in (server, node.local)] == [1, 1]
    node.store.release([receipt])
    pass_time(clock, 0.1)
    assert [used(store, OPEN, "jane") for store in (server, node.local)] == [0, 0]


@pytest.mark.parametrize("network", [Network.UP, Network.SILENT])
def test_a_client_that_goes_away_meanwhile_is_charged_nothing(
    clock: Clock, server: LocalStore, network: Network
) -> None:
    node = Node(clock, server, live=3)
    node.remote.network = network
    got: list[Any] = []
    answer = node.store.acquire([one(RATE), one(OPEN), one(HERE)])
    assert isinstance(answer, Deferred)
    answer.addErrback(got.append)
    answer.cancel()
    assert got[0].check(CancelledError)
    pass_time(clock, 0.1)
    for store in (server, node.local):
        assert [used(store, terms, "jane") for terms in (RATE, OPEN, HERE)] == [0, 0, 0]


def test_an_error_of_our_own_is_no_outage_and_leaves_nothing_charged(
    clock: Clock, server: LocalStore
) -> None:
    node = Node(clock, server)

    def broken(requests: Any) -> Any:
        raise ZeroDivisionError

    server.acquire = broken  # type: ignore[method-assign]

    def later(requests: Any) -> Any:
        answer: Deferred[Any] = Deferred()
        clock.callLater(0.001, lambda: answer.errback(ZeroDivisionError()))
        return answer

    node.remote.acquire = later  # type: ignore[method-assign]
    got: list[Any] = []
    answer = node.store.acquire([one(HERE), one(RATE)])
    assert isinstance(answer, Deferred)
    answer.addErrback(got.append)
    pass_time(clock, 0.01)
    assert got[0].check(ZeroDivisionError)
    assert used(node.local, HERE, "jane") == 0
    assert node.mode == "cluster"


# When it does not


def test_a_call_that_fails_is_decided_here_at_its_deadline(clock: Clock, server: LocalStore) -> None:
    node = Node(clock, server, live=3)
    node.remote.network = Network.SILENT
    got: list[Decision] = []
    answer = node.store.acquire([one(RATE), one(HERE)])
    assert isinstance(answer, Deferred)
    answer.addCallback(got.append)
    pass_time(clock, DEADLINE - 0.002)
    assert not got
    pass_time(clock, 0.004)
    assert got[0].granted
    assert [used(node.local, terms, "jane") for terms in (RATE, HERE)] == [1, 1]
    assert node.mode == "cluster"


def test_after_three_failures_nothing_is_asked_and_nothing_waits(clock: Clock, server: LocalStore) -> None:
    node = Node(clock, server, live=3)
    node.remote.network = Network.SILENT
    for _ in range(3):
        assert node.mode == "cluster"
        node.ask(one(HERE), one(RATE))
    assert node.mode == "local"
    asked = len(node.remote.calls)
    for _ in range(1000):
        answers = [
            node.store.acquire([one(RATE), one(OPEN)]),
            node.store.peek([one(RATE)]),
            node.store.renew(),
        ]
        assert not any(isinstance(answer, Deferred) for answer in answers)
        if answers[0].granted:
            assert node.store.release(answers[0].receipts) is None
            assert node.store.refund(answers[0].receipts) is None
    assert len(node.remote.calls) == asked


def test_a_lost_connection_is_enough(clock: Clock, server: LocalStore) -> None:
    node = Node(clock, server)
    node.link.set(False)
    assert node.mode == "local"
    assert isinstance(node.store.acquire([one(RATE)]), Decision)


def test_the_share_begins_with_what_this_node_admitted(clock: Clock, server: LocalStore) -> None:
    little, much, none = (Node(clock, server, name, live=3) for name in ("a", "b", "c"))
    assert little.ask(one(RATE)).granted
    assert all(much.ask(one(RATE)).granted for _ in range(5))
    admitted = {}
    for node in (little, much, none):
        node.lose()
        admitted[node.fleet.node_id] = sum(node.ask(one(RATE)).granted for _ in range(20))
    # 9 for three nodes is 3 each.
    assert admitted == {"a": 2, "b": 0, "c": 3}


def test_the_share_rolls_like_the_limit(clock: Clock, server: LocalStore) -> None:
    node = Node(clock, server, live=3)
    node.ask(one(RATE))
    clock.advance(20)
    node.lose()
    assert [node.ask(one(RATE)).granted for _ in range(3)] == [True, True, False]
    (short,) = node.ask(one(RATE)).denials
    assert short.wait is not None
    clock.advance(short.wait / 1_000_000 - 0.00001)
    assert not node.ask(one(RATE)).granted
    clock.advance(0.00002)
    assert [node.ask(one(RATE)).granted for _ in range(2)] == [True, False]


def test_even_the_smallest_share_is_one_but_nothing_is_no_share_of_nothing() -> None:
    shares = Shares()
    terms = LimitSpec("m", (Bound.of(2, MINUTE), Bound.of(0, MINUTE), Bound.of(300, MINUTE)), leases=2)
    share = shares.of(terms, 7)
    assert [bound.limit for bound in share.bounds] == [1, 0, 42]
    assert [bound.grain for bound in share.bounds] == [bound.grain for bound in terms.bounds]
    assert share.leases == 1
    assert shares.of(terms, 7) is share
    assert shares.of(terms, 1) is terms
    assert [bound.limit for bound in shares.of(terms, 2).bounds] == [1, 0, 150]


def test_open_connections_have_a_share_of_those_that_are_held(clock: Clock, server: LocalStore) -> None:
    node = Node(clock, server, live=3)
    held = [node.ask(one(OPEN)) for _ in range(5)]
    node.lose()
    assert not node.ask(one(OPEN)).granted
    node.give_back(*held[:3])
    assert [node.ask(one(OPEN)).granted for _ in range(2)] == [True, False]


def test_a_limit_that_allows_lets_all_pass_and_charges_nothing(clock: Clock, server: LocalStore) -> None:
    node = Node(clock, server)
    node.ask(one(ALLOW))
    node.lose()
    assert all(node.ask(one(ALLOW)).granted for _ in range(50))
    assert used(node.local, ALLOW, "jane") == 1
    (fill,) = node.store.peek([one(ALLOW)])  # type: ignore[misc]
    assert (fill.used, fill.wait) == ((1,), 0)


def test_a_limit_that_defers_says_so_and_charges_nobody(clock: Clock, server: LocalStore) -> None:
    node = Node(clock, server)
    node.lose()
    with pytest.raises(StoreUnavailable):
        node.store.acquire([one(HERE), one(RATE), one(DEFER)])
    with pytest.raises(StoreUnavailable):
        node.store.peek([one(DEFER)])
    assert [used(node.local, terms, "jane") for terms in (HERE, RATE, DEFER)] == [0, 0, 0]


def test_a_limit_that_defers_says_so_for_a_call_that_fails(clock: Clock, server: LocalStore) -> None:
    node = Node(clock, server)
    node.remote.network = Network.SILENT
    got: list[Any] = []
    answer = node.store.acquire([one(HERE), one(DEFER)])
    assert isinstance(answer, Deferred)
    answer.addErrback(got.append)
    pass_time(clock, DEADLINE)
    assert got[0].check(StoreUnavailable)
    assert used(node.local, HERE, "jane") == 0


def test_a_limit_that_is_only_observed_defers_nobody(clock: Clock, server: LocalStore) -> None:
    node = Node(clock, server)
    node.lose()
    watched = LimitSpec("w", (Bound.of(1, MINUTE),), binding=False, when_down=WhenValkeyIsDown.DEFER)
    assert node.ask(one(watched)).granted


def test_what_is_more_than_the_share_is_not_refused_for_good(clock: Clock, server: LocalStore) -> None:
    node = Node(clock, server, live=3)
    node.lose()
    size = LimitSpec("bytes", (Bound.of(900, MINUTE, weighted=True),))
    (short,) = node.ask(one(size, 500)).denials
    assert short.wait is not None
    assert short.wait > 0
    (short,) = node.ask(one(size, 901)).denials
    assert short.wait is None


def test_what_this_node_says_alone_is_not_to_be_remembered(clock: Clock, server: LocalStore) -> None:
    node = Node(clock, server, live=9)
    node.lose()
    assert node.ask(one(RATE), one(HERE)).granted
    assert [short.provisional for short in node.ask(one(RATE)).denials] == [True]
    for _ in range(8):
        node.ask(one(HERE))
    assert [short.provisional for short in node.ask(one(HERE)).denials] == [False]


# The way there and back


def test_it_begins_alone_and_joins_when_the_connection_is_there(
    clock: Clock, server: LocalStore, events: list[LogEvent]
) -> None:
    node = Node(clock, server, up=False)
    joined: list[bool] = []
    node.store.joined(5).addCallback(joined.append)
    assert node.ask(one(RATE)).granted
    assert node.mode == "local"
    pass_time(clock, JOINING)
    assert modes(events) == ["local"]
    node.regain(0.01)
    assert node.mode == "cluster"
    assert joined == [True]
    assert modes(events) == ["local", "cluster"]


def test_who_waits_for_the_cluster_waits_no_longer_than_he_says(clock: Clock, server: LocalStore) -> None:
    node = Node(clock, server, up=False)
    joined: list[bool] = []
    node.store.joined(0.5).addCallback(joined.append)
    pass_time(clock, 0.6)
    assert joined == [False]


def test_the_way_back_takes_two_good_probes(clock: Clock, server: LocalStore) -> None:
    node = Node(clock, server)
    clock.advance(60)
    node.lose(Network.SILENT)
    node.link.set(True)
    pass_time(clock, 3)
    assert node.mode == "local"
    assert 5 <= node.remote.asked("acquire") <= 9
    node.remote.network = Network.UP
    states = []
    for _ in range(100):
        pass_time(clock, 0.01)
        states.append(node.store.breaker)
    assert node.mode == "cluster"
    assert node.modes == ["local", "cluster"] * 2
    assert list(dict.fromkeys(states))[-2:] == [BreakerState.HALF_OPEN, BreakerState.CLOSED]


def test_there_is_one_line_for_each_change(clock: Clock, server: LocalStore, events: list[LogEvent]) -> None:
    node = Node(clock, server, live=3)
    for _ in range(3):
        clock.advance(60)
        node.lose()
        for _ in range(100):
            node.ask(one(RATE))
            clock.advance(0.1)
        node.regain()
    assert modes(events) == ["cluster"] + ["local", "cluster"] * 3
    away = [event for event in events if event.get("mode") == "local"]
    assert away[0]["live_nodes"] == 3
    assert away[0]["reason"] == "the connection is lost"


def test_a_store_that_takes_no_charges_is_not_back(clock: Clock, server: LocalStore) -> None:
    node = Node(clock, server)

    def full(requests: Any) -> Any:
        raise StoreUnavailable("OOM command not allowed when used memory > 'maxmemory'")

    charge, server.acquire = server.acquire, full  # type: ignore[method-assign]
    node.remote.acquire = lambda requests: _failed(clock)  # type: ignore[assignment,method-assign]
    for _ in range(3):
        node.ask(one(RATE))
    pass_time(clock, 5)
    assert node.mode == "local"
    server.acquire = charge  # type: ignore[method-assign]
    del node.remote.acquire
    pass_time(clock, 1)
    assert node.mode == "cluster"


def _failed(clock: Clock) -> Deferred[Any]:
    answer: Deferred[Any] = Deferred()
    clock.callLater(0.001, lambda: answer.errback(StoreUnavailable("OOM")))
    return answer


def test_what_was_given_back_meanwhile_is_given_back_when_it_returns(
    clock: Clock, server: LocalStore
) -> None:
    node = Node(clock, server)
    before = [node.ask(one(RATE), one(OPEN)) for _ in range(5)]
    node.lose()
    node.give_back(*before[:3])
    node.give_back(*before[:2])
    assert (used(server, RATE, "jane"), used(server, OPEN, "jane")) == (5, 5)
    node.regain()
    assert (used(server, RATE, "jane"), used(server, OPEN, "jane")) == (2, 2)
    assert (used(node.local, RATE, "jane"), used(node.local, OPEN, "jane")) == (2, 2)


def test_connections_that_were_opened_meanwhile_count_before_anybody_asks(
    clock: Clock, server: LocalStore
) -> None:
    node, other = Node(clock, server, "a", live=2), Node(clock, server, "b", live=2)
    node.lose()
    unasked = LimitSpec("any", leases=1, when_down=WhenValkeyIsDown.ALLOW)
    opened = [node.ask(one(OPEN), one(unasked)) for _ in range(4)]
    node.give_back(opened[0])
    assert used(server, OPEN, "jane") == 0
    node.regain()
    assert (used(server, OPEN, "jane"), used(server, unasked, "jane")) == (3, 3)
    assert sum(other.ask(one(OPEN)).granted for _ in range(20)) == 6
    node.give_back(*opened)
    assert (used(server, OPEN, "jane"), used(server, unasked, "jane")) == (6, 0)


def test_a_connection_let_in_after_a_single_failure_is_told_with_the_next_renewal(
    clock: Clock, server: LocalStore
) -> None:
    node = Node(clock, server, live=2)
    node.remote.network = Network.SILENT
    lent = node.ask(one(OPEN))
    node.remote.network = Network.UP
    assert node.mode == "cluster"
    assert used(server, OPEN, "jane") == 0
    for _ in range(2):
        node.store.renew()
        pass_time(clock, 0.01)
        assert used(server, OPEN, "jane") == 1
    node.give_back(lent)
    assert (used(server, OPEN, "jane"), used(node.local, OPEN, "jane")) == (0, 0)


def test_what_happens_during_the_way_back_is_told_too(clock: Clock, server: LocalStore) -> None:
    node = Node(clock, server, live=2)
    before = node.ask(one(OPEN), one(RATE))
    clock.advance(60)
    node.lose()
    node.remote.latency = 0.04
    node.remote.network = Network.UP
    node.link.set(True)
    while node.remote.asked("renew") < 2:
        clock.advance(0.001)
    assert node.mode == "local"
    # Everything so far is being written to the shared store.
    lent = node.ask(one(OPEN))
    node.store.refund(before.receipts)
    node.store.release(before.receipts)
    pass_time(clock, 0.2)
    assert node.mode == "cluster"
    node.store.renew()
    pass_time(clock, 0.1)
    assert (used(server, OPEN, "jane"), used(server, RATE, "jane")) == (1, 0)
    node.give_back(lent)
    pass_time(clock, 0.1)
    assert used(server, OPEN, "jane") == 0


def test_what_is_owed_is_bounded_and_no_lease_is_forgotten(clock: Clock, server: LocalStore) -> None:
    node = Node(clock, server)
    wide = LimitSpec("wide", (Bound.of(10**9, MINUTE, weighted=True),))
    leases = [node.ask(Request(OPEN, str(number))) for number in range(3)]
    charges = []
    for _ in range(MAX_PENDING + 10):
        answer = server.acquire([one(wide)])
        for receipt in answer.receipts:
            receipt.mirror = node.local.record(receipt.request)
        charges += answer.receipts
    node.lose()
    for answer in leases:
        node.store.release(answer.receipts)
    released = node.remote.asked("release")
    node.store.refund(charges)
    assert node.remote.asked("release") == released + 3
    node.regain(3)
    assert used(server, wide, "jane") == 10


# For people


def test_how_full_a_limit_is_comes_from_where_it_is_counted(clock: Clock, server: LocalStore) -> None:
    node, other = Node(clock, server, "a", live=2), Node(clock, server, "b", live=2)
    for each in (node, other, other):
        each.ask(one(RATE), one(HERE))
    got: list[Any] = []
    node.store.peek([one(HERE), one(RATE)]).addCallback(got.append)  # type: ignore[union-attr]
    node.store.top(RATE, 5).addCallback(got.append)  # type: ignore[union-attr]
    pass_time(clock, 0.01)
    assert [fill.used for fill in got[0]] == [(1,), (3,)]
    assert (got[1].usages[0].used, got[1].complete) == ((3,), True)
    node.lose()
    assert [fill.used for fill in node.store.peek([one(HERE), one(RATE)])] == [(1,), (1,)]  # type: ignore[union-attr]
    ranking = node.store.top(RATE, 5)
    assert not isinstance(ranking, Deferred)
    assert (ranking.usages[0].used, ranking.complete) == ((1,), False)
    # The limit itself: which share of it is this node's is known where it is shown.
    assert ranking.usages[0].request.spec is RATE


def test_a_reset_reaches_every_node(clock: Clock, server: LocalStore) -> None:
    node, other = Node(clock, server, "a", live=2), Node(clock, server, "b", live=2)
    for each in (node, other):
        each.ask(one(RATE))
    got: list[bool] = []
    node.store.reset(RATE, "jane").addCallback(got.append)  # type: ignore[union-attr]
    pass_time(clock, 0.01)
    assert got == [True]
    assert node.fleet.announced == [("rate", "jane")]
    for callback in other.fleet.callbacks:
        callback("rate", "jane")
        callback("no such limit", "jane")
    assert [used(store, RATE, "jane") for store in (server, node.local, other.local)] == [0, 0, 0]
    node.lose()
    with pytest.raises(StoreUnavailable, match="only this node"):
        node.store.reset(RATE, "jane")
    assert node.store.reset(HERE, "jane") is False


# In any order

steps = st.lists(
    st.tuples(
        st.sampled_from(["ask", "ask", "ask", "give back", "abandon", "wait", "lose", "silence", "regain"]),
        st.integers(0, 2),
        st.integers(0, 50),
    ),
    max_size=60,
)


@settings(max_examples=100, deadline=None)
@given(steps)
def test_whatever_happens_nothing_stays_behind(steps: list[tuple[str, int, int]]) -> None:
    clock = Clock()
    server = LocalStore(clock)
    nodes = [Node(clock, server, name, live=3) for name in "abc"]
    kept: list[tuple[Node, Decision]] = []
    for word, which, number in steps:
        node = nodes[which]
        if word == "ask":
            answer = node.ask(one(RATE), one(OPEN), one(HERE))
            if answer.granted:
                kept.append((node, answer))
        elif word == "give back" and kept:
            owner, answer = kept.pop(number % len(kept))
            owner.give_back(answer)
        elif word == "abandon":
            pending = node.store.acquire([one(OPEN)])
            if isinstance(pending, Deferred):
                pending.addCallbacks(node.give_back, lambda failure: failure.trap(CancelledError))
                clock.advance(number / 1000)
                pending.cancel()
            elif pending.granted:
                node.give_back(pending)
        elif word == "wait":
            pass_time(clock, number / 50)
        elif word == "lose":
            node.lose()
        elif word == "silence":
            node.remote.network = Network.SILENT
        elif word == "regain":
            node.regain(number / 50)
        for each in nodes:
            assert used(each.local, OPEN, "jane") <= 9
    for owner, answer in kept:
        owner.give_back(answer)
    for node in nodes:
        node.regain(3)
        assert node.mode == "cluster"
        node.store.renew()
    pass_time(clock, LEASE_SECONDS)
    for store in (server, *(node.local for node in nodes)):
        assert used(store, OPEN, "jane") == 0
    assert [used(node.local, HERE, "jane") for node in nodes] == [0, 0, 0]
    assert [used(node.local, RATE, "jane") for node in nodes] == [0, 0, 0]
