"""How a destination does, as operators see it."""

from __future__ import annotations

import enum
from dataclasses import dataclass


class DestinationState(enum.Enum):
    """Whether mail for a destination is attempted.

    OPEN: as soon as it is due. WAITING: a limit, or the number of its connections, lets nothing leave now.
    BLOCKED: it was found down, and the next attempt is a probe. PAUSED: an operator paused it.
    """

    OPEN = "open"
    WAITING = "waiting"
    BLOCKED = "blocked"
    PAUSED = "paused"


@dataclass(frozen=True, slots=True)
class DestinationStatus:
    """How a destination does.

    ``error`` is what was said when it was found down. It is left alone until ``until``, in seconds since the
    epoch; None where nothing keeps it from being tried, or where that has no end. ``paced_by`` is the limit
    that its mail waits for, "" for none.
    """

    state: DestinationState
    error: str = ""
    until: float | None = None
    paced_by: str = ""


OPEN = DestinationStatus(DestinationState.OPEN)
