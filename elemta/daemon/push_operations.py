"""The admin calls about limits as shared data: push a set of them to the fleet, its history, and back."""

from __future__ import annotations

import tomllib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from http import HTTPStatus
from typing import Annotated

from twisted.logger import Logger

from elemta.auth.roles import Caller
from elemta.config import Config, LimitConfig, load_limits
from elemta.daemon.components import Components, check_timeouts
from elemta.daemon.membership import Membership
from elemta.deferred_value import value_of
from elemta.errors import ConfigError, Fault
from elemta.limits import Rule, rules_from_config
from elemta.limits.overrides import client_of
from elemta.limits.push_registry import PushRegistry
from elemta.limits.pushed_limits import MAX_TEXT, PushedLimits
from elemta.limits.rules import rates_of
from elemta.limits.store import Request
from elemta.ops.admin_calls import route
from elemta.ops.admin_errors import AdminRefusal
from elemta.ops.admin_json import Count, Flag, Text

_log = Logger()

SOURCE = "the pushed limits"
LOOKED_AT = 200
"""So many of the fullest identities of a limit are looked at, for what other rates would refuse."""

ADDED_LOOKED_AT = 100
"""So many of the limits that none has now are looked at: an earlier one of the name may have been counted."""

SHOWN = 100
_ANY = r"(?s:.*)"
_Note = Annotated[str, Text(500, "why", _ANY)]
_Number = Annotated[int, Count(0, 2**31)]


@dataclass(frozen=True, slots=True)
class RefusedThen:
    """An identity that passes now, and would be refused with the pushed rates."""

    limit: str
    identity: str
    used: tuple[int, ...]
    rates: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class PushReport:
    """What a push changed, or would change: names of limits, and identities that it refuses.

    ``version`` is the one that was made; 0 where nothing was (``dry_run``). ``base`` is the one before.
    ``complete`` is False where not all identities could be looked at.
    """

    version: int
    base: int
    dry_run: bool
    limits: int
    added: tuple[str, ...]
    removed: tuple[str, ...]
    changed: tuple[str, ...]
    refused_then: tuple[RefusedThen, ...]
    complete: bool


@dataclass(frozen=True, slots=True)
class PushedVersion:
    """A version. ``limits`` has the names of its limits; null where each node's own file holds.

    ``in_force`` tells whether this node runs it.
    """

    version: int
    author: str
    note: str
    made_at: float
    limits: tuple[str, ...] | None
    in_force: bool


@dataclass(frozen=True, slots=True)
class PushHistory:
    """The versions that are kept, the last first: ``running`` is this node's, ``version`` the fleet's."""

    versions: tuple[PushedVersion, ...]
    version: int
    running: int


class PushOperations:
    """Gives the whole fleet other limits, after a look at what they change."""

    def __init__(self, components: Callable[[], Components], fleet: Membership) -> None:
        self._components = components
        self._fleet = fleet

    @route("POST", "/v1/limits/push", max_body=2 * MAX_TEXT)
    async def push(
        self,
        *,
        toml: Annotated[str, Text(MAX_TEXT, "the [[limit]] tables", _ANY)],
        caller: Caller,
        dry_run: Annotated[bool, Flag()] = False,
        base: Annotated[int | None, Count(0, 2**31)] = None,
        note: _Note = "",
    ) -> PushReport:
        """Let these [[limit]] tables hold in the whole fleet, in place of those of the files."""
        return await self._push(PushedLimits(0, toml, caller.actor, note), base, dry_run=dry_run)

    @route("POST", "/v1/limits/rollback")
    async def rollback(
        self,
        *,
        version: _Number,
        caller: Caller,
        dry_run: Annotated[bool, Flag()] = False,
        base: Annotated[int | None, Count(0, 2**31)] = None,
        note: _Note = "",
    ) -> PushReport:
        """Push the limits of an earlier version again, as a new one; 0: those of each node's own file."""
        registry = self._registry
        found = PushedLimits(0, None) if version == 0 else await registry.get(version)
        if found is None:
            problem = f"version {version} is not kept"
            raise AdminRefusal(HTTPStatus.NOT_FOUND, problem, "limits history lists those that are")
        words = note or f"rollback to version {version}"
        return await self._push(PushedLimits(0, found.toml, caller.actor, words), base, dry_run=dry_run)

    @route("GET", "/v1/limits/history")
    async def history(self) -> PushHistory:
        """The versions that were pushed to the fleet, with author, note and names of limits."""
        registry = self._registry
        versions = await registry.history()
        shown = tuple(
            PushedVersion(
                each.version,
                each.author,
                each.note,
                each.made_at,
                _names(each),
                each.version == registry.version,
            )
            for each in versions
        )
        return PushHistory(shown, await registry.current(), registry.version)

    @property
    def _registry(self) -> PushRegistry:
        registry = self._fleet.pushed
        if not isinstance(registry, PushRegistry):
            problem = "there is no fleet to push to: no valkey_url is configured"
            raise AdminRefusal(
                HTTPStatus.CONFLICT, problem, "change the [[limit]] tables of the file, and reload"
            )
        return registry

    async def _push(self, pushed: PushedLimits, base: int | None, *, dry_run: bool) -> PushReport:
        registry = self._registry
        before = await registry.current() if base is None else base
        limits = self._own(pushed)
        new = {limit.name: limit for limit in limits}
        old = {limit.name: limit for limit in self._components().config.limits}
        changed = [name for name, limit in new.items() if name in old and limit != old[name]]
        added = [name for name in new if name not in old]
        looked_at = [*changed, *added[:ADDED_LOOKED_AT]]
        refused, complete = await self._refused_then(looked_at, limits)
        made = pushed if dry_run else await registry.push(pushed, before)
        if not dry_run:
            _log.info(
                "an operator pushed limits to the fleet",
                event="admin.limits_pushed",
                version=made.version,
                limits=len(new),
            )
        return PushReport(
            version=made.version,
            base=before,
            dry_run=dry_run,
            limits=len(new),
            added=tuple(added),
            removed=tuple(name for name in old if name not in new),
            changed=tuple(changed),
            refused_then=tuple(refused[:SHOWN]),
            complete=complete and len(refused) <= SHOWN and len(added) <= ADDED_LOOKED_AT,
        )

    def _own(self, pushed: PushedLimits) -> tuple[LimitConfig, ...]:
        """The limits of a version; those of this node's file where it has none of its own."""
        own = self._components().own_config
        try:
            if pushed.toml is None:
                return own.limits
            limits = load_limits(pushed.toml, SOURCE, own)
            self._check_beside(replace(own, limits=limits))
        except ConfigError as error:
            raise AdminRefusal(
                HTTPStatus.BAD_REQUEST,
                "these limits can't be used; nothing was changed",
                "correct the faults and push again",
                faults=error.faults,
            ) from None
        return limits

    def _check_beside(self, config: Config) -> None:
        """Check them with this node's policies, as a start does. Raises ConfigError with the faults."""
        try:
            check_timeouts(config, self._components().chain)
        except ConfigError as error:
            faults = [
                Fault(SOURCE, "limit", f"one delays, and here {each.key} {each.problem}", each.hint)
                for each in error.faults
            ]
            raise ConfigError(faults) from None

    async def _refused_then(
        self, names: Sequence[str], limits: Sequence[LimitConfig]
    ) -> tuple[list[RefusedThen], bool]:
        """The identities that these of the limits would refuse and none refuses now, by the live counts."""
        own = self._components().own_config
        new = {rule.name: rule for rule in rules_from_config(own.resources, limits)}
        old = {rule.name: rule for rule in self._components().limiter.rules}
        found: list[RefusedThen] = []
        complete = True
        for name in names:
            rule, before = new[name], old.get(name, new[name])
            # What counts something else under the same name goes on with the count.
            if rule.per != before.per or not rule.spec.binding:
                continue
            ranking = await value_of(self._fleet.store.top(before.spec, LOOKED_AT))
            complete = complete and ranking.complete and len(ranking.usages) < LOOKED_AT
            # Only a limit that is in force, and enforced, refuses anything now.
            refuses = name in old and before.spec.binding
            passes = [each.request.identity for each in ranking.usages if each.wait == 0 or not refuses]
            requests = [request for each in passes for request in self._then(rule, each, anew=not refuses)]
            then = await value_of(self._fleet.store.peek(requests)) if requests else ()
            found += [
                RefusedThen(name, each.request.identity, each.used, _rates(each.request))
                for each in then
                if each.wait != 0
            ]
        return found, complete

    def _then(self, rule: Rule, identity: str, *, anew: bool) -> list[Request]:
        """What would be asked for one more of an identity; nothing where it is exempt or has the same rates.

        ``anew``: this limit refuses nothing now.
        """
        client = client_of(rule, identity)
        if rule.exempts(identity, client):
            return []
        overrides = self._components().limiter.overrides
        override = overrides.of(rule, identity, client)
        if override is None:
            return [Request(rule.spec, identity)]
        return [Request(overrides.spec(rule, override), identity)] if anew and not override.exempt else []


def _names(pushed: PushedLimits) -> tuple[str, ...] | None:
    """Also those of a version that this node can't take, such as one of a newer Elemta."""
    if pushed.toml is None:
        return None
    try:
        tables = tomllib.loads(pushed.toml).get("limit")
    except (tomllib.TOMLDecodeError, RecursionError):
        return ()
    named = [each for each in tables if isinstance(each, dict)] if isinstance(tables, list) else []
    return tuple(str(each["name"]) for each in named if "name" in each)


def _rates(request: Request) -> tuple[str, ...]:
    return tuple(map(str, rates_of(request.spec)))
