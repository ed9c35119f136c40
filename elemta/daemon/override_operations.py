"""The admin calls about overrides of limits: which hold, and to make and to remove them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from http import HTTPStatus
from typing import Annotated

from twisted.logger import Logger

from elemta.auth.roles import Caller
from elemta.config.limit_rates import MOST_RATES
from elemta.config.values import Unacceptable, parse_network
from elemta.daemon.components import Components
from elemta.daemon.membership import Membership
from elemta.limits import Rule
from elemta.limits.lookup import requests_for
from elemta.limits.overrides import MAX_NOTE, Override, check_rates, takes_networks
from elemta.ops.admin_calls import route
from elemta.ops.admin_errors import AdminRefusal
from elemta.ops.admin_json import Duration, Flag, Text, Texts

_log = Logger()

LONGEST_SECONDS = 366 * 86400.0
_Limit = Annotated[str, Text(256, "the name of a limit")]
_Identity = Annotated[str, Text(2048, "an identity, or a network")]
_Rates = Annotated[tuple[str, ...], Texts(Text(64, "a rate, such as 100/1m"), MOST_RATES, 0)]


@dataclass(frozen=True, slots=True)
class OverrideInForce:
    """One override. ``until`` and ``made_at`` are seconds since the epoch, ``left`` the seconds until then.

    ``rates`` is empty where the identity is exempt.
    """

    limit: str
    identity: str
    exempt: bool
    rates: tuple[str, ...]
    until: float
    left: float
    author: str
    note: str
    made_at: float


@dataclass(frozen=True, slots=True)
class OverrideListing:
    """The overrides that hold, by limit and identity."""

    overrides: tuple[OverrideInForce, ...]


class OverrideOperations:
    """Makes, lists and removes overrides, for the whole cluster."""

    def __init__(self, components: Callable[[], Components], fleet: Membership) -> None:
        self._components = components
        self._fleet = fleet

    @route("GET", "/v1/limits/overrides")
    async def in_force(self) -> OverrideListing:
        """The overrides of limits that hold now: for what, with author, end and note."""
        overrides = self._fleet.overrides.overrides
        return OverrideListing(tuple(self._shown(each) for each in overrides.in_force()))

    @route("POST", "/v1/limits/overrides")
    async def make(
        self,
        *,
        limit: _Limit,
        identity: _Identity,
        for_: Annotated[float, Duration(0.0, LONGEST_SECONDS)],
        caller: Caller,
        exempt: Annotated[bool, Flag()] = False,
        rates: _Rates = (),
        note: Annotated[str, Text(MAX_NOTE, "why", r"(?s:.*)")] = "",
    ) -> OverrideInForce:
        """Let other rates hold for an identity of a limit, or none, on every node and for a while."""
        rule = self._rule(limit)
        if exempt == bool(rates):
            problem = "an override either exempts an identity or gives it other rates"
            raise AdminRefusal(HTTPStatus.BAD_REQUEST, problem, "exempt, or rates")
        try:
            check_rates(rule, rates)
        except Unacceptable as error:
            raise AdminRefusal(HTTPStatus.BAD_REQUEST, f"rates: {error}", error.hint) from None
        name = self._identity(rule, identity)
        override = Override(rule.name, name, tuple(rates), until=0.0, author=caller.actor, note=note)
        made = await self._fleet.overrides.put(override, for_)
        _log.info(
            "an operator made an override of a limit",
            event="admin.override_made",
            limit=made.limit,
            identity=made.identity,
            rates=list(made.rates),
            seconds=for_,
            note=note,
        )
        return self._shown(made)

    @route("DELETE", "/v1/limits/overrides")
    async def remove(self, limit: _Limit, identity: _Identity) -> OverrideListing:
        """End an override at once, on every node; answers those that still hold."""
        name = self._kept_identity(limit, identity)
        if not await self._fleet.overrides.remove(limit, name):
            problem = f"there is no override of {limit} for {identity}"
            raise AdminRefusal(HTTPStatus.NOT_FOUND, problem, "limits overrides lists them")
        _log.info(
            "an operator removed an override of a limit",
            event="admin.override_removed",
            limit=limit,
            identity=name,
        )
        return await self.in_force()

    def _rule(self, limit: str) -> Rule:
        rules = self._components().limiter.rules
        for rule in rules:
            if rule.name == limit:
                return rule
        known = ", ".join(rule.name for rule in rules) or "none"
        raise AdminRefusal(HTTPStatus.NOT_FOUND, f"there is no limit {limit!r}", f"known: {known}")

    def _identity(self, rule: Rule, text: str) -> str:
        """The identity as keys have it, or a network. Raises :class:`AdminRefusal`."""
        requests = requests_for([rule], text, self._components().limiter.mailbox)
        # A name such as 10.0.0.0/8 is a slip: its network is meant.
        if requests and (takes_networks(rule) or not _is_network(text)):
            return requests[0].identity
        if takes_networks(rule):
            try:
                return str(parse_network(text))
            except Unacceptable as error:
                # Host bits that are set are a slip in most cases.
                hint = error.hint or f"an identity of {rule.name}, or a network"
                raise AdminRefusal(HTTPStatus.BAD_REQUEST, f"identity: {error}", hint) from None
        per = " | ".join(each.value for each in rule.per) or "*"
        problem = f"{rule.name} has no identity like {text[:64]!r}"
        raise AdminRefusal(HTTPStatus.BAD_REQUEST, problem, f"it counts per {per}")

    def _kept_identity(self, limit: str, text: str) -> str:
        """The identity of an override that there may be, also of a limit that is gone."""
        if self._fleet.overrides.overrides.named(limit, text) is not None:
            return text
        return self._identity(self._rule(limit), text)

    def _shown(self, override: Override) -> OverrideInForce:
        overrides = self._fleet.overrides.overrides
        return OverrideInForce(
            override.limit,
            override.identity,
            override.exempt,
            override.rates,
            override.until,
            max(0.0, override.until - overrides.seconds()),
            override.author,
            override.note,
            override.made_at,
        )


def _is_network(text: str) -> bool:
    try:
        parse_network(text)
    except Unacceptable:
        return False
    return "/" in text
