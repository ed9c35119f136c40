"""Two ends of a channel in one process: octets in memory, or a socket pair and processes."""

from __future__ import annotations

import socket
from collections.abc import Iterable
from dataclasses import dataclass, field

from twisted.internet.error import ConnectionDone
from twisted.internet.interfaces import IReactorTime
from twisted.internet.task import Clock
from twisted.internet.testing import StringTransport
from twisted.python.failure import Failure

from elemta.workers.channel import Channel, open_channel


class End(StringTransport):
    """A transport that keeps what is written, until :class:`ChannelPair` carries it over."""

    ended = False

    def loseConnection(self) -> None:
        self.ended = True

    def abortConnection(self) -> None:
        self.ended = True


@dataclass
class ChannelPair:
    """The supervisor's end and the worker's; ``carry`` takes over what was written, in pieces if need be."""

    clock: IReactorTime
    name: str = "worker 1"
    supervisor: Channel = field(init=False)
    worker: Channel = field(init=False)

    def __post_init__(self) -> None:
        self.supervisor, self.worker = Channel(self.clock, self.name), Channel(self.clock, "the supervisor")
        self.ends = End(), End()

    def open(self) -> ChannelPair:
        for channel, end in zip((self.supervisor, self.worker), self.ends, strict=True):
            channel.makeConnection(end)
        return self

    def carry(self, piece: int = 0) -> int:
        """Both ways until nothing is written any more; how many octets."""
        carried, sides = 0, ((self.ends[0], self.worker), (self.ends[1], self.supervisor))
        while any(end.value() for end in self.ends):
            for end, channel in sides:
                data = end.value()
                end.clear()
                carried += len(data)
                step = piece or max(1, len(data))
                for start in range(0, len(data), step):
                    channel.dataReceived(data[start : start + step])
        for (end, channel), other in zip(sides, self.ends[::-1], strict=True):
            if end.ended and not other.ended:
                other.ended = True
                channel.connectionLost(Failure(ConnectionDone()))
        return carried

    def kill_worker(self) -> None:
        """The worker is gone from one moment to the next."""
        self.ends[0].ended = True
        self.supervisor.connectionLost(Failure(ConnectionDone()))


def carry_all(clock: Clock, pairs: Iterable[ChannelPair]) -> None:
    """Until nothing is written at any end, and nothing is due now."""
    pairs = list(pairs)
    while sum(pair.carry() for pair in pairs):
        clock.advance(0)


def socket_channels(reactor: object, name: str = "worker 1") -> tuple[Channel, Channel]:
    """The supervisor's end and the worker's, over a real socket pair."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    channels = Channel(reactor, name), Channel(reactor, "the supervisor")  # type: ignore[arg-type]
    for channel, end in zip(channels, (ours, theirs), strict=True):
        open_channel(reactor, channel, end)  # type: ignore[arg-type]
    return channels
