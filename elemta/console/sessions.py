"""The sessions of browsers: in the memory of this node, bounded in number and time."""

from __future__ import annotations

import hmac
from dataclasses import dataclass

from elemta.bounded_map import BoundedMap
from elemta.runtime import Runtime

MOST = 1000
MOST_OF_ONE = 20
IDLE_SECONDS = 3600.0
LIFETIME_SECONDS = 12 * 3600.0
_OCTETS = 32


@dataclass(slots=True, eq=False)
class ConsoleSession:
    """One login. ``proof`` is what proved it: the session ends when that changes."""

    actor: str
    proof: str
    csrf: str
    began: float
    used: float

    def accepts(self, token: str) -> bool:
        """Whether this is the CSRF token of the session."""
        return hmac.compare_digest(self.csrf.encode(), token.encode("utf-8", "surrogatepass"))


class ConsoleSessions:
    """At most ``most`` sessions, and ``most_of_one`` of one user: one more ends the oldest.

    A session ends an hour after its last request, and twelve hours after its login.
    """

    def __init__(self, runtime: Runtime, most: int = MOST, most_of_one: int = MOST_OF_ONE) -> None:
        self._runtime = runtime
        self._most_of_one = most_of_one
        self._sessions: BoundedMap[str, ConsoleSession] = BoundedMap(most)

    def __len__(self) -> int:
        return len(self._sessions)

    def begin(self, actor: str, proof: str) -> tuple[str, ConsoleSession]:
        """A new session and the value of its cookie."""
        own = [cookie for cookie, each in self._sessions.items() if each.actor == actor]
        for cookie in own[: max(0, len(own) - self._most_of_one + 1)]:
            del self._sessions[cookie]
        now = self._runtime.monotonic()
        session = ConsoleSession(actor, proof, self._runtime.token(_OCTETS), now, now)
        cookie = self._runtime.token(_OCTETS)
        self._sessions.keep(cookie, session)
        return cookie, session

    def find(self, cookie: str, *, used: bool = True) -> ConsoleSession | None:
        """The session of a cookie, unless it has ended; it counts as ``used``."""
        session = self._sessions.get(cookie)
        if session is None:
            return None
        now = self._runtime.monotonic()
        if now - session.used > IDLE_SECONDS or now - session.began > LIFETIME_SECONDS:
            del self._sessions[cookie]
            return None
        if used:
            session.used = now
        return session

    def end(self, cookie: str) -> None:
        """End the session of a cookie, if there is one."""
        self._sessions.pop(cookie, None)
