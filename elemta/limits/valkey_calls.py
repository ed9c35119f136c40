"""Many decisions in one call: those that were asked for in one turn of the reactor."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from twisted.internet.defer import Deferred
from twisted.python.failure import Failure

from elemta.errors import StoreUnavailable
from elemta.limits.store import Decision, Denial, Receipt, Request
from elemta.limits.valkey_leases import Leases
from elemta.limits.valkey_scripts import Definitions, Keys

DECISIONS = 32
"""How many decisions are in one call at most: more would save Valkey little. And"""
REQUESTS = 192
"""how many requests, unless a single decision has more: a call should not keep the server from others."""

_PASSES = -2
_NEVER = -1


class QueuedDecision:
    """One call of ``acquire``, or the part of it that one server decides."""

    __slots__ = ("deferred", "requests")

    def __init__(self, requests: Sequence[Request]) -> None:
        self.requests = requests
        self.deferred: Deferred[Decision] = Deferred()


def in_calls(decisions: list[QueuedDecision]) -> Iterator[list[QueuedDecision]]:
    """Cut a turn's decisions into calls."""
    call: list[QueuedDecision] = []
    requests = 0
    for decision in decisions:
        if call and (len(call) >= DECISIONS or requests + len(decision.requests) > REQUESTS):
            yield call
            call, requests = [], 0
        call.append(decision)
        requests += len(decision.requests)
    if call:
        yield call


class AcquireCall:
    """The decisions of one call, in the words of the script, and what its answer means to them."""

    __slots__ = ("_boot", "_decisions", "_first", "_leases", "args", "keys")

    def __init__(
        self,
        decisions: list[QueuedDecision],
        first: int,
        keys: Keys,
        definitions: Definitions,
        leases: Leases,
    ) -> None:
        self._decisions = decisions
        self._leases = leases
        self._first = first
        self._boot = leases.boot
        program: list[int] = []
        places: dict[bytes, int] = {}
        in_buckets = False
        self.keys: list[bytes] = []
        for decision in decisions:
            program.append(len(decision.requests))
            for request in decision.requests:
                self.keys.append(keys.of(request))
                definition = definitions.of(request.spec)
                in_buckets = in_buckets or definition.in_buckets
                program.append(places.setdefault(definition.words, len(places) + 1))
                program.append(request.amount)
        if in_buckets:
            # A slot has no identity; with a note a charge can be taken back though its answer is lost.
            self.keys.append(keys.note(f"{self._boot}/{first}", keys.tag(decisions[0].requests[0])))
        words = " ".join(map(str, program)).encode()
        self.args: list[bytes] = [self._boot.encode(), b"%d" % first, leases.node, words, *places]

    def __len__(self) -> int:
        """How many decisions are in it."""
        return len(self._decisions)

    def answered(self, reply: object, undo: Callable[[Sequence[Receipt]], None]) -> None:
        """Give each caller its decision; ``undo`` the charges of callers that went away."""
        if not isinstance(reply, list) or len(reply) <= sum(len(one.requests) for one in self._decisions):
            self.failed(Failure(StoreUnavailable("Valkey gave an answer of another shape")))
            return
        at, place = reply[0], 1
        for number, decision in enumerate(self._decisions, self._first):
            end = place + len(decision.requests)
            results = reply[place:end]
            place = end
            if any(results):
                answer = self._answer(decision.requests, results, at, number)
            else:
                answer = Decision(
                    tuple([self._receipt(request, at, number) for request in decision.requests])
                )
            if decision.deferred.called:
                undo(answer.receipts)
            else:
                decision.deferred.callback(answer)

    def failed(self, failure: Failure) -> None:
        for decision in self._decisions:
            if not decision.deferred.called:
                decision.deferred.errback(failure)

    def _answer(self, requests: Sequence[Request], results: list[int], at: int, number: int) -> Decision:
        both = list(zip(requests, results, strict=True))
        receipts = [self._receipt(request, at, number) for request, result in both if result == 0]
        granted = all(result == 0 for request, result in both if request.spec.binding)
        denials = [
            Denial(request, None if result == _NEVER else result)
            for request, result in both
            if result not in (0, _PASSES)
        ]
        return Decision(tuple(receipts), tuple(denials), granted)

    def _receipt(self, request: Request, at: int, number: int) -> Receipt:
        if request.spec.leases is None:
            return Receipt(request, at, number)
        return self._leases.granted(request, at, number)
