"""Commands that are under way, and their deadlines."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from twisted.internet.defer import Deferred

from elemta.valkey.resp import Script
from elemta.valkey.silence import Silence

if TYPE_CHECKING:
    from elemta.valkey.connection import Connection

_GRAIN = 0.001
_WARNED = 0.8


class ValkeyCall:
    """One command of a caller, which may be sent more than once.

    ``deferred`` is None as soon as it has fired. An error reply, or the end of the connection, goes to
    ``refused``, which may send the command again. ``silence`` gets an answer when ``prompt`` says that
    the deadline is no longer than that of a decision.
    """

    __slots__ = (
        "asking",
        "connection",
        "deferred",
        "frame",
        "key",
        "prompt",
        "refused",
        "script",
        "silence",
        "turns",
    )

    def __init__(
        self,
        frame: bytes,
        key: bytes | None,
        script: Script | None,
        refused: Callable[[ValkeyCall, Exception], None],
        silence: Silence,
        *,
        prompt: bool,
    ) -> None:
        self.deferred: Deferred[Any] | None = Deferred()
        self.frame = frame
        self.key = key
        self.script = script
        self.refused = refused
        self.silence = silence
        self.prompt = prompt
        self.connection: Connection | None = None
        self.asking = False
        self.turns = 0

    def send(self, connection: Connection, *, asking: bool = False) -> None:
        """Send it, in a cluster perhaps to the node that a slot is moving to."""
        self.connection = connection
        self.asking = asking
        if asking:
            connection.send_asking(self.frame, self)
        else:
            connection.send(self.frame, self)

    def replied(self, reply: Any) -> None:
        deferred = self.deferred
        if deferred is None:
            return  # the deadline came first
        if isinstance(reply, Exception):
            self.refused(self, reply)
            return
        self.deferred = None
        if self.silence.servers and self.prompt:
            self.silence.heard(self.connection)
        deferred.callback(reply)

    def fail(self, error: Exception) -> None:
        deferred, self.deferred = self.deferred, None
        if deferred is not None:
            deferred.errback(error)


class CallDeadlines:
    """Tells calls that their time is over, and only where it was Valkey that used it up.

    A command leaves this process when the reactor's turn ends, and a reply that lies in the socket is read
    in a later turn; either can take longer than a deadline when this process has too much to do, or collects
    garbage. So a call is looked at when :data:`_WARNED` of its time is over, and failed after the rest of it,
    counted from the look: by then the command has left, whatever kept us, Valkey has had that rest at least,
    and the reactor has read what had come. Where nothing is late that is the deadline exactly.

    Calls with the same deadline end in the order in which they began, so that a queue for each deadline
    and one timer for each queue do: a call that is answered costs no timer of its own.
    """

    def __init__(self, reactor: Any, missed: Callable[[ValkeyCall], None]) -> None:
        self._reactor = reactor
        self._missed = missed
        self._queues: dict[float, deque[tuple[float, ValkeyCall]]] = {}
        self._timers: dict[float, Any] = {}
        self._warned: deque[Any] = deque()

    def add(self, call: ValkeyCall, seconds: float) -> None:
        queue = self._queues.get(seconds)
        if queue is None:
            queue = self._queues[seconds] = deque()
            self._timers[seconds] = self._reactor.callLater(seconds * _WARNED, self._look, seconds)
        queue.append((self._reactor.seconds() + seconds * _WARNED, call))

    def stop(self) -> None:
        for timer in (*self._timers.values(), *self._warned):
            if timer.active():
                timer.cancel()
        self._timers.clear()
        self._queues.clear()
        self._warned.clear()

    def _look(self, seconds: float) -> None:
        queue = self._queues[seconds]
        soon = self._reactor.seconds() + _GRAIN
        warned = []
        while queue and (queue[0][1].deferred is None or queue[0][0] <= soon):
            call = queue.popleft()[1]
            if call.deferred is not None:
                warned.append(call)
        if warned:
            self._warned.append(self._reactor.callLater(seconds * (1 - _WARNED), self._judge, warned))
        if queue:
            pause = queue[0][0] - self._reactor.seconds()
            self._timers[seconds] = self._reactor.callLater(max(0.0, pause), self._look, seconds)
        else:
            del self._queues[seconds], self._timers[seconds]

    def _judge(self, warned: list[ValkeyCall]) -> None:
        while self._warned and not self._warned[0].active():
            self._warned.popleft()
        for call in warned:
            if call.deferred is not None:
                self._missed(call)
