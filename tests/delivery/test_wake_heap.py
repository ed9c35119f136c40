"""Wake times of many names: the same as a dict that is searched, and no call takes long."""

from __future__ import annotations

from math import inf

from hypothesis import given
from hypothesis import strategies as st

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
    assert len(heap._heap) + len(heap._new) < 5 * 500 + 1000
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
        assert before - len(heap._heap) <= 2 * MOST_REMOVED + 1
        calls += 1
    assert name == "last.example"
    assert calls <= 2000 / MOST_REMOVED
