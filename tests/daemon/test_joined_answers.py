"""Answers of several nodes as one: pages, bounds, answers of liars, and the pages of the console."""

from __future__ import annotations

import json
import zlib
from collections.abc import Mapping
from http import HTTPStatus
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from twisted.internet.defer import Deferred, fail, succeed

from elemta.daemon.destination_operations import DestinationListing
from elemta.daemon.find_operations import FoundPage
from elemta.daemon.fleet_calls import MOST_AT_ONCE, FleetCalls
from elemta.daemon.joined_answers import DestinationsOfAll, FoundMessagesOfAll
from elemta.daemon.limit_operations import LimitListing
from elemta.daemon.membership import NodeLife, NodeStatus
from elemta.daemon.node_questions import MOST_OCTETS, MOST_WAITING, NodeQuestions
from elemta.daemon.peer_json import read_json
from elemta.daemon.peers import PeerRequest
from elemta.daemon.session_operations import RefusalListing
from elemta.daemon.trace_operations import TraceOperations
from elemta.errors import PeerFailed, StoreUnavailable
from elemta.net.registry import ConnectionRegistry
from elemta.ops.admin_calls import CallTable, route
from elemta.ops.admin_errors import AdminRefusal
from tests.support.administered import Administered
from tests.support.console import TOKENS, Console
from tests.support.runtime import simulated_runtime

HOSTILE = "<script>alert(1)</script>\u202e\r\n\x1b[2J"


def value_of(coroutine: Any) -> Any:
    """What a coroutine returns that has nothing to wait for."""
    results: list[Any] = []
    Deferred.fromCoroutine(coroutine).addBoth(results.append)
    (result,) = results
    if hasattr(result, "raiseException"):
        result.raiseException()
    return result


def destination(name: str, **more: Any) -> dict[str, Any]:
    return {
        "name": name, "route": "mx:", "waiting": 1, "oldest_at": 1.0, "state": "open", "last_error": HOSTILE,
        "next_attempt_at": None, "paced_by": None, **more,
    }  # fmt: skip


def life(queue_id: str, at: float, node: str) -> dict[str, Any]:
    client = {
        "ip": "192.0.2.1",
        "helo": HOSTILE,
        "listener": "mx",
        "session_id": "s",
        "user": None,
        "tls": "",
    }
    return {
        "node_id": node, "queue_id": queue_id, "message_id": "", "subject": HOSTILE, "sender": "a@b.test",
        "recipients": [], "recipient_count": 0, "client": client, "size": 1, "received_at": at,
        "ended_at": None, "state": "active", "hold_reason": None, "next_attempt_at": None, "verdicts": [],
        "attempts": [], "attempt_count": 0, "changes": [], "cut": [],
    }  # fmt: skip


# Pages


def test_pages_of_what_is_found_have_each_message_of_each_node_once() -> None:
    nodes = {
        name: [f"{name}{at}" for at in times]
        for name, times in {"a": range(99, 60, -3), "b": range(98, 90, -1), "c": range(50, 47, -1)}.items()
    }
    joined, shown = FoundMessagesOfAll(), []
    query = {"text": "x", "limit": "4"}
    for _ in range(50):
        parts = {}
        for name, ids in nodes.items():
            wanted = joined.query(query, name, own=name == "a")
            if wanted is None:
                continue
            begin = int(wanted.get("after", "0"))
            page = ids[begin : begin + int(wanted["limit"])]
            following = str(begin + len(page)) if begin + len(page) < len(ids) else None
            rows = [{"queue_id": each, "received_at": float(each[1:])} for each in page]
            parts[name] = {"history": True, "messages": rows, "next": following}
        answer = joined.join(query, parts or {"a": {"history": True, "messages": [], "next": None}}, ())
        assert len(answer["messages"]) <= 4
        shown += [each["queue_id"] for each in answer["messages"]]
        if answer["next"] is None:
            break
        query["after"] = answer["next"]
    assert sorted(shown) == sorted(each for ids in nodes.values() for each in ids)
    assert [each[1:] for each in shown] == sorted((each[1:] for each in shown), reverse=True)


def test_a_node_that_is_silent_for_a_page_has_its_messages_in_the_next() -> None:
    joined, query = FoundMessagesOfAll(), {"text": "x", "limit": "1"}
    rows = [{"queue_id": each, "received_at": 1.0} for each in "xy"]
    answer = joined.join(query, {"a": {"history": True, "messages": rows, "next": None}}, ["b"])
    query["after"] = answer["next"]
    assert joined.query(query, "b", own=False) == {"text": "x", "limit": "1"}
    # The last page has no next, although it never answers.
    answer = joined.join(query, {"a": {"history": True, "messages": rows, "next": None}}, ["b"])
    assert ([each["queue_id"] for each in answer["messages"]], answer["next"]) == (["y"], None)


@pytest.mark.parametrize(
    "place", ["nodes:", "nodes:x", "nodes:W10=", "nodes:eyJhIjogMX0=", "nodes:" + "e" * 999]
)
def test_a_place_that_is_none_is_refused(place: str) -> None:
    with pytest.raises(AdminRefusal, match="place"):
        FoundMessagesOfAll().query({"text": "x", "after": place}, "a", own=True)


def test_pages_of_destinations_have_all_rows_of_a_name_together() -> None:
    nodes = {
        "a": [f"d{number:05}.test" for number in range(0, 10_000, 2)],
        "b": [f"d{number:05}.test" for number in range(0, 10_000, 3)],
    }
    joined, seen, after = DestinationsOfAll(), [], ""
    while True:
        query = {"limit": "1000", **({"after": after} if after else {})}
        parts = {}
        for name, names in nodes.items():
            left = [each for each in names if each > after]
            page = left[:1000]
            following = page[-1] if len(left) > 1000 else None
            rows = [{"name": each, "node": name} for each in page]
            parts[name] = {"destinations": rows, "next": following}
        answer = joined.join(query, parts, ())
        names = [row["name"] for row in answer["destinations"]]
        assert len(set(names)) <= 1000
        assert not set(names) & {row["name"] for row in seen}
        seen += answer["destinations"]
        if answer["next"] is None:
            break
        after = answer["next"]
    assert [row["name"] for row in seen] == sorted(each for names in nodes.values() for each in names)
    assert len({(row["name"], row["node"]) for row in seen}) == len(seen)


# What a peer may say


@pytest.mark.parametrize(
    ("hint", "value"),
    [
        (DestinationListing, []),
        (DestinationListing, {"destinations": "x", "next": None, "nodes": []}),
        (DestinationListing, {"destinations": [destination("a", state="melted")], "next": None, "nodes": []}),
        (DestinationListing, {"destinations": [destination("a", waiting="1")], "next": None, "nodes": []}),
        (DestinationListing, {"destinations": [destination("a", waiting=True)], "next": None, "nodes": []}),
        (DestinationListing, {"destinations": [], "next": 7, "nodes": []}),
        (FoundPage, {"node_id": "b", "history": 1, "messages": [], "next": None, "nodes": []}),
        (FoundPage, {"node_id": "b", "history": True, "messages": [{}], "next": None, "nodes": []}),
        (RefusalListing, {"refused": [], "total": 1.5, "nodes": []}),
        (LimitListing, {"limits": [{"limit": "x"}], "counted_in": "cluster", "complete": True}),
        (LimitListing, None),
    ],
)
def test_what_no_node_would_answer_is_no_answer(hint: Any, value: Any) -> None:
    with pytest.raises(ValueError, match=r"not|none"):
        read_json(hint, value)


def test_keys_of_a_later_version_are_left_out_and_those_of_an_earlier_one_have_their_default() -> None:
    found: Any = read_json(LimitListing, {"limits": [], "counted_in": "cluster", "more": 1})
    assert found == {"limits": [], "counted_in": "cluster", "complete": True, "nodes": []}


# Questions


class FakeValkey:
    """The keys of one server; each command is answered at once. ``away``: none is."""

    clustered, up = False, True

    def __init__(self) -> None:
        self.questions: dict[bytes, dict[bytes, bytes]] = {}
        self.answers: dict[bytes, bytes] = {}
        self.away = False
        self.largest = 0
        self.deadlines: list[float | None] = []

    def on_change(self, callback: Any) -> None: ...

    def run(self, script: Any, keys: Any, args: Any = (), *, deadline: float | None = None) -> Deferred[Any]:
        self.deadlines.append(deadline)
        if self.away:
            return fail(StoreUnavailable("away"))
        waiting = self.questions.setdefault(keys[0], {})
        if args[0] == "take":
            flat = [word for pair in waiting.items() for word in pair]
            waiting.clear()
            return succeed(flat)
        if len(waiting) >= args[1]:
            return succeed(0)
        waiting[args[3].encode()] = args[4].encode()
        return succeed(1)

    def command(self, *words: Any, key: Any = None, deadline: float | None = None) -> Deferred[Any]:
        self.deadlines.append(deadline)
        if self.away:
            return fail(StoreUnavailable("away"))
        if words[0] == "SET":
            self.largest = max(self.largest, len(words[2]))
            self.answers[key] = words[2]
        elif words[0] == "DEL":
            self.answers.pop(key, None)
        return succeed(self.answers.get(key))


class Two:
    """A node that asks, and one that is asked."""

    def __init__(self) -> None:
        self.runtime = simulated_runtime()
        self.clock: Any = self.runtime.reactor
        self.valkey: Any = FakeValkey()
        self.asking, self.asked = (
            NodeQuestions(self.runtime, self.valkey, "p:", name) for name in ("mx1", "mx2")
        )
        self.asked.start()

    def ask(self, request: PeerRequest, seconds: float = 1.0) -> Any:
        results: list[Any] = []
        Deferred.fromCoroutine(self.asking.ask("mx2", request, seconds)).addBoth(results.append)
        self.clock.pump([0.01] * 120)
        (result,) = results
        return result


REQUEST = PeerRequest.get("/v1/find", {"text": "x", "limit": "100"})


def test_a_question_is_answered_and_leaves_nothing_in_valkey() -> None:
    two = Two()

    async def serve(asking: str, request: PeerRequest) -> Any:
        return [asking, request.method, request.uri]

    two.asked.serve(serve)
    assert two.ask(REQUEST) == ["mx1", "GET", "/v1/find?text=x&limit=100"]
    assert (two.valkey.answers, two.valkey.questions) == ({}, {b"p:questions:mx2": {}})
    two.asked.stop()
    assert not two.clock.getDelayedCalls()


def test_an_answer_that_would_be_too_long_has_fewer_rows() -> None:
    two, asked = Two(), []

    async def serve(_: str, request: PeerRequest) -> Any:
        asked.append(request.uri)
        rows = int(request.uri.rpartition("=")[2])
        return ["x" * 50_000] * rows

    two.asked.serve(serve)
    assert len(two.ask(REQUEST)) == 6
    assert asked == [f"/v1/find?text=x&limit={rows}" for rows in (100, 25, 6)]

    async def serve_one(_: str, request: PeerRequest) -> Any:
        del request
        return "x" * (2 * MOST_OCTETS)

    two.asked.serve(serve_one)
    assert "too long" in str(two.ask(REQUEST).value)
    assert two.valkey.largest < 100_000


@pytest.mark.parametrize(
    "octets",
    [
        b"",
        b"x",
        zlib.compress(b"{"),
        zlib.compress(b"[]"),
        zlib.compress(b"{}"),
        zlib.compress(b'{"status": 403, "content": {"error": "no"}}'),
        zlib.compress(b'{"status": 200, "content": "' + b"x" * (64 * MOST_OCTETS) + b'"}'),
        zlib.compress(b"[" * 200_000),
    ],
    ids=range(8),
)
def test_what_is_no_answer_is_a_problem_of_that_node(octets: bytes) -> None:
    two = Two()
    two.valkey.command = lambda *words, **_: succeed(octets if words[0] == "GET" else None)
    assert two.ask(REQUEST).check(PeerFailed)


def test_a_node_that_is_silent_a_valkey_that_is_away_and_a_full_box_are_problems() -> None:
    two = Two()
    assert "no answer in time" in str(two.ask(REQUEST).value)
    for _ in range(MOST_WAITING):
        two.ask(REQUEST)
    assert "too many questions" in str(two.ask(REQUEST).value)
    two.valkey.away = True
    assert "Valkey does not answer" in str(two.ask(REQUEST).value)


def test_a_question_with_little_time_lets_no_server_look_silent() -> None:
    two = Two()
    assert "no answer in time" in str(two.ask(REQUEST, 0.02).value)
    assert set(two.valkey.deadlines) == {1.0}


def test_what_is_no_question_is_not_answered() -> None:
    two = Two()

    async def serve(_: str, request: PeerRequest) -> Any:
        raise AssertionError(request)

    two.asked.serve(serve)
    for text in (b"", b"[]", b'{"method": 1, "uri": "x"}', b'{"method": "GET"}', b"[" * 9000, b"x" * 30_000):
        two.valkey.questions[b"p:questions:mx2"] = {b"id": text}
        two.clock.pump([0.05] * 10)
    assert two.valkey.answers == {}


# The calls of a node in a fleet


class Fleet:
    """Other nodes, and what each answers by the path: JSON, or an error."""

    def __init__(
        self, others: Mapping[str, Mapping[str, Any]], gone: Mapping[str, bool] | None = None
    ) -> None:
        self._others = others
        self._gone = gone or {}
        self.up = True
        self.asked: list[tuple[str, str, float]] = []

    def status(self) -> Any:
        return SimpleNamespace(valkey=SimpleNamespace(up=self.up))

    async def others(self) -> Any:
        return [node(name) for name in self._others]

    async def gone(self) -> Any:
        return [node(name, left=left) for name, left in self._gone.items()]

    # As the questions

    def serve(self, serve: Any) -> None:
        self.served = serve

    async def ask(self, name: str, request: PeerRequest, seconds: float) -> Any:
        self.asked.append((name, request.uri, seconds))
        answer = self._others[name].get(request.path, PeerFailed("no answer in time"))
        if isinstance(answer, Exception):
            raise answer
        return json.loads(json.dumps(answer))


def node(name: str, *, left: bool = False) -> NodeStatus:
    return NodeStatus(name, False, "", "", "", 0.0, 0.0, 0.0, 0, 0, "", NodeLife.GONE, 1e9, 0, 0, left)


class OwnOperations:
    """The listings of one node."""

    @route("GET", "/v1/destinations")
    async def destinations(self, limit: str = "", after: str | None = None) -> DestinationListing:
        """Destinations."""
        rows: Any = [destination("own.test")]
        return DestinationListing(rows, None, ())

    @route("POST", "/v1/destinations/{name}/pause")
    async def pause(self, name: str) -> Any:
        """Pause."""
        return {"name": name}


def fleet_calls(own: CallTable, fleet: Any) -> FleetCalls:
    return FleetCalls(own, fleet, fleet, "mx1", simulated_runtime())


def listing(*rows: Any) -> Any:
    return {"destinations": list(rows), "next": None, "nodes": []}


def test_each_row_says_its_node_and_each_silent_node_is_named() -> None:
    fleet = Fleet(
        {
            "mx2": {
                "/v1/destinations": listing(destination("own.test"), destination("a.test", node_id="mx9"))
            },
            "mx3": {},
            "mx4": {"/v1/destinations": {"destinations": [1]}},
            "mx5": {"/v1/destinations": RuntimeError("inside")},
        },
        gone={"left": True, "mx6": False},
    )
    calls = fleet_calls(CallTable(OwnOperations()), fleet)
    answer = value_of(calls.answer("GET", "/v1/destinations"))
    rows = [(row["name"], row["node_id"]) for row in answer["destinations"]]
    assert rows == [("a.test", "mx2"), ("own.test", "mx1"), ("own.test", "mx2")]
    problems = {each["node_id"]: each["problem"] for each in answer["nodes"]}
    assert list(problems) == ["mx1", "mx2", "mx3", "mx4", "mx5", "mx6"]
    assert [name for name, problem in problems.items() if not problem] == ["mx1", "mx2"]
    assert "vanished" in problems["mx6"]
    assert "inside" not in problems["mx5"]
    # Those that did not answer are waited for no longer than this, the next time.
    fleet.asked.clear()
    value_of(calls.answer("GET", "/v1/destinations"))
    assert {name: seconds for name, _, seconds in fleet.asked} == {
        "mx2": 1.0,
        "mx3": 0.3,
        "mx4": 0.3,
        "mx5": 0.3,
    }
    # Without Valkey no node is asked.
    fleet.asked.clear()
    fleet.up = False
    answer = value_of(calls.answer("GET", "/v1/destinations"))
    assert [each["answered"] for each in answer["nodes"]] == [True, False, False, False, False]
    assert fleet.asked == []
    # What changes something says where.
    assert value_of(calls.answer("POST", "/v1/destinations/x/pause")) == {"name": "x", "node_id": "mx1"}


def test_a_node_that_vanishes_is_named_at_once() -> None:
    fleet = Fleet({"mx2": {"/v1/destinations": listing()}})
    calls = fleet_calls(CallTable(OwnOperations()), fleet)
    assert len(value_of(calls.answer("GET", "/v1/destinations"))["nodes"]) == 2
    fleet._others, fleet._gone = {}, {"mx2": False}
    nodes = value_of(calls.answer("GET", "/v1/destinations"))["nodes"]
    assert [(each["node_id"], each["answered"]) for each in nodes] == [("mx1", True), ("mx2", False)]


def test_a_wrong_question_is_refused_before_a_node_is_asked() -> None:
    fleet = Fleet({"mx2": {}})
    calls = fleet_calls(CallTable(OwnOperations()), fleet)
    for uri in (
        "/v1/destinations?x=y",
        "/v1/destinations?%",
        "/v1/destinations?" + "&".join("a=b" for _ in range(99)),
    ):
        with pytest.raises(AdminRefusal):
            value_of(calls.answer("GET", uri))
    assert fleet.asked == []


def test_another_node_reads_what_speaks_for_the_fleet_and_nothing_else() -> None:
    fleet = Fleet({})
    fleet_calls(CallTable(OwnOperations()), fleet)
    assert value_of(fleet.served("mx2", PeerRequest.get("/v1/destinations", {"limit": "7"})))["next"] is None
    for request in (
        PeerRequest("POST", "/v1/destinations/x/pause"),
        PeerRequest("POST", "/v1/find"),
        PeerRequest.get("/v1/config", {}),
        PeerRequest.get("/v1/queue/ABC/content", {}),
    ):
        with pytest.raises(AdminRefusal, match="may not"):
            value_of(fleet.served("mx2", request))


def test_calls_beyond_a_number_do_not_wait_for_other_nodes() -> None:
    fleet: Any = Fleet({"mx2": {}})
    calls = fleet_calls(CallTable(OwnOperations()), fleet)
    value_of(calls.answer("GET", "/v1/destinations"))

    async def never(*_: Any) -> Any:
        await Deferred()

    fleet.ask = never
    waiting = [Deferred.fromCoroutine(calls.answer("GET", "/v1/destinations")) for _ in range(MOST_AT_ONCE)]
    answer = value_of(calls.answer("GET", "/v1/destinations"))
    assert [each["node_id"] for each in answer["nodes"]] == ["mx1", "mx2"]
    assert not any(each.called for each in waiting)


# The console


class HostileOperations(OwnOperations):
    """All listings of one node."""

    @route("GET", "/v1/find")
    async def find(self, text: str, limit: str = "", after: str | None = None) -> FoundPage:
        """Find."""
        rows: Any = [life("AAAA", 1.0, "mx1")]
        return FoundPage("mx1", True, rows, None, ())

    @route("GET", "/v1/queue/{queue_id}")
    async def show(self, queue_id: str) -> Any:
        """Not here, in the words of a worker."""
        raise AdminRefusal(HTTPStatus.NOT_FOUND, f"no {queue_id}")

    @route("GET", "/v1/refused")
    async def refused(self, count: str = "") -> RefusalListing:
        """Refused."""
        return RefusalListing((), 0, ())


def test_pages_name_the_node_of_each_row_and_those_that_did_not_answer(tmp_path: Path) -> None:
    refused = {
        "at": 1.0, "session_id": "s", "client_ip": "192.0.2.1", "listener": "mx", "helo": HOSTILE,
        "user": None, "verb": "RCPT", "sender": HOSTILE, "recipient": HOSTILE, "reply": HOSTILE,
        "policy": "p", "limit": "", "reason": HOSTILE,
    }  # fmt: skip
    found = {
        "node_id": "mx2",
        "history": True,
        "messages": [life("BBBB", 2.0, "mx2")],
        "next": None,
        "nodes": [],
    }
    answers = {
        "/v1/destinations": listing(destination("own.test"), destination("far.test")),
        "/v1/find": found,
        "/v1/refused": {"refused": [refused], "total": 7, "nodes": []},
    }
    fleet = Fleet({"mx2": answers, HOSTILE: {}})
    console = Console(tmp_path, fleet_calls(CallTable(HostileOperations()), fleet))
    for path in ("/destinations", "/find?text=x", "/refused"):
        reply = console.ask("GET", path, token=TOKENS["operator"])
        assert reply.status == 200, reply.text
        assert "mx2" in reply.text
        assert "Not in this list" in reply.text
        assert "<script>alert" not in reply.text
        assert "\u202e" not in reply.text
    # A message of another node, which this one has not in its queue.
    reply = console.ask("GET", "/messages/BBBB", token=TOKENS["operator"])
    assert (reply.status, "mx2" in reply.text) == (200, True)
    assert console.ask("GET", "/messages/CCCC", token=TOKENS["operator"]).status == 404
    page = console.ask("GET", "/destinations", token=TOKENS["operator"]).text
    # What can be done is done on this node.
    assert page.count('aria-label="Pause own.test"') == 1
    assert 'aria-label="Pause far.test"' not in page


def test_a_reader_of_a_trace_that_waits_has_an_answer_when_the_trace_is_ended() -> None:
    runtime = simulated_runtime()
    registry = ConnectionRegistry(runtime, 10)
    operations = TraceOperations(runtime, registry.trace, registry)
    name = value_of(operations.begin()).id
    pages: list[Any] = []
    Deferred.fromCoroutine(operations.read(name)).addBoth(pages.append)
    assert pages == []
    assert value_of(operations.end(name)).ended
    assert [page.ended for page in pages] == [True]


def test_the_calls_of_a_fleet_are_those_of_one_node() -> None:
    own = Administered(None).calls
    assert fleet_calls(own, Fleet({})).calls == own.calls
