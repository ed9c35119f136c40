"""Limits as an administrator sees them, on a node whose shared store is away."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from pytest_twisted import ensureDeferred
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock

from elemta.config import Counts, Identity, LimitConfig, Rate, ResourcesConfig, WhenValkeyIsDown
from elemta.daemon.limit_operations import BoundFill, LimitOperations
from elemta.daemon.membership import LimiterStatus
from elemta.errors import StoreUnavailable
from elemta.limits import Limiter, LocalStore, rules_from_config
from elemta.limits.overrides import Override, Overrides
from elemta.limits.store import Request
from tests.support.remote import Node, pass_time, used

JANE = "jane@example.org"


def limit(name: str, when_down: WhenValkeyIsDown) -> LimitConfig:
    return LimitConfig(
        name=name,
        per=(Identity.SENDER,),
        counts=Counts.MESSAGES,
        rates=(Rate(9, 60.0),),
        when_valkey_is_down=when_down,
    )


RULES = rules_from_config(
    ResourcesConfig(), (limit("shared", WhenValkeyIsDown.LOCAL), limit("strict", WhenValkeyIsDown.DEFER))
)
SHARED, STRICT = (rule.spec for rule in RULES if rule.name in ("shared", "strict"))


@pytest.mark.parametrize("counted", [1, 0])
@ensureDeferred
async def test_a_reset_without_valkey_forgets_on_this_node_beside_a_limit_that_defers_and_says_so(
    counted: int,
) -> None:
    clock = Clock()
    node = Node(clock, LocalStore(clock))
    if counted:
        node.ask(Request(SHARED, JANE), Request(STRICT, JANE))
    assert [used(node.local, terms, JANE) for terms in (SHARED, STRICT)] == [counted, counted]
    node.lose()

    class Fleet:
        store = node.store

        async def refusals(self) -> tuple[()]:
            return ()

        async def announce_reset(self, request: Request) -> None:
            raise AssertionError("there is nobody to tell")

        def status(self) -> LimiterStatus:
            return LimiterStatus("local", node.store.live_nodes)

    # Where a limit defers what is counted is unknown in any case.
    rules = RULES if counted else [rule for rule in RULES if rule.name != "strict"]
    components: Any = SimpleNamespace(limiter=Limiter(rules, node.store))
    fleet: Any = Fleet()
    asked = Deferred.fromCoroutine(LimitOperations(lambda: components, fleet, "mx1").reset(JANE))
    pass_time(clock, 0.01)
    with pytest.raises(StoreUnavailable, match="only this node forgot"):
        await asked
    assert [used(node.local, terms, JANE) for terms in (SHARED, STRICT)] == [0, 0]


@pytest.mark.parametrize("listed", ["top", "show"])
@pytest.mark.parametrize(("rates", "limit", "share"), [((), 9, 3), (("30/1m",), 30, 10)])
@ensureDeferred
async def test_without_valkey_a_limit_is_shown_with_this_nodes_share_of_the_whole(
    listed: str, rates: tuple[str, ...], limit: int, share: int
) -> None:
    clock = Clock()
    node = Node(clock, LocalStore(clock), live=3)
    node.ask(Request(SHARED, JANE), Request(STRICT, JANE))
    node.lose()

    class Fleet:
        store = node.store

        async def refusals(self) -> tuple[()]:
            return ()

        def status(self) -> LimiterStatus:
            return LimiterStatus("local", node.store.live_nodes)

    overrides = Overrides(clock.seconds)
    if rates:
        overrides.replace([Override("shared", JANE, rates, until=9.0)])
    components: Any = SimpleNamespace(limiter=Limiter(RULES, node.store, overrides=overrides))
    fleet: Any = Fleet()
    operations = LimitOperations(lambda: components, fleet, "mx1")
    asked = operations.top() if listed == "top" else operations.show(f"shared:{JANE}")
    listing = await asked
    found = {fill.limit: fill.bounds for fill in listing.limits}
    assert found["shared"] == (BoundFill(1, limit, 60.0, share),)
    # One that defers has no share.
    assert found.get("strict", (BoundFill(1, 9, 60.0),)) == (BoundFill(1, 9, 60.0),)
