"""Looking through the keys of all primaries, in slices."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from twisted.internet.defer import Deferred

from elemta.errors import Trouble, ValkeyTrouble
from elemta.valkey.pool import Pool


@dataclass(frozen=True, slots=True)
class ScanResult:
    """Keys that were there at one time during the scan; each once. Not ``complete``: there may be more."""

    keys: tuple[bytes, ...]
    complete: bool


async def scan(
    primaries: Sequence[Pool], ask: Callable[[Pool, bytes], Deferred[Any]], slices: int
) -> ScanResult:
    """Ask every primary in turn for slices of its keys, ``slices`` at most altogether."""
    if not primaries:
        raise ValkeyTrouble(Trouble.DISCONNECTED, "not connected")
    found: dict[bytes, None] = {}
    for pool in primaries:
        cursor = b"0"
        while True:
            if slices == 0:
                return ScanResult(tuple(found), complete=False)
            slices -= 1
            cursor, keys = await ask(pool, cursor)
            found.update(dict.fromkeys(keys))
            if cursor == b"0":
                break
    return ScanResult(tuple(found), complete=True)
