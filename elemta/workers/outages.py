"""What the workers of a host tell each other of destinations that are down: both ends.

::

    outages = OutageServer(runtime.monotonic)
    outages.serve(channel)                       # before the channel is opened, one for each worker

    outages = WorkerOutages(runtime.monotonic, channel)
    outages.watch(user)

The supervisor passes each outage and each end of one on to the other workers. It keeps the newest
:data:`MOST_OUTAGES` until the time of their probes, for workers that start. A worker that does not read hears
of none while more than :data:`MOST_UNREAD` octets wait for it: it then finds out by itself.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from elemta.bounded_map import BoundedMap
from elemta.delivery.shared_outages import Outage, SharedOutages
from elemta.workers.channel import Channel
from elemta.workers.limit_bodies import Words, distrust, number, read, text, write

MOST_OUTAGES = 10_000
"""So many destinations that are down are remembered."""

MOST_UNREAD = 1024 * 1024
"""Octets that may wait for a worker that does not read, before it hears of no outage."""

_LONGEST_TEXT = 500
_LONGEST_SECONDS = 10.0**7

DOWN, UP = "outages.down", "outages.up"


def _words(name: str, outage: Outage) -> Words:
    return [
        name,
        round(outage.seconds, 3),
        round(outage.ago, 3),
        outage.failures,
        outage.text[:_LONGEST_TEXT],
        outage.route,
        outage.next_hop[:_LONGEST_TEXT],
        outage.code,
        outage.enhanced,
    ]


def _read(body: bytes) -> tuple[str, Outage]:
    with distrust("a destination that is down"):
        name, seconds, ago, failures, said, route, next_hop, code, enhanced = read(body)
        times = float(seconds), float(ago)
        if not all(0.0 <= each <= _LONGEST_SECONDS for each in times) or number(failures) < 1:
            raise ValueError
        return text(name), Outage(
            *times, failures, text(said), text(route), text(next_hop), number(code), text(enhanced)
        )


class _Known:
    """Outages, each until the time of its probe."""

    def __init__(self, monotonic: Callable[[], float]) -> None:
        self._monotonic = monotonic
        self._found: BoundedMap[str, tuple[float, Outage]] = BoundedMap(MOST_OUTAGES)

    def __len__(self) -> int:
        return len(self._found)

    def keep(self, name: str, outage: Outage) -> None:
        self._found.keep(name, (self._monotonic(), outage))

    def drop(self, name: str) -> None:
        self._found.pop(name, None)

    def clear(self) -> None:
        self._found.clear()

    def get(self, name: str) -> Outage | None:
        """How it is now; None where it is not known, or its time is up."""
        found = self._found.get(name)
        if found is None:
            return None
        at, outage = found
        passed = self._monotonic() - at
        if passed >= outage.seconds:
            del self._found[name]
            return None
        return replace(outage, seconds=outage.seconds - passed, ago=outage.ago + passed)

    def names(self) -> list[str]:
        return list(self._found)


class OutageServer:
    """The supervisor's end."""

    def __init__(self, monotonic: Callable[[], float]) -> None:
        self._known = _Known(monotonic)
        self._channels: dict[Channel, None] = {}

    def serve(self, channel: Channel) -> None:
        """Tell this worker what is known, and what comes until its channel closes."""
        channel.handle_notice(DOWN, lambda body: self._down(channel, body))
        channel.handle_notice(UP, lambda body: self._up(channel, body))
        channel.on_close(lambda _: self._channels.pop(channel, None))
        self._channels[channel] = None
        for name in self._known.names():
            outage = self._known.get(name)
            if outage is not None:
                self._tell(channel, DOWN, write(_words(name, outage)))

    def clear(self) -> None:
        """Another configuration is in force, by which all destinations are tried again."""
        self._known.clear()

    def _down(self, channel: Channel, body: bytes) -> None:
        name, outage = _read(body)
        self._known.keep(name, outage)
        self._pass_on(channel, DOWN, body)

    def _up(self, channel: Channel, body: bytes) -> None:
        with distrust("a destination that is back"):
            name = text(read(body))
        self._known.drop(name)
        self._pass_on(channel, UP, body)

    def _pass_on(self, origin: Channel, name: str, body: bytes) -> None:
        for channel in list(self._channels):
            if channel is not origin:
                self._tell(channel, name, body)

    def _tell(self, channel: Channel, name: str, body: bytes) -> None:
        if channel.unsent <= MOST_UNREAD:
            channel.tell(name, body)


class WorkerOutages:
    """A worker's end: what others found of destinations, for the deliveries of each of its partitions."""

    def __init__(self, monotonic: Callable[[], float], channel: Channel) -> None:
        self._channel = channel
        self._known = _Known(monotonic)
        self._users: list[SharedOutages] = []
        channel.handle_notice(DOWN, self._take_down)
        channel.handle_notice(UP, self._take_up)

    def watch(self, user: SharedOutages) -> None:
        """Let it know what others find from now on."""
        if user not in self._users:
            self._users.append(user)

    def leave(self, user: SharedOutages) -> None:
        """Let it know of nothing more."""
        if user in self._users:
            self._users.remove(user)

    def known(self, name: str) -> Outage | None:
        """What others found of a destination that is down now."""
        return self._known.get(name)

    def clear(self) -> None:
        """Forget what others found."""
        self._known.clear()

    def down(self, origin: SharedOutages, name: str, outage: Outage) -> None:
        """Tell all others that a destination is down."""
        self._known.drop(name)
        self._channel.tell(DOWN, write(_words(name, outage)))
        self._tell_down(name, outage, origin)

    def up(self, origin: SharedOutages, name: str) -> None:
        """Tell all others that a destination answers."""
        self._known.drop(name)
        self._channel.tell(UP, write(name))
        self._tell_up(name, origin)

    def _take_down(self, body: bytes) -> None:
        name, outage = _read(body)
        self._known.keep(name, outage)
        self._tell_down(name, outage, None)

    def _take_up(self, body: bytes) -> None:
        with distrust("a destination that is back"):
            name = text(read(body))
        self._known.drop(name)
        self._tell_up(name, None)

    def _tell_down(self, name: str, outage: Outage, origin: SharedOutages | None) -> None:
        for user in list(self._users):
            if user is not origin:
                user.told_down(name, outage)

    def _tell_up(self, name: str, origin: SharedOutages | None) -> None:
        for user in list(self._users):
            if user is not origin:
                user.told_up(name)
