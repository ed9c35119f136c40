"""How nodes of a fleet ask each other what an admin call answers: through the Valkey that all of them have.

The configuration names no peers, and every node already has a connection to Valkey with a login of its own,
so nothing else needs a port, a certificate or a password. A question is for one node; only calls that read,
and only those that the node serves to others, are answered.

- ``{prefix}questions:NODE_ID``: a hash of the questions to a node, each a short JSON document under its id.
  The node looks every :data:`IDLE_SECONDS`, or every :data:`BUSY_SECONDS` for a moment after a question.
- ``{prefix}answer:ID``: the answer, compressed JSON, at which the asking node looks.

Both expire within seconds. No command blocks a connection, so decisions about limits wait for nothing here.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Awaitable, Callable
from http import HTTPStatus
from typing import Any

from twisted.internet.defer import CancelledError, Deferred, ensureDeferred
from twisted.internet.defer import TimeoutError as OutOfTime
from twisted.internet.task import deferLater
from twisted.logger import Logger
from twisted.python.failure import Failure

from elemta.daemon.peers import PeerRequest
from elemta.errors import PeerFailed, StoreUnavailable
from elemta.ops.admin_errors import refusal_of
from elemta.ops.admin_json import Json
from elemta.runtime import Runtime
from elemta.valkey import Script
from elemta.valkey.client import ValkeyCommands

_log = Logger()

IDLE_SECONDS = 0.2
"""A node looks this often for questions,"""

BUSY_SECONDS = 0.05
"""and this often within a few seconds after one."""

_BUSY_FOR = 3.0
MOST_WAITING = 32
"""Questions that may wait for one node; another one is not written."""

MOST_AT_ONCE = 8
"""Questions that one node answers at a time; it lets others be."""

MOST_OCTETS = 1024 * 1024
"""The octets of an answer as JSON. One that would be longer is asked for fewer rows."""

_MOST_QUESTION = 20_000
_GOOD_SECONDS = 2.0
_ANSWER_KEPT_SECONDS = 3.0
_ANSWER_SECONDS = 1.0
# However little time a question has left: a server that misses the deadline of a command counts as silent.
_COMMAND_SECONDS = 1.0
_FIRST_PAUSE, _LONGEST_PAUSE = 0.02, 0.06
_SCRIPT = Script.of_package("elemta.daemon", "scripts/questions.lua")

Serve = Callable[[str, PeerRequest], Awaitable[Json]]
"""What a node answers to a question of the node of this name. Raises AdminRefusal, or what a call raises."""


class NodeQuestions:
    """The questions of this node to others, and its answers to theirs. Nothing is sent before ``start``."""

    def __init__(self, runtime: Runtime, valkey: ValkeyCommands, prefix: str, node_id: str) -> None:
        self._clock: Any = runtime.reactor
        self._token = runtime.token
        self._valkey = valkey
        self._prefix = prefix
        self._node_id = node_id
        self._serve: Serve | None = None
        self._timer: Any = None
        self._looking: Deferred[None] | None = None
        self._answering: list[Deferred[None]] = []
        self._busy_until = 0.0
        self._running = False

    def start(self) -> None:
        """Look for questions from now on, while the reactor runs."""
        self._running = True
        self._look_later()

    def serve(self, serve: Serve) -> None:
        """Answer questions by this from now on; before that they wait, and expire."""
        self._serve = serve

    def stop(self) -> None:
        """Ask and answer nothing more."""
        self._running = False
        self._serve = None
        if self._timer is not None and self._timer.active():
            self._timer.cancel()
            self._timer = None
        for each in (self._looking, *tuple(self._answering)):
            if each is not None:
                each.cancel()

    # Asking

    async def ask(self, node_id: str, request: PeerRequest, seconds: float) -> Json:
        """What another node answers within so many seconds. Raises PeerFailed."""
        answer: Deferred[Json] = Deferred.fromCoroutine(self._ask(node_id, request, seconds))
        try:
            return await answer.addTimeout(seconds, self._clock)
        except OutOfTime:
            raise PeerFailed("no answer in time") from None
        except StoreUnavailable as error:
            raise PeerFailed(f"Valkey does not answer: {error}") from error

    async def _ask(self, node_id: str, request: PeerRequest, seconds: float) -> Json:
        question, text = self._token(16), _question_text(self._node_id, request)
        key = self._answer_key(question)
        if not await self._write(node_id, question, text, seconds):
            raise PeerFailed("too many questions wait for it")
        pause = _FIRST_PAUSE
        while True:
            await deferLater(self._clock, pause, lambda: None)
            found = await self._valkey.command("GET", key, key=key, deadline=_COMMAND_SECONDS)
            if found is not None:
                # It would expire by itself.
                self._valkey.command("DEL", key, key=key, deadline=_COMMAND_SECONDS).addErrback(_not_removed)
                return _content(found)
            pause = min(_LONGEST_PAUSE, pause * 1.5)

    async def _write(self, node_id: str, question: str, text: str, seconds: float) -> bool:
        good = int(min(_GOOD_SECONDS, seconds + 0.5) * 1000)
        words: list[str | int] = ["ask", MOST_WAITING, good, question, text]
        return bool(await self._valkey.run(_SCRIPT, [self._key(node_id)], words, deadline=_COMMAND_SECONDS))

    # Answering

    def _look_later(self) -> None:
        busy = self._clock.seconds() < self._busy_until
        self._timer = self._clock.callLater(BUSY_SECONDS if busy else IDLE_SECONDS, self._look)

    def _look(self) -> None:
        """Never twice at a time: a slow look is as good as none."""
        self._timer = None
        if self._looking is None and self._serve is not None and self._valkey.up:
            self._looking = ensureDeferred(self._take())
            self._looking.addBoth(self._looked)
        self._look_later()

    def _looked(self, result: object) -> None:
        self._looking = None
        if isinstance(result, Failure) and result.check(CancelledError) is None:
            _log.failure("questions of other nodes could not be read", result, event="nodes.question_failed")

    async def _take(self) -> None:
        try:
            flat = await self._valkey.run(
                _SCRIPT, [self._key(self._node_id)], ["take"], deadline=_COMMAND_SECONDS
            )
        except StoreUnavailable:
            # The others miss the answer, and say so.
            return
        if flat:
            self._busy_until = self._clock.seconds() + _BUSY_FOR
        for question, text in zip(flat[::2], flat[1::2], strict=True):
            if len(self._answering) < MOST_AT_ONCE and len(text) <= _MOST_QUESTION:
                answering = ensureDeferred(self._answer(question.decode("ascii", "replace"), text))
                self._answering.append(answering)
                answering.addBoth(self._answered, answering)

    def _answered(self, result: object, answering: Deferred[None]) -> None:
        self._answering.remove(answering)
        if isinstance(result, Failure) and result.check(CancelledError, StoreUnavailable) is None:
            _log.failure("another node could not be answered", result, event="nodes.question_failed")

    async def _answer(self, question: str, text: bytes) -> None:
        asked, serve = _read_question(text), self._serve
        if asked is None or serve is None:
            return
        found: Any = Deferred.fromCoroutine(_served(serve, *asked))
        octets = await found.addTimeout(_ANSWER_SECONDS, self._clock)
        key, kept = self._answer_key(question), int(_ANSWER_KEPT_SECONDS * 1000)
        await self._valkey.command("SET", key, octets, "PX", kept, key=key, deadline=_COMMAND_SECONDS)

    # Keys: each is alone in its call, so on Valkey Cluster its whole name chooses the server.

    def _key(self, node_id: str) -> bytes:
        return f"{self._prefix}questions:{node_id}".encode()

    def _answer_key(self, question: str) -> bytes:
        return f"{self._prefix}answer:{question}".encode()


def _question_text(asking: str, request: PeerRequest) -> str:
    return json.dumps({"from": asking, "method": request.method, "uri": request.uri})


def _read_question(text: bytes) -> tuple[str, PeerRequest] | None:
    """The node that asks, and what; None for anything but a question."""
    try:
        found = json.loads(text)
        method, uri = found["method"], found["uri"]
    except (ValueError, RecursionError, TypeError, KeyError):
        return None
    if not isinstance(method, str) or not isinstance(uri, str):
        return None
    return str(found.get("from", ""))[:255], PeerRequest(method, uri)


async def _served(serve: Serve, asking: str, request: PeerRequest) -> bytes:
    """An answer in octets: with fewer rows where it would be too long."""
    while True:
        try:
            document = {"status": int(HTTPStatus.OK), "content": await serve(asking, request)}
        except (CancelledError, OutOfTime):
            raise
        except Exception as error:
            # Whatever a call raises is answered: another node waits for it.
            refusal = refusal_of(error)
            if refusal.status is HTTPStatus.INTERNAL_SERVER_ERROR:
                _log.failure("a call of another node failed", event="admin.failed", path=request.path)
            document = {"status": int(refusal.status), "content": {"error": refusal.error}}
        octets = json.dumps(document, ensure_ascii=True).encode("ascii")
        if len(octets) <= MOST_OCTETS:
            return zlib.compress(octets, 1)
        smaller = request.with_fewer_rows()
        if smaller is None:
            document = {"status": int(HTTPStatus.REQUEST_ENTITY_TOO_LARGE), "content": {"error": _TOO_LONG}}
            return zlib.compress(json.dumps(document).encode("ascii"), 1)
        request = smaller


_TOO_LONG = "its answer is too long: ask that node itself"


def _content(octets: bytes) -> Json:
    """What an answer says. Raises PeerFailed."""
    try:
        unpacked = zlib.decompressobj()
        text = unpacked.decompress(octets, MOST_OCTETS + 1)
        if len(text) > MOST_OCTETS:
            raise PeerFailed(_TOO_LONG)
        found = json.loads(text)
        status, content = found["status"], found["content"]
    except (ValueError, RecursionError, TypeError, KeyError, zlib.error):
        raise PeerFailed("an answer that can't be read") from None
    if status != HTTPStatus.OK:
        problem = content.get("error") if isinstance(content, dict) else None
        raise PeerFailed(str(problem or f"it answered {status}")[:300])
    known: Json = content
    return known


def _not_removed(failure: Failure) -> None:
    failure.trap(StoreUnavailable)
