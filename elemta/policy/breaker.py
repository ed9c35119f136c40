"""The breaker of one policy: when it keeps failing slowly, it is left alone for a while."""

from __future__ import annotations

import enum

FAILURES = 5
"""So many failures in a row open the breaker."""

REST = 30.0
"""Seconds that an open breaker stays open before one probe is let through."""


class Admission(enum.Enum):
    """Whether a policy is asked now. A probe is the one question that an open breaker lets through."""

    ASK = "ask"
    PROBE = "probe"
    LEAVE = "leave"


class Breaker:
    """Closed: everybody asks. Open: nobody, for ``rest`` seconds. Then one probe decides which of the two.

    What a call came to is told with the admission that it got, so that calls that began before the
    breaker opened decide nothing. A call that was given up because its client went away is neither success
    nor failure.
    """

    __slots__ = ("_failures", "_limit", "_probing", "_rest", "_until", "is_open")

    def __init__(self, failures: int = FAILURES, rest: float = REST) -> None:
        self._limit = failures
        self._rest = rest
        self._failures = 0
        self._until = 0.0
        self._probing = False
        self.is_open = False

    def admit(self, now: float) -> Admission:
        if not self.is_open:
            return Admission.ASK
        if self._probing or now < self._until:
            return Admission.LEAVE
        self._probing = True
        return Admission.PROBE

    def succeeded(self, admission: Admission) -> bool:
        """Returns whether this closed the breaker."""
        if admission is Admission.PROBE:
            self._probing = False
            self.is_open = False
        self._failures = 0
        return admission is Admission.PROBE

    def failed(self, admission: Admission, now: float) -> bool:
        """Returns whether this opened the breaker, which was closed."""
        if admission is Admission.PROBE:
            self._probing = False
            self._until = now + self._rest
            return False
        if self.is_open:
            return False
        self._failures += 1
        if self._failures < self._limit:
            return False
        self.is_open = True
        self._until = now + self._rest
        return True

    def given_up(self, admission: Admission) -> None:
        if admission is Admission.PROBE:
            self._probing = False
