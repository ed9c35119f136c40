"""Which messages of the queue are meant: by their envelopes, where they go, why they wait, and their age."""

from __future__ import annotations

import re
from dataclasses import dataclass
from fnmatch import fnmatchcase

from elemta.spool.records import MessageState

# What addresses have as it is in an envelope's JSON, and what other texts have as it is in the database.
_OF_ADDRESSES = re.compile(r"[a-z0-9._+=-]+")
_OF_TEXTS = re.compile(r"[ -)+->@-~]+")


@dataclass(frozen=True, slots=True)
class QueueFilter:
    """Messages in ``state``, as operators see it, that came at ``received_by`` or earlier, and whose sender,
    one of whose recipients, one of whose destinations, and whose reason to wait fit the patterns; None is
    any."""

    state: MessageState | None = None
    sender: str | None = None
    recipient: str | None = None
    destination: str | None = None
    reason: str | None = None
    received_by: float | None = None

    @property
    def looks_inside(self) -> bool:
        """Whether more than the stored state decides."""
        return any(
            each is not None
            for each in (self.sender, self.recipient, self.destination, self.reason, self.received_by)
        )


def fits(text: str, pattern: str) -> bool:
    """Whether ``text`` fits a pattern, whatever the case.

    A pattern is a part of the text; the whole text where it stands in ``<`` and ``>``, so that ``<>`` is the
    null sender; or, with ``*`` and ``?`` in it, what stands for the whole text.
    """
    wanted, text = pattern.lower(), text.lower()
    if wanted.startswith("<") and wanted.endswith(">"):
        return text == wanted[1:-1]
    if "*" in wanted or "?" in wanted:
        # Brackets stand for themselves: they are in address literals.
        return fnmatchcase(text, wanted.replace("[", "[[]"))
    return wanted in text


def fragment_of_address(pattern: str) -> str:
    """Something that the JSON of each address that fits has in it, in lower case; may be empty."""
    return _longest(_OF_ADDRESSES, pattern)


def fragment(pattern: str) -> str:
    """Something that each text that fits has in it, in lower case; may be empty."""
    if pattern.startswith("<") and pattern.endswith(">"):
        pattern = pattern[1:-1]
    return _longest(_OF_TEXTS, pattern)


def _longest(piece: re.Pattern[str], pattern: str) -> str:
    return max(piece.findall(pattern.lower()), key=len, default="")
