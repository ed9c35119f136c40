"""Other daemons that are asked what this one is asked: what they are asked, and what they answer."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol
from urllib.parse import parse_qsl, urlencode

from twisted.internet.defer import Deferred, DeferredList
from twisted.internet.defer import TimeoutError as OutOfTime
from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger
from twisted.python.failure import Failure

from elemta.auth.roles import LOCAL, Caller
from elemta.errors import PeerFailed
from elemta.ops.admin_errors import AdminRefusal
from elemta.ops.admin_json import Json

_log = Logger()

NODE_ACTOR = "node:"
"""What the name of a caller begins with that is another node."""


@dataclass(frozen=True, slots=True)
class PeerRequest:
    """An admin call of ``caller``: its method, its path with the query, and a body."""

    method: str
    uri: str
    body: bytes = b""
    content_type: str = ""
    caller: Caller = LOCAL

    @classmethod
    def get(cls, path: str, query: Mapping[str, str]) -> PeerRequest:
        """A call that reads."""
        return cls("GET", f"{path}?{urlencode(query)}" if query else path)

    @property
    def path(self) -> str:
        return self.uri.partition("?")[0]

    def with_fewer_rows(self) -> PeerRequest | None:
        """The same for a quarter of the rows; None where it asks for one, or says no number."""
        path, _, text = self.uri.partition("?")
        query = dict(parse_qsl(text, keep_blank_values=True))
        for name in ("limit", "count"):
            rows = query.get(name, "")
            if rows.isdecimal() and int(rows) > 1:
                return PeerRequest.get(path, {**query, name: str(int(rows) // 4 or 1)})
        return None


class Peer(Protocol):
    """Another daemon."""

    @property
    def name(self) -> str: ...

    def ask(self, request: PeerRequest, seconds: float) -> Deferred[Json]:
        """Its answer to an admin call, within so many seconds.

        Fails with :class:`~elemta.errors.PeerFailed` where there is none, and with AdminRefusal.
        """


@dataclass(frozen=True, slots=True)
class PeerAnswer:
    """What a peer answered, its ``refusal``, or the ``problem`` that kept it from an answer."""

    name: str
    content: Json = None
    problem: str = ""
    refusal: AdminRefusal | None = None


class SilentPeers:
    """Those that did not answer the last time, a moment ago: they are waited for ``seconds`` at the most."""

    _REMEMBERED_SECONDS = 15.0

    def __init__(self, clock: IReactorTime, seconds: float) -> None:
        self._clock = clock
        self._seconds = seconds
        self._until: dict[str, float] = {}

    def has(self, name: str) -> bool:
        """Whether this one did not answer."""
        return self._until.get(name, 0.0) > self._clock.seconds()

    def wait_for(self, name: str, seconds: float) -> float:
        """How many of so many seconds it is waited for."""
        return min(seconds, self._seconds) if self.has(name) else seconds

    def note(self, answers: Sequence[PeerAnswer]) -> None:
        """Remember which of them are no answers. A refusal is one."""
        for each in answers:
            self._until.pop(each.name, None)
            if each.problem and each.refusal is None:
                self._until[each.name] = self._clock.seconds() + self._REMEMBERED_SECONDS

    def keep(self, names: Collection[str]) -> None:
        """Forget all others."""
        self._until = {name: until for name, until in self._until.items() if name in names}


async def ask_each(
    asked: Sequence[tuple[Peer, PeerRequest, float]], clock: IReactorTime
) -> Sequence[PeerAnswer]:
    """Ask peers at the same time, each within its seconds. What one of them fails with is its problem."""
    waiting = [
        peer.ask(request, seconds).addTimeout(seconds + _GRACE, clock).addErrback(_problem)
        for peer, request, seconds in asked
    ]
    answers = await DeferredList(waiting)
    found: list[Any] = [answer for _, answer in answers]
    return [_answer(peer.name, content) for (peer, _, _), content in zip(asked, found, strict=True)]


def _answer(name: str, content: Any) -> PeerAnswer:
    if isinstance(content, AdminRefusal):
        return PeerAnswer(name, problem=content.error, refusal=content)
    if isinstance(content, PeerFailed):
        return PeerAnswer(name, problem=str(content))
    return PeerAnswer(name, content)


# What a peer that keeps its own deadline needs to say so.
_GRACE = 0.05


def _problem(failure: Failure) -> PeerFailed | AdminRefusal:
    error = failure.value
    if isinstance(error, PeerFailed | AdminRefusal):
        return error
    if isinstance(error, OutOfTime):
        return PeerFailed("no answer in time")
    # A peer of another version, or an internal error: neither may keep an answer from the others.
    _log.failure("a peer could not be asked", failure, event="admin.peer_failed")
    return PeerFailed("it could not be asked: see the log")
