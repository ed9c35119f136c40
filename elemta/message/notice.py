"""A notice to the sender of a message, as values: one notice, and in it one report for each recipient."""

from __future__ import annotations

import enum
from dataclasses import dataclass

from elemta.address import Address
from elemta.envelope import Envelope


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
    """What became of one recipient.

    ``status`` is the enhanced status code of the report, whose class goes with ``action``. ``code``,
    ``enhanced`` and ``text`` are those of the last outcome: the remote's reply, or with code 0 what
    happened here. ``next_hop`` is the server that was used, ``orcpt`` the original recipient with its
    address type. ``at`` is the time of that attempt in seconds since the epoch. ``expired`` says that
    the message was given up because its time was over.
    """

    address: Address
    action: DsnAction
    status: str
    text: str
    at: float
    code: int = 0
    enhanced: str = ""
    next_hop: str = ""
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
