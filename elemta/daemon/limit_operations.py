"""The admin calls about limits: which are in force, how full they are for an identity, and their reset."""

from __future__ import annotations

import heapq
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from http import HTTPStatus
from typing import Annotated

from twisted.logger import Logger

from elemta.config import Scope, WhenValkeyIsDown
from elemta.daemon.components import Components
from elemta.daemon.joined_answers import NodeAnswer
from elemta.daemon.membership import Membership, RemoteRefusal
from elemta.deferred_value import value_of
from elemta.errors import StoreUnavailable
from elemta.limits import Rule
from elemta.limits.local_fallback import share_of
from elemta.limits.lookup import requests_for
from elemta.limits.overrides import Override, client_of
from elemta.limits.store import LimitSpec, Ranking, Request, Usage
from elemta.ops.admin_calls import route
from elemta.ops.admin_errors import AdminRefusal
from elemta.ops.admin_json import Count, Text

_log = Logger()

_MICROSECONDS = 1_000_000
# Longer than any identity in a key, and any address as it is typed
_Identity = Annotated[str, Text(2048, "an identity, or LIMIT:IDENTITY")]
_NodesByKey = Mapping[str, Sequence[RemoteRefusal]]


@dataclass(frozen=True, slots=True)
class LimitInForce:
    """A limit in force, in the words of the configuration; ``per`` is empty where all count as one.

    ``today`` are the checks of this node since midnight (UTC), by outcome: ``admitted``, ``refused``,
    ``delayed``, ``throttled``, ``error``, and ``observed``, which enforcing it would have refused.
    """

    name: str
    per: tuple[str, ...]
    counts: str
    rates: tuple[str, ...]
    scope: str
    on_exceed: str
    when_valkey_is_down: str
    mode: str
    today: Mapping[str, int]


@dataclass(frozen=True, slots=True)
class BoundFill:
    """``used`` of ``limit`` in the last ``window`` seconds, or open now where that is None.

    ``share`` is the part of the limit that this node admits while it counts alone; None while it does not,
    and for a limit that lets everything or nothing pass then.
    """

    used: int
    limit: int
    window: float | None
    share: int | None = None


@dataclass(frozen=True, slots=True)
class LimitFill:
    """How full one limit is for one identity.

    ``retry_after`` is the seconds until one more would pass: 0 when it would pass now. ``refused_by`` are
    the nodes that refuse this identity now without asking, because they know until when they must.
    ``override`` has the rates of the override that holds, or ``exempt``; ``bounds`` are those then.
    ``node_id`` is the node that counted by itself, for a limit of the scope ``node``; else it is empty.
    """

    limit: str
    identity: str
    counts: str
    mode: str
    bounds: tuple[BoundFill, ...]
    retry_after: float
    refused_by: tuple[str, ...] = ()
    override: str = ""
    node_id: str = ""


@dataclass(frozen=True, slots=True)
class LimitListing:
    """How full limits are.

    They were counted in ``memory``, in the ``cluster``, or ``local`` while Valkey is away. ``complete`` is
    False where there was more than could be looked at. ``nodes`` were asked for limits of the scope ``node``.
    """

    limits: tuple[LimitFill, ...]
    counted_in: str
    complete: bool = True
    nodes: tuple[NodeAnswer, ...] = ()


@dataclass(frozen=True, slots=True)
class LimitsInForce:
    """The limits in force, those of ``[resources]`` first."""

    limits: tuple[LimitInForce, ...]


@dataclass(frozen=True, slots=True)
class LimitReset:
    """A limit that was reset for an identity."""

    limit: str
    identity: str


@dataclass(frozen=True, slots=True)
class LimitResets:
    """The limits that were reset."""

    reset: tuple[LimitReset, ...]


class LimitOperations:
    """Shows and resets the limits of the configuration in force, as the whole cluster counts them.

    ``today`` gives this node's checks of the day, by limit and outcome.
    """

    def __init__(
        self,
        components: Callable[[], Components],
        fleet: Membership,
        node_id: str,
        today: Callable[[], Mapping[tuple[str, ...], int]] = dict,
    ) -> None:
        self._components = components
        self._fleet = fleet
        self._node_id = node_id
        self._today = today

    @property
    def _rules(self) -> tuple[Rule, ...]:
        return self._components().limiter.rules

    @route("GET", "/v1/limits")
    async def in_force(self) -> LimitsInForce:
        """The limits in force."""
        today: dict[str, dict[str, int]] = {}
        for (name, outcome), count in self._today().items():
            today.setdefault(name, {})[outcome] = count
        return LimitsInForce(tuple(_in_force(rule, today.get(rule.name, {})) for rule in self._rules))

    @route("GET", "/v1/limits/top")
    async def top(
        self, limit: str | None = None, count: Annotated[int, Count()] = 20, scope: Scope | None = None
    ) -> LimitListing:
        """The identities that are refused now, and those nearest to it: of one limit, a scope, or all."""
        rules = [rule for rule in self._rules if limit is None or rule.name == limit]
        if limit is not None and not rules:
            known = ", ".join(rule.name for rule in self._rules) or "none"
            raise AdminRefusal(HTTPStatus.NOT_FOUND, f"there is no limit {limit!r}", f"known: {known}")
        rules = [rule for rule in rules if _is_of(rule.spec, scope)]
        rankings = await self._rankings(rules, count)
        usages = {usage.request.key: usage for ranking in rankings for usage in ranking.usages}
        usages |= await self._overridden([usage.request for usage in usages.values()])
        refused = await self._refused([rule.name for rule in rules])
        # What another node refuses by itself is in no counter that this one can see.
        missing = self._requests_of(refused, known=usages)
        usages.update((usage.request.key, usage) for usage in await self._fills(missing))
        shown = [self._shown(usage, refused) for usage in usages.values()]
        complete = all(ranking.complete for ranking in rankings)
        fullest = tuple(heapq.nlargest(count, shown, key=_urgency))
        return LimitListing(fullest, self._counted_in, complete, (NodeAnswer(self._node_id),))

    async def _rankings(self, rules: Sequence[Rule], count: int) -> Sequence[Ranking]:
        """The fullest identities of each limit; of none, and not all, once Valkey has not answered."""
        found: list[Ranking] = []
        away = False
        for rule in rules:
            ranking = Ranking((), complete=False)
            if not (away and rule.spec.cluster):
                try:
                    ranking = await value_of(self._fleet.store.top(rule.spec, count))
                except StoreUnavailable:
                    # Each further question would wait as long.
                    away = True
            found.append(ranking)
        return found

    @route("GET", "/v1/limits/show")
    async def show(self, id_: _Identity, scope: Scope | None = None) -> LimitListing:
        """How full the limits are for an identity; a limit's name may stand before it."""
        limiter = self._components().limiter
        sought = requests_for(limiter.rules, id_, limiter.mailbox)
        found = [request for request in sought if _is_of(request.spec, scope)]
        requests = [self._with_override(request) for request in found]
        usages = await self._fills(requests)
        refused = await self._refused([request.spec.name for request in requests])
        shown = [self._shown(usage, refused) for usage in usages]
        return LimitListing(
            tuple(usage for usage in shown if usage.refused_by or any(bound.used for bound in usage.bounds)),
            self._counted_in,
            complete=len(usages) == len(requests),
            nodes=(NodeAnswer(self._node_id),),
        )

    def _override(self, request: Request) -> Override | None:
        rule = next(rule for rule in self._rules if rule.name == request.spec.name)
        overrides = self._components().limiter.overrides
        return overrides.of(rule, request.identity, client_of(rule, request.identity))

    def _with_override(self, request: Request) -> Request:
        """The request with the rates that hold for it now; an exempt one is counted by nothing."""
        override = self._override(request)
        if override is None or override.exempt:
            return request
        rule = next(rule for rule in self._rules if rule.name == request.spec.name)
        return replace(request, spec=self._components().limiter.overrides.spec(rule, override))

    async def _overridden(self, requests: Sequence[Request]) -> Mapping[str, Usage]:
        """Those of the requests for which other rates hold, as full as they are then."""
        others = [other for each in requests if (other := self._with_override(each)) is not each]
        return {usage.request.key: usage for usage in await self._fills(others)}

    async def _fills(self, requests: Sequence[Request]) -> Sequence[Usage]:
        """How full these are, without those that are unknown while Valkey is away."""
        try:
            return await value_of(self._fleet.store.peek(requests))
        except StoreUnavailable:
            if len(requests) <= 1:
                return ()
        return [usage for request in requests for usage in await self._fills([request])]

    @route("POST", "/v1/limits/reset")
    async def reset(self, id_: _Identity) -> LimitResets:
        """Forget what was counted for an identity, in the whole cluster; open connections stay counted."""
        done = await self._reset_all(id_)
        if not done:
            problem = "nothing is counted for this identity"
            raise AdminRefusal(HTTPStatus.NOT_FOUND, problem, "limits top lists them")
        for reset in done:
            _log.info(
                "an operator reset a limit",
                event="admin.limit_reset",
                limit=reset.limit,
                identity=reset.identity,
            )
        return LimitResets(tuple(done))

    async def _reset_all(self, identity: str) -> Sequence[LimitReset]:
        limiter = self._components().limiter
        # Open connections are facts, and stay.
        found = requests_for(limiter.rules, identity, limiter.mailbox)
        requests = [each for each in found if each.spec.leases is None]
        used = {usage.request.key: any(usage.used) for usage in await self._fills(requests)}
        refused = await self._refused([request.spec.name for request in requests])
        done = []
        trouble: StoreUnavailable | None = None
        away = self._counted_in == "local"
        for request in requests:
            # While Valkey is away what it counted is unknown; this node may know something of it.
            unknown = request.spec.cluster and away
            if not (unknown or used.get(request.key, True) or request.key in refused):
                continue
            try:
                await self._reset(request)
            except StoreUnavailable as error:
                # This node has forgotten all the same; and so it shall with the others.
                trouble = error
            done.append(LimitReset(request.spec.name, request.identity))
        if trouble is not None:
            raise trouble
        return done

    async def _reset(self, request: Request) -> None:
        await value_of(self._components().limiter.reset(request.spec.name, request.identity))
        await self._fleet.announce_reset(request)

    @property
    def _counted_in(self) -> str:
        return self._fleet.status().mode

    def _nodes_alone(self, rule: Rule) -> int | None:
        """Among how many nodes a limit is divided now; None where it is not."""
        status = self._fleet.status()
        divided = rule.spec.cluster and rule.when_valkey_is_down is WhenValkeyIsDown.LOCAL
        return status.live_nodes if status.mode == "local" and divided else None

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
            self._with_override(Request(by_name[refusals[0].limit].spec, refusals[0].identity))
            for key, refusals in refused.items()
            if key not in known
        ]

    def _shown(self, usage: Usage, refused: _NodesByKey) -> LimitFill:
        spec = usage.request.spec
        rule = next(rule for rule in self._rules if rule.spec.name == spec.name)
        by = refused.get(usage.request.key, ())
        override = self._override(usage.request)
        wait = math.inf if usage.wait is None else usage.wait / _MICROSECONDS
        if override is not None and override.exempt:
            wait = 0.0
        return LimitFill(
            limit=spec.name,
            identity=usage.request.identity,
            counts=rule.counts.value,
            mode=rule.mode.value,
            bounds=bounds_of(spec, usage.used, self._nodes_alone(rule)),
            retry_after=max([wait, *(refusal.wait for refusal in by)]),
            refused_by=tuple(refusal.node_id for refusal in by),
            override="" if override is None else override.words,
            node_id="" if spec.cluster else self._node_id,
        )


def _is_of(spec: LimitSpec, scope: Scope | None) -> bool:
    """Whether a limit is of the scope, if one is asked for."""
    return scope is None or spec.cluster is (scope is Scope.CLUSTER)


def _urgency(usage: LimitFill) -> tuple[bool, float]:
    """Identities that are refused come first, then those nearest to it."""
    fills = (bound.used / (bound.share or bound.limit) for bound in usage.bounds)
    return usage.retry_after > 0, max(fills, default=0.0)


def bounds_of(spec: LimitSpec, used: Sequence[int], nodes: int | None = None) -> tuple[BoundFill, ...]:
    """How full each bound is; ``nodes`` is among how many this one counts alone, None while it does not."""

    def bound(count: int, limit: int, window: float | None) -> BoundFill:
        return BoundFill(count, limit, window, None if nodes is None else share_of(limit, nodes))

    if spec.leases is not None:
        return (bound(used[0], spec.leases, None),)
    return tuple(
        bound(count, each.limit, each.window / _MICROSECONDS)
        for count, each in zip(used, spec.bounds, strict=True)
    )


def _in_force(rule: Rule, today: Mapping[str, int]) -> LimitInForce:
    spec = rule.spec
    return LimitInForce(
        name=rule.name,
        per=tuple(identity.value for identity in rule.per),
        counts=rule.counts.value,
        rates=tuple(str(rate) for rate in rule.rates),
        scope=(Scope.CLUSTER if spec.cluster else Scope.NODE).value,
        on_exceed=rule.on_exceed.value,
        when_valkey_is_down=rule.when_valkey_is_down.value,
        mode=rule.mode.value,
        today=today,
    )
