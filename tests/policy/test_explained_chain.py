"""A chain that explains asks the same policies, and nothing that they do lasts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from ipaddress import ip_address
from typing import Any

import pytest
from twisted.internet.defer import Deferred, succeed
from zope.interface import implementer

from elemta.address import Address
from elemta.config import PolicyCommon
from elemta.envelope import MailParameters, Recipient
from elemta.errors import ExplanationFailed
from elemta.limits import Limiter, LocalStore
from elemta.policy import (
    CONTINUE,
    Defer,
    ILifecycle,
    IOutcomeObserver,
    IRcptPolicy,
    LoadedPolicy,
    PolicyChain,
    Services,
    Verdict,
)
from elemta.policy.doubles import RecordedMetrics
from elemta.policy.explained_chain import ExplainedChain
from elemta.policy.explained_services import SwitchedStore
from elemta.policy.interfaces import FailureKind
from elemta.policy.policy_store import MemoryStore as PolicyStore
from elemta.policy.testing import TestReactor, make_services
from elemta.smtp.events import RcptQuestion
from elemta.smtp.session_info import SessionInfo, TransactionInfo


@implementer(IRcptPolicy, IOutcomeObserver)
class Counting:
    """Takes every second recipient, as its store says, and notes all that it hears."""

    def __init__(self, services: Services) -> None:
        self.services = services
        self.told: list[str] = []
        self._asked = services.metrics.counter("asked_total", "Questions.")

    async def rcpt(self, session: Any, transaction: Any, recipient: Any) -> Verdict:
        await succeed(None)
        number = await self.services.store.add("n", ttl=60)
        # The context goes on with the coroutine.
        await self.services.store.set("last", str(recipient).encode(), ttl=60)
        self._asked.inc()
        self.services.log.warn("asked")
        return CONTINUE if number % 2 else Defer("every second")

    def committed(self, *args: Any) -> None:
        self.told.append("committed")

    def refused(self, *args: Any) -> None:
        self.told.append("refused")

    def disconnected(self, *args: Any) -> None:
        self.told.append("disconnected")


@implementer(ILifecycle)
class Living(Counting):
    """The same with a life: it is there once."""

    def start(self, predecessor: object) -> None:
        self.told.append("start")

    def stop(self) -> None:
        self.told.append("stop")


class World:
    """One policy in a chain, its services, and what it left behind."""

    def __init__(self, kind: type[Counting]) -> None:
        self.reactor = TestReactor()
        self.metrics = RecordedMetrics()
        self.logged: list[Any] = []
        self.store = PolicyStore(self.reactor.seconds)
        services = make_services(self.reactor, metrics=self.metrics, logged=self.logged)
        own = replace(services.of_policy("counting"), store=SwitchedStore("counting", self.store))
        self.built: list[Counting] = []

        def build(given: Services) -> Counting:
            self.built.append(kind(given))
            return self.built[-1]

        loaded = LoadedPolicy("counting", build(own), PolicyCommon(), "", own, "counting", build)
        self.chain = PolicyChain([loaded], self.reactor)
        self.limiter = Limiter((), LocalStore(self.reactor))

    @property
    def left_behind(self) -> tuple[Any, ...]:
        """What is in the store, counted, and logged."""
        counted = self.metrics.total("elemta_plugin_counting_asked_total")
        return dict(self.store._entries), counted, len(self.logged)

    def explained(self) -> ExplainedChain:
        return ExplainedChain(self.chain, self.limiter, self.reactor)

    def ask(self, chain: PolicyChain, names: Sequence[str]) -> list[str]:
        facts = SessionInfo("s-1", ip_address("192.0.2.1"), 1, "mx", user="u")
        session = chain.open(facts)
        transaction = TransactionInfo(Address("a", "b.example"), MailParameters())
        verdicts = []
        for name in names:
            recipient = Recipient(Address(name, "c.example"))
            decision = session.ask(RcptQuestion(facts, transaction, recipient))
            found: list[Any] = []
            decision.addCallback(found.append) if isinstance(decision, Deferred) else found.append(decision)
            verdicts.append(type(found[0].verdict).__name__)
        session.refused(transaction)
        session.disconnected()
        return verdicts


@pytest.mark.parametrize("kind", [Counting, Living])
def test_what_a_policy_writes_while_it_explains_it_finds_again_and_nothing_of_it_lasts(
    kind: type[Counting],
) -> None:
    world = World(kind)
    assert world.ask(world.chain, ["one"]) == ["Continue"]
    told = list(world.built[0].told)
    before = world.left_behind
    for _ in range(3):
        chain = world.explained()
        assert world.ask(chain, ["two", "three", "four"]) == ["Defer", "Continue", "Defer"]
        assert [type(answer.verdict).__name__ for answer in chain.answers] == ["Defer", "Continue", "Defer"]
        chain.close()
    assert world.left_behind == before
    assert world.built[0].told == told
    assert all(not twin.told for twin in world.built[1:])
    # A policy with a life is asked itself, the others are built once more.
    assert len(world.built) == (1 if kind is Living else 4)
    assert world.ask(world.chain, ["two"]) == ["Defer"]
    assert world.built[0].told == [*told, *told]


def test_a_policy_that_has_not_started_is_not_asked_in_an_explanation_either() -> None:
    world = World(Living)
    for _, runner in world.chain.members:
        runner.close_to_questions()
    chain = world.explained()
    assert world.ask(chain, ["one"]) == ["Defer"]
    assert [answer.failure for answer in chain.answers] == [FailureKind.STOPPED]


def test_a_policy_that_cannot_be_built_now_is_named() -> None:
    world = World(Counting)
    loaded = world.chain.policies[0]

    def fail(_: Services) -> object:
        raise OSError("the key file is gone")

    world.chain = PolicyChain([replace(loaded, build=fail)], world.reactor)
    with pytest.raises(ExplanationFailed, match="counting can't be built now: the key file is gone"):
        world.explained()
