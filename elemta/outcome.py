"""What became of one delivery attempt, described once, where it happened.

The value travels untouched to the retry schedule, the log, the metrics and (with bounces) the DSN.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass

from elemta.address import Address


class Status(enum.Enum):
    """What one attempt came to."""

    DELIVERED = "delivered"
    DEFERRED = "deferred"
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class Outcome:
    """The outcome of one attempt for one recipient.

    ``code`` and ``enhanced`` are the remote's; when there was no reply, ``code`` is 0 and ``enhanced``
    says what happened here (RFC 3463; may be ""). ``text`` is the remote's reply or what happened
    locally, bounded and printable. ``next_hop`` names the host and
    address (or directory) that was talked to, ``route`` the route's target as configured.
    ``at`` is seconds since the epoch, ``seconds`` how long the attempt took.

    Of a delivered one, ``dsn_passed_on`` says that the next hop offers DSN and so reports by itself from
    here on, ``final`` that the message is where its recipient reads it (a Maildir, an LMTP server); with
    neither it was relayed to a host that will not report (RFC 3461 §5.2.2).
    """

    queue_id: str
    recipient: Address
    status: Status
    text: str
    route: str
    next_hop: str
    at: float
    seconds: float = 0.0
    code: int = 0
    enhanced: str = ""
    final: bool = False
    dsn_passed_on: bool = False
