"""What is kept of a destination with no mail in memory: its state, and for most not even that."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from elemta.address import NULL
from elemta.outcome import Outcome, Status

if TYPE_CHECKING:
    from elemta.delivery.destination import Destination
    from elemta.delivery.rings import Ring

# Destinations whose last failure is kept; for the others it is only known that there was one.
_MOST_REASONS = 10_000

_UNREACHABLE = Outcome(
    "", NULL, Status.DEFERRED, "its destination can't be reached", "", "", 0.0, enhanced="4.4.1"
)


@dataclass(slots=True, eq=False)
class Rest:
    """A destination with no mail in memory, and with more state than the time when something is due."""

    ring: Ring
    due: float
    shut_until: float
    failures: int
    broken_off: int
    back_until: float
    reason: Outcome | None

    @property
    def wake(self) -> float:
        """When there is something to do for it."""
        return max(self.due, self.shut_until)

    @property
    def waiting(self) -> int:
        """Nothing of it is in memory."""
        return 0

    @property
    def loading(self) -> bool:
        """Nothing is on its way there."""
        return False

    def is_shut(self, now: float) -> bool:
        """Whether nothing in this destination is attempted now."""
        return self.shut_until > now or self.failures > 0

    def bring_forward(self) -> None:
        """Let it be tried now; what was put off while it was down is due, too."""
        if self.failures:
            self.back_until = max(self.back_until, self.shut_until)
        self.shut_until = self.due = 0.0


class RestingDestinations(dict[str, Rest]):
    """The destinations at rest, by name."""

    def __init__(self) -> None:
        self._reasons = 0

    def put(self, destination: Destination) -> None:
        """Keep what matters of a destination."""
        reason = destination.reason
        if reason is not None and reason is not _UNREACHABLE:
            if self._reasons < _MOST_REASONS:
                self._reasons += 1
                reason = replace(reason, queue_id="", recipient=NULL, at=0.0, seconds=0.0)
            else:
                reason = _UNREACHABLE
        self[destination.name] = Rest(
            destination.ring,
            destination.due,
            destination.shut_until,
            destination.failures,
            destination.broken_off,
            destination.back_until,
            reason,
        )

    def give_back(self, destination: Destination) -> bool:
        """Let a destination that is needed again be what it was; whether it was at rest."""
        rest = self.pop(destination.name, None)
        if rest is None:
            return False
        if rest.reason is not None and rest.reason is not _UNREACHABLE:
            self._reasons -= 1
        destination.ring, destination.due, destination.shut_until = rest.ring, rest.due, rest.shut_until
        destination.failures, destination.broken_off = rest.failures, rest.broken_off
        destination.back_until, destination.reason = rest.back_until, rest.reason
        return True

    def clear(self) -> None:
        super().clear()
        self._reasons = 0


def needs_nothing(destination: Destination) -> bool:
    """Whether nothing is known of the destination that would not be known without it, but when more is
    due."""
    return not (
        destination.failures
        or destination.shut_until
        or destination.broken_off
        or destination.back_until
        or destination.reason is not None
    )
