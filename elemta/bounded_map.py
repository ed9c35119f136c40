"""A map with a bound, for what is remembered and may be forgotten: the oldest entry goes first."""

from __future__ import annotations

from collections import OrderedDict
from typing import TypeVar

K = TypeVar("K")
V = TypeVar("V")


class BoundedMap(OrderedDict[K, V]):
    """At most ``most`` entries that :meth:`keep` has set.

    It is an ``OrderedDict``, since a plain dict takes longer to find its oldest entry the more were removed.
    """

    __slots__ = ("_most",)

    def __init__(self, most: int) -> None:
        super().__init__()
        self._most = most

    def keep(self, key: K, value: V) -> None:
        """Set an entry, which is the youngest then. One too many drops the oldest."""
        self[key] = value
        self.move_to_end(key)
        if len(self) > self._most:
            self.popitem(last=False)
