"""What a policy's choice comes to: the route that mail takes."""

from __future__ import annotations

from typing import Any

from pytest_twisted import ensureDeferred
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from zope.interface import implementer

from elemta.address import Address
from elemta.config import PolicyCommon, RouteTLS
from elemta.delivery.router import RouteChooser, WaitRoute
from elemta.delivery.routes import HoldRoute, MaildirRoute, MxRoute, NextHopRoute, Route
from elemta.envelope import Envelope, Recipient
from elemta.policy import CONTINUE, Defer, Hold, IDeliveryPolicy, LoadedPolicy, PolicyChain, RouteTo
from elemta.smtp.sasl import Credentials

RECIPIENT = Recipient(Address("bob", "example.net"))
ENVELOPE = Envelope("Q1", Address("alice", "example.org"), (RECIPIENT,), 0.0, 1000)
SMARTHOST = NextHopRoute(
    "smtp://relay.example.net:587",
    frozenset({"example.com"}),
    7,
    host="relay.example.net",
    port=587,
    tls=RouteTLS.REQUIRE,
    credentials=Credentials("elemta", b"secret"),
)


@implementer(IDeliveryPolicy)
class Answering:
    def __init__(self, answer: Any) -> None:
        self.answer = answer

    def route(self, envelope: Envelope, recipient: Recipient) -> Any:
        return self.answer


def chooser(answer: Any, *routes: Route, clock: Clock | None = None) -> RouteChooser:
    chain = PolicyChain([LoadedPolicy("p", Answering(answer), PolicyCommon())], clock or Clock())  # type: ignore[arg-type]
    return RouteChooser(chain.delivery_hooks, routes)


@ensureDeferred
async def test_no_opinion_is_no_route() -> None:
    assert await chooser(CONTINUE)(ENVELOPE, RECIPIENT) is None


@ensureDeferred
async def test_a_target_of_the_configuration_is_its_route_with_all_its_settings() -> None:
    assert await chooser(RouteTo(SMARTHOST.target), SMARTHOST)(ENVELOPE, RECIPIENT) is SMARTHOST


@ensureDeferred
async def test_any_other_target_has_the_defaults_of_a_route() -> None:
    route = await chooser(RouteTo("smtp://other.example.net:26"), SMARTHOST)(ENVELOPE, RECIPIENT)
    assert isinstance(route, NextHopRoute)
    assert (route.host, route.port, route.tls, route.credentials) == (
        "other.example.net",
        26,
        RouteTLS.MAY,
        None,
    )
    assert isinstance(await chooser(RouteTo("mx:"))(ENVELOPE, RECIPIENT), MxRoute)
    assert isinstance(await chooser(RouteTo("maildir:/m/{local}"))(ENVELOPE, RECIPIENT), MaildirRoute)


@ensureDeferred
async def test_equal_choices_are_equal_routes_so_that_recipients_go_together() -> None:
    for answer in (RouteTo("smtp://other.example.net:26"), Hold("odd"), Defer("later")):
        choose = chooser(answer)
        assert await choose(ENVELOPE, RECIPIENT) == await choose(ENVELOPE, RECIPIENT)


@ensureDeferred
async def test_a_hold_and_a_wait_carry_their_words() -> None:
    held = await chooser(Hold("odd"))(ENVELOPE, RECIPIENT)
    assert isinstance(held, HoldRoute)
    assert held.reason == "odd"
    waiting = await chooser(Defer("not before noon", enhanced="4.3.2"))(ENVELOPE, RECIPIENT)
    assert isinstance(waiting, WaitRoute)
    assert (waiting.reason, waiting.enhanced) == ("not before noon", "4.3.2")


@ensureDeferred
async def test_a_policy_that_fails_makes_mail_wait() -> None:
    route = await chooser("nonsense")(ENVELOPE, RECIPIENT)
    assert isinstance(route, WaitRoute)
    assert route.enhanced == "4.3.0"


def test_a_policy_that_takes_its_time_is_waited_for_until_its_deadline() -> None:
    clock = Clock()
    asked = Deferred.fromCoroutine(chooser(Deferred(), clock=clock)(ENVELOPE, RECIPIENT))
    came: list[Route | None] = []
    asked.addCallback(came.append)
    clock.advance(4.9)
    assert came == []
    clock.advance(0.2)
    assert isinstance(came[0], WaitRoute)
