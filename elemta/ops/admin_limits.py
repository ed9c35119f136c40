"""The calls of the admin API about limits."""

from __future__ import annotations

import math

from twisted.logger import Logger
from twisted.web import http

from elemta.ops.admin_calls import AdminCall, AdminRefusal, count_of
from elemta.ops.admin_json import Json
from elemta.ops.admin_operations import LimitFill, LimitListing, LimitOperations, LimitTerms

_log = Logger()

DEFAULT_COUNT = 20
# Longer than any identity in a key, and any address as it is typed
MAX_IDENTITY = 2048


class LimitCalls:
    """The identities that are limited, by which limit, how full, until when."""

    def __init__(self, limits: LimitOperations) -> None:
        self._limits = limits

    async def all(self, call: AdminCall) -> Json:
        call.only()
        return {"limits": [_terms_json(terms) for terms in self._limits.all()]}

    async def top(self, call: AdminCall) -> Json:
        call.only("limit", "count")
        limit = call.query.get("limit") or None
        try:
            return _listing_json(await self._limits.top(limit, count_of(call, "count", DEFAULT_COUNT)))
        except KeyError:
            known = ", ".join(terms.name for terms in self._limits.all()) or "none"
            raise AdminRefusal(http.NOT_FOUND, f"there is no limit {limit!r}", f"known: {known}") from None

    async def show(self, call: AdminCall) -> Json:
        call.only("id")
        return _listing_json(await self._limits.show(_identity(call)))

    async def reset(self, call: AdminCall) -> Json:
        call.only("id")
        resets = await self._limits.reset(_identity(call))
        done = [reset for reset in resets if reset.was_counted]
        if not done:
            raise AdminRefusal(
                http.NOT_FOUND, "nothing is counted for this identity", "limits top lists them"
            )
        for reset in done:
            _log.info(
                "an operator reset a limit",
                event="admin.limit_reset",
                limit=reset.limit,
                identity=reset.identity,
            )
        answers: list[Json] = [{"limit": reset.limit, "identity": reset.identity} for reset in done]
        return {"reset": answers}


def _identity(call: AdminCall) -> str:
    text = call.query.get("id", "")
    if not text or len(text) > MAX_IDENTITY:
        raise AdminRefusal(http.BAD_REQUEST, "id is missing or too long", "an identity, or LIMIT:IDENTITY")
    return text


def _terms_json(terms: LimitTerms) -> Json:
    return {
        "name": terms.name,
        "per": list(terms.per),
        "counts": terms.counts,
        "rates": list(terms.rates),
        "scope": terms.scope,
        "on_exceed": terms.on_exceed,
        "when_valkey_is_down": terms.when_valkey_is_down,
        "mode": terms.mode,
    }


def _listing_json(listing: LimitListing) -> Json:
    return {
        "limits": [_fill_json(fill) for fill in listing.fills],
        "counted_in": listing.counted_in,
        "complete": listing.complete,
    }


def _fill_json(fill: LimitFill) -> Json:
    bounds: list[Json] = [
        {"used": bound.used, "limit": bound.limit, "window": bound.window} for bound in fill.bounds
    ]
    return {
        "limit": fill.limit,
        "identity": fill.identity,
        "counts": fill.counts,
        "mode": fill.mode,
        "bounds": bounds,
        # JSON has no infinity
        "retry_after": None if math.isinf(fill.retry_after) else fill.retry_after,
        "refused_by": list(fill.refused_by),
    }
