"""What the connections to Valkey tell the metrics."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from elemta.errors import ValkeyFailure


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


class ValkeyObserver(Protocol):
    """The events, in the reactor thread."""

    def failed(self, kind: ValkeyFailure) -> None:
        """One command of a caller failed."""

    def info(self, info: ValkeyInfo) -> None:
        """INFO was asked, every few seconds; or Valkey came or went, or its answers did."""


class NullValkeyObserver:
    """An observer that counts nothing."""

    def failed(self, kind: ValkeyFailure) -> None:
        pass

    def info(self, info: ValkeyInfo) -> None:
        pass
