"""The content of an outgoing message on the wire: canonical line ends, dots stuffed, one end.

State is kept across chunks, so that however a message is cut it reads as one message and nothing
in it reads as an end.
"""

from __future__ import annotations

import re

_LINE_END = re.compile(rb"\r\n|\r|\n")


class ContentEncoder:
    """Turns the chunks of one message into what follows 354 (RFC 5321 §4.5.2).

    A bare CR and a bare LF become CRLF (RFC 5321 §2.3.8: they must not be sent); a dot at the start of
    a line is doubled; :meth:`finish` ends the last line where it has no end, then the message.
    """

    def __init__(self) -> None:
        self._held_cr = False
        self._at_line_start = True

    def encode(self, chunk: bytes) -> bytes:
        """The octets to send for the next chunk. A CR at its end waits for what follows it."""
        if self._held_cr:
            chunk = b"\r" + chunk
        self._held_cr = chunk.endswith(b"\r")
        if self._held_cr:
            chunk = chunk[:-1]
        if not chunk:
            return b""
        ends = chunk.count(b"\r\n")
        if ends != chunk.count(b"\n") or ends != chunk.count(b"\r"):
            chunk = _LINE_END.sub(b"\r\n", chunk)
        # RFC 5321 §4.5.2
        stuffed = chunk.replace(b"\r\n.", b"\r\n..")
        if self._at_line_start and chunk.startswith(b"."):
            stuffed = b"." + stuffed
        self._at_line_start = chunk.endswith(b"\r\n")
        return stuffed

    def finish(self) -> bytes:
        """The octets that end the message: the end of its last line where it has none, and the dot."""
        last_line = b"" if self._at_line_start and not self._held_cr else b"\r\n"
        self._held_cr = False
        self._at_line_start = True
        return last_line + b".\r\n"
