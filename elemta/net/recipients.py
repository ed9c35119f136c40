"""From the recipients that a client names to the mailboxes that get a copy, each one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from elemta.address import Address
from elemta.domains import Domains
from elemta.envelope import Notify, Recipient
from elemta.smtp.session_info import TransactionInfo


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


@dataclass(frozen=True, slots=True)
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
    # What was named, whatever its spelling: a mailbox, or where an alias leads
    ways: dict[Address | tuple[Address, ...], Address] = {}
    for recipient in named:
        address = recipient.address
        targets = domains.expand(address, most)
        if targets == (address,):
            mailbox = domains.mailbox(address)
            ways.setdefault(mailbox, address)
            if not found.get(mailbox, (recipient, False))[1]:
                found[mailbox] = recipient, True
        elif targets not in ways:
            ways[targets] = address
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

    Recipients by an alias count as they are in the end. The count is at most too high, by mailboxes that were
    named more than once; it is made exact before anything is refused.
    """

    def __init__(self, domains: Domains, most: int) -> None:
        self._domains = domains
        self._most = most
        self._transaction: TransactionInfo | None = None
        self._beyond = 0

    def admits(self, transaction: TransactionInfo, recipient: Recipient) -> bool:
        """Whether the transaction can take one more recipient."""
        if self._transaction is not transaction:
            self._transaction, self._beyond = transaction, 0
        new = self._count(recipient)
        if len(transaction.recipients) + self._beyond + new <= self._most:
            return True
        known = final_recipients(self._domains, transaction.recipients, self._most)
        if known is not None:
            self._beyond = len(known.recipients) - len(transaction.recipients)
        both = (*transaction.recipients, recipient)
        return final_recipients(self._domains, both, self._most) is not None

    def accepted(self, recipient: Recipient) -> None:
        """The transaction takes it."""
        self._beyond += self._count(recipient) - 1

    def _count(self, recipient: Recipient) -> int:
        return len(self._domains.expand(recipient.address, self._most))
