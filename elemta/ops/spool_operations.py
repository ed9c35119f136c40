"""What the admin API needs to show the spools that a daemon works on, and to have others adopted."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from elemta.spool.records import MessageState


@dataclass(frozen=True, slots=True)
class SpoolStatus:
    """One spool directory: the node's ``own``, or one that it adopted.

    ``state`` is ``own``, ``delivering``, ``waiting`` (for the ``reason``) or ``closing``. ``messages`` are by
    state; None while it is not open. ``left`` are directories that its dead node had adopted itself.
    """

    directory: str
    state: str
    reason: str = ""
    messages: Mapping[MessageState, int] | None = None
    left: tuple[str, ...] = ()


class SpoolOperations(Protocol):
    """The spools of a daemon."""

    def all(self) -> Sequence[SpoolStatus]:
        """The node's own first."""

    async def adopt(self, directory: str) -> SpoolStatus:
        """Deliver what is in another node's spool, until it is empty.

        SpoolLocked: another owner has it. NoSpool: there is none. SpoolError: it can't be used.
        """

    async def give_back(self, directory: str) -> SpoolStatus:
        """Stop delivering from a spool that was adopted, and let its node have it. NoSpool: it was not."""
