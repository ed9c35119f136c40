"""Where the header of a message ends: decided once, while its octets come in.

A header is the lines before the first empty line (RFC 5322 §2.1). A message whose first line is no field has
none: an empty line is put in front of it, so that all of it is body to every reader and none of it continues
a field of ours. What is stored has been read here, so :func:`header_size` finds the same end in it later.
"""

from __future__ import annotations

import enum
import re
from collections.abc import Callable, Collection
from functools import lru_cache

MAX_HELD = 16 * 1024
"""The most octets of one field that are kept back until its end is known."""

MAILBOX_LINE = b"X-Mailbox-Line: "
"""What a line that parts the messages of an mbox file becomes the value of."""

RECEIVED = b"received"

REMOVED = frozenset({b"return-path"})
"""Fields that only the last server writes (RFC 5321 §4.4): a client's own say nothing true."""

# RFC 5322 §4.5: obsolete syntax allows white space between the name and the colon. Name and white space
# together are shorter than what is kept back, so that it does not matter in what pieces a message comes.
_FIELD_START = re.compile(rb"([!-9;-~]{1,15000}+)[ \t]{0,1000}+:")
_COLON = re.compile(rb"[ \t]{0,1000}+:")
_MBOX_LINE = re.compile(rb">*+From ")
# RFC 5322 §2.2.3: a line that begins with white space continues a field. The second needs no next octet.
_FIELD_END = re.compile(rb"\n(?=[^ \t])")
_LAST_FIELD_END = re.compile(rb"\n(?![ \t])")
_FIELDS = re.compile(rb"(?:[!-9;-~]{1,15000}+[ \t]{0,1000}+:[^\n]*+(?:\n|\Z)(?:[ \t][^\n]*+(?:\n|\Z))*+)*+")
_OBSOLETE_NAME = re.compile(rb"(?:\A|(?<=\n))([!-9;-~]{1,15000}+)[ \t]{1,1000}+:")
_PLAIN_FIELDS = re.compile(rb"(?:[!-9;-~]{1,15000}+:[^\n]*+(?:\n|\Z)(?:[ \t][^\n]*+(?:\n|\Z))*+)*+")
_EMPTY_LINE = re.compile(rb"\n(\r?\n)")

# In one order, so that nothing depends on that of a set.
_ALWAYS_SOUGHT = tuple(b"\n" + name for name in sorted({RECEIVED, *REMOVED}))

FieldFound = Callable[[bytes, bytes, bool], None]


class _State(enum.Enum):
    FIRST_LINE = enum.auto()
    HEADER = enum.auto()
    LONG_FIELD = enum.auto()
    BODY = enum.auto()


def header_size(text: bytes) -> int | None:
    """The octets of the header that a stored message begins with, up to its empty line.

    ``text`` is the beginning of the message; None where the end is not in it.
    """
    if text.startswith((b"\r\n", b"\n")):
        return 0
    found = _EMPTY_LINE.search(text)
    return found.start(1) if found else None


def plain_size(header: bytes) -> int:
    """The octets of a header up to the first line that some readers take for no field, and for its end."""
    fields = _PLAIN_FIELDS.match(header)
    return fields.end() if fields else 0


class HeaderReader:
    """Reads the header of one message, in whatever pieces it comes, and gives what is to be stored.

    Lines end in CRLF. Behind the header every octet is given as it came, at no cost. Memory is bounded
    (:data:`MAX_HELD`), however long the header is.

    ``remove`` are the fields that are left out, and ``watch`` those that ``found`` is called with: name in
    lower case, the field as it came, and whether that is all of it: one longer than :data:`MAX_HELD` is cut.
    ``at_end`` gives further fields, to stand behind the last one. With ``plain`` every reader finds the same
    fields: a line that is no field ends the header, too, and gets an empty line in front of it; white space
    before a colon goes. ``host`` is this host's name: the Received fields that it wrote are counted apart.
    """

    def __init__(
        self,
        *,
        remove: Collection[bytes] = REMOVED,
        watch: Collection[bytes] = (),
        found: FieldFound | None = None,
        at_end: Callable[[], bytes] | None = None,
        plain: bool = False,
        host: str = "",
    ) -> None:
        #: How many Received fields the header has, so far.
        self.received = 0
        #: How many of them this host wrote.
        self.received_here = 0
        self._here = _written_by(host) if host else None
        #: The octets of the header, as they were given, without the empty line.
        self.size = 0
        self._removed = frozenset(remove)
        self._watched = frozenset(watch) if found is not None else frozenset()
        self._found = found
        self._at_end = at_end
        self._plain = plain
        self._sought = _ALWAYS_SOUGHT
        if remove is not REMOVED or self._watched:
            self._sought = tuple(
                [b"\n" + name for name in sorted({RECEIVED, *self._removed, *self._watched})]
            )
        self._state = _State.FIRST_LINE
        self._held = b""
        self._out: list[bytes] = []
        self._drops = False
        self._after_long_field = _State.HEADER

    @property
    def in_body(self) -> bool:
        """Whether the end of the header has come."""
        return self._state is _State.BODY

    def feed(self, data: bytes) -> bytes:
        """Take the next octets; gives those that can be stored now."""
        if self._state is _State.BODY:
            return data
        if self._state is _State.FIRST_LINE and not self._held and self._is_ordinary(data):
            self._state = _State.BODY
            return data
        return self._read(self._held + data if self._held else data, final=False)

    def _is_ordinary(self, text: bytes) -> bool:
        """Whether a message begins with a whole header, and nothing in it is to be read or changed."""
        size = None if self._plain or self._at_end is not None else header_size(text)
        if size is None or _FIELD_START.match(text) is None:
            return False
        lowered = b"\n" + text[:size].lower()
        for name in self._sought:
            if name in lowered:
                return False
        self.size = size
        return True

    def finish(self) -> bytes:
        """The message is over; gives what was kept back."""
        return b"" if self._state is _State.BODY else self._read(self._held, final=True)

    def _read(self, text: bytes, *, final: bool) -> bytes:
        self._held = b""
        while text and self._state is not _State.BODY:
            used = self._step(text, final)
            if used is None:
                self._held = text
                break
            text = text[used:] if used else text
        if self._state is _State.BODY:
            self._out.append(text)
        elif final:
            self._end()
        out, self._out = self._out, []
        return out[0] if len(out) == 1 else b"".join(out)

    def _step(self, text: bytes, final: bool) -> int | None:
        """How many octets are done with; None where more must come."""
        if self._state is _State.FIRST_LINE:
            return self._read_first_lines(text, final)
        if self._state is _State.HEADER:
            return self._read_fields(text, final)
        return self._read_long_field(text, final)

    def _give(self, octets: bytes) -> None:
        self.size += len(octets)
        self._out.append(octets)

    def _end(self, *, empty_line: bool = False) -> None:
        if self._at_end is not None:
            self._give(self._at_end())
        if empty_line:
            self._out.append(b"\r\n")
        self._state = _State.BODY

    # The first line that stays

    def _read_first_lines(self, text: bytes, final: bool) -> int | None:
        """Read lines up to the first that stays: however many they are, each octet is copied once."""
        at = 0
        while self._state is _State.FIRST_LINE and at < len(text):
            used = self._read_first_line(text, at, final)
            if used is None:
                return at or None
            at += used
        return at

    def _read_first_line(self, text: bytes, at: int, final: bool) -> int | None:
        if field := _FIELD_START.match(text, at):
            if field[1].lower() in self._removed:
                return self._remove_first_field(text, at, field.end(), final)
            self._state = _State.HEADER
            return 0
        if text.startswith(b"\r\n", at):
            self._state = _State.HEADER
            return 0
        line_end = text.find(b"\n", at) + 1 or (len(text) if final else 0)
        if not line_end and len(text) - at <= MAX_HELD:
            return None
        if line_end and _MBOX_LINE.match(text, at):
            self._give(MAILBOX_LINE + text[at:line_end])
            return line_end - at
        self._end(empty_line=True)
        return 0

    def _remove_first_field(self, text: bytes, at: int, start: int, final: bool) -> int | None:
        """The line behind it is the first then."""
        if end := _FIELD_END.search(text, start):
            return end.end() - at
        if final:
            return len(text) - at
        if len(text) - at <= MAX_HELD:
            return None
        self._drops, self._after_long_field, self._state = True, self._state, _State.LONG_FIELD
        return 0

    # Fields

    def _read_fields(self, text: bytes, final: bool) -> int | None:
        size = header_size(text)
        ended = size is not None
        if size is None:
            size = len(text) if final else _end_of_last_field(text)
        if size:
            used = self._edit(text[:size])
            if used < size:
                self._end(empty_line=True)
                return used
        if ended:
            self._end()
        elif not size and len(text) > MAX_HELD:
            return self._begin_long_field(text)
        return size if size or ended else None

    def _edit(self, block: bytes) -> int:
        """Give a block of whole fields without those to be removed; how many octets of it are header."""
        used = len(block)
        if self._plain and (fields := _FIELDS.match(block)):
            used = fields.end()
            block = _OBSOLETE_NAME.sub(rb"\1:", block[:used])
        given = 0
        for start, end, name in self._sought_in(block):
            if name == RECEIVED:
                self._count_received(block, start, end)
            if name in self._watched and self._found is not None:
                self._found(name, block[start : min(end, start + MAX_HELD)], end - start <= MAX_HELD)
            if name in self._removed:
                self._give(block[given:start])
                given = end
        self._give(block[given:] if given else block)
        return used

    def _count_received(self, block: bytes, start: int, end: int) -> None:
        self.received += 1
        if self._here is not None and self._here.search(block, start, min(end, start + MAX_HELD)):
            self.received_here += 1

    def _sought_in(self, block: bytes) -> list[tuple[int, int, bytes]]:
        """Start, end and name of each field that matters here."""
        found = []
        # A line feed more in front: the place of one in it is the place of the line behind it in the block.
        lowered = b"\n" + block.lower()
        for name in self._sought:
            start = lowered.find(name)
            while start >= 0:
                if colon := _COLON.match(block, start + len(name) - 1):
                    end = _LAST_FIELD_END.search(block, colon.end())
                    found.append((start, end.end() if end else len(block), name[1:]))
                start = lowered.find(name, start + 1)
        return sorted(found)

    # A field that is longer than what is kept back

    def _begin_long_field(self, text: bytes) -> int:
        field = _FIELD_START.match(text)
        if field is None and self._plain:
            self._end(empty_line=True)
            return 0
        name = field[1].lower() if field else b""
        if name == RECEIVED:
            self._count_received(text, 0, len(text))
        if name in self._watched and self._found is not None:
            self._found(name, text[:MAX_HELD], False)
        self._drops = name in self._removed
        self._after_long_field, self._state = self._state, _State.LONG_FIELD
        if field is None or not self._plain or self._drops:
            return 0
        self._give(field[1] + b":")
        return field.end()

    def _read_long_field(self, text: bytes, final: bool) -> int | None:
        if end := _FIELD_END.search(text):
            used = end.end()
            self._state = self._after_long_field
        else:
            # What comes behind a line end says whether the field is over.
            used = len(text) if final else len(text) - text.endswith(b"\n")
        if not self._drops:
            self._give(text[:used])
        return used or None


def _end_of_last_field(text: bytes) -> int:
    """Where the last field ends that surely has ended; 0 where none has."""
    end = text.rfind(b"\n", 0, len(text) - 1)
    while end >= 0 and text[end + 1] in b" \t":
        end = text.rfind(b"\n", 0, end)
    return end + 1


@lru_cache(maxsize=16)
def _written_by(host: str) -> re.Pattern[bytes]:
    """Finds the clause of a Received field that names the host that wrote it (RFC 5321 §4.4, By-domain)."""
    return re.compile(
        rb"(?i)(?<=[ \t\n])by[ \t\r\n]+" + re.escape(host.encode()) + rb"(?=[ \t\r\n(;]|\.[ \t\r\n(;]|$)"
    )
