"""What all workers of a host have to know alike: overrides, pushed limits, and where limits are counted.

The supervisor's end sends overrides when they change. It looks at the rest every :data:`LOOK_SECONDS` seconds
and sends what is another than before, as a whole. A new worker gets all of it at once::

    server = HostStateServer(runtime, overrides=registry, pushed=push_registry, status=words)
    server.serve(channel)
    server.start()

    state = HostState(runtime, channel)
    state.start(apply)                           # apply: put state.pushed.in_force into force

While nothing comes, what came last holds.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any, Protocol

from twisted.internet.defer import Deferred, DeferredLock
from twisted.internet.defer import TimeoutError as OutOfTime
from twisted.internet.task import LoopingCall
from twisted.logger import Logger
from twisted.python.failure import Failure

from elemta.errors import ChannelRefused, ConfigError, StoreUnavailable, TooManyOverrides
from elemta.limits.override_registry import MAX_OVERRIDES, OverrideRegistry, SharedClock
from elemta.limits.overrides import Override, Overrides
from elemta.limits.pushed_limits import PushedLimits
from elemta.runtime import Runtime
from elemta.workers.channel import Channel
from elemta.workers.limit_bodies import Words, distrust, number, read, text, write
from elemta.workers.limit_client import UNAVAILABLE, as_unavailable

_log = Logger()

LOOK_SECONDS = 0.25
CHANGE_SECONDS = 2.0
"""The deadline of a change that a worker asks for."""

OVERRIDES, PUSHED, STATUS = "host.overrides", "host.pushed", "host.status"
PUT, REMOVE = "host.put_override", "host.remove_override"
_TOO_MANY = "too-many"
_LINE = "\n"


class TakenLimits(Protocol):
    """The pushed limits that the supervisor has in force."""

    @property
    def in_force(self) -> PushedLimits | None: ...


class HostStateServer:
    """The supervisor's end. ``status`` gives what :class:`HostState` has as its ``status``."""

    def __init__(
        self,
        runtime: Runtime,
        *,
        overrides: OverrideRegistry,
        pushed: TakenLimits | None,
        status: Callable[[], Words],
    ) -> None:
        self._registry = overrides
        self._pushed = pushed
        self._status = status
        self._channels: dict[Channel, None] = {}
        self._sent: dict[str, bytes] = {}
        self._generation = -1
        self._in_force: PushedLimits | None = None
        overrides.overrides.on_change(self.look)
        self._looks = LoopingCall(self.look)
        self._looks.clock = runtime.reactor

    def start(self) -> None:
        """Look for changes from now on."""
        self._looks.start(LOOK_SECONDS, now=False).addErrback(_looks_ended)

    def stop(self) -> None:
        if self._looks.running:
            self._looks.stop()

    def serve(self, channel: Channel) -> None:
        """Let this worker know all that holds, and what changes."""
        channel.handle(PUT, self._put)
        channel.handle(REMOVE, self._remove)
        self.look()
        self._channels[channel] = None
        channel.on_close(lambda _: self._channels.pop(channel, None))
        for name, body in self._sent.items():
            channel.tell(name, body)

    def look(self) -> None:
        """Send what has changed, now."""
        overrides = self._registry.overrides
        if overrides.generation != self._generation:
            self._generation = overrides.generation
            self._send(OVERRIDES, _override_lines(overrides))
        in_force = None if self._pushed is None else self._pushed.in_force
        if PUSHED not in self._sent or in_force is not self._in_force:
            self._in_force = in_force
            self._send(PUSHED, b"" if in_force is None else _pushed_lines(in_force))
        self._send(STATUS, write(self._status()))

    def _send(self, name: str, body: bytes) -> None:
        if self._sent.get(name) != body:
            self._sent[name] = body
            for channel in list(self._channels):
                channel.tell(name, body)

    def _put(self, body: bytes) -> Deferred[bytes]:
        with distrust("an override"):
            made, seconds = read(body)
            override = Override.of_json(text(made))
            if override is None or not 0 < float(seconds) < 10**10:
                raise ValueError
        return Deferred.fromCoroutine(self._change(self._put_override(override, float(seconds))))

    async def _put_override(self, override: Override, seconds: float) -> bytes:
        return (await self._registry.put(override, seconds)).to_json().encode("utf-8", "surrogatepass")

    def _remove(self, body: bytes) -> Deferred[bytes]:
        with distrust("the end of an override"):
            limit, identity = map(text, read(body))
        return Deferred.fromCoroutine(self._change(self._remove_override(limit, identity)))

    async def _remove_override(self, limit: str, identity: str) -> bytes:
        return b"1" if await self._registry.remove(limit, identity) else b"0"

    async def _change(self, change: Awaitable[bytes]) -> bytes:
        try:
            answer = await change
        except StoreUnavailable as error:
            raise ChannelRefused(UNAVAILABLE, str(error)) from error
        except TooManyOverrides as error:
            raise ChannelRefused(_TOO_MANY, str(error)) from error
        # The worker that asked knows it before its answer: what changes is sent at once.
        return answer


def _override_lines(overrides: Overrides) -> bytes:
    lines = [repr(overrides.seconds()), *(each.to_json() for each in overrides.in_force())]
    return _LINE.join(lines).encode("utf-8", "surrogatepass")


def _read_overrides(lines: Sequence[str]) -> Iterator[Override]:
    for line in lines:
        override = Override.of_json(line)
        if override is None:
            raise ValueError
        yield override


def _pushed_lines(pushed: PushedLimits) -> bytes:
    return f"{pushed.version}{_LINE}{pushed.to_json()}".encode("utf-8", "surrogatepass")


def _looks_ended(failure: Failure) -> None:
    _log.failure("the workers hear of no change any more", failure, event="worker.internal_error")


class WorkerOverrides:
    """The overrides that hold on this host, at a worker. A change is asked of the supervisor."""

    def __init__(self, runtime: Runtime, channel: Channel) -> None:
        self._channel = channel
        self._clock = SharedClock(runtime)
        self.overrides = Overrides(self._clock.seconds)
        self._sweep = LoopingCall(self.overrides.drop_ended)
        self._sweep.clock = runtime.reactor

    def start(self) -> None:
        self._sweep.start(1.0)

    def stop(self) -> None:
        if self._sweep.running:
            self._sweep.stop()

    def take(self, body: bytes) -> None:
        """These hold from now on."""
        with distrust("the overrides"):
            now, *lines = body.decode("utf-8", "surrogatepass").split(_LINE)
            if len(lines) > MAX_OVERRIDES:
                raise ValueError
            found = list(_read_overrides(lines))
            self._clock.follow(float(now))
        self.overrides.replace(found)

    async def put(self, override: Override, seconds: float) -> Override:
        now = self._clock.seconds()
        asked = replace(override, until=now + seconds, made_at=now)
        answer = await self._ask(PUT, [asked.to_json(), seconds])
        return Override.of_json(answer.decode("utf-8", "surrogatepass")) or asked

    async def remove(self, limit: str, identity: str) -> bool:
        return await self._ask(REMOVE, [limit, identity]) == b"1"

    async def _ask(self, name: str, words: Words) -> bytes:
        return await self._channel.ask(name, write(words), CHANGE_SECONDS).addErrback(_not_changed)


def _not_changed(failure: Failure) -> Any:
    error = failure.value
    if isinstance(error, ChannelRefused) and error.code == _TOO_MANY:
        raise TooManyOverrides(MAX_OVERRIDES)
    raise as_unavailable(failure)


class WorkerPushes:
    """The pushed limits that hold on this host, at a worker."""

    def __init__(self) -> None:
        self.in_force: PushedLimits | None = None
        self._next: PushedLimits | None = None
        # What the supervisor said last, whether this worker could take it or not.
        self._known: PushedLimits | None = None
        self._apply: Callable[[], Awaitable[None]] | None = None
        self._one_at_a_time = DeferredLock()

    @property
    def version(self) -> int:
        """The version in force in this worker; 0 where the file's own limits hold and none was pushed."""
        return 0 if self.in_force is None else self.in_force.version

    def give_up(self, error: ConfigError) -> None:
        """What is in force can't hold beside this configuration: its own limits do."""
        _not_taken(self.in_force, error, None)
        self.in_force = None

    def start(self, apply: Callable[[], Awaitable[None]]) -> Deferred[None]:
        """Put what the supervisor has in force into force here, by ``apply``, now and later."""
        self._apply = apply
        return self.settled()

    def stop(self) -> None:
        self._apply = None

    def take(self, body: bytes) -> Deferred[None]:
        """The supervisor has these in force."""
        with distrust("pushed limits"):
            version, _, document = body.decode("utf-8", "surrogatepass").partition(_LINE)
            pushed = PushedLimits.of_json(int(version), document) if body else None
            if body and pushed is None:
                raise ValueError
        self._next = pushed
        return self.settled()

    def settled(self) -> Deferred[None]:
        """Fires when what is known now is in force, or refused."""
        return self._one_at_a_time.run(lambda: Deferred.fromCoroutine(self._take()))

    async def _take(self) -> None:
        if self._apply is None or self._next == self._known:
            return
        before, self._known = self.in_force, self._next
        self.in_force = self._next
        try:
            await self._apply()
        except ConfigError as error:
            self.in_force = before
            _not_taken(self._known, error, before)
        except BaseException:
            self.in_force = before
            raise


def _not_taken(pushed: PushedLimits | None, error: ConfigError, kept: PushedLimits | None) -> None:
    _log.error(
        "this worker can't take the limits that were pushed to the fleet, and keeps its own",
        event="limits.push_refused",
        version=0 if pushed is None else pushed.version,
        kept=0 if kept is None else kept.version,
        faults=[str(fault) for fault in error.faults],
    )


class HostState:
    """The worker's end. ``status`` is what the supervisor said last of where limits are counted.

    That is the mode, the number of live nodes, and of Valkey the URL, whether it answers, the breaker and its
    trouble, or None.
    """

    def __init__(self, runtime: Runtime, channel: Channel) -> None:
        self._reactor = runtime.reactor
        self.overrides = WorkerOverrides(runtime, channel)
        self.pushed = WorkerPushes()
        self.status: Words | None = None
        self._waiting: list[Deferred[None]] = []
        channel.handle_notice(OVERRIDES, self.overrides.take)
        channel.handle_notice(PUSHED, self.pushed.take)
        # The last that a new worker gets.
        channel.handle_notice(STATUS, self._take_status)

    def start(self, apply: Callable[[], Awaitable[None]]) -> None:
        """Let what the supervisor says hold from now on."""
        self.overrides.start()
        self.pushed.start(apply).addErrback(_not_applied)

    def stop(self) -> None:
        self.overrides.stop()
        self.pushed.stop()

    async def known(self, seconds: float) -> bool:
        """Returns when all that the supervisor says holds, or False after so many seconds."""
        waiting: Deferred[None] = Deferred()
        self._waiting.append(waiting)
        if self.status is not None:
            self._fire()
        try:
            await waiting.addTimeout(seconds, self._reactor)
            await self.pushed.settled().addTimeout(seconds, self._reactor)
        except OutOfTime:
            return False
        return True

    def _fire(self) -> None:
        waiting, self._waiting = self._waiting, []
        for each in waiting:
            if not each.called:
                each.callback(None)

    def _take_status(self, body: bytes) -> None:
        with distrust("the status of the limits"):
            words = read(body)
            mode, live_nodes, valkey = words
            text(mode)
            if number(live_nodes) < 1 or (valkey is not None and len(valkey) != 4):
                raise ValueError
        self.status = words
        self._fire()


def _not_applied(failure: Failure) -> None:
    _log.failure("pushed limits could not be taken", failure, event="limits.push_not_taken")
