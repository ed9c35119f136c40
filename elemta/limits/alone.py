"""Decisions of a node that counts alone: each limit by what it says for that case."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from elemta.config import WhenValkeyIsDown
from elemta.errors import StoreUnavailable
from elemta.limits.memory import MemoryStore
from elemta.limits.share import Shares
from elemta.limits.store import Answer, Fill, Ranking, Receipt, Request, Shortfall, Terms

# What is larger than this node's share, though not than the limit, may pass when the cluster counts again.
_UNTIL_BACK = 10_000_000
_NOTHING = Answer()


class Alone:
    """Counts in this node's memory, where its own admissions of better times are noted already.

    ``live`` gives the number of live nodes. ``lend`` gets each lease that is given here though it
    is one of the cluster's.
    """

    def __init__(
        self, local: MemoryStore, live: Callable[[], int], lend: Callable[[Receipt], object]
    ) -> None:
        self._local = local
        self._live = live
        self._lend = lend
        self._shares = Shares()

    def acquire(self, requests: Sequence[Request]) -> Answer:
        """All or none, at once. Raises StoreUnavailable where a binding limit is to ``defer``."""
        asked: list[Request] = []
        allowed: list[Request] = []
        for request in requests:
            terms = request.terms
            if not terms.cluster:
                asked.append(request)
            elif terms.when_down is WhenValkeyIsDown.ALLOW:
                allowed.append(request)
            elif terms.when_down is WhenValkeyIsDown.DEFER and terms.binding:
                raise StoreUnavailable("Valkey does not answer")
            else:
                asked.append(self._share(request))
        whole = {request.key: request for request in requests}
        answer = self._local.acquire(asked) if asked else _NOTHING
        shortfalls = tuple(_provisional(shortfall, whole) for shortfall in answer.shortfalls)
        if not answer.granted:
            return Answer((), shortfalls, granted=False)
        receipts = list(answer.receipts)
        for receipt in receipts:
            receipt.request = whole[receipt.request.key]
        # An open connection is a fact that the cluster will want to know.
        receipts += [self._local.record(request) for request in allowed if request.terms.leases is not None]
        for receipt in receipts:
            if receipt.is_lease and receipt.request.terms.cluster:
                self._lend(receipt)
        return Answer(tuple(receipts), shortfalls)

    def _share(self, request: Request) -> Request:
        terms = self._shares.of(request.terms, self._live())
        return request if terms is request.terms else Request(terms, request.identity, request.amount)

    def peek(self, requests: Sequence[Request]) -> tuple[Fill, ...]:
        """How full each is for this node. Raises StoreUnavailable where a limit is to ``defer``."""
        return tuple(self._fill(request) for request in requests)

    def _fill(self, request: Request) -> Fill:
        terms = request.terms
        if not terms.cluster:
            return self._local.peek([request])[0]
        if terms.when_down is WhenValkeyIsDown.DEFER:
            raise StoreUnavailable("Valkey does not answer")
        if terms.when_down is WhenValkeyIsDown.ALLOW:
            return Fill(request, self._local.peek([request])[0].used, 0)
        (fill,) = self._local.peek([self._share(request)])
        return Fill(fill.request, fill.used, _wait_alone(fill.wait, request))

    def top(self, terms: Terms, count: int) -> Ranking:
        """What this node knows by itself; that is never complete."""
        share = self._share(Request(terms, "")).terms
        return Ranking(self._local.top(share, count).fills, complete=False)


def _provisional(shortfall: Shortfall, whole: dict[str, Request]) -> Shortfall:
    request = whole[shortfall.request.key]
    if not request.terms.cluster:
        return shortfall
    return Shortfall(request, _wait_alone(shortfall.wait, request), provisional=True)


def _wait_alone(wait: int | None, request: Request) -> int | None:
    """What is more than this node's share, though not more than the limit, is not impossible."""
    if wait is not None or not request.terms.cluster:
        return wait
    terms = request.terms
    limits = [bound.limit for bound in terms.bounds] if terms.leases is None else [terms.leases]
    return None if any(request.amount > limit for limit in limits) else _UNTIL_BACK
