"""Few charges, packed: the same answers as a counter gives, and nothing for Python to look through."""

from __future__ import annotations

import gc
from dataclasses import dataclass, field

from hypothesis import given
from hypothesis import strategies as st
from twisted.internet.task import Clock

from elemta.limits import packed_log
from elemta.limits.counter_table import RotatingDict
from elemta.limits.memory import LocalStore
from elemta.limits.store import LimitSpec, Receipt, Request
from elemta.limits.window import Bound, WindowCounter

SECOND = 1_000_000
EXACT = LimitSpec("r", (Bound.of(5, 20 * SECOND),))
TWO = LimitSpec("r", (Bound.of(3, 7 * SECOND), Bound.of(11, 60 * SECOND)))
BUCKETS = LimitSpec("r", (Bound.of(12, 30 * SECOND, weighted=True),))
MIXED = LimitSpec("r", (Bound.of(6, 10 * SECOND), Bound.of(40, 120 * SECOND, weighted=True)))
LARGE = LimitSpec("r", (Bound.of(2**40, 30 * SECOND, weighted=True),))

STEP = st.tuples(
    st.integers(0, 9_000_000),
    st.sampled_from([1, 1, 1, 2, 4, 2**33]),
    st.sampled_from(["acquire", "acquire", "acquire", "record", "refund", "reset", "others"]),
)


@dataclass
class Model:
    """One identity in a store, and the counter that says how it should be."""

    terms: LimitSpec
    clock: Clock = field(default_factory=Clock)

    def __post_init__(self) -> None:
        self.clock.advance(1000)
        self.store = LocalStore(self.clock)
        self.counter = WindowCounter(self.terms.bounds)
        self.receipts: list[Receipt] = []
        self.others = 0

    @property
    def now(self) -> int:
        return int(self.clock.seconds() * SECOND)

    def agree(self, amount: int) -> None:
        (fill,) = self.store.peek([Request(self.terms, "a", amount)])
        passes = self.counter.earliest(self.now, amount)
        assert fill.wait == (None if passes is None else passes - self.now)
        assert fill.used == self.counter.used(self.now)

    def acquire(self, amount: int) -> None:
        answer = self.store.acquire([Request(self.terms, "a", amount)])
        assert answer.granted == (self.counter.earliest(self.now, amount) == self.now)
        if answer.granted:
            self.counter.charge(self.now, amount)
            self.receipts += answer.receipts

    def record(self, amount: int) -> None:
        self.store.record(Request(self.terms, "a", amount))
        self.counter.charge(self.now, amount)
        self.counter.trim()
        # What was trimmed is refunded from nothing; which of several that was, is not told.
        self.receipts.clear()

    def refund(self, _amount: int) -> None:
        if self.receipts:
            receipt = self.receipts.pop(len(self.receipts) // 2)
            self.store.refund([receipt])
            self.counter.refund(receipt.at, receipt.request.amount)

    def reset(self, _amount: int) -> None:
        self.store.reset(self.terms, "a")
        self.store.refund(self.receipts)
        self.receipts.clear()
        self.counter = WindowCounter(self.terms.bounds)

    def others_come(self) -> None:
        """And sweep away what has expired."""
        for _ in range(3):
            self.others += 1
            self.store.acquire([Request(self.terms, f"other{self.others}")])


@given(st.sampled_from([EXACT, TWO, BUCKETS, MIXED, LARGE]), st.lists(STEP, max_size=60))
def test_charges_that_are_packed_count_like_those_in_a_counter(
    terms: LimitSpec, steps: list[tuple[int, int, str]]
) -> None:
    model = Model(terms)
    for pause, amount, what in steps:
        model.clock.advance(pause / SECOND)
        if what == "others":
            model.others_come()
        else:
            getattr(model, what)(amount)
        model.agree(amount)
        model.agree(1)


@given(
    st.lists(st.tuples(st.integers(0, 40 * SECOND), st.integers(1, 9)), min_size=1, max_size=packed_log.MOST),
    st.integers(0, 60 * SECOND),
)
def test_packed_charges_are_kept_in_order_whatever_the_clock_did(
    charges: list[tuple[int, int]], now: int
) -> None:
    packed = b""
    counter = WindowCounter(BUCKETS.bounds)
    for at, amount in charges:
        packed = packed_log.charged(packed, at, amount, BUCKETS.bounds) or b""
        counter._series[0].add(at, amount)
    assert packed_log.last(packed) == max(at for at, _ in charges)
    assert packed_log.total(packed) == sum(amount for _, amount in charges)
    left = packed_log.pruned(packed, now, BUCKETS.bounds)
    used = counter.used(now)
    assert packed_log.UnpackedCounter(left, BUCKETS.bounds).used(now) == used
    assert packed_log.fullness(packed, now, BUCKETS.bounds) == used[0] / BUCKETS.bounds[0].limit


def test_who_was_charged_a_few_times_is_nothing_to_look_through_for_garbage() -> None:
    clock = Clock()
    store, terms = LocalStore(clock), LimitSpec("r", (Bound.of(100, 3600 * SECOND),))
    requests = [Request(terms, str(number)) for number in range(2_000)]
    gc.collect()
    before = len(gc.get_objects())
    for _ in range(packed_log.MOST):
        for request in requests:
            store.record(request)
        clock.advance(1)
    gc.collect()
    assert len(gc.get_objects()) - before < len(requests) / 4
    store.record(requests[0])
    assert store.peek(requests[:2])[0].used == (packed_log.MOST + 1,)
    assert store.size(terms) == len(requests)


@given(
    st.lists(st.tuples(st.sampled_from("abcdefgh"), st.sampled_from(["put", "drop", "sweep"])), max_size=80)
)
def test_a_rota_is_a_dictionary_and_its_rounds_miss_nobody(steps: list[tuple[str, str]]) -> None:
    rota, known = RotatingDict[int](), dict[str, int]()
    for number, (identity, what) in enumerate(steps):
        if what == "put":
            rota.put(identity, number)
            known[identity] = number
        elif what == "drop":
            rota.drop(identity)
            known.pop(identity, None)
        else:
            rota.sweep(2, lambda _: False)
        assert dict(rota.items()) == known
        assert len(rota) == len(known)
        assert rota.get(identity) == known.get(identity)
    seen: list[int] = []
    for _ in range(2):  # the rest of this round, and one more
        rota.sweep(len(known), lambda value: bool(seen.append(value)))
    assert set(seen) == set(known.values())
    rota.sweep(len(known), lambda _: True)
    assert len(rota) == 0
