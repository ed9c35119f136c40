"""Looks at what Valkey counts, for logins and for people; charges nothing."""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Sequence
from typing import Any

from twisted.internet.defer import Deferred

from elemta.errors import StoreUnavailable
from elemta.limits.store import LimitSpec, Ranking, Request, Snapshot, Usage
from elemta.limits.valkey_leases import BACKGROUND_DEADLINE
from elemta.limits.valkey_scripts import PEEK, SERIES, Definitions, Keys
from elemta.limits.window import WindowCounter
from elemta.valkey import Script
from elemta.valkey.client import Valkey

LOOKED_AT = 20_000
"""How many keys ``top`` looks at before it gives up on the others."""
_AT_ONCE = 32
_CALLS_AT_ONCE = 16
_NEVER = -1


class Views:
    """How full keys are."""

    def __init__(self, valkey: Valkey, keys: Keys, definitions: Definitions) -> None:
        self._valkey = valkey
        self._keys = keys
        self._definitions = definitions

    async def peek(self, requests: Sequence[Request], *, deadline: float | None = None) -> tuple[Usage, ...]:
        """The usage of each request, in order. Fails with StoreUnavailable."""
        usages: dict[int, Usage] = {}
        calls = iter(self._calls(requests))
        while under_way := [
            (places, self._send([requests[place] for place in places], deadline))
            for _, places in zip(range(_CALLS_AT_ONCE), calls, strict=False)
        ]:
            trouble: StoreUnavailable | None = None
            for places, answer in under_way:
                try:
                    found = self._fills([requests[place] for place in places], await answer)
                except StoreUnavailable as error:
                    trouble = error
                    continue
                usages.update(zip(places, found, strict=True))
            if trouble is not None:
                raise trouble
        return tuple(usages[place] for place in range(len(requests)))

    async def snapshot(self, requests: Sequence[Request]) -> tuple[Snapshot, ...]:
        """Copies of what counts for each request, in order. Fails with StoreUnavailable."""
        found: dict[int, Snapshot] = {}
        for places in self._calls(requests):
            some = [requests[place] for place in places]
            reply = await self._send(some, None, SERIES)
            found.update(zip(places, self._copies(some, reply), strict=True))
        return tuple(found[place] for place in range(len(requests)))

    def _copies(self, requests: Sequence[Request], reply: list[int]) -> list[Snapshot]:
        numbers = iter(reply)
        now, copies = next(numbers), []
        for request in requests:
            bounds = request.spec.bounds
            charges: list[list[tuple[int, int]]] = [[] for _ in bounds]
            leases = 0
            if request.spec.leases is not None:
                leases = next(numbers)
            else:
                for place in self._definitions.of(request.spec).order:
                    charges[place] = [(next(numbers), next(numbers)) for _ in range(next(numbers))]
            copies.append(Snapshot(request, now, WindowCounter.of_charges(bounds, charges), leases))
        return copies

    async def top(self, spec: LimitSpec, count: int) -> Ranking:
        """The fullest keys of a limit, among :data:`LOOKED_AT` of them. Fails with StoreUnavailable."""
        found = await self._valkey.scan(match=self._keys.pattern(spec), count=512, limit=LOOKED_AT)
        identities = dict.fromkeys(self._keys.identity(spec, key) for key in found.keys)
        requests = [Request(spec, identity) for identity in identities if identity is not None]
        usages = await self.peek(requests, deadline=BACKGROUND_DEADLINE)
        fullest = heapq.nlargest(count, usages, key=_fullness)
        return Ranking(tuple(usage for usage in fullest if any(usage.used)), found.complete)

    def _calls(self, requests: Sequence[Request]) -> Iterable[list[int]]:
        by_tag: dict[str, list[int]] = {}
        for place, request in enumerate(requests):
            by_tag.setdefault(self._keys.tag(request), []).append(place)
        for places in by_tag.values():
            for start in range(0, len(places), _AT_ONCE):
                yield places[start : start + _AT_ONCE]

    def _send(
        self, requests: Sequence[Request], deadline: float | None, script: Script = PEEK
    ) -> Deferred[Any]:
        words: dict[bytes, int] = {}
        program: list[int] = []
        for request in requests:
            definition = self._definitions.of(request.spec)
            program += (words.setdefault(definition.words, len(words) + 1), request.amount)
        keys = [self._keys.of(request) for request in requests]
        return self._valkey.run(script, keys, [" ".join(map(str, program)), *words], deadline=deadline)

    def _fills(self, requests: Sequence[Request], reply: list[int]) -> list[Usage]:
        usages, place = [], 0
        for request in requests:
            wait = None if reply[place] == _NEVER else reply[place]
            order = (0,) if request.spec.leases is not None else self._definitions.of(request.spec).order
            used = [0] * len(order)
            for number, bound in enumerate(order, place + 1):
                used[bound] = reply[number]
            place += 1 + len(order)
            usages.append(Usage(request, tuple(used), wait))
        return usages


def _fullness(usage: Usage) -> float:
    spec = usage.request.spec
    limits = [bound.limit for bound in spec.bounds] if spec.leases is None else [spec.leases]
    return max(
        (used / limit if limit else 1.0 for used, limit in zip(usage.used, limits, strict=True)), default=0.0
    )
