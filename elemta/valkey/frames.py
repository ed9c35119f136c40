"""Commands as bytes of RESP2, the protocol of Valkey."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeAlias

import hiredis

Word: TypeAlias = bytes | str | int


def _pack(words: Sequence[Word]) -> bytes:
    parts = [b"*%d\r\n" % len(words)]
    for word in words:
        encoded = word if isinstance(word, bytes) else str(word).encode()
        parts.append(b"$%d\r\n%b\r\n" % (len(encoded), encoded))
    return b"".join(parts)


def pack(words: Sequence[Word]) -> bytes:
    """One command; text goes as UTF-8 and numbers in decimal."""
    return _in_c(tuple(words)) if _in_c is not None else _pack(words)


# Debian 12's hiredis has only the reader.
_in_c = getattr(hiredis, "pack_command", None)
