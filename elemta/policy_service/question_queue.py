"""The questions that wait until the limits are asked."""

from __future__ import annotations

from collections import OrderedDict
from typing import Protocol, TypeVar

from twisted.internet.interfaces import IReactorTime

from elemta.policy_service.requests import PolicyRequest

MOST_ASKED = 256
"""Questions that the limits are asked at a time.

Of many more Valkey could not answer the last ones in time. This node would decide them alone, by its share
of each limit, beside what Valkey lets pass.
"""

T = TypeVar("T")


class QuestionAsker(Protocol):
    """A connection with a question. It has one at a time."""

    def take_turn(self, request: PolicyRequest, began: float) -> None:
        """Ask it now: it waited since ``began``."""


class QuestionQueue:
    """Lets :data:`MOST_ASKED` questions be asked at a time. The others wait for their turn, in order."""

    __slots__ = ("_asked", "_is_giving", "_reactor", "_waiting")

    def __init__(self, reactor: IReactorTime) -> None:
        self._reactor = reactor
        self._asked = 0
        self._waiting: OrderedDict[QuestionAsker, tuple[PolicyRequest, float]] = OrderedDict()
        self._is_giving = False

    def __len__(self) -> int:
        """The questions that wait."""
        return len(self._waiting)

    @property
    def is_full(self) -> bool:
        """Whether the next one has to wait."""
        return self._asked >= MOST_ASKED or bool(self._waiting)

    def wait(self, asker: QuestionAsker, request: PolicyRequest, began: float) -> None:
        """Wait for a turn."""
        self._waiting[asker] = (request, began)

    def leave(self, asker: QuestionAsker) -> None:
        """Its question is not to be asked."""
        self._waiting.pop(asker, None)

    def began(self) -> None:
        """A question that is not answered at once is asked."""
        self._asked += 1

    def ended(self, result: T) -> T:
        """It is answered."""
        self._asked -= 1
        if self._waiting and not self._is_giving:
            self._give_turns()
        return result

    def _give_turns(self) -> None:
        self._is_giving = True
        # Not all in one turn of the reactor: each may be answered at once, and have others behind it.
        try:
            for _ in range(MOST_ASKED):
                if not self._waiting or self._asked >= MOST_ASKED:
                    break
                asker, question = self._waiting.popitem(last=False)
                asker.take_turn(*question)
        finally:
            self._is_giving = bool(self._waiting) and self._asked < MOST_ASKED
            if self._is_giving:
                self._reactor.callLater(0, self._give_turns)
