"""Limits over the channel: the same answers as the store itself, one bound, and what a death leaves."""

from __future__ import annotations

import gc
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pytest_twisted import ensureDeferred
from twisted.internet.defer import Deferred, fail
from twisted.internet.task import Clock
from twisted.internet.threads import deferToThread

from elemta.config import WhenValkeyIsDown
from elemta.errors import StoreUnavailable, StoreUndecided
from elemta.limits.failover_store import FailoverStore
from elemta.limits.memory import LocalStore
from elemta.limits.store import Decision, LimitSpec, Receipt, Request
from elemta.limits.window import Bound
from elemta.workers import channel as channel_module
from elemta.workers import limit_client, limit_server
from elemta.workers.channel import Channel, open_channel
from elemta.workers.limit_bodies import write
from elemta.workers.limit_client import CANCEL, DECIDE, PEEK, ChannelLimitStore, worker_store
from elemta.workers.limit_server import LimitServer
from tests.support.channels import ChannelPair, socket_channels
from tests.support.remote import Node, ScriptedFleet, pass_time
from tests.support.waiting import answered
from tests.support.worker_process import OPEN as HELD
from tests.support.worker_process import RATE as HOURLY

MINUTE = 60_000_000
DEADLINE = 0.05
RATE = LimitSpec("rate", (Bound.of(8, MINUTE),))
OPEN = LimitSpec("open", leases=8)
HERE = LimitSpec("here", (Bound.of(8, MINUTE),), cluster=False)
DEFER = LimitSpec("defer", (Bound.of(8, MINUTE),), when_down=WhenValkeyIsDown.DEFER)


def jane(spec: LimitSpec, amount: int = 1) -> Request:
    return Request(spec, "jane", amount)


class SlowStore(LocalStore):
    """Answers when the test says so."""

    def __init__(self, clock: Clock) -> None:
        super().__init__(clock)
        self.waiting: list[tuple[Deferred[Decision], Sequence[Request]]] = []
        self.slow = True

    def acquire(self, requests: Sequence[Request]) -> Any:
        if not self.slow:
            return super().acquire(requests)
        answer: Deferred[Decision] = Deferred()
        self.waiting.append((answer, requests))
        return answer

    def decide(self) -> None:
        waiting, self.waiting = self.waiting, []
        for answer, requests in waiting:
            answer.callback(super().acquire(requests))


class Host:
    """A supervisor with a store, and its workers, on one clock."""

    def __init__(self, store: Any = None, clock: Clock | None = None, *, workers: int = 2) -> None:
        self.clock = Clock() if clock is None else clock
        self.store = LocalStore(self.clock) if store is None else store
        self.server = LimitServer(self.store)
        self.fleet = ScriptedFleet("here", workers)
        self.pairs: list[ChannelPair] = []
        self.served: list[limit_server.ServedLimits] = []
        self.raw: list[ChannelLimitStore] = []
        for _ in range(workers):
            pair = ChannelPair(self.clock)
            self.served.append(self.server.serve(pair.supervisor))
            self.pairs.append(pair.open())
            self.raw.append(ChannelLimitStore(self.clock, pair.worker, DEADLINE))

    def carry(self, piece: int = 0) -> None:
        self.clock.advance(0)
        while sum(pair.carry(piece) for pair in self.pairs):
            self.clock.advance(0)

    def worker(self, number: int = 0) -> FailoverStore:
        """A worker's whole store, which counts at the supervisor."""
        store = worker_store(
            self.clock,
            self.pairs[number].worker,
            LocalStore(self.clock),
            nodes=self.fleet,  # type: ignore[arg-type]
            deadline=DEADLINE,
        )
        store.start()
        self.carry()
        if not isinstance(self.store, LocalStore):
            pass_time(self.clock, 0.002)
            self.carry()
            pass_time(self.clock, 0.002)
            self.carry()
        assert store.mode.value == "cluster"
        return store


def used(store: LocalStore, spec: LimitSpec) -> int:
    return store.peek([jane(spec)])[0].used[0]


# The same answers as the store itself


def meaning(answer: Decision) -> Any:
    return (
        answer.granted,
        [(receipt.request, receipt.at) for receipt in answer.receipts],
        [(denial.request, denial.wait, denial.provisional) for denial in answer.denials],
    )


def looks(found: Any) -> Any:
    return [
        (one.request, one.now, one.counter.bounds, one.counter.used(one.now), one.leases, one.turn)
        for one in found
    ]


@st.composite
def specs(draw: st.DrawFn, name: str) -> LimitSpec:
    if draw(st.integers(0, 3)) == 0:
        return LimitSpec(name, leases=draw(st.integers(0, 4)), cluster=draw(st.booleans()))
    bounds = [
        Bound.of(draw(st.integers(0, 6)), draw(st.integers(1, 3000)), weighted=draw(st.booleans()))
        for _ in range(draw(st.integers(1, 2)))
    ]
    return LimitSpec(name, tuple(bounds), binding=draw(st.sampled_from([True, True, False])))


@st.composite
def histories(draw: st.DrawFn) -> list[tuple[float, int, list[list[Request]], int, str]]:
    """Turns: how far time goes on, which worker asks, for what, what it gives back, what else it does."""
    known = [draw(specs(name)) for name in ("one", "two", "three")]
    request = st.builds(Request, st.sampled_from(known), st.sampled_from(["a", "\udcff"]), st.integers(1, 4))
    decision = st.lists(request, min_size=1, max_size=3, unique_by=lambda one: one.key)
    turn = st.tuples(
        st.sampled_from([0.0, 0.000001, 0.0005, 0.002]),
        st.integers(0, 2),
        st.lists(decision, min_size=1, max_size=4),
        st.integers(-1, 15),
        st.sampled_from(["", "", "", "reset", "top"]),
    )
    return draw(st.lists(turn, min_size=1, max_size=15))


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(history=histories(), piece=st.sampled_from([0, 0, 5]))
def test_workers_get_what_the_store_would_say(
    history: list[tuple[float, int, list[list[Request]], int, str]], piece: int
) -> None:
    host = Host(workers=3)
    model = LocalStore(host.clock)
    charged: list[tuple[int, Receipt, Receipt]] = []
    for step, worker, decisions, back, beside in history:
        host.clock.advance(step)
        store = host.raw[worker]
        later = [store.acquire(requests) for requests in decisions]
        own = [model.acquire(requests) for requests in decisions]
        seen = list({request.key: request for requests in decisions for request in requests}.values())
        looked = store.peek(seen), store.snapshot(seen)
        host.carry(piece)
        for answer, expected in zip(later, own, strict=True):
            got = answered(answer)
            assert meaning(got) == meaning(expected)
            pairs = zip(got.receipts, expected.receipts, strict=True)
            charged += [(worker, real, modelled) for real, modelled in pairs]
        assert answered(looked[0]) == model.peek(seen)
        assert looks(answered(looked[1])) == looks(model.snapshot(seen))
        if 0 <= back < len(charged):
            owner, real, modelled = charged[back]
            for _ in range(2):
                host.raw[owner].refund([real])
                host.raw[owner].release([real])
            model.refund([modelled])
            model.release([modelled])
            host.carry(piece)
        one = decisions[0][0]
        if beside == "reset":
            answer = store.reset(one.spec, one.identity)
            host.carry(piece)
            assert answered(answer) == model.reset(one.spec, one.identity)
        elif beside == "top":
            ranking = store.top(one.spec, 5)
            host.carry(piece)
            assert answered(ranking) == model.top(one.spec, 5)
    host.carry()
    for pair in host.pairs:
        pair.kill_worker()
    for _, _, modelled in charged:
        model.release([modelled])
    for spec in {receipt.request.spec.name: receipt.request.spec for _, _, receipt in charged}.values():
        assert host.store.top(spec, 5) == model.top(spec, 5)


@pytest.mark.parametrize("slow", [True, False])
@pytest.mark.parametrize("spec", [RATE, OPEN, HERE])
def test_of_more_than_the_limit_exactly_the_limit_passes(slow: bool, spec: LimitSpec) -> None:
    clock = Clock()
    store = SlowStore(clock)
    store.slow = False
    host = Host(store, clock)
    workers = [host.worker(0), host.worker(1)]
    store.slow = slow
    answers = [workers[number % 2].acquire([jane(spec)]) for number in range(13)]
    host.carry()
    store.decide()
    host.carry()
    assert sum(answered(answer).granted for answer in answers) == 8


def test_what_is_asked_in_one_turn_goes_in_one_frame() -> None:
    host = Host()
    sent = []
    ask = host.pairs[0].worker.ask
    host.pairs[0].worker.ask = lambda name, body, seconds: sent.append(name) or ask(name, body, seconds)  # type: ignore[method-assign,func-returns-value]
    answers = [host.raw[0].acquire([jane(RATE)]) for _ in range(8)]
    host.carry()
    assert sent == [DECIDE]
    host.raw[0].refund([answered(answer).receipts[0] for answer in answers])
    host.carry()
    assert sent == [DECIDE, DECIDE]
    assert used(host.store, RATE) == 0


# A worker that dies


@pytest.mark.parametrize("undecided", [False, True])
def test_the_leases_of_a_dead_worker_are_free_at_once_and_its_charges_stay(undecided: bool) -> None:
    clock = Clock()
    store = SlowStore(clock)
    store.slow = undecided
    host = Host(store, clock)
    for _ in range(3):
        host.raw[0].acquire([jane(OPEN), jane(RATE)]).addErrback(lambda _: None)
    other = host.raw[1].acquire([jane(OPEN)])
    host.carry()
    if not undecided:
        assert used(store, OPEN) == 4
    host.pairs[0].kill_worker()
    store.decide()
    host.carry()
    # Of what the dead worker never heard, nothing is charged: it has done nothing with it.
    assert (used(store, OPEN), used(store, RATE)) == (1, 0 if undecided else 3)
    assert answered(other).granted
    assert host.served[0].leases == host.served[0].charges == 0


# A supervisor that does not answer


def test_while_the_supervisor_stands_still_a_worker_decides_by_its_share_within_the_deadline() -> None:
    host = Host()
    workers = [host.worker(0), host.worker(1)]
    answers = [workers[0].acquire([jane(spec) for spec in (RATE, HERE, OPEN)]) for _ in range(2)]
    host.carry()
    assert all(answered(answer).granted for answer in answers)
    # From here on no octet arrives.
    for passed in range(6):
        later = [worker.acquire([jane(spec) for spec in (RATE, HERE, OPEN)]) for worker in workers]
        host.clock.advance(0)
        host.clock.advance(DEADLINE)
        # Half of 8 is 4 for each worker; the first has 2 of its own already.
        assert [answered(answer).granted for answer in later] == [passed < 2, passed < 4]
    assert [worker.mode.value for worker in workers] == ["local", "local"]
    # It is not asked any more.
    assert isinstance(workers[0].acquire([jane(RATE)]), Decision)
    # When it is back, what came too late is taken back, and the leases of this time are made known.
    host.carry()
    for _ in range(20):
        host.clock.advance(0.2)
        host.carry()
    assert [worker.mode.value for worker in workers] == ["cluster", "cluster"]
    assert (used(host.store, RATE), used(host.store, HERE)) == (2, 2)
    assert used(host.store, OPEN) == 8


def test_what_the_supervisor_decides_too_late_is_taken_back() -> None:
    clock = Clock()
    store = SlowStore(clock)
    host = Host(store, clock)
    answer = host.raw[0].acquire([jane(RATE), jane(OPEN)])
    host.carry()
    host.clock.advance(DEADLINE)
    assert isinstance(answered(answer), StoreUnavailable)
    host.carry()
    store.decide()
    host.carry()
    assert (used(store, RATE), used(store, OPEN)) == (0, 0)
    # The other order: decided, but the answer and the notice cross.
    store.slow = False
    answer = host.raw[0].acquire([jane(RATE), jane(OPEN)])
    host.clock.advance(0)
    host.clock.advance(DEADLINE)
    assert isinstance(answered(answer), StoreUnavailable)
    host.carry()
    assert (used(store, RATE), used(store, OPEN)) == (0, 0)
    assert host.served[0].leases == host.served[0].charges == 0


def test_a_cancelled_decision_is_given_back() -> None:
    host = Host()
    answer = host.raw[0].acquire([jane(RATE), jane(OPEN)])
    answer.addErrback(lambda _: None)
    answer.cancel()
    host.carry()
    assert (used(host.store, RATE), used(host.store, OPEN)) == (0, 0)


def test_that_the_supervisor_can_not_decide_is_no_failure_of_the_channel() -> None:
    host = Host()
    worker = host.worker()
    ask, peek = host.store.acquire, host.store.peek
    host.store.acquire = lambda requests: fail(StoreUnavailable("Valkey does not answer"))  # type: ignore[method-assign,assignment]
    host.store.peek = lambda requests: fail(StoreUnavailable("Valkey does not answer"))  # type: ignore[method-assign,assignment]
    for _ in range(5):
        answers = worker.acquire([jane(DEFER)]), worker.peek([jane(DEFER)])
        host.carry()
        assert [type(answered(answer)) for answer in answers] == [StoreUndecided, StoreUndecided]
    assert worker.mode.value == "cluster"
    host.store.acquire, host.store.peek = ask, peek  # type: ignore[method-assign]
    answer = worker.acquire([jane(DEFER)])
    host.carry()
    assert answered(answer).granted


def test_an_internal_error_fails_its_decision_and_no_other() -> None:
    host = Host()
    worker = host.worker()
    ask = host.store.acquire

    def broken(requests: Sequence[Request]) -> Decision:
        if requests[0].identity == "broken":
            raise ZeroDivisionError
        return ask(requests)

    host.store.acquire = broken  # type: ignore[method-assign]
    answers = worker.acquire([Request(RATE, "broken")]), worker.acquire([jane(RATE)])
    host.carry()
    assert not isinstance(answered(answers[0]), (Decision, StoreUnavailable))
    assert answered(answers[1]).granted
    assert host.pairs[0].worker.is_open


@pytest.mark.parametrize("away", [False, True])
def test_the_workers_of_a_node_of_a_fleet_have_one_share_of_it(away: bool) -> None:
    clock = Clock()
    fleet = LocalStore(clock)
    node = Node(clock, fleet, live=2)
    host = Host(node.store, clock)
    workers = [host.worker(0), host.worker(1)]
    if away:
        node.lose()
    for shared, passed in ((RATE, 4 if away else 8), (HERE, 8), (OPEN, 4 if away else 8)):
        answers = [workers[number % 2].acquire([jane(shared)]) for number in range(13)]
        for _ in range(4):
            clock.advance(0.001)
            host.carry()
        decisions = [answered(answer) for answer in answers]
        assert sum(decision.granted for decision in decisions) == passed
        # What one node of two says alone is provisional.
        denied = [denial for decision in decisions for denial in decision.denials]
        assert {denial.provisional for denial in denied} == {away and shared.cluster}
    host.pairs[0].kill_worker()
    host.pairs[1].kill_worker()
    pass_time(clock, 0.1)
    assert [used(store, OPEN) for store in (node.local, fleet)] == [0, 0]


# Resets


def test_a_reset_reaches_the_other_workers() -> None:
    host = Host()
    told: list[bytes] = []
    for pair in host.pairs:
        pair.worker.handle_notice(limit_server.FORGET, told.append)
    host.raw[0].acquire([jane(RATE, 8)])
    answer = host.raw[0].reset(RATE, "jane")
    host.carry()
    assert answered(answer) is True
    assert told == [write(["rate", "jane"])]
    assert used(host.store, RATE) == 0


# Bounds


def test_charges_are_kept_while_they_can_be_given_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limit_server, "MOST_CHARGES", 4)
    host = Host()
    answers = [host.raw[0].acquire([jane(RATE)]) for _ in range(6)]
    host.carry()
    assert host.served[0].charges == 4
    receipts = [answered(answer).receipts[0] for answer in answers]
    host.raw[0].refund(receipts[:3])
    host.carry()
    # The first two can't be given back any more.
    assert used(host.store, RATE) == 5
    answers.clear()
    receipts.clear()
    gc.collect()
    host.raw[0].acquire([jane(RATE)])
    host.carry()
    gc.collect()
    assert host.served[0].charges == 1


def test_a_worker_can_hold_a_bounded_number_of_leases(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limit_server, "MOST_LEASES", 3)
    host = Host()
    answers = [host.raw[0].acquire([jane(OPEN)]) for _ in range(5)]
    host.carry()
    assert [isinstance(answered(answer), Decision) for answer in answers] == [True] * 3 + [False] * 2


def test_a_channel_without_space_loses_nothing_that_is_given_back(monkeypatch: pytest.MonkeyPatch) -> None:
    host = Host()
    answers = [host.raw[0].acquire([jane(RATE), jane(OPEN)]) for _ in range(3)]
    host.carry()
    decisions = [answered(answer) for answer in answers]
    monkeypatch.setattr(channel_module, "MOST_UNDER_WAY", 0)
    for decision in decisions:
        host.raw[0].refund(decision.receipts)
        host.raw[0].release(decision.receipts)
    refused = host.raw[0].acquire([jane(RATE)])
    held = host.raw[0].hold(jane(OPEN))
    host.carry()
    assert isinstance(answered(refused), StoreUnavailable)
    monkeypatch.undo()
    host.clock.advance(limit_client.AGAIN_SECONDS)
    host.carry()
    assert (used(host.store, RATE), used(host.store, OPEN)) == (0, 1)
    host.raw[0].release([held])
    host.carry()
    assert used(host.store, OPEN) == 0


def test_more_specs_than_have_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("elemta.workers.limit_bodies.MOST_SPECS", 5)
    host = Host()
    for number in range(30):
        spec = LimitSpec(f"limit-{number % 9}", (Bound.of(8, MINUTE),))
        answers = [host.raw[0].acquire([jane(spec)]), host.raw[0].peek([jane(RATE)])]
        host.carry()
        assert answered(answers[0]).granted
    assert host.store.peek([jane(spec)])[0].used == (4,)


# Garbled bodies

_SPEC = ["rate", [[8, MINUTE, 1]], None, 7, "local"]
_GARBLED = {
    "no JSON": b"{",
    "another shape": b"[1]",
    "a batch of nothing": b"null",
    "an unknown operation": write([[True, []], [[9, 1, []]], []]),
    "a spec that was not sent": write([[True, []], [[0, 1, [[0, "jane", 1]]]], []]),
    "a spec before the first": write([[True, [_SPEC]], [[0, 1, [[-1, "jane", 1]]]], []]),
    "a window of nothing": write([[True, [["rate", [[8, 0, 1]], None, 7, "local"]]], [], []]),
    "an amount that is no number": write([[True, [_SPEC]], [[0, 1, [[0, "jane", "1"]]]], []]),
    "an amount below 0": write([[True, [_SPEC]], [[0, 1, [[0, "jane", -1]]]], []]),
    "an identity that is no text": write([[True, [_SPEC]], [[0, 1, [[0, 7, 1]]]], []]),
    "the same key twice": write([[True, [_SPEC]], [[0, 1, [[0, "jane", 1], [0, "jane", 1]]]], []]),
    "a number twice": write([[True, [_SPEC]], [[0, 1, [[0, "a", 1]]], [0, 1, [[0, "b", 1]]]], []]),
    "a number that is none": write([[True, [_SPEC]], [[1, ["x"]]], []]),
    "too deep": b"[" * 100_000,
}


@pytest.mark.parametrize("body", _GARBLED.values(), ids=_GARBLED)
def test_a_garbled_body_closes_the_channel_and_charges_nothing(body: bytes) -> None:
    host = Host()
    host.pairs[0].worker.ask(DECIDE, body, 1).addErrback(lambda _: None)
    host.carry()
    assert not host.pairs[0].supervisor.is_open
    assert host.pairs[1].supervisor.is_open
    assert used(host.store, RATE) == 0


@settings(max_examples=150, deadline=None)
@given(
    st.sampled_from([DECIDE, PEEK, CANCEL]),
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(max_size=3) | st.just(_SPEC),
        lambda inner: st.lists(inner, max_size=4),
        max_leaves=12,
    ),
)
def test_no_body_makes_the_supervisor_raise(name: str, words: Any) -> None:
    host = Host(workers=1)
    if name == CANCEL:
        host.pairs[0].worker.tell(name, write(words))
    else:
        host.pairs[0].worker.ask(name, write(words), 1).addErrback(lambda _: None)
    host.carry()


@pytest.mark.parametrize("answer", [b"nonsense", b"[]", b'["what"]', b"[[true,[[7,1]],[]]]", b"[[1,1,1]]"])
def test_a_garbled_answer_closes_the_channel_and_the_worker_decides(answer: bytes) -> None:
    host = Host()
    worker = host.worker()
    host.pairs[0].supervisor.handle(DECIDE, lambda _: answer)
    decision = worker.acquire([jane(RATE)])
    host.carry()
    assert answered(decision).granted
    assert not host.pairs[0].worker.is_open
    assert worker.mode.value == "local"


# Real sockets and processes


@ensureDeferred
async def test_over_a_real_socket_pair_exactly_the_limit_passes() -> None:
    from twisted.internet import reactor

    server = LimitServer(LocalStore(reactor))
    stores, channels = [], []
    for _ in range(2):
        supervisor, worker = socket_channels(reactor)
        server.serve(supervisor)
        channels += [supervisor, worker]
        stores.append(ChannelLimitStore(reactor, worker, 20.0))
    answers = [stores[number % 2].acquire([Request(HOURLY, "jane")]) for number in range(150)]
    granted = [(await answer).granted for answer in answers]
    assert sum(granted) == 100
    for channel in channels:
        channel.close()


@ensureDeferred
async def test_over_real_processes_one_bound_and_the_leases_of_a_killed_one() -> None:
    from twisted.internet import reactor

    store = LocalStore(reactor)
    server = LimitServer(store)
    workers, gone = [], []
    for number in range(2):
        ours, theirs = socket.socketpair()
        channel = Channel(reactor, f"worker {number}")
        server.serve(channel)
        end: Deferred[str] = Deferred()
        channel.on_close(end.callback)
        gone.append(end)
        open_channel(reactor, channel, ours)
        command = [sys.executable, "-m", "tests.support.worker_process", str(theirs.fileno()), "80"]
        workers.append(
            subprocess.Popen(
                command, pass_fds=[theirs.fileno()], stdout=subprocess.PIPE, cwd=Path(__file__).parents[2]
            )
        )
        theirs.close()
    try:
        lines = [await deferToThread(worker.stdout.readline) for worker in workers]  # type: ignore[union-attr]
        counts = [[int(word) for word in line.split()] for line in lines]
        # Of 160 charges 100, of 160 leases 40.
        assert [sum(column) for column in zip(*counts, strict=True)] == [100, 40]
        assert store.peek([Request(HELD, "jane")])[0].used == (40,)
        os.kill(workers[0].pid, signal.SIGKILL)
        await gone[0]
        assert store.peek([Request(HELD, "jane")])[0].used == (counts[1][1],)
        assert store.peek([Request(HOURLY, "jane")])[0].used == (100,)
    finally:
        for worker in workers:
            worker.kill()
            worker.wait()
            worker.stdout.close()  # type: ignore[union-attr]
    await gone[1]
