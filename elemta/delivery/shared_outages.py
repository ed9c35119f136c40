"""What the workers of a host tell each other of destinations: one that is down is probed by one of them.

The worker that found a destination down probes it when its pause is over. The others learn of it with the
pause, and probe :data:`LATER` after that, if nothing was heard meanwhile. They learn what a probe finds, too.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from elemta.address import NULL
from elemta.bounded_map import BoundedMap
from elemta.delivery.destinations import Destinations
from elemta.delivery.routes import LOCAL
from elemta.outcome import Outcome, Status
from elemta.runtime import SteadyWall

LATER = 60.0
"""Seconds that a destination is left alone beyond the time at which another worker probes it."""

_MOST_TOLD = 10_000


@dataclass(frozen=True, slots=True)
class Outage:
    """A destination was found down.

    In ``seconds`` it is probed, by the worker that found it. The attempt that found it began ``ago`` seconds
    ago, and ``failures`` is how often in a row it was found. The rest is what was said then, as in
    :class:`~elemta.outcome.Outcome`.
    """

    seconds: float
    ago: float
    failures: int
    text: str
    route: str
    next_hop: str
    code: int
    enhanced: str


class HostOutages(Protocol):
    """What is known of destinations on this host."""

    def watch(self, user: SharedOutages) -> None:
        """Call :meth:`SharedOutages.told_down` and :meth:`SharedOutages.told_up` from now on."""

    def leave(self, user: SharedOutages) -> None:
        """Call them no more."""

    def known(self, name: str) -> Outage | None:
        """What others found of a destination that is down now."""

    def clear(self) -> None:
        """Forget what others found."""

    def down(self, origin: SharedOutages, name: str, outage: Outage) -> None:
        """Tell all others that a destination is down."""

    def up(self, origin: SharedOutages, name: str) -> None:
        """Tell all others that a destination answers."""


class SharedOutages:
    """Tells others what is found of destinations here, and takes what they found.

    What they found counts for less than what was found here. A destination that answered since their attempt
    began is not blocked, and they hear that it answers. One that was found down here is open when it answers
    here. ``look`` has the queue looked into.
    """

    def __init__(
        self, clock: SteadyWall, destinations: Destinations, host: HostOutages, look: Callable[[], None]
    ) -> None:
        self._clock = clock
        self._destinations = destinations
        self._host = host
        self._look = look
        # The destinations that are down here because others said so.
        self._told: BoundedMap[str, None] = BoundedMap(_MOST_TOLD)
        destinations.outage_of = self._known

    def start(self) -> None:
        """Hear of others from now on."""
        self._host.watch(self)

    def stop(self) -> None:
        """Hear of nothing more."""
        self._host.leave(self)

    def clear(self) -> None:
        """All destinations are tried again."""
        self._told.clear()
        self._host.clear()

    # What is found here

    def found_down(self, name: str, until: float, failures: int, reason: Outcome, started: float) -> None:
        """A destination is down by an attempt that began then, and is probed at ``until``."""
        now = self._clock.seconds()
        self._told.pop(name, None)
        outage = Outage(
            seconds=max(0.0, until - now),
            ago=max(0.0, now - started),
            failures=max(1, failures),
            text=reason.text,
            route=reason.route,
            next_hop=reason.next_hop,
            code=reason.code,
            enhanced=reason.enhanced,
        )
        self._host.down(self, name, outage)

    def found_up(self, name: str) -> None:
        """A destination that was down answers."""
        self._told.pop(name, None)
        self._host.up(self, name)

    # What others found

    def told_down(self, name: str, outage: Outage) -> None:
        """Others found a destination down: leave it alone, unless it is known better here."""
        if name == LOCAL:
            return
        destinations, now = self._destinations, self._clock.seconds()
        if self._is_first(name, now + outage.seconds):
            return
        here = destinations.find(name)
        if here is not None and not here.failures and here.last_success >= now - outage.ago > 0.0:
            self._host.up(self, name)
        # Without mail it is asked for when there is some.
        elif destinations.has_mail(name) and destinations.learn_outage(name, *self._as_known(outage)):
            self._told.keep(name, None)

    def _is_first(self, name: str, until: float) -> bool:
        """Whether this worker found the destination down itself, and probes it before the other one does."""
        destinations = self._destinations
        found_here = destinations.failures(name) > 0 and name not in self._told
        return found_here and destinations.shut_until(name) <= until

    def told_up(self, name: str) -> None:
        """Others found that a destination answers. One that was found down here has its own probe."""
        if name in self._told:
            del self._told[name]
            if self._destinations.learn_answer(name):
                self._look()

    def _known(self, name: str) -> tuple[float, int, Outcome] | None:
        """Up to when a destination that is new here is left alone."""
        outage = None if name == LOCAL else self._host.known(name)
        if outage is None:
            return None
        self._told.keep(name, None)
        return self._as_known(outage)

    def _as_known(self, outage: Outage) -> tuple[float, int, Outcome]:
        now = self._clock.seconds()
        reason = Outcome(
            "",
            NULL,
            Status.DEFERRED,
            outage.text,
            outage.route,
            outage.next_hop,
            now - outage.ago,
            code=outage.code,
            enhanced=outage.enhanced,
        )
        return now + outage.seconds + LATER, outage.failures, reason


class WithOutages(Protocol):
    """What the workers of this host share."""

    @property
    def outages(self) -> HostOutages:
        """The destinations that are down."""


def shared_outages(
    clock: SteadyWall, destinations: Destinations, host: WithOutages | None, look: Callable[[], None]
) -> SharedOutages | None:
    """None where this process has no other workers beside it."""
    return None if host is None else SharedOutages(clock, destinations, host.outages, look)
