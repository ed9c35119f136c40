"""The hash of a message's body for DKIM and ARC (RFC 6376 §3.4.3, §3.4.4), read once, in blocks."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import BinaryIO

BLOCK = 256 * 1024
_BLANKS = re.compile(rb"[ \t]+")
_LINE_ENDS = re.compile(rb"(?:\r\n)*")
_CRLF = b"\r\n"


@dataclass(frozen=True, slots=True)
class BodyHashKind:
    """How a signature wants the body hashed: ``limit`` is its l= tag, in octets, or None for all."""

    relaxed: bool
    algorithm: str
    limit: int | None


@dataclass(frozen=True, slots=True)
class BodyHash:
    """``digest`` of the canonical body, up to the limit; ``length`` is that of the whole canonical body."""

    digest: bytes
    length: int


class _Hasher:
    """Hashes a body that comes in blocks. Empty lines at its end never count."""

    def __init__(self, kind: BodyHashKind) -> None:
        self._hash = hashlib.new(kind.algorithm)
        self._relaxed = kind.relaxed
        self._room = kind.limit
        self._length = 0
        self._empty_lines = 0  # line ends that count only if something follows
        self._carry = b""  # the end of the last block: what it means depends on the next one
        self._open_line = False  # octets after the last line end

    def update(self, block: bytes) -> None:
        data = self._carry + block
        kept = data.rstrip(b" \t\r\n" if self._relaxed else _CRLF)
        self._text(kept)
        self._tail(data[len(kept) :])

    def finish(self) -> BodyHash:
        rest, self._carry = self._carry, b""
        if self._relaxed:
            rest = rest.lstrip(b" ")  # RFC 6376 §3.4.4: blanks at the end of a line go
        if rest:
            self._text(rest)
        # A body ends in a line end; a relaxed empty one stays empty (RFC 6376 §3.4.3, §3.4.4).
        if self._open_line or (not self._length and not self._relaxed):
            self._emit(_CRLF)
        return BodyHash(self._hash.digest(), self._length)

    def _text(self, text: bytes) -> None:
        if not text:
            return
        self._emit_empty_lines()
        if self._relaxed:
            text = _BLANKS.sub(b" ", text).replace(b" \r\n", _CRLF)
        self._emit(text)
        self._open_line = True

    def _tail(self, tail: bytes) -> None:
        """Count the line ends of ``tail``, and carry what may be the beginning of one."""
        if self._relaxed:
            tail = _BLANKS.sub(b" ", tail).replace(b" \r\n", _CRLF)
        at = 0
        while True:
            ends = _LINE_ENDS.match(tail, at).end()  # type: ignore[union-attr]  # it matches nothing, too
            self._empty_lines += (ends - at) // 2
            at = ends
            if tail[at : at + 3] in (b"", b" ", b"\r", b" \r"):
                break
            self._text(tail[at : at + 1])  # a CR or LF on its own is an octet like others
            at += 1
        self._carry = tail[at:]

    def _emit_empty_lines(self) -> None:
        if self._empty_lines:
            self._open_line = False
            while self._empty_lines:
                some = min(self._empty_lines, BLOCK)
                self._emit(_CRLF * some)
                self._empty_lines -= some

    def _emit(self, data: bytes) -> None:
        self._length += len(data)
        if self._room is not None:
            data = data[: self._room]
            self._room -= len(data)
        self._hash.update(data)


def hash_body(body: BinaryIO, kinds: Iterable[BodyHashKind]) -> dict[BodyHashKind, BodyHash]:
    """Read ``body`` to its end and hash it in each of the ways at once. Blocks: call it in a thread."""
    hashers = {kind: _Hasher(kind) for kind in kinds}
    while hashers and (block := body.read(BLOCK)):
        for hasher in hashers.values():
            hasher.update(block)
    return {kind: hasher.finish() for kind, hasher in hashers.items()}
