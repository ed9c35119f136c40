"""The settings of a client session."""

from __future__ import annotations

from dataclasses import dataclass, field

from elemta.route_tls import RouteTLS
from elemta.smtp.sasl import Credentials


@dataclass(frozen=True, slots=True)
class ClientTimeouts:
    """How long to wait for the whole of each reply, in seconds (RFC 5321 §4.5.3.2)."""

    greeting: float = 300.0
    hello: float = 300.0
    handshake: float = 60.0
    login: float = 120.0
    mail: float = 300.0
    rcpt: float = 300.0
    data: float = 120.0
    block: float = 180.0
    end: float = 600.0
    quit: float = 5.0


@dataclass(frozen=True, slots=True)
class ClientSettings:
    """``hostname`` is the name for EHLO; ``lmtp`` speaks LMTP (RFC 2033) instead of SMTP.

    ``tls`` says how TLS is used. With ``credentials`` nothing is sent before they were taken;
    they are given over TLS only, unless ``plaintext_login`` says that the way is local.

    ``ignored`` are keywords that the server may offer and that are not believed. At most
    ``most_recipients`` (0: any number) go with one envelope.
    """

    hostname: str
    lmtp: bool = False
    deadlines: ClientTimeouts = field(default_factory=ClientTimeouts)
    tls: RouteTLS = RouteTLS.NONE
    credentials: Credentials | None = None
    plaintext_login: bool = False
    ignored: frozenset[str] = frozenset()
    most_recipients: int = 0
