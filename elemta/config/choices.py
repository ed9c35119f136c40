"""What a setting of few values can be; each member's value is how TOML writes it."""

from __future__ import annotations

import enum


class BareNewline(enum.StrEnum):
    """What becomes of a bare CR or LF inside a message."""

    REJECT = "reject"
    NORMALIZE = "normalize"


class Role(enum.StrEnum):
    """What a listener is for."""

    MX = "mx"
    SUBMISSION = "submission"


class ListenerTLS(enum.StrEnum):
    """How a listener speaks TLS."""

    NONE = "none"
    STARTTLS = "starttls"
    IMPLICIT = "implicit"


class TLSVersion(enum.StrEnum):
    """A version of TLS. Older ones must not be spoken (RFC 8996 §2)."""

    TLS_1_2 = "TLSv1.2"
    TLS_1_3 = "TLSv1.3"


class Identity(enum.StrEnum):
    """What a limit is counted per."""

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
    """Where a limit holds."""

    CLUSTER = "cluster"
    NODE = "node"


class OnExceed(enum.StrEnum):
    """What a client gets that is over a limit."""

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
    """Whether a limit or a policy acts, or is only watched."""

    ENFORCE = "enforce"
    OBSERVE = "observe"


class OnError(enum.StrEnum):
    """The verdict in place of that of a policy that failed or timed out."""

    ACCEPT = "accept"
    DEFER = "defer"
    REJECT = "reject"


class LogFormat(enum.StrEnum):
    """The form of the log."""

    JSON = "json"
    TEXT = "text"


class LogLevel(enum.StrEnum):
    """The least level that is logged; the names are Twisted's."""

    DEBUG = "debug"
    INFO = "info"
    WARN = "warn"
    ERROR = "error"
    CRITICAL = "critical"
