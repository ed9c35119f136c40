"""The bounded map, against a model: a list of entries with the oldest first."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from elemta.bounded_map import BoundedMap


@given(st.integers(1, 5), st.lists(st.tuples(st.integers(0, 8), st.booleans()), max_size=60))
def test_the_youngest_entries_are_kept_and_the_oldest_go_first(
    most: int, steps: list[tuple[int, bool]]
) -> None:
    kept: BoundedMap[int, int] = BoundedMap(most)
    model: list[tuple[int, int]] = []
    for number, (key, keep) in enumerate(steps):
        model = [entry for entry in model if entry[0] != key]
        if keep:
            kept.keep(key, number)
            model = [*model, (key, number)][-most:]
        else:
            kept.pop(key, None)
        assert list(kept.items()) == model
