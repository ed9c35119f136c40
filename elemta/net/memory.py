"""What sessions take in memory beyond what an idle one does, counted as Python takes it."""

from __future__ import annotations

from dataclasses import dataclass

_MIB = 1024 * 1024


class MemoryBudget:
    """How many octets all sessions of this process together should hold of one kind, and how many they do."""

    __slots__ = ("limit", "taken")

    def __init__(self, limit: int = 64 * _MIB) -> None:
        self.limit = limit
        self.taken = 0

    @property
    def crowded(self) -> bool:
        """Whether they hold more than they should."""
        return self.taken > self.limit


@dataclass(frozen=True, slots=True)
class SessionMemory:
    """Octets of memory: of input that nobody used yet, and of replies that the client did not read yet."""

    input: int = 0
    replies: int = 0

    def __add__(self, other: SessionMemory) -> SessionMemory:
        return SessionMemory(self.input + other.input, self.replies + other.replies)
