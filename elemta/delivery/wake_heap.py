"""When each of very many names has to be looked at, the earliest first."""

from __future__ import annotations

from heapq import heapify, heappop, heappush
from math import inf

# Entries in the heap. The collector of garbage looks at all of them each time, and at none in the spans.
_MOST_IN_HEAP = 4096
# Seconds of a span.
_SPAN = 10.0
# Entries that no longer hold which one call removes, and those that it takes from a span into the heap.
_MOST_REMOVED = 50
# Entries that no longer hold for which alone the heap is not built anew.
_FEW = 1000


class WakeHeap:
    """One time for each name. No call takes long, however many names there are.

    The first few thousand are in a heap. The others are in spans of ten seconds. Each span is a dict of
    strings and numbers, and the collector of garbage does not look into such a dict. A span is emptied when
    it begins: into the heap, or, where it is over already, in any order. A time that changes leaves its old
    entry in the heap, which is built anew when these are a third of it. ``times`` is for reading.
    """

    __slots__ = ("_begun", "_begun_at", "_heap", "_in_spans", "_numbers", "_spans", "times")

    def __init__(self) -> None:
        self.times: dict[str, float] = {}
        self._heap: list[tuple[float, str]] = []
        self._spans: dict[int, dict[str, float]] = {}
        # The numbers of the spans as a heap; some have no span any more.
        self._numbers: list[int] = []
        # The span that is being emptied. What is set for the same time meanwhile begins a new one, so that
        # nothing waits behind it for ever.
        self._begun: dict[str, float] = {}
        self._begun_at = inf
        self._in_spans = 0

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
        before = self.times.get(name)
        if before == when:
            return
        self.times[name] = when
        if self._in_spans and before is not None:
            self._leave_span(name, before)
        if len(self._heap) >= _MOST_IN_HEAP:
            self._clean()
        number = int(when // _SPAN)
        # Behind what is in the span already: those in the heap come before it.
        has_span = self._in_spans and (number in self._spans or number * _SPAN == self._begun_at)
        if len(self._heap) < _MOST_IN_HEAP and not has_span:
            heappush(self._heap, (when, name))
            return
        span = self._spans.get(number)
        if span is None:
            span = self._spans[number] = {}
            heappush(self._numbers, number)
        span[name] = when
        self._in_spans += 1

    def discard(self, name: str) -> None:
        """Let a name have no time."""
        before = self.times.pop(name, None)
        if before is None:
            return
        if self._in_spans:
            self._leave_span(name, before)
        self._clean()

    def first(self) -> float:
        """The earliest time, or an earlier one: there are entries that no longer hold, or a whole span."""
        return min(self._first_in_heap(), self._first_span())

    def pop(self, now: float) -> str | None:
        """Take out the name with the earliest time, if that has come and it is found at once."""
        in_heap, in_spans = self._first_in_heap(), self._first_span()
        if min(in_heap, in_spans) > now:
            return None
        if in_heap > now or in_spans + _SPAN <= in_heap:
            name = self._pop_from_span(now)
            if name is not None or self._begun or self._first_in_heap() > now:
                return name
        when, name = heappop(self._heap)
        if self.times.get(name) != when:
            return None
        del self.times[name]
        if self._in_spans:
            # It had another time, and then this one again.
            self._leave_span(name, when)
        return name

    def clear(self) -> None:
        self.times.clear()
        self._heap.clear()
        self._spans.clear()
        self._numbers.clear()
        self._begun, self._begun_at = {}, inf
        self._in_spans = 0

    def _first_in_heap(self) -> float:
        heap = self._heap
        for _ in range(_MOST_REMOVED):
            if not heap:
                return inf
            when, name = heap[0]
            if self.times.get(name) == when:
                return when
            heappop(heap)
        return heap[0][0] if heap else inf

    def _first_span(self) -> float:
        return min(self._begun_at, self._next_span()) if self._begun else self._next_span()

    def _next_span(self) -> float:
        numbers = self._numbers
        for _ in range(_MOST_REMOVED):
            if not numbers:
                return inf
            if numbers[0] in self._spans:
                break
            heappop(numbers)
        return numbers[0] * _SPAN if numbers else inf

    def _pop_from_span(self, now: float) -> str | None:
        """Take a name out of the first span where that is over, else carry some of it into the heap."""
        start = self._next_span()
        if not self._begun:
            self._begun, self._begun_at = self._spans.pop(heappop(self._numbers), {}), start
        start = min(start, self._begun_at)
        # There may be an earlier one than the one that is being emptied: it is emptied where it is.
        span = self._begun if start == self._begun_at else self._spans.get(self._numbers[0], {})
        name: str | None = None
        if span and start + _SPAN <= now:
            name, _ = span.popitem()
            self._in_spans -= 1
            del self.times[name]
        else:
            for _ in range(min(_MOST_REMOVED, len(span))):
                carried, when = span.popitem()
                self._in_spans -= 1
                heappush(self._heap, (when, carried))
        if span is not self._begun and not span:
            self._spans.pop(self._numbers[0], None)
        return name

    def _leave_span(self, name: str, when: float) -> None:
        if self._begun.pop(name, None) is not None:
            self._in_spans -= 1
            return
        number = int(when // _SPAN)
        span = self._spans.get(number)
        if span is not None and span.pop(name, None) is not None:
            self._in_spans -= 1
            if not span:
                del self._spans[number]

    def _clean(self) -> None:
        """Build the heap anew where too much of it no longer holds."""
        if len(self._heap) > (len(self.times) - self._in_spans) * 3 // 2 + _FEW:
            entries = dict.fromkeys(self._heap)
            self._heap = [(when, name) for when, name in entries if self.times.get(name) == when]
            heapify(self._heap)
