"""The admin calls that show live conversations, with clients and with next hops."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from http import HTTPStatus
from typing import Annotated

from twisted.internet.defer import Deferred

from elemta.auth.roles import AccessRole
from elemta.conversation_trace import ConversationTrace, TraceLine, TraceWatch
from elemta.daemon.session_operations import network_of_text
from elemta.domains import canonical_domain
from elemta.net.registry import ConnectionRegistry
from elemta.ops.admin_calls import route
from elemta.ops.admin_errors import AdminRefusal
from elemta.ops.admin_json import Flag
from elemta.runtime import Runtime

WAIT_SECONDS = 10.0
"""The longest that a call waits for a line."""

MOST_AT_ONCE = 500


@dataclass(frozen=True, slots=True)
class TraceBegun:
    """A watch, to be read by its ``id``."""

    id: str


@dataclass(frozen=True, slots=True)
class TracePage:
    """The next lines of a watch; ``lost`` is how many there were before them that were not read in time.

    After one that has ``ended`` there is none.
    """

    lines: tuple[TraceLine, ...]
    lost: int
    ended: bool


class TraceOperations:
    """Shows the conversations of one node. ``registry`` has those with clients."""

    def __init__(self, runtime: Runtime, trace: ConversationTrace, registry: ConnectionRegistry) -> None:
        self._runtime = runtime
        self._trace = trace
        self._registry = registry
        self._watches: dict[str, TraceWatch] = {}

    @route("POST", "/v1/trace")
    async def begin(
        self, ip: str | None = None, to: str | None = None, one: Annotated[bool, Flag()] = False
    ) -> TraceBegun:
        """Begin to watch conversations: of an address or network, with a recipient in a domain, or all."""
        network = None if ip is None else network_of_text(ip)
        domain = None if to is None else canonical_domain(to.rpartition("@")[2])
        watch = self._trace.watch(network, domain, only_one=one)
        if watch is None:
            hint = "end one, or wait half a minute after its reader is gone"
            raise AdminRefusal(HTTPStatus.CONFLICT, "there are as many watches as there may be", hint)
        self._forget_ended()
        name = self._runtime.token(8)
        self._watches[name] = watch
        for connection in tuple(self._registry.connections):
            connection.follow()
        return TraceBegun(name)

    @route("GET", "/v1/trace/{name}", role=AccessRole.OPERATOR)
    async def read(self, name: str) -> TracePage:
        """The next lines, as soon as there is one; none after ten seconds."""
        watch = self._watch(name)
        if not watch.waiting and not watch.ended:
            await self._line_or_end(watch.call_when_ready)
        lines, lost = self._trace.take(watch, MOST_AT_ONCE)
        ended = watch.ended and not watch.waiting
        if ended:
            self._forget(name)
        return TracePage(tuple(lines), lost, ended)

    @route("DELETE", "/v1/trace/{name}")
    async def end(self, name: str) -> TracePage:
        """End a watch; the lines that were not read are the last."""
        watch = self._watch(name)
        self._forget(name)
        lines, lost = self._trace.take(watch, MOST_AT_ONCE)
        return TracePage(tuple(lines), lost, ended=True)

    async def _line_or_end(self, call_when_ready: Callable[[Callable[[], object] | None], None]) -> None:
        ready: Deferred[None] = Deferred()

        def wake() -> None:
            if not ready.called:
                ready.callback(None)

        late = self._runtime.reactor.callLater(WAIT_SECONDS, wake)
        call_when_ready(wake)
        try:
            await ready
        finally:
            call_when_ready(None)
            if late.active():
                late.cancel()

    def _watch(self, name: str) -> TraceWatch:
        watch = self._watches.get(name)
        if watch is None:
            hint = "a watch ends half a minute after it was read last"
            raise AdminRefusal(HTTPStatus.NOT_FOUND, "there is no such watch", hint)
        return watch

    def _forget(self, name: str) -> None:
        watch = self._watches.pop(name, None)
        # Its end may have been asked for while a reader waited.
        if watch is not None:
            self._trace.end(watch)

    def _forget_ended(self) -> None:
        """Let go of watches that ended, because they were not read, and that no call asks for."""
        for name, watch in list(self._watches.items()):
            if watch not in self._trace.watches:
                del self._watches[name]
