"""A store that counts in the cluster while it can, and by this node's share while it can't.

While the shared store answers, it decides; what it grants is noted in this node's memory as well. When it
fails a decision, or the breaker is open, the decision is made in that memory at once: each limit by its
``when_down``. ``local`` is this node's share, L ÷ live nodes, and begins with all that this node itself has
admitted in the window. So a node whose share is used up admits nothing more, and one that saw little of an
identity has no more than its share to give.

No session waits longer than the connection's own deadline, and with an open breaker nothing waits at all:
no Deferred is made.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from contextlib import suppress
from typing import Protocol, TypeVar, cast

from twisted.internet.defer import Deferred, fail
from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import implementer

from elemta.deferred_value import MaybeDeferred, Steps, handled, run, value_of
from elemta.errors import StoreUnavailable, StoreUndecided, ValkeyError, ValkeyFailure
from elemta.limits.failover import BreakerState, CountingMode, Failover, StoreLink
from elemta.limits.local_fallback import LocalFallback
from elemta.limits.memory import LocalStore
from elemta.limits.pending_returns import PendingReturns, ReturnStore, quietly
from elemta.limits.store import Decision, ILimitStore, LimitSpec, Ranking, Receipt, Request, Snapshot, Usage
from elemta.limits.window import Bound
from elemta.metrics import LimitMetrics

_log = Logger()

# No limit of a configuration can have this name.
_PROBE = LimitSpec("_probe", (Bound.of(100, 1_000_000),), binding=False)
_NOTHING = Decision()
# What says of Valkey itself that it does not answer, whatever it was asked.
_SILENT = frozenset({ValkeyFailure.DISCONNECTED, ValkeyFailure.DEADLINE})

T = TypeVar("T")


class RemoteStore(ReturnStore, Protocol):
    """The store that all nodes share. Its calls end within a deadline of their own, with StoreUnavailable."""

    @property
    def renewal(self) -> float | None: ...

    def acquire(self, requests: Sequence[Request]) -> MaybeDeferred[Decision]: ...

    def peek(self, requests: Sequence[Request]) -> MaybeDeferred[tuple[Usage, ...]]: ...

    def snapshot(self, requests: Sequence[Request]) -> MaybeDeferred[tuple[Snapshot, ...]]: ...

    def reset(self, spec: LimitSpec, identity: str) -> MaybeDeferred[bool]: ...

    def top(self, spec: LimitSpec, count: int) -> MaybeDeferred[Ranking]: ...


class ClusterNodes(Protocol):
    """The nodes, as far as counting needs them; :class:`elemta.limits.nodes.Nodes` is one."""

    @property
    def node_id(self) -> str: ...

    @property
    def live(self) -> int: ...

    def announce_reset(self, limit: str, identity: str) -> MaybeDeferred[None]: ...

    def on_reset(self, callback: Callable[[str, str], object]) -> None: ...


@implementer(ILimitStore)
class FailoverStore:
    """The shared store and this node's memory as one store. The module's docstring says which one counts.

    ``link`` tells whether the connection to the shared store is there. ``host_wide``: it counts every limit,
    those of one node too, because this process is one worker of that node.
    ``say`` logs a change of the mode, in place of what a node logs.
    """

    def __init__(
        self,
        clock: IReactorTime,
        link: StoreLink,
        remote: RemoteStore,
        local: LocalStore,
        *,
        nodes: ClusterNodes,
        metrics: LimitMetrics | None = None,
        host_wide: bool = False,
        say: Callable[[CountingMode, float, str, int], None] | None = None,
    ) -> None:
        self._remote = remote
        self._local = local
        self._nodes = nodes
        self._host_wide = host_wide
        self._returns = PendingReturns(remote)
        self._fallback = LocalFallback(
            local, lambda: nodes.live, self._returns.add_lease, host_wide=host_wide
        )
        self._failover = Failover(clock, link, self, metrics, say)
        nodes.on_reset(local.forget)

    @property
    def renewal(self) -> float | None:
        return self._remote.renewal

    @property
    def mode(self) -> CountingMode:
        return self._failover.mode

    @property
    def breaker(self) -> BreakerState:
        return self._failover.breaker

    @property
    def reason(self) -> str:
        """Why limits are counted by this node alone; empty while they are not."""
        return self._failover.reason

    @property
    def live_nodes(self) -> int:
        return self._nodes.live

    def start(self) -> None:
        """Count by this node alone, and look for the shared store from now on."""
        self._failover.start()

    def stop(self) -> None:
        """Look for it no more."""
        self._failover.stop()

    def joined(self, seconds: float) -> Deferred[bool]:
        """Fires when limits are counted in the cluster, or with False after so many seconds."""
        return self._failover.joined(seconds)

    def seconds(self) -> float:
        return self._local.seconds()

    # What is no limit

    def ask_cluster(self, how: Callable[[], Deferred[T]]) -> Deferred[T]:
        """Ask Valkey for something else than a limit, unless the breaker is open.

        Fails with StoreUnavailable. No answer in time counts for the breaker as that of a limit.
        """
        if not self._failover.cluster:
            return fail(StoreUnavailable(f"Valkey is not asked now: {self._failover.reason}"))
        return how().addCallbacks(self._other_answered, self._other_failed)

    def _other_answered(self, answer: T) -> T:
        self._failover.succeeded()
        return answer

    def _other_failed(self, failure: Failure) -> Failure:
        error = failure.value
        if isinstance(error, ValkeyError) and error.kind in _SILENT:
            self._failover.failed(error)
        return failure

    # Decisions

    def _shared(self, requests: Sequence[Request]) -> Sequence[Request]:
        """Those that the shared store counts."""
        if self._host_wide:
            return requests
        return [request for request in requests if request.spec.cluster]

    def _own(self, requests: Sequence[Request]) -> list[Request]:
        """Those that this node alone counts."""
        return [] if self._host_wide else [request for request in requests if not request.spec.cluster]

    def _is_shared(self, spec: LimitSpec) -> bool:
        return spec.cluster or self._host_wide

    def acquire(self, requests: Sequence[Request]) -> MaybeDeferred[Decision]:
        shared = self._shared(requests)
        if not shared:
            return self._local.acquire(requests)
        if not self._failover.cluster:
            return self._fallback.acquire(requests)
        before = _NOTHING
        if len(shared) != len(requests):
            before = self._local.acquire(self._own(requests))
            if not before.granted:
                return before
        return handled(self._remote.acquire(shared), self.decided, self._failed, requests, before)

    def decided(self, answer: Decision, requests: Sequence[Request], before: Decision) -> Decision:
        """The shared store answered; ``before`` is what this node alone had granted of the same decision."""
        del requests
        self._failover.succeeded()
        if not answer.granted:
            self.take_back(before.receipts)
            return answer
        self._local.mirror(answer.receipts)
        if before is _NOTHING:
            return answer
        return Decision((*before.receipts, *answer.receipts), (*before.denials, *answer.denials))

    def _failed(self, failure: Failure, requests: Sequence[Request], before: Decision) -> Decision:
        error = cast(BaseException, failure.value)
        undecided = isinstance(error, StoreUndecided)
        if isinstance(error, StoreUnavailable) and not undecided:
            return self.unanswered(requests, before, error)
        if undecided:
            self._failover.succeeded()
        self.take_back(before.receipts)
        raise error

    def unanswered(self, requests: Sequence[Request], before: Decision, error: BaseException) -> Decision:
        """It did not: the whole decision is made here. Raises StoreUnavailable where a limit is to defer."""
        self.take_back(before.receipts)
        self._failover.failed(error)
        return self._fallback.acquire(requests)

    def take_back(self, receipts: Collection[Receipt]) -> None:
        """Nothing needs these."""
        if receipts:
            quietly(self.refund, list(receipts))
            quietly(self.release, list(receipts))

    # Giving back

    def refund(self, receipts: Sequence[Receipt]) -> MaybeDeferred[None]:
        here, there = [], []
        for receipt in receipts:
            if receipt.settled or receipt.is_lease:
                continue
            here.append(receipt.mirror or receipt)
            if receipt.mirror is not None:
                there.append(receipt)
        self._local.refund(here)
        return self._return(there, self._remote.refund)

    def release(self, receipts: Sequence[Receipt]) -> MaybeDeferred[None]:
        here, there = [], []
        for receipt in receipts:
            if receipt.settled or not receipt.is_lease:
                continue
            here.append(receipt.mirror or receipt)
            known = self._returns.returned(receipt) if receipt.mirror is None else receipt
            if known is not None:
                there.append(known)
        self._local.release(here)
        return self._return(there, self._remote.release)

    def _return(
        self, receipts: list[Receipt], how: Callable[[Sequence[Receipt]], MaybeDeferred[None]]
    ) -> MaybeDeferred[None]:
        if not receipts:
            return None
        if not self._failover.cluster:
            self._returns.add(receipts)
            return None
        return run(self._ask(lambda: how(receipts)))

    def hold(self, request: Request) -> Receipt:
        """A lease that was given without asking: the shared store knows it from the next renewal on."""
        receipt = self._local.record(request)
        if self._is_shared(request.spec):
            self._returns.add_lease(receipt)
        return receipt

    def renew(self) -> MaybeDeferred[None]:
        """Prolong this node's leases, if there is a connection; the breaker handles failures."""
        return run(self._renew()) if self._failover.cluster else None

    def _renew(self) -> Steps[None]:
        # A single call that failed was decided here, without a change of mode.
        self._returns.hold()
        with suppress(StoreUnavailable):
            yield from self._ask(self._remote.renew)

    def _ask(self, how: Callable[[], MaybeDeferred[T]]) -> Steps[T]:
        """Ask the shared store; its failure counts for the failover."""
        try:
            answer: T = yield how()
        except StoreUnavailable as error:
            if not isinstance(error, StoreUndecided):
                self._failover.failed(error)
            raise
        return answer

    # The way back

    async def probe(self) -> None:
        """A real charge: a replica or a full memory would answer a mere question."""
        await value_of(self._remote.acquire([Request(_PROBE, self._nodes.node_id)]))

    async def synchronize(self) -> None:
        """Write what happened meanwhile, before any decision uses the shared store again."""
        await self._returns.settle()

    def resumed(self) -> None:
        """It counts again."""
        self._returns.settle_rest()

    # For people

    def peek(self, requests: Sequence[Request]) -> MaybeDeferred[tuple[Usage, ...]]:
        shared = self._shared(requests)
        if not shared:
            return self._local.peek(requests)
        if not self._failover.cluster:
            return self._fallback.peek(requests)
        return run(self._peek(requests, shared))

    def _peek(self, requests: Sequence[Request], shared: Sequence[Request]) -> Steps[tuple[Usage, ...]]:
        try:
            there: Sequence[Usage] = yield from self._ask(lambda: self._remote.peek(shared))
        except StoreUndecided:
            raise
        except StoreUnavailable:
            return self._fallback.peek(requests)
        self._failover.succeeded()
        known = {usage.request.key: usage for usage in (*there, *self._local.peek(self._own(requests)))}
        return tuple(known[request.key] for request in requests)

    def snapshot(self, requests: Sequence[Request]) -> MaybeDeferred[tuple[Snapshot, ...]]:
        shared = self._shared(requests)
        if not shared:
            return self._local.snapshot(requests)
        if not self._failover.cluster:
            return self._fallback.snapshot(requests)
        return run(self._snapshot(requests, shared))

    def _snapshot(
        self, requests: Sequence[Request], shared: Sequence[Request]
    ) -> Steps[tuple[Snapshot, ...]]:
        try:
            there: Sequence[Snapshot] = yield from self._ask(lambda: self._remote.snapshot(shared))
        except StoreUndecided:
            raise
        except StoreUnavailable:
            return self._fallback.snapshot(requests)
        self._failover.succeeded()
        for each in () if self._host_wide else there:
            # What only this node counts is decided before the shared store is asked.
            each.turn = 1
        known = {each.request.key: each for each in (*there, *self._local.snapshot(self._own(requests)))}
        return tuple(known[request.key] for request in requests)

    def reset(self, spec: LimitSpec, identity: str) -> MaybeDeferred[bool]:
        """Forget it here, in the shared store, and on every node that hears of it."""
        here = self._local.reset(spec, identity)
        if not self._is_shared(spec):
            return here
        if not self._failover.cluster:
            raise StoreUnavailable("Valkey does not answer, so only this node forgot what it had counted")
        return run(self._reset(spec, identity))

    def _reset(self, spec: LimitSpec, identity: str) -> Steps[bool]:
        there: bool = yield self._remote.reset(spec, identity)
        yield self._nodes.announce_reset(spec.name, identity)
        return there

    def top(self, spec: LimitSpec, count: int) -> MaybeDeferred[Ranking]:
        if not self._is_shared(spec):
            return self._local.top(spec, count)
        return self._remote.top(spec, count) if self._failover.cluster else self._fallback.top(spec, count)
