"""Replies as a client receives them: read by their first digit, and with bounds (RFC 5321 §4.2, §4.3.2).

What is odd and has one meaning is read as that: codes that no RFC names, another code of the same class in
the last line, something else than a blank behind the code, lines without one, lines that are too long.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from elemta.foreign_text import printable
from elemta.smtp.reply import Reply

# RFC 5321 §4.5.3.1.5 allows 512 octets a line; real servers write more. What is beyond this is left out.
MAX_LINE = 2048
MAX_LINES = 128
MAX_REPLY = 64 * 1024

# RFC 5321 §4.3.2: the first digit says what to do, whether or not the code is known. RFC 5321 §4.2 has a
# blank behind it, or a hyphen where more lines follow; some servers have a TAB, a colon, or nothing.
_REPLY_LINE = re.compile(rb"([2-5][0-9][0-9])(?:([\t -/:-@\[-`{-~])(.*))?\Z", re.DOTALL)
# Inside a reply a line may begin with any text, such as a number or an address.
_LINE_INSIDE = re.compile(rb"([2-5][0-9][0-9])(?:([-: \t])(.*))?\Z", re.DOTALL)
# What nearly every reply is: one line of printable ASCII, well within its bounds. What this finds in it is
# what `_line` would find.
_PLAIN_REPLY = re.compile(
    rb"(([2-5])[0-9][0-9]) +(?:((?=[245])\2\.[0-9]{1,3}\.[0-9]{1,3})(?: +|(?=\r?\n)))?"
    rb"((?:[!-~][ -~]{0,1000})?)\r?\n"
)
# RFC 2034 §4, RFC 3463 §2
_ENHANCED = re.compile(r"([245]\.\d{1,3}\.\d{1,3})(?: +|\Z)")


class MalformedReplyError(Exception):
    """What the server sent is not a reply, or more than a reply may be. The text says which."""


@dataclass(frozen=True, slots=True)
class _Line:
    code: int
    text: str


class ReplyReader:
    """Cuts the bytes from a server into replies. Lines may end in CRLF or LF."""

    def __init__(self) -> None:
        self._buffer = b""
        self._lines: list[_Line] = []
        # Octets of this reply that are not in the buffer any more.
        self._size = 0

    @property
    def pending(self) -> bool:
        """Whether there are bytes behind the last whole reply."""
        return bool(self._buffer or self._lines)

    def feed(self, data: bytes) -> Iterator[Reply]:
        """The replies that are complete with ``data``, each as soon as it is asked for.

        Raises :class:`MalformedReplyError`; the reader is of no further use then.
        """
        self._buffer += data
        while not self._lines and (plain := _PLAIN_REPLY.match(self._buffer)) is not None:
            self._buffer = self._buffer[plain.end() :]
            self._size = 0
            code, _, enhanced, text = plain.groups(b"")
            yield Reply(int(code), str(enhanced, "ascii"), (str(text, "ascii"),))
        if not self._buffer:
            return
        start = 0
        while (end := self._buffer.find(b"\n", start)) >= 0:
            reply = self._line(self._buffer[start:end])
            start = end + 1
            if reply is not None:
                self._buffer = self._buffer[start:]
                start = 0
                yield reply
        self._buffer = self._buffer[start:]
        if len(self._buffer) > MAX_LINE:
            self._count(len(self._buffer) - MAX_LINE)
            self._buffer = self._buffer[:MAX_LINE]

    def _count(self, octets: int) -> None:
        self._size += octets
        if self._size > MAX_REPLY:
            raise MalformedReplyError(f"a reply of more than {MAX_LINES} lines or {MAX_REPLY} octets")

    def _line(self, line: bytes) -> Reply | None:
        # The LF counts too: empty lines are not free.
        self._count(len(line) + 1)
        line = line[:MAX_LINE].removesuffix(b"\r")
        if not line and not self._lines:
            return None
        match = (_LINE_INSIDE if self._lines else _REPLY_LINE).match(line)
        if match is None and not self._lines:
            raise MalformedReplyError(f"what is no reply: {_shown(line[:60])}")
        if len(self._lines) >= MAX_LINES:
            raise MalformedReplyError(f"a reply of more than {MAX_LINES} lines or {MAX_REPLY} octets")
        if match is None:
            self._lines.append(_Line(self._lines[-1].code, _shown(line)))
            return None
        code, separator, text = int(match[1]), match[2], match[3] or b""
        if self._lines and not _same_meaning(self._lines[-1].code, code):
            # RFC 5321 §4.2.1: every line has the same code. One that says yes and no has no meaning.
            raise MalformedReplyError(f"a reply whose code changes from {self._lines[-1].code} to {code}")
        if separator == b"-":
            self._lines.append(_Line(code, _shown(text)))
            return None
        reply = _reply(code, [*[each.text for each in self._lines], _shown(text)])
        self._lines, self._size = [], 0
        return reply


def _same_meaning(first: int, second: int) -> bool:
    """Whether both codes may stand in one reply: they are of one class, or both refuse."""
    return first // 100 == second // 100 or (first >= 400 and second >= 400)


def _shown(text: bytes) -> str:
    return printable(text.decode("utf-8", "replace"))


def _reply(code: int, lines: list[str]) -> Reply:
    lines[0] = lines[0].lstrip()
    match = _ENHANCED.match(lines[0])
    # RFC 2034 §4: the class of the enhanced code is that of the reply; one that is not is only text.
    if match is None or match[1][0] != str(code)[0]:
        return Reply(code, "", tuple(lines))
    prefix = match[1]
    return Reply(code, prefix, tuple([line.removeprefix(prefix).lstrip(" ") for line in lines]))
