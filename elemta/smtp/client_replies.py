"""Replies as a client receives them: read with bounds, and refused where they are none (RFC 5321 §4.2)."""

from __future__ import annotations

import re
from collections.abc import Iterator

from elemta.smtp.reply import Reply

# RFC 5321 §4.5.3.1.5 allows 512 octets a line; real servers write more into their refusals.
MAX_LINE = 2048
MAX_LINES = 128
MAX_REPLY = 64 * 1024

# RFC 5321 §4.2: the first digit is 2 to 5, the second 0 to 5; a code without text needs no space.
_REPLY_LINE = re.compile(rb"([2-5][0-5][0-9])(?:([ -])(.*))?\Z", re.DOTALL)
# RFC 2034 §4, RFC 3463 §2
_ENHANCED = re.compile(r"([245]\.\d{1,3}\.\d{1,3})(?: +|\Z)")


class MalformedReplyError(Exception):
    """What the server sent is not a reply, or more than a reply may be. The text says which."""


class ReplyReader:
    """Cuts the bytes from a server into replies. Lines may end in CRLF or LF."""

    def __init__(self) -> None:
        self._buffer = b""
        self._lines: list[tuple[int, str]] = []
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
            raise MalformedReplyError(f"a reply line of more than {MAX_LINE} octets")

    def _line(self, line: bytes) -> Reply | None:
        if len(line) >= MAX_LINE:
            raise MalformedReplyError(f"a reply line of more than {MAX_LINE} octets")
        line = line.removesuffix(b"\r")
        match = _REPLY_LINE.match(line)
        if match is None:
            raise MalformedReplyError(f"not a reply: {printable(line[:60])}")
        code, separator, text = int(match[1]), match[2], match[3] or b""
        if self._lines and self._lines[0][0] != code:
            # RFC 5321 §4.2.1: every line of a reply has the same code.
            raise MalformedReplyError(f"a reply whose code changes from {self._lines[0][0]} to {code}")
        self._size += len(line)
        if len(self._lines) >= MAX_LINES or self._size > MAX_REPLY:
            raise MalformedReplyError(f"a reply of more than {MAX_LINES} lines or {MAX_REPLY} octets")
        self._lines.append((code, printable(text)))
        if separator == b"-":
            return None
        reply = _reply(code, [text for _, text in self._lines])
        self._lines, self._size = [], 0
        return reply


def printable(text: bytes) -> str:
    """Text of a peer as it may be logged and shown: what is not printable becomes ``?``."""
    decoded = text.decode("utf-8", "replace")
    if decoded.isprintable():
        return decoded
    return "".join(char if char.isprintable() else "?" for char in decoded)


def _reply(code: int, lines: list[str]) -> Reply:
    match = _ENHANCED.match(lines[0])
    # RFC 2034 §4: the class of the enhanced code is that of the reply; one that is not is only text.
    if match is None or match[1][0] != str(code)[0]:
        return Reply(code, "", tuple(lines))
    prefix = match[1]
    return Reply(code, prefix, tuple(line.removeprefix(prefix).lstrip(" ") for line in lines))
