"""A bounded queue that is fair between networks, and in which clients that are known go first."""

from __future__ import annotations

from collections import OrderedDict, deque
from dataclasses import dataclass
from typing import Generic, TypeVar

T = TypeVar("T")

KNOWN_IN_A_ROW = 4
"""After so many known ones in a row one of the others is served, so each of them is served some time."""


@dataclass(frozen=True, slots=True)
class Claim:
    """A claim to a place: the client's network, and whether this user logged in from there before."""

    network: str = ""
    known: bool = False


class _Ring(Generic[T]):
    """One queue per network; the networks are served in turn."""

    __slots__ = ("_networks",)

    def __init__(self) -> None:
        self._networks: OrderedDict[str, deque[T]] = OrderedDict()

    def __bool__(self) -> bool:
        return bool(self._networks)

    def waiting(self, network: str) -> int:
        return len(self._networks.get(network, ()))

    def push(self, network: str, item: T) -> None:
        self._networks.setdefault(network, deque()).append(item)

    def pop(self) -> T:
        network, items = next(iter(self._networks.items()))
        item = items.popleft()
        if items:
            self._networks.move_to_end(network)
        else:
            del self._networks[network]
        return item

    def remove(self, network: str, item: T) -> bool:
        items = self._networks.get(network)
        if items is None or item not in items:
            return False
        items.remove(item)
        if not items:
            del self._networks[network]
        return True

    def longest(self) -> tuple[str, int]:
        """The network with the most waiting items, and their number."""
        network = max(self._networks, key=self.waiting, default="")
        return network, self.waiting(network)

    def drop_newest(self, network: str) -> T:
        items = self._networks[network]
        item = items.pop()
        if not items:
            del self._networks[network]
        return item


class FairQueue(Generic[T]):
    """Holds at most ``capacity`` items.

    Networks are served in turn, one item each, and within a network the oldest first. Items of known clients
    are served before all others. When the queue is full, an item of the network that has the most in it gives
    way to one of a network that has fewer, and an item that is not of a known client to one that is.
    """

    def __init__(self, capacity: int) -> None:
        self._capacity = capacity
        self._known: _Ring[T] = _Ring()
        self._others: _Ring[T] = _Ring()
        self._claims: dict[int, Claim] = {}
        self._known_in_a_row = 0

    def __len__(self) -> int:
        return len(self._claims)

    def push(self, item: T, claim: Claim) -> T | None:
        """Take ``item``. Returns what has no place because of that: another item, ``item``, or None."""
        given_up: T | None = None
        if len(self._claims) >= self._capacity:
            if not self._gives_way(claim):
                return item
            network, _ = self._others.longest() if self._others else self._known.longest()
            given_up = (self._others or self._known).drop_newest(network)
            del self._claims[id(given_up)]
        self._ring(claim).push(claim.network, item)
        self._claims[id(item)] = claim
        return given_up

    def pop(self) -> T | None:
        """The next item, or None where there is none."""
        if self._known and (self._known_in_a_row < KNOWN_IN_A_ROW or not self._others):
            ring = self._known
            self._known_in_a_row += 1
        elif self._others:
            ring = self._others
            self._known_in_a_row = 0
        else:
            return None
        item = ring.pop()
        del self._claims[id(item)]
        return item

    def remove(self, item: T) -> bool:
        """Take ``item`` out; False when it is not in the queue."""
        claim = self._claims.pop(id(item), None)
        return claim is not None and self._ring(claim).remove(claim.network, item)

    def _ring(self, claim: Claim) -> _Ring[T]:
        return self._known if claim.known else self._others

    def _gives_way(self, claim: Claim) -> bool:
        """Whether some item in a full queue gives way to a new one with this claim."""
        if claim.known and self._others:
            return True
        if not claim.known and not self._others:
            return False
        ring = self._ring(claim)
        # With a difference of one the two would change places for ever.
        return ring.longest()[1] >= ring.waiting(claim.network) + 2
