"""How destinations do, and why mail waits: for one that is down or paused, or for a limit. For operators."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from elemta.delivery.destination import Key
from elemta.delivery.destinations import Destinations
from elemta.delivery.outbound_limits import OutboundLimiter
from elemta.delivery.router import Router
from elemta.destination_status import OPEN, DestinationState, DestinationStatus
from elemta.metric_registry import LabelledValue
from elemta.outcome import Outcome
from elemta.runtime import SteadyWall
from elemta.spool.queue_id import row_key
from elemta.spool.records import QueuedMessage
from elemta.spool.waits import KnownWaits, Wait

if TYPE_CHECKING:
    from elemta.delivery.attempt import AttemptRunner
    from elemta.delivery.transports import Transports

# Destinations that a question to the queue names at most, and so many are looked at for them.
_MOST_NAMED = 2000

PAUSED = "its destination is paused"
_NO_CONNECTION = "it waits for a free connection"


class DestinationWaits:
    """Tells how destinations do, and what each part waits for; the spool's `Waits`.

    ``router``, ``attempts`` and ``transports`` give what is in use at the moment, ``under_way`` the parts
    that are attempted.
    """

    def __init__(
        self,
        clock: SteadyWall,
        destinations: Destinations,
        *,
        router: Callable[[], Router],
        attempts: Callable[[], AttemptRunner],
        under_way: Callable[[], Mapping[Key, QueuedMessage]],
        transports: Callable[[], Transports],
        limiter: OutboundLimiter | None,
    ) -> None:
        self._clock = clock
        self._destinations = destinations
        self._router = router
        self._attempts = attempts
        self._under_way = under_way
        self._transports = transports
        self._limits = limiter

    def states(self) -> list[LabelledValue]:
        """How many destinations with mail may be tried now, and how many are blocked or paused, for the
        metrics."""
        destinations = self._destinations
        blocked, paused = destinations.blocked, len(destinations.paused)
        # One that is paused and blocked counts as paused.
        blocked -= sum(1 for name in destinations.paused if destinations.failures(name))
        open_now = len(destinations) - blocked - destinations.paused_with_mail
        return [(("open",), open_now), (("blocked",), blocked), (("paused",), paused)]

    def destination_of(self, name: str) -> str | None:
        """The destination that an operator means by a name: a domain, or a route's target; None where mail
        goes to none of that name."""
        return self._router().destination_of(name)

    def route_of(self, destination: str) -> str:
        """The target of the route by which mail for a destination goes."""
        return self._router().target_of(destination)

    def status(self, name: str) -> DestinationStatus:
        """How a destination does."""
        now = self._clock.seconds()
        destinations = self._destinations
        reason = destinations.reason(name)
        error = "" if reason is None else _words(reason)
        paced_by, left = self._paced(name)
        if name in destinations.paused:
            return DestinationStatus(DestinationState.PAUSED, error, None, paced_by)
        until = max(destinations.shut_until(name), now)
        if destinations.failures(name):
            return DestinationStatus(DestinationState.BLOCKED, error, until, paced_by)
        until = max(until, now + left)
        if until > now:
            return DestinationStatus(DestinationState.WAITING, "", until, paced_by)
        return OPEN

    def wait(self, destination: str, part: Key) -> Wait | None:
        """Why a part in this destination is not attempted now; None where it may be, or is."""
        if part in self._under_way() and not self._transports().is_kept_from(destination):
            return None
        limit, until = self._attempts().throttled.get(part, ("", 0.0))
        status = self.status(destination)
        if status.state is DestinationState.PAUSED:
            return Wait(PAUSED, None)
        if until > self._clock.seconds():
            return Wait(_for_limit(limit), until)
        if status.state is DestinationState.OPEN:
            return None
        return Wait(_reason(status), status.until, general=status.state is DestinationState.BLOCKED)

    def known_waits(self) -> KnownWaits:
        """What mail waits for now: of very many destinations that are down, some."""
        now = self._clock.seconds()
        names = self._destinations.shut(now, _MOST_NAMED)
        if self._limits is not None:
            for limited_as in self._limits.all_paced():
                names += self._router().destinations_of(limited_as)
        throttled = self._attempts().throttled
        keys = {key: row_key(key[0]) for key in throttled}
        return KnownWaits(
            {name: self._why(name) for name in names[: 2 * _MOST_NAMED]},
            {
                key: _for_limit(throttled[part][0])
                for part, key in keys.items()
                if key is not None and throttled[part][1] > now
            },
            [
                key
                for message in self._under_way().values()
                if (key := row_key(message.queue_id)) is not None
                and not self._transports().is_kept_from(message.destination)
            ],
        )

    def _why(self, name: str) -> str:
        status = self.status(name)
        return PAUSED if status.state is DestinationState.PAUSED else _reason(status)

    def _paced(self, name: str) -> tuple[str, float]:
        found = None if self._limits is None else self._limits.paced(self._router().limited_as(name))
        return ("", 0.0) if found is None else found


def _reason(status: DestinationStatus) -> str:
    if status.state is DestinationState.BLOCKED:
        return f"its destination is down: {status.error}" if status.error else "its destination is down"
    return _for_limit(status.paced_by) if status.paced_by else _NO_CONNECTION


def _for_limit(limit: str) -> str:
    return f"it waits for the limit {limit}"


def _words(outcome: Outcome) -> str:
    return " ".join(str(each) for each in (outcome.code, outcome.enhanced, outcome.text) if each)
