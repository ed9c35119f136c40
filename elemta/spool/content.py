"""The content of a queued message as a binary file: the header block, then the body.

:class:`RecentContents` keeps those of messages that were just committed: most are sent on at once, and need
not be read from the disk.
"""

from __future__ import annotations

import io
import os
from collections import OrderedDict
from typing import BinaryIO

from elemta.errors import SpoolError


class Content(io.RawIOBase):
    """Reads a header block and a body as one; ``size`` is the octets of both. Seekable, to be sent again.

    Unlike a raw file, `read` gives exactly what was asked for until the end. Reading a large message reads
    a file: do it in a thread, or in pieces.
    """

    def __init__(self, header: bytes, body: BinaryIO, body_size: int) -> None:
        super().__init__()
        self._header = header
        self._body = body
        self._position = 0
        #: Whether reading it never waits for a disk.
        self.in_memory = isinstance(body, io.BytesIO)
        self.size = len(header) + body_size

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET, /) -> int:
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self.size}[whence]
        self._position = max(0, base + offset)
        self._body.seek(max(0, self._position - len(self._header)))
        return self._position

    def tell(self) -> int:
        return self._position

    def readinto(self, buffer: memoryview, /) -> int:  # type: ignore[override]  # the stub has no name for a buffer
        data = self.read(len(buffer))
        buffer[: len(data)] = data
        return len(data)

    def read(self, size: int | None = -1, /) -> bytes:
        """At most ``size`` octets, fewer only at the end; all that is left for a negative size."""
        left = max(0, self.size - self._position)
        wanted = left if size is None or size < 0 else min(size, left)
        parts: list[bytes] = []
        if self._position < len(self._header) and wanted:
            parts.append(self._header[self._position : self._position + wanted])
        missing = wanted - sum(map(len, parts))
        while missing:
            piece = self._body.read(missing)
            if not piece:
                raise SpoolError("the body of a queued message is shorter than it was")
            parts.append(piece)
            missing -= len(piece)
        self._position += wanted
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def readall(self) -> bytes:
        return self.read()

    def close(self) -> None:
        if not self.closed:
            self._body.close()
        super().close()


class MemoryContent(io.BytesIO):
    """A content that never waits for a disk; it shares the octets that it is made of."""

    in_memory = True

    @property
    def size(self) -> int:
        """Octets of header block and body."""
        return self.getbuffer().nbytes


class RecentContents:
    """Small contents by queue id, at most so many octets in all; the oldest are dropped first."""

    def __init__(self, octets: int) -> None:
        self._space = octets
        self._contents: OrderedDict[str, bytes] = OrderedDict()

    def __len__(self) -> int:
        return len(self._contents)

    def add(self, queue_id: str, header: bytes, body: bytes) -> None:
        """Keep the content of a message that is on stable storage."""
        content = self._contents[queue_id] = header + body
        self._space -= len(content)
        while self._space < 0:
            self._space += len(self._contents.popitem(last=False)[1])

    def find(self, queue_id: str) -> MemoryContent | None:
        """The content, if it is here."""
        found = self._contents.get(queue_id)
        return None if found is None else MemoryContent(found)

    def discard(self, queue_id: str) -> None:
        """An attempt was made, or the message is gone: a later attempt reads it from the disk."""
        found = self._contents.pop(queue_id, None)
        if found is not None:
            self._space += len(found)
