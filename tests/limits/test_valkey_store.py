"""The store in Valkey, on a real server: its keys, what goes back, and what becomes of lost answers."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.task import Clock
from twisted.python.failure import Failure
from zope.interface.verify import verifyObject

from elemta.errors import StoreUnavailable, ValkeyError, ValkeyFailure
from elemta.limits.store import LEASE_SECONDS, Decision, ILimitStore, LimitSpec, Receipt, Request
from elemta.limits.valkey_calls import DECISIONS
from elemta.limits.valkey_returns import CANCELLED_AT_ONCE
from elemta.limits.valkey_store import MOST_WAITING, ValkeyStore
from elemta.limits.window import Bound
from elemta.runtime import Runtime
from tests.support.blocking_valkey import BlockingValkey, TimedValkey, result
from tests.support.valkey import ValkeyServer

SECOND = 10**6
START = 1_700_000_000 * SECOND


@pytest.fixture(scope="module")
def server() -> Iterator[ValkeyServer]:
    with ValkeyServer() as server:
        yield server


class Node:
    """A store, and the time that it and its server see."""

    def __init__(self, valkey: TimedValkey, name: str = "mx1") -> None:
        self.valkey = valkey
        self.clock = Clock()
        self.store = ValkeyStore(
            valkey, prefix="elemta:ratelimit:", node_id=name, runtime=Runtime.of(self.clock)
        )  # type: ignore[arg-type]

    def ask(self, *requests: Request) -> Decision:
        answer: Decision = self.now(self.store.acquire(requests))
        return answer

    def now(self, later: Any) -> Any:
        """What comes of it by the end of this turn."""
        self.clock.advance(0)
        return result(later)

    def used(self, terms: LimitSpec, identity: str = "a") -> int:
        (fill,) = self.now(self.store.peek([Request(terms, identity)]))
        used: int = fill.used[0]
        return used

    def later(self, seconds: float) -> None:
        self.valkey.set(self.valkey.now + round(seconds * SECOND))
        self.clock.advance(seconds)


@pytest.fixture
def valkey(server: ValkeyServer) -> Iterator[TimedValkey]:
    valkey = TimedValkey(server, now=START)
    valkey.forget()
    yield valkey
    valkey.talk.close()


@pytest.fixture
def node(valkey: TimedValkey) -> Node:
    return Node(valkey)


def rate(name: str, limit: int, seconds: float = 60, *, binding: bool = True) -> LimitSpec:
    return LimitSpec(name, (Bound.of(limit, round(seconds * SECOND)),), binding=binding)


IP = rate("ip", 100)
MANY = rate("many", 1000)
CONNECTIONS = LimitSpec("connections-per-ip", leases=3)


def lost(*names: str) -> Callable[..., None]:
    """The answers to these scripts come too late."""

    def after(script: Any, keys: Sequence[bytes], args: Sequence[Any]) -> None:
        if script.name in names:
            raise ValkeyError(ValkeyFailure.DEADLINE, "no answer in time", maybe_done=True)

    return after


def refused(script: Any, keys: Sequence[bytes], args: Sequence[Any]) -> None:
    """Nothing is sent."""
    raise ValkeyError(ValkeyFailure.DISCONNECTED, "not connected")


def test_it_is_a_limit_store(node: Node) -> None:
    assert verifyObject(ILimitStore, node.store)


# What is in the keys.


def test_the_log_has_one_member_for_each_that_passed(node: Node) -> None:
    for _ in range(130):
        node.ask(Request(IP, "127.0.0.1"))
    assert node.valkey.talk("ZCARD", "elemta:ratelimit:ip:127.0.0.1") == 100


def test_scores_are_the_servers_microseconds(node: Node) -> None:
    node.later(0.000123)
    node.ask(Request(IP, "a"))
    assert node.valkey.talk("ZRANGE", "elemta:ratelimit:ip:a", 0, 0, "WITHSCORES")[1] == b"1700000000000123"


def test_sub_buckets_are_in_a_hash_under_a_key_of_their_own(node: Node) -> None:
    for _ in range(7):
        node.ask(Request(MANY, "a"))
        node.later(1.5)
    assert node.valkey.talk("KEYS", "elemta:ratelimit:many:*") == [b"elemta:ratelimit:many:a~"]
    assert node.valkey.talk("HGET", "elemta:ratelimit:many:a~", "t1") == b"7"
    assert node.used(MANY) == 7


def test_large_amounts_are_written_as_plain_numbers(node: Node) -> None:
    terms = LimitSpec("volume", (Bound.of(10**13, 60 * SECOND, weighted=True),))
    node.ask(Request(terms, "a", 10**12))
    node.ask(Request(terms, "a", 10**9))
    assert node.valkey.talk("HGET", "elemta:ratelimit:volume:a~", "t1") == b"1001000000000"
    assert node.used(terms) == 10**12 + 10**9
    assert node.ask(Request(terms, "a", 9 * 10**12)).denials[0].wait == 60 * SECOND


def test_every_key_expires_when_nothing_in_it_counts_any_more(server: ValkeyServer, node: Node) -> None:
    # On the server's own time: the expiry is its own.
    node.valkey.talk("FLUSHALL")
    valkey, clock = BlockingValkey(server), Clock()
    store = ValkeyStore(valkey, prefix="elemta:ratelimit:", node_id="mx1", runtime=Runtime.of(clock))  # type: ignore[arg-type]
    both = LimitSpec("both", (Bound.of(5, SECOND), Bound.of(500, 3600 * SECOND)))
    later = store.acquire([Request(IP, "a"), Request(both, "a"), Request(CONNECTIONS, "a")])
    clock.advance(0)
    assert result(later).granted
    lives = {key: valkey.talk("PTTL", key) for key in valkey.talk("KEYS", "*")}
    valkey.talk.close()
    longest = {
        b"elemta:ratelimit:ip:a": 60_000,
        b"elemta:ratelimit:both:a": 1000,
        b"elemta:ratelimit:both:a~": 3_660_000,
        b"elemta:ratelimit:connections-per-ip:a": 30_000,
    }
    assert set(longest) < set(lives), "and the note about the call"
    assert all(0 < life <= longest.get(key, 10_000) for key, life in lives.items())


def test_a_key_of_another_limit_or_identity_is_another_key(node: Node) -> None:
    node.ask(Request(IP, "a"))
    assert node.used(IP, "b") == 0
    assert node.used(rate("ip2", 100), "a") == 0


# One call for a turn of the reactor.


def test_all_that_is_asked_in_one_turn_is_one_call(node: Node) -> None:
    few = DECISIONS - 1
    later = [node.store.acquire([Request(IP, f"10.0.0.{n}"), Request(MANY, "a")]) for n in range(few)]
    assert node.valkey.calls == []
    node.clock.advance(0)
    assert all(result(answer).granted for answer in later)
    assert node.valkey.calls == ["acquire"]


def test_a_call_that_is_full_is_sent_before_the_turn_ends(node: Node) -> None:
    later = [node.store.acquire([Request(IP, f"10.0.0.{n}")]) for n in range(2 * DECISIONS + 1)]
    assert node.valkey.calls == ["acquire"] * 2
    node.clock.advance(0)
    assert all(result(answer).granted for answer in later)
    assert node.valkey.calls == ["acquire"] * 3


def test_what_callers_ask_when_a_call_fails_at_once_waits_for_the_turn(node: Node) -> None:
    """Else each of them would go deeper into the stack."""
    node.valkey.before = refused
    asked: list[Deferred[Decision]] = []

    def ask_two(failure: Failure) -> None:
        failure.trap(StoreUnavailable)
        asked.extend(node.store.acquire([Request(IP, "a")]) for _ in range(2))

    for _ in range(DECISIONS - 1):
        node.store.acquire([Request(IP, "a")]).addErrback(ask_two)
    asked.append(node.store.acquire([Request(IP, "a")]))
    assert node.valkey.calls == ["acquire"]
    assert len(asked) == 2 * (DECISIONS - 1) + 1
    node.clock.advance(0)
    assert node.valkey.calls == ["acquire"] * 3
    for each in asked:
        with pytest.raises(StoreUnavailable):
            result(each)


def test_decisions_of_one_turn_see_each_others_charges(node: Node) -> None:
    five = rate("five", 5)
    later = [node.store.acquire([Request(five, "a"), Request(MANY, "a")]) for _ in range(20)]
    node.clock.advance(0)
    assert [result(answer).granted for answer in later] == [True] * 5 + [False] * 15
    assert (node.used(five), node.used(MANY)) == (5, 5)


def test_one_call_is_bounded(node: Node) -> None:
    sizes: list[int] = []
    node.valkey.before = lambda script, keys, args: sizes.append(len(keys))
    wide = [[Request(IP, f"{n}-{m}") for m in range(100)] for n in range(3)]
    many = [[Request(IP, str(n))] for n in range(200)]
    later = [node.store.acquire(requests) for requests in [*wide, *many]]
    node.clock.advance(0)
    assert all(result(answer).granted for answer in later)
    assert max(sizes) <= 192
    assert len(sizes) == 2 + -(-200 // DECISIONS)


def test_a_decision_with_more_keys_than_a_call_should_have_is_still_one(node: Node) -> None:
    full = rate("full", 1)
    node.ask(Request(full, "x"))
    recipients = [Request(IP, str(n)) for n in range(1000)]
    assert not node.ask(*recipients, Request(full, "x")).granted
    assert node.valkey.talk("DBSIZE") == 3, "the full one, and what the test keeps"
    assert node.ask(*recipients).granted


# All or none.


def test_only_so_many_decisions_wait_and_the_next_is_told_so_at_once(node: Node) -> None:
    node.valkey.late = True
    waiting = [node.store.acquire([Request(MANY, str(number))]) for number in range(MOST_WAITING // 2)]
    node.clock.advance(0)
    waiting += [node.store.acquire([Request(MANY, str(number))]) for number in range(MOST_WAITING // 2)]
    with pytest.raises(ValkeyError) as refused:
        result(node.store.acquire([Request(MANY, "a")]))
    assert refused.value.kind is ValkeyFailure.OVERLOADED
    assert not refused.value.maybe_done
    node.valkey.deliver()
    node.clock.advance(0)
    node.valkey.deliver()
    assert all(result(answer).granted for answer in waiting)
    node.valkey.late = False
    assert all(node.ask(Request(MANY, "a")).granted for _ in range(2))
    assert node.used(MANY) == 2, "what was not asked is not charged"


def test_calls_that_fail_make_room_for_others(node: Node) -> None:
    node.valkey.before = lost("acquire")
    for _ in range(2):
        lots = [node.store.acquire([Request(IP, str(number))]) for number in range(MOST_WAITING)]
        node.clock.advance(0)
        for answer in lots:
            with pytest.raises(StoreUnavailable):
                result(answer)


def test_a_full_limit_leaves_the_others_uncharged(node: Node) -> None:
    full, roomy, other = rate("full", 1), rate("roomy", 5), rate("other", 500)
    requests = [Request(roomy, "a"), Request(full, "a"), Request(other, "a"), Request(CONNECTIONS, "a")]
    assert node.ask(*requests).granted
    keys = [f"elemta:ratelimit:{name}:a" for name in ("roomy", "connections-per-ip")]
    before = [node.valkey.talk("ZRANGE", key, 0, -1, "WITHSCORES") for key in keys]
    for _ in range(1000):
        answer = node.ask(*requests)
        assert not answer.granted
        assert answer.receipts == ()
        assert [shortfall.request.spec.name for shortfall in answer.denials] == ["full"]
    assert [node.valkey.talk("ZRANGE", key, 0, -1, "WITHSCORES") for key in keys] == before
    assert node.used(other) == 1


def test_what_does_not_bind_is_charged_by_itself_and_only_with_what_binds(node: Node) -> None:
    watched, binding = rate("watched", 1, binding=False), rate("binding", 3)
    answers = [node.ask(Request(watched, "a"), Request(binding, "a")) for _ in range(4)]
    assert [answer.granted for answer in answers] == [True, True, True, False]
    assert [len(answer.receipts) for answer in answers] == [2, 1, 1, 0]
    assert [[short.request.spec.name for short in answer.denials] for answer in answers] == [
        [],
        ["watched"],
        ["watched"],
        ["binding"],
    ]


def test_a_refusal_tells_when_it_would_pass_and_then_it_does(node: Node) -> None:
    terms = LimitSpec("l", (Bound.of(3, 10 * SECOND), Bound.of(200, 60 * SECOND)))
    for _ in range(3):
        node.ask(Request(terms, "a"))
        node.later(1)
    (shortfall,) = node.ask(Request(terms, "a", 2)).denials
    assert shortfall.wait == 8 * SECOND
    node.later(8 - 1e-6)
    assert not node.ask(Request(terms, "a", 2)).granted
    node.later(1e-6)
    assert node.ask(Request(terms, "a", 2)).granted


def test_an_amount_above_a_limit_never_passes(node: Node) -> None:
    for request in (Request(IP, "a", 101), Request(MANY, "a", 1001), Request(CONNECTIONS, "a", 4)):
        assert [shortfall.wait for shortfall in node.ask(request).denials] == [None]


# Given back.


@pytest.mark.parametrize("terms", [IP, MANY, LimitSpec("both", (*IP.bounds, *MANY.bounds))])
def test_a_refund_takes_back_exactly_what_was_charged_and_once(node: Node, terms: LimitSpec) -> None:
    node.ask(Request(terms, "a", 5))
    (receipt,) = node.ask(Request(terms, "a", 3)).receipts
    node.later(2)
    node.ask(Request(terms, "a", 4))
    for _ in range(2):
        node.now(node.store.refund([receipt]))
        assert node.used(terms) == 9


@pytest.mark.parametrize("terms", [IP, MANY, LimitSpec("both", (*IP.bounds, *MANY.bounds))])
def test_what_was_given_back_as_a_whole_leaves_no_key(node: Node, terms: LimitSpec) -> None:
    first, second = (node.ask(Request(terms, "a", amount)).receipts for amount in (2, 3))
    node.now(node.store.refund(first))
    assert node.used(terms) == 3
    node.now(node.store.refund(second))
    assert node.valkey.talk("KEYS", f"elemta:ratelimit:{terms.name}:*") == []
    node.later(1)
    node.ask(Request(terms, "a", 4))
    assert node.used(terms) == 4


def test_a_refund_after_its_expiry_is_nothing(node: Node) -> None:
    receipts = [*node.ask(Request(IP, "a", 3)).receipts, *node.ask(Request(MANY, "a", 3)).receipts]
    node.later(61.5)
    node.ask(Request(IP, "a", 4), Request(MANY, "a", 4))
    node.now(node.store.refund(receipts))
    assert (node.used(IP), node.used(MANY)) == (4, 4)


@pytest.mark.parametrize("terms", [IP, MANY])
def test_a_refund_of_what_was_reset_takes_nothing_from_what_came_after(node: Node, terms: LimitSpec) -> None:
    receipts = node.ask(Request(terms, "a", 3)).receipts
    assert node.now(node.store.reset(terms, "a"))
    node.later(0.000001)
    node.ask(Request(terms, "a", 2))
    node.now(node.store.refund(receipts))
    assert node.used(terms) == 2


def test_all_refunds_of_a_turn_are_one_call(node: Node) -> None:
    receipts = [node.ask(Request(IP, str(n))).receipts for n in range(20)]
    node.valkey.calls.clear()
    later = [node.store.refund(some) for some in receipts]
    node.clock.advance(0)
    assert [result(done) for done in later] == [None] * 20
    assert node.valkey.calls == ["return"]


def test_a_refund_without_an_answer_is_tried_once_more_where_that_can_not_be_twice(node: Node) -> None:
    (of_log,) = node.ask(Request(IP, "a")).receipts
    (of_buckets,) = node.ask(Request(MANY, "a")).receipts
    node.ask(Request(MANY, "a", 4))
    node.valkey.after = lost("return")
    first, second = node.store.refund([of_log]), node.store.refund([of_buckets])
    node.clock.advance(0)
    with pytest.raises(StoreUnavailable):
        result(second)
    assert node.used(MANY) == 4, "it was done, and is not done again"
    node.valkey.after = lambda *_: None
    node.later(1)
    assert result(first) is None
    assert (node.used(IP), node.used(MANY)) == (0, 4)


def test_a_refund_that_valkey_does_not_take_fails_after_the_second_try(node: Node) -> None:
    def refuse(*_: Any) -> None:
        raise ValkeyError(ValkeyFailure.DISCONNECTED, "not connected")

    later = node.store.refund(node.ask(Request(MANY, "a")).receipts)
    node.valkey.before = refuse
    node.clock.advance(0)
    node.later(1)
    with pytest.raises(StoreUnavailable):
        result(later)
    assert node.valkey.calls.count("return") == 2


# Answers that were lost.


@pytest.mark.parametrize("terms", [IP, MANY, CONNECTIONS])
def test_what_was_charged_without_our_knowing_is_taken_back(node: Node, terms: LimitSpec) -> None:
    node.ask(Request(terms, "a"))
    node.valkey.after = lost("acquire")
    for _ in range(2):
        with pytest.raises(StoreUnavailable):
            node.ask(Request(terms, "a"), Request(IP, "b", 3))
    assert node.used(terms) == 3
    assert node.store.held(CONNECTIONS, "a") == (1 if terms is CONNECTIONS else 0)
    node.valkey.after = lambda *_: None
    node.later(1)
    assert node.used(terms) == 1
    node.later(1)
    node.later(20)
    assert node.valkey.calls.count("cancel") == 4, "twice each, and then no more"
    assert node.valkey.talk("ZCARD", "elemta:ratelimit:ip:b") == 0


def test_a_cancellation_that_has_overtaken_its_call_comes_again(node: Node) -> None:
    sent: list[Any] = []

    def slow(script: Any, keys: Sequence[bytes], args: Sequence[Any]) -> None:
        if script.name == "acquire" and not sent:
            sent.append((script, keys, args))
            raise ValkeyError(ValkeyFailure.DEADLINE, "no answer in time", maybe_done=True)

    node.valkey.before = slow
    with pytest.raises(StoreUnavailable):
        node.ask(Request(IP, "a"), Request(MANY, "a"))
    node.later(1)
    node.valkey.evaluate(*sent[0])
    assert (node.used(IP), node.used(MANY)) == (1, 1)
    node.later(1)
    assert (node.used(IP), node.used(MANY)) == (0, 0)


def test_lost_calls_are_taken_back_a_few_at_a_time_so_that_valkey_has_time_for_others(node: Node) -> None:
    node.valkey.after = lost("acquire")
    for number in range(50):
        with pytest.raises(StoreUnavailable):
            node.ask(Request(IP, str(number)))
    node.valkey.after = lambda *_: None
    node.valkey.late = True
    node.later(1)
    assert node.valkey.calls.count("cancel") == CANCELLED_AT_ONCE
    for _ in range(50):
        node.valkey.deliver()
        before = node.valkey.calls.count("cancel")
        node.later(0.01)
        assert node.valkey.calls.count("cancel") - before <= CANCELLED_AT_ONCE
    assert node.valkey.calls.count("cancel") >= 50
    node.valkey.late = False
    assert not any(node.used(IP, str(number)) for number in range(50))


def test_only_so_many_lost_calls_are_remembered_and_not_for_long(node: Node) -> None:
    node.valkey.after = lost("acquire", "cancel")
    for _ in range(600):
        with pytest.raises(StoreUnavailable):
            node.ask(Request(IP, "a", 100))
        node.valkey.talk("DEL", "elemta:ratelimit:ip:a")
    for _ in range(12):
        node.later(1)
    assert node.valkey.calls.count("cancel") <= 512 * 10
    assert not node.clock.getDelayedCalls()


def test_what_was_not_sent_needs_no_cancellation(node: Node) -> None:
    def refuse(*_: Any) -> None:
        raise ValkeyError(ValkeyFailure.DISCONNECTED, "not connected")

    node.valkey.before = refuse
    with pytest.raises(StoreUnavailable):
        node.ask(Request(IP, "a"))
    assert not node.clock.getDelayedCalls()


@pytest.mark.parametrize("clustered", [False, True])
def test_what_is_granted_to_a_caller_that_has_gone_is_given_back(
    server: ValkeyServer, clustered: bool
) -> None:
    valkey = TimedValkey(server, clustered=clustered, now=START)
    valkey.forget()
    node = Node(valkey)
    valkey.late = True
    later = node.store.acquire([Request(IP, "a"), Request(MANY, "b"), Request(CONNECTIONS, "a")])
    later.addErrback(lambda failure: failure.trap(CancelledError) and None)
    node.clock.advance(0)
    later.cancel()
    valkey.late = False
    valkey.deliver()
    node.clock.advance(0)
    assert (node.used(IP), node.used(MANY, "b"), node.used(CONNECTIONS)) == (0, 0, 0)
    assert node.store.held(CONNECTIONS, "a") == 0
    valkey.talk.close()


def test_a_full_server_refuses_to_charge_and_still_takes_things_back(node: Node) -> None:
    receipts = node.ask(Request(IP, "a", 2), Request(MANY, "a", 2), Request(CONNECTIONS, "a")).receipts
    node.valkey.talk("CONFIG", "SET", "maxmemory", "1")
    try:
        with pytest.raises(StoreUnavailable, match="OOM"):
            node.ask(Request(IP, "b"))
        node.now(node.store.renew())
        node.now(node.store.refund(receipts[:2]))
        node.store.release(receipts[2:])
        node.clock.advance(0)
        assert (node.used(IP), node.used(MANY), node.used(CONNECTIONS)) == (0, 0, 0)
    finally:
        node.valkey.talk("CONFIG", "SET", "maxmemory", "0")


# Leases.


def test_leases_are_counted_over_all_nodes_and_given_back(valkey: TimedValkey) -> None:
    one, other = Node(valkey), Node(valkey, "mx2")
    receipts = [*one.ask(Request(CONNECTIONS, "a")).receipts, *one.ask(Request(CONNECTIONS, "a")).receipts]
    assert other.ask(Request(CONNECTIONS, "a")).granted
    refused = other.ask(Request(CONNECTIONS, "a"))
    assert [shortfall.wait for shortfall in refused.denials] == [LEASE_SECONDS * SECOND]
    assert (one.store.held(CONNECTIONS, "a"), other.store.held(CONNECTIONS, "a")) == (2, 1)
    for _ in range(2):
        one.store.release(receipts[:1])
        one.clock.advance(0)
    assert one.used(CONNECTIONS) == 2
    assert other.ask(Request(CONNECTIONS, "a")).granted


def test_leases_of_a_dead_node_end_after_thirty_seconds_and_not_before(valkey: TimedValkey) -> None:
    dead, other = Node(valkey), Node(valkey, "mx2")
    dead.ask(Request(CONNECTIONS, "a", 3))
    dead.later(2)
    dead.now(dead.store.renew())
    other.later(LEASE_SECONDS - 0.000001)
    assert not other.ask(Request(CONNECTIONS, "a")).granted
    other.later(0.000001)
    assert other.ask(Request(CONNECTIONS, "a")).granted


def test_renewed_leases_live_on(node: Node) -> None:
    for n in range(300):
        node.ask(Request(CONNECTIONS, str(n), 2))
    node.valkey.calls.clear()
    for _ in range(30):
        node.later(3)
        node.now(node.store.renew())
    assert node.used(CONNECTIONS, "299") == 2
    assert len(node.valkey.calls) == 30 * 3 + 1, "in batches"


def test_leases_that_valkey_has_forgotten_are_written_again_when_it_is_back(node: Node) -> None:
    (receipt,) = node.ask(Request(CONNECTIONS, "a", 2)).receipts
    node.valkey.forget()
    node.valkey.changed(True)
    assert node.used(CONNECTIONS) == 2
    node.store.release([receipt])
    node.clock.advance(0)
    assert node.used(CONNECTIONS) == 0


def test_what_is_held_without_asking_counts_from_the_next_renewal_on(node: Node) -> None:
    receipts = [node.store.hold(Request(CONNECTIONS, "a")) for _ in range(4)]
    assert node.store.held(CONNECTIONS, "a") == 4
    node.store.release(receipts[:1])
    node.clock.advance(0)
    node.now(node.store.renew())
    assert node.used(CONNECTIONS) == 3
    assert not node.ask(Request(CONNECTIONS, "a")).granted


def test_a_lease_that_is_released_while_it_is_renewed_is_gone_after_that(node: Node) -> None:
    (receipt,) = node.ask(Request(CONNECTIONS, "a")).receipts
    node.valkey.late = True
    renewal = node.store.renew()
    node.store.release([receipt])
    node.clock.advance(0)
    assert node.valkey.calls[-1] == "renew", "on another connection it would overtake the renewal"
    node.valkey.late = False
    node.valkey.deliver()
    assert node.now(renewal) is None
    assert node.used(CONNECTIONS) == 0


def test_a_renewal_that_is_asked_for_during_another_tells_of_later_leases_too(node: Node) -> None:
    node.ask(Request(CONNECTIONS, "a"))
    node.valkey.late = True
    first = node.store.renew()
    node.store.hold(Request(CONNECTIONS, "b"))
    second = node.store.renew()
    third = node.store.renew()
    node.valkey.deliver()
    assert node.now(first) is None
    assert not second.called
    node.valkey.late = False
    node.valkey.deliver()
    assert (node.now(second), node.now(third)) == (None, None)
    assert node.valkey.calls.count("renew") == 2
    assert node.used(CONNECTIONS, "b") == 1


def test_leases_do_not_end_what_a_limit_of_the_same_name_counts_now(node: Node) -> None:
    terms = rate(CONNECTIONS.name, 3, 3600)
    assert node.ask(Request(terms, "a", 3)).granted
    # Of a connection that was opened before the limit counted something else.
    node.store.hold(Request(CONNECTIONS, "a"))
    node.now(node.store.renew())
    node.later(2 * LEASE_SECONDS)
    assert not node.ask(Request(terms, "a")).granted


def test_a_lease_of_a_server_whose_clock_was_ahead_ends_in_thirty_seconds_too(node: Node) -> None:
    node.later(20)
    node.ask(Request(CONNECTIONS, "a", 3))
    node.valkey.set(START)  # a replica took over
    dead, node = node, Node(node.valkey, "mx2")
    assert not node.ask(Request(CONNECTIONS, "a")).granted
    node.later(LEASE_SECONDS)
    assert node.ask(Request(CONNECTIONS, "a")).granted
    assert dead.store.held(CONNECTIONS, "a") == 3


def test_a_node_that_leaves_gives_all_leases_back(node: Node) -> None:
    for n in range(5):
        node.ask(Request(CONNECTIONS, str(n)))
    assert node.now(Deferred.fromCoroutine(node.store.leave())) is None
    assert node.valkey.talk("KEYS", "elemta:*") == []


def test_a_node_that_leaves_during_a_renewal_waits_for_it(node: Node) -> None:
    node.ask(Request(CONNECTIONS, "a"))
    node.valkey.late = True
    renewal = node.store.renew()
    leaving = Deferred.fromCoroutine(node.store.leave())
    node.clock.advance(0)
    assert not leaving.called
    node.valkey.late = False
    node.valkey.deliver()
    assert (node.now(renewal), node.now(leaving)) == (None, None)
    assert node.valkey.talk("KEYS", "elemta:*") == []


def test_a_node_that_leaves_while_valkey_is_away_is_not_kept(node: Node) -> None:
    def refuse(*_: Any) -> None:
        raise ValkeyError(ValkeyFailure.DISCONNECTED, "not connected")

    node.ask(Request(CONNECTIONS, "a"))
    node.valkey.before = refuse
    assert node.now(Deferred.fromCoroutine(node.store.leave())) is None
    assert not node.clock.getDelayedCalls()


def test_a_renewal_that_fails_says_so_and_the_next_one_works(node: Node) -> None:
    node.ask(Request(CONNECTIONS, "a"))
    node.valkey.after = lost("renew")
    with pytest.raises(StoreUnavailable):
        node.now(node.store.renew())
    node.valkey.after = lambda *_: None
    assert node.now(node.store.renew()) is None


# Changed numbers; the rest is in test_valkey_model.


def test_counts_survive_a_change_across_128_both_ways(node: Node) -> None:
    few, many = rate("l", 100), rate("l", 1000)
    node.ask(Request(few, "a", 60))
    node.later(10)
    assert node.used(many) == 60
    assert node.ask(Request(many, "a", 940)).granted
    assert not node.ask(Request(many, "a")).granted
    node.later(10)
    assert not node.ask(Request(few, "a")).granted
    node.later(41.1)
    assert not node.ask(Request(few, "a")).granted, "940 are left"
    assert node.ask(Request(many, "a", 60)).granted, "the 60 have left"
    assert not node.ask(Request(many, "a")).granted


def test_a_longer_window_counts_what_another_rate_of_the_limit_has_kept(node: Node) -> None:
    before = LimitSpec("l", (Bound.of(100, 60 * SECOND), Bound.of(1000, 3600 * SECOND)))
    for _ in range(5):
        node.ask(Request(before, "a", 90))
        node.later(120)
    after = rate("l", 100, 3600)
    assert node.used(after) == 450
    assert not node.ask(Request(after, "a")).granted


def test_a_reset_forgets_log_and_sub_buckets(node: Node) -> None:
    both = LimitSpec("both", (*IP.bounds, *MANY.bounds))
    node.ask(Request(both, "a", 7))
    assert node.now(node.store.reset(both, "a")) is True
    assert node.now(node.store.reset(both, "a")) is False
    assert node.used(both) == 0


def test_a_reset_leaves_leases_alone(node: Node) -> None:
    node.ask(Request(CONNECTIONS, "a"))
    assert node.now(node.store.reset(CONNECTIONS, "a")) is False
    assert node.used(CONNECTIONS) == 1


# The fullest identities.


@pytest.mark.parametrize("terms", [IP, MANY, CONNECTIONS])
def test_the_fullest_come_first_and_the_empty_not_at_all(node: Node, terms: LimitSpec) -> None:
    for amount, identity in enumerate(["none", "one", "two", "three"]):
        if amount:
            node.ask(Request(terms, identity, amount))
    node.ask(Request(rate("ip-too", 100), "stranger", 50))
    ranking = node.now(node.store.top(terms, 2))
    assert [(fill.request.identity, fill.used[0]) for fill in ranking.usages] == [("three", 3), ("two", 2)]
    assert ranking.complete


def test_signs_of_a_pattern_in_the_prefix_are_signs(valkey: TimedValkey) -> None:
    clock = Clock()
    for prefix in ("a*:", "a[bc]?\\:", "a^-b:"):
        store = ValkeyStore(valkey, prefix=prefix, node_id="mx1", runtime=Runtime.of(clock))  # type: ignore[arg-type]
        store.acquire([Request(IP, prefix)])
        clock.advance(0)
        ranking = result(store.top(IP, 9))
        assert [fill.request.identity for fill in ranking.usages] == [prefix]


def test_a_ranking_of_many_keys_is_made_in_slices(node: Node) -> None:
    for n in range(0, 1500, 50):
        later = [node.store.acquire([Request(IP, str(m))]) for m in range(n, n + 50)]
        node.clock.advance(0)
        assert all(result(answer).granted for answer in later)
    node.ask(Request(IP, "7"))
    node.valkey.calls.clear()
    (first,) = node.now(node.store.top(IP, 1)).usages
    assert (first.request.identity, first.used) == ("7", (2,))
    assert len(node.valkey.calls) >= 1500 / 32


# On several servers.


@pytest.fixture
def cluster(server: ValkeyServer) -> Iterator[Node]:
    valkey = TimedValkey(server, clustered=True, now=START)
    valkey.forget()
    yield Node(valkey)
    valkey.talk.close()


def test_in_a_cluster_the_identity_is_the_hash_tag(cluster: Node) -> None:
    cluster.ask(Request(IP, "127.0.0.1"), Request(MANY, "127.0.0.1"), Request(CONNECTIONS, "127.0.0.1"))
    assert cluster.valkey.calls == ["acquire"]
    assert {key.split(b"{")[1] for key in cluster.valkey.talk("KEYS", "elemta:*")} == {
        b"127.0.0.1}",
        b"127.0.0.1}~",
    }


def test_in_a_cluster_a_refusal_leaves_nothing_behind(cluster: Node) -> None:
    full, roomy = rate("full", 1), rate("roomy", 500)
    cluster.ask(Request(full, "sender"))
    for _ in range(1000):
        answer = cluster.ask(
            Request(IP, "a"), Request(roomy, "b"), Request(full, "sender"), Request(CONNECTIONS, "a")
        )
        assert not answer.granted
        assert [shortfall.request.spec.name for shortfall in answer.denials] == ["full"]
        assert answer.receipts == ()
    assert [cluster.used(terms, who) for terms, who in ((IP, "a"), (roomy, "b"), (full, "sender"))] == [
        0,
        0,
        1,
    ]
    assert cluster.used(CONNECTIONS) == 0
    assert cluster.store.held(CONNECTIONS, "a") == 0


def test_in_a_cluster_what_is_granted_everywhere_is_one_grant(cluster: Node) -> None:
    answer = cluster.ask(Request(IP, "a"), Request(MANY, "b"), Request(CONNECTIONS, "a"), Request(IP, "c"))
    assert answer.granted
    assert [receipt.request.key for receipt in answer.receipts] == [
        "ip:a",
        "many:b",
        "connections-per-ip:a",
        "ip:c",
    ]
    cluster.now(cluster.store.refund([receipt for receipt in answer.receipts if not receipt.is_lease]))
    assert [cluster.used(IP, "a"), cluster.used(MANY, "b"), cluster.used(IP, "c")] == [0, 0, 0]


def test_in_a_cluster_a_server_that_does_not_answer_fails_the_decision_and_nothing_stays(
    cluster: Node,
) -> None:
    def lose(script: Any, keys: Sequence[bytes], args: Sequence[Any]) -> None:
        if script.name == "acquire" and b"{b}" in keys[0]:
            raise ValkeyError(ValkeyFailure.DEADLINE, "no answer in time", maybe_done=True)

    cluster.valkey.after = lose
    with pytest.raises(StoreUnavailable):
        cluster.ask(Request(IP, "a"), Request(MANY, "b"))
    cluster.valkey.after = lambda *_: None
    cluster.later(1)
    assert (cluster.used(IP, "a"), cluster.used(MANY, "b")) == (0, 0)


def test_in_a_cluster_a_refusal_stands_although_another_server_is_away(cluster: Node) -> None:
    def refuse(script: Any, keys: Sequence[bytes], args: Sequence[Any]) -> None:
        if b"{b}" in keys[0]:
            raise ValkeyError(ValkeyFailure.DISCONNECTED, "not connected")

    full = rate("full", 1)
    cluster.ask(Request(full, "a"))
    cluster.valkey.before = refuse
    answer = cluster.ask(Request(full, "a"), Request(MANY, "b"))
    assert [shortfall.request.key for shortfall in answer.denials] == ["full:a"]


def test_a_prefix_with_a_hash_tag_keeps_everything_on_one_server(server: ValkeyServer) -> None:
    valkey, clock = TimedValkey(server, clustered=True, now=START), Clock()
    store = ValkeyStore(valkey, prefix="{elemta}:", node_id="mx1", runtime=Runtime.of(clock))  # type: ignore[arg-type]
    later = store.acquire([Request(IP, "a"), Request(MANY, "b"), Request(CONNECTIONS, "c")])
    clock.advance(0)
    receipts: tuple[Receipt, ...] = result(later).receipts
    assert len(receipts) == 3
    assert valkey.calls == ["acquire"]
    assert valkey.talk("ZCARD", "{elemta}:ip:a") == 1
    valkey.talk.close()
