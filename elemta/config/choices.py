"""What a setting of few values can be; each member's value is how TOML writes it."""

from __future__ import annotations

import enum


class BareNewline(enum.StrEnum):
    """How a bare CR or LF inside a message is handled."""

    REJECT = "reject"
    NORMALIZE = "normalize"


class EarlyTalkers(enum.StrEnum):
    """What input before the greeting leads to."""

    WAIT = "wait"
    REJECT = "reject"


class Role(enum.StrEnum):
    """The role of a listener."""

    MX = "mx"
    SUBMISSION = "submission"


class Senders(enum.StrEnum):
    """Which senders a user may name."""

    OWN = "own"
    ANY = "any"


class ListenerTLS(enum.StrEnum):
    """How a listener uses TLS."""

    NONE = "none"
    STARTTLS = "starttls"
    IMPLICIT = "implicit"


class TLSVersion(enum.StrEnum):
    """A version of TLS. Older ones must not be used (RFC 8996 §2)."""

    TLS_1_2 = "TLSv1.2"
    TLS_1_3 = "TLSv1.3"


class AddressFamily(enum.StrEnum):
    """Which addresses of a next hop are connected to, and in which order."""

    ANY = "any"
    IPV4 = "ipv4"
    IPV6 = "ipv6"
    PREFER_IPV4 = "prefer_ipv4"


class Identity(enum.StrEnum):
    """The identities of a limit."""

    IP = "ip"
    NETWORK = "network"
    USER = "user"
    HELO = "helo"
    SENDER = "sender"
    SENDER_DOMAIN = "sender_domain"
    RECIPIENT = "recipient"
    RECIPIENT_DOMAIN = "recipient_domain"
    LISTENER = "listener"
    DESTINATION = "destination"


class Counts(enum.StrEnum):
    """What a limit counts."""

    CONNECTIONS = "connections"
    MESSAGES = "messages"
    RECIPIENTS = "recipients"
    BYTES = "bytes"
    AUTH_FAILURES = "auth_failures"
    REFUSALS = "refusals"
    OPEN_CONNECTIONS = "open_connections"


class Scope(enum.StrEnum):
    """The scope of a limit."""

    CLUSTER = "cluster"
    NODE = "node"


class OnExceed(enum.StrEnum):
    """What a client over a limit gets."""

    DEFER = "defer"
    REJECT = "reject"
    DISCONNECT = "disconnect"
    DELAY = "delay"


class WhenValkeyIsDown(enum.StrEnum):
    """What a limit does while Valkey can't be asked."""

    LOCAL = "local"
    ALLOW = "allow"
    DEFER = "defer"


class Mode(enum.StrEnum):
    """Whether a limit or a policy acts, or is only observed."""

    ENFORCE = "enforce"
    OBSERVE = "observe"


class OnError(enum.StrEnum):
    """The verdict when a policy fails or times out."""

    ACCEPT = "accept"
    DEFER = "defer"
    REJECT = "reject"


class LogFormat(enum.StrEnum):
    """The form of the log."""

    JSON = "json"
    TEXT = "text"


class LogLevel(enum.StrEnum):
    """The lowest level that is logged; the names are Twisted's."""

    DEBUG = "debug"
    INFO = "info"
    WARN = "warn"
    ERROR = "error"
    CRITICAL = "critical"


class ChargeMessagesAt(enum.StrEnum):
    """When a policy service charges messages and their size."""

    END_OF_MESSAGE = "end_of_message"
    RCPT = "rcpt"
