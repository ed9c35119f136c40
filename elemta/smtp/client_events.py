"""What a client session says to its shell: facts and instructions, in order."""

from __future__ import annotations

import enum
from dataclasses import dataclass

from elemta.smtp.client_results import RecipientResult
from elemta.smtp.events import Event
from elemta.smtp.reply import Reply


class Extent(enum.Enum):
    """How far a transaction came with this server.

    OPENING: the server was never ready for it. UNANSWERED: it was, and then answered none of the
    transaction's commands, or by 421 only, so that nothing of the message was sent. ANSWERED: it answered,
    or nothing had to be asked.
    """

    OPENING = "opening"
    UNANSWERED = "unanswered"
    ANSWERED = "answered"


@dataclass(frozen=True, slots=True)
class Ready(Event):
    """A fact: the server was greeted and takes a transaction."""


@dataclass(frozen=True, slots=True)
class ContentWanted(Event):
    """An instruction: give the message by ``content`` in chunks of any size, then call ``end_content``.

    After each chunk wait while the session's ``congested`` is true, which replies change.
    """


@dataclass(frozen=True, slots=True)
class LoginRefused(Event):
    """A fact: the server did not take the credentials. Its reply is for the operator's log."""

    reply: Reply


@dataclass(frozen=True, slots=True)
class Settled(Event):
    """A fact: the transaction is over; one result for each recipient, in the order they were given."""

    results: tuple[RecipientResult, ...]
    extent: Extent = Extent.ANSWERED


@dataclass(frozen=True, slots=True)
class Hangup(Event):
    """An instruction: send the outgoing bytes and close the connection. ``reason`` is for the log."""

    reason: str
