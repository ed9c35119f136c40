"""When each of very many names has to be looked at, the earliest first."""

from __future__ import annotations

from heapq import heappop, heappush
from math import inf

# Entries that no longer hold which one call removes, and names that one call carries over to a new heap.
_MOST_REMOVED = 1000
_CARRIED_OVER = 64


class WakeHeap:
    """One time for each name. No call takes long, however many names there are.

    A time that changes leaves its old entry in the heap. When these are half of it, a new heap is built from
    the names, some with each change, while the old one still serves.
    """

    __slots__ = ("_heap", "_new", "_times", "_to_carry")

    def __init__(self) -> None:
        self._times: dict[str, float] = {}
        self._heap: list[tuple[float, str]] = []
        self._new: list[tuple[float, str]] = []
        self._to_carry: list[str] = []

    def __len__(self) -> int:
        return len(self._times)

    def at(self, name: str) -> float:
        """The time of a name; infinite where it has none."""
        return self._times.get(name, inf)

    def set(self, name: str, when: float) -> None:
        """Give a name another time, or none by an infinite one."""
        if when == inf:
            self.discard(name)
            return
        if self._times.get(name) == when:
            return
        self._times[name] = when
        entry = (when, name)
        heappush(self._heap, entry)
        if self._to_carry:
            heappush(self._new, entry)
            self._carry_over()
        elif len(self._heap) > 2 * len(self._times) + _MOST_REMOVED:
            self._to_carry = list(self._times)

    def discard(self, name: str) -> None:
        """Let a name have no time."""
        self._times.pop(name, None)

    def first(self) -> float:
        """The earliest time, or an earlier one: then some entries that no longer hold were removed."""
        heap = self._heap
        for _ in range(_MOST_REMOVED):
            if not heap:
                return inf
            when, name = heap[0]
            if self._times.get(name) == when:
                return when
            heappop(heap)
        return heap[0][0] if heap else inf

    def pop(self, now: float) -> str | None:
        """Take out the name with the earliest time, if that has come."""
        if self.first() > now:
            return None
        when, name = heappop(self._heap)
        if self._times.get(name) != when:
            return None
        del self._times[name]
        return name

    def clear(self) -> None:
        self._times.clear()
        self._heap.clear()
        self._new.clear()
        self._to_carry.clear()

    def _carry_over(self) -> None:
        for _ in range(min(_CARRIED_OVER, len(self._to_carry))):
            name = self._to_carry.pop()
            when = self._times.get(name)
            if when is not None:
                heappush(self._new, (when, name))
        if not self._to_carry:
            self._heap, self._new = self._new, []
