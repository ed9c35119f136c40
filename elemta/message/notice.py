"""A notice to the sender of a message, as a value: the outcomes of the recipients that it is about."""

from __future__ import annotations

import enum
import re
from collections.abc import Callable
from dataclasses import dataclass, field

from elemta.address import Address
from elemta.config import Config
from elemta.domains import Domains
from elemta.envelope import Envelope, Recipient, Return
from elemta.outcome import Outcome, Status


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


# RFC 3463 §2
_STATUS_CODE = re.compile(r"[245]\.\d{1,3}\.\d{1,3}")
_CLASSES = {NoticeKind.FAILURE: "5", NoticeKind.DELAY: "4", NoticeKind.SUCCESS: "2"}
_EXPIRED = "5.4.7"


@dataclass(frozen=True, slots=True)
class Notice:
    """What a sender is to hear about some recipients of a message.

    ``outcomes`` are the last ones of the ``recipients``, in the same order, as they were described where they
    happened. ``at`` is when the notice was decided, in seconds since the epoch. ``expanded`` says that the
    message went to all addresses of an alias (RFC 3461 §5.2.7.2).
    """

    kind: NoticeKind
    envelope: Envelope
    recipients: tuple[Recipient, ...]
    outcomes: tuple[Outcome, ...]
    at: float
    expanded: bool = False

    def action(self, outcome: Outcome) -> DsnAction:
        """What the notice says was done for a recipient."""
        if self.kind is NoticeKind.FAILURE:
            return DsnAction.FAILED
        if self.kind is NoticeKind.DELAY:
            return DsnAction.DELAYED
        if self.expanded:
            return DsnAction.EXPANDED
        # RFC 3461 §5.2.2, §5.2.3
        return DsnAction.DELIVERED if outcome.final else DsnAction.RELAYED

    def has_expired(self, outcome: Outcome) -> bool:
        """Whether the message was given up for a recipient because its time was over."""
        return self.kind is NoticeKind.FAILURE and outcome.status is Status.DEFERRED

    def status(self, outcome: Outcome) -> str:
        """The enhanced status code of a recipient: the outcome's where it says what the notice says."""
        if self.has_expired(outcome):
            return _EXPIRED
        number = _CLASSES[self.kind]
        fits = _STATUS_CODE.fullmatch(outcome.enhanced) and outcome.enhanced.startswith(number)
        # RFC 3464 §2.3.4: the field is required; nothing more is known.
        return outcome.enhanced if fits else f"{number}.0.0"


def _itself(address: Address) -> tuple[Address, ...]:
    return (address,)


@dataclass(frozen=True, slots=True)
class NoticeSettings:
    """``hostname`` is the reporting host. Durations are seconds from the receipt of a message.

    After ``warn_after`` a sender gets a notice that the message waits (0: never), after ``expire`` that it
    was given up. A failed message goes back whole only up to ``whole_limit`` octets, whatever the sender
    asked for: the sender may be forged, and then another mailbox gets it. ``expand`` gives the addresses
    that mail for an address goes to: a sender may be an alias of this host.
    """

    hostname: str
    warn_after: float = 14400.0
    expire: float = 432000.0
    whole_limit: int = 50 * 1024
    expand: Callable[[Address], tuple[Address, ...]] = field(default=_itself, repr=False, compare=False)

    @classmethod
    def from_config(cls, config: Config, domains: Domains) -> NoticeSettings:
        """What the configuration says about it."""
        spool = config.spool
        return cls(
            config.server.hostname, spool.warn_after, spool.expire, spool.bounce_size_limit, domains.expand
        )

    def retry_until(self, notice: Notice) -> float:
        """How long delivery is tried, in seconds since the epoch."""
        return notice.envelope.received_at + self.expire

    def returns_whole(self, notice: Notice) -> bool:
        """Whether the message goes back whole; else its header does."""
        envelope = notice.envelope
        # RFC 3461 §4.3: FULL asks for the whole message, but "may" is all that it gets; HDRS forbids it.
        return (
            notice.kind is NoticeKind.FAILURE
            and envelope.size <= self.whole_limit
            and envelope.parameters.ret is not Return.HEADERS
        )
