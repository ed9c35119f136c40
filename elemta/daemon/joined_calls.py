"""The admin calls of a daemon with workers: each is answered by the workers that it concerns."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from http import HTTPStatus
from typing import Any
from urllib.parse import parse_qsl, urlencode

from twisted.internet.interfaces import IReactorTime

from elemta.auth.roles import LOCAL, AccessRole, Caller
from elemta.daemon.joined_answers import FoundMessagesOfAll
from elemta.daemon.joined_traces import JoinedTraces
from elemta.daemon.peers import NODE_ACTOR, Peer, PeerAnswer, PeerRequest, SilentPeers, ask_each
from elemta.daemon.worker_answers import JOINERS, join_destination, join_results
from elemta.daemon.worker_peer import parts_of, with_problems, worst_refusal
from elemta.ops.admin_calls import AdminCall, CallTable
from elemta.ops.admin_errors import AdminRefusal
from elemta.ops.admin_json import Json

READ_SECONDS = 3.0
"""The longest that an answer waits for a worker that it reads from."""

NODE_READ_SECONDS = 0.6
"""The same for the answer to another node, which waits a second for it."""

SILENT_SECONDS = 0.2
"""The longest that it waits for one that did not answer the last time, a moment ago."""

CHANGE_SECONDS = 25.0
"""The longest that a change waits for its worker: less than a call of the admin API has."""

_BY_ANY = ("/v1/config", "/v1/plugins", "/v1/plugins/{name}", "/v1/explain")
_BY_ALL = ("/v1/reload", "/v1/drain", "/v1/undrain")
_FIND = "/v1/find"
_MESSAGE = "/v1/queue/{queue_id}"
_TRACE = "/v1/trace"
_DESTINATION = "/v1/destinations/"
# Workers count in their own metrics what the supervisor can't know.
_NOT_OWN = ("/v1/limits",)


class JoinedCalls(CallTable):
    """The calls ``own`` of the supervisor, and ``declared`` ones of its workers, which ``workers()`` gives.

    A worker that does not answer is left out of what is read, and named under ``problems``; where all is
    asked of the worker that has a message, and one is silent, that is the refusal.
    """

    def __init__(
        self,
        own: CallTable,
        declared: Sequence[AdminCall],
        workers: Callable[[], Sequence[Peer]],
        clock: IReactorTime,
        status: Callable[[], Mapping[str, Any]] = dict,
    ) -> None:
        CallTable.__init__(self)
        self.set_calls((*own.calls, *(each for each in declared if not own.has(each.method, each.path))))
        self._own = own
        self._workers = workers
        self._clock = clock
        self._status = status
        self._find = FoundMessagesOfAll()
        self._traces = JoinedTraces(clock)
        self._silent = SilentPeers(clock, SILENT_SECONDS)

    async def answer(
        self, method: str, uri: str, body: bytes = b"", content_type: str = "", caller: Caller = LOCAL
    ) -> Json:
        call, _ = self.find_call(method, uri.partition("?")[0])
        if self._own.has(call.method, call.path) and call.path not in _NOT_OWN:
            return await self._own.answer(method, uri, body, content_type, caller)
        call.check_role(caller)
        return await self._of_workers(call, PeerRequest(method, uri, body, content_type, caller))

    async def _of_workers(self, call: AdminCall, request: PeerRequest) -> Json:
        if call.path == _FIND:
            return await self._found(request)
        if call.path.startswith(_TRACE):
            return await self._traces.answer(call, request, self._all())
        if call.method == "GET" and call.path in JOINERS:
            return await self._joined(call, request)
        if call.path.startswith(_MESSAGE):
            return await self._of_message(request)
        if call.path in _BY_ANY:
            return await self._by_any(request)
        return await self._changed(call, request)

    def _all(self) -> Sequence[Peer]:
        workers = self._workers()
        if not workers:
            raise AdminRefusal(HTTPStatus.SERVICE_UNAVAILABLE, "no worker runs", "see the log")
        return workers

    async def _ask(self, requests: Sequence[tuple[Peer, PeerRequest]], seconds: float) -> list[PeerAnswer]:
        asked = [(peer, request, self._wait_for(peer, request, seconds)) for peer, request in requests]
        answers = list(await ask_each(asked, self._clock))
        self._silent.note(answers)
        return answers

    def _wait_for(self, peer: Peer, request: PeerRequest, seconds: float) -> float:
        """A change is waited for: it may be carried out."""
        if request.caller.actor.startswith(NODE_ACTOR):
            seconds = min(seconds, NODE_READ_SECONDS)
        return self._silent.wait_for(peer.name, seconds) if request.method == "GET" else seconds

    # What is read from all of them

    async def _joined(self, call: AdminCall, request: PeerRequest) -> Json:
        answers = await self._ask([(worker, request) for worker in self._all()], READ_SECONDS)
        parts = parts_of(answers)
        joined = JOINERS[call.path](query_of(request), parts)
        if call.path == "/v1/status":
            joined |= await self._own_status()
        return with_problems(joined, answers)

    async def _own_status(self) -> dict[str, Any]:
        """What the supervisor says itself, with a list of its workers."""
        found = dict(self._status())
        if self._own.has("GET", "/v1/workers"):
            listing: Any = await self._own.answer("GET", "/v1/workers", caller=LOCAL)
            found["workers"] = listing["workers"]
        return found

    async def _found(self, request: PeerRequest) -> Json:
        query = query_of(request)
        asked = []
        for place, worker in enumerate(self._all()):
            wanted = self._find.query(query, worker.name, own=place == 0)
            if wanted is not None:
                uri = f"{_FIND}?{urlencode(wanted)}"
                asked.append((worker, replace(request, uri=uri)))
        if not asked:
            hint = "after is the next of the page before"
            raise AdminRefusal(HTTPStatus.BAD_REQUEST, "after is no place in what was found", hint)
        answers = await self._ask(asked, READ_SECONDS)
        parts_of(answers)
        parts = {each.name: each.content for each in answers if isinstance(each.content, dict)}
        missing = [each.name for each in answers if each.problem]
        return with_problems(self._find.join(query, parts, missing), answers)

    # What one of them has

    async def _of_message(self, request: PeerRequest) -> Json:
        queue_id = request.path.split("/")[3]
        look = PeerRequest("GET", f"/v1/queue/{queue_id}", caller=Caller("supervisor", AccessRole.VIEWER))
        workers = self._all()
        answers = await self._ask([(worker, look) for worker in workers], READ_SECONDS)
        # The one that has it may be gone by now, and says so itself.
        for worker, answer in zip(workers, answers, strict=True):
            if not answer.problem:
                is_look = (request.method, request.uri) == (look.method, look.uri)
                return answer.content if is_look else await self._ask_one(worker, request)
        raise worst_refusal(answers)

    async def _ask_one(self, worker: Peer, request: PeerRequest) -> Json:
        (answer,) = await self._ask([(worker, request)], CHANGE_SECONDS)
        if answer.problem:
            raise worst_refusal([answer])
        return answer.content

    async def _by_any(self, request: PeerRequest) -> Json:
        """The first that answers: all have the same configuration."""
        workers = sorted(self._all(), key=lambda each: self._silent.has(each.name))
        answers: list[PeerAnswer] = []
        for worker in workers:
            (answer,) = await self._ask([(worker, request)], READ_SECONDS)
            if not answer.problem:
                return answer.content
            answers.append(answer)
            if answer.refusal is not None:
                break
        raise worst_refusal(answers)

    # What changes something

    async def _changed(self, call: AdminCall, request: PeerRequest) -> Json:
        workers = self._all()
        if call.path == "/v1/spools/adopt":
            # Its partition is the one that is always there.
            return await self._ask_one(workers[0], request)
        if call.path.startswith(_DESTINATION):
            # One after the other: all of them write what is paused into the same file.
            answers = [
                each for worker in workers for each in await self._ask([(worker, request)], CHANGE_SECONDS)
            ]
        else:
            answers = await self._ask([(worker, request) for worker in workers], CHANGE_SECONDS)
        parts = [each.content for each in answers if isinstance(each.content, dict)]
        silent = [each for each in answers if each.problem and each.refusal is None]
        if not parts or (silent and call.path in _BY_ALL):
            raise worst_refusal(answers)
        if call.path.startswith("/v1/queue/"):
            return with_problems(join_results(parts), silent)
        if call.path.startswith(_DESTINATION):
            return with_problems(join_destination(parts), silent)
        return with_problems(parts[0], silent)


def query_of(request: PeerRequest) -> dict[str, str]:
    """The parameters in the query of a request."""
    return dict(parse_qsl(request.uri.partition("?")[2], keep_blank_values=True))
