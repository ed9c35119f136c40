"""A notice to the sender of a message, as values: one notice, and in it one report for each recipient."""

from __future__ import annotations

import enum
from dataclasses import dataclass

from elemta.address import Address
from elemta.envelope import Envelope
from elemta.outcome import Outcome


class NoticeKind(enum.Enum):
    """What a notice is about. A sender asks for each by NOTIFY (RFC 3461 §4.1)."""

    FAILURE = "failure"
    DELAY = "delay"
    SUCCESS = "success"


class DsnAction(enum.Enum):
    """What was done for a recipient, in the words of the Action field (RFC 3464 §2.3.3)."""

    FAILED = "failed"
    DELAYED = "delayed"
    DELIVERED = "delivered"
    RELAYED = "relayed"
    EXPANDED = "expanded"


@dataclass(frozen=True, slots=True)
class RecipientReport:
    """What a notice says of one recipient: the last ``outcome``, as it was described where it happened.

    ``status`` is the enhanced status code of the report, whose class goes with ``action``. ``orcpt`` is the
    original recipient with its address type. ``expired`` says that the message was given up because its time
    was over.
    """

    outcome: Outcome
    action: DsnAction
    status: str
    orcpt: str | None = None
    expired: bool = False


@dataclass(frozen=True, slots=True)
class Notice:
    """All that one DSN says, apart from the message that it is about.

    ``hostname`` is the reporting host, ``envelope`` that of the message, ``at`` when this was decided
    and ``retry_until`` how long delivery is tried, both in seconds since the epoch. ``whole`` says whether
    the message goes back whole or only its header. ``to`` are the addresses that it goes to: those of the
    sender's alias, or where it is empty, the sender.
    """

    kind: NoticeKind
    hostname: str
    envelope: Envelope
    recipients: tuple[RecipientReport, ...]
    at: float
    retry_until: float
    whole: bool = False
    to: tuple[Address, ...] = ()
