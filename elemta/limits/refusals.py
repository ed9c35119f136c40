"""What this node remembers of refusals, so that a flood of refused attempts costs the store nothing."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import islice

from elemta.bounded_map import BoundedMap
from elemta.limits.store import Request

MAX_REMEMBERED = 10_000


@dataclass(frozen=True, slots=True)
class RememberedRefusal:
    """The identities that are refused, by which limit, and for how many seconds from now on."""

    limit: str
    identity: str
    seconds: float


@dataclass(frozen=True, slots=True)
class _RefusalEntry:
    request: Request
    until: float
    ask_from: float


class RememberedRefusals:
    """Refusals that hold until a known time. When it is full the oldest is forgotten: one more question.

    All times are of the store's ``seconds()``.
    """

    __slots__ = ("_known",)

    def __init__(self, capacity: int = MAX_REMEMBERED) -> None:
        self._known: BoundedMap[str, _RefusalEntry] = BoundedMap(capacity)

    def __len__(self) -> int:
        return len(self._known)

    def follow(self, other: RememberedRefusals) -> None:
        """Remember what ``other`` remembers now."""
        for key, entry in other._known.items():
            self._known.keep(key, entry)

    def remember(self, request: Request, until: float, ask_from: float | None = None) -> None:
        """This request would be refused before ``until``, and so would every larger one for the same key.

        Where charges may be given back earlier the store is asked again from ``ask_from`` on.
        """
        entry = _RefusalEntry(request, until, until if ask_from is None else ask_from)
        self._known.keep(request.key, entry)

    def wait(self, request: Request, now: float) -> float:
        """The seconds for which this request is known to be refused; 0 when the store must be asked."""
        if not self._known:
            return 0.0
        refused = self._known.get(request.key)
        if refused is None or request.amount < refused.request.amount:
            return 0.0
        if refused.until <= now:
            del self._known[request.key]
        return refused.until - now if now < refused.ask_from else 0.0

    def latest(self, count: int, now: float) -> tuple[RememberedRefusal, ...]:
        """The identities that are refused now, the latest first; forgets what is over."""
        for key in [key for key, refused in self._known.items() if refused.until <= now]:
            del self._known[key]
        found = islice(reversed(self._known.values()), count)
        return tuple(
            RememberedRefusal(one.request.spec.name, one.request.identity, one.until - now) for one in found
        )

    def forget(self, key: str) -> None:
        """Something was given back for this key: it may pass earlier."""
        self._known.pop(key, None)

    def clear(self) -> None:
        """Forget all."""
        self._known.clear()
