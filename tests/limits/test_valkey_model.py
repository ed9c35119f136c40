"""The scripts on a real server against the reference model, under any sequence of times and amounts."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from fractions import Fraction
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from twisted.internet.task import Clock

from elemta.limits.memory import LocalStore
from elemta.limits.store import Decision, LimitSpec, Receipt, Request
from elemta.limits.valkey_store import ValkeyStore
from elemta.limits.window import Bound, WindowCounter
from elemta.runtime import Runtime
from tests.support.blocking_valkey import TimedValkey, result
from tests.support.valkey import ValkeyServer

START = 10**15

quick = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])


@pytest.fixture(scope="module")
def valkey() -> Iterator[TimedValkey]:
    with ValkeyServer() as server:
        valkey = TimedValkey(server)
        yield valkey
        valkey.talk.close()


class ExactClock:
    """Microseconds that survive the way through seconds."""

    def __init__(self, now: int) -> None:
        self.now = now

    def seconds(self) -> Any:
        return Fraction(self.now, 10**6)


class Side:
    """A store on the server, and one in memory, at the same time of the same clock."""

    def __init__(self, valkey: TimedValkey, now: int = START) -> None:
        valkey.now = now
        valkey.forget()
        self.valkey = valkey
        self.reactor = Clock()
        self.clock = ExactClock(now)
        self.real = ValkeyStore(valkey, prefix="t:", node_id="n", runtime=Runtime.of(self.reactor))  # type: ignore[arg-type]
        self.model = LocalStore(self.clock)

    def at(self, now: int) -> None:
        self.clock.now = now
        self.valkey.set(now)

    def both(self, decisions: Sequence[Sequence[Request]]) -> list[tuple[Decision, Decision]]:
        """Ask both: the server in one call, the model one by one."""
        later = [self.real.acquire(requests) for requests in decisions]
        self.reactor.advance(0)
        return [
            (result(answer), self.model.acquire(requests))
            for answer, requests in zip(later, decisions, strict=True)
        ]

    def refund(self, real: Sequence[Receipt], model: Sequence[Receipt]) -> None:
        later = self.real.refund(real)
        self.reactor.advance(0)
        if later is not None:
            result(later)
        self.model.refund(model)


def meaning(answer: Decision) -> Any:
    """All of an answer that both must say alike."""
    return (
        answer.granted,
        [(receipt.request, receipt.at) for receipt in answer.receipts],
        [(shortfall.request, shortfall.wait) for shortfall in answer.denials],
    )


@st.composite
def some_terms(draw: st.DrawFn, name: str) -> LimitSpec:
    bounds = []
    for _ in range(draw(st.integers(1, 3))):
        limit = draw(st.one_of(st.integers(1, 6), st.integers(126, 131)))
        bounds.append(Bound.of(limit, draw(st.integers(1, 3000)), weighted=draw(st.booleans())))
    return LimitSpec(name, tuple(bounds), binding=draw(st.sampled_from([True, True, True, False])))


@st.composite
def histories(draw: st.DrawFn) -> list[tuple[int, list[list[Request]], int]]:
    """Turns: how far time goes on, what is asked for, and which earlier charge is given back (-1: none)."""
    terms = [draw(some_terms(name)) for name in ("one", "two", "three")]
    request = st.builds(Request, st.sampled_from(terms), st.sampled_from("ab"), st.integers(1, 40))
    small = st.builds(Request, st.sampled_from(terms), st.sampled_from("ab"), st.integers(1, 3))
    decision = st.lists(
        st.one_of(small, small, request), min_size=1, max_size=4, unique_by=lambda one: one.key
    )
    edges = [
        step
        for one in terms
        for bound in one.bounds
        for step in (bound.window - 1, bound.window, bound.grain)
    ]
    turn = st.tuples(
        st.one_of(st.integers(0, 5), st.integers(0, 800), st.sampled_from(edges)),
        st.lists(decision, min_size=1, max_size=5),
        st.one_of(st.just(-1), st.integers(0, 30)),
    )
    return draw(st.lists(turn, min_size=1, max_size=25))


@given(history=histories())
@quick
def test_a_server_decides_what_the_model_decides(
    valkey: TimedValkey, history: list[tuple[int, list[list[Request]], int]]
) -> None:
    side, now = Side(valkey), START
    charged: list[tuple[Receipt, Receipt]] = []
    for step, decisions, back in history:
        now += step
        side.at(now)
        for real, model in side.both(decisions):
            assert meaning(real) == meaning(model)
            charged += zip(real.receipts, model.receipts, strict=True)
        if 0 <= back < len(charged):
            side.refund([charged[back][0]], [charged[back][1]])
        seen = list({request.key: request for requests in decisions for request in requests}.values())
        assert result(side.real.peek(seen)) == side.model.peek(seen)


@st.composite
def changing(draw: st.DrawFn) -> list[tuple[int, int, int, int]]:
    """Steps of time, which node asks, for how much, and which charge it gives back (-1: none)."""
    step = st.one_of(st.integers(0, 60), st.integers(0, 1500), st.sampled_from([59, 60, 2999, 3000, 3001]))
    turn = st.tuples(step, st.integers(0, 3), st.integers(1, 3), st.one_of(st.just(-1), st.integers(0, 40)))
    return draw(st.lists(turn, min_size=1, max_size=60))


@given(
    turns=changing(),
    limits=st.lists(st.sampled_from([3, 7, 100, 128, 129, 140]), min_size=2, max_size=4, unique=True),
    changes=st.booleans(),
)
@quick
def test_nodes_with_other_numbers_count_together_before_and_after_a_reload(
    valkey: TimedValkey, turns: list[tuple[int, int, int, int]], limits: list[int], changes: bool
) -> None:
    """One window, limits on both sides of 128: each node's limit holds for all that passed anywhere.

    ``changes``: all nodes go from one limit to the next; otherwise they have different ones all the time.
    """
    window, side, now = 3000, Side(valkey), START
    terms = [LimitSpec("l", (Bound.of(limit, window),)) for limit in limits]
    grain = Bound.of(129, window).grain
    admitted: list[tuple[int, int, Receipt]] = []
    for place, (step, node, amount, _) in enumerate(turns):
        now += step
        side.at(now)
        chosen = terms[(place * len(terms) // len(turns)) if changes else node % len(terms)]
        for _ in range(4):
            later = side.real.acquire([Request(chosen, "a", amount)])
            side.reactor.advance(0)
            answer = result(later)
            used = sum(many for at, many, _ in admitted if at > now - window)
            perhaps = sum(many for at, many, _ in admitted if at > now - window - grain)
            if answer.granted:
                assert used + amount <= chosen.bounds[0].limit
                admitted.append((now, amount, answer.receipts[0]))
            else:
                assert perhaps + amount > chosen.bounds[0].limit


@given(
    windows=st.lists(st.integers(60, 3000), min_size=2, max_size=4, unique=True),
    limits=st.lists(st.sampled_from([4, 30, 129, 150]), min_size=4, max_size=4),
    turns=changing(),
)
@quick
def test_no_other_nodes_window_lets_more_pass_than_ones_own(
    valkey: TimedValkey, windows: list[int], limits: list[int], turns: list[tuple[int, int, int, int]]
) -> None:
    """Nodes with different windows at the same time: what a node itself let pass is never above its limit."""
    side, now = Side(valkey), START
    terms = [
        LimitSpec("l", (Bound.of(limit, window),)) for window, limit in zip(windows, limits, strict=False)
    ]
    admitted: dict[int, list[tuple[int, int]]] = {place: [] for place in range(len(terms))}
    for step, node, amount, _ in turns:
        now += step
        side.at(now)
        place = node % len(terms)
        (bound,) = terms[place].bounds
        later = [side.real.acquire([Request(terms[place], "a", amount)]) for _ in range(3)]
        side.reactor.advance(0)
        for answer in map(result, later):
            if answer.granted:
                admitted[place].append((now, amount))
        assert sum(many for at, many in admitted[place] if at > now - bound.window) <= bound.limit


@given(
    bound=st.builds(Bound.of, st.sampled_from([3, 10, 129]), st.integers(60, 2000), weighted=st.booleans()),
    turns=st.lists(st.tuples(st.integers(-700, 900), st.integers(1, 60)), min_size=1, max_size=40),
)
@example(bound=Bound.of(3, 60), turns=[(0, 1), (60, 1), (-1, 2)])
@quick
def test_a_clock_that_goes_back_makes_charges_count_longer_never_shorter(
    valkey: TimedValkey, bound: Bound, turns: list[tuple[int, int]]
) -> None:
    """A replica took over whose clock is behind: whatever passes would pass the window's own model, too.

    That model forgets a charge as soon as it is asked when the charge has expired. The store in memory may
    keep one for longer, and is then stricter when the clock goes back.
    """
    side, now, request = Side(valkey), START, Request(LimitSpec("l", (bound,)), "a")
    model = WindowCounter((bound,))
    for step, count in turns:
        now += step
        side.at(now)
        later = [side.real.acquire([request]) for _ in range(count)]
        side.reactor.advance(0)
        for answer in map(result, later):
            passes = model.earliest(now, 1) == now
            if answer.granted:
                assert passes
                model.charge(now, 1)
