"""Server-sent events: the state of the daemon about once a second, to readers that keep up."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IPushProducer, IReactorTime
from twisted.internet.task import LoopingCall
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import implementer

from elemta.ops.admin import AdminRequest
from elemta.ops.admin_json import Json

MOST_STREAMS = 64
TICK_SECONDS = 1.0
STALLED_SECONDS = 60.0
LOOK_SECONDS = 5.0
"""The longest that a look takes. Two looks after its credentials ended a reader is disconnected, at most."""
# A comment, in the words of HTML's event streams: nothing for the reader but a sign of life.
_NO_STATE = b": the state could not be read\n\n"
# So many octets wait in this process before a reader is passed over; Twisted's own measure is 64 KiB.
_BUFFER = 4096

_log = Logger()

Look = Callable[[], Awaitable[Json]]


@implementer(IPushProducer)
class EventStream:
    """One reader. What happens while it does not read is dropped: it gets the state of the moment later."""

    def __init__(self, request: AdminRequest, still_valid: Callable[[], bool]) -> None:
        self._request = request
        self._still_valid = still_valid
        self._paused_at: float | None = None
        self.closed = False

    def open(self) -> None:
        """Begin the answer."""
        request = self._request
        transport: Any = getattr(request.channel, "transport", None)
        if hasattr(transport, "bufferSize"):
            transport.bufferSize = _BUFFER
        request.setHeader(b"content-type", b"text/event-stream")
        request.setHeader(b"cache-control", b"no-store")
        # nginx would collect it otherwise.
        request.setHeader(b"x-accel-buffering", b"no")
        request.notifyFinish().addBoth(self._finished)
        request.registerProducer(self, True)
        request.write(b"retry: 2000\n\n")

    def send(self, event: bytes, now: float) -> None:
        """Send an event, unless the reader is behind. A reader that may read no more is disconnected."""
        if not self._still_valid():
            self.close(at_once=self._paused_at is not None)
        elif self._paused_at is not None:
            if self._paused_at == 0.0:
                self._paused_at = now
            elif now - self._paused_at > STALLED_SECONDS:
                self.close(at_once=True)
        else:
            self._request.write(event)

    def close(self, *, at_once: bool = False) -> None:
        """End the answer; ``at_once`` without waiting until what was sent is read."""
        if self.closed:
            return
        self.closed = True
        channel = self._request.channel
        self._request.unregisterProducer()
        if at_once and channel is not None:
            channel.forceAbortClient()
        else:
            self._request.finish()

    def _finished(self, _: object) -> None:
        self.closed = True

    # IPushProducer

    def pauseProducing(self) -> None:
        # The time comes with the next tick.
        self._paused_at = 0.0

    def resumeProducing(self) -> None:
        self._paused_at = None

    def stopProducing(self) -> None:
        self.closed = True


class EventStreams:
    """All readers. The state is looked at once for all of them, and not at all while there is none."""

    def __init__(self, clock: IReactorTime, look: Look, most: int = MOST_STREAMS) -> None:
        self._clock = clock
        self._look = look
        self._most = most
        self._streams: list[EventStream] = []
        self._loop = LoopingCall(self._tick)
        self._loop.clock = clock

    def __len__(self) -> int:
        return len(self._streams)

    def add(self, request: AdminRequest, still_valid: Callable[[], bool]) -> bool:
        """Begin a stream; False where there are too many."""
        self._streams = [stream for stream in self._streams if not stream.closed]
        if len(self._streams) >= self._most:
            return False
        stream = EventStream(request, still_valid)
        self._streams.append(stream)
        stream.open()
        if not self._loop.running:
            self._loop.start(TICK_SECONDS).addErrback(_loop_ended)
        return True

    def close(self) -> None:
        """End all streams."""
        if self._loop.running:
            self._loop.stop()
        streams, self._streams = self._streams, []
        for stream in streams:
            stream.close()

    def _tick(self) -> Deferred[None]:
        return Deferred.fromCoroutine(self._send_state())

    async def _send_state(self) -> None:
        event = await self._event()
        now = self._clock.seconds()
        for stream in self._streams:
            if not stream.closed:
                stream.send(event, now)
        self._streams = [stream for stream in self._streams if not stream.closed]
        if not self._streams and self._loop.running:
            self._loop.stop()

    async def _event(self) -> bytes:
        looking: Any = self._look()
        try:
            state = await Deferred.fromCoroutine(looking).addTimeout(LOOK_SECONDS, self._clock)
        except Exception:
            # Whatever fails in it: readers stay bounded and checked, and the next look may succeed.
            _log.failure("the state for the console could not be read", event="console.state_failed")
            return _NO_STATE
        return b"event: state\ndata: " + json.dumps(state, ensure_ascii=True).encode("ascii") + b"\n\n"


def _loop_ended(failure: Failure) -> None:
    _log.failure("the stream of events ended", failure, event="console.state_failed")
