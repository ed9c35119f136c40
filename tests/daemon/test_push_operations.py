"""What a push says of the identities that it would refuse: by what is counted, and as a decision would."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import ip_address
from types import SimpleNamespace
from typing import Any

import pytest
from pytest_twisted import ensureDeferred
from twisted.internet.task import Clock

from elemta.auth.roles import AccessRole, Caller
from elemta.config import Counts, Identity, LimitConfig, Mode, Rate, load
from elemta.daemon.push_operations import PushOperations
from elemta.limits import Limiter, LocalStore, rules_from_config
from elemta.limits.overrides import Override, Overrides
from elemta.limits.push_registry import PushRegistry
from elemta.stage import Stage

HOUR = 3600.0
ADMIN = Caller("admin", AccessRole.OPERATOR)
FIVE = LimitConfig("few", (Identity.IP,), Counts.CONNECTIONS, (Rate(5, HOUR),))
WATCH = replace(FIVE, mode=Mode.OBSERVE, rates=(Rate(2, HOUR),))
TWO = '[[limit]]\nname = "few"\nper = ["ip"]\ncounts = "connections"\nrates = ["2/1h"]\n'


class Node:
    """A node with limits in force, and what it says of others."""

    def __init__(self, *limits: LimitConfig) -> None:
        clock = Clock()
        self.config = replace(load(None, {}), limits=limits)
        self.overrides = Overrides(clock.seconds)
        self.store = LocalStore(clock)
        self.chain = SimpleNamespace(policies=())
        self.enforce(*limits)
        fleet: Any = SimpleNamespace(store=self.store, pushed=PushRegistry.__new__(PushRegistry))
        components: Any = self
        self.operations = PushOperations(lambda: components, fleet)

    def enforce(self, *limits: LimitConfig) -> None:
        self.own_config = self.config = replace(self.config, limits=limits)
        rules = rules_from_config(self.config.resources, limits)
        self.limiter = Limiter(rules, self.store, overrides=self.overrides)

    def connect(self, ip: str, times: int) -> None:
        session: Any = SimpleNamespace(client_ip=ip_address(ip), listener="mx", helo="", user=None)
        for _ in range(times):
            charge: Any = self.limiter.charge(Stage.CONNECT, session)
            self.limiter.release(charge.receipts)

    async def refused_then(self, toml: str) -> list[tuple[str, str, tuple[int, ...], tuple[str, ...]]]:
        report = await self.operations.push(toml=toml, caller=ADMIN, dry_run=True, base=0)
        assert report.complete
        return [(each.limit, each.identity, each.used, each.rates) for each in report.refused_then]


@pytest.mark.parametrize(
    ("in_force", "passed", "refused"),
    [
        pytest.param(FIVE, 1, False, id="one more passes then"),
        pytest.param(FIVE, 3, True, id="it passes now and not then"),
        pytest.param(FIVE, 5, False, id="it is refused now"),
        pytest.param(WATCH, 1, False, id="observed, and one more passes then"),
        pytest.param(WATCH, 5, True, id="observed until now"),
    ],
)
@ensureDeferred
async def test_what_passes_now_and_not_then_is_named(
    in_force: LimitConfig, passed: int, refused: bool
) -> None:
    node = Node(in_force)
    node.connect("192.0.2.1", passed)
    used = min(passed, in_force.rates[0].limit)
    assert await node.refused_then(TWO) == ([("few", "192.0.2.1", (used,), ("2/1h",))] if refused else [])


@ensureDeferred
async def test_a_limit_that_comes_back_finds_its_count() -> None:
    node = Node(FIVE)
    node.connect("192.0.2.1", 3)
    node.enforce()
    assert await node.refused_then(TWO) == [("few", "192.0.2.1", (3,), ("2/1h",))]
    assert await node.refused_then(TWO + 'mode = "observe"\n') == []


@ensureDeferred
async def test_a_limit_that_counts_something_else_then_goes_on_with_its_count() -> None:
    node = Node(FIVE)
    node.connect("192.0.2.1", 3)
    toml = TWO.replace('"connections"', '"recipients"')
    assert await node.refused_then(toml) == [("few", "192.0.2.1", (3,), ("2/1h",))]
    assert await node.refused_then(toml.replace('"ip"', '"network"')) == []


@pytest.mark.parametrize(
    ("network", "rates", "refused"),
    [
        ("192.0.2.1", (), []),
        ("192.0.2.0/24", (), []),
        ("192.0.2.0/24", ("9/1h",), []),
        ("198.51.100.0/24", (), ["192.0.2.1"]),
    ],
)
@pytest.mark.parametrize("in_force", [FIVE, WATCH])
@ensureDeferred
async def test_an_override_holds_then_as_well(
    in_force: LimitConfig, network: str, rates: tuple[str, ...], refused: list[str]
) -> None:
    node = Node(in_force)
    node.connect("192.0.2.1", 3)
    node.overrides.replace([Override("few", network, rates, until=HOUR)])
    assert [each[1] for each in await node.refused_then(TWO)] == refused


@ensureDeferred
async def test_the_rates_of_an_override_refuse_what_was_only_observed() -> None:
    node = Node(WATCH)
    node.connect("192.0.2.1", 3)
    node.overrides.replace([Override("few", "192.0.2.1", ("1/1h",), until=HOUR)])
    assert await node.refused_then(TWO) == [("few", "192.0.2.1", (2,), ("1/1h",))]


@pytest.mark.parametrize("exempt", ["192.0.2.1", "192.0.2.0/24", "::ffff:192.0.2.0/120"])
@ensureDeferred
async def test_an_exception_of_the_pushed_limit_is_not_refused(exempt: str) -> None:
    node = Node(FIVE)
    for ip in ("192.0.2.1", "203.0.113.1"):
        node.connect(ip, 3)
    found = await node.refused_then(f'{TWO}except = ["{exempt}"]\n')
    assert [each[1] for each in found] == ["203.0.113.1"]
