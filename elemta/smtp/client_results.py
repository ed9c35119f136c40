"""What becomes of each recipient of an outgoing transaction: replies turned into results, once each.

The other classes are the rest of what a client session says to its shell: facts and instructions, in order.
"""

from __future__ import annotations

from collections.abc import Iterable

from elemta.outcome import Outcome, ReachedStage, Status
from elemta.smtp.client_commands import ClientTransaction, Features, is_sendable
from elemta.smtp.events import Event
from elemta.smtp.reply import Reply
from elemta.value_type import value_type

_LONGEST_TEXT = 500
_STATUS = {2: Status.DELIVERED, 4: Status.DEFERRED, 5: Status.FAILED}


class TransactionResults:
    """The outcomes of one transaction, by the position of the recipient; the first one stays.

    ``reached`` is how far the transaction came with this server.
    """

    def __init__(self, transaction: ClientTransaction) -> None:
        self.transaction = transaction
        self.reached = ReachedStage.NOWHERE
        self._attempt = transaction.attempt
        self._recipients = len(transaction.recipients)
        self._results: dict[int, Outcome] = {}
        self._accepted: list[int] = []
        # Those that wait for another envelope, with their outcomes if there is none.
        self._postponed: dict[int, Outcome | None] = {}
        self._again: list[int] = []
        self._dsn = False

    @property
    def complete(self) -> bool:
        """Whether no recipient waits for an answer to this envelope."""
        if len(self._results) + len(self._postponed) < self._recipients:
            return False
        # A recipient may be in both.
        return not self._postponed or not self.due

    @property
    def pending(self) -> list[int]:
        """The recipients without any result, in order."""
        return [
            index
            for index in range(self._recipients)
            if index not in self._results and self._postponed.get(index) is None
        ]

    @property
    def due(self) -> list[int]:
        """The recipients without a result that this envelope is for, in order."""
        if not self._postponed:
            return self.pending
        return [index for index in self.pending if index not in self._postponed]

    @property
    def postponed(self) -> list[int]:
        """The recipients that were left to the next envelope and not named to the server, in order."""
        return [index for index in self.pending if index in self._postponed]

    @property
    def unfinished(self) -> list[int]:
        """The recipients without a result, those that were postponed with one included, in order."""
        return [index for index in range(self._recipients) if index not in self._results]

    @property
    def again(self) -> tuple[int, ...]:
        """The deferred recipients that may be tried over a new connection, without what was refused."""
        return tuple(self._again)

    @property
    def accepted(self) -> tuple[int, ...]:
        """The accepted recipients without a result, in order of acceptance."""
        if not self._results:
            return tuple(self._accepted)
        return tuple([index for index in self._accepted if index not in self._results])

    def has(self, index: int) -> bool:
        return index in self._results

    def accept(self, index: int) -> None:
        """The server will take the message for this recipient."""
        self._accepted.append(index)

    def postpone(self, index: int, reply: Reply | None = None) -> None:
        """Leave a recipient to the next envelope.

        If there is none, it is deferred, with the ``reply`` to its RCPT if there was one.
        """
        outcome = None if reply is None else self._replied(index, reply, "RCPT", Status.DEFERRED)
        self._postponed.setdefault(index, outcome)

    def next_envelope(self) -> bool:
        """Begin with those that were postponed, if there are any."""
        if not self._postponed:
            return False
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
        address = self.transaction.recipients[index].address
        try:
            outcome = self._replied(index, reply, verb, status)
        except Exception:
            if status is Status.DELIVERED:
                # It has the message, whatever is wrong with its words.
                bare = self._attempt.outcome(address, status, reply.code, "", "", dsn_passed_on=self._dsn)
                self._attempt.taken.setdefault(address, bare)
            raise
        if status is Status.DELIVERED:
            self._attempt.taken.setdefault(address, outcome)
        self._results.setdefault(index, outcome)
        return True

    def _replied(self, index: int, reply: Reply, verb: str, status: Status) -> Outcome:
        address = self.transaction.recipients[index].address
        enhanced, text = reply.enhanced, reply.text
        if status is not _STATUS.get(reply.code // 100):
            # The enhanced code says what the first digit says; where that does not count it is only text.
            enhanced, text = "", f"{enhanced} {text}".strip()
        text = text[:_LONGEST_TEXT]
        # RFC 3461 §5.2.1: a server that offers DSN takes over what was asked to be reported.
        dsn = self._dsn and status is Status.DELIVERED
        return self._attempt.outcome(
            address,
            status,
            reply.code,
            enhanced,
            text,
            reached=self.reached,
            dsn_passed_on=dsn,
            command=verb,
        )

    def taken_at_first_sight(self, indices: Iterable[int]) -> None:
        """The server took the message for these; nothing more could be made of its words."""
        attempt = self._attempt
        text = "taken by the next hop; the rest of its answer was lost here"
        for index in indices:
            address = self.transaction.recipients[index].address
            # Not by a function of ours: it may be the one that broke, and would break again.
            outcome = Outcome(
                attempt.queue_id,
                address,
                Status.DELIVERED,
                text,
                attempt.route,
                attempt.next_hop,
                attempt.began_at,
                enhanced="2.0.0",
                final=attempt.final,
                dsn_passed_on=self._dsn,
            )
            attempt.taken.setdefault(address, outcome)
            self._results.setdefault(index, outcome)

    def decided_here(self, indices: Iterable[int], status: Status, enhanced: str, text: str) -> None:
        """Make the outcomes where no reply says it."""
        text = text[:_LONGEST_TEXT]
        for index in indices:
            address = self.transaction.recipients[index].address
            outcome = self._attempt.outcome(address, status, 0, enhanced, text, reached=self.reached)
            self._results.setdefault(index, outcome)

    def in_order(self) -> tuple[Outcome, ...]:
        """All outcomes, once the transaction is over."""
        if self._postponed:
            for index, outcome in self._postponed.items():
                if outcome is not None:
                    self._results.setdefault(index, outcome)
        return tuple([self._results[index] for index in range(self._recipients)])

    def refuse_impossible(self, features: Features) -> None:
        """Fail, untried, what can't go to a server with these features."""
        self._dsn = "DSN" in features.keywords
        impossible = self._impossible(features)
        if not impossible:
            return
        if len(impossible) == self._recipients:
            # Nothing has to be asked.
            self.reached = ReachedStage.ANSWERED
        for index, (enhanced, text) in impossible.items():
            self.decided_here((index,), Status.FAILED, enhanced, text)

    def _impossible(self, features: Features) -> dict[int, tuple[str, str]]:
        """The recipients without a result that can't be tried, and why."""
        transaction = self.transaction
        limit = features.max_size
        if limit is not None and transaction.size > limit:
            # RFC 1870 §6.1: what is over the declared limit need not be tried.
            text = f"the message has {transaction.size} octets, the next hop takes {limit}"
            return dict.fromkeys(self.pending, ("5.3.4", text))
        if transaction.is_plain():
            return {}
        smtputf8 = "SMTPUTF8" in features
        if not is_sendable(transaction.sender):
            return dict.fromkeys(self.pending, ("5.1.7", "the sender's address can't be sent in a command"))
        if not smtputf8 and transaction.sender.needs_smtputf8:
            # RFC 6531 §3.2: without the extension such a message can't be handed on.
            text = "the sender's address needs SMTPUTF8, which the next hop lacks"
            return dict.fromkeys(self.pending, ("5.6.7", text))
        if not smtputf8 and transaction.utf8_header and "8BITMIME" not in features:
            # With addresses in ASCII the header is content of 8 bits like the body.
            text = "the header needs SMTPUTF8 or 8BITMIME, which the next hop does not offer"
            return dict.fromkeys(self.pending, ("5.6.7", text))
        found: dict[int, tuple[str, str]] = {}
        for index in self.pending:
            address = transaction.recipients[index].address
            if not is_sendable(address):
                found[index] = "5.1.3", "the recipient's address can't be sent in a command"
            elif address.needs_smtputf8 and not smtputf8:
                found[index] = "5.6.7", "the address needs SMTPUTF8, which the next hop does not offer"
        return found


@value_type
class Ready(Event):
    """A fact: the server was greeted and takes a transaction."""


@value_type
class ContentWanted(Event):
    """An instruction: give the message by ``content`` in chunks of any size, then call ``end_content``.

    After each chunk wait while the session's ``congested`` is true, which replies change. There is one for
    each envelope: a server that takes few recipients at one time gets several.
    """


@value_type
class CredentialsRefused(Event):
    """A fact: the server did not take the credentials. Its reply is for the operator's log."""

    reply: Reply


@value_type
class OfferRefused(Event):
    """A fact: the server offers this in its answer to EHLO, and refuses it; without it goes what follows."""

    keyword: str


@value_type
class RecipientsLimited(Event):
    """A fact: the server takes no more recipients with one envelope, and goes on with the next."""

    number: int


@value_type
class TransactionDone(Event):
    """A fact: the transaction is over; the session's ``outcomes`` say what it came to."""


@value_type
class Hangup(Event):
    """An instruction: send the outgoing bytes and close the connection. ``reason`` is for the log."""

    reason: str
