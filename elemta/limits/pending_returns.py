"""What is written to the shared store when it is back: what was given back, and leases it never saw."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from itertools import islice
from typing import Protocol

from elemta.deferred_value import MaybeDeferred, Steps, run, value_of
from elemta.errors import StoreUnavailable
from elemta.limits.store import Receipt, Request

MAX_PENDING = 20_000
"""So much is kept to be given back later; beyond it the oldest refund is lost."""

_SLICE = 500


class ReturnStore(Protocol):
    """The part of the shared store that hears of it."""

    def refund(self, receipts: Sequence[Receipt]) -> MaybeDeferred[None]: ...

    def release(self, receipts: Sequence[Receipt]) -> MaybeDeferred[None]: ...

    def renew(self) -> MaybeDeferred[None]: ...

    def hold(self, request: Request) -> Receipt:
        """Take over a lease that was given without asking; the next ``renew`` tells of it."""


class PendingReturns:
    """Bounded: by :data:`MAX_PENDING`, and by the open connections of this node."""

    __slots__ = ("_pending", "_store", "_unknown_leases")

    def __init__(self, store: ReturnStore) -> None:
        self._store = store
        self._pending: OrderedDict[Receipt, None] = OrderedDict()
        # Leases that this node gave by itself, with what the shared store knows them as since it is back.
        self._unknown_leases: dict[Receipt, Receipt | None] = {}

    def add(self, receipts: Iterable[Receipt]) -> None:
        """These charges and leases of the shared store were given back while it was away."""
        pending = self._pending
        for receipt in receipts:
            pending[receipt] = None
        while len(pending) > MAX_PENDING:
            oldest, _ = pending.popitem(last=False)
            if oldest.is_lease:
                # Whether it is released or not, the store must not go on prolonging it.
                quietly(self._store.release, [oldest])

    def add_lease(self, receipt: Receipt) -> None:
        """This node gave a lease that the shared store knows nothing of."""
        self._unknown_leases[receipt] = None

    def returned(self, receipt: Receipt) -> Receipt | None:
        """Such a lease was given back; what is to be released in the shared store, if it knows it by now."""
        return self._unknown_leases.pop(receipt, None)

    async def settle(self) -> None:
        """Tell everything, and wait until it is known. Raises StoreUnavailable when that does not succeed."""
        while self._pending:
            batch = list(islice(self._pending, _SLICE))
            for receipt in batch:
                del self._pending[receipt]
            await value_of(self._store.release([receipt for receipt in batch if receipt.is_lease]))
            await value_of(self._store.refund([receipt for receipt in batch if not receipt.is_lease]))
        self.hold()
        await value_of(self._store.renew())

    def settle_rest(self) -> None:
        """Tell what came while :meth:`settle` was under way; leases with the next renewal."""
        pending, self._pending = list(self._pending), OrderedDict()
        quietly(self._store.release, [receipt for receipt in pending if receipt.is_lease])
        quietly(self._store.refund, [receipt for receipt in pending if not receipt.is_lease])
        self.hold()

    def hold(self) -> None:
        """Hand over the leases that this node gave by itself, so that the next renewal tells of them."""
        for receipt, known in self._unknown_leases.items():
            if known is None:
                self._unknown_leases[receipt] = self._store.hold(receipt.request)


def quietly(how: Callable[[Sequence[Receipt]], MaybeDeferred[None]], receipts: Sequence[Receipt]) -> None:
    """Give back as well as it goes: what is lost makes a limit stricter for a while, and no more."""
    if receipts:
        run(_return(how, receipts))


def _return(
    how: Callable[[Sequence[Receipt]], MaybeDeferred[None]], receipts: Sequence[Receipt]
) -> Steps[None]:
    with suppress(StoreUnavailable):
        yield how(receipts)
