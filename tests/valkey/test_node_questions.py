"""Questions between nodes through each kind of Valkey: long answers, failures, and no key that stays."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from pytest_twisted import ensureDeferred
from twisted.internet import reactor
from twisted.internet.defer import Deferred, DeferredList

from elemta.daemon.node_questions import NodeQuestions
from elemta.daemon.peers import PeerRequest
from elemta.errors import PeerFailed
from elemta.runtime import Runtime
from tests.support.valkey import ValkeyServer
from tests.support.valkey_groups import Cluster, Replicated
from tests.support.waiting import eventually, failure_of

PREFIX = "elemta:ratelimit:"
NODES = [f"mx{number}" for number in range(4)]


@contextmanager
def _kind(kind: str) -> Iterator[tuple[str, list[ValkeyServer]]]:
    """The URL of a set-up, and the servers that have the keys."""
    if kind == "single":
        with ValkeyServer() as server:
            yield server.url, [server]
    elif kind == "sentinel":
        with Replicated(down_after=600_000) as group:
            yield group.url, [group.primary]
    else:
        with Cluster(node_timeout=600_000) as group:
            yield group.url, group.servers[:3]


@pytest.mark.parametrize("kind", ["single", "sentinel", "cluster"])
@ensureDeferred
async def test_each_node_is_asked_and_answers(kind: str, connect: Any) -> None:
    with _kind(kind) as (url, servers):
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
