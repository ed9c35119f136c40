"""TLS handshakes of one client, bounded over the workers of a host: both ends.

Before a handshake is done no policy is asked, and no limit charged. So ``max_connections_per_ip`` bounds
those that are under way, and the supervisor counts them for all workers. A worker begins with a handshake at
once, and ends it where the answer is that its client has too many. What a worker has is free when its channel
closes::

    places = HandshakeServer()
    places.serve(channel)                        # before the channel is opened, one for each worker

    places = WorkerHandshakes(clock, channel, workers=4)
    answer = await places.take(client, most=50)
"""

from __future__ import annotations

from collections import Counter

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorTime

from elemta.workers.channel import Channel
from elemta.workers.limit_bodies import distrust, number, read, text, write
from elemta.workers.places import HeldPlaces, ask_for_place

TAKE, GIVE = "handshakes.take", "handshakes.give"


class HandshakeServer:
    """The supervisor's end."""

    def __init__(self) -> None:
        self._held: dict[Channel, HeldPlaces[str]] = {}
        self._total: Counter[str] = Counter()

    def under_way(self, client: str) -> int:
        """The handshakes of a client with all workers."""
        return self._total[client]

    def serve(self, channel: Channel) -> None:
        """Count this worker's handshakes until its channel closes."""
        self._held[channel] = HeldPlaces()
        channel.handle(TAKE, lambda body: self._take(channel, body))
        channel.handle_notice(GIVE, lambda body: self._give(channel, body))
        channel.on_close(lambda _: self._closed(channel))

    def _closed(self, channel: Channel) -> None:
        for client, count in self._held.pop(channel, HeldPlaces()).items():
            self._free(client, count)

    def _take(self, channel: Channel, body: bytes) -> bytes:
        with distrust("a question for a handshake"):
            client, most = read(body)
            text(client)
            if number(most) < 0:
                raise ValueError
        if most and self._total[client] >= most:
            return b"0"
        self._held[channel][client] += 1
        self._total[client] += 1
        return b"1"

    def _give(self, channel: Channel, body: bytes) -> None:
        with distrust("a handshake that is over"):
            client = text(read(body))
            self._held[channel].end(client)
        self._free(client, 1)

    def _free(self, client: str, count: int) -> None:
        self._total[client] -= count
        if not self._total[client]:
            del self._total[client]


class WorkerHandshakes:
    """The end of one of ``workers`` workers."""

    def __init__(self, clock: IReactorTime, channel: Channel, *, workers: int) -> None:
        self._clock = clock
        self._channel = channel
        self._workers = workers

    def take(self, client: str, most: int) -> Deferred[bool | None]:
        """Whether a client may have one more handshake, of ``most`` (0: it is only counted).

        None where there is no answer in time. To be followed by :meth:`give_back` where it is True.
        """
        body = write([client, most])
        return ask_for_place(self._clock, self._channel, TAKE, body, lambda: self.give_back(client))

    def give_back(self, client: str) -> None:
        """A handshake that was counted is over."""
        self._channel.tell(GIVE, write(client))

    def share(self, most: int) -> int:
        """How many handshakes a client may have with this worker, while there is no answer."""
        return max(1, most // self._workers)
