"""Queue ids: short, unique over nodes and restarts, in the order of time, safe in file names of any case.

A queue id is 90 bits in 18 characters of Crockford's base 32: 51 bits of microseconds since 2020, then 39
random bits. Its first 12 characters are the key of the message's row, so that no second index is needed.
"""

from __future__ import annotations

import re
from collections.abc import Callable

from elemta.errors import UnknownMessage
from elemta.runtime import Randomness

_ALPHABET = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"
# The digits of Crockford's base 32 as those that `int` reads.
_DIGITS = str.maketrans(_ALPHABET, "0123456789ABCDEFGHIJKLMNOPQRSTUV")
_PAIRS = tuple(first + second for first in _ALPHABET for second in _ALPHABET)
_EPOCH = 1_577_836_800  # 2020-01-01T00:00:00Z
_RANDOM_BITS = 39
_LENGTH = 18
_KEY_LENGTH = 12
_KEY = re.compile(rf"[{_ALPHABET}]{{{_KEY_LENGTH}}}")
_SHIFTS = tuple(range(80, -1, -10))


class QueueIds:
    """Gives queue ids that grow strictly within one process, also when the clock steps back."""

    def __init__(self, seconds: Callable[[], float], randomness: Randomness) -> None:
        self._seconds = seconds
        # Uniqueness is needed here, not secrecy: a fast generator will do.
        self._draw = randomness.getrandbits
        self._last = 0

    def next(self) -> str:
        moment = int((self._seconds() - _EPOCH) * 1_000_000)
        if moment <= self._last:
            moment = self._last + 1
        self._last = moment
        number = (moment << _RANDOM_BITS) | self._draw(_RANDOM_BITS)
        return "".join([_PAIRS[number >> shift & 1023] for shift in _SHIFTS])


def unknown_message(queue_id: str) -> UnknownMessage:
    """The error for a queue id that no message has."""
    return UnknownMessage(f"there is no message {queue_id} in the queue")


def known_key(queue_id: str) -> int:
    """The key of a message's row. UnknownMessage: no message has such an id."""
    key = row_key(queue_id)
    if key is None:
        raise unknown_message(queue_id)
    return key


def place_of(key: int) -> str:
    """The last queue id with this row key, which no message needs to have: a place in the listing."""
    digits = [_ALPHABET[key >> shift & 31] for shift in range(5 * (_KEY_LENGTH - 1), -1, -5)]
    return "".join(digits) + _ALPHABET[-1] * (_LENGTH - _KEY_LENGTH)


def row_key(queue_id: str) -> int | None:
    """The key of a message's row, 60 bits; None for text that can't be a queue id."""
    if len(queue_id) != _LENGTH or _KEY.match(queue_id) is None:
        return None
    return int(queue_id[:_KEY_LENGTH].translate(_DIGITS), 32)
