"""What a session knows about its client, and about the transaction under way: two objects, two lifetimes."""

from __future__ import annotations

from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv6Address

from elemta.address import Address
from elemta.envelope import MailParameters, Recipient
from elemta.smtp.memory import EnvelopeMemory
from elemta.smtp.recipient_index import RecipientIndex

EXPLAINED = "explain-"
"""How the ids of sessions begin that are only explained: nothing of them is logged."""


@dataclass(frozen=True, slots=True)
class TLSInfo:
    """What was negotiated: protocol version such as ``TLSv1.3``, cipher name, server name asked for."""

    version: str
    cipher: str
    server_name: str | None = None


LOOPBACK = IPv4Address("127.0.0.1")
"""The address of both ends of a Unix socket."""


@dataclass(slots=True)
class SessionInfo:
    """One connection, from accept to close. IPv4-mapped addresses are kept as IPv4.

    ``server_ip`` and ``server_port`` are where the client connected; the port is 0 at a Unix socket and until
    it is known. ``hostname`` is our name in the greeting.
    """

    id: str
    client_ip: IPv4Address | IPv6Address
    client_port: int
    listener: str
    helo: str = ""
    esmtp: bool = False
    tls: TLSInfo | None = None
    user: str | None = None
    reverse_name: str | None = None
    server_ip: IPv4Address | IPv6Address = LOOPBACK
    server_port: int = 0
    hostname: str = ""


@dataclass(slots=True, eq=False)
class TransactionInfo:
    """One mail transaction, from MAIL to its end (RFC 5321 §3.3).

    ``size`` is the declared size until the message arrives, then the octets received so far.
    ``added_headers`` are the fields that policies added, in order, name and value; ``added_octets`` is their
    length. ``added_recipient_octets`` is the memory of the recipients that policies added. ``memory`` counts
    the whole envelope. ``replacement`` is what the recipient that is asked about becomes when it is accepted:
    None itself, an empty tuple nothing at all. ``dropped`` counts the recipients that were accepted and
    became nothing. ``mail_from`` is the sender that the client gave. ``queue_id`` is there from the beginning
    of the message on.
    """

    sender: Address
    parameters: MailParameters
    recipients: list[Recipient] = field(default_factory=list)
    added_headers: list[tuple[str, str]] = field(default_factory=list)
    added_octets: int = 0
    added_recipient_octets: int = 0
    memory: EnvelopeMemory = field(default_factory=EnvelopeMemory, repr=False)
    size: int = 0
    max_recipients: int = 1000
    replacement: tuple[Recipient, ...] | None = None
    dropped: int = 0
    queue_id: str = ""
    mail_from: Address = field(init=False)
    known_index: RecipientIndex | None = field(default=None, init=False, repr=False)

    def __post_init__(self) -> None:
        self.mail_from = self.sender

    @property
    def index(self) -> RecipientIndex:
        """The index of the recipients, made when it is first needed."""
        if self.known_index is None:
            self.known_index = RecipientIndex(self.recipients)
        return self.known_index
