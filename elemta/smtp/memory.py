"""What sessions take in memory beyond what an idle one does, counted as Python takes it."""

from __future__ import annotations

import enum
from dataclasses import dataclass
from sys import getsizeof

from elemta.address import NULL, Address
from elemta.envelope import MailParameters, Recipient

_KIB = 1024
_MIB = 1024 * _KIB

LEAST_BUDGET = 64 * _MIB
"""What all sessions of a process may hold of one kind."""

SMALL_ENVELOPE = 8 * _KIB
"""What each session may hold whatever others do: an envelope with some twenty recipients."""

# The objects of a transaction: its own, those of policies that are asked about it, and two lists.
_TRANSACTION = 2 * _KIB
# A place in a list, and what the list has too much.
_PLACE = 9


class MemoryBudget:
    """How many octets all sessions of this process together should hold of one kind, and how many they do."""

    __slots__ = ("limit", "taken")

    def __init__(self, limit: int = LEAST_BUDGET) -> None:
        self.limit = limit
        self.taken = 0

    @property
    def crowded(self) -> bool:
        """Whether they hold more than they should."""
        return self.taken > self.limit

    def has_space_for(self, held: int, octets: int) -> bool:
        """Whether an envelope that holds so many octets may take so many more.

        A small one always may: a few hundred sessions can hold all that there is. A larger one takes no more
        than it leaves free.
        """
        wanted = held + octets
        return wanted <= SMALL_ENVELOPE or wanted <= self.limit - self.taken - octets

    def admit(self, envelope: int) -> None:
        """Raise the budget so that one envelope of so many octets fits."""
        self.limit = max(LEAST_BUDGET, 2 * envelope)


class Shortage(enum.Enum):
    """Why an envelope can't take more."""

    ENVELOPE = "it takes as much as one envelope may"
    PROCESS = "all envelopes of the process together take so much that this one may take no more"


class EnvelopeMemory:
    """The memory of one envelope, from MAIL to the end of its transaction.

    One envelope takes at most ``limit`` octets, and beyond :data:`SMALL_ENVELOPE` never more than what all of
    them leave free. So all together take the budget and one small envelope for each session at most, and the
    next small one always fits.
    """

    __slots__ = ("_budget", "_limit", "held")

    def __init__(self, budget: MemoryBudget | None = None, limit: int = 256 * _KIB) -> None:
        self._budget = budget or MemoryBudget()
        self._limit = limit
        self.held = 0

    def shortage(self, octets: int) -> Shortage | None:
        """Why there is no space for so many octets more; None where there is."""
        wanted = self.held + octets
        if wanted > self._limit:
            return Shortage.ENVELOPE
        if wanted <= SMALL_ENVELOPE or self._budget.has_space_for(self.held, octets):
            return None
        return Shortage.PROCESS

    def take(self, octets: int) -> None:
        """Count so many octets more."""
        self.held += octets
        self._budget.taken += octets

    def give_back(self, octets: int) -> None:
        """Count so many octets less; after :meth:`end` none are left."""
        self.take(-min(octets, self.held))

    def end(self) -> None:
        """Give all of it back."""
        self._budget.taken -= self.held
        self.held = 0


@dataclass(frozen=True, slots=True)
class SessionMemory:
    """Octets of memory by what they are.

    ``input`` is not used yet, ``replies`` are not read by the client yet, ``envelopes`` are transactions.
    """

    input: int = 0
    replies: int = 0
    envelopes: int = 0

    def __add__(self, other: SessionMemory) -> SessionMemory:
        return SessionMemory(
            self.input + other.input, self.replies + other.replies, self.envelopes + other.envelopes
        )


def memory_of_mail(sender: Address, parameters: MailParameters) -> int:
    """What a transaction with this MAIL and no recipient takes."""
    octets = _MAIL + _memory_of_texts(sender)
    if parameters.envid:
        octets += getsizeof(parameters.envid)
    if parameters.auth:
        octets += getsizeof(parameters.auth)
    return octets


def memory_of_recipient(recipient: Recipient) -> int:
    """What a recipient takes in an envelope."""
    octets = _RECIPIENT + _memory_of_texts(recipient.address)
    return octets + getsizeof(recipient.orcpt) if recipient.orcpt else octets


def _memory_of_texts(address: Address) -> int:
    both = address.local + address.domain
    if both.isascii():
        # Nearly all are, and this is ten times as fast.
        return _TWO_TEXTS + len(both)
    return getsizeof(address.local) + getsizeof(address.domain)


_TWO_TEXTS = 2 * getsizeof("")
_MAIL = _TRANSACTION + getsizeof(NULL) + getsizeof(MailParameters())
_RECIPIENT = _PLACE + getsizeof(NULL) + getsizeof(Recipient(NULL))
