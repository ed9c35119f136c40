"""What a policy sees of a session, a transaction and a message.

Views are thin: they read the core's own objects when they are asked. Each policy has views of its own,
made once per conversation, so that its notes are its own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, MutableMapping
from ipaddress import IPv4Address, IPv6Address
from typing import Any, BinaryIO

from elemta.address import Address
from elemta.envelope import MailParameters, Recipient
from elemta.errors import AddressSyntaxError, RelayNotGranted
from elemta.message.headers import Headers, read_headers
from elemta.message.trace import added_field
from elemta.policy.results import Results
from elemta.smtp.memory import memory_of_recipient
from elemta.smtp.path import MAX_PATH, parse_address
from elemta.smtp.session_info import SessionInfo, TLSInfo
from elemta.smtp.session_info import TransactionInfo as TransactionFacts

MAX_ADDED_HEADERS = 200
"""More fields than this can't be added to one message, by all policies together."""

MAX_ADDED_OCTETS = 64 * 1024
"""The most octets of the fields that all policies together add to one message, as they are written."""

MAX_ADDED_RECIPIENT_OCTETS = 512 * 1024
"""The most memory of the recipients that all policies together add to one message: some 2,000 of them."""

MAX_NOTES = 1000
"""More notes than this can't be kept by one policy on one session or transaction, nor be published on it."""


class Notes(MutableMapping[str, Any]):
    """What one policy remembers of a session or transaction; other policies see only what is published.

    ``notes["key"] = value`` is private. ``notes.publish("key", value)`` is for every policy, under this
    policy's name; ``notes.published("greylist", "key")`` reads what another policy published. Notes live as
    long as their session or transaction and are not stored.
    """

    __slots__ = ("_board", "_policy", "_private")

    def __init__(self, policy: str, board: dict[tuple[str, str], Any]) -> None:
        self._policy = policy
        self._board = board
        self._private: dict[str, Any] = {}

    def publish(self, key: str, value: Any) -> None:
        """Let every policy read ``value`` as ``published(THIS_POLICY, key)``."""
        place = (self._policy, key)
        if place not in self._board and len(self._board) >= MAX_NOTES:
            raise ValueError(f"more than {MAX_NOTES} published notes")
        self._board[place] = value

    def published(self, policy: str, key: str, default: Any = None) -> Any:
        """What ``policy`` published under ``key`` on the same session or transaction, else ``default``."""
        return self._board.get((policy, key), default)

    def __getitem__(self, key: str) -> Any:
        return self._private[key]

    def __setitem__(self, key: str, value: Any) -> None:
        if key not in self._private and len(self._private) >= MAX_NOTES:
            raise ValueError(f"more than {MAX_NOTES} notes")
        self._private[key] = value

    def __delitem__(self, key: str) -> None:
        del self._private[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self._private)

    def __len__(self) -> int:
        return len(self._private)


class Session:
    """One connection, as a policy sees it. All of it is read-only but :attr:`notes`."""

    __slots__ = ("_board", "_facts", "_notes", "_policy", "results")

    def __init__(
        self,
        facts: SessionInfo,
        policy: str,
        board: dict[tuple[str, str], Any],
        results: Results | None = None,
    ) -> None:
        self._facts = facts
        self._policy = policy
        self._board = board
        self._notes: Notes | None = None
        self.results = Results() if results is None else results
        """What the policies found out about this session."""

    @property
    def id(self) -> str:
        """The session's id, as it stands in the log."""
        return self._facts.id

    @property
    def client_ip(self) -> IPv4Address | IPv6Address:
        """The client's address; an IPv4-mapped one is given as IPv4."""
        return self._facts.client_ip

    @property
    def client_port(self) -> int:
        return self._facts.client_port

    @property
    def listener(self) -> str:
        """The name of the listener that the client came in by."""
        return self._facts.listener

    @property
    def helo(self) -> str:
        """What the client said at HELO, EHLO or LHLO; "" before that. The client may lie."""
        return self._facts.helo

    @property
    def esmtp(self) -> bool:
        """Whether the client said EHLO."""
        return self._facts.esmtp

    @property
    def tls(self) -> TLSInfo | None:
        """What TLS negotiated; None without TLS."""
        return self._facts.tls

    @property
    def user(self) -> str | None:
        """The authenticated user; None for other clients."""
        return self._facts.user

    @property
    def reverse_name(self) -> str | None:
        """The client's name in DNS where it is known and confirmed; always None in this version."""
        return self._facts.reverse_name

    @property
    def notes(self) -> Notes:
        """What this policy remembers of the session."""
        if self._notes is None:
            self._notes = Notes(self._policy, self._board)
        return self._notes

    def __repr__(self) -> str:
        return f"<session {self.id} of {self.client_ip} for {self._policy}>"


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
        self.results = Results() if results is None else results
        """What the policies found out about this transaction and its session."""

    @property
    def sender(self) -> Address:
        """The reverse-path; false in a condition for ``<>``."""
        return self._facts.sender

    @property
    def recipients(self) -> tuple[Recipient, ...]:
        """The recipients that were accepted so far, in order."""
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
        octets = len(added_field(name, value))
        facts = self._facts
        if len(facts.added_headers) >= MAX_ADDED_HEADERS:
            raise ValueError(f"more than {MAX_ADDED_HEADERS} added header fields")
        if facts.added_octets + octets > MAX_ADDED_OCTETS:
            raise ValueError(f"more than {MAX_ADDED_OCTETS} octets of added header fields")
        if not self._observed:
            facts.added_octets += octets
            facts.memory.take(octets)
            facts.added_headers.append((name, value.strip(" \t")))

    def add_recipient(self, recipient: Recipient | Address | str) -> None:
        """Let the message go to one more recipient; no policy is asked about it.

        One that is there already is not added again. What is no address, or too long for one, raises
        :class:`elemta.errors.AddressSyntaxError`. A recipient that is not of this host raises
        :class:`elemta.errors.RelayNotGranted` unless the client may relay or ``[policies] may_relay`` names
        this policy. Both are a :class:`ValueError`. More than
        :data:`MAX_ADDED_RECIPIENT_OCTETS` raise one, too.
        """
        self._check_writable()
        wanted = recipient if isinstance(recipient, Recipient) else Recipient(_address(recipient))
        if not wanted.address:
            raise ValueError("the null address can't be a recipient")
        _check_address(wanted.address)
        if not self._may_receive(wanted.address):
            raise RelayNotGranted(
                f"the policy {self._policy} may not add {wanted.address}: this client may not relay, and"
                f" [policies] may_relay does not name the policy"
            )
        facts = self._facts
        if self._observed or any(known.address == wanted.address for known in facts.recipients):
            return
        octets = memory_of_recipient(wanted)
        if facts.added_recipient_octets + octets > MAX_ADDED_RECIPIENT_OCTETS:
            raise ValueError(f"more than {MAX_ADDED_RECIPIENT_OCTETS} octets of added recipients")
        facts.added_recipient_octets += octets
        facts.memory.take(octets)
        facts.recipients.append(wanted)

    def remove_recipient(self, recipient: Recipient | Address | str) -> None:
        """Take an accepted recipient off the message, without a word to the sender.

        Raises :class:`ValueError` where it is none of :attr:`recipients` (the one that a RCPT is about is
        not among them: reject it instead), and where it is the last one: a message without recipients
        would be lost, so add another first, or answer with a refusal or ``Quarantine``.
        """
        self._check_writable()
        address = recipient.address if isinstance(recipient, Recipient) else _address(recipient)
        left = [known for known in self._facts.recipients if known.address != address]
        if len(left) == len(self._facts.recipients):
            raise ValueError(f"not a recipient of this message: {address}")
        if not left:
            raise ValueError("the last recipient can't be removed")
        if not self._observed:
            for known in self._facts.recipients:
                if known.address == address:
                    self._facts.memory.give_back(memory_of_recipient(known))
            self._facts.recipients[:] = left

    def _check_writable(self) -> None:
        if not self.writable:
            raise RuntimeError("a transaction can only be changed by a policy that is being asked about it")

    def __repr__(self) -> str:
        return f"<transaction of {self.sender} for {self._policy}>"


class Message:
    """A whole message as :class:`~elemta.message.header_reader.HeaderReader` gave it, without our fields.

    ``size`` is its octets. ``head`` is the beginning of the message (at least its first 64 KiB, or all of
    it) and ``opener`` opens it from its start; large messages are never held in memory.
    """

    __slots__ = ("_head", "_headers", "_opener", "size")

    def __init__(self, size: int, head: bytes, opener: Callable[[], BinaryIO]) -> None:
        self.size = size
        self._head = head
        self._headers: Headers | None = None
        self._opener = opener

    @property
    def headers(self) -> Headers:
        """The header fields, read with bounds: garbage gives fewer fields, never an error.

        A message whose first line is no field has none: it begins with an empty line, and all of it is body.
        """
        if self._headers is None:
            self._headers = read_headers(self._head)
        return self._headers

    def open(self) -> BinaryIO:
        """The message as a binary file to read from, lines ending in CRLF; close it after use.

        It is there while the policy is being asked. Reading a large one blocks: do it in a thread.
        """
        return self._opener()


def _check_address(address: Address) -> None:
    """Whether a value that a policy made is one that a command could have had. AddressSyntaxError."""
    text = str(address)
    if parse_address(text, []) != address:
        raise AddressSyntaxError(f"not an address as RFC 5321 has it: {text[:MAX_PATH]!r}")


def _address(address: Address | str) -> Address:
    return address if isinstance(address, Address) else parse_address(address, [])
