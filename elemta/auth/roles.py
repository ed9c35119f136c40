"""What a user or a token of the console and the admin API may do."""

from __future__ import annotations

import enum
from dataclasses import dataclass


class AccessRole(enum.Enum):
    """A viewer reads, an operator changes, a limiter asks limits for another server and nothing else."""

    VIEWER = "viewer"
    OPERATOR = "operator"
    LIMITER = "limiter"

    def may(self, needed: AccessRole) -> bool:
        """Whether this role includes ``needed``."""
        return self is needed or self is AccessRole.OPERATOR


@dataclass(frozen=True, slots=True)
class Caller:
    """The peer that makes a call: ``actor`` is its name in the audit log.

    ``csrf`` is the token that a browser sends with each change; None where the peer is no browser.
    """

    actor: str
    role: AccessRole
    csrf: str | None = None


LOCAL = Caller("local", AccessRole.OPERATOR)
"""The daemon itself."""
