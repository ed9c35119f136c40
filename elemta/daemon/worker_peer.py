"""A worker as its supervisor asks it: over the Unix sockets of its admin API and of its metrics."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path
from typing import Any

from twisted.internet.base import ReactorBase
from twisted.internet.defer import Deferred

from elemta.daemon.peers import PeerAnswer, PeerRequest
from elemta.errors import PeerFailed
from elemta.metrics import Metrics
from elemta.ops.admin import caller_headers
from elemta.ops.admin_errors import AdminRefusal
from elemta.ops.admin_json import Json
from elemta.ops.joined_metrics import JoinedMetrics
from elemta.ops.metrics import MetricsExporter
from elemta.ops.unix_http import UnixAnswer, UnixHttp


@dataclass(frozen=True, slots=True)
class WorkerPeer:
    """The worker of this name, whose admin API listens at ``path``."""

    name: str
    path: Path
    reactor: ReactorBase

    def ask(self, request: PeerRequest, seconds: float) -> Deferred[Json]:
        """As :meth:`elemta.daemon.peers.Peer.ask`: as the caller that the request names."""
        headers = caller_headers(request.caller)
        if request.content_type:
            headers["content-type"] = request.content_type
        asked = UnixHttp(self.path, self.reactor).request(
            request.method, request.uri, request.body, headers=headers, seconds=seconds
        )
        return asked.addCallback(_content)


def _content(answer: UnixAnswer) -> Json:
    """The JSON of an answer. Raises AdminRefusal, or PeerFailed."""
    try:
        found: Any = json.loads(answer.body)
    except ValueError:
        raise PeerFailed("its answer is no JSON") from None
    if answer.status == HTTPStatus.OK:
        content: Json = found
        return content
    more: Mapping[str, Any] = found if isinstance(found, dict) else {}
    error, hint = str(more.get("error", "it refused")), str(more.get("hint", ""))
    rest = {key: value for key, value in more.items() if key not in ("error", "hint")}
    raise AdminRefusal(HTTPStatus(answer.status), error, hint, **rest)


def parts_of(answers: Sequence[PeerAnswer]) -> list[dict[str, Any]]:
    """What was answered. Raises AdminRefusal where a request was refused, or nothing was answered."""
    refusals = [each.refusal for each in answers if each.refusal is not None]
    if refusals:
        raise refusals[0]
    parts = [each.content for each in answers if isinstance(each.content, dict)]
    if answers and not parts:
        raise worst_refusal(answers)
    return parts


def worst_refusal(answers: Sequence[PeerAnswer]) -> AdminRefusal:
    """Why there is no answer: a worker that is silent may have what the others have not."""
    silent = [each for each in answers if each.problem and each.refusal is None]
    if silent:
        words = "; ".join(f"worker {each.name}: {each.problem}" for each in silent)
        problem = f"a worker does not answer: {words}"
        return AdminRefusal(HTTPStatus.SERVICE_UNAVAILABLE, problem, "see the log")
    known = [each.refusal for each in answers if each.refusal is not None]
    other = [refusal for refusal in known if refusal.status is not HTTPStatus.NOT_FOUND]
    return (other or known or [AdminRefusal(HTTPStatus.SERVICE_UNAVAILABLE, "no worker answers")])[0]


def with_problems(content: dict[str, Any], answers: Sequence[PeerAnswer]) -> dict[str, Any]:
    """An answer with the workers whose part is not in it."""
    problems = [f"worker {each.name}: {each.problem}" for each in answers if each.problem]
    if not problems:
        return content
    nodes = content.get("nodes")
    if nodes:
        first = {**nodes[0], "problem": "; ".join(problems)}
        content = {**content, "nodes": [first, *nodes[1:]]}
    return {**content, "problems": problems}


SCRAPE_SECONDS = 3.0
"""The longest that a scrape waits for a worker; Prometheus waits for ten by default."""


class WorkersMetrics:
    """The metrics of a supervisor with those of its workers, which show theirs at ``sockets``, by name.

    It is for :meth:`~elemta.ops.metrics.MetricsExporter.join_with`.
    """

    def __init__(
        self,
        own: MetricsExporter,
        metrics: Metrics,
        sockets: Callable[[], Sequence[tuple[str, Path]]],
        reactor: ReactorBase,
    ) -> None:
        self._joined = JoinedMetrics(own.render)
        self._metrics = metrics
        self._sockets = sockets
        self._reactor = reactor

    async def __call__(self) -> bytes:
        """Ask all workers that run, at the same time. One that does not answer is left out, and counted."""
        asked = [(name, self._ask(path)) for name, path in self._sockets()]
        self._joined.keep_gauges_of([name for name, _ in asked])
        for name, answering in asked:
            try:
                answer = await answering
            except PeerFailed:
                answer = UnixAnswer(HTTPStatus.SERVICE_UNAVAILABLE, b"")
            if answer.status == HTTPStatus.OK:
                self._joined.take(name, answer.body.decode("utf-8", "replace"))
            else:
                self._joined.missed(name)
                self._metrics.worker_scrapes_missed.labels(name).inc()
        return self._joined.render()

    def _ask(self, path: Path) -> Deferred[UnixAnswer]:
        return UnixHttp(path, self._reactor).request("GET", "/metrics", headers={}, seconds=SCRAPE_SECONDS)
