"""How long a client may take: one deadline at a time, for what the session waits for now.

Nothing here has a clock: the present is passed in, in seconds of the reactor's clock.
"""

from __future__ import annotations

import enum

# Below this many octets per data_timeout a message counts as an attack, not as a slow line.
# A shorter message has data_timeout as a whole.
LEAST_OCTETS_PER_WINDOW = 64 * 1024

HANDSHAKE_SECONDS = 30.0
PROXY_HEADER_SECONDS = 5.0
CLOSING_SECONDS = 10.0
# A client that does not read its replies: RFC 5321 §4.5.3.2 gives it minutes, not for ever.
UNREAD_SECONDS = 180.0
# Policies and spool have deadlines of their own; this one is for what none of them foresaw.
ANSWER_SECONDS = 300.0


class TimeoutKind(enum.Enum):
    """What a connection is waiting for."""

    HANDSHAKE = "TLS handshake"
    COMMAND = "command"
    MESSAGE = "message data"
    ANSWER = "answer"
    CLOSE = "close"


class ConnectionTimeouts:
    """The deadline of one connection. ``command`` and ``data`` are the configured seconds."""

    __slots__ = ("_at", "_command", "_data", "_octets", "_unread_since", "waiting")

    def __init__(self, command: float, data: float) -> None:
        self._command = command
        self._data = data
        self._octets = 0
        self._at = float("inf")
        self._unread_since: float | None = None
        self.waiting = TimeoutKind.COMMAND

    def wait(self, waiting: TimeoutKind, now: float) -> None:
        """The connection waits for something new from now on."""
        self.waiting = waiting
        self._octets = 0
        self._at = now + (self._command if waiting is TimeoutKind.COMMAND else self._seconds(waiting))

    def _seconds(self, waiting: TimeoutKind) -> float:
        if waiting is TimeoutKind.COMMAND:
            return self._command
        if waiting is TimeoutKind.MESSAGE:
            return self._data
        if waiting is TimeoutKind.HANDSHAKE:
            return HANDSHAKE_SECONDS
        return ANSWER_SECONDS if waiting is TimeoutKind.ANSWER else CLOSING_SECONDS

    def received(self, octets: int, now: float) -> None:
        """Octets of a message came. Only a window that was filled begins a new one."""
        self._octets += octets
        if self.waiting is TimeoutKind.MESSAGE and self._octets >= LEAST_OCTETS_PER_WINDOW:
            self.wait(TimeoutKind.MESSAGE, now)

    def unread(self, now: float) -> None:
        """The client does not take its replies from now on."""
        self._unread_since = now

    def read_again(self) -> None:
        self._unread_since = None

    def hold(self, now: float) -> None:
        """The server did not read; the client gets its whole time again."""
        self._at = now + self._seconds(self.waiting)

    def has_passed(self, now: float) -> bool:
        return now >= self._at

    def gave_up_reading(self, now: float) -> bool:
        return self._unread_since is not None and now >= self._unread_since + UNREAD_SECONDS
