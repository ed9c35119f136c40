"""Changes of a message's header, as values: what policies add, remove and replace, written once.

A field is written as it was given. It is folded only where a line would have more than 998 octets, and
encoded only where its text can't stand in the message.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Callable, Iterable
from itertools import pairwise

from elemta.message.header_reader import header_size, plain_size

# RFC 5322 §2.1.1: a line must have at most 998 octets, without its CRLF.
_LONGEST_LINE = 998
_FIELD_NAME = re.compile(r"[!-9;-~]{1,76}")
# A line end in a value is a fold: white space and something else follow it (RFC 5322 §2.2.3).
_FOLD = re.compile(r"\r?\n(?=[ \t]+[^ \t\r\n])")
_FORBIDDEN = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]|\r(?!\n)|(?<!\r)\n|\r\n(?![ \t]+[^ \t\r\n])")
_WORD = re.compile(r"[^ \t\r\n]+")
_START = re.compile(rb"([!-9;-~]+)[ \t]*:")
_FIELD_START = re.compile(rb"^[!-9;-~]+[ \t]*:", re.MULTILINE)


def field_octets(name: str, value: str, *, utf8: bool = False) -> bytes:
    """A field as it stands in a message, ending in CRLF; ``value`` as it is given, its folds included.

    A value that begins with white space has no other behind the colon. Words beyond ASCII are encoded words
    (RFC 2047) unless the message is sent with SMTPUTF8. Raises :class:`ValueError` where the name is no field
    name, the value has a control character in it or a line end that is no fold, or a line is too long and
    can't be folded.
    """
    if not isinstance(name, str) or not _FIELD_NAME.fullmatch(name):
        raise ValueError(f"not a header field name: {str(name)[:76]!r}")
    if not isinstance(value, str):
        raise TypeError(f"the value of the field {name} is not a text")
    value = _FOLD.sub("\r\n", value)
    if _FORBIDDEN.search(value):
        raise ValueError(f"the value of the field {name} has a control character in it")
    if not utf8 and not value.isascii():
        # RFC 6532 allows it only where all next hops know SMTPUTF8.
        value = _WORD.sub(lambda word: _encoded(word[0]), value)
    separator = "" if value.startswith((" ", "\t", "\r\n")) or not value else " "
    octets = f"{name}:{separator}{value}".encode("utf-8", "surrogateescape" if utf8 else "strict")
    lines = [line for part in octets.split(b"\r\n") for line in _folded(name, part)]
    return b"\r\n".join(lines) + b"\r\n"


def _encoded(word: str) -> str:
    if word.isascii():
        return word
    # RFC 2047 §2: an encoded word has at most 75 characters; §5 (3): characters are not split between words.
    pieces, piece = [], b""
    for char in word.encode("utf-8", "replace").decode("utf-8"):
        octets = char.encode("utf-8")
        if len(piece) + len(octets) > 45:
            pieces.append(piece)
            piece = b""
        piece += octets
    pieces.append(piece)
    return " ".join(f"=?utf-8?b?{base64.b64encode(each).decode('ascii')}?=" for each in pieces)


def _folded(name: str, line: bytes) -> Iterable[bytes]:
    while len(line) > _LONGEST_LINE:
        place = max(line.rfind(b" ", 1, _LONGEST_LINE), line.rfind(b"\t", 1, _LONGEST_LINE))
        if place <= 0 or not line[:place].strip():
            raise ValueError(f"the value of the field {name} has a word too long for a line")
        yield line[:place]
        line = line[place:]
        if not line.strip():
            return  # blanks alone are no line of a field (RFC 5322 §3.2.2)
    yield line


def split_header(header: bytes) -> list[bytes]:
    """The fields of a header, each with its line ends. Lines that are no field stay with the one above."""
    if not header:
        return []
    # By their places: to put a field together line by line takes the square of its lines.
    starts = [found.start() for found in _FIELD_START.finditer(header)]
    if not starts or starts[0] != 0:
        starts.insert(0, 0)
    return [header[start:end] for start, end in pairwise((*starts, len(header)))]


def value_of(field: bytes) -> str:
    """The value of a field, unfolded, without white space at its ends."""
    _, _, value = field.partition(b":")
    return value.replace(b"\r\n", b"").replace(b"\n", b"").decode("utf-8", "replace").strip(" \t")


def is_called(field: bytes, name: bytes) -> bool:
    """Whether the name of a field is this one, which is in lower case."""
    # Nearly every field has another name, which costs less to see than a match.
    if field[: len(name)].lower() != name:
        return False
    found = _START.match(field)
    return found is not None and found[1].lower() == name


class EditedHeader:
    """The fields of a message with what policies made of them.

    ``top`` stands above all that is there, our Received included. ``ours`` are the fields that policies put
    below our Received by ``transaction.add_header``, and no part of what they see. ``fields`` are the
    client's, read when they are first needed, and ``bottom`` stands behind them.
    """

    def __init__(self, header: Callable[[], bytes]) -> None:
        self._header = header
        self._fields: list[bytes] | None = None
        self.top: list[bytes] = []
        self.ours: list[bytes] = []
        self.bottom: list[bytes] = []
        #: Whether the client's own fields are not as they were.
        self.changed = False

    @property
    def fields(self) -> list[bytes]:
        if self._fields is None:
            self._fields = split_header(self._header())
        return self._fields

    @property
    def is_edited(self) -> bool:
        return bool(self.changed or self.top or self.bottom)

    def places(self, name: str) -> list[tuple[list[bytes], int]]:
        """Where the fields with this name are, from the top down."""
        wanted = name.lower().encode("ascii", "replace")
        return [
            (block, index)
            for block in (self.top, self.fields, self.bottom)
            for index, field in enumerate(block)
            if is_called(field, wanted)
        ]

    def remove(self, places: Iterable[tuple[list[bytes], int]]) -> None:
        """Remove these fields, which are in their order."""
        for block, index in reversed(list(places)):
            self.changed = self.changed or block is self._fields
            del block[index]

    def replace(self, place: tuple[list[bytes], int], field: bytes) -> None:
        block, index = place
        self.changed = self.changed or block is self._fields
        block[index] = field

    @property
    def stored(self) -> bytes:
        """The client's fields with what stands behind them, as they are to be stored."""
        header = b"".join(self.fields)
        # In front of a line that is no field, where the header ends to some readers.
        end = plain_size(header) if self.bottom else len(header)
        return b"".join((header[:end], *self.bottom, header[end:]))

    @property
    def whole(self) -> bytes:
        """All fields in order, but for those that are ours."""
        return b"".join((*self.top, self.stored))


def header_of(head: bytes, read: Callable[[], bytes]) -> bytes:
    """The header of a message that begins with ``head``; ``read`` gives more where that is too short."""
    size = header_size(head)
    if size is not None:
        return head[:size]
    whole = read()
    size = header_size(whole)
    return whole if size is None else whole[:size]
