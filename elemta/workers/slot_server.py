"""Places for connections, shared by the workers of a host: the supervisor's end.

The other end, and what a place is: :mod:`elemta.workers.slot_client`.

::

    slots = SlotServer(lambda: config.resources.max_connections)
    slots.serve(channel)                         # before the channel is opened, one for each worker

What a worker has is free when its channel closes. Nothing waits here without a bound: one entry for each
worker and destination, :data:`MOST_WAITING` for each worker.
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field

from elemta.workers.channel import Channel
from elemta.workers.limit_bodies import distrust, number, read, text, write
from elemta.workers.places import HeldPlaces
from elemta.workers.slot_client import GIVE, GRANT, LESS, NEED, OFFER, RECALL, TAKE, WANTED

MOST_WAITING = 1000
"""Destinations for which one worker may wait in line. For others it asks again after a while."""

MOST_HELD = 50_000
"""Destinations to which one worker may have connections."""

SPARE_PART = 2
"""A worker has this part of its share of the places for clients free, in advance."""


@dataclass(slots=True, eq=False)
class _Clients:
    """The places for clients of one worker: how many it has, and how many more it waits for."""

    granted: int = 0
    waits_for: int = 0


@dataclass(slots=True)
class _Waiting:
    most: int
    per_destination: int
    #: What has to become free: a connection to the destination, or ("") any of the route.
    wants: str


@dataclass(slots=True)
class _RouteSlots:
    """The connections of one route."""

    taken: int = 0
    to: Counter[str] = field(default_factory=Counter)
    line: OrderedDict[tuple[Channel, str], _Waiting] = field(default_factory=OrderedDict)
    wanted: Counter[str] = field(default_factory=Counter)


class SlotServer:
    """The places of one host. ``max_connections`` gives the number of those for clients, as it is now."""

    def __init__(self, max_connections: Callable[[], int]) -> None:
        self._max_connections = max_connections
        self._clients: OrderedDict[Channel, _Clients] = OrderedDict()
        self._routes: dict[str, _RouteSlots] = {}
        self._held: dict[Channel, HeldPlaces[tuple[str, str]]] = {}
        self._in_line: Counter[Channel] = Counter()

    @property
    def granted(self) -> int:
        """The places for clients that workers have in their hands."""
        return sum(each.granted for each in self._clients.values())

    def held(self, route: str, destination: str = "") -> int:
        """The connections of a route, or of a destination in it, that workers may have now."""
        slots = self._routes.get(route)
        if slots is None:
            return 0
        return slots.to[destination] if destination else slots.taken

    def serve(self, channel: Channel) -> None:
        """Let this worker have places until its channel closes."""
        self._clients[channel] = _Clients()
        self._held[channel] = HeldPlaces()
        channel.handle_notice(NEED, lambda body: self._need(channel, body))
        channel.handle_notice(LESS, lambda body: self._less(channel, body))
        channel.handle(TAKE, lambda body: self._take(channel, body))
        channel.handle_notice(GIVE, lambda body: self._give(channel, body))
        channel.on_close(lambda _: self._closed(channel))

    def _closed(self, channel: Channel) -> None:
        if self._clients.pop(channel, None) is None:
            return
        self._serve_clients()
        for route in [name for name, slots in self._routes.items() if slots.line]:
            for key in [key for key in self._routes[route].line if key[0] is channel]:
                self._leave_line(route, key)
        for (route, destination), count in self._held.pop(channel).items():
            self._free(route, destination, count)
        del self._in_line[channel]

    # Clients

    def _need(self, channel: Channel, body: bytes) -> None:
        with distrust("what a worker needs"):
            used, free, at_once = read(body)
            if number(used) < 0 or number(free) < 0:
                raise ValueError
        clients = self._clients[channel]
        total = self._max_connections()
        if self.granted > total:
            # The setting was lowered.
            channel.tell(RECALL, write(0))
        spare = self._spare()
        need = max(spare - free, 0)
        more = max(0, min(need, total - self.granted))
        clients.granted += more
        clients.waits_for = need - more
        channel.tell(GRANT, write([more, spare]))
        if clients.waits_for and (at_once or free + more == 0 or spare > 1):
            # Not the last that another has, unless a client was refused: it would come back the same way.
            keep = 0 if at_once and not more else free + more + 1
            for other in self._clients:
                if other is not channel:
                    other.tell(RECALL, write(keep))

    def _less(self, channel: Channel, body: bytes) -> None:
        clients = self._clients[channel]
        with distrust("places that a worker gives back"):
            if not 0 < number(count := read(body)) <= clients.granted:
                raise ValueError
        clients.granted -= count
        self._serve_clients()

    def _serve_clients(self) -> None:
        """Give what is free to those that wait; the next time another is first."""
        free = self._max_connections() - self.granted
        for channel, clients in list(self._clients.items()):
            more = min(free, clients.waits_for)
            if more > 0:
                free -= more
                clients.granted += more
                clients.waits_for -= more
                self._clients.move_to_end(channel)
                channel.tell(GRANT, write([more, self._spare()]))

    def _spare(self) -> int:
        return max(1, self._max_connections() // (SPARE_PART * max(1, len(self._clients))))

    # Connections to next hops

    def _take(self, channel: Channel, body: bytes) -> bytes:
        with distrust("a question for a connection"):
            route, destination, most, per_destination = read(body)
            text(route), text(destination)
            if number(most) < 1 or number(per_destination) < 1:
                raise ValueError
        if len(self._held[channel]) >= MOST_HELD:
            return b"0"
        slots = self._routes.setdefault(route, _RouteSlots())
        key = channel, destination
        wants = "" if slots.taken >= most else destination
        if slots.taken < most and (not destination or slots.to[destination] < per_destination):
            if key in slots.line:
                self._leave_line(route, key)
            self._grant(slots, route, key)
            return b"1"
        waiting = slots.line.get(key)
        if waiting is not None:
            waiting.most, waiting.per_destination = most, per_destination
            if waiting.wants != wants:
                self._not_wanted(route, waiting.wants)
                waiting.wants = wants
                self._want(route, wants)
        elif self._in_line[channel] < MOST_WAITING:
            slots.line[key] = _Waiting(most, per_destination, wants)
            self._in_line[channel] += 1
            self._want(route, wants)
        return b"0"

    def _give(self, channel: Channel, body: bytes) -> None:
        with distrust("a connection that a worker gives back"):
            route, destination = map(text, read(body))
            self._held[channel].end((route, destination))
        self._free(route, destination, 1)

    def _grant(self, slots: _RouteSlots, route: str, key: tuple[Channel, str]) -> None:
        channel, destination = key
        slots.taken += 1
        slots.to[destination] += 1
        self._held[channel][route, destination] += 1

    def _free(self, route: str, destination: str, count: int) -> None:
        slots = self._routes[route]
        slots.taken -= count
        slots.to[destination] -= count
        if not slots.to[destination]:
            del slots.to[destination]
        self._offer(route, slots)
        if not slots.taken and not slots.line:
            del self._routes[route]

    def _offer(self, route: str, slots: _RouteSlots) -> None:
        """Give what is free to those that are longest in line."""
        for key, waiting in list(slots.line.items()):
            channel, destination = key
            if slots.taken >= waiting.most:
                continue
            if not destination or slots.to[destination] < waiting.per_destination:
                self._leave_line(route, key)
                self._grant(slots, route, key)
                channel.tell(OFFER, write([route, destination]))

    def _leave_line(self, route: str, key: tuple[Channel, str]) -> None:
        wants = self._routes[route].line.pop(key).wants
        self._in_line[key[0]] -= 1
        self._not_wanted(route, wants)

    def _want(self, route: str, wants: str) -> None:
        wanted = self._routes[route].wanted
        wanted[wants] += 1
        if wanted[wants] == 1:
            self._tell_wanted(route, wants, wanted=True)

    def _not_wanted(self, route: str, wants: str) -> None:
        wanted = self._routes[route].wanted
        wanted[wants] -= 1
        if not wanted[wants]:
            del wanted[wants]
            self._tell_wanted(route, wants, wanted=False)

    def _tell_wanted(self, route: str, destination: str, *, wanted: bool) -> None:
        for channel in self._clients:
            channel.tell(WANTED, write([route, destination, wanted]))
