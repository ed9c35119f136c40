"""The breaker of one policy at one stage: how long its answer is waited for, after what came of others.

It never keeps a policy from being asked, because no client may switch a policy off for another one. Open, it
only makes the wait short, so that a policy whose backend is gone does not cost every session its timeout. It
goes by parties, not by calls: a failure is a sign of a lost backend only while no other party is answered.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from typing import TypeVar

_Kept = TypeVar("_Kept")

FAILURES = 5
"""So many networks in a row that waited for nothing open the breaker; so many failures shorten one's wait."""

REST = 30.0
"""Seconds in which an open breaker gives the whole timeout to a few calls only."""

SHORT = 0.2
"""The share of the timeout that is waited while the breaker is open; more where good answers took more."""

TRIALS = 3
"""So many calls get the whole timeout in each rest, each of another network."""

_RECENT = 20
_ANSWERED = 64
# One other network might be the attacker's own, which keeps a lost backend looking alive.
_OTHERS_ANSWERED = 2
# An open breaker that one network keeps open by answers of its own: 19 of the last 20 networks failed.
_NEARLY_ALL = 0.9


@dataclass(frozen=True, slots=True)
class CallParties:
    """Whom a call was about: each of them alone may have brought about what came of it.

    ``network`` is the client's /24 or /64; the others are None where they are not known at that stage.
    """

    network: str
    helo: str | None = None
    sender_domain: str | None = None
    recipient_domain: str | None = None


@dataclass(frozen=True, slots=True)
class _Answered:
    """The last good answer that a network waited for: about whom, when, and after how many seconds."""

    parties: CallParties
    at: float
    seconds: float


@dataclass(slots=True)
class _Recent:
    """What a network came to last: ``failures`` in a row, 0 after a good answer."""

    parties: CallParties
    failures: int


class Breaker:
    """Closed: each answer has ``timeout`` seconds. Open: it has a short time, and seldom the whole.

    Only calls that had to be waited for count: an answer that is there at once says nothing of a backend.
    A failure does not count while two other networks have been answered within the last timeout. The latest
    ``failures`` networks open the breaker when all of them failed, unless they have a HELO name, a sender's
    or a recipient's domain in common that the answered parties did not have. It closes when most of the
    latest were answered. One network that failed so often in a row is waited for shortly by itself.
    """

    __slots__ = ("_answered", "_failures", "_recent", "_rest", "_timeout", "_trials", "_tried", "is_open")

    def __init__(self, timeout: float, failures: int = FAILURES, rest: float = REST) -> None:
        self._timeout = timeout
        self._failures = failures
        self._rest = rest
        self._answered: OrderedDict[str, _Answered] = OrderedDict()
        self._recent: OrderedDict[str, _Recent] = OrderedDict()
        self._trials = (0, float("-inf"))
        self._tried: set[str] = set()
        self.is_open = False

    def patience(self, network: str, now: float) -> float:
        """Seconds that an answer about a client of ``network`` is waited for."""
        if not self.is_open:
            recent = self._recent.get(network)
            if recent is None or recent.failures < self._failures:
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

    def succeeded(self, parties: CallParties, seconds: float, now: float) -> bool:
        """A good answer that was waited for ``seconds``; returns whether it closed the breaker."""
        _keep(self._answered, parties.network, _Answered(parties, now, seconds), _ANSWERED)
        _keep(self._recent, parties.network, _Recent(parties, 0), _RECENT)
        if not self.is_open:
            return False
        latest = self._latest()
        self.is_open = sum(not each.failures for each in latest) * 2 <= len(latest)
        return not self.is_open

    def failed(self, parties: CallParties, now: float) -> bool:
        """A wait that came to no good answer; returns whether it opened the breaker."""
        if self._others_are_answered(parties.network, now):
            return False
        before = self._recent.get(parties.network)
        failures = 1 if before is None else before.failures + 1
        _keep(self._recent, parties.network, _Recent(parties, failures), _RECENT)
        if failures == self._failures and not self.is_open:
            self._begin_rest(now, {parties.network})
        if self.is_open or not self._nobody_is_answered():
            return False
        self.is_open = True
        self._begin_rest(now, {network for network, each in self._recent.items() if each.failures})
        return True

    def _begin_rest(self, now: float, failed: set[str]) -> None:
        # A party that failed just now is no good sign of a backend that has come back.
        self._trials = (0, now + self._rest)
        self._tried = failed

    def _short(self) -> float:
        """Longer than nearly all good answers took lately, so that open is closed to none that is as fast."""
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

    def _nobody_is_answered(self) -> bool:
        """Whether the backend seems lost for all, and not only for what one party brings about."""
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
        """Whether all that failed have one party in common that not all had that were answered."""
        common = {getattr(parties, kind) for parties in all_parties}
        if len(common) != 1:
            return False
        return any(
            getattr(each.parties, kind) is not None and getattr(each.parties, kind) not in common
            for each in self._answered.values()
        )


def _keep(kept: OrderedDict[str, _Kept], network: str, what: _Kept, most: int) -> None:
    kept[network] = what
    kept.move_to_end(network)
    if len(kept) > most:
        kept.popitem(last=False)
