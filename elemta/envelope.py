"""The envelope: what the SMTP conversation says about a message, apart from the message."""

from __future__ import annotations

import enum
from dataclasses import dataclass

from elemta.address import Address


class BodyType(enum.Enum):
    """The BODY parameter of MAIL (RFC 6152 §2)."""

    SEVEN_BIT = "7BIT"
    EIGHT_BIT = "8BITMIME"


class Return(enum.Enum):
    """The RET parameter of MAIL: how much of the message a failure DSN carries (RFC 3461 §4.3)."""

    FULL = "FULL"
    HEADERS = "HDRS"


class Notify(enum.Flag):
    """The NOTIFY parameter of RCPT (RFC 3461 §4.1). No flag at all stands for NEVER."""

    NEVER = 0
    SUCCESS = enum.auto()
    FAILURE = enum.auto()
    DELAY = enum.auto()


@dataclass(frozen=True, slots=True)
class MailParameters:
    """The ESMTP parameters of one MAIL command.

    ``size`` is the declared size in octets (RFC 1870; None: not declared), ``envid`` the decoded
    envelope identifier (RFC 3461 §4.4), ``auth`` the decoded AUTH= mailbox (RFC 4954 §5; "" for ``<>``).
    """

    size: int | None = None
    body: BodyType | None = None
    smtputf8: bool = False
    ret: Return | None = None
    envid: str | None = None
    auth: str | None = None


NO_PARAMETERS = MailParameters()
"""What nearly every MAIL has."""


@dataclass(frozen=True, slots=True)
class Recipient:
    """One accepted or proposed recipient.

    ``notify`` is None where the client said nothing (RFC 3461 §4.1: then failure and, if the
    server likes, delay); ``orcpt`` is the decoded original recipient with its address type, such as
    ``rfc822;user@example.com``.
    """

    address: Address
    notify: Notify | None = None
    orcpt: str | None = None

    @property
    def local(self) -> str:
        return self.address.local

    @property
    def domain(self) -> str:
        return self.address.domain

    def __str__(self) -> str:
        return str(self.address)


@dataclass(frozen=True, slots=True)
class Client:
    """The client that handed a message in: kept with it for logs, routes and the Received field."""

    ip: str = ""
    helo: str = ""
    listener: str = ""
    session_id: str = ""
    user: str | None = None
    tls: str | None = None


@dataclass(frozen=True, slots=True)
class Envelope:
    """Everything about an accepted message but its content.

    ``received_at`` is seconds since the epoch; ``size`` the octets of the message as it will be
    sent on, trace fields included.
    """

    queue_id: str
    sender: Address
    recipients: tuple[Recipient, ...]
    received_at: float
    size: int
    parameters: MailParameters = NO_PARAMETERS
    client: Client = Client()

    @property
    def smtputf8(self) -> bool:
        return self.parameters.smtputf8
