"""The receipts of a session and of a transaction, kept until their outcome is known."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field

from elemta.policy import Address, Charge, Receipt, Recipient

_NO_KEYS: frozenset[str] = frozenset()


@dataclass(slots=True)
class _Entry:
    """A receipt, and the recipients it was charged for; none where it is for the message as a whole."""

    receipt: Receipt
    recipients: list[Address]


@dataclass(slots=True)
class TransactionLedger:
    """The charges of one transaction."""

    keys: set[str] = field(default_factory=set)
    over: bool = False
    _entries: list[_Entry] = field(default_factory=list)

    def record(self, charge: Charge, recipient: Recipient | None = None) -> None:
        """Keep the receipts that belong to the transaction."""
        for receipt in charge.of_transaction:
            self.keys.add(receipt.key)
            self._entries.append(_Entry(receipt, [] if recipient is None else [recipient.address]))
        if recipient is not None and charge.covered:
            covered = charge.covered_keys
            for entry in self._entries:
                if entry.receipt.key in covered:
                    entry.recipients.append(recipient.address)

    def refused(self) -> list[Receipt]:
        """The transaction came to nothing: everything is to be given back."""
        self.over = True
        return [entry.receipt for entry in self._entries]

    def committed(self, recipients: Iterable[Recipient]) -> list[Receipt]:
        """The message was accepted for these recipients: what was charged for others is to be given back.

        A recipient that was named twice and accepted once was charged once too often.
        """
        self.over = True
        accepted = Counter(recipient.address for recipient in recipients)
        open_by_limit: dict[str, Counter[Address]] = {}
        due = []
        for entry in self._entries:
            if not entry.recipients:
                continue
            still_open = open_by_limit.setdefault(entry.receipt.limit, Counter(accepted))
            owner = next((address for address in entry.recipients if still_open[address] > 0), None)
            if owner is None:
                due.append(entry.receipt)
            else:
                still_open[owner] -= 1
        return due


@dataclass(slots=True)
class SessionLedger:
    """The charges of one connection, of the transaction and of the attempt to log in under way in it."""

    receipts: list[Receipt] = field(default_factory=list)
    #: What was charged at stages that can come again. Most sessions have none, and share this one.
    keys: AbstractSet[str] = _NO_KEYS
    login: tuple[Receipt, ...] = ()
    transaction: TransactionLedger | None = None
    over: bool = False

    def record(self, charge: Charge, *, comes_again: bool) -> None:
        """Keep the receipts that belong to the connection, and their keys where the stage can come again."""
        charged = charge.of_session
        self.receipts += charged
        if charged and comes_again:
            keys = self.keys if isinstance(self.keys, set) else set()
            keys.update(receipt.request.key for receipt in charged)
            self.keys = keys
