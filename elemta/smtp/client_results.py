"""What becomes of each recipient of an outgoing transaction: replies turned into results, once each.

What a client session says to its shell: facts and instructions, in order.
"""

from __future__ import annotations

import enum
from collections.abc import Iterable
from dataclasses import dataclass

from elemta.envelope import Recipient
from elemta.outcome import Status
from elemta.smtp.client_commands import ClientTransaction, Features, is_sendable
from elemta.smtp.events import Event
from elemta.smtp.reply import Reply

_LONGEST_TEXT = 500
_STATUS = {2: Status.DELIVERED, 4: Status.DEFERRED, 5: Status.FAILED}


@dataclass(frozen=True, slots=True)
class RecipientResult:
    """What became of one recipient of a transaction.

    ``code`` is the server's, 0 where it said nothing that counts; ``enhanced`` the server's enhanced
    code, or, with code 0, the one that says what happened here (RFC 3463). ``text`` is printable and bounded.
    ``dsn_passed_on`` says of a delivered one that the server offers DSN, and so reports from here on.
    """

    recipient: Recipient
    status: Status
    code: int
    enhanced: str
    text: str
    dsn_passed_on: bool = False


class TransactionResults:
    """The results of one transaction, by the position of the recipient; the first one stays."""

    def __init__(self, transaction: ClientTransaction) -> None:
        self.transaction = transaction
        self._results: dict[int, RecipientResult] = {}
        self._accepted: list[int] = []
        # Those that wait for another envelope, with their results if there is none.
        self._postponed: dict[int, RecipientResult | None] = {}
        self._again: list[int] = []
        self._dsn = False

    @property
    def complete(self) -> bool:
        """Whether no recipient waits for an answer to this envelope."""
        return not self.due

    @property
    def pending(self) -> list[int]:
        """The recipients without any result, in order."""
        return [
            index
            for index in range(len(self.transaction.recipients))
            if index not in self._results and self._postponed.get(index) is None
        ]

    @property
    def due(self) -> list[int]:
        """The recipients without a result that this envelope is for, in order."""
        return [index for index in self.pending if index not in self._postponed]

    @property
    def postponed(self) -> list[int]:
        """The recipients that were left to the next envelope and not named to the server, in order."""
        return [index for index in self.pending if index in self._postponed]

    @property
    def unfinished(self) -> list[int]:
        """The recipients without a result, those that were postponed with one included, in order."""
        return [index for index in range(len(self.transaction.recipients)) if index not in self._results]

    @property
    def again(self) -> tuple[int, ...]:
        """The deferred recipients that may be tried over a new connection, without what was refused."""
        return tuple(self._again)

    @property
    def accepted(self) -> tuple[int, ...]:
        """The accepted recipients without a result, in order of acceptance."""
        return tuple(i for i in self._accepted if i not in self._results)

    def has(self, index: int) -> bool:
        return index in self._results

    def accept(self, index: int) -> None:
        """The server will take the message for this recipient."""
        self._accepted.append(index)

    def postpone(self, index: int, reply: Reply | None = None) -> None:
        """Leave a recipient to the next envelope.

        If there is none, it is deferred, with the ``reply`` to its RCPT if there was one.
        """
        result = None
        if reply is not None:
            result = _result(self.transaction.recipients[index], reply, "RCPT", Status.DEFERRED)
        self._postponed.setdefault(index, result)

    def next_envelope(self) -> bool:
        """Begin with those that were postponed, if there are any."""
        self._accepted.clear()
        waiting = [index for index in self._postponed if index not in self._results]
        self._postponed.clear()
        return bool(waiting)

    def refused_as_sent(self, indices: Iterable[int], reply: Reply, verb: str) -> None:
        """The server refused a command that it offers: these may be sent without it."""
        for index in indices:
            self.answered(index, reply, verb, Status.DEFERRED)
            self._again.append(index)

    def answered(self, index: int, reply: Reply, verb: str, status: Status | None = None) -> bool:
        """Make the result out of a reply; false where the reply means nothing at this place.

        ``status`` says what it means where that is not what its first digit says.
        """
        status_of_code = _STATUS.get(reply.code // 100)
        status = status or status_of_code
        if status is None:
            return False
        recipient = self.transaction.recipients[index]
        if status is Status.DELIVERED:
            # Before anything is made of its words.
            self.transaction.taken.setdefault(
                recipient.address, RecipientResult(recipient, status, reply.code, "", "", self._dsn)
            )
        # RFC 3461 §5.2.1: a server that offers DSN takes over what was asked to be reported.
        dsn = self._dsn and status is Status.DELIVERED
        self._results.setdefault(index, _result(recipient, reply, verb, status, dsn=dsn))
        return True

    def taken_at_first_sight(self, indices: Iterable[int]) -> None:
        """The server took the message for these; nothing more could be made of its words."""
        for index in indices:
            recipient = self.transaction.recipients[index]
            text = "taken by the next hop; the rest of its answer was lost here"
            result = RecipientResult(recipient, Status.DELIVERED, 0, "2.0.0", text, self._dsn)
            self.transaction.taken.setdefault(recipient.address, result)
            self._results.setdefault(index, result)

    def decided_here(self, indices: Iterable[int], status: Status, enhanced: str, text: str) -> None:
        """Make the results where no reply says it."""
        for index in indices:
            recipient = self.transaction.recipients[index]
            self._results.setdefault(
                index, RecipientResult(recipient, status, 0, enhanced, text[:_LONGEST_TEXT])
            )

    def in_order(self) -> tuple[RecipientResult, ...]:
        """All results, once the transaction is over."""
        for index, result in self._postponed.items():
            if result is not None:
                self._results.setdefault(index, result)
        return tuple(self._results[index] for index in range(len(self.transaction.recipients)))

    def refuse_impossible(self, features: Features) -> None:
        """Fail, untried, what can't go to a server with these features."""
        transaction = self.transaction
        self._dsn = "DSN" in features
        limit = features.max_size
        smtputf8 = "SMTPUTF8" in features
        if limit is not None and transaction.size > limit:
            # RFC 1870 §6.1: what is over the declared limit need not be tried.
            text = f"the message has {transaction.size} octets, the next hop takes {limit}"
            self._fail(self.pending, "5.3.4", text)
        elif not is_sendable(transaction.sender):
            self._fail(self.pending, "5.1.7", "the sender's address can't be sent in a command")
        elif not smtputf8 and transaction.sender.needs_smtputf8:
            # RFC 6531 §3.2: without the extension such a message can't be handed on.
            self._fail(self.pending, "5.6.7", "the sender's address needs SMTPUTF8, which the next hop lacks")
        elif not smtputf8 and transaction.utf8_header and "8BITMIME" not in features:
            # With addresses in ASCII the header is content of 8 bits like the body.
            text = "the header needs SMTPUTF8 or 8BITMIME, which the next hop does not offer"
            self._fail(self.pending, "5.6.7", text)
        for index in self.pending:
            address = transaction.recipients[index].address
            if not is_sendable(address):
                self._fail((index,), "5.1.3", "the recipient's address can't be sent in a command")
            elif address.needs_smtputf8 and not smtputf8:
                self._fail((index,), "5.6.7", "the address needs SMTPUTF8, which the next hop does not offer")

    def _fail(self, indices: Iterable[int], enhanced: str, text: str) -> None:
        self.decided_here(indices, Status.FAILED, enhanced, text)


def _result(
    recipient: Recipient, reply: Reply, verb: str, status: Status, *, dsn: bool = False
) -> RecipientResult:
    # The enhanced code says what the first digit says; where that does not count it says nothing.
    enhanced = reply.enhanced if status is _STATUS.get(reply.code // 100) else ""
    text = f"{reply.text[:_LONGEST_TEXT]} (in reply to {verb})".lstrip()
    return RecipientResult(recipient, status, reply.code, enhanced, text, dsn)


class Progress(enum.Enum):
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

    After each chunk wait while the session's ``congested`` is true, which replies change. There is one for
    each envelope: a server that takes few recipients at one time gets several.
    """


@dataclass(frozen=True, slots=True)
class LoginRefused(Event):
    """A fact: the server did not take the credentials. Its reply is for the operator's log."""

    reply: Reply


@dataclass(frozen=True, slots=True)
class OfferRefused(Event):
    """A fact: the server offers this in its answer to EHLO, and refuses it; without it goes what follows."""

    keyword: str


@dataclass(frozen=True, slots=True)
class RecipientsLimited(Event):
    """A fact: the server takes no more recipients with one envelope, and goes on with the next."""

    number: int


@dataclass(frozen=True, slots=True)
class TransactionDone(Event):
    """A fact: the transaction is over; one result for each recipient, in the order they were given.

    ``again`` are the places of those that are deferred, and that the server refused only for a command that
    it offered: it has nothing of the message, and over a new connection it may take it without.
    """

    results: tuple[RecipientResult, ...]
    extent: Progress = Progress.ANSWERED
    again: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Hangup(Event):
    """An instruction: send the outgoing bytes and close the connection. ``reason`` is for the log."""

    reason: str
