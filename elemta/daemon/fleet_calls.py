"""The admin calls of a node in a fleet: some of them speak for all nodes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from http import HTTPStatus
from typing import Any
from urllib.parse import parse_qsl, urlencode

from twisted.internet.defer import Deferred
from twisted.internet.defer import TimeoutError as OutOfTime

from elemta.auth.roles import LOCAL, AccessRole, Caller
from elemta.daemon.joined_answers import (
    DestinationsOfAll,
    FoundMessagesOfAll,
    JoinedListing,
    LimitsOfAll,
    NodeAnswer,
    Query,
    RefusedOfAll,
)
from elemta.daemon.membership import Membership, NodeStatus
from elemta.daemon.node_questions import NodeQuestions
from elemta.daemon.peer_json import read_json
from elemta.daemon.peers import NODE_ACTOR, Peer, PeerAnswer, PeerRequest, SilentPeers, ask_each
from elemta.errors import StoreUnavailable
from elemta.ops.admin_calls import CallTable
from elemta.ops.admin_errors import AdminRefusal
from elemta.ops.admin_json import Json, to_json
from elemta.runtime import Runtime

DEADLINE_SECONDS = 1.0
"""The longest that an answer waits for other nodes."""

SILENT_SECONDS = 0.3
"""The longest that it waits for one that did not answer the last time, a moment ago."""

_GONE_GOOD_SECONDS = 15.0
MOST_NODES = 200
"""Nodes that are asked; those beyond are named as not asked."""

MOST_AT_ONCE = 16
"""Calls that wait for other nodes at a time; further ones have this node's part alone."""

_DESTINATIONS = "/v1/destinations/"
LISTINGS: Mapping[str, JoinedListing] = {
    "/v1/find": FoundMessagesOfAll(),
    "/v1/destinations": DestinationsOfAll(),
    "/v1/refused": RefusedOfAll(),
    "/v1/limits/top": LimitsOfAll(),
    "/v1/limits/show": LimitsOfAll(),
}
"""The calls that speak for the fleet. Each of them reads."""


def _partly(content: Any) -> str:
    """What is missing in the part of a node itself: that of a worker which does not answer."""
    nodes = content.get("nodes") if isinstance(content, dict) else None
    return str(nodes[0]["problem"]) if nodes else ""


@dataclass(frozen=True, slots=True)
class FleetPeer:
    """Another node, asked through Valkey."""

    name: str
    questions: NodeQuestions

    def ask(self, request: PeerRequest, seconds: float) -> Deferred[Json]:
        return Deferred.fromCoroutine(self.questions.ask(self.name, request, seconds))


class FleetCalls(CallTable):
    """The calls ``own`` of this node; those of :data:`LISTINGS` are answered for all nodes that live.

    A node that does not answer in time is named in ``nodes``; the part of this node is there without it.
    """

    def __init__(
        self, own: CallTable, fleet: Membership, questions: NodeQuestions, node_id: str, runtime: Runtime
    ) -> None:
        CallTable.__init__(self)
        self.set_calls(own.calls)
        self._own = own
        self._fleet = fleet
        self._questions = questions
        self._node_id = node_id
        self._clock: Any = runtime.reactor
        self._wall = runtime.wall
        self._results = {call.path: call.result for call in own.calls if call.method == "GET"}
        self._known: list[str] = []
        self._gone: Sequence[NodeStatus] = ()
        self._gone_until = float("-inf")
        self._silent = SilentPeers(runtime.reactor, SILENT_SECONDS)
        self._under_way = 0
        questions.serve(self.serve)

    async def serve(self, asking: str, request: PeerRequest) -> Json:
        """This node's own part, for another node: it reads as a viewer."""
        if request.method != "GET" or request.path not in LISTINGS:
            raise AdminRefusal(HTTPStatus.FORBIDDEN, "other nodes may not ask this")
        return await self._own.answer(
            "GET", request.uri, caller=Caller(f"{NODE_ACTOR}{asking}", AccessRole.VIEWER)
        )

    async def answer(
        self, method: str, uri: str, body: bytes = b"", content_type: str = "", caller: Caller = LOCAL
    ) -> Json:
        path, _, text = uri.partition("?")
        listing = LISTINGS.get(path) if method == "GET" else None
        if listing is None:
            answer = await self._own.answer(method, uri, body, content_type, caller)
            if method == "POST" and path.startswith(_DESTINATIONS) and isinstance(answer, dict):
                return {**answer, "node_id": self._node_id}
            return answer
        try:
            query = dict(
                parse_qsl(text, keep_blank_values=True, strict_parsing=bool(text), max_num_fields=16)
            )
        except ValueError:
            # It is refused in the words of any other call.
            return await self._own.answer(method, uri, body, content_type, caller)
        own = await self._own_part(listing, path, query, caller)
        others = await self._others(listing, path, query)
        return self._joined(listing, query, own, others)

    async def _own_part(self, listing: JoinedListing, path: str, query: Query, caller: Caller) -> Any:
        """What this node says; refused where the question is wrong, before another node is asked."""
        wanted = listing.query(query, self._node_id, own=True)
        if wanted is not None:
            return await self._own.answer("GET", f"{path}?{urlencode(wanted)}", caller=caller)
        # All of its rows were shown before.
        checked = {**{name: text for name, text in query.items() if name != "after"}, "limit": "1"}
        part: Any = await self._own.answer("GET", f"{path}?{urlencode(checked)}", caller=caller)
        return {**part, "messages": [], "next": None}

    def _joined(
        self, listing: JoinedListing, query: Query, own: dict[str, Any], others: Sequence[PeerAnswer]
    ) -> Json:
        parts = {self._node_id: own}
        parts |= {each.name: each.content for each in others if isinstance(each.content, dict)}
        for name, part in parts.items():
            for row in (*part.get("destinations", ()), *part.get("refused", ())):
                row["node_id"] = name
        missing = [each.name for each in others if each.problem]
        joined = listing.join(query, parts, missing)
        nodes = [NodeAnswer(self._node_id, problem=_partly(own))]
        for each in others:
            nodes.append(NodeAnswer(each.name, not each.problem, each.problem or _partly(each.content)))
        return {**joined, "nodes": to_json(nodes)}

    # The others

    async def _others(self, listing: JoinedListing, path: str, query: Query) -> Sequence[PeerAnswer]:
        valkey = self._fleet.status().valkey
        if valkey is None or not valkey.up:
            return [PeerAnswer(name, problem="Valkey is away") for name in self._known]
        if self._under_way >= MOST_AT_ONCE:
            return [PeerAnswer(name, problem="too many calls wait for it") for name in self._known]
        self._under_way += 1
        try:
            return await self._ask_others(listing, path, query)
        finally:
            self._under_way -= 1

    async def _ask_others(self, listing: JoinedListing, path: str, query: Query) -> Sequence[PeerAnswer]:
        end = self._clock.seconds() + DEADLINE_SECONDS
        try:
            await Deferred.fromCoroutine(self._look_up()).addTimeout(DEADLINE_SECONDS, self._clock)
        except (StoreUnavailable, OutOfTime):
            return [PeerAnswer(name, problem="Valkey does not answer") for name in self._known]
        asked: list[tuple[Peer, PeerRequest, float]] = []
        for name in self._known[:MOST_NODES]:
            wanted = listing.query(query, name, own=False)
            if wanted is not None:
                request = PeerRequest.get(path, wanted)
                seconds = self._silent.wait_for(name, max(0.0, end - self._clock.seconds()))
                asked.append((FleetPeer(name, self._questions), request, seconds))
        answers = [self._read(path, each) for each in await ask_each(asked, self._clock)]
        self._silent.note(answers)
        too_many = [PeerAnswer(name, problem="not asked") for name in self._known[MOST_NODES:]]
        vanished = map(self._vanished, self._gone) if listing.outlives_node else ()
        return [*answers, *too_many, *vanished]

    async def _look_up(self) -> None:
        """Which nodes live, and which vanished. Raises StoreUnavailable."""
        before, self._known = self._known, [node.node_id for node in await self._fleet.others()]
        if any(name not in self._known for name in before):
            self._gone_until = float("-inf")
        self._silent.keep(self._known)
        if self._clock.seconds() >= self._gone_until:
            self._gone = [node for node in await self._fleet.gone() if not node.left]
            self._gone_until = self._clock.seconds() + _GONE_GOOD_SECONDS
        self._gone = [node for node in self._gone if node.node_id not in self._known]

    def _read(self, path: str, answer: PeerAnswer) -> PeerAnswer:
        """An answer by its type, and by the name of the node that gave it."""
        if answer.problem:
            return answer
        try:
            content: Any = read_json(self._results[path], answer.content)
        except ValueError:
            return replace(answer, content=None, problem="an answer that can't be read")
        return replace(answer, content=content)

    def _vanished(self, node: NodeStatus) -> PeerAnswer:
        minutes = max(0.0, self._wall() - node.last_seen_at) / 60
        return PeerAnswer(node.node_id, problem=f"vanished {minutes:.0f} minutes ago")
