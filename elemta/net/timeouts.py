"""How long a client may take: one deadline at a time, for what the session waits for now.

Nothing here has a clock: the present is passed in, in seconds of the reactor's clock.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache

from elemta.fast_enum import FastEnum

# Below this many octets per second, on average, a message counts as an attack and not as a slow line.
LEAST_PACE = 500.0
# The seconds of a message for which its pace does not count.
PACE_GRACE_SECONDS = 10.0

HANDSHAKE_SECONDS = 30.0
PROXY_HEADER_SECONDS = 5.0
CLOSING_SECONDS = 10.0
# A client that does not read its replies: RFC 5321 §4.5.3.2 gives it minutes, not for ever.
UNREAD_SECONDS = 180.0
# Policies and spool have deadlines of their own; this one is for what none of them foresaw.
ANSWER_SECONDS = 300.0


class TimeoutKind(FastEnum):
    """What a connection is waiting for."""

    HANDSHAKE = "TLS handshake"
    COMMAND = "command"
    MESSAGE = "message data"
    ANSWER = "answer"
    CLOSE = "close"


@lru_cache(maxsize=16)
def _seconds_of(command: float, data: float) -> Mapping[TimeoutKind, float]:
    """How long each wait may take; one table for all connections with the same settings."""
    return {
        TimeoutKind.HANDSHAKE: HANDSHAKE_SECONDS,
        TimeoutKind.COMMAND: command,
        TimeoutKind.MESSAGE: data,
        TimeoutKind.ANSWER: ANSWER_SECONDS,
        TimeoutKind.CLOSE: CLOSING_SECONDS,
    }


class ConnectionTimeouts:
    """The deadline of one connection. ``command`` and ``data`` are the configured seconds.

    Within a message there are two bounds. A pause lasts ``data`` seconds at most. And all the time but that
    of the longest pause counts for the pace of the message: one pause is an accident, many are an attack.
    """

    __slots__ = (
        "_at",
        "_began",
        "_last",
        "_longest_pause",
        "_octets",
        "_seconds",
        "_stopped_at",
        "_unread_since",
        "waiting",
    )

    def __init__(self, command: float, data: float) -> None:
        self._seconds = _seconds_of(command, data)
        self._octets = 0
        self._began = self._last = self._longest_pause = 0.0
        # When the server stopped reading; the clock of the message stands still since then.
        self._stopped_at: float | None = None
        self._at = float("inf")
        self._unread_since: float | None = None
        self.waiting = TimeoutKind.COMMAND

    def wait(self, waiting: TimeoutKind, now: float) -> None:
        """The connection waits for something new from now on."""
        self.waiting = waiting
        self._octets = 0
        self._began = self._last = now
        self._longest_pause = 0.0
        self._at = now + self._seconds[waiting]

    def received(self, octets: int, now: float) -> None:
        """Octets of a message came."""
        if self.waiting is TimeoutKind.MESSAGE:
            self._octets += octets
            self._longest_pause = max(self._longest_pause, now - self._last)
            self._last = now
            self._at = now + self._seconds[TimeoutKind.MESSAGE]

    def unread(self, now: float) -> None:
        """The client does not take its replies from now on."""
        self._unread_since = now

    def read_again(self) -> None:
        self._unread_since = None

    def stop_reading(self, now: float) -> None:
        """The server does not read from now on; that time is not the client's."""
        self._stopped_at = now

    def hold(self, now: float, *, reading: bool) -> None:
        """The server did not read; the client gets its whole time again. ``reading``: it reads again."""
        if self._stopped_at is not None:
            stopped = max(0.0, now - max(self._stopped_at, self._began))
            self._began += stopped
            self._last += stopped
        self._stopped_at = None if reading else now
        self._at = now + self._seconds[self.waiting]

    def has_passed(self, now: float) -> bool:
        return now >= self._at or (self.waiting is TimeoutKind.MESSAGE and self._is_too_slow(now))

    def _is_too_slow(self, now: float) -> bool:
        if self._stopped_at is not None:
            now = self._stopped_at
        pause = max(self._longest_pause, now - self._last)
        return now - self._began - pause >= PACE_GRACE_SECONDS + self._octets / LEAST_PACE

    def gave_up_reading(self, now: float) -> bool:
        return self._unread_since is not None and now >= self._unread_since + UNREAD_SECONDS
