"""What a policy sees of a session, a transaction and a message.

Views are thin: they read the core's own objects when they are asked. Each policy has views of its own,
made once per conversation, so that its notes are its own.
"""

from __future__ import annotations

from ipaddress import IPv4Address, IPv6Address
from typing import Any

from elemta.policy.message_view import Message
from elemta.policy.notes import MAX_NOTES, Notes
from elemta.policy.results import Results
from elemta.policy.transaction_view import (
    MAX_ADDED_HEADERS,
    MAX_ADDED_OCTETS,
    MAX_ADDED_RECIPIENT_OCTETS,
    Transaction,
)
from elemta.smtp.session_info import SessionInfo, TLSInfo

__all__ = [
    "MAX_ADDED_HEADERS",
    "MAX_ADDED_OCTETS",
    "MAX_ADDED_RECIPIENT_OCTETS",
    "MAX_NOTES",
    "Message",
    "Notes",
    "Session",
    "Transaction",
]


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
    def server_ip(self) -> IPv4Address | IPv6Address:
        """The address that the client connected to: behind a load balancer what its PROXY header says.

        127.0.0.1 at a Unix socket.
        """
        return self._facts.server_ip

    @property
    def server_port(self) -> int:
        """The port that the client connected to; 0 at a Unix socket."""
        return self._facts.server_port

    @property
    def hostname(self) -> str:
        """Our name, as the client reads it in the greeting."""
        return self._facts.hostname

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
