"""Places for connections, bounded and shared by the workers of a host: a worker's end.

``max_connections`` of ``[resources]`` are places for clients. A worker has some in its hand
(:class:`ConnectionCredit`), so that it need not ask when a client comes; it asks for more before they are
used up, and gives back what it does not need. The places of all workers are never more than the setting.
Near the bound a worker may refuse a client while another has a place free; that place comes over then.

The connections of a route, and of a destination in it, are asked for one by one (:class:`WorkerSlots`). The
supervisor answers at once. A worker that gets none is in a line with the other workers, and gets an offer
when it is its turn; it keeps that for :data:`OFFER_SECONDS`. While there is no answer there is no further
connection to next hops, and those that are open go on.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any, Protocol

from twisted.internet.defer import Deferred
from twisted.internet.defer import TimeoutError as OutOfTime
from twisted.internet.interfaces import IReactorTime
from twisted.internet.task import LoopingCall
from twisted.logger import Logger
from twisted.python.failure import Failure

from elemta.deferred_value import MaybeDeferred
from elemta.workers.channel import Channel
from elemta.workers.limit_bodies import distrust, number, read, text, write
from elemta.workers.outages import WorkerOutages
from elemta.workers.places import ask_for_place

_log = Logger()

NEED, LESS, GRANT, RECALL = "clients.need", "clients.less", "clients.grant", "clients.recall"
TAKE, GIVE, OFFER, WANTED = "slots.take", "slots.give", "slots.offer", "slots.wanted"

LOOK_SECONDS = 1.0
"""How often a worker says how many clients it has."""

OFFER_SECONDS = 1.0
"""How long a worker keeps an offer that no delivery uses."""


class ConnectionCredit:
    """The places for clients that this worker has in its hand."""

    def __init__(self, clock: IReactorTime, channel: Channel) -> None:
        self._clock = clock
        self._channel = channel
        self._used: Callable[[], int] = _none
        self.granted = 0
        self._spare = 1
        # What was asked and is not answered: nothing, some, or one at once.
        self._asked = 0
        self._waiting: list[Deferred[None]] = []
        self._looks = LoopingCall(self._look)
        self._looks.clock = clock
        channel.handle_notice(GRANT, self._take)
        channel.handle_notice(RECALL, self._give)

    def start(self, used: Callable[[], int]) -> None:
        """Ask for places; ``used`` says how many clients there are."""
        self._used = used
        self._looks.start(LOOK_SECONDS).addErrback(_looks_ended)

    def stop(self) -> None:
        if self._looks.running:
            self._looks.stop()

    async def known(self, seconds: float) -> bool:
        """Returns when there is a place, or False after so many seconds."""
        if not self.granted:
            waiting: Deferred[None] = Deferred()
            self._waiting.append(waiting)
            try:
                await waiting.addTimeout(seconds, self._clock)
            except OutOfTime:
                return False
        return True

    def has_one(self, used: int) -> bool:
        """Whether there is a place for one more client beside ``used``."""
        free = self.granted - used
        if free <= 0:
            if self._asked < 2:
                self._ask(used, 2)
            return False
        # Without the one that this client takes.
        if (free - 1) * 2 <= self._spare and not self._asked:
            self._ask(used + 1, 1)
        return True

    def _ask(self, used: int, how: int) -> None:
        self._asked = how
        self._channel.tell(NEED, write([used, max(0, self.granted - used), how == 2]))

    def _look(self) -> None:
        used = self._used()
        self._return(used, keep=2 * self._spare)
        self._ask(used, self._asked or 1)

    def _return(self, used: int, keep: int) -> None:
        more = self.granted - used - keep
        if more > 0:
            self.granted -= more
            self._channel.tell(LESS, write(more))

    def _take(self, body: bytes) -> None:
        with distrust("places for clients"):
            more, spare = map(number, read(body))
            if more < 0 or spare < 1:
                raise ValueError
        self._asked = 0
        self._spare = spare
        self.granted += more
        if self.granted:
            waiting, self._waiting = self._waiting, []
            for each in waiting:
                if not each.called:
                    each.callback(None)

    def _give(self, body: bytes) -> None:
        with distrust("a recall of places for clients"):
            keep = number(read(body))
            if keep < 0:
                raise ValueError
        self._return(self._used(), keep)


class SlotUser(Protocol):
    """Where connections to next hops are kept."""

    def offered(self, route: str, destination: str) -> None:
        """There may be a connection to this destination now."""

    def wanted(self, route: str, destination: str) -> None:
        """Another worker waits for one; without a destination for any of the route."""


class WorkerSlots:
    """The connections to next hops that this worker may have: as delivery asks for them."""

    def __init__(self, clock: IReactorTime, channel: Channel) -> None:
        self._clock = clock
        self._channel = channel
        #: What this worker and the others know of destinations that are down.
        self.outages = WorkerOutages(clock.seconds, channel)
        self._users: list[SlotUser] = []
        self._offers: Counter[tuple[str, str]] = Counter()
        self._wanted: dict[tuple[str, str], None] = {}
        channel.handle_notice(OFFER, self._offered)
        channel.handle_notice(WANTED, self._take_wanted)

    def watch(self, user: SlotUser) -> None:
        """Let ``user`` know of offers, and of what other workers wait for."""
        self._users.append(user)

    def leave(self, user: SlotUser) -> None:
        """Let it know of nothing more."""
        if user in self._users:
            self._users.remove(user)

    def is_wanted(self, route: str, destination: str) -> bool:
        """Whether another worker waits for a connection of this kind."""
        return bool(self._wanted) and ((route, destination) in self._wanted or (route, "") in self._wanted)

    def take(self, route: str, destination: str, most: int, per_destination: int) -> MaybeDeferred[bool]:
        """Whether this worker may have one more connection of the route, and to the destination.

        ``most`` and ``per_destination`` are how many the host may have of each.
        """
        place = route, destination
        if self._offers[place]:
            self._offers[place] -= 1
            return True
        body = write([route, destination, most, per_destination])
        asked = ask_for_place(
            self._clock, self._channel, TAKE, body, lambda: self.give_back(route, destination)
        )
        # Without an answer there is none.
        return asked.addCallback(bool)

    def give_back(self, route: str, destination: str) -> None:
        """A connection is closed, or did not come about."""
        self._channel.tell(GIVE, write([route, destination]))

    def _offered(self, body: bytes) -> None:
        route, destination = place = _place(body)
        self._offers[place] += 1
        self._clock.callLater(OFFER_SECONDS, self._not_used, place)
        for user in list(self._users):
            user.offered(route, destination)

    def _not_used(self, place: tuple[str, str]) -> None:
        if self._offers[place]:
            self._offers[place] -= 1
            self.give_back(*place)
        if not self._offers[place]:
            del self._offers[place]

    def _take_wanted(self, body: bytes) -> None:
        with distrust("what others wait for"):
            route, destination, is_wanted = read(body)
            place = text(route), text(destination)
        if is_wanted:
            self._wanted[place] = None
            for user in list(self._users):
                user.wanted(*place)
        else:
            self._wanted.pop(place, None)


def _place(body: bytes) -> tuple[str, str]:
    with distrust("a place for a connection"):
        route, destination = map(text, read(body))
    return route, destination


def _none() -> int:
    return 0


def _looks_ended(failure: Failure) -> Any:
    _log.failure("this worker asks for no more places", failure, event="worker.internal_error")
