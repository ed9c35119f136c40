"""Two nodes on a real Valkey: guesses, good logins and refusals are counted for both."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from ipaddress import IPv4Address, ip_address
from typing import Any

import pytest
import pytest_twisted
from pytest_twisted import ensureDeferred
from twisted.internet.defer import Deferred

from elemta.config import AuthConfig, Counts, Identity, LimitConfig, Rate, ResourcesConfig
from elemta.limits import Limiter, rules_from_config
from elemta.limits.known_logins import LoginHistory
from tests.limits.test_cluster_valkey import Member
from tests.support.limit_subjects import Session
from tests.support.valkey import ValkeyServer
from tests.support.waiting import until

OFFICE, NEIGHBOUR, ELSEWHERE = (ip_address(each) for each in ("192.0.2.10", "192.0.2.11", "203.0.113.7"))


@pytest.fixture(scope="module")
def server() -> Iterator[ValkeyServer]:
    with ValkeyServer() as server:
        yield server


@pytest_twisted.async_yield_fixture
async def nodes(server: ValkeyServer) -> AsyncIterator[list[Limiter]]:
    server.command("FLUSHALL")
    members = [Member(server, name, 5.0) for name in "ab"]
    await until(lambda: all(member.mode == "cluster" for member in members))
    resources = ResourcesConfig(max_requests_per_window=0)
    harvest = LimitConfig("harvest", (Identity.IP,), Counts.REFUSALS, (Rate(20, 3600.0),))
    rules = rules_from_config(resources, [harvest], AuthConfig(checkers=("memory:",)))
    yield [Limiter(rules, member.store) for member in members]
    for member in members:
        await member.stop()


async def now(answer: Any) -> Any:
    return await answer if isinstance(answer, Deferred) else answer


@ensureDeferred
async def test_two_nodes_look_at_no_more_guesses_than_one_limit_allows(nodes: list[Limiter]) -> None:
    asked = [node.charge_login(Session(ELSEWHERE), "anna") for _ in range(23) for node in nodes]
    refusals = [(await now(charge)).refusal for charge in asked]
    assert refusals.count(None) == 10
    assert {refusal.limit for refusal in refusals if refusal} == {"guesses-per-user"}
    one, other = nodes
    names = [node.charge_login(Session(ELSEWHERE), f"user{each}") for each in range(60) for node in nodes]
    # Ten of the fifty went to anna.
    assert [(await now(charge)).refusal for charge in names].count(None) == 40
    assert (await now(one.charge_login(Session(OFFICE), "anna"))).refusal is None
    assert (await now(other.charge_login(Session(OFFICE), "anna"))).refusal is None


@ensureDeferred
async def test_where_a_user_logged_in_is_known_to_the_other_node(
    nodes: list[Limiter], server: ValkeyServer
) -> None:
    one, other = (node.known_logins for node in nodes)
    assert await now(other.standing("anna", OFFICE)) is LoginHistory.UNKNOWN
    one.remember("anna", OFFICE)
    await until(lambda: server.command("KEYS", "*_logins*"))

    async def standing(user: str, ip: IPv4Address) -> LoginHistory:
        # An unknown client is taken for a known one for a moment.
        other._unknown.clear()
        found: LoginHistory = await now(other.standing(user, ip))
        return found

    assert await standing("anna", OFFICE) is LoginHistory.KNOWN_ADDRESS
    assert await standing("anna", NEIGHBOUR) is LoginHistory.KNOWN_NETWORK
    assert await standing("anna", ELSEWHERE) is LoginHistory.UNKNOWN
    assert await standing("berta", OFFICE) is LoginHistory.UNKNOWN
    for key in server.command("KEYS", "*_logins*"):
        assert int(server.command("PTTL", key)) > 0


@ensureDeferred
async def test_two_nodes_refuse_no_more_than_one_limit_allows(nodes: list[Limiter]) -> None:
    one, other = nodes
    assert await now(one.ask_about_refusals(Session(OFFICE))) is None
    asked = [node.charge_refusal(Session(OFFICE)) for _ in range(30) for node in nodes]
    assert [(await now(charge)).refusal for charge in asked].count(None) == 20
    for node in (one, other):
        refusal = await now(node.ask_about_refusals(Session(OFFICE)))
        assert refusal.limit == "harvest"
        assert 3500 < refusal.retry_after <= 3600
    assert await now(other.ask_about_refusals(Session(NEIGHBOUR))) is None
