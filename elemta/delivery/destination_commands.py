"""What operators and reloads do about destinations: pause, resume, and have them tried before their time."""

from __future__ import annotations

from collections.abc import Callable, Collection

from twisted.internet.interfaces import IReactorTime

from elemta.bounded_map import BoundedMap
from elemta.delivery.destinations import Destinations
from elemta.runtime import SteadyWall

# Destinations that are made to be tried again in one turn of the reactor.
_PROBED_AT_ONCE = 200
# Commits of an operator's command about many messages that are no further apart are one command.
_SAME_COMMAND = 2.0
_MOST_COMMANDED = 10_000


class DestinationCommands:
    """Carries out commands while ``runs`` says so. ``look_soon`` has the queue looked into for them."""

    def __init__(
        self,
        reactor: IReactorTime,
        clock: SteadyWall,
        destinations: Destinations,
        runs: Callable[[], bool],
        look_soon: Callable[[], None],
    ) -> None:
        self._reactor = reactor
        self._clock = clock
        self._destinations = destinations
        self._runs = runs
        self._look_soon = look_soon
        #: When a command last had a destination tried that was down.
        self.commanded: BoundedMap[str, float] = BoundedMap(_MOST_COMMANDED)

    def pause(self, destinations: Collection[str]) -> None:
        """Attempt nothing in these destinations until :meth:`resume`; what is under way goes on."""
        for name in destinations:
            self._destinations.pause(name)

    def resume(self, destination: str, first_due: float = 0.0) -> None:
        """End the pause of a destination."""
        self._destinations.resume(destination, self._clock.seconds(), first_due)
        self._look_soon()

    def probe(self, destination: str, first_due: float = 0.0) -> None:
        """Have one attempt made in a destination now, without a change of its back-off.

        ``first_due`` is when the first of its mail is due.
        """
        if self._runs():
            self._destinations.probe(destination, self._clock.seconds(), first_due)
            self._look_soon()

    def probe_due(self, destinations: Collection[str]) -> None:
        """Have those of these destinations tried in which an operator made something due."""
        if self._runs():
            self._destinations.probe_now([name for name in destinations if self._is_new_command(name)])
            self._look_soon()

    def probe_all(self) -> None:
        """Have all of them tried again: routes or settings are new."""
        self._probe_some(self._destinations.names())

    def _is_new_command(self, destination: str) -> bool:
        """Whether a destination that is down was not probed for this command of an operator already.

        A command about many messages comes in several commits, one close behind the other.
        """
        if not self._destinations.failures(destination):
            return True
        now = self._clock.seconds()
        last = self.commanded.get(destination)
        self.commanded.keep(destination, now)
        return last is None or now - last >= _SAME_COMMAND

    def _probe_some(self, destinations: tuple[str, ...], start: int = 0) -> None:
        """Have destinations tried again, some in each turn of the reactor: there may be very many."""
        end = start + _PROBED_AT_ONCE
        self._destinations.probe_now(destinations[start:end])
        if end < len(destinations):
            self._reactor.callLater(0, self._probe_on, destinations, end)
        self._look_soon()

    def _probe_on(self, destinations: tuple[str, ...], start: int) -> None:
        if self._runs():
            self._probe_some(destinations, start)
