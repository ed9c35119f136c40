"""The breaker of one policy at one stage. It decides how long a session waits for the policy's answer.

A breaker never keeps a policy from being asked, because no client may switch a policy off for other clients.
While it is open it shortens the wait: then a policy with a lost backend does not take its whole timeout in
every session. It counts parties, not calls. A failure is a sign of a lost backend only while no other party
gets answers.
"""

from __future__ import annotations

from dataclasses import dataclass

from elemta.bounded_map import BoundedMap

FAILURES = 5
"""Networks in a row without an answer that open the breaker.

Also the failures in a row that shorten the wait of one network.
"""

REST = 30.0
"""Seconds. An open breaker gives the whole timeout to :data:`TRIALS` calls in this time."""

SHORT = 0.2
"""The share of the timeout that a session waits while the breaker is open.

It waits longer where good answers took longer.
"""

TRIALS = 3
"""Calls that get the whole timeout in each rest, each from another network."""

_RECENT = 20
_ANSWERED = 64
# One other network may be the attacker's own, with answers that make a lost backend look alive.
_OTHERS_ANSWERED = 2
# One network must not hide a lost backend by answers of its own while nearly all other networks fail.
_NEARLY_ALL = 0.9


@dataclass(frozen=True, slots=True)
class CallParties:
    """The parties that a call is about. Each of them alone may be the cause of its result.

    ``network`` is the client's /24 or /64. The others are None where the stage does not know them.
    """

    network: str
    helo: str | None = None
    sender_domain: str | None = None
    recipient_domain: str | None = None


@dataclass(frozen=True, slots=True)
class _Answered:
    """The last good answer that a network waited for: its parties, the time, and the wait in seconds."""

    parties: CallParties
    at: float
    seconds: float


@dataclass(slots=True)
class _Recent:
    """The last result of a network: ``failures`` in a row, 0 after a good answer."""

    parties: CallParties
    failures: int


class PolicyBreaker:
    """Closed: each session waits up to ``timeout`` seconds. Open: a short time, and seldom the whole.

    - Only calls that take time count: an immediate answer says nothing about a backend.
    - A failure does not count while two other networks got answers within the last timeout.
    - The breaker opens when the latest ``failures`` networks all failed, unless these have a HELO name, a
      sender's domain or a recipient's domain in common that some answered network does not have.
    - It closes when most of the latest networks got answers.
    - A network with ``failures`` failures in a row gets the short wait even while the breaker is closed.
    """

    __slots__ = ("_answered", "_failures", "_recent", "_rest", "_timeout", "_trials", "_tried", "is_open")

    def __init__(self, timeout: float, failures: int = FAILURES, rest: float = REST) -> None:
        self._timeout = timeout
        self._failures = failures
        self._rest = rest
        self._answered: BoundedMap[str, _Answered] = BoundedMap(_ANSWERED)
        self._recent: BoundedMap[str, _Recent] = BoundedMap(_RECENT)
        self._trials = (0, float("-inf"))
        self._tried: set[str] = set()
        self.is_open = False

    def longest_wait(self, network: str, now: float) -> float:
        """How many seconds to wait for an answer about a client of ``network``."""
        if not self._is_short(network):
            return self._timeout
        made, end = self._trials
        if now >= end:
            made, end = 0, now + self._rest
            self._tried.clear()
        if made < TRIALS and network not in self._tried:
            self._tried.add(network)
            self._trials = (made + 1, end)
            return self._timeout
        self._trials = (made, end)
        return self._short()

    def likely_wait(self, network: str, now: float) -> float:
        """What :meth:`longest_wait` would say, for a call that may turn out not to wait."""
        if not self._is_short(network):
            return self._timeout
        made, end = self._trials
        may_try = now >= end or (made < TRIALS and network not in self._tried)
        return self._timeout if may_try else self._short()

    def _is_short(self, network: str) -> bool:
        if self.is_open:
            return True
        recent = self._recent.get(network)
        return recent is not None and recent.failures >= self._failures

    def succeeded(self, parties: CallParties, seconds: float, now: float) -> bool:
        """A good answer came after ``seconds``; returns whether it closed the breaker."""
        self._answered.keep(parties.network, _Answered(parties, now, seconds))
        self._recent.keep(parties.network, _Recent(parties, 0))
        if not self.is_open:
            return False
        latest = self._latest()
        self.is_open = sum(not each.failures for each in latest) * 2 <= len(latest)
        return not self.is_open

    def failed(self, parties: CallParties, now: float) -> bool:
        """A wait ended without a good answer; returns whether it opened the breaker."""
        if self._others_are_answered(parties.network, now):
            return False
        before = self._recent.get(parties.network)
        failures = 1 if before is None else before.failures + 1
        self._recent.keep(parties.network, _Recent(parties, failures))
        if failures == self._failures and not self.is_open:
            self._begin_rest(now, {parties.network})
        if self.is_open or not self._backend_seems_lost():
            return False
        self.is_open = True
        self._begin_rest(now, {network for network, each in self._recent.items() if each.failures})
        return True

    def _begin_rest(self, now: float, failed: set[str]) -> None:
        # Networks that failed just now make no trial: others show sooner that a backend is back.
        self._trials = (0, now + self._rest)
        self._tried = failed

    def _short(self) -> float:
        """The short wait in seconds: longer than nearly all recent good answers took."""
        seconds = sorted(each.seconds for each in self._answered.values())
        usual = seconds[int(len(seconds) * 0.9)] if seconds else 0.0
        return min(self._timeout, max(SHORT * self._timeout, 2 * usual))

    def _others_are_answered(self, network: str, now: float) -> bool:
        since = now - self._timeout
        others = 0
        for other, answered in reversed(self._answered.items()):
            if answered.at < since:
                return False
            others += other != network
            if others >= _OTHERS_ANSWERED:
                return True
        return False

    def _latest(self) -> list[_Recent]:
        return list(self._recent.values())[-self._failures :]

    def _backend_seems_lost(self) -> bool:
        """Whether all parties wait in vain, and not only those with one party in common."""
        recent = list(self._recent.values())
        failed = [each for each in recent if each.failures]
        latest = self._latest()
        if len(latest) < self._failures:
            return False
        if not all(each.failures for each in latest) and (
            len(recent) < _RECENT or len(failed) < _NEARLY_ALL * _RECENT
        ):
            return False
        all_parties = [each.parties for each in failed]
        return not any(
            self._explains(kind, all_parties) for kind in ("helo", "sender_domain", "recipient_domain")
        )

    def _explains(self, kind: str, all_parties: list[CallParties]) -> bool:
        """Whether all failed calls share one party of this kind that some answered call did not have."""
        common = {getattr(parties, kind) for parties in all_parties}
        if len(common) != 1:
            return False
        return any(
            getattr(each.parties, kind) is not None and getattr(each.parties, kind) not in common
            for each in self._answered.values()
        )
