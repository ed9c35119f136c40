"""A store that nodes share, behind a network that can be slow, silent or down, in memory and on a Clock."""

from __future__ import annotations

import enum
from collections.abc import Callable, Sequence
from typing import Any

from twisted.internet.defer import Deferred, fail
from twisted.internet.task import Clock

from elemta.errors import StoreUnavailable
from elemta.limits.failover_store import FailoverStore
from elemta.limits.memory import LocalStore
from elemta.limits.store import LEASE_SECONDS, Decision, LimitSpec, Receipt, Request
from elemta.metrics import LimitMetrics
from tests.support.metrics import record

DEADLINE = 0.05
LATENCY = 0.001


class Network(enum.Enum):
    """What happens to a call: it is answered, fails at once, or fails at the deadline."""

    UP = "up"
    DOWN = "down"
    SILENT = "silent"


class ScriptedLink:
    """Whether there is a connection."""

    def __init__(self, *, up: bool = True) -> None:
        self.up = up
        self._callbacks: list[Callable[[bool], None]] = []

    def on_change(self, callback: Callable[[bool], None]) -> None:
        self._callbacks.append(callback)

    def set(self, up: bool) -> None:
        if up is not self.up:
            self.up = up
            for callback in self._callbacks:
                callback(up)


class ScriptedRemote:
    """One node's way to the store. A lease that was not asked for is written with the next renewal, and one

    whose release is lost ends by itself, because it is not renewed. What is granted to a caller that went
    away is taken back.
    """

    renewal: float | None = 3.0

    def __init__(self, clock: Clock, server: LocalStore) -> None:
        self.clock = clock
        self.server = server
        self.network = Network.UP
        self.latency = LATENCY
        self.calls: list[str] = []
        self._unwritten: dict[Receipt, None] = {}

    def asked(self, name: str) -> int:
        return self.calls.count(name)

    def acquire(self, requests: Sequence[Request]) -> Any:
        return self._call("acquire", requests)

    def refund(self, receipts: Sequence[Receipt]) -> Any:
        return self._call("refund", receipts) if receipts else None

    def release(self, receipts: Sequence[Receipt]) -> None:
        self.calls.append("release")
        for receipt in receipts:
            if receipt in self._unwritten:
                del self._unwritten[receipt]
                receipt.settled = True
        written = [receipt for receipt in receipts if not receipt.settled]
        lost = 0 if self.network is Network.UP else LEASE_SECONDS
        self.clock.callLater(lost, self.server.release, written)

    def hold(self, request: Request) -> Receipt:
        receipt = Receipt(request, 0, "not asked for")
        self._unwritten[receipt] = None
        return receipt

    def renew(self) -> Any:
        written, self._unwritten = self._unwritten, {}

        def write() -> None:
            for receipt in written:
                if not receipt.settled:
                    self.server.record(receipt.request)

        return self._later("renew", write)

    def peek(self, requests: Sequence[Request]) -> Any:
        return self._call("peek", requests)

    def reset(self, terms: LimitSpec, identity: str) -> Any:
        return self._call("reset", terms, identity)

    def top(self, terms: LimitSpec, count: int) -> Any:
        return self._call("top", terms, count)

    def _call(self, name: str, *arguments: Any) -> Deferred[Any]:
        return self._later(name, lambda: getattr(self.server, name)(*arguments))

    def _later(self, name: str, effect: Callable[[], Any]) -> Deferred[Any]:
        self.calls.append(name)
        if self.network is Network.DOWN:
            return fail(StoreUnavailable("not connected"))
        answer: Deferred[Any] = Deferred()
        if self.network is Network.SILENT:
            self.clock.callLater(DEADLINE, lambda: answer.errback(StoreUnavailable("no answer in time")))
        else:
            self.clock.callLater(self.latency, self._arrive, answer, effect)
        return answer

    def _arrive(self, answer: Deferred[Any], effect: Callable[[], Any]) -> None:
        result = effect()
        if not answer.called:
            answer.callback(result)
        elif isinstance(result, Decision):
            self.server.refund([receipt for receipt in result.receipts if not receipt.is_lease])
            self.server.release(result.receipts)


class ScriptedFleet:
    """As many nodes as the test says."""

    def __init__(self, node_id: str, live: int) -> None:
        self.node_id = node_id
        self.live = live
        self.announced: list[tuple[str, str]] = []
        self.callbacks: list[Callable[[str, str], object]] = []

    def announce_reset(self, limit: str, identity: str) -> None:
        self.announced.append((limit, identity))

    def on_reset(self, callback: Callable[[str, str], object]) -> None:
        self.callbacks.append(callback)


class Node:
    """A node with its store, in the mode ``cluster`` unless told otherwise."""

    def __init__(
        self, clock: Clock, server: LocalStore, name: str = "a", live: int = 1, *, up: bool = True
    ) -> None:
        self.clock = clock
        self.link = ScriptedLink(up=up)
        self.remote = ScriptedRemote(clock, server)
        self.local = LocalStore(clock)
        self.fleet = ScriptedFleet(name, live)
        self.metrics = LimitMetrics()
        self.modes = record(self.metrics, "mode_changes")
        self.store = FailoverStore(
            clock, self.link, self.remote, self.local, nodes=self.fleet, metrics=self.metrics
        )
        self.store.start()
        pass_time(clock, 0.01)

    @property
    def mode(self) -> str:
        return self.store.mode.value

    def lose(self, network: Network = Network.DOWN) -> None:
        """The store is away, and the connection notices."""
        self.remote.network = network
        self.link.set(False)

    def regain(self, seconds: float = 2.0) -> None:
        """It is back; after ``seconds`` the node counts with the others again."""
        self.remote.network = Network.UP
        self.link.set(True)
        pass_time(self.clock, seconds)

    def ask(self, *requests: Request) -> Decision:
        """The answer, within the deadline."""
        answer = self.store.acquire(requests)
        if isinstance(answer, Deferred):
            got: list[Any] = []
            answer.addBoth(got.append)
            pass_time(self.clock, DEADLINE)
            assert got, "no answer within the deadline"
            assert isinstance(got[0], Decision), got[0]
            return got[0]
        return answer

    def give_back(self, *answers: Decision) -> None:
        receipts = [receipt for answer in answers for receipt in answer.receipts]
        refunded = self.store.refund(receipts)
        if refunded is not None:
            refunded.addErrback(lambda failure: failure.trap(StoreUnavailable))
        self.store.release(receipts)
        pass_time(self.clock, 0.01)


def pass_time(clock: Clock, seconds: float) -> None:
    """Let time go by in the steps in which something is due."""
    end = clock.seconds() + seconds
    while (due := min((call.getTime() for call in clock.getDelayedCalls()), default=end)) < end:
        clock.advance(max(0.0, due - clock.seconds()))
    clock.advance(end - clock.seconds())


def used(server: LocalStore, terms: LimitSpec, identity: str) -> int:
    """What counts there against the first bound, or the leases."""
    return server.peek([Request(terms, identity)])[0].used[0]
