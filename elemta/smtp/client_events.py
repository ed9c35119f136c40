"""What a client session says to its shell: facts and instructions, in order."""

from __future__ import annotations

from dataclasses import dataclass

from elemta.smtp.client_results import RecipientResult
from elemta.smtp.events import Event


@dataclass(frozen=True, slots=True)
class Ready(Event):
    """A fact: the server was greeted and takes a transaction."""


@dataclass(frozen=True, slots=True)
class ContentWanted(Event):
    """An instruction: give the message by ``content`` in chunks of any size, then call ``end_content``."""


@dataclass(frozen=True, slots=True)
class Settled(Event):
    """A fact: the transaction is over; one result for each recipient, in the order they were given."""

    results: tuple[RecipientResult, ...]


@dataclass(frozen=True, slots=True)
class Hangup(Event):
    """An instruction: send the outgoing bytes and close the connection. ``reason`` is for the log."""

    reason: str
