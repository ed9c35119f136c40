"""The operations of the admin API about limits, and the values that they return."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True, slots=True)
class LimitTerms:
    """A limit in force, in the words of the configuration; ``per`` is empty where all count as one."""

    name: str
    per: tuple[str, ...]
    counts: str
    rates: tuple[str, ...]
    scope: str
    on_exceed: str
    when_valkey_is_down: str
    mode: str


@dataclass(frozen=True, slots=True)
class BoundFill:
    """``used`` of ``limit`` in the last ``window`` seconds, or open now where that is None."""

    used: int
    limit: int
    window: float | None


@dataclass(frozen=True, slots=True)
class LimitFill:
    """How full one limit is for one identity.

    ``retry_after`` is the seconds until one more would pass: 0 when it would pass now. ``refused_by`` are
    the nodes that refuse this identity now without asking, because they know until when they must.
    """

    limit: str
    identity: str
    counts: str
    mode: str
    bounds: tuple[BoundFill, ...]
    retry_after: float
    refused_by: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class LimitListing:
    """Fills, and where they were counted: ``memory``, ``cluster``, or ``local`` while Valkey is away.

    ``complete`` is False where there was more than could be looked at.
    """

    fills: tuple[LimitFill, ...]
    counted_in: str
    complete: bool = True


@dataclass(frozen=True, slots=True)
class LimitReset:
    """Whether there was anything to forget for one identity of one limit."""

    limit: str
    identity: str
    was_counted: bool


class LimitOperations(Protocol):
    """What can be asked about the limits of a running daemon. All raise StoreUnavailable."""

    def all(self) -> Sequence[LimitTerms]:
        """The limits in force."""

    async def top(self, limit: str | None, count: int) -> LimitListing:
        """The fullest identities of one limit, or of all. KeyError when there is no such limit."""

    async def show(self, identity: str) -> LimitListing:
        """How full every limit is that knows such an identity; a limit's name may stand before it."""

    async def reset(self, identity: str) -> Sequence[LimitReset]:
        """Forget what is counted for an identity, on all nodes. Open connections stay counted."""
