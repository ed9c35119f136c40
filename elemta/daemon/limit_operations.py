"""What an administrator sees of the limits, and what the administrator may reset."""

from __future__ import annotations

import heapq
import math
from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar

from elemta.config import Rate, Scope
from elemta.daemon.cluster import Membership, RemoteRefusal
from elemta.daemon.components import Components
from elemta.deferred_value import value_of
from elemta.errors import StoreUnavailable
from elemta.limits import Rule
from elemta.limits.lookup import requests_for
from elemta.limits.store import Ranking, Request, Usage
from elemta.ops.admin_operations import BoundFill, LimitFill, LimitListing, LimitReset, LimitTerms

T = TypeVar("T")

_MICROSECONDS = 1_000_000
_NodesByKey = Mapping[str, Sequence[RemoteRefusal]]


class LimitService:
    """The limits of the assembly of the moment, as the whole fleet counts them."""

    def __init__(self, components: Callable[[], Components], fleet: Membership) -> None:
        self._components = components
        self._fleet = fleet

    @property
    def _rules(self) -> tuple[Rule, ...]:
        return self._components().limiter.rules

    def all(self) -> Sequence[LimitTerms]:
        return [_terms(rule) for rule in self._rules]

    async def top(self, limit: str | None, count: int) -> LimitListing:
        rules = [rule for rule in self._rules if limit is None or rule.name == limit]
        if limit is not None and not rules:
            raise KeyError(limit)
        rankings: list[Ranking] = [await value_of(self._fleet.store.top(rule.spec, count)) for rule in rules]
        fills = {fill.request.key: fill for ranking in rankings for fill in ranking.usages}
        refused = await self._refused([rule.name for rule in rules])
        # What another node refuses by itself is in no counter that this one can see.
        missing = self._requests_of(refused, known=fills)
        fills.update((fill.request.key, fill) for fill in await self._fills(missing))
        shown = [self._shown(fill, refused) for fill in fills.values()]
        complete = all(ranking.complete for ranking in rankings)
        return LimitListing(tuple(heapq.nlargest(count, shown, key=_urgency)), self._counted_in, complete)

    async def show(self, identity: str) -> LimitListing:
        requests = requests_for(self._rules, identity)
        fills = await self._fills(requests)
        refused = await self._refused([request.spec.name for request in requests])
        shown = [self._shown(fill, refused) for fill in fills]
        return LimitListing(
            tuple(fill for fill in shown if fill.refused_by or any(bound.used for bound in fill.bounds)),
            self._counted_in,
            complete=len(fills) == len(requests),
        )

    async def _fills(self, requests: Sequence[Request]) -> Sequence[Usage]:
        """How full these are, without those that are unknown while Valkey is away."""
        try:
            return await value_of(self._fleet.store.peek(requests))
        except StoreUnavailable:
            if len(requests) <= 1:
                return ()
        return [fill for request in requests for fill in await self._fills([request])]

    async def reset(self, identity: str) -> Sequence[LimitReset]:
        limiter = self._components().limiter
        # Open connections are facts, and stay.
        requests = [each for each in requests_for(limiter.rules, identity) if each.spec.leases is None]
        used = {fill.request.key: any(fill.used) for fill in await self._fills(requests)}
        refused = await self._refused([request.spec.name for request in requests])
        done = []
        trouble: StoreUnavailable | None = None
        for request in requests:
            # This node may know something of what is unknown while Valkey is away.
            was_counted = used.get(request.key, True) or request.key in refused
            if was_counted:
                try:
                    await self._reset(request)
                except StoreUnavailable as error:
                    # This node has forgotten all the same; and so it shall with the others.
                    trouble = error
            done.append(LimitReset(request.spec.name, request.identity, was_counted))
        if trouble is not None:
            raise trouble
        return done

    async def _reset(self, request: Request) -> None:
        await value_of(self._components().limiter.reset(request.spec.name, request.identity))
        await self._fleet.announce_reset(request)

    @property
    def _counted_in(self) -> str:
        return self._fleet.status().mode

    async def _refused(self, names: Sequence[str]) -> _NodesByKey:
        """What nodes refuse now without asking, by the limit and the identity."""
        found: dict[str, list[RemoteRefusal]] = {}
        for refusal in await self._fleet.refusals():
            if refusal.limit in names:
                found.setdefault(refusal.key, []).append(refusal)
        return found

    def _requests_of(self, refused: _NodesByKey, known: Mapping[str, Usage]) -> list[Request]:
        by_name = {rule.name: rule for rule in self._rules}
        return [
            Request(by_name[refusals[0].limit].spec, refusals[0].identity)
            for key, refusals in refused.items()
            if key not in known
        ]

    def _shown(self, fill: Usage, refused: _NodesByKey) -> LimitFill:
        terms = fill.request.spec
        rule = next(rule for rule in self._rules if rule.spec.name == terms.name)
        by = refused.get(fill.request.key, ())
        wait = math.inf if fill.wait is None else fill.wait / _MICROSECONDS
        return LimitFill(
            limit=terms.name,
            identity=fill.request.identity,
            counts=rule.counts.value,
            mode=rule.mode.value,
            bounds=_bounds(rule, fill.used),
            retry_after=max([wait, *(refusal.wait for refusal in by)]),
            refused_by=tuple(refusal.node_id for refusal in by),
        )


def _urgency(fill: LimitFill) -> tuple[bool, float]:
    """Identities that are refused come first, then those nearest to it."""
    return fill.retry_after > 0, max((bound.used / bound.limit for bound in fill.bounds), default=0.0)


def _bounds(rule: Rule, used: Sequence[int]) -> tuple[BoundFill, ...]:
    if rule.spec.leases is not None:
        return (BoundFill(used[0], rule.spec.leases, None),)
    return tuple(
        BoundFill(count, bound.limit, bound.window / _MICROSECONDS)
        for count, bound in zip(used, rule.spec.bounds, strict=True)
    )


def _terms(rule: Rule) -> LimitTerms:
    terms = rule.spec
    rates = [Rate(bound.limit, bound.window / _MICROSECONDS) for bound in terms.bounds]
    if terms.leases is not None:
        rates = [Rate(terms.leases)]
    return LimitTerms(
        name=rule.name,
        per=tuple(identity.value for identity in rule.per),
        counts=rule.counts.value,
        rates=tuple(str(rate) for rate in rates),
        scope=(Scope.CLUSTER if terms.cluster else Scope.NODE).value,
        on_exceed=rule.on_exceed.value,
        when_valkey_is_down=rule.when_valkey_is_down.value,
        mode=rule.mode.value,
    )
