"""What a node takes of the cluster's limits while it counts alone."""

from __future__ import annotations

from dataclasses import replace

from elemta.limits.store import Terms

_ROOM = 1000


class Shares:
    """Limits divided by the number of live nodes: L ÷ nodes, rounded down, but 1 at least where L is.

    A bound keeps its window and its grid, so that what was counted for the whole limit counts as it is.
    """

    __slots__ = ("_made", "_nodes")

    def __init__(self) -> None:
        self._nodes = 1
        # By the object rather than its value, which takes long to hash; the object is kept with it.
        self._made: dict[int, tuple[Terms, Terms]] = {}

    def of(self, terms: Terms, nodes: int) -> Terms:
        """The same limit for one of ``nodes`` nodes."""
        if nodes <= 1:
            return terms
        if nodes != self._nodes or len(self._made) >= _ROOM:
            self._nodes = nodes
            self._made = {}
        made = self._made.get(id(terms))
        if made is None:
            made = self._made[id(terms)] = (terms, _share(terms, nodes))
        return made[1]


def _share(terms: Terms, nodes: int) -> Terms:
    bounds = tuple(replace(bound, limit=_part(bound.limit, nodes)) for bound in terms.bounds)
    leases = None if terms.leases is None else _part(terms.leases, nodes)
    return replace(terms, bounds=bounds, leases=leases)


def _part(limit: int, nodes: int) -> int:
    return max(1, limit // nodes) if limit else 0
