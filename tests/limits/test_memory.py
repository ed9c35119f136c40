"""The store in memory: all or none, leases, and a bound on its memory that is no way round a limit."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st
from twisted.internet.task import Clock
from zope.interface.verify import verifyObject

from elemta.limits.counter_table import SHARED_COUNTERS, share
from elemta.limits.memory import LocalStore
from elemta.limits.store import LEASE_SECONDS, ILimitStore, LimitSpec, Request
from elemta.limits.window import Bound, WindowCounter
from elemta.runtime import ProcessRuntime

SECOND = 1_000_000


def rate(
    name: str, limit: int, seconds: int = 60, *, binding: bool = True, weighted: bool = False
) -> LimitSpec:
    return LimitSpec(name, (Bound.of(limit, seconds * SECOND, weighted=weighted),), binding=binding)


def used(store: LocalStore, terms: LimitSpec, identity: str = "a") -> int:
    (fill,) = store.peek([Request(terms, identity)])
    return fill.used[0]


def test_it_is_a_limit_store() -> None:
    assert verifyObject(ILimitStore, LocalStore(ProcessRuntime.of_system()))


def test_a_full_limit_leaves_the_others_uncharged() -> None:
    store, full, roomy = LocalStore(ProcessRuntime.of_system()), rate("full", 1), rate("roomy", 5)
    assert store.acquire([Request(roomy, "a"), Request(full, "a")]).granted
    for _ in range(1000):
        answer = store.acquire([Request(roomy, "a"), Request(full, "a")])
        assert not answer.granted
        assert answer.receipts == ()
        assert [shortfall.request.spec.name for shortfall in answer.denials] == ["full"]
    assert used(store, roomy) == 1


def test_a_refusal_tells_of_every_limit_that_falls_short_and_how_long() -> None:
    clock = Clock()
    store, short, long = LocalStore(clock), rate("short", 1, 10), rate("long", 1, 60)
    store.acquire([Request(short, "a"), Request(long, "a")])
    clock.advance(4)
    answer = store.acquire([Request(short, "a"), Request(long, "a")])
    assert [shortfall.wait for shortfall in answer.denials] == [6 * SECOND, 56 * SECOND]


def test_a_refused_flood_does_not_prolong_the_refusal() -> None:
    clock = Clock()
    store, terms = LocalStore(clock), rate("r", 2, 10)
    for _ in range(2):
        store.acquire([Request(terms, "a")])
    for _ in range(99):
        clock.advance(0.1)
        assert not store.acquire([Request(terms, "a")]).granted
    clock.advance(0.11)
    assert store.acquire([Request(terms, "a")]).granted


def test_what_is_only_observed_refuses_nothing_and_is_counted_while_it_fits() -> None:
    store, watched, enforced = (
        LocalStore(ProcessRuntime.of_system()),
        rate("watched", 1, binding=False),
        rate("enforced", 3),
    )
    answers = [store.acquire([Request(watched, "a"), Request(enforced, "a")]) for _ in range(4)]
    assert [answer.granted for answer in answers] == [True, True, True, False]
    assert [len(answer.receipts) for answer in answers] == [2, 1, 1, 0]
    assert used(store, watched) == 1


def test_what_is_only_observed_is_not_charged_beside_a_refusal() -> None:
    store, watched, enforced = (
        LocalStore(ProcessRuntime.of_system()),
        rate("watched", 10, binding=False),
        rate("enforced", 1),
    )
    for _ in range(5):
        store.acquire([Request(watched, "a"), Request(enforced, "a")])
    assert used(store, watched) == 1


def test_a_receipt_is_good_for_one_refund() -> None:
    for weighted in (False, True):
        store, terms = LocalStore(ProcessRuntime.of_system()), rate("r", 10, weighted=weighted)
        first = store.acquire([Request(terms, "a", 3)]).receipts
        store.acquire([Request(terms, "a", 4)])
        store.refund(first)
        store.refund(first)
        assert used(store, terms) == 4


def test_a_refund_after_a_reset_takes_nothing_from_what_came_after_it() -> None:
    store, terms = LocalStore(ProcessRuntime.of_system()), rate("r", 10, weighted=True)
    before = store.acquire([Request(terms, "a", 3)]).receipts
    assert store.reset(terms, "a") is True
    store.acquire([Request(terms, "a", 4)])
    store.refund(before)
    assert used(store, terms) == 4


def test_a_reset_opens_a_full_limit_and_says_whether_there_was_anything() -> None:
    store, terms = LocalStore(ProcessRuntime.of_system()), rate("r", 1)
    assert store.reset(terms, "a") is False
    store.acquire([Request(terms, "a")])
    assert store.reset(terms, "a") is True
    assert store.acquire([Request(terms, "a")]).granted


def test_leases_are_held_until_they_are_released_once() -> None:
    clock = Clock()
    store, terms = LocalStore(clock), LimitSpec("open", leases=2)
    one, two = (store.acquire([Request(terms, "a")]) for _ in range(2))
    clock.advance(3600)
    refused = store.acquire([Request(terms, "a")])
    assert refused.denials[0].wait == LEASE_SECONDS * SECOND
    store.refund(one.receipts)
    assert used(store, terms) == 2
    store.release(one.receipts)
    store.release(one.receipts)
    assert used(store, terms) == 1
    store.release(two.receipts)
    assert used(store, terms) == 0
    assert store._tables[terms.name].leases == {}


def test_a_lease_that_is_refused_leaves_the_rate_beside_it_uncharged() -> None:
    store, held, counted = LocalStore(ProcessRuntime.of_system()), LimitSpec("open", leases=1), rate("r", 9)
    store.acquire([Request(counted, "a"), Request(held, "a")])
    assert not store.acquire([Request(counted, "a"), Request(held, "a")]).granted
    assert used(store, counted) == 1


def test_a_limit_of_nothing_never_passes() -> None:
    store = LocalStore(ProcessRuntime.of_system())
    for terms in (rate("r", 0), LimitSpec("open", leases=0)):
        assert store.acquire([Request(terms, "a")]).denials[0].wait is None


def test_the_fullest_come_first() -> None:
    store, terms = LocalStore(ProcessRuntime.of_system()), rate("r", 10)
    for identity, times in (("a", 2), ("b", 7), ("c", 4)):
        for _ in range(times):
            store.acquire([Request(terms, identity)])
    assert [(fill.request.identity, fill.used) for fill in store.top(terms, 2).usages] == [
        ("b", (7,)),
        ("c", (4,)),
    ]


def test_other_numbers_for_a_limit_keep_what_was_counted() -> None:
    store = LocalStore(ProcessRuntime.of_system())
    for _ in range(100):
        store.acquire([Request(rate("r", 100), "a")])
    assert not store.acquire([Request(rate("r", 100), "a")]).granted
    assert used(store, rate("r", 200)) == 100
    assert not store.acquire([Request(rate("r", 50), "a")]).granted


def test_a_flood_of_identities_does_not_reset_another_client() -> None:
    clock = Clock()
    store, terms = LocalStore(clock, max_keys=100), rate("r", 3, 600)
    for _ in range(3):
        store.acquire([Request(terms, "client")])
    for number in range(5000):
        clock.advance(0.01)
        store.acquire([Request(terms, f"flood{number}")])
    assert not store.acquire([Request(terms, "client")]).granted
    assert store.size(terms) == 100
    assert store._tables[terms.name].shared <= SHARED_COUNTERS


def test_what_has_expired_makes_room_for_others() -> None:
    clock = Clock()
    store, terms = LocalStore(clock, max_keys=100), rate("r", 3, 10)
    for number in range(100):
        store.acquire([Request(terms, f"old{number}")])
    clock.advance(11)
    for number in range(100):
        store.acquire([Request(terms, f"new{number}")])
    table = store._tables[terms.name]
    assert all(f"new{number}" in table for number in range(100))
    assert table.shared == 0


def test_who_finds_room_again_starts_with_what_was_used_while_sharing() -> None:
    clock = Clock()
    store, terms = LocalStore(clock, max_keys=1), rate("r", 3, 60)
    store.acquire([Request(terms, "first")])
    clock.advance(30)
    for _ in range(3):
        assert store.acquire([Request(terms, "second")]).granted
    clock.advance(31)
    assert store.size(terms) == 1
    other = next(f"x{n}" for n in range(9999) if share(f"x{n}") == share("second"))
    assert not store.acquire([Request(terms, "second")]).granted
    assert not store.acquire([Request(terms, other)]).granted
    clock.advance(29)
    for _ in range(3):
        assert store.acquire([Request(terms, "second")]).granted
    assert not store.acquire([Request(terms, "second")]).granted
    assert "second" in store._tables[terms.name]


def test_who_finds_room_in_the_middle_of_a_window_goes_on_counting() -> None:
    clock = Clock()
    store, terms = LocalStore(clock, max_keys=1), rate("r", 3, 60)
    store.acquire([Request(terms, "first")])
    clock.advance(30)
    for _ in range(2):
        assert store.acquire([Request(terms, "second")]).granted
    clock.advance(31)
    assert store.acquire([Request(terms, "second")]).granted
    assert "second" in store._tables[terms.name]
    assert not store.acquire([Request(terms, "second")]).granted


def test_the_room_of_one_limit_is_not_taken_by_another() -> None:
    store, senders, addresses = LocalStore(Clock(), max_keys=10), rate("senders", 5), rate("addresses", 5)
    for number in range(1000):
        store.acquire([Request(senders, f"s{number}")])
    store.acquire([Request(addresses, "a")])
    assert store.size(addresses) == 1


@given(
    st.lists(st.tuples(st.integers(0, 30), st.sampled_from("abcdefgh"), st.booleans()), max_size=150),
    st.integers(0, 3),
    st.booleans(),
)
def test_every_identity_is_bound_also_where_there_is_no_room_for_it(
    sequence: list[tuple[int, str, bool]], max_keys: int, weighted: bool
) -> None:
    clock = Clock()
    clock.advance(1_000_000)
    store, terms = LocalStore(clock, max_keys=max_keys), rate("r", 3, 60, weighted=weighted)
    admitted: dict[str, list[float]] = defaultdict(list)
    for step, identity, give_back in sequence:
        clock.advance(step)
        answer = store.acquire([Request(terms, identity)])
        if answer.granted and give_back:
            store.refund(answer.receipts)
        elif answer.granted:
            admitted[identity].append(clock.seconds())
    for times in admitted.values():
        assert all(sum(first <= time < first + 60 for time in times) <= 3 for first in times)
    assert store.size(terms) <= max_keys


@given(
    st.lists(st.tuples(st.integers(0, 20), st.integers(1, 4)), max_size=80),
    st.integers(1, 6),
    st.integers(1, 6),
    st.booleans(),
)
def test_what_is_only_recorded_answers_as_if_all_had_been_kept(
    sequence: list[tuple[int, int]], limit: int, share: int, weighted: bool
) -> None:
    clock = Clock()
    clock.advance(1_000_000)
    store, terms = LocalStore(clock), rate("r", limit, 60, weighted=weighted)
    everything = WindowCounter(terms.bounds)
    for step, amount in sequence:
        clock.advance(step)
        store.record(Request(terms, "a", amount))
        everything.charge(int(clock.seconds() * SECOND), amount)
        smaller = tuple(replace(bound, limit=min(share, limit)) for bound in terms.bounds)
        everything.rebind(smaller)
        part = LimitSpec("r", smaller)
        now = int(clock.seconds() * SECOND)
        for asked in (1, min(share, limit)):
            (fill,) = store.peek([Request(part, "a", asked)])
            passes = everything.earliest(now, asked)
            assert fill.wait == (None if passes is None else passes - now)
        everything.rebind(terms.bounds)


def test_what_is_only_recorded_takes_no_more_room_than_the_limit() -> None:
    clock = Clock()
    store, terms = LocalStore(clock, max_keys=1), rate("r", 5)
    for number in range(50_000):
        store.record(Request(terms, str(number)))
        clock.advance(0.0001)
    known = [store.peek([Request(terms, str(number))])[0].used[0] for number in range(50_000, 50_100)]
    assert set(known) == {5}
