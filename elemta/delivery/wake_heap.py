"""When each of very many names has to be looked at, the earliest first."""

from __future__ import annotations

from heapq import heappop, heappush
from math import inf

# Entries that no longer hold which one call removes, and names that one call carries over to a new heap.
_MOST_REMOVED = 50
_CARRIED_OVER = 16
# Entries that no longer hold for which alone no new heap is built.
_FEW = 1000


class WakeHeap:
    """One time for each name. No call takes long, however many names there are.

    A time that changes leaves its old entry in the heap. When these are a third of it, a new heap is built
    from the names, some with each change, while the old one still serves. ``times`` is for reading.
    """

    __slots__ = ("_heap", "_new", "_old", "_to_carry", "times")

    def __init__(self) -> None:
        self.times: dict[str, float] = {}
        self._heap: list[tuple[float, str]] = []
        self._new: list[tuple[float, str]] = []
        # The heap before, which leaves memory in pieces, too.
        self._old: list[tuple[float, str]] = []
        self._to_carry: list[str] = []

    def __len__(self) -> int:
        return len(self.times)

    def __contains__(self, name: str) -> bool:
        return name in self.times

    def at(self, name: str) -> float:
        """The time of a name; infinite where it has none."""
        return self.times.get(name, inf)

    def set(self, name: str, when: float) -> None:
        """Give a name another time, or none by an infinite one."""
        if when == inf:
            self.discard(name)
            return
        if self.times.get(name) == when:
            return
        self.times[name] = when
        entry = (when, name)
        heappush(self._heap, entry)
        if self._to_carry:
            heappush(self._new, entry)
        self._shrink()

    def discard(self, name: str) -> None:
        """Let a name have no time."""
        if self.times.pop(name, None) is not None:
            self._shrink()

    def first(self) -> float:
        """The earliest time, or an earlier one: then some entries that no longer hold were removed."""
        heap = self._heap
        for _ in range(_MOST_REMOVED):
            if not heap:
                return inf
            when, name = heap[0]
            if self.times.get(name) == when:
                return when
            heappop(heap)
        return heap[0][0] if heap else inf

    def pop(self, now: float) -> str | None:
        """Take out the name with the earliest time, if that has come."""
        if self.first() > now:
            return None
        when, name = heappop(self._heap)
        if self.times.get(name) != when:
            return None
        del self.times[name]
        return name

    def clear(self) -> None:
        self.times.clear()
        self._heap.clear()
        self._new.clear()
        self._old.clear()
        self._to_carry.clear()

    def _shrink(self) -> None:
        if self._old:
            del self._old[-4 * _CARRIED_OVER :]
        if self._to_carry:
            self._carry_over()
        elif len(self._heap) > len(self.times) * 3 // 2 + _FEW:
            self._to_carry = list(self.times)
            if not self._to_carry:
                self._old, self._heap = self._heap, []

    def _carry_over(self) -> None:
        for _ in range(min(_CARRIED_OVER, len(self._to_carry))):
            name = self._to_carry.pop()
            when = self.times.get(name)
            if when is not None:
                heappush(self._new, (when, name))
        if not self._to_carry:
            self._old, self._heap, self._new = self._heap, self._new, []
