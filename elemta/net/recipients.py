"""From the recipients that a client names to the mailboxes that get a copy, each one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from elemta.address import Address
from elemta.aliases import Way
from elemta.domains import Domains
from elemta.envelope import Notify, Recipient
from elemta.smtp.session_info import TransactionInfo
from elemta.value_type import value_type

# What a mailbox takes in a set: an address and its texts
_MAILBOX = 250


@dataclass(frozen=True, slots=True)
class ExpandedAlias:
    """A recipient that is an alias, and where its mail goes."""

    recipient: Recipient
    targets: tuple[Address, ...]

    @property
    def wants_notice(self) -> bool:
        """Whether the sender gets a notice that the message went to several addresses."""
        notify = self.recipient.notify
        return len(self.targets) > 1 and notify is not None and Notify.SUCCESS in notify


@value_type
class FinalRecipients:
    """The recipients of copies, and their aliases; ``only_named`` where the client named one only."""

    recipients: tuple[Recipient, ...]
    aliases: tuple[ExpandedAlias, ...] = ()
    only_named: Address | None = None

    @property
    def wants_notice(self) -> bool:
        """Whether a notice of an alias is wanted."""
        return any(alias.wants_notice for alias in self.aliases)


def final_recipients(domains: Domains, named: Sequence[Recipient], most: int) -> FinalRecipients | None:
    """Every mailbox once; None where there are more than ``most``.

    RFC 5321 §4.1.1.3 lets a client name a mailbox twice; one copy is what it means. The first spelling
    counts, and one that the client named goes before one that an alias leads to.
    """
    if len(named) == 1 and not domains.aliases.lines:
        return FinalRecipients((named[0],), (), named[0].address)
    found: dict[Address, tuple[Recipient, bool]] = {}
    aliases: list[ExpandedAlias] = []
    ways: dict[Way | Address, Address] = {}
    for recipient in named:
        address = recipient.address
        way = domains.way(address)
        is_new = way not in ways
        ways.setdefault(way, address)
        if isinstance(way, Address):
            if not found.get(way, (recipient, False))[1]:
                found[way] = recipient, True
        elif is_new:
            targets = domains.expand(address, most)
            aliases.append(ExpandedAlias(recipient, targets))
            for each in _forwarded(recipient, targets):
                found.setdefault(domains.mailbox(each.address), (each, False))
        if len(found) > most:
            return None
    only = next(iter(ways.values())) if len(ways) == 1 else None
    return FinalRecipients(tuple(each for each, _ in found.values()), tuple(aliases), only)


def _forwarded(recipient: Recipient, targets: tuple[Address, ...]) -> list[Recipient]:
    """What the sender asked for an alias, for the addresses that it leads to."""
    # RFC 3461 §5.2.1 (b): the sender knows the recipient by this name only.
    orcpt = recipient.orcpt or _original(recipient.address)
    notify = recipient.notify
    if len(targets) > 1 and notify:
        # RFC 3461 §5.2.7.2 (c): the alias has its own notice, so that theirs are of failures and delays.
        notify &= ~Notify.SUCCESS
    # RFC 3461 §5.2.7.1: of one address the requests go on as they are.
    return [replace(recipient, address=each, notify=notify, orcpt=orcpt) for each in targets]


def _original(address: Address) -> str:
    # RFC 6533 §3: the address type of what is not ASCII
    text = str(address)
    return f"{'rfc822' if text.isascii() else 'utf-8'};{text}"


class RecipientCount:
    """Counts the mailboxes of one transaction while its recipients are named, so that none is too many.

    Recipients by an alias count as they are in the end. First that is a sum, which is at most too high. When
    it comes to ``most``, the mailboxes themselves are kept, so that each further command takes little time.
    """

    def __init__(self, domains: Domains, most: int) -> None:
        self._domains = domains
        self._most = most
        self._transaction: TransactionInfo | None = None
        self._named = 0
        self._sum = 0
        self._ways: set[Way] = set()
        self._mailboxes: set[Address] | None = None

    def admits(self, transaction: TransactionInfo, recipient: Recipient) -> bool:
        """Whether the transaction can take one more recipient."""
        if not self._domains.aliases:
            # As many as were named; the session counts them.
            return True
        if self._transaction is not transaction or self._named != len(transaction.recipients):
            self._begin(transaction)
        way = self._domains.way(recipient.address)
        if not isinstance(way, Address) and way in self._ways:
            return True
        new = self._domains.count_targets(recipient.address, self._most)
        if self._mailboxes is None:
            if self._sum + new <= self._most:
                return True
            self._keep_mailboxes(transaction)
        known = self._mailboxes or set()
        return len(known) + len(self._mailboxes_of(recipient) - known) <= self._most

    def accepted(self, recipient: Recipient) -> None:
        """The transaction takes it."""
        if self._transaction is not None:
            self._count(recipient)

    def _begin(self, transaction: TransactionInfo) -> None:
        """A new transaction, or one whose recipients a policy changed."""
        self._transaction, self._named, self._sum = transaction, 0, 0
        self._ways, self._mailboxes = set(), None
        for recipient in transaction.recipients:
            self._count(recipient)

    def _count(self, recipient: Recipient) -> None:
        self._named += 1
        way = self._domains.way(recipient.address)
        if isinstance(way, Address):
            self._sum += 1
        elif way not in self._ways:
            self._ways.add(way)
            self._sum += self._domains.count_targets(recipient.address, self._most)
        else:
            return
        if self._mailboxes is not None:
            self._mailboxes |= self._mailboxes_of(recipient)

    def _keep_mailboxes(self, transaction: TransactionInfo) -> None:
        final = final_recipients(self._domains, transaction.recipients, self._most)
        known = () if final is None else final.recipients
        self._mailboxes = {self._domains.mailbox(each.address) for each in known}
        transaction.memory.take(len(self._mailboxes) * _MAILBOX)

    def _mailboxes_of(self, recipient: Recipient) -> set[Address]:
        return set(map(self._domains.mailbox, self._domains.expand(recipient.address, self._most)))
