"""Where things end: command lines, the message of DATA, the chunks of BDAT.

Only CRLF ends a command line, or a bare LF where that is forgiven. Only CRLF.CRLF ends the message of DATA.
Message content is scanned in the blocks it arrives in, never line by line.
"""

from __future__ import annotations

import enum
import re
from io import IncrementalNewlineDecoder

_CR = 13
_BLANK = 32


class LineFault(enum.Enum):
    """Why a line is not one."""

    TOO_LONG = "too long"
    ENDLESS = "too long to wait for its end"
    BARE_NEWLINE = "ended by a bare LF"


class ContentError(enum.Enum):
    """Why the content of a message can't be accepted."""

    BARE_NEWLINE = "bare CR or LF"
    NUL = "NUL octet"


_NO_LETTERS = bytes(octet for octet in range(256) if not chr(octet).isascii() or not chr(octet).isalpha())


def first_letters(text: bytes) -> bytes:
    """The first four letters of ``text`` in upper case, whatever stands before, between or behind them.

    It tells which command a line could be to a reader that passes over what it does not expect.
    """
    return text.translate(None, _NO_LETTERS)[:4].upper()


class InputBuffer:
    """What the client sent and the session has not used yet.

    What comes in small pieces is joined: a piece of two octets that is an object of its own takes 60. Octets
    that were used are not kept.
    """

    __slots__ = (
        "_block",
        "_discarded",
        "_held",
        "_last_discarded",
        "_letters",
        "_offset",
        "_takes_bare_lf",
        "ended_bare",
        "octets",
    )

    def __init__(self, *, takes_bare_lf: bool = False) -> None:
        self._takes_bare_lf = takes_bare_lf
        #: A line that was taken ended in a bare LF; the caller sets it back.
        self.ended_bare = False
        self._block = b""
        self._offset = 0
        # What came behind the block. Most sessions have none: an empty bytearray of its own takes 56 octets.
        self._held: bytes | bytearray = b""
        self._discarded = 0
        self._last_discarded = 0
        self._letters = b""
        #: How many octets there are. It is looked at several times for each command.
        self.octets = 0

    def __len__(self) -> int:
        return self.octets

    @property
    def memory(self) -> int:
        """The octets of memory that this takes; a little even while nothing is held."""
        return self._block.__sizeof__() + self._held.__sizeof__()

    def feed(self, data: bytes) -> None:
        self.octets += len(data)
        if not self._block and not self._held:
            self._block = data
        elif self._held:
            self._held += data
        else:
            self._held = bytearray(data)

    def clear(self) -> None:
        self.octets = 0
        self._block = b""
        self._offset = 0
        self._held = b""

    def begins_with(self, prefix: bytes) -> bool:
        """Whether the input begins with ``prefix``; False while it is shorter."""
        if self._held and len(self._block) - self._offset < len(prefix):
            self._gather()
        return self._block.startswith(prefix, self._offset)

    def block(self) -> bytes:
        """Some octets from the front, as many as are at hand in one piece; empty when nothing is held."""
        if self._offset == len(self._block):
            self._gather()
        if self._offset:
            self._block = self._block[self._offset :]
            self._offset = 0
        return self._block

    def consume(self, octets: int) -> None:
        """Drop this many octets from the front of what :meth:`block` gave."""
        self._use_up_to(self._offset + octets)

    @property
    def letters_of_long_line(self) -> bytes:
        """The :func:`first_letters` of the line that was TOO_LONG last."""
        return self._letters

    def take_plain_line(self, limit: int) -> bytes | None:
        """The next line without its CRLF, where it is at hand and there is nothing to say about it.

        None for a line that begins with a control, is longer than ``limit``, or does not end in CRLF: then
        :meth:`take_line` says what it is.
        """
        block, start = self._block, self._offset
        end = block.find(b"\n", start)
        # RFC 5321 §2.3.8: a line ends with CRLF and with nothing else
        if end <= start or block[end - 1] != _CR or block[start] < _BLANK:
            return None
        if self._discarded or end - start >= limit:
            return None
        # As `_use_up_to`, without a call for each command.
        self.octets -= end + 1 - start
        if end + 1 < len(block):
            self._offset = end + 1
        else:
            self._block, self._offset = b"", 0
        return block[start : end - 1]

    def take_line(self, limit: int, discard_limit: int) -> bytes | LineFault | None:
        """The next line without its CRLF, why there is none, or None when more must come.

        A line longer than ``limit`` octets, CRLF included, is dropped as it comes and reported at its end,
        or as ENDLESS once it is longer than ``discard_limit``.
        """
        end = self._block.find(b"\n", self._offset)
        if end < 0 and self._gather():
            end = self._block.find(b"\n", self._offset)
        if end >= 0:
            return self._line(end, limit, discard_limit)
        pending = self.octets
        if pending and (self._discarded or pending > limit):
            self._note_letters(self._block[self._offset :])
            self._discarded += pending
            self._last_discarded = self._block[-1]
            self.clear()
        elif self._offset:
            # The rest of a line may be long in coming: only its beginning stays.
            self._block = self._block[self._offset :]
            self._offset = 0
        return LineFault.ENDLESS if self._discarded > discard_limit else None

    def _line(self, end: int, limit: int, discard_limit: int) -> bytes | LineFault:
        block, start = self._block, self._offset
        length = self._discarded + end + 1 - start
        before = block[end - 1] if end > start else self._last_discarded
        if length > limit:
            self._note_letters(block[start:end])
        self._use_up_to(end + 1)
        self._discarded = self._last_discarded = 0
        if length > discard_limit:
            return LineFault.ENDLESS
        # RFC 5321 §2.3.8: a line ends with CRLF and with nothing else
        if before != _CR:
            if not self._takes_bare_lf:
                return LineFault.BARE_NEWLINE
            self.ended_bare = True
            return block[start:end] if length <= limit else LineFault.TOO_LONG
        if length > limit:
            return LineFault.TOO_LONG
        return block[start : end - 1]

    def _use_up_to(self, offset: int) -> None:
        self.octets -= offset - self._offset
        if offset < len(self._block):
            self._offset = offset
        else:
            self._block = b""
            self._offset = 0

    def _note_letters(self, piece: bytes) -> None:
        """Keep the first letters of a line that is too long; ``piece`` is its next part."""
        known = self._letters if self._discarded else b""
        self._letters = known if len(known) == 4 else first_letters(known + piece)

    def _gather(self) -> bool:
        """Join what came meanwhile to the block; False when nothing came."""
        if not self._held:
            return False
        self._block = self._block[self._offset :] + self._held
        self._offset = 0
        self._held = b""
        return True


class ContentCheck:
    """Looks for what makes a message mean different things to different readers.

    A bare CR or LF is a flaw, or with ``normalize`` becomes CRLF. Since the end of the message was found
    before, in what the client really sent, no line ending that is made here can end it.
    ``bare_newlines`` is whether there was one, be it refused or normalized.
    """

    __slots__ = ("bare_newlines", "flaw", "normalize")

    def __init__(self, *, normalize: bool) -> None:
        self.normalize = normalize
        self.bare_newlines = False
        self.flaw: ContentError | None = None

    def clean(self, piece: bytes) -> bytes:
        """``piece`` with line endings made right; it must not part a CR from an LF that follows it."""
        if b"\0" in piece:
            # RFC 5322 §4.1 calls NUL obsolete, and to readers that drop it CRLF NUL . CRLF ends a message.
            self.flaw = self.flaw or ContentError.NUL
        if not has_bare_newline(piece):
            return piece
        self.bare_newlines = True
        if not self.normalize:
            # RFC 5321 §2.3.8: CR and LF only together
            self.flaw = self.flaw or ContentError.BARE_NEWLINE
            return piece
        return piece.replace(b"\r\n", b"\n").replace(b"\r", b"\n").replace(b"\n", b"\r\n")


def has_bare_newline(piece: bytes) -> bool:
    """Whether a CR or an LF stands alone anywhere in ``piece``."""
    # It notes which kinds of line ending it meets, all in one pass: four times as fast as counting each.
    endings = IncrementalNewlineDecoder(None, translate=False)
    endings.decode(piece.decode("latin-1"), final=True)
    return endings.newlines not in (None, "\r\n")


_LINE_DOT = re.compile(rb"\r\n\.")


def first_line_dot(piece: bytes) -> int:
    """Where the first CRLF with a dot behind it begins; -1 where there is none."""
    # Base64, the bulk of large messages, has no dot at all, and to look for one octet is many times as fast.
    # In other text a pattern finds these three octets faster than `find` does.
    if b"." not in piece:
        return -1
    found = _LINE_DOT.search(piece)
    return -1 if found is None else found.start()


# A line with a single dot, and a bare CR or LF on either side of it or on both.
_LONE_DOT = re.compile(rb"[\r\n]\.\n|\r\.\r|(?<!\r)\n\.\r|\r\n\.\r[^\n]")


class DataDecoder:
    """The message of one DATA command: finds its end and takes the dot-stuffing away.

    At most four octets are kept back between two calls: what may be the beginning of CRLF.CRLF.
    Where bare newlines are refused, a lone dot between newlines that are not both CRLF sets ``lone_dot``: the
    client may have ended its message there. What follows may be content or commands, and must not be fed.
    """

    __slots__ = ("_at_start", "_before", "_carry", "check", "lone_dot")

    def __init__(self, *, normalize: bool) -> None:
        self.check = ContentCheck(normalize=normalize)
        self.lone_dot = False
        # What stood before the carry, where a lone dot may begin; only once there was a bare newline.
        self._before = b""
        # The message begins at the beginning of a line: as if a CRLF, which is no part of it, came before.
        self._carry = b"\r\n"
        self._at_start = True

    def feed(self, block: bytes) -> tuple[bytes, int | None]:
        """The content that is now certain, and how many octets of ``block`` belong to the message.

        The second is None while the end has not come; then all do.
        """
        carried = len(self._carry)
        text = self._carry + block if carried else block
        # One search is enough for nearly every block: without a dot that begins a line there is neither
        # an end nor anything to take away.
        dot = first_line_dot(text)
        # RFC 5321 §4.1.1.4: CRLF.CRLF and nothing else is the end, and its first CRLF is the message's
        end = text.find(b"\r\n.\r\n", dot) if dot >= 0 else -1
        if end >= 0:
            self._carry = b""
            piece, used = text[: end + 2], end + 5 - carried
            dotted = dot < end
        else:
            kept = _kept_back(text)
            self._carry = text[len(text) - kept :]
            piece, used = text[: len(text) - kept] if kept else text, None
            dotted = dot >= 0
        at_start = self._at_start
        content = self._content(piece, dotted=dotted)
        if self.check.flaw and self.check.bare_newlines and self._finds_lone_dot(piece + self._carry):
            self._at_start = at_start
            return self._content(self._before, dotted=True), None
        return content, used

    def _finds_lone_dot(self, text: bytes) -> bool:
        """Whether a lone dot is in ``text``, or begins before it; then ``_before`` is ``text`` up to it."""
        known = self._before + text
        lone_dot = None if self.check.normalize else _LONE_DOT.search(known)
        if lone_dot is None:
            self._before = known[: len(known) - len(self._carry)][-4:]
            return False
        self.lone_dot = True
        self._before = known[len(self._before) : lone_dot.end()]
        return True

    def _content(self, piece: bytes, *, dotted: bool) -> bytes:
        if not piece:
            return piece
        if dotted:
            # RFC 5321 §4.5.2: a dot at the beginning of a line was added by the client
            piece = piece.replace(b"\r\n.", b"\r\n")
        if self._at_start:
            self._at_start = False
            piece = piece[2:]
        return self.check.clean(piece)


def _kept_back(text: bytes) -> int:
    """How many octets at the end of ``text`` may be the beginning of CRLF.CRLF."""
    if text.endswith((b"\r", b"\n", b".")):
        for kept in (4, 3, 2, 1):
            if text.endswith(b"\r\n.\r"[:kept]):
                return kept
    return 0


class ChunkDecoder:
    """The message of a series of BDAT commands: no dots, no end, only octets that must be lines."""

    __slots__ = ("_carry", "_ends_line", "check")

    def __init__(self, *, normalize: bool) -> None:
        self.check = ContentCheck(normalize=normalize)
        self._carry = b""
        self._ends_line = True

    def feed(self, block: bytes) -> bytes:
        """The content that is now certain: all but a CR at the end, whose LF may be in the next chunk."""
        text = self._carry + block if self._carry else block
        self._carry = b""
        if text.endswith(b"\r"):
            text, self._carry = text[:-1], b"\r"
        return self._content(text)

    def finish(self) -> bytes:
        """What was kept back, and a CRLF when the last line has none: every message in hand ends a line."""
        rest = self._content(self._carry)
        self._carry = b""
        return rest if self._ends_line else rest + b"\r\n"

    def _content(self, text: bytes) -> bytes:
        if not text:
            return text
        content = self.check.clean(text)
        self._ends_line = content.endswith(b"\r\n")
        return content
