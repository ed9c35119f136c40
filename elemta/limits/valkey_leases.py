"""The leases of this node: each is a member of a sorted set in Valkey, whose score is when it ends."""

from __future__ import annotations

import string
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

from twisted.internet.defer import Deferred, succeed

from elemta.errors import StoreUnavailable
from elemta.limits.store import LimitSpec, Receipt, Request
from elemta.limits.valkey_scripts import RENEW, Keys
from elemta.runtime import Randomness
from elemta.valkey.client import Valkey

RENEWED_AT_ONCE = 128
"""How many leases are in one call."""
CALLS_AT_ONCE = 32
BACKGROUND_DEADLINE = 1.0
"""Seconds for what no session waits for."""

_BOOT_ALPHABET = string.ascii_letters + string.digits
_BOOT_LENGTH = 7


def new_boot(randomness: Randomness) -> str:
    """A name for one run of one store, short because it is in every member: one in 3.5 million million."""
    return "".join(randomness.choice(_BOOT_ALPHABET) for _ in range(_BOOT_LENGTH))


@dataclass(slots=True, eq=False)
class Lease:
    """What this node holds of one key. ``released`` while a call that renews it is under way."""

    key: bytes
    member: bytes
    amount: int
    tag: str
    whose: tuple[str, str]
    released: bool = False


class Leases:
    """All leases of this node, those too that Valkey has not seen yet or has forgotten."""

    def __init__(
        self, valkey: Valkey, keys: Keys, node_id: str, boot: str, give_back: Callable[[Lease], None]
    ) -> None:
        self._valkey = valkey
        self._keys = keys
        self.node = node_id.encode()
        self.boot = boot
        self._held: dict[bytes, Lease] = {}
        self._amounts: Counter[tuple[str, str]] = Counter()
        self._renewing: set[Lease] = set()
        self._give_back = give_back

    def __len__(self) -> int:
        return len(self._held)

    def granted(self, request: Request, at: int, number: int) -> Receipt:
        """Hold what was asked for in decision ``number``, from now on."""
        member = b"%b/%b/%d" % (self.node, self.boot.encode(), number)
        whose = (request.spec.name, request.identity)
        lease = Lease(self._keys.of(request), member, request.amount, self._keys.tag(request), whose)
        # One decision may hold leases of several keys by one number.
        self._held[lease.key + b" " + member] = lease
        self._amounts[whose] += lease.amount
        return Receipt(request, at, lease)

    def held(self, spec: LimitSpec, identity: str) -> int:
        """How much of one key this node holds."""
        return self._amounts[spec.name, identity]

    def all(self) -> list[Lease]:
        return list(self._held.values())

    def drop(self, lease: Lease) -> None:
        """Hold it no longer, and say so as soon as no call that renews it is under way. Twice is once."""
        if self._held.pop(lease.key + b" " + lease.member, None) is None:
            return
        self._amounts[lease.whose] -= lease.amount
        if not self._amounts[lease.whose]:
            del self._amounts[lease.whose]
        if lease in self._renewing:
            lease.released = True
        else:
            self._give_back(lease)

    async def renew(self) -> None:
        """Write all leases to Valkey. Fails with StoreUnavailable if some could not be written."""
        calls = self._calls()
        trouble: StoreUnavailable | None = None
        while trouble is None or self._valkey.clustered:
            under_way = [(call, self._send(call)) for call in islice(calls, CALLS_AT_ONCE)]
            if not under_way:
                break
            for call, answer in under_way:
                try:
                    await answer
                except StoreUnavailable as error:
                    trouble = error
                self._renewed(call)
        if trouble is not None:
            raise trouble

    def _renewed(self, call: Sequence[Lease]) -> None:
        self._renewing.difference_update(call)
        for lease in call:
            if lease.released:
                self._give_back(lease)

    def _calls(self) -> Iterator[list[Lease]]:
        by_tag: dict[str, list[Lease]] = {}
        for lease in self._held.values():
            by_tag.setdefault(lease.tag, []).append(lease)
        for leases in by_tag.values():
            for start in range(0, len(leases), RENEWED_AT_ONCE):
                yield leases[start : start + RENEWED_AT_ONCE]

    def _send(self, call: list[Lease]) -> Deferred[Any]:
        # Some may have been released since the calls were made up.
        call[:] = [lease for lease in call if lease.key + b" " + lease.member in self._held]
        if not call:
            return succeed(None)
        self._renewing.update(call)
        args: list[bytes] = []
        for lease in call:
            args += (lease.member, b"%d" % lease.amount)
        keys = [lease.key for lease in call]
        return self._valkey.run(RENEW, keys, args, deadline=BACKGROUND_DEADLINE)
