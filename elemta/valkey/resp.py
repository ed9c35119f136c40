"""RESP2, the protocol of Valkey: commands as bytes, error replies by kind, slots of a cluster, scripts."""

from __future__ import annotations

import re
from binascii import crc_hqx
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from hashlib import sha1
from importlib.resources import files
from typing import Any, TypeAlias

import hiredis

from elemta.errors import ValkeyFailure

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


_KINDS = {
    "LOADING": ValkeyFailure.LOADING,
    "READONLY": ValkeyFailure.READONLY,
    "MASTERDOWN": ValkeyFailure.READONLY,
    "OOM": ValkeyFailure.OOM,
    "BUSY": ValkeyFailure.BUSY,
    "NOREPLICAS": ValkeyFailure.NOREPLICAS,
    "CLUSTERDOWN": ValkeyFailure.REDIRECTED,
    "TRYAGAIN": ValkeyFailure.REDIRECTED,
    "MOVED": ValkeyFailure.REDIRECTED,
    "ASK": ValkeyFailure.REDIRECTED,
    "NOAUTH": ValkeyFailure.DENIED,
    "WRONGPASS": ValkeyFailure.DENIED,
    "NOPERM": ValkeyFailure.DENIED,
}

_MOVE = re.compile(r"(?:MOVED|ASK) (?P<slot>[0-9]{1,5}) (?P<host>[^ ]*):(?P<port>[0-9]{1,5})(?: .*)?")


def kind_of(words: str) -> ValkeyFailure:
    """What an error reply means; its first word says it."""
    kind = _KINDS.get(words.partition(" ")[0])
    if kind is None:
        kind = ValkeyFailure.OVERLOADED if "max number of clients" in words else ValkeyFailure.OTHER
    return kind


@dataclass(frozen=True, slots=True)
class Move:
    """Another node has the slot. An empty ``host`` is the host of the node that said so."""

    slot: int
    host: str
    port: int


def move_of(words: str) -> Move | None:
    """Where a MOVED or an ASK points to; None for anything else."""
    match = _MOVE.fullmatch(words)
    if match is None or int(match["slot"]) >= 16384:
        return None
    return Move(int(match["slot"]), match["host"], int(match["port"]))


SLOTS = 16384


def slot_of(key: bytes) -> int:
    """The slot of a key: of what is between its first ``{`` and the next ``}``, if anything is."""
    start = key.find(b"{")
    if start >= 0:
        end = key.find(b"}", start + 1)
        if end > start + 1:
            key = key[start + 1 : end]
    return crc_hqx(key, 0) % SLOTS


@dataclass(frozen=True, slots=True)
class SlotRange:
    """The slots from ``first`` to ``last``, both included, and the primary that has them."""

    first: int
    last: int
    host: str
    port: int


def slot_ranges(reply: Any, asked: str) -> tuple[SlotRange, ...]:
    """The reply to CLUSTER SLOTS. A node without a name is ``asked``, the host that gave the reply.

    ValueError: it is no such reply.
    """
    try:
        return tuple(_ranges(reply, asked))
    except (TypeError, IndexError, AttributeError, UnicodeDecodeError) as error:
        raise ValueError(f"no map of slots: {error}") from None


def _ranges(reply: Any, asked: str) -> Iterable[SlotRange]:
    for first, last, primary, *_ in reply:
        if not 0 <= first <= last < SLOTS:
            raise ValueError(f"no range of slots: {first} to {last}")
        host = (primary[0] or b"").decode("ascii")
        if host != "?":  # the node does not know its own name yet
            yield SlotRange(first, last, host or asked, int(primary[1]))


@dataclass(frozen=True, slots=True)
class Script:
    """A Lua script. ``name`` is for logs, ``sha`` by which Valkey knows the text once it was loaded."""

    name: str
    text: str = field(repr=False)
    sha: bytes = field(init=False)

    def __post_init__(self) -> None:
        # Not for safety: the name that Valkey gives it.
        digest = sha1(self.text.encode(), usedforsecurity=False).hexdigest()
        object.__setattr__(self, "sha", digest.encode())

    @classmethod
    def of_package(cls, package: str, path: str) -> Script:
        """The script in a file of a package: ``Script.of_package("elemta.limits", "scripts/beat.lua")``."""
        name = path.rpartition("/")[2].removesuffix(".lua")
        return cls(name, files(package).joinpath(path).read_text(encoding="utf-8"))
