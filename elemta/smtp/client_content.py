"""The content of an outgoing message on the wire: canonical line ends; dots stuffed, or octets counted.

State is kept across chunks, so that however a message is cut it reads as one message and nothing
in it reads as an end.
"""

from __future__ import annotations

import re

from elemta.smtp.framing import first_line_dot, has_bare_newline

# Enough to make the replies cost nothing, little enough to be held in memory by every connection.
CHUNK = 256 * 1024

_LINE_END = re.compile(rb"\r\n|\r|\n")


class ContentEncoder:
    """Turns the chunks of one message into what follows 354 (RFC 5321 §4.5.2).

    A bare CR and a bare LF become CRLF (RFC 5321 §2.3.8: they must not be sent); a dot at the start of
    a line is doubled; :meth:`finish` ends the last line where it has no end, then the message. With
    ``dots`` false no dot is doubled and no dot ends the message: for BDAT.
    """

    def __init__(self, *, dots: bool = True) -> None:
        self._dots = dots
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
        if has_bare_newline(chunk):
            chunk = _LINE_END.sub(b"\r\n", chunk)
        at_line_start, self._at_line_start = self._at_line_start, chunk.endswith(b"\r\n")
        if not self._dots:
            return chunk
        # RFC 5321 §4.5.2
        begins_with_dot = at_line_start and chunk.startswith(b".")
        if first_line_dot(chunk) >= 0:
            chunk = chunk.replace(b"\r\n.", b"\r\n..")
        return b"." + chunk if begins_with_dot else chunk

    def finish(self) -> bytes:
        """The octets that end the message: the end of its last line where it has none, and the dot."""
        last_line = b"" if self._at_line_start and not self._held_cr else b"\r\n"
        self._held_cr = False
        self._at_line_start = True
        return last_line + b".\r\n" if self._dots else last_line


class ChunkEncoder:
    """Turns the chunks of one message, of any sizes, into BDAT commands with their octets (RFC 3030 §2).

    Lines end as :class:`ContentEncoder` has them end, because a server that sends it on by DATA needs
    them so. A chunk is sent once more of the message is known to follow, so that only the last can be small.
    """

    def __init__(self, size: int = CHUNK) -> None:
        self._size = size
        self._encoder = ContentEncoder(dots=False)
        self._held: list[bytes] = []
        self._octets = 0

    def encode(self, chunk: bytes) -> bytes:
        """Take the next octets of the message; the BDAT command that can be sent now, or nothing."""
        encoded = self._encoder.encode(chunk)
        ready = b""
        if encoded and self._octets >= self._size:
            ready = self._command(b"")
        if encoded:
            self._held.append(encoded)
            self._octets += len(encoded)
        return ready

    def finish(self) -> bytes:
        """The last BDAT command, with what is left; an empty message is an empty chunk."""
        end = self._encoder.finish()
        self._held.append(end)
        self._octets += len(end)
        return self._command(b" LAST")

    def _command(self, last: bytes) -> bytes:
        octets = b"".join(self._held)
        self._held, self._octets = [], 0
        return b"BDAT %d%s\r\n%s" % (len(octets), last, octets)
