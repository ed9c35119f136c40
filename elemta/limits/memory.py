"""A store in this process: the reference model in a dictionary, with bounded memory.

Each limit has space for ``max_keys`` identities of its own, so that a flood of sender addresses can't crowd
out client addresses. A counter is only ever dropped when nothing in it counts any more: no number of new
identities resets a count. When a limit's space is full, an identity that has none yet shares a counter
with others, chosen by a secret hash; that refuses too early rather than too late. A shared counter is
handed on as a copy to an identity that finds space again, so its own past is in what it starts with.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence

from zope.interface import implementer

from elemta.limits.counter_table import CounterTable
from elemta.limits.store import (
    LEASE_SECONDS,
    Decision,
    Denial,
    ILimitStore,
    LimitSpec,
    Ranking,
    Receipt,
    Request,
    Snapshot,
    Usage,
)
from elemta.limits.window import WindowCounter
from elemta.runtime import HasSeconds

MAX_KEYS = 200_000
_MICROSECONDS = 1_000_000


class _CounterTables(dict[str, CounterTable]):
    """The table of each limit by its name, made when it is first needed."""

    def __init__(self, max_keys: int) -> None:
        super().__init__()
        self._max_keys = max_keys

    def __missing__(self, limit: str) -> CounterTable:
        table = self[limit] = CounterTable(self._max_keys)
        return table


@implementer(ILimitStore)
class LocalStore:
    """Limits counted by this process alone; gone when it ends.

    ``clock`` is anything whose ``seconds()`` only go forward: the time of day may be put forward, and then a
    window would end too early.
    """

    renewal: float | None = None

    def __init__(self, clock: HasSeconds, *, max_keys: int = MAX_KEYS) -> None:
        self._clock = clock
        self._tables = _CounterTables(max_keys)

    def seconds(self) -> float:
        return self._clock.seconds()

    def acquire(self, requests: Sequence[Request]) -> Decision:
        now = self._now()
        denials = [
            Denial(request, wait)
            for request in requests
            if request.spec.binding and (wait := self._wait(request, now)) != 0
        ]
        if denials:
            return Decision((), tuple(denials), granted=False)
        receipts = []
        for request in requests:
            if request.spec.binding or (wait := self._wait(request, now)) == 0:
                receipts.append(self._charge(request, now))
            else:
                denials.append(Denial(request, wait))
        return Decision(tuple(receipts), tuple(denials))

    def record(self, request: Request) -> Receipt:
        """Charge what passed elsewhere, whether it would pass here or not.

        A counter keeps no more than its limit, the newest: with those it answers as if it had kept all.
        """
        return self._charge(request, self._now(), newest=True)

    def mirror(self, receipts: Sequence[Receipt]) -> None:
        """Charge what a shared store granted, as :meth:`record` does, and note it in its receipts."""
        now = self._now()
        for receipt in receipts:
            receipt.mirror = self._charge(receipt.request, now, newest=True)

    def hold(self, request: Request) -> Receipt:
        """A lease that was given without asking."""
        return self.record(request)

    def refund(self, receipts: Sequence[Receipt]) -> None:
        for receipt in receipts:
            origin, request = receipt.origin, receipt.request
            if receipt.settled or not isinstance(origin, (CounterTable, WindowCounter)):
                continue
            receipt.settled = True
            if isinstance(origin, CounterTable):
                origin.refund(request.identity, receipt.at, request.amount)
            else:
                # A counter that was reset or dropped meanwhile has no identity any more: no harm.
                origin.refund(receipt.at, request.amount)

    def release(self, receipts: Sequence[Receipt]) -> None:
        for receipt in receipts:
            if receipt.settled or not receipt.is_lease:
                continue
            receipt.settled = True
            leases = self._tables[receipt.request.spec.name].leases
            left = leases.get(receipt.request.identity, 0) - receipt.request.amount
            if left > 0:
                leases[receipt.request.identity] = left
            else:
                leases.pop(receipt.request.identity, None)

    def renew(self) -> None:
        """Nothing: leases in memory can't outlive their node."""

    def peek(self, requests: Sequence[Request]) -> tuple[Usage, ...]:
        now = self._now()
        return tuple(self._usage(request, now) for request in requests)

    def snapshot(self, requests: Sequence[Request]) -> tuple[Snapshot, ...]:
        now = self._now()
        found = []
        for request in requests:
            table = self._tables[request.spec.name]
            leases = table.leases.get(request.identity, 0)
            found.append(Snapshot(request, now, table.copy_of(request), leases))
        return tuple(found)

    def reset(self, spec: LimitSpec, identity: str) -> bool:
        return self.forget(spec.name, identity)

    def forget(self, limit: str, identity: str) -> bool:
        """Like :meth:`reset`, for a caller that knows the limit by its name alone."""
        table = self._tables.get(limit)
        return table is not None and table.forget(identity)

    def top(self, spec: LimitSpec, count: int) -> Ranking:
        """Looks at every key of the limit, about a microsecond each: for people, not for sessions."""
        now = self._now()
        table = self._tables[spec.name]
        if spec.leases is None:
            first = table.fullest(count, now, spec.bounds)
        else:
            first = heapq.nlargest(count, table.leases, key=table.leases.__getitem__)
        usages = [self._usage(Request(spec, identity), now) for identity in first]
        return Ranking(tuple(usage for usage in usages if any(usage.used)))

    def size(self, spec: LimitSpec) -> int:
        """How many identities of a limit have a count of their own."""
        return len(self._tables[spec.name])

    def _now(self) -> int:
        return int(self._clock.seconds() * _MICROSECONDS)

    def _wait(self, request: Request, now: int) -> int | None:
        spec = request.spec
        table = self._tables[spec.name]
        if spec.leases is not None:
            if request.amount > spec.leases:
                return None
            fits = table.leases.get(request.identity, 0) + request.amount <= spec.leases
            return 0 if fits else LEASE_SECONDS * _MICROSECONDS
        passes = table.earliest(request, now)
        return None if passes is None else passes - now

    def _charge(self, request: Request, now: int, *, newest: bool = False) -> Receipt:
        table = self._tables[request.spec.name]
        if request.spec.leases is not None:
            table.leases[request.identity] = table.leases.get(request.identity, 0) + request.amount
            return Receipt(request, now)
        return Receipt(request, now, table.charge(request, now, newest=newest))

    def _usage(self, request: Request, now: int) -> Usage:
        table = self._tables[request.spec.name]
        wait = self._wait(request, now)
        if request.spec.leases is not None:
            return Usage(request, (table.leases.get(request.identity, 0),), wait)
        return Usage(request, table.used(request, now), wait)
