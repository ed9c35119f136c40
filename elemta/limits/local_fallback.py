"""Decisions of a node that counts by itself: each limit by its when_valkey_is_down, and its share."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from elemta.config import WhenValkeyIsDown
from elemta.errors import StoreUnavailable
from elemta.limits.memory import LocalStore
from elemta.limits.store import Decision, Denial, LimitSpec, Ranking, Receipt, Request, Snapshot, Usage

_MOST_SHARES = 1000


class Shares:
    """Limits divided by the number of live nodes: L ÷ nodes, rounded down, but 1 at least where L is.

    A bound keeps its window and its grid, so that what was counted for the whole limit counts as it is.
    """

    __slots__ = ("_made", "_nodes")

    def __init__(self) -> None:
        self._nodes = 1
        # By the object rather than its value, which takes long to hash; the object is kept with it.
        self._made: dict[int, tuple[LimitSpec, LimitSpec]] = {}

    def of(self, spec: LimitSpec, nodes: int) -> LimitSpec:
        """The same limit for one of ``nodes`` nodes."""
        if nodes <= 1:
            return spec
        if nodes != self._nodes or len(self._made) >= _MOST_SHARES:
            self._nodes = nodes
            self._made = {}
        made = self._made.get(id(spec))
        if made is None:
            made = self._made[id(spec)] = (spec, _share(spec, nodes))
        return made[1]


def _share(spec: LimitSpec, nodes: int) -> LimitSpec:
    bounds = tuple(replace(bound, limit=share_of(bound.limit, nodes)) for bound in spec.bounds)
    leases = None if spec.leases is None else share_of(spec.leases, nodes)
    return replace(spec, bounds=bounds, leases=leases)


def share_of(limit: int, nodes: int) -> int:
    """What one of so many nodes may admit of a limit."""
    return max(1, limit // nodes) if limit else 0


# What is larger than this node's share, though not than the limit, may pass when the cluster counts again.
_UNTIL_BACK = 10_000_000
_NOTHING = Decision()


class LocalFallback:
    """Counts in this node's memory, where its own admissions of better times are noted already.

    ``live`` gives the number of live nodes. ``grant_lease`` gets each lease that is given here though it is
    one of the cluster's. ``host_wide``: limits of one node are divided, too, among its workers.
    """

    def __init__(
        self,
        local: LocalStore,
        live: Callable[[], int],
        grant_lease: Callable[[Receipt], object],
        *,
        host_wide: bool = False,
    ) -> None:
        self._host_wide = host_wide
        self._local = local
        self._live = live
        self._grant_lease = grant_lease
        self._shares = Shares()

    def acquire(self, requests: Sequence[Request]) -> Decision:
        """All or none, at once. Raises StoreUnavailable where a binding limit is to ``defer``."""
        asked: list[Request] = []
        allowed: list[Request] = []
        for request in requests:
            spec = request.spec
            if not self._is_divided(spec):
                asked.append(request)
            elif spec.when_down is WhenValkeyIsDown.ALLOW:
                allowed.append(request)
            elif spec.when_down is WhenValkeyIsDown.DEFER and spec.binding:
                raise StoreUnavailable("Valkey does not answer")
            else:
                asked.append(self._share(request))
        whole = {request.key: request for request in requests}
        answer = self._local.acquire(asked) if asked else _NOTHING
        denials = tuple(self._provisional(denial, whole) for denial in answer.denials)
        if not answer.granted:
            return Decision((), denials, granted=False)
        receipts = list(answer.receipts)
        for receipt in receipts:
            receipt.request = whole[receipt.request.key]
        # An open connection is a fact that the cluster will want to know.
        receipts += [self._local.record(request) for request in allowed if request.spec.leases is not None]
        for receipt in receipts:
            if receipt.is_lease and self._is_divided(receipt.request.spec):
                self._grant_lease(receipt)
        return Decision(tuple(receipts), denials)

    def _share(self, request: Request) -> Request:
        spec = self._shares.of(request.spec, self._live())
        return request if spec is request.spec else Request(spec, request.identity, request.amount)

    def peek(self, requests: Sequence[Request]) -> tuple[Usage, ...]:
        """How full each is for this node: the wait is by its share, the request is the one that was given.

        Raises StoreUnavailable where a limit is to ``defer``.
        """
        return tuple(self._usage(request) for request in requests)

    def _usage(self, request: Request) -> Usage:
        spec = request.spec
        if not self._is_divided(spec):
            return self._local.peek([request])[0]
        if spec.when_down is WhenValkeyIsDown.DEFER:
            raise StoreUnavailable("Valkey does not answer")
        if spec.when_down is WhenValkeyIsDown.ALLOW:
            return Usage(request, self._local.peek([request])[0].used, 0)
        (usage,) = self._local.peek([self._share(request)])
        return Usage(request, usage.used, wait_alone(usage.wait, request))

    def snapshot(self, requests: Sequence[Request]) -> tuple[Snapshot, ...]:
        """What this node alone would decide each by."""
        found = []
        for request in requests:
            divided = self._is_divided(request.spec)
            when_down = request.spec.when_down if divided else None
            share = self._share(request) if divided else request
            (copied,) = self._local.snapshot([share])
            copied.allowed = when_down is WhenValkeyIsDown.ALLOW
            copied.unavailable = when_down is WhenValkeyIsDown.DEFER
            copied.alone = divided
            found.append(copied)
        return tuple(found)

    def top(self, spec: LimitSpec, count: int) -> Ranking:
        """What this node knows by itself; that is never complete."""
        share = self._share(Request(spec, "")).spec
        found = self._local.top(share, count).usages
        usages = [Usage(Request(spec, each.request.identity), each.used, each.wait) for each in found]
        return Ranking(tuple(usages), complete=False)

    def _is_divided(self, spec: LimitSpec) -> bool:
        """Whether this process has only a share of the limit."""
        return spec.cluster or self._host_wide

    def _provisional(self, denial: Denial, whole: dict[str, Request]) -> Denial:
        request = whole[denial.request.key]
        if not self._is_divided(request.spec):
            return denial
        return Denial(request, wait_alone(denial.wait, request), provisional=True)


def wait_alone(wait: int | None, request: Request) -> int | None:
    """What is more than this node's share, though not more than the limit, is not impossible."""
    if wait is not None:
        return wait
    spec = request.spec
    limits = [bound.limit for bound in spec.bounds] if spec.leases is None else [spec.leases]
    return None if any(request.amount > limit for limit in limits) else _UNTIL_BACK
