"""What this node remembers of refusals, so that a flood of refused attempts costs the store nothing."""

from __future__ import annotations

from dataclasses import dataclass

from elemta.limits.store import Request

MAX_REMEMBERED = 10_000


@dataclass(frozen=True, slots=True)
class _Refused:
    until: float
    amount: int


class RememberedRefusals:
    """Refusals that hold until a known time. When it is full the oldest is forgotten: one more question.

    All times are of the store's ``seconds()``.
    """

    __slots__ = ("_known", "_room")

    def __init__(self, room: int = MAX_REMEMBERED) -> None:
        self._room = room
        self._known: dict[str, _Refused] = {}

    def __len__(self) -> int:
        return len(self._known)

    def remember(self, request: Request, until: float) -> None:
        """This request would be refused before ``until``, and so would every larger one for the same key."""
        self._known.pop(request.key, None)
        while len(self._known) >= self._room:
            del self._known[next(iter(self._known))]
        self._known[request.key] = _Refused(until, request.amount)

    def wait(self, request: Request, now: float) -> float:
        """The seconds for which this request is known to be refused; 0 when the store must be asked."""
        if not self._known:
            return 0.0
        refused = self._known.get(request.key)
        if refused is None or request.amount < refused.amount:
            return 0.0
        if refused.until <= now:
            del self._known[request.key]
            return 0.0
        return refused.until - now

    def forget(self, request: Request) -> None:
        """Something was given back for this key: it may pass earlier."""
        self._known.pop(request.key, None)
