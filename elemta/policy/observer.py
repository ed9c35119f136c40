"""What the chain tells the metrics."""

from __future__ import annotations

import enum
from typing import Protocol


class FailureKind(enum.StrEnum):
    """Why a policy's own verdict did not count.

    ``ERROR`` it raised; ``TIMEOUT`` it did not answer in time; ``NONSENSE`` its answer is no usable verdict;
    ``OPEN`` its breaker is open, and it did not answer within the short time that it has then; ``BUSY`` too
    many of its calls have not returned yet, so it was not asked.
    """

    ERROR = "error"
    TIMEOUT = "timeout"
    NONSENSE = "nonsense"
    OPEN = "open"
    BUSY = "busy"


class PolicyObserver(Protocol):
    """Facts about policies, for counting. Implementations never raise and never block.

    ``stage`` is a stage's name (``connect`` … ``message``), ``route`` on the way out or, for facts that a
    policy is told, ``committed``, ``refused``, ``disconnected`` or ``attempted``. No argument is ever chosen
    by a client.
    """

    def asked(self, policy: str, stage: str, verdict: str, seconds: float) -> None:
        """A policy answered after ``seconds``.

        Continue, accept, defer, reject, disconnect or quarantine; on the way out route or hold.
        """

    def failed(self, policy: str, stage: str, kind: str) -> None:
        """A policy failed; ``kind`` is a :class:`FailureKind`. What it said instead is its ``on_error``."""


class SilentPolicyObserver:
    """Counts nothing."""

    def asked(self, policy: str, stage: str, verdict: str, seconds: float) -> None:
        pass

    def failed(self, policy: str, stage: str, kind: str) -> None:
        pass
