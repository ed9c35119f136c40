"""Wake times of many names: the same as a dict that is searched, and no call takes long."""

from __future__ import annotations

import gc
from math import inf

import pytest
from hypothesis import given
from hypothesis import strategies as st

from elemta.delivery import wake_heap
from elemta.delivery.wake_heap import WakeHeap

MOST_REMOVED = 50
NAMES = [f"d{number}.example" for number in range(5)]


@given(
    st.lists(
        st.one_of(
            st.tuples(
                st.just("set"), st.sampled_from(NAMES), st.sampled_from([0.0, 1.0, 2.0, 3.0, 5.0, inf])
            ),
            st.tuples(st.just("pop"), st.just(""), st.sampled_from([0.0, 1.5, 4.0, 9.0])),
        ),
        max_size=60,
    )
)
def test_it_gives_what_a_search_through_all_names_would(events: list[tuple[str, str, float]]) -> None:
    heap, model = WakeHeap(), dict[str, float]()
    for event, name, time in events:
        if event == "set":
            heap.set(name, time)
            model[name] = time
        else:
            earliest = min(model.values(), default=inf)
            popped = heap.pop(time)
            assert (popped is None) == (earliest > time or earliest == inf)
            if popped is not None:
                assert model.pop(popped) == earliest
        model = {each: when for each, when in model.items() if when < inf}
        assert heap.first() == min(model.values(), default=inf)
        assert len(heap) == len(model)


def test_times_that_change_for_ever_take_no_more_room_than_the_names() -> None:
    heap = WakeHeap()
    for turn in range(200):
        for number in range(500):
            heap.set(f"d{number}.example", 1000.0 - turn + number)
    assert len(heap._heap) < 5 * 500 + 1000
    order = [heap.pop(inf) for _ in range(500)]
    assert order == [f"d{number}.example" for number in range(500)]
    assert heap.first() == inf


def test_entries_that_no_longer_hold_leave_with_their_names() -> None:
    heap = WakeHeap()
    for number in range(5000):
        heap.set(f"d{number}.example", 1.0)
    heap.set("last.example", 2.0)
    for number in range(5000):
        heap.discard(f"d{number}.example")
    assert len(heap._heap) <= 2000
    calls = 0
    while (before := len(heap._heap)) and (name := heap.pop(3.0)) is None:
        assert heap.first() <= 2.0
        # No call takes long: each removes a few.
        assert before - len(heap._heap) <= 3 * MOST_REMOVED + 1
        calls += 1
    assert name == "last.example"
    assert calls <= 2000 / MOST_REMOVED


@given(
    st.integers(0, 4),
    st.lists(
        st.one_of(
            st.tuples(
                st.just("set"),
                st.sampled_from(NAMES),
                st.sampled_from([0.0, 1.0, 9.0, 10.0, 12.0, 25.0, 40.0, inf]),
            ),
            st.tuples(st.just("pop"), st.just(""), st.sampled_from([0.0, 11.0, 13.0, 30.0, 90.0])),
        ),
        max_size=60,
    ),
)
def test_more_names_than_the_heap_takes_lose_none_and_come_in_the_order_of_their_spans(
    most: int, events: list[tuple[str, str, float]]
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(wake_heap, "_MOST_IN_HEAP", most)
        patch.setattr(wake_heap, "_FEW", 1)
        heap, model = WakeHeap(), dict[str, float]()
        for event, name, time in (*events, ("pop", "", 90.0)):
            if event == "set":
                heap.set(name, time)
                model = {**model, name: time} if time < inf else {k: v for k, v in model.items() if k != name}
            else:
                # Some calls only carry a span into the heap.
                while heap.first() <= time:
                    popped = heap.pop(time)
                    if popped is not None:
                        span = model.pop(popped) // 10.0
                        assert span <= min((each // 10.0 for each in model.values()), default=inf)
                assert min(model.values(), default=inf) > time
            assert heap.times == model
            assert heap.first() <= min(model.values(), default=inf)
        assert not model
        assert heap.first() == inf


def test_the_collector_of_garbage_looks_at_few_entries_however_many_there_are() -> None:
    heap = WakeHeap()
    for number in range(40_000):
        heap.set(f"d{number}.example", number / 10)
    gc.collect()
    lists = [each for each in gc.get_referents(heap) if isinstance(each, list)]
    dicts = [each for each in gc.get_referents(heap) if isinstance(each, dict)]
    tracked = [each for each in (*dicts, *heap._spans.values()) if gc.is_tracked(each)]
    assert sum(map(len, (*lists, *tracked))) < 5_000
    assert not gc.is_tracked(heap.times)


def test_what_comes_for_a_span_that_is_being_emptied_does_not_pass_what_is_in_it() -> None:
    heap = WakeHeap()
    for number in range(10_000):
        heap.set(f"d{number}.example", 0.0)
    first = [heap.pop(100.0) for _ in range(9_000)]
    for number in range(9_000):
        heap.set(f"new{number}.example", 0.0)
    then = [heap.pop(100.0) for _ in range(1_000)]
    assert len({*first, *then}) == 10_000
    assert sum(name.startswith("d") for name in then if name) > 500
