"""``trace`` over several workers: one watch for an operator, and one in each worker."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from http import HTTPStatus
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger
from twisted.python.failure import Failure

from elemta.daemon.peers import Peer, PeerRequest, ask_each
from elemta.daemon.worker_peer import parts_of, with_problems
from elemta.errors import PeerFailed
from elemta.ops.admin_calls import AdminCall
from elemta.ops.admin_errors import AdminRefusal
from elemta.ops.admin_json import Json

_log = Logger()

WAIT_SECONDS = 10.0
"""The longest that a call waits for a line, as with one worker."""

_MOST_WATCHES = 4
_BEGIN_SECONDS = 3.0
_ANSWER_SECONDS = 15.0
_UNREAD_SECONDS = 30.0
_MOST_KEPT = 2000


@dataclass(slots=True)
class _Source:
    """The watch of one worker."""

    peer: Peer
    name: str
    reading: bool = False
    ended: bool = False


@dataclass(slots=True)
class _JoinedTrace:
    """A watch of all workers, and the lines that its reader has not had yet."""

    name: str
    only_one: bool
    sources: list[_Source]
    read_at: float
    lines: list[Json] = field(default_factory=list)
    lost: int = 0
    waiting: Deferred[None] | None = None

    @property
    def ended(self) -> bool:
        if self.only_one and any(source.ended for source in self.sources):
            return True
        return all(source.ended for source in self.sources)

    def wake(self) -> None:
        """The reader need not wait any longer."""
        waiting, self.waiting = self.waiting, None
        if waiting is not None:
            waiting.callback(None)


class JoinedTraces:
    """The watches of a supervisor."""

    def __init__(self, clock: IReactorTime) -> None:
        self._clock = clock
        self._watches: dict[str, _JoinedTrace] = {}

    async def answer(self, call: AdminCall, request: PeerRequest, workers: Sequence[Peer]) -> Json:
        """A call about a watch. Raises AdminRefusal."""
        self._forget_unread()
        if call.method == "POST":
            return await self._begin(request, workers)
        watch = self._watches.get(request.path.split("/")[3])
        if watch is None:
            hint = "a watch ends half a minute after it was read last"
            raise AdminRefusal(HTTPStatus.NOT_FOUND, "there is no such watch", hint)
        if call.method == "DELETE":
            await self._end(watch, request)
            return {**_page(watch), "ended": True}
        return await self._read(watch, request)

    async def _begin(self, request: PeerRequest, workers: Sequence[Peer]) -> Json:
        if len(self._watches) >= _MOST_WATCHES:
            hint = "end one, or wait half a minute after its reader is gone"
            raise AdminRefusal(HTTPStatus.CONFLICT, "there are as many watches as there may be", hint)
        answers = await ask_each([(worker, request, _BEGIN_SECONDS) for worker in workers], self._clock)
        # Where one refuses, the watches of the others end unread.
        parts_of(answers)
        sources = [
            _Source(worker, str(answer.content["id"]))
            for worker, answer in zip(workers, answers, strict=True)
            if isinstance(answer.content, dict)
        ]
        name = sources[0].name
        only_one = "one=true" in request.uri or _is_one(request.body)
        self._watches[name] = _JoinedTrace(name, only_one, sources, self._clock.seconds())
        return with_problems({"id": name}, answers)

    async def _read(self, watch: _JoinedTrace, request: PeerRequest) -> Json:
        watch.read_at = self._clock.seconds()
        for source in watch.sources:
            if not source.reading and not source.ended:
                source.reading = True
                read = replace(request, uri=f"/v1/trace/{source.name}")
                asked = source.peer.ask(read, _ANSWER_SECONDS)
                asked.addCallbacks(self._take, self._lose, (watch, source), {}, (watch, source))
        if not watch.lines and not watch.ended:
            await self._line_or_end(watch)
        page = _page(watch)
        if watch.ended:
            await self._end(watch, request)
        return page

    async def _line_or_end(self, watch: _JoinedTrace) -> None:
        watch.wake()
        ready: Deferred[None] = Deferred()
        watch.waiting = ready
        late = self._clock.callLater(WAIT_SECONDS, watch.wake)
        try:
            await ready
        finally:
            if late.active():
                late.cancel()

    def _take(self, page: Any, watch: _JoinedTrace, source: _Source) -> None:
        source.reading = False
        source.ended = bool(page["ended"])
        watch.lines += page["lines"]
        watch.lost += page["lost"]
        beyond = len(watch.lines) - _MOST_KEPT
        if beyond > 0:
            del watch.lines[:beyond]
            watch.lost += beyond
        if page["lines"] or watch.ended:
            watch.wake()

    def _lose(self, failure: Failure, watch: _JoinedTrace, source: _Source) -> None:
        """The worker is gone, or forgot the watch: it has no more lines."""
        if failure.check(PeerFailed, AdminRefusal) is None:
            _log.failure("a worker's watch could not be read", failure, event="admin.peer_failed")
        source.reading, source.ended = False, True
        if watch.ended:
            watch.wake()

    async def _end(self, watch: _JoinedTrace, request: PeerRequest) -> None:
        self._watches.pop(watch.name, None)
        for source in watch.sources:
            if not source.ended:
                over = replace(request, method="DELETE", uri=f"/v1/trace/{source.name}", body=b"")
                source.peer.ask(over, _ANSWER_SECONDS).addErrback(_ends_unread)

    def _forget_unread(self) -> None:
        old = self._clock.seconds() - _UNREAD_SECONDS
        # The workers end theirs by themselves.
        self._watches = {name: each for name, each in self._watches.items() if each.read_at > old}


def _page(watch: _JoinedTrace) -> dict[str, Json]:
    lines, watch.lines = watch.lines, []
    lost, watch.lost = watch.lost, 0
    lines.sort(key=lambda line: float(line["at"]) if isinstance(line, dict) else 0.0)  # type: ignore[arg-type]
    return {"lines": lines, "lost": lost, "ended": watch.ended}


def _ends_unread(failure: Failure) -> None:
    """The worker is gone, or forgot the watch, or ends it by itself soon."""
    failure.trap(PeerFailed, AdminRefusal)


def _is_one(body: bytes) -> bool:
    try:
        found = json.loads(body or b"{}")
    except ValueError:
        return False
    return isinstance(found, dict) and found.get("one") is True
