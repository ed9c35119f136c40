"""What Valkey reports of itself."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class ValkeyInfo:
    """What INFO said last, summed over the primaries of a cluster; zeros where it never said anything.

    ``up`` is now, whatever INFO said: every primary answered the last command in time.
    Memory is in bytes; ``maxmemory`` 0 means without a bound.
    """

    up: bool = False
    commands_processed: int = 0
    used_memory: int = 0
    maxmemory: int = 0
    keys_db0: int = 0
    evicted_keys: int = 0
    connected_clients: int = 0
    primaries: int = 0
    role: str = ""
    version: str = ""
    maxmemory_policy: str = ""
