"""The hash of a message's body for DKIM and ARC (RFC 6376 §3.4.3, §3.4.4), read once, in blocks."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import BinaryIO

BLOCK = 256 * 1024
_BLANKS = re.compile(rb"[ \t]+")
_LINE_ENDS = re.compile(rb"(?:\r\n)*")
_CRLF = b"\r\n"


@dataclass(frozen=True, slots=True)
class BodyHashKind:
    """How a signature wants the body hashed: ``limit`` is its l= tag, in octets, None for all."""

    relaxed: bool
    limit: int | None


@dataclass(frozen=True, slots=True)
class BodyHash:
    """``digest`` of the canonical body, up to the limit; ``length`` is that of the whole canonical body."""

    digest: bytes
    length: int


class _Hasher:
    """Hashes a body that comes in blocks, up to each limit at once. Empty lines at its end never count."""

    def __init__(self, *, relaxed: bool, limits: Iterable[int]) -> None:
        self._hash = hashlib.sha256()
        self._relaxed = relaxed
        self._limits = sorted(limits)
        self._digests: dict[int, bytes] = {}
        self._length = 0
        self._empty_lines = 0  # line ends that count only if something follows
        self._carry = b""  # the end of the last block: what it means depends on the next one
        self._open_line = False  # octets after the last line end

    def update(self, block: bytes) -> None:
        data = self._carry + block
        kept = data.rstrip(b" \t\r\n" if self._relaxed else _CRLF)
        self._text(kept)
        self._tail(data[len(kept) :])

    def finish(self) -> Callable[[int | None], BodyHash]:
        """Gives the hash up to a limit."""
        rest, self._carry = self._carry, b""
        if self._relaxed:
            rest = rest.lstrip(b" ")  # RFC 6376 §3.4.4: blanks at the end of a line go
        if rest:
            self._text(rest)
        # A body ends in a line end; a relaxed empty one stays empty (RFC 6376 §3.4.3, §3.4.4).
        if self._open_line or (not self._length and not self._relaxed):
            self._emit(_CRLF)
        whole = self._hash.digest()
        digests, length = self._digests, self._length
        return lambda limit: BodyHash(whole if limit is None else digests.get(limit, whole), length)

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
        end = self._length + len(data)
        while self._limits and self._limits[0] <= end:
            limit = self._limits.pop(0)
            cut = limit - self._length
            self._hash.update(data[:cut])
            self._digests[limit] = self._hash.digest()
            self._length, data = limit, data[cut:]
        self._hash.update(data)
        self._length = end


def hash_body(body: BinaryIO, kinds: Iterable[BodyHashKind]) -> dict[BodyHashKind, BodyHash]:
    """Read ``body`` to its end and hash it in each of the ways at once. Blocks: call it in a thread."""
    wanted = tuple(dict.fromkeys(kinds))
    hashers: dict[bool, _Hasher] = {}
    for relaxed in dict.fromkeys(kind.relaxed for kind in wanted):
        limits = dict.fromkeys(kind.limit for kind in wanted if kind.relaxed is relaxed)
        hashers[relaxed] = _Hasher(relaxed=relaxed, limits=[each for each in limits if each is not None])
    while hashers and (block := body.read(BLOCK)):
        for hasher in hashers.values():
            hasher.update(block)
    found = {relaxed: hasher.finish() for relaxed, hasher in hashers.items()}
    return {kind: found[kind.relaxed](kind.limit) for kind in wanted}
