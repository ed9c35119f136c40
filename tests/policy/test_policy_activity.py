"""What is reported of each policy: its answers, their latency, its failures, and why its breaker is open."""

from __future__ import annotations

import pytest
from pytest_twisted import ensureDeferred
from twisted.internet.defer import Deferred

from elemta.config import OnError, PolicyCommon
from elemta.daemon.activity_operations import ActivityOperations
from elemta.metrics import Metrics, PolicyMetrics
from elemta.ops.traffic import TrafficHistory
from elemta.policy import CONTINUE, ChainSettings, LoadedPolicy, PolicyChain, Reject
from tests.policy.conftest import LOCAL, Client


class Reported:
    """A chain of these policies, and what is reported of it."""

    def __init__(self, clock, *policies):
        self.metrics = PolicyMetrics()
        self.clock = clock
        loaded = [LoadedPolicy(name, policy, PolicyCommon(**common)) for name, policy, common in policies]
        self.chain = PolicyChain(loaded, clock, self.metrics, ChainSettings(), LOCAL)
        traffic = TrafficHistory(Metrics("mx1"), wall=clock.seconds, monotonic=clock.seconds)
        self._calls = ActivityOperations(traffic, lambda: self.chain, self.metrics, clock.seconds)

    async def of(self, name):
        return next(each for each in (await self._calls.policies()).policies if each.name == name)


@pytest.fixture
def reported(stage):
    return lambda *policies: Reported(stage.clock, *policies)


@ensureDeferred
async def test_a_policy_that_was_never_asked_has_no_latency(reported, scripted):
    found = await reported(("quiet", scripted(), {"listeners": ("mx",), "timeout": 3.0})).of("quiet")
    assert (found.stages, found.breaker, found.last_failure, found.asked) == ((), "closed", None, True)
    assert (found.listeners, found.timeout, found.plugin) == (("mx",), 3.0, "quiet")


@ensureDeferred
async def test_answers_and_verdicts_are_told_by_stage(reported, scripted, stage):
    pending = []

    def slow(*_shown):
        pending.append(Deferred())
        return pending[-1]

    world = reported(("slow", scripted(slow), {}), ("last", scripted(Reject("no")), {}))
    client = Client(world.chain)
    for _ in range(3):
        client.mail()
        stage.clock.advance(0.3)
        pending.pop().callback(CONTINUE)
    found = await world.of("slow")
    (at,) = found.stages
    assert (at.stage, at.answers, at.verdicts, at.failures) == ("mail", 3, {"continue": 3}, {})
    assert 0.25 < at.p50 <= at.p95 <= 0.5
    assert (await world.of("last")).stages[0].verdicts == {"reject": 3}


@ensureDeferred
async def test_a_breaker_is_open_at_its_stage_and_the_failure_says_why(reported, scripted, stage):
    world = reported(("gone", scripted(lambda *shown: Deferred()), {"on_error": OnError.ACCEPT}))
    for number in range(5):
        Client(world.chain, ip=f"192.0.{number}.1").rcpt()
        stage.clock.advance(5.0)
    stage.clock.advance(7.0)
    found = await world.of("gone")
    assert found.breaker == "open"
    (at,) = found.stages
    assert (at.stage, at.breaker, at.answers, at.p50, at.failures) == (
        "rcpt",
        "open",
        0,
        None,
        {"timeout": 5},
    )
    failure = found.last_failure
    assert (failure.seconds, failure.stage, failure.kind) == (7.0, "rcpt", "timeout")
    assert failure.reason


@ensureDeferred
async def test_the_reason_of_an_error_is_what_was_raised(reported, scripted):
    def boom(*_shown):
        raise ValueError("no such table")

    world = reported(("broken", scripted(boom), {}))
    Client(world.chain).mail()
    found = await world.of("broken")
    assert found.breaker == "closed"
    assert "no such table" in found.last_failure.reason
