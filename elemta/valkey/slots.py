"""Which slot of a cluster a key is in, and which node a slot is on."""

from __future__ import annotations

from binascii import crc_hqx
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

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
