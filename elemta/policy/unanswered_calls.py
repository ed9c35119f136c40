"""The calls of one policy that are not answered yet: their number, and the share of one network."""

from __future__ import annotations

MAX_OUTSTANDING = 1000
"""The most calls of one policy that may be unanswered, those that timed out and never ended included."""

_SHARE = 20


class UnansweredCalls:
    """The calls of one policy that are not answered yet, at most ``most``.

    From half of that on, one network may have a twentieth of it. A network that makes a policy slow leaves
    the rest to others.
    """

    __slots__ = ("_by_network", "_most", "_total", "closed", "many")

    def __init__(self, most: int) -> None:
        self._most = most
        self._total = 0
        self._by_network: dict[str, int] = {}
        self.many = False
        self.closed = False

    @property
    def none(self) -> bool:
        """Whether every call was answered."""
        return not self._total

    def close(self) -> None:
        """Make no call until :meth:`open`."""
        self.closed = self.many = True

    def open(self) -> None:
        self.closed = False
        self.many = self._total * 2 >= self._most

    def began(self, network: str) -> None:
        self._total += 1
        self._by_network[network] = self._by_network.get(network, 0) + 1
        self.many = self.closed or self._total * 2 >= self._most

    def ended(self, network: str) -> None:
        self._total -= 1
        left = self._by_network[network] - 1
        if left:
            self._by_network[network] = left
        else:
            del self._by_network[network]
        self.many = self.closed or self._total * 2 >= self._most

    def has_space(self, network: str) -> bool:
        """Whether one more call about a client of ``network`` may be made."""
        if self.closed:
            return False
        if self._total * 2 < self._most:
            return True
        return self._total < self._most and self._by_network.get(network, 0) < max(1, self._most // _SHARE)
