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
        self._dsn = False

    @property
    def complete(self) -> bool:
        return len(self._results) == len(self.transaction.recipients)

    @property
    def pending(self) -> list[int]:
        """The recipients without a result, in order."""
        return [i for i in range(len(self.transaction.recipients)) if i not in self._results]

    @property
    def accepted(self) -> tuple[int, ...]:
        """The accepted recipients without a result, in order of acceptance."""
        return tuple(i for i in self._accepted if i not in self._results)

    def has(self, index: int) -> bool:
        return index in self._results

    def accept(self, index: int) -> None:
        """The server will take the message for this recipient."""
        self._accepted.append(index)

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
        enhanced = reply.enhanced if status is status_of_code else ""
        text = f"{reply.text[:_LONGEST_TEXT]} (in reply to {verb})".lstrip()
        # RFC 3461 §5.2.1: a server that offers DSN takes over what was asked to be reported.
        dsn = self._dsn and status is Status.DELIVERED
        self._results.setdefault(index, RecipientResult(recipient, status, reply.code, enhanced, text, dsn))
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
        """All results, once the transaction is complete."""
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
        elif not smtputf8 and transaction.wants_smtputf8(()):
            # RFC 6531 §3.2: without the extension such a message can't be handed on.
            self._fail(self.pending, "5.6.7", "the message needs SMTPUTF8, which the next hop does not offer")
        for index in self.pending:
            address = transaction.recipients[index].address
            if not is_sendable(address):
                self._fail((index,), "5.1.3", "the recipient's address can't be sent in a command")
            elif address.needs_smtputf8 and not smtputf8:
                self._fail((index,), "5.6.7", "the address needs SMTPUTF8, which the next hop does not offer")

    def _fail(self, indices: Iterable[int], enhanced: str, text: str) -> None:
        self.decided_here(indices, Status.FAILED, enhanced, text)


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

    After each chunk wait while the session's ``congested`` is true, which replies change.
    """


@dataclass(frozen=True, slots=True)
class LoginRefused(Event):
    """A fact: the server did not take the credentials. Its reply is for the operator's log."""

    reply: Reply


@dataclass(frozen=True, slots=True)
class TransactionDone(Event):
    """A fact: the transaction is over; one result for each recipient, in the order they were given."""

    results: tuple[RecipientResult, ...]
    extent: Progress = Progress.ANSWERED


@dataclass(frozen=True, slots=True)
class Hangup(Event):
    """An instruction: send the outgoing bytes and close the connection. ``reason`` is for the log."""

    reason: str
