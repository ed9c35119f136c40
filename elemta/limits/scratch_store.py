"""Counts in copies, so that a conversation can be explained: the real store is read and never written.

The first time that a key is asked for, what counts for it is copied. From then on the copy is charged, by the
same reference model that the real stores follow.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from zope.interface import implementer

from elemta.deferred_value import MaybeDeferred, Steps, run
from elemta.errors import StoreUnavailable
from elemta.limits.local_fallback import wait_alone
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

_MICROSECONDS = 1_000_000


@dataclass(slots=True, eq=False)
class _Copy:
    """A key's copy, and this node's time when it was made."""

    of: Snapshot
    made_at: float

    def now(self, seconds: float) -> int:
        """The time of the store that it is a copy of."""
        return self.of.now + int((seconds - self.made_at) * _MICROSECONDS)


@implementer(ILimitStore)
class ScratchStore:
    """A store over ``real`` that is thrown away after one conversation."""

    renewal: float | None = None

    def __init__(self, real: ILimitStore) -> None:
        self._real = real
        self._copies: dict[str, _Copy] = {}

    def seconds(self) -> float:
        return float(self._real.seconds())

    def acquire(self, requests: Sequence[Request]) -> MaybeDeferred[Decision]:
        return run(self._acquire(requests))

    def _acquire(self, requests: Sequence[Request]) -> Steps[Decision]:
        yield from self._copy(requests)
        copies = [self._copies[request.key] for request in requests]
        for request, copy in zip(requests, copies, strict=True):
            if copy.of.unavailable and request.spec.binding:
                raise StoreUnavailable("Valkey does not answer")
        both = list(zip(requests, copies, strict=True))
        denials: list[Denial] = []
        for turn in sorted(dict.fromkeys(copy.of.turn for copy in copies)):
            denials = [
                self._denial(request, copy, wait)
                for request, copy in both
                if copy.of.turn == turn and request.spec.binding and (wait := self._wait(request, copy)) != 0
            ]
            if denials:
                return Decision((), tuple(denials), granted=False)
        receipts = []
        for request, copy in both:
            if copy.of.allowed and request.spec.leases is None:
                # It passes, and is not counted.
                continue
            if request.spec.binding or (wait := self._wait(request, copy)) == 0:
                receipts.append(self._charge(request, copy))
            else:
                denials.append(self._denial(request, copy, wait))
        return Decision(tuple(receipts), tuple(denials))

    def _copy(self, requests: Sequence[Request]) -> Steps[None]:
        missing = [request for request in requests if request.key not in self._copies]
        if not missing:
            return
        found: Sequence[Snapshot] = yield self._real.snapshot(missing)
        for request, snapshot in zip(missing, found, strict=True):
            self._copies[request.key] = _Copy(snapshot, self.seconds())

    def _wait(self, request: Request, copy: _Copy) -> int | None:
        if copy.of.allowed:
            return 0
        spec, amount, now = copy.of.request.spec, request.amount, copy.now(self.seconds())
        if spec.leases is not None:
            if amount > spec.leases:
                return None
            return 0 if copy.of.leases + amount <= spec.leases else LEASE_SECONDS * _MICROSECONDS
        passes = copy.of.counter.earliest(now, amount)
        return None if passes is None else passes - now

    def _denial(self, request: Request, copy: _Copy, wait: int | None) -> Denial:
        if copy.of.alone:
            return Denial(request, wait_alone(wait, request), provisional=True)
        return Denial(request, wait)

    def _charge(self, request: Request, copy: _Copy) -> Receipt:
        now = copy.now(self.seconds())
        if request.spec.leases is not None:
            copy.of.leases += request.amount
        else:
            copy.of.counter.charge(now, request.amount)
        return Receipt(request, now, copy)

    def refund(self, receipts: Sequence[Receipt]) -> None:
        for receipt in receipts:
            if isinstance(receipt.origin, _Copy) and not receipt.settled and not receipt.is_lease:
                receipt.settled = True
                receipt.origin.of.counter.refund(receipt.at, receipt.request.amount)

    def release(self, receipts: Sequence[Receipt]) -> None:
        for receipt in receipts:
            if isinstance(receipt.origin, _Copy) and not receipt.settled and receipt.is_lease:
                receipt.settled = True
                receipt.origin.of.leases -= receipt.request.amount

    def renew(self) -> None:
        """Nothing: no other node knows these leases."""

    def peek(self, requests: Sequence[Request]) -> MaybeDeferred[tuple[Usage, ...]]:
        return run(self._peek(requests))

    def _peek(self, requests: Sequence[Request]) -> Steps[tuple[Usage, ...]]:
        yield from self._copy(requests)
        return tuple(self._usage(request) for request in requests)

    def _usage(self, request: Request) -> Usage:
        copy = self._copies[request.key]
        if copy.of.unavailable:
            raise StoreUnavailable("Valkey does not answer")
        wait = self._wait(request, copy)
        if copy.of.alone:
            wait = wait_alone(wait, request)
        return Usage(copy.of.request, self._used(copy), wait)

    def _used(self, copy: _Copy) -> tuple[int, ...]:
        if copy.of.request.spec.leases is not None:
            return (copy.of.leases,)
        return copy.of.counter.used(copy.now(self.seconds()))

    def look(self, requests: Sequence[Request]) -> Steps[dict[str, Usage | None]]:
        """What counts now for each key; None where that can't be known."""
        found: dict[str, Usage | None] = {}
        try:
            yield from self._copy(requests)
        except StoreUnavailable:
            return {request.key: None for request in requests}
        for request in requests:
            unknown = self._copies[request.key].of.unavailable
            found[request.key] = None if unknown else self._usage(request)
        return found

    def snapshot(self, requests: Sequence[Request]) -> MaybeDeferred[tuple[Snapshot, ...]]:
        found: MaybeDeferred[tuple[Snapshot, ...]] = self._real.snapshot(requests)
        return found

    def reset(self, spec: LimitSpec, identity: str) -> bool:
        """Forget the copy: it is made anew."""
        return self._copies.pop(f"{spec.name}:{identity}", None) is not None

    def top(self, spec: LimitSpec, count: int) -> MaybeDeferred[Ranking]:
        ranking: MaybeDeferred[Ranking] = self._real.top(spec, count)
        return ranking
