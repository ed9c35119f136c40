"""The frames of a channel: octets in, whole frames out, and nothing else.

A frame is its length (4 octets, of all that follows), its kind (1 octet), the number of the question
(4 octets), the length of a name (1 octet), the name (ASCII), and a body, all numbers with the most
significant octet first. What is not that is a :class:`FrameError`; nothing is kept beyond one frame.
"""

from __future__ import annotations

import enum
import re
from collections.abc import Iterator
from dataclasses import dataclass
from struct import Struct

MAX_FRAME = 4 * 1024 * 1024
"""Octets of one frame behind its length."""

_HEAD = Struct("!IBIB")
_LENGTH = 4
_FIXED = _HEAD.size - _LENGTH
_NAME = re.compile(rb"[a-z][a-z0-9._-]*\Z")
_LAST_NUMBER = 2**32 - 1


class FrameKind(enum.Enum):
    """What a frame is."""

    QUESTION = 1
    """It has a number, and gets one answer or refusal with the same."""
    NOTICE = 2
    """Nothing is answered; the number is 0."""
    ANSWER = 3
    REFUSAL = 4
    """In place of an answer; the name is the reason in a word, the body a text for people."""


_KINDS = {kind.value: kind for kind in FrameKind}
_NAMELESS = frozenset({FrameKind.ANSWER.value})
_NUMBERLESS = frozenset({FrameKind.NOTICE.value})


class FrameError(Exception):
    """These octets are no frame. The text says why."""


@dataclass(frozen=True, slots=True)
class Frame:
    """One frame. ``name`` says what a question or a notice is about, or why an answer is refused."""

    kind: FrameKind
    number: int
    name: str
    body: bytes

    def encode(self) -> bytes:
        """As it is sent. Raises :class:`FrameError` where it is too long, or its name can't be one."""
        name = self.name.encode("ascii", "replace")
        length = _FIXED + len(name) + len(self.body)
        if length > MAX_FRAME:
            raise FrameError(f"a frame of {length} octets is above {MAX_FRAME}")
        _check(self.kind, self.number, name)
        return _HEAD.pack(length, self.kind.value, self.number, len(name)) + name + self.body


class FrameReader:
    """Takes octets as they come, and gives the frames that are whole."""

    def __init__(self) -> None:
        self._data = bytearray()

    @property
    def kept(self) -> int:
        """Octets of a frame that is not whole yet."""
        return len(self._data)

    def receive(self, data: bytes) -> Iterator[Frame]:
        """The frames that these octets complete. Raises :class:`FrameError`; the reader is of no use then."""
        kept = self._data
        kept += data
        start = 0
        try:
            while len(kept) - start >= _LENGTH:
                length = int.from_bytes(kept[start : start + _LENGTH], "big")
                if not _FIXED <= length <= MAX_FRAME:
                    raise FrameError(f"a frame can't have {length} octets")
                end = start + _LENGTH + length
                if len(kept) < end:
                    break
                frame = _frame(kept, start, end)
                start = end
                yield frame
        finally:
            del kept[:start]


def _frame(data: bytearray, start: int, end: int) -> Frame:
    _, kind, number, name_length = _HEAD.unpack_from(data, start)
    body = start + _HEAD.size + name_length
    if body > end:
        raise FrameError("a name is longer than its frame")
    name = bytes(data[start + _HEAD.size : body])
    known = _KINDS.get(kind)
    if known is None:
        raise FrameError(f"there is no kind {kind} of frames")
    _check(known, number, name)
    return Frame(known, number, name.decode("ascii"), bytes(data[body:end]))


def _check(kind: FrameKind, number: int, name: bytes) -> None:
    if (number == 0) != (kind.value in _NUMBERLESS) or not 0 <= number <= _LAST_NUMBER:
        raise FrameError(f"a frame of kind {kind.value} can't have the number {number}")
    if (name == b"") != (kind.value in _NAMELESS):
        raise FrameError(f"a frame of kind {kind.value} has a name, or none, where it should not")
    if name and (len(name) > 255 or _NAME.match(name) is None):
        raise FrameError("the name of a frame is not one")
