"""State machines as tables: which change leads from which state to which."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TypeVar

S = TypeVar("S")
C = TypeVar("C")


def state_table(table: Mapping[tuple[S, C], S]) -> Callable[[S, C], S]:
    """The function that gives the state after a change. A change that a state does not know leaves it."""

    def next_state(state: S, change: C) -> S:
        return table.get((state, change), state)

    return next_state
