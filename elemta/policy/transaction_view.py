"""One mail transaction as a policy sees and changes it."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any

from elemta.address import NULL, Address
from elemta.envelope import MailParameters, Recipient
from elemta.errors import AddressSyntaxError, RelayNotGranted
from elemta.message.trace import added_field
from elemta.policy.message_view import Message
from elemta.policy.notes import Notes
from elemta.policy.results import Results
from elemta.smtp.memory import memory_of_recipient
from elemta.smtp.path import MAX_PATH, parse_address
from elemta.smtp.session_info import TransactionInfo as TransactionFacts

MAX_ADDED_HEADERS = 200
"""More fields than this can't be added to one message, by all policies together."""

MAX_ADDED_OCTETS = 64 * 1024
"""The most octets of the fields that all policies together add to one message, as they are written."""

MAX_ADDED_RECIPIENT_OCTETS = 512 * 1024
"""The most memory of the recipients that all policies together add to one message: some 2,000 of them."""


class Transaction:
    """One mail transaction, as a policy sees it, from MAIL to its end.

    A policy may change the transaction while it is asked about it, and at no other time. After a timeout, and
    in the methods of an observer, a change raises :class:`RuntimeError`. In observe mode a change is checked
    and then not made.
    """

    __slots__ = (
        "_board",
        "_facts",
        "_may_receive",
        "_notes",
        "_observed",
        "_policy",
        "asked",
        "message",
        "results",
        "writable",
    )

    def __init__(
        self,
        facts: TransactionFacts,
        policy: str,
        board: dict[tuple[str, str], Any],
        *,
        observed: bool,
        may_receive: Callable[[Address], bool],
        results: Results | None = None,
    ) -> None:
        self._facts = facts
        self._policy = policy
        self._board = board
        self._observed = observed
        self._may_receive = may_receive
        self._notes: Notes | None = None
        self.writable = False
        self.message: Message | None = None
        """The message that the policy is asked about."""
        self.asked: Recipient | None = None
        """The recipient of the RCPT that the policy is asked about."""
        self.results = Results() if results is None else results
        """What the policies found out about this transaction and its session."""

    @property
    def queue_id(self) -> str:
        """The queue id that the message will have; "" until the client may send it."""
        return self._facts.queue_id

    @property
    def sender(self) -> Address:
        """The reverse-path; false in a condition for ``<>``.

        A policy may set it, to an :class:`Address` or a text (``""`` for ``<>``), while it is asked.
        """
        return self._facts.sender

    @sender.setter
    def sender(self, sender: Address | str) -> None:
        self._check_writable()
        address = NULL if sender == "" else _address(sender)
        if address:
            _check_address(address)
            if address.needs_smtputf8 and not self._facts.parameters.smtputf8:
                raise ValueError(f"the message was not sent with SMTPUTF8, which {address} needs")
        if not self._observed:
            self._facts.sender = address

    @property
    def mail_from(self) -> Address:
        """The reverse-path that the client gave, whatever policies made of it."""
        return self._facts.mail_from

    @property
    def recipients(self) -> tuple[Recipient, ...]:
        """The recipients that were accepted so far, in order."""
        self._settle()
        return tuple(self._facts.recipients)

    @property
    def parameters(self) -> MailParameters:
        """The parameters of MAIL."""
        return self._facts.parameters

    @property
    def size(self) -> int:
        """Octets: what the client declared (0 if nothing) until the message arrives, then what arrived."""
        return self._facts.size

    @property
    def notes(self) -> Notes:
        """What this policy remembers of the transaction."""
        if self._notes is None:
            self._notes = Notes(self._policy, self._board)
        return self._notes

    def add_header(self, name: str, value: str) -> None:
        """Put a header field on top of the message.

        Text beyond ASCII is encoded (RFC 2047). Raises :class:`ValueError` where ``name`` is no field
        name, ``value`` has a line break or another control character in it, or there are too many fields
        (:data:`MAX_ADDED_HEADERS`) or octets in them (:data:`MAX_ADDED_OCTETS`).
        """
        self._check_writable()
        field = added_field(name, value)
        octets = len(field)
        facts = self._facts
        if len(facts.added_headers) >= MAX_ADDED_HEADERS:
            raise ValueError(f"more than {MAX_ADDED_HEADERS} added header fields")
        if facts.added_octets + octets > MAX_ADDED_OCTETS:
            raise ValueError(f"more than {MAX_ADDED_OCTETS} octets of added header fields")
        if not self._observed:
            facts.added_octets += octets
            facts.memory.take(octets)
            facts.added_headers.append((name, value.strip(" \t")))
            if self.message is not None:
                self.message.content.header.ours.append(field)

    def add_recipient(self, recipient: Recipient | Address | str) -> None:
        """Let the message go to one more recipient; no policy is asked about it.

        One that is there already is not added again. What is no address, or too long for one, raises
        :class:`elemta.errors.AddressSyntaxError`. A recipient that is not of this host raises
        :class:`elemta.errors.RelayNotGranted` unless the client may relay or ``[policies] may_relay`` names
        this policy. More than ``max_recipients`` raise ValueError, and so do more octets than
        :data:`MAX_ADDED_RECIPIENT_OCTETS`. All of these are a :class:`ValueError`.
        """
        self._check_writable()
        wanted = self._wanted(recipient)
        if wanted.address not in self._facts.index:
            self._add([wanted])

    def remove_recipient(self, recipient: Recipient | Address | str) -> None:
        """Take an accepted recipient off the message, without a word to the sender.

        Raises :class:`ValueError` where it is none of :attr:`recipients` (the one that a RCPT is about is
        not among them: answer ``Discard`` or reject it instead), and where it is the last one: a message
        without recipients would be lost, so add another first, or answer with a verdict.
        """
        self._check_writable()
        address, index = _address_of(recipient), self._facts.index
        if address not in index:
            raise ValueError(f"not a recipient of this message: {address}")
        if index.only(address):
            raise ValueError("the last recipient can't be removed")
        if not self._observed:
            index.remove(address)

    def replace_recipient(
        self, old: Recipient | Address | str, new: Iterable[Recipient | Address | str]
    ) -> None:
        """Let the message go to others in the place of a recipient, which may be that of this RCPT.

        What the sender asked for (NOTIFY, ORCPT) goes on to the new ones, unless they are given as
        :class:`Recipient`. Policies behind are asked about the first of them. Where the RCPT is refused after
        all, nothing was replaced. It raises what :meth:`add_recipient` raises, and ValueError without a new
        recipient: answer ``Discard`` then.
        """
        self._check_writable()
        facts, address = self._facts, _address_of(old)
        given = [new] if isinstance(new, (str, Address, Recipient)) else list(new)
        if not given:
            raise ValueError("a recipient is replaced by one at least; Discard drops it")
        place = self._place_in_question(address)
        if place is not None:
            before = facts.replacement or (place,)
            known = next(each for each in before if each.address == address)
            wanted = [_in_place_of(known, self._wanted(each), each) for each in given]
            after = [*(each for each in before if each is not known), *wanted]
            self._check_space(len(after), sum(map(memory_of_recipient, wanted)))
            if not self._observed:
                facts.replacement = tuple(after)
            return
        if address not in facts.index:
            raise ValueError(f"not a recipient of this message: {address}")
        self._settle()
        known = next(each for each in facts.recipients if each.address == address)
        wanted = [_in_place_of(known, self._wanted(each), each) for each in given]
        self._add([each for each in wanted if each.address not in facts.index])
        if not self._observed and all(each.address != address for each in wanted):
            facts.index.remove(address)

    def close(self) -> None:
        """The policy has answered, and may not change the transaction any more."""
        self.writable = False
        self.asked = None
        if self.message is not None:
            self.message.close()
            self.message = None
        if self._facts.known_index is not None:
            self._settle()

    def _place_in_question(self, address: Address) -> Recipient | None:
        """The recipient of this RCPT, where ``address`` is it or what it becomes."""
        asked = self.asked
        if asked is None:
            return None
        there = self._facts.replacement or (asked,)
        return asked if any(each.address == address for each in there) else None

    def _wanted(self, recipient: Recipient | Address | str) -> Recipient:
        """A recipient that this policy may give the message."""
        wanted = recipient if isinstance(recipient, Recipient) else Recipient(_address(recipient))
        if not wanted.address:
            raise ValueError("the null address can't be a recipient")
        _check_address(wanted.address)
        if not self._may_receive(wanted.address):
            raise RelayNotGranted(
                f"the policy {self._policy} may not add {wanted.address}: this client may not relay, and"
                f" [policies] may_relay does not name the policy"
            )
        return wanted

    def _add(self, wanted: list[Recipient]) -> None:
        facts, octets = self._facts, sum(map(memory_of_recipient, wanted))
        self._check_space(len(wanted), octets)
        if self._observed:
            return
        facts.added_recipient_octets += octets
        facts.memory.take(octets)
        for each in wanted:
            facts.index.add(each)

    def _check_space(self, number: int, octets: int) -> None:
        facts = self._facts
        if len(facts.index) + number > facts.max_recipients:
            raise ValueError(f"more than max_recipients: {facts.max_recipients}")
        if facts.added_recipient_octets + octets > MAX_ADDED_RECIPIENT_OCTETS:
            raise ValueError(f"more than {MAX_ADDED_RECIPIENT_OCTETS} octets of added recipients")

    def _settle(self) -> None:
        """Take off the list what was removed."""
        facts = self._facts
        if facts.known_index is not None:
            for gone in facts.known_index.settle():
                facts.memory.give_back(memory_of_recipient(gone))

    def _check_writable(self) -> None:
        if not self.writable:
            raise RuntimeError("a transaction can only be changed by a policy that is being asked about it")

    def __repr__(self) -> str:
        return f"<transaction of {self.sender} for {self._policy}>"


def _check_address(address: Address) -> None:
    """Whether a value that a policy made is one that a command could have had. AddressSyntaxError."""
    text = str(address)
    if parse_address(text, []) != address:
        raise AddressSyntaxError(f"not an address as RFC 5321 has it: {text[:MAX_PATH]!r}")


def _address(address: Address | str) -> Address:
    return address if isinstance(address, Address) else parse_address(address, [])


def _address_of(recipient: Recipient | Address | str) -> Address:
    return recipient.address if isinstance(recipient, Recipient) else _address(recipient)


def _in_place_of(old: Recipient, new: Recipient, given: object) -> Recipient:
    """A new recipient with what the sender asked for the old one, unless its policy says what it wants."""
    if isinstance(given, Recipient):
        return new
    # RFC 3461 §5.2.7.1: what is redirected keeps the original recipient.
    text = str(old.address)
    original = old.orcpt or f"{'rfc822' if text.isascii() else 'utf-8'};{text}"
    return replace(old, address=new.address, orcpt=original)
