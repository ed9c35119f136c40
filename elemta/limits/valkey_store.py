"""The store in Valkey, where all nodes of a cluster count together, by the server's clock.

What is asked for in one turn of the reactor goes in one call of a script, which decides one request after
the other, each all or none. A call that is full is sent before the turn ends: Valkey decides it while this
process asks for the rest. On Valkey Cluster a decision whose keys are on several servers is
reserved on all of them at the same time, and what was reserved is given back when one refuses.

When a call gets no answer in time, what it may have charged is taken back as soon as Valkey answers again.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import suppress
from typing import Any, TypeVar

from twisted.internet.defer import Deferred, DeferredList, fail, succeed
from twisted.python.failure import Failure
from zope.interface import implementer

from elemta.errors import StoreUnavailable, ValkeyError
from elemta.limits.store import Decision, ILimitStore, LimitSpec, Ranking, Receipt, Request, Snapshot, Usage
from elemta.limits.valkey_calls import DECISIONS, AcquireCall, QueuedDecision, in_calls
from elemta.limits.valkey_leases import BACKGROUND_DEADLINE, Lease, Leases, new_boot
from elemta.limits.valkey_returns import Cancellations, Handover, PendingReturn, Returns, TimerClock
from elemta.limits.valkey_scripts import ACQUIRE, Definitions, Keys
from elemta.limits.valkey_views import Views
from elemta.runtime import Runtime
from elemta.valkey.client import Valkey

RENEWAL_SECONDS = 3.0
"""Leases live for 30 s, so those of a dead node are gone 27 to 30 s after its death."""

MOST_WAITING = 2048
"""So many decisions may wait for Valkey's answer: twice as many as a node has connections by default.

A decision beyond that fails at once: at the pace at which one process decides they are
answered in the time that a session has, and those behind them would not be.
"""

T = TypeVar("T")


@implementer(ILimitStore)
class ValkeyStore:
    """Limits counted in Valkey. Every answer comes later, or fails with StoreUnavailable.

    ``prefix`` is what all keys begin with; ``node_id`` names this node in its leases.
    """

    renewal: float | None = RENEWAL_SECONDS

    def __init__(self, valkey: Valkey, *, prefix: str, node_id: str, runtime: Runtime) -> None:
        self._valkey = valkey
        reactor: TimerClock = runtime.reactor
        self._runtime = runtime
        self._reactor = reactor
        self.boot = new_boot(runtime.randomness)
        self._keys = Keys(prefix, clustered=valkey.clustered)
        self._definitions = Definitions()
        self._returns = Returns(reactor, valkey)
        self._cancellations = Cancellations(reactor, valkey)
        self._leases = Leases(valkey, self._keys, node_id, self.boot, self._give_back_lease)
        self._views = Views(valkey, self._keys, self._definitions)
        self._waiting: dict[str, list[QueuedDecision]] = {}
        self._open = 0
        self._sending = False
        self._turn: Any = None
        self._renewing = False
        self._again: list[Deferred[None]] = []
        self._last = 0
        valkey.on_change(self._changed)

    def seconds(self) -> float:
        return self._runtime.monotonic()

    # Charges.

    def acquire(self, requests: Sequence[Request]) -> Deferred[Decision]:
        """A caller that cancels the Deferred does not want it any more: what is granted then is given back.

        Fails with ValkeyError when :data:`MOST_WAITING` decisions wait already.
        """
        if not requests:
            return succeed(Decision())
        if self._open >= MOST_WAITING:
            return fail(self._valkey.overloaded("too many decisions are under way"))
        parts = []
        full = False
        for tag, some in self._by_tag(requests):
            decision = QueuedDecision(some)
            parts.append(decision.deferred)
            waiting = self._waiting.setdefault(tag, [])
            waiting.append(decision)
            full = full or len(waiting) >= DECISIONS
        self._open += len(parts)
        if full and not self._sending:
            self._send()
        elif self._turn is None:
            self._turn = self._reactor.callLater(0, self._send)
        return parts[0] if len(parts) == 1 else self._reserve(requests, parts)

    def refund(self, receipts: Sequence[Receipt]) -> Deferred[None] | None:
        """Fails with StoreUnavailable when what was charged stays charged, or may."""
        due = [receipt for receipt in receipts if not receipt.settled and isinstance(receipt.origin, int)]
        if not due:
            return None
        handover = Handover(len(due))
        for receipt in due:
            receipt.settled = True
        self._returns.add([self._entry(receipt, handover) for receipt in due])
        return handover.deferred

    def _entry(self, receipt: Receipt, handover: Handover) -> PendingReturn:
        request = receipt.request
        return PendingReturn(
            key=self._keys.of(request),
            member=f"{self.boot}/{receipt.origin}".encode(),
            amount=request.amount,
            at=receipt.at,
            tag=self._keys.tag(request),
            repeatable=not self._definitions.of(request.spec).in_buckets,
            handover=handover,
        )

    def _by_tag(self, requests: Sequence[Request]) -> Iterable[tuple[str, Sequence[Request]]]:
        """Which requests are for the same server."""
        if not self._valkey.clustered:
            return (("", requests),)
        by_tag: dict[str, list[Request]] = {}
        for request in requests:
            by_tag.setdefault(self._keys.tag(request), []).append(request)
        return by_tag.items()

    def _send(self) -> None:
        """At the end of the turn, and before it where a call is full."""
        self._turn = None
        waiting, self._waiting = self._waiting, {}
        # A call that fails at once ends decisions in here. What their callers ask next waits for the turn.
        self._sending = True
        try:
            for decisions in waiting.values():
                for some in in_calls(decisions):
                    first = self._last + 1
                    self._last += len(some)
                    call = AcquireCall(some, first, self._keys, self._definitions, self._leases)
                    answer = self._valkey.run(ACQUIRE, call.keys, call.args)
                    answer.addCallbacks(
                        self._answered, self._unanswered, callbackArgs=(call,), errbackArgs=(call,)
                    )
        finally:
            self._sending = False

    def _answered(self, reply: object, call: AcquireCall) -> None:
        self._open -= len(call)
        call.answered(reply, self._undo)

    def _unanswered(self, failure: Failure, call: AcquireCall) -> None:
        self._open -= len(call)
        error = failure.value
        if isinstance(error, ValkeyError) and error.maybe_done:
            self._cancellations.add(call.keys, call.args[:4])
        call.failed(failure)

    def _reserve(self, requests: Sequence[Request], parts: list[Deferred[Decision]]) -> Deferred[Decision]:
        """Ask several servers at the same time, and give back what was granted when one refuses or fails."""
        decided: Deferred[Decision] = Deferred()
        DeferredList(parts, consumeErrors=True).addCallback(self._reserved, requests, decided)
        return decided

    def _reserved(
        self,
        results: list[tuple[bool, Any]],
        requests: Sequence[Request],
        decided: Deferred[Decision],
    ) -> None:
        answers = [answer for _, answer in results if isinstance(answer, Decision)]
        troubles = [failure for _, failure in results if isinstance(failure, Failure)]
        refused = [answer for answer in answers if not answer.granted]
        receipts = [receipt for answer in answers for receipt in answer.receipts]
        if refused or troubles or decided.called:
            self._undo(receipts)
        if decided.called:
            return
        if refused:
            denials = tuple(short for answer in refused for short in answer.denials)
            decided.callback(Decision((), denials, granted=False))
        elif troubles:
            decided.errback(troubles[0])
        else:
            order = {request.key: place for place, request in enumerate(requests)}
            receipts.sort(key=lambda receipt: order[receipt.request.key])
            denials = tuple(short for answer in answers for short in answer.denials)
            decided.callback(Decision(tuple(receipts), denials))

    def _undo(self, receipts: Sequence[Receipt]) -> None:
        """Give back what no caller got; what can't be given back makes limits stricter for a window."""
        self.release(receipts)
        given_back = self.refund(receipts)
        if given_back is not None:
            given_back.addErrback(_never_mind)

    # Leases.

    def release(self, receipts: Sequence[Receipt]) -> None:
        """Never fails: a lease that can't be removed from Valkey ends by itself, as it is renewed no more."""
        for receipt in receipts:
            if not receipt.settled and isinstance(receipt.origin, Lease):
                receipt.settled = True
                self._leases.drop(receipt.origin)

    def hold(self, request: Request) -> Receipt:
        """A lease without asking, because Valkey is away; from the next renewal on it counts."""
        self._last += 1
        return self._leases.granted(request, 0, self._last)

    def held(self, spec: LimitSpec, identity: str) -> int:
        """How much of a key this node itself holds."""
        return self._leases.held(spec, identity)

    def renew(self) -> Deferred[None]:
        """Prolong all leases, and write those again that Valkey has forgotten.

        Fails with StoreUnavailable when some could not be renewed.
        """
        if self._renewing:
            # Leases may have come since that began.
            again: Deferred[None] = Deferred()
            self._again.append(again)
            return again
        self._renewing = True
        return Deferred.fromCoroutine(self._leases.renew()).addBoth(self._renewed)

    def _renewed(self, outcome: T) -> T:
        self._renewing = False
        if self._again:
            waiting, self._again = self._again, []

            def tell(outcome: Any) -> None:
                for again in waiting:
                    again.callback(outcome)

            self.renew().addBoth(tell)
        return outcome

    def _changed(self, up: bool) -> None:
        if up and len(self._leases):
            # Another server, or the same with nothing in it.
            self.renew().addErrback(_never_mind)

    async def leave(self) -> None:
        """Before the node disconnects: give all leases back, and what else is waiting to be."""
        for lease in self._leases.all():
            self._leases.drop(lease)
        self._cancellations.stop()
        if self._renewing:
            # What it tells of may only be given back after it; nothing is left to tell of after that.
            with suppress(StoreUnavailable):
                await self.renew()
        await self._returns.settled()

    def _give_back_lease(self, lease: Lease) -> None:
        handover = Handover(1)
        handover.deferred.addErrback(_never_mind)
        self._returns.add(
            [PendingReturn(lease.key, lease.member, lease.amount, 0, lease.tag, True, handover)]
        )

    # Looking.

    def peek(self, requests: Sequence[Request]) -> Deferred[tuple[Usage, ...]]:
        return Deferred.fromCoroutine(self._views.peek(requests))

    def snapshot(self, requests: Sequence[Request]) -> Deferred[tuple[Snapshot, ...]]:
        return Deferred.fromCoroutine(self._views.snapshot(requests))

    def top(self, spec: LimitSpec, count: int) -> Deferred[Ranking]:
        """Looks at a bounded number of keys and says whether there were more: for people only."""
        return Deferred.fromCoroutine(self._views.top(spec, count))

    def reset(self, spec: LimitSpec, identity: str) -> Deferred[bool]:
        if spec.leases is not None:
            return succeed(False)
        key = self._keys.of(Request(spec, identity))
        answer = self._valkey.command("DEL", key, key + b"~", key=key, deadline=BACKGROUND_DEADLINE)
        return answer.addCallback(bool)


def _never_mind(failure: Failure) -> None:
    failure.trap(StoreUnavailable)
