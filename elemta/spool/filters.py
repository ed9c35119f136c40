"""Which messages of the queue are meant, by their envelopes."""

from __future__ import annotations

from dataclasses import dataclass
from fnmatch import fnmatchcase

from elemta.envelope import Envelope
from elemta.spool.records import MessageState


@dataclass(frozen=True, slots=True)
class QueueFilter:
    """Messages in ``state`` whose sender, and one of whose recipients, fit the patterns; None is any."""

    state: MessageState | None = None
    sender: str | None = None
    recipient: str | None = None

    @property
    def looks_inside(self) -> bool:
        """Whether the envelope decides, which no index knows."""
        return self.sender is not None or self.recipient is not None

    def fits(self, envelope: Envelope) -> bool:
        if self.sender is not None and not fits(str(envelope.sender), self.sender):
            return False
        wanted = self.recipient
        return wanted is None or any(fits(str(each.address), wanted) for each in envelope.recipients)


def fits(address: str, pattern: str) -> bool:
    """Whether ``address`` is ``pattern``: an address, ``@domain``, ``<>``, or with ``*`` and ``?``."""
    if pattern == "<>":
        return address == ""
    wanted = pattern.lower()
    if wanted.startswith("@"):
        wanted = f"*{wanted}"
    # Brackets stand for themselves: they are in address literals.
    return fnmatchcase(address.lower(), wanted.replace("[", "[[]"))
