"""What is asked of a message that is submitted, and what is done to it (RFC 6409).

Mail is submitted by users, at listeners of the role submission, and by clients in ``relay_from``. Its header
is completed and read while it comes in, so that policies see it as it will be sent.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from elemta.address import Address
from elemta.auth.senders import SenderAddresses
from elemta.config import Role, Senders, SubmissionConfig
from elemta.errors import AddressSyntaxError
from elemta.message.header_reader import MAX_HELD, REMOVED, HeaderReader
from elemta.message.mailboxes import read_mailboxes
from elemta.message.trace import date_time
from elemta.smtp import replies
from elemta.smtp.events import Refuse
from elemta.smtp.session_info import SessionInfo

_BCC = frozenset({b"bcc", b"resent-bcc"})
_AUTHORS = frozenset({b"from", b"sender"})
MAX_AUTHORS = 100
"""The most addresses in From and Sender that are looked up for one message."""

_WATCHED = frozenset({b"date", b"from", b"message-id", b"sender"})


@dataclass(frozen=True, slots=True)
class SubmissionRules:
    """What the configuration says of submitted mail."""

    settings: SubmissionConfig
    senders: SenderAddresses
    hostname: str
    now: Callable[[], float]

    def concern(self, client: SessionInfo, role: Role) -> bool:
        """Whether mail of this client, at a listener of this role, is submitted."""
        return role is Role.SUBMISSION or client.user is not None or self._relays(client)

    def owner(self, client: SessionInfo) -> str | None:
        """The user whose senders are checked; None where the client may name any."""
        if self.settings.senders is Senders.ANY or self._relays(client):
            return None
        return client.user

    def refuse_sender(self, client: SessionInfo, sender: Address) -> Refuse | None:
        """The answer to a MAIL whose sender is not the user's."""
        user = self.owner(client)
        if user is None or self.senders.owns(user, sender):
            return None
        return Refuse(replies.SENDER_NOT_OWN, reason=f"{sender} is not an address of {user}")

    def message(self, client: SessionInfo, sender: Address, queue_id: str) -> SubmittedHeader:
        """What reads the header of a message of this client."""
        return SubmittedHeader(self, self.owner(client), sender, queue_id)

    def _relays(self, client: SessionInfo) -> bool:
        return self.senders.domains.may_relay(client.client_ip)


class SubmittedHeader:
    """The header of one submitted message, as its octets come.

    ``reader`` gives what is to be stored. ``refusal`` is why the message can't be taken, once that is known.
    """

    def __init__(self, rules: SubmissionRules, user: str | None, sender: Address, queue_id: str) -> None:
        settings = rules.settings
        self.refusal: Refuse | None = None
        self.hides_client = settings.hide_client
        self._rules = rules
        self._user = user
        self._sender = sender
        self._queue_id = queue_id
        self._present: set[bytes] = set()
        # Authors that were found to be the user's own, and the octets of their fields
        self._own: set[Address] = set()
        self._author_octets = 0
        self.reader = HeaderReader(
            remove=REMOVED | _BCC if settings.remove_bcc else REMOVED,
            watch=_WATCHED,
            found=self._found,
            at_end=self._missing if settings.add_missing else None,
            # What is added has one place, and what is checked one meaning.
            plain=settings.add_missing or user is not None,
            host=rules.hostname,
        )

    def _found(self, name: bytes, field: bytes, whole: bool) -> None:
        self._present.add(name)
        if self._user is not None and self.refusal is None and name in _AUTHORS:
            self.refusal = self._refuse_author(self._user, name, field, whole)

    def _refuse_author(self, user: str, name: bytes, field: bytes, whole: bool) -> Refuse | None:
        """Why a field From or Sender keeps the message from being taken."""
        title = name.decode("ascii").capitalize()
        self._author_octets += len(field)
        if not whole or self._author_octets > MAX_HELD:
            return Refuse(replies.AUTHOR_UNREADABLE, reason="From and Sender are too long to be checked")
        try:
            addresses = read_mailboxes(field.partition(b":")[2])
        except AddressSyntaxError as error:
            return Refuse(replies.AUTHOR_UNREADABLE, reason=f"{title}: {error}")
        if not addresses:
            return Refuse(replies.AUTHOR_UNREADABLE, reason=f"{title} names no address")
        unknown = [address for address in dict.fromkeys(addresses) if address not in self._own]
        if len(self._own) + len(unknown) > MAX_AUTHORS:
            reason = f"From and Sender name more than {MAX_AUTHORS} addresses"
            return Refuse(replies.AUTHOR_UNREADABLE, reason=reason)
        for address in unknown:
            if not self._rules.senders.owns(user, address):
                reason = f"{title}: {address} is not an address of {user}"
                return Refuse(replies.AUTHOR_NOT_OWN, reason=reason)
            self._own.add(address)
        return None

    def _missing(self) -> bytes:
        """The fields that every message must have, or should (RFC 5322 §3.6), and this one has not."""
        rules, present = self._rules, self._present
        # RFC 6409 §8.1, §8.2, §8.3
        lines = [] if b"date" in present else [f"Date: {date_time(rules.now())}"]
        if b"from" not in present and self._sender:
            lines.append(f"From: {self._sender}")
        if b"message-id" not in present:
            lines.append(f"Message-ID: <{self._queue_id}@{rules.hostname}>")
        return "".join(f"{line}\r\n" for line in lines).encode()
