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
from typing import Protocol, cast

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import implementer

from elemta.errors import StoreUnavailable
from elemta.limits.alone import Alone
from elemta.limits.arrears import Arrears, Creditor, quietly, trap_unavailable
from elemta.limits.breaker import BreakerState
from elemta.limits.memory import MemoryStore
from elemta.limits.store import Answer, Fill, ILimitStore, MaybeLater, Ranking, Receipt, Request, Terms
from elemta.limits.switch import CountingMode, Link, ModeObserver, Switch
from elemta.limits.window import Bound

_log = Logger()

# No limit of a configuration can have this name.
_PROBE = Terms("_probe", (Bound.of(100, 1_000_000),), binding=False)
_NOTHING = Answer()


class Remote(Creditor, Protocol):
    """The store that all nodes share. Its calls end within a deadline of their own, with StoreUnavailable."""

    @property
    def renewal(self) -> float | None: ...

    def acquire(self, requests: Sequence[Request]) -> MaybeLater[Answer]: ...

    def peek(self, requests: Sequence[Request]) -> MaybeLater[tuple[Fill, ...]]: ...

    def reset(self, terms: Terms, identity: str) -> MaybeLater[bool]: ...

    def top(self, terms: Terms, count: int) -> MaybeLater[Ranking]: ...


class Fleet(Protocol):
    """The nodes, as far as counting needs them; :class:`elemta.limits.nodes.Nodes` is one."""

    @property
    def node_id(self) -> str: ...

    @property
    def live(self) -> int: ...

    def announce_reset(self, limit: str, identity: str) -> MaybeLater[None]: ...

    def on_reset(self, callback: Callable[[str, str], object]) -> None: ...


@implementer(ILimitStore)
class ClusterStore:
    """The shared store and this node's memory behind one face. See the module's words.

    ``link`` tells whether the connection to the shared store is there.
    """

    def __init__(
        self,
        clock: IReactorTime,
        link: Link,
        remote: Remote,
        local: MemoryStore,
        *,
        nodes: Fleet,
        observer: ModeObserver | None = None,
    ) -> None:
        self._remote = remote
        self._local = local
        self._nodes = nodes
        self._arrears = Arrears(remote)
        self._alone = Alone(local, lambda: nodes.live, self._arrears.lend)
        self._switch = Switch(clock, link, self, observer)
        nodes.on_reset(local.forget)

    @property
    def renewal(self) -> float | None:
        return self._remote.renewal

    @property
    def mode(self) -> CountingMode:
        return self._switch.mode

    @property
    def breaker(self) -> BreakerState:
        return self._switch.breaker

    @property
    def reason(self) -> str:
        """Why limits are counted by this node alone; empty while they are not."""
        return self._switch.reason

    @property
    def live_nodes(self) -> int:
        return self._nodes.live

    def start(self) -> None:
        """Count by this node alone, and look for the shared store from now on."""
        self._switch.start()

    def stop(self) -> None:
        """Look for it no more."""
        self._switch.stop()

    def joined(self, patience: float) -> Deferred[bool]:
        """Fires when limits are counted in the cluster, or with False after ``patience`` seconds."""
        return self._switch.joined(patience)

    def seconds(self) -> float:
        return self._local.seconds()

    # Decisions

    def acquire(self, requests: Sequence[Request]) -> MaybeLater[Answer]:
        shared = [request for request in requests if request.terms.cluster]
        if not shared:
            return self._local.acquire(requests)
        if not self._switch.cluster:
            return self._alone.acquire(requests)
        before = _NOTHING
        if len(shared) != len(requests):
            before = self._local.acquire(_own(requests))
            if not before.granted:
                return before
        question = _Question(self, requests, before)
        try:
            answer = self._remote.acquire(shared)
        except StoreUnavailable as error:
            return self.unanswered(requests, before, error)
        if isinstance(answer, Deferred):
            answer.addCallbacks(question.answered, question.failed)
            return question.answer
        return self.decided(before, answer)

    def decided(self, before: Answer, answer: Answer) -> Answer:
        """The shared store answered; ``before`` is what this node alone had granted of the same decision."""
        self._switch.succeeded()
        if not answer.granted:
            self.take_back(before.receipts)
            return answer
        for receipt in answer.receipts:
            receipt.mirror = self._local.record(receipt.request)
        if before is _NOTHING:
            return answer
        return Answer((*before.receipts, *answer.receipts), (*before.shortfalls, *answer.shortfalls))

    def unanswered(self, requests: Sequence[Request], before: Answer, error: BaseException) -> Answer:
        """It did not: the whole decision is made here. Raises StoreUnavailable where a limit is to defer."""
        self.take_back(before.receipts)
        self._switch.failed(error)
        return self._alone.acquire(requests)

    def take_back(self, receipts: Collection[Receipt]) -> None:
        """Nobody wants these."""
        if receipts:
            quietly(self.refund, list(receipts))
            quietly(self.release, list(receipts))

    # Giving back

    def refund(self, receipts: Sequence[Receipt]) -> MaybeLater[None]:
        here, there = [], []
        for receipt in receipts:
            if receipt.settled or receipt.is_lease:
                continue
            here.append(receipt.mirror or receipt)
            if receipt.mirror is not None:
                there.append(receipt)
        self._local.refund(here)
        return self._return(there, self._remote.refund)

    def release(self, receipts: Sequence[Receipt]) -> MaybeLater[None]:
        here, there = [], []
        for receipt in receipts:
            if receipt.settled or not receipt.is_lease:
                continue
            here.append(receipt.mirror or receipt)
            known = self._arrears.returned(receipt) if receipt.mirror is None else receipt
            if known is not None:
                there.append(known)
        self._local.release(here)
        return self._return(there, self._remote.release)

    def _return(
        self, receipts: list[Receipt], how: Callable[[Sequence[Receipt]], MaybeLater[None]]
    ) -> MaybeLater[None]:
        if not receipts:
            return None
        if not self._switch.cluster:
            self._arrears.owe(receipts)
            return None
        try:
            answer = how(receipts)
        except StoreUnavailable as error:
            self._switch.failed(error)
            raise
        if isinstance(answer, Deferred):
            answer.addErrback(self._failed)
        return answer

    def renew(self) -> MaybeLater[None]:
        """Prolong this node's leases, if there is anybody to tell; failures are the breaker's business."""
        if not self._switch.cluster:
            return None
        # A single call that failed was decided here, without a change of mode.
        self._arrears.hold()
        try:
            answer = self._remote.renew()
        except StoreUnavailable as error:
            self._switch.failed(error)
            return None
        if isinstance(answer, Deferred):
            return answer.addErrback(self._failed).addErrback(trap_unavailable)
        return None

    def _failed(self, failure: Failure) -> Failure:
        if failure.check(StoreUnavailable) is not None:
            self._switch.failed(cast(BaseException, failure.value))
        return failure

    # The way back

    async def probe(self) -> None:
        """A real charge: a replica or a full memory would answer a mere question."""
        answer = self._remote.acquire([Request(_PROBE, self._nodes.node_id)])
        if isinstance(answer, Deferred):
            await answer

    async def come_back(self) -> None:
        """Tell what happened meanwhile, before anybody counts on the shared store again."""
        await self._arrears.settle()

    def came_back(self) -> None:
        """It counts again."""
        self._arrears.settle_rest()

    # For people

    def peek(self, requests: Sequence[Request]) -> MaybeLater[tuple[Fill, ...]]:
        shared = [request for request in requests if request.terms.cluster]
        if not shared:
            return self._local.peek(requests)
        if not self._switch.cluster:
            return self._alone.peek(requests)
        try:
            answer = self._remote.peek(shared)
        except StoreUnavailable as error:
            self._switch.failed(error)
            return self._alone.peek(requests)

        def seen(there: Sequence[Fill]) -> tuple[Fill, ...]:
            self._switch.succeeded()
            known = {fill.request.key: fill for fill in (*there, *self._local.peek(_own(requests)))}
            return tuple(known[request.key] for request in requests)

        def unseen(failure: Failure) -> tuple[Fill, ...]:
            failure.trap(StoreUnavailable)
            return self._alone.peek(requests)

        if not isinstance(answer, Deferred):
            return seen(answer)
        return cast("Deferred[tuple[Fill, ...]]", answer.addErrback(self._failed).addCallbacks(seen, unseen))

    def reset(self, terms: Terms, identity: str) -> MaybeLater[bool]:
        """Forget it here, in the shared store, and on every node that hears of it."""
        here = self._local.reset(terms, identity)
        if not terms.cluster:
            return here
        if not self._switch.cluster:
            raise StoreUnavailable("Valkey does not answer, so only this node forgot what it had counted")

        def announced(there: bool) -> MaybeLater[bool]:
            told = self._nodes.announce_reset(terms.name, identity)
            return told.addCallback(lambda _: there) if isinstance(told, Deferred) else there

        answer = self._remote.reset(terms, identity)
        return answer.addCallback(announced) if isinstance(answer, Deferred) else announced(answer)

    def top(self, terms: Terms, count: int) -> MaybeLater[Ranking]:
        if not terms.cluster:
            return self._local.top(terms, count)
        return self._remote.top(terms, count) if self._switch.cluster else self._alone.top(terms, count)


class _Question:
    """One decision that the shared store is asked about. Whoever asked may go away meanwhile."""

    __slots__ = ("_abandoned", "_before", "_requests", "_store", "answer")

    def __init__(self, store: ClusterStore, requests: Sequence[Request], before: Answer) -> None:
        self._store = store
        self._requests = requests
        self._before = before
        self._abandoned = False
        self.answer: Deferred[Answer] = Deferred(self._abandon)

    def _abandon(self, _answer: Deferred[Answer]) -> None:
        self._abandoned = True

    def answered(self, answer: Answer) -> None:
        decided = self._store.decided(self._before, answer)
        if self._abandoned:
            self._store.take_back(decided.receipts)
        else:
            self.answer.callback(decided)

    def failed(self, failure: Failure) -> None:
        error = cast(BaseException, failure.value)
        if not isinstance(error, StoreUnavailable):
            self._store.take_back(self._before.receipts)
            self._trouble(failure)
            return
        try:
            decided = self._store.unanswered(self._requests, self._before, error)
        except StoreUnavailable:
            self._trouble(Failure())
            return
        if self._abandoned:
            self._store.take_back(decided.receipts)
        else:
            self.answer.callback(decided)

    def _trouble(self, failure: Failure) -> None:
        if not self._abandoned:
            self.answer.errback(failure)
        elif failure.check(StoreUnavailable) is None:
            _log.failure("a limit that nobody waits for failed", failure, event="limits.trouble")


def _own(requests: Sequence[Request]) -> list[Request]:
    return [request for request in requests if not request.terms.cluster]
