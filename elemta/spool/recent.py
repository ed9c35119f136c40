"""Contents of messages that were just committed: most are sent on at once, and need not be read from disk."""

from __future__ import annotations

import io
from collections import OrderedDict

from elemta.spool.content import Content


class RecentContents:
    """Small contents by queue id, at most so many octets in all; the oldest make room."""

    def __init__(self, octets: int) -> None:
        self._room = octets
        self._contents: OrderedDict[str, tuple[bytes, bytes]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._contents)

    def add(self, queue_id: str, header: bytes, body: bytes) -> None:
        """Keep the content of a message that is on stable storage."""
        self._room -= len(header) + len(body)
        self._contents[queue_id] = (header, body)
        while self._room < 0:
            self._forget(*self._contents.popitem(last=False)[1])

    def find(self, queue_id: str) -> Content | None:
        """The content, if it is here."""
        found = self._contents.get(queue_id)
        if found is None:
            return None
        header, body = found
        return Content(header, io.BytesIO(body), len(body))

    def discard(self, queue_id: str) -> None:
        """An attempt was made, or the message is gone: whoever still wants it may read it."""
        found = self._contents.pop(queue_id, None)
        if found is not None:
            self._forget(*found)

    def _forget(self, header: bytes, body: bytes) -> None:
        self._room += len(header) + len(body)
