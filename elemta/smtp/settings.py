"""The settings of a server session: its name, what it offers, and its bounds."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address

from elemta.stage import Stage

_KIB = 1024
_MIB = 1024 * _KIB

LEAST_ENVELOPE = 256 * _KIB
ORDINARY_RECIPIENT = 256
"""What a recipient takes whose address has some thirty octets, and no ORCPT."""


def _no_client(_ip: IPv4Address | IPv6Address) -> bool:
    return False


@dataclass(frozen=True, slots=True)
class SessionSettings:
    """The settings of one server session. Sizes are octets; line lengths include the CRLF.

    ``starttls`` and ``auth`` say what is offered, ``require_auth`` makes it a submission session, and
    ``postmaster_domain`` is the domain that a bare ``<postmaster>`` is given. Of every ``max_...`` the
    number itself is still answered normally; one past it gets 421 and the connection ends.
    """

    hostname: str
    max_message_size: int
    max_recipients: int
    normalize_newlines: bool
    starttls: bool
    auth: bool
    auth_needs_tls: bool
    require_auth: bool
    postmaster_domain: str
    #: Stages at which the shell is not asked, because its answer would be to proceed: HELO or DATA.
    unasked: frozenset[Stage] = frozenset()
    #: TLS stands before the greeting (RFC 8314 §3): there are no early talkers.
    implicit_tls: bool = False
    #: The grammar of RFC 5321 to the letter; otherwise what :mod:`elemta.smtp.leniency` lists is forgiven.
    strict: bool = False
    #: Input before the greeting ends the session; otherwise it waits for its turn.
    reject_early_talkers: bool = False
    #: So long the greeting waits for such input, where it ends the session.
    greeting_pause: float = 0.5

    # RFC 5321 §4.5.3.1.4: 512, and what SIZE, 8BITMIME, SMTPUTF8, DSN and AUTH= add to MAIL and RCPT.
    max_line: int = 2 * _KIB
    # RFC 4954 §4: the longest line of an authentication exchange.
    max_auth_line: int = 12 * _KIB
    #: An over-long line is read to its end and refused; one longer than this ends the connection.
    max_discarded_line: int = 64 * _KIB
    #: Protocol errors since the last accepted message.
    max_errors: int = 20
    #: Commands that bring no message nearer (NOOP, RSET, VRFY, EHLO, ...) since the last accepted message.
    max_idle_commands: int = 100
    #: Refusals of what was well-formed, of any kind, since the last accepted message.
    max_declined: int = 1000
    #: Refusals for good (5xx) in one session. Users that logged in, and clients that ``may_relay``, have as
    #: many as ``max_declined`` allows: they are known, and their long lists hold dead addresses.
    max_refusals: int = 50
    #: So many of these are answered at once; each later one waits for ``refusal_seconds``.
    quick_refusals: int = 10
    refusal_seconds: float = 1.0
    #: Whether clients at an address may relay; asked only where the answer makes a difference.
    may_relay: Callable[[IPv4Address | IPv6Address], bool] = _no_client
    #: Refused credentials in one session; the next AUTH is not tried any more.
    max_auth_failures: int = 3
    #: Chunks under 1 KiB, LAST apart, in one message (RFC 3030 sets no bound).
    max_small_chunks: int = 1000
    #: How far an oversized message is still read, past the limit, so that its sender can read the reply.
    oversize_slack: int = 16 * _MIB
    #: Memory of one envelope, as Python takes it; more recipients get 452 (RFC 5321 §4.5.3.1.10).
    max_envelope: int = LEAST_ENVELOPE
    #: Replies in a row; then the shell sends them before the session goes on.
    max_output: int = 8 * _KIB
    #: Input held back behind an open question. The shell pauses reading long before this.
    max_pipelined: int = _MIB
