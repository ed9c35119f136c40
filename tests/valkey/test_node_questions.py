"""Questions between nodes through each kind of Valkey: long answers, failures, and no key that stays."""

from __future__ import annotations

from typing import Any

import pytest
from pytest_twisted import ensureDeferred
from twisted.internet import reactor
from twisted.internet.defer import Deferred, DeferredList

from elemta.daemon.node_questions import NodeQuestions
from elemta.daemon.peers import PeerRequest
from elemta.errors import PeerFailed
from elemta.runtime import Runtime
from tests.support.valkey_groups import kind_of_valkey
from tests.support.waiting import eventually, failure_of

PREFIX = "elemta:ratelimit:"
NODES = [f"mx{number}" for number in range(4)]


@pytest.mark.parametrize("kind", ["single", "sentinel", "cluster"])
@ensureDeferred
async def test_each_node_is_asked_and_answers(kind: str, connect: Any) -> None:
    with kind_of_valkey(kind) as (url, servers):
        valkey = await connect(url)
        nodes = {name: NodeQuestions(Runtime.of(reactor), valkey, PREFIX, name) for name in NODES}
        for name, node in nodes.items():

            async def serve(asking: str, request: PeerRequest, name: str = name) -> Any:
                return {"node": name, "asked by": asking, "uri": request.uri, "much": "ü" * 100_000}

            node.serve(serve)
            node.start()
        try:
            request = PeerRequest.get("/v1/find", {"text": "x y&z"})
            asked = [Deferred.fromCoroutine(nodes["mx0"].ask(name, request, 30.0)) for name in NODES]
            answers = [answer for _, answer in await DeferredList(asked)]
            assert [each["node"] for each in answers] == NODES
            assert {each["asked by"] for each in answers} == {"mx0"}
            assert {len(each["much"]) for each in answers} == {100_000}
            # A node that is not there.
            error = await failure_of(Deferred.fromCoroutine(nodes["mx0"].ask("none", request, 0.2)))
            assert isinstance(error, PeerFailed)

            async def empty() -> bool:
                return all(server.command("DBSIZE") == 0 for server in servers)

            await eventually(empty)
        finally:
            for node in nodes.values():
                node.stop()
