"""What is kept of a destination with no mail in memory: its state, and for most not even that."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from math import inf
from struct import Struct
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

# due, shut_until, back_until, failures, broken_off, and which ring it is.
_FORM = Struct("<dddIIB")
# text, route, next_hop, enhanced, status, code, final, dsn_passed_on
_Reason = tuple[str, str, str, str, str, int, bool, bool]


@dataclass(frozen=True, slots=True)
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


class RestingDestinations:
    """The destinations at rest, by name.

    Their states are octets, and their reasons tuples of strings and numbers. The collector of garbage looks
    at neither, so a turn of the reactor takes no longer however many there are.
    """

    def __init__(self, rings: Sequence[Ring]) -> None:
        self._rings = rings
        self._states: dict[str, bytes] = {}
        self._reasons: dict[str, _Reason] = {}

    def __len__(self) -> int:
        return len(self._states)

    def __contains__(self, name: str) -> bool:
        return name in self._states

    def __iter__(self) -> Iterator[str]:
        return iter(self._states)

    def get(self, name: str) -> Rest | None:
        """The state of a destination at rest."""
        state = self._states.get(name)
        if state is None:
            return None
        due, shut_until, back_until, failures, broken_off, ring = _FORM.unpack(state)
        reason = self._reason(name) if failures else None
        return Rest(self._rings[ring], due, shut_until, failures, broken_off, back_until, reason)

    def put(self, destination: Destination) -> None:
        """Keep what matters of a destination."""
        reason = destination.reason
        if reason is not None and reason is not _UNREACHABLE and len(self._reasons) < _MOST_REASONS:
            self._reasons[destination.name] = (
                reason.text,
                reason.route,
                reason.next_hop,
                reason.enhanced,
                reason.status.value,
                reason.code,
                reason.final,
                reason.dsn_passed_on,
            )
        if destination.shut_until == inf:
            # It is paused; what waits comes forward when that ends.
            destination.back_until = max(destination.back_until, destination.regular_probe)
        self._keep(destination.name, destination)

    def give_back(self, destination: Destination) -> bool:
        """Let a destination that is needed again be what it was; whether it was at rest."""
        name = destination.name
        rest = self.get(name)
        if rest is None:
            return False
        del self._states[name]
        self._reasons.pop(name, None)
        destination.ring, destination.due, destination.shut_until = rest.ring, rest.due, rest.shut_until
        destination.failures, destination.broken_off = rest.failures, rest.broken_off
        destination.back_until, destination.reason = rest.back_until, rest.reason
        destination.regular_probe = rest.back_until if rest.failures else 0.0
        return True

    def due_at(self, name: str, when: float) -> None:
        """The spool has something for then in one that is at rest."""
        rest = self.get(name)
        if rest is not None:
            self._change(name, replace(rest, due=min(rest.due, when)))

    def bring_forward(self, name: str) -> None:
        """Let one at rest be tried now; what was put off while it was down is due, too."""
        rest = self.get(name)
        if rest is not None:
            down = rest.failures and rest.shut_until < inf
            back_until = max(rest.back_until, rest.shut_until) if down else rest.back_until
            self._change(name, replace(rest, due=0.0, shut_until=0.0, back_until=back_until))

    def clear(self) -> None:
        self._states.clear()
        self._reasons.clear()

    def _change(self, name: str, rest: Rest) -> None:
        self._keep(name, rest)
        rest.ring.wakes.set(name, rest.wake)

    def _keep(self, name: str, state: Rest | Destination) -> None:
        self._states[name] = _FORM.pack(
            state.due,
            state.shut_until,
            state.back_until,
            state.failures,
            state.broken_off,
            self._rings.index(state.ring),
        )

    def _reason(self, name: str) -> Outcome:
        """What was said when the destination was found down, as far as it is kept."""
        kept = self._reasons.get(name)
        if kept is None:
            return _UNREACHABLE
        text, route, next_hop, enhanced, status, code, final, passed_on = kept
        return Outcome(
            "", NULL, Status(status), text, route, next_hop, 0.0, 0.0, code, enhanced, final, passed_on
        )


def needs_nothing(destination: Destination) -> bool:
    """Whether nothing is known of the destination that would not be known without it, but when more is
    due."""
    return not (
        destination.failures or destination.shut_until or destination.broken_off or destination.back_until
    )
