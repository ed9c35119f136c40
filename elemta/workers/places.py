"""Places that the supervisor counts for all workers of a host: what every kind of them has in common.

A worker has a place from the supervisor's answer on, until it gives it back or its channel closes.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import TypeVar

from twisted.internet.defer import Deferred
from twisted.internet.defer import TimeoutError as OutOfTime
from twisted.internet.interfaces import IReactorTime
from twisted.python.failure import Failure

from elemta.deferred_value import detached
from elemta.errors import ChannelError
from elemta.workers.channel import Channel

TAKE_SECONDS = 1.0
"""How long a worker waits for the supervisor's answer."""

# An answer that comes later than this finds no channel.
_AT_ALL = 3600.0

K = TypeVar("K")


class HeldPlaces(Counter[K]):
    """The places of one worker, at the supervisor's end."""

    def end(self, place: K) -> None:
        """The worker gives one back. ValueError where it has none."""
        if self[place] < 1:
            raise ValueError
        self[place] -= 1
        if not self[place]:
            del self[place]


def ask_for_place(
    clock: IReactorTime, channel: Channel, name: str, body: bytes, give_back: Callable[[], object]
) -> Deferred[bool | None]:
    """Whether the supervisor gives a place; None where it does not answer in :data:`TAKE_SECONDS`.

    ``give_back`` is called for one that comes later.
    """
    asked = channel.ask(name, body, _AT_ALL)
    answer: Deferred[bool | None] = asked.addCallbacks(_is_granted, _no_answer)

    def unwanted(granted: bool | None) -> None:
        if granted:
            give_back()

    return detached(answer, unwanted, _ignore).addTimeout(TAKE_SECONDS, clock).addErrback(_too_late)


def _is_granted(body: bytes) -> bool | None:
    return body == b"1"


def _no_answer(failure: Failure) -> None:
    failure.trap(ChannelError)


def _too_late(failure: Failure) -> None:
    failure.trap(OutOfTime)


def _ignore(_failure: Failure) -> None:
    """There is no answer any more, and no place was given."""
