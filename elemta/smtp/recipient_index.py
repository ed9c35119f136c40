"""Finds, adds and removes recipients of a transaction, however many there are, in the same time."""

from __future__ import annotations

from elemta.address import Address
from elemta.envelope import Recipient


class RecipientIndex:
    """An index over a list of recipients, which others may append to.

    What is removed leaves the list at the next :meth:`settle`, all of it at once. A recipient that was named
    twice is removed twice.
    """

    __slots__ = ("_counts", "_leaving", "_read", "_recipients", "_size_of_leaving")

    def __init__(self, recipients: list[Recipient]) -> None:
        self._recipients = recipients
        self._read = 0
        self._counts: dict[Address, int] = {}
        self._leaving: dict[Address, int] = {}
        self._size_of_leaving = 0

    def __len__(self) -> int:
        return len(self._recipients) - self._size_of_leaving

    def __contains__(self, address: object) -> bool:
        self._catch_up()
        return address in self._counts

    def only(self, address: Address) -> bool:
        """Whether all recipients have this address; there is one that has."""
        self._catch_up()
        return self._counts[address] == len(self)

    def add(self, recipient: Recipient) -> None:
        """Add one to the end."""
        self._catch_up()
        if recipient.address in self._leaving:
            # Else the next settle would take this one, too.
            self.settle()
        self._recipients.append(recipient)

    def remove(self, address: Address) -> None:
        """Remove every recipient with this address; there is one."""
        self._catch_up()
        count = self._counts.pop(address)
        self._leaving[address] = count
        self._size_of_leaving += count

    def settle(self) -> list[Recipient]:
        """Take what was removed off the list; returns it."""
        if not self._leaving:
            return []
        leaving, self._leaving = self._leaving, {}
        self._size_of_leaving = 0
        gone = [each for each in self._recipients if each.address in leaving]
        self._recipients[:] = [each for each in self._recipients if each.address not in leaving]
        self._read = len(self._recipients)
        return gone

    def _catch_up(self) -> None:
        recipients = self._recipients
        if len(recipients) < self._read:
            # Something else took some off the list.
            self._read, self._counts = 0, {}
        while self._read < len(recipients):
            address = recipients[self._read].address
            self._counts[address] = self._counts.get(address, 0) + 1
            self._read += 1
