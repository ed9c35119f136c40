"""What a policy may say. Verdicts are typed values; the first decisive one in the chain's order wins."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Verdict:
    """The base of all verdicts."""


@dataclass(frozen=True, slots=True)
class Continue(Verdict):
    """No opinion: ask the next policy. When nobody has one, the command is accepted."""


@dataclass(frozen=True, slots=True)
class Accept(Verdict):
    """Accepted; no further policy is asked at this stage."""


@dataclass(frozen=True, slots=True)
class Defer(Verdict):
    """Not now: a 4xx reply."""

    text: str
    code: int = 450
    enhanced: str = "4.7.1"


@dataclass(frozen=True, slots=True)
class Reject(Verdict):
    """No: a 5xx reply."""

    text: str
    code: int = 550
    enhanced: str = "5.7.1"


@dataclass(frozen=True, slots=True)
class Disconnect(Verdict):
    """The reply, then the connection is closed."""

    text: str
    code: int = 421
    enhanced: str = "4.7.0"


@dataclass(frozen=True, slots=True)
class Quarantine(Verdict):
    """Accepted into the hold queue; ``reason`` is what the operator sees there."""

    reason: str


CONTINUE = Continue()
