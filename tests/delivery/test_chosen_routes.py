"""What a policy says about a route, over real sockets: its TLS, source, login and address family."""

from __future__ import annotations

import base64
from collections.abc import AsyncIterator
from dataclasses import replace
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import pytest
import pytest_twisted
from pytest_twisted import ensureDeferred
from twisted.internet.defer import Deferred
from twisted.logger import LogEvent, globalLogPublisher

from elemta.config import AddressFamily, RouteConfig, RouteTLS
from elemta.delivery.connections import Connections
from elemta.delivery.next_hop import hop_of
from elemta.delivery.routes import MxRoute, NextHopRoute, Route, chosen_route, route_of
from elemta.delivery.settings import DeliverySettings
from elemta.outcome import Outcome, ReachedStage, Status
from elemta.policy import CONTINUE, Hold, RouteTo
from elemta.policy.verdicts import route_problem
from elemta.smtp.sasl import Credentials
from tests.delivery.test_router import ENVELOPE, RECIPIENT, SMARTHOST, chooser
from tests.support.certificates import make_certificate
from tests.support.hops import (
    Harbour,
    Secured,
    SecureHop,
    SecureSession,
    message,
    open_content,
    reactor,
    read,
)

NAME = "relay.example.test"


# What can't be

BAD: list[tuple[dict[str, Any], str]] = [
    ({"tls": "yes"}, "tls of a RouteTo is 'yes': must be one of none, may, require, implicit"),
    ({"tls": True}, "tls of a RouteTo is 'True'"),
    ({"address_family": "v4"}, "must be one of any, ipv4, ipv6, prefer_ipv4"),
    ({"address_family": 4}, "address_family of a RouteTo is '4'"),
    ({"source": "lo"}, "source of a RouteTo has 'lo'"),
    ({"source": 5}, "neither an address nor a list"),
    ({"source": [2130706433]}, "which is no address"),
    ({"source": "0.0.0.0"}, "must be an address of this host"),
    ({"source": ["ff02::1"]}, "must be an address of this host"),
    ({"source": ["192.0.2.1", "192.0.2.2"]}, "two addresses of IPv4"),
    ({"credentials": "sesame"}, "not a pair of user and password"),
    ({"credentials": ("anna",)}, "not a pair of user and password"),
    ({"credentials": ("anna", None)}, "not a pair of user and password"),
    ({"credentials": {"anna": "sesame"}}, "not a pair of user and password"),
    ({"credentials": ("", "sesame")}, "lack the user or the password"),
    ({"credentials": ("anna", "")}, "lack the user or the password"),
    ({"credentials": ("anna", "ses\0ame")}, "have a control character"),
    ({"credentials": ("anna\r\nRSET", "sesame")}, "have a control character"),
    ({"credentials": ("anna", "sesame\ud800")}, "are no text in Unicode"),
    ({"credentials": ("anna", "sesame" * 1000)}, "longer than 4096 octets"),
    ({"credentials": ("anna", "sesame"), "tls": "none"}, "would send the password in the clear"),
    ({"target": "smtp://anna:sesame@relay.example.net"}, "without a user or password"),
    ({"target": "smtp://192.0.2.9", "address_family": "ipv6"}, "192.0.2.9 is not of this family"),
    ({"target": "mx:", "tls": "implicit"}, "mail exchangers begin in the clear"),
    ({"target": "mx:", "credentials": ("anna", "sesame")}, "credentials of a RouteTo has no effect with mx:"),
    ({"target": "maildir:/m/{local}", "tls": "may"}, "tls of a RouteTo has no effect with maildir:"),
    (
        {"target": "lmtp+unix:///run/lmtp", "source": "192.0.2.1"},
        "source of a RouteTo has no effect with lmtp",
    ),
    ({"target": "hold:", "address_family": "any"}, "address_family of a RouteTo has no effect with hold:"),
]


@pytest.mark.parametrize(("said", "problem"), BAD, ids=lambda each: str(each)[:40] if each else "")
def test_what_can_not_be_is_a_failure_of_the_policy_that_says_what_and_no_password(
    said: dict[str, Any], problem: str
) -> None:
    verdict = RouteTo(said.pop("target", "smtp://relay.example.net:587"), **said)
    words = route_problem(verdict)
    assert words is not None
    assert problem in words
    assert "sesame" not in words or "sesame" not in str(said.get("credentials", "sesame"))
    assert "anna" not in words
    assert "sesame" not in repr(verdict).replace(verdict.target, "")


def test_no_choice_shows_its_credentials() -> None:
    verdict = RouteTo("smtp://relay.example.net", credentials=("anna", "sesame"))
    route = chosen_route(verdict.choice())
    assert isinstance(route, NextHopRoute)
    shown = f"{verdict} {verdict!r} {verdict.choice()!r} {route!r} {hop_of(route)!r}"
    assert "sesame" not in shown
    assert "anna" not in shown


# What it comes to


def test_every_form_of_the_four_values() -> None:
    for given in (("anna", "ses:ame"), ["anna", "ses:ame"], "anna:ses:ame", ("anna", b"ses:ame")):
        choice = RouteTo("smtp://relay.example.net", credentials=given).choice()  # type: ignore[arg-type]
        assert choice.credentials == Credentials("anna", b"ses:ame")
    four, six = ip_address("192.0.2.7"), ip_address("2001:db8::7")
    for source, addresses in (
        ("192.0.2.7", (four,)),
        (four, (four,)),
        (["192.0.2.7", six], (four, six)),
        ((), ()),
    ):
        assert RouteTo("mx:", source=source).choice().source == addresses  # type: ignore[arg-type]
    choice = RouteTo("mx:", tls=RouteTLS.REQUIRE, address_family=AddressFamily.IPV4).choice()
    assert (choice.tls, choice.family) == (RouteTLS.REQUIRE, AddressFamily.IPV4)


def test_what_the_policy_does_not_say_is_as_the_route_has_it() -> None:
    choice = RouteTo(SMARTHOST.target, source="192.0.2.7").choice()
    route = chosen_route(choice, SMARTHOST)
    assert isinstance(route, NextHopRoute)
    assert route == replace(
        SMARTHOST, terms=replace(SMARTHOST.terms, source=(ip_address("192.0.2.7"),), chosen=True)
    )
    other = chosen_route(RouteTo(SMARTHOST.target, tls="may", credentials=("a", "b")).choice(), SMARTHOST)
    assert isinstance(other, NextHopRoute)
    assert (other.tls, other.credentials, other.max_connections) == (RouteTLS.MAY, Credentials("a", b"b"), 7)
    bare = chosen_route(RouteTo("mx:", tls="require", address_family="ipv6").choice())
    assert isinstance(bare, MxRoute)
    assert (bare.tls, bare.terms.family) == (RouteTLS.REQUIRE, AddressFamily.IPV6)


@pytest.mark.parametrize(
    ("target", "configured", "said", "port"),
    [
        ("smtp://relay.example.net", RouteTLS.MAY, "implicit", 465),
        ("smtp://relay.example.net", RouteTLS.IMPLICIT, "require", 25),
        ("smtp://relay.example.net:2525", RouteTLS.MAY, "implicit", 2525),
    ],
)
def test_the_port_goes_with_the_tls(target: str, configured: RouteTLS, said: str, port: int) -> None:
    base = route_of(RouteConfig(domains=("*",), to=target, tls=configured))
    route = chosen_route(RouteTo(target, tls=said).choice(), base)
    assert isinstance(route, NextHopRoute)
    assert route.port == port


@ensureDeferred
async def test_recipients_with_one_login_go_together_and_those_with_another_do_not() -> None:
    answers = [RouteTo("smtp://relay.example.net", credentials=(user, "x")) for user in ("a", "a", "b")]
    first, same, other = [await chooser(each)(ENVELOPE, RECIPIENT) for each in answers]
    assert first == same
    assert first != other
    # The destination is the target, whatever the policy says beside it.
    assert isinstance(first, Route)
    assert isinstance(other, Route)
    assert first.destination(RECIPIENT) == other.destination(RECIPIENT) == "smtp://relay.example.net"


@ensureDeferred
async def test_a_choice_that_can_not_be_makes_the_mail_wait() -> None:
    route = await chooser(RouteTo("mx:", credentials=("anna", "sesame")))(ENVELOPE, RECIPIENT)
    assert type(route).__name__ == "WaitRoute"
    for good in (CONTINUE, Hold("x")):
        assert route_problem(good) is None


# On the wire


class Quay(Harbour):
    """Connections, and the routes that policies choose to get there."""

    def __init__(self, tmp_path: Path) -> None:
        super().__init__()
        self.files = make_certificate(tmp_path, NAME)
        hosts = tmp_path / "hosts"
        hosts.write_text(f"127.0.0.1 {NAME}\n::1 {NAME}\n")
        settings = DeliverySettings("me.example", connect_timeout=5.0, hosts=str(hosts))
        self.connections = Connections(reactor, settings, read, authorities=str(self.files.certificate))
        self.logged: list[LogEvent] = []

    async def send(self, verdict: RouteTo, configured: Route | None = None) -> Outcome:
        route = chosen_route(verdict.choice(), configured)
        assert isinstance(route, NextHopRoute)
        (outcome,) = await self.connections.send(hop_of(route), message(), open_content)
        return outcome

    def told(self) -> str:
        """What Elemta logged."""
        return " ".join(str(event) for event in self.logged if "event" in event)


@pytest_twisted.async_yield_fixture
async def quay(tmp_path: Path) -> AsyncIterator[Quay]:
    quay = Quay(tmp_path)
    globalLogPublisher.addObserver(quay.logged.append)
    yield quay
    globalLogPublisher.removeObserver(quay.logged.append)
    await quay.connections.stop()
    await quay.close()


class LoginHop(SecureHop):
    """Keeps which login each connection had, and in the order of messages that of each message."""

    def __init__(self, *arguments: Any, **more: Any) -> None:
        super().__init__(*arguments, offers=(b"AUTH PLAIN",), **more)
        self.logins: list[str] = []

    def buildProtocol(self, addr: object) -> SecureSession:
        session = super().buildProtocol(addr)
        command, user = session.command, ["-"]

        def noted(line: bytes) -> None:
            if line.upper().startswith(b"AUTH PLAIN "):
                user[0] = base64.b64decode(line.split()[2]).split(b"\0")[1].decode()
            if line.upper().startswith(b"MAIL"):
                self.logins.append(user[0])
            command(line)

        session.command = noted  # type: ignore[method-assign]
        return session


@ensureDeferred
async def test_a_connection_with_ones_credentials_never_carries_other_mail(quay: Quay) -> None:
    hop = LoginHop(Secured(quay.files))
    target = f"smtp://127.0.0.1:{await quay.listen(hop)}"
    users = [("anna", "a-sesame"), ("bob", "b-sesame"), None, ("anna", "a-sesame"), None, ("anna", "other")]
    for user in users:
        outcome = await quay.send(RouteTo(target, credentials=user))
        assert outcome.status is Status.DELIVERED
    assert hop.logins == ["anna", "bob", "-", "anna", "-", "anna"]
    # One connection each for anna, bob, mail without a login, and anna's other password.
    assert hop.connections == 4
    told = quay.told()
    assert "sesame" not in told
    assert base64.b64encode(b"\0anna\0a-sesame").decode() not in told


@ensureDeferred
async def test_a_connection_that_rests_with_one_login_gives_way_to_another(quay: Quay) -> None:
    hop = LoginHop(Secured(quay.files))
    target = f"smtp://127.0.0.1:{await quay.listen(hop)}"
    only_one = route_of(RouteConfig(domains=("*",), to=target, max_connections=1))
    for user in "abcab":
        outcome = await quay.send(RouteTo(target, credentials=(user, "x")), only_one)
        assert outcome.status is Status.DELIVERED
        assert quay.connections.open == 1
    at_once = [
        Deferred.fromCoroutine(quay.send(RouteTo(target, credentials=(user, "x")), only_one))
        for user in "abcab"
    ]
    for each in at_once:
        assert (await each).status is Status.DELIVERED
    assert sorted(hop.logins) == sorted("abcab" * 2)


@ensureDeferred
async def test_a_refused_login_is_the_trouble_of_its_own_mail(quay: Quay) -> None:
    hop = LoginHop(Secured(quay.files), replies={b"AUTH": b"535 5.7.8 no\r\n"})
    target = f"smtp://127.0.0.1:{await quay.listen(hop)}"
    refused = await quay.send(RouteTo(target, credentials=("anna", "wrong-sesame")))
    assert (refused.status, refused.enhanced) == (Status.DEFERRED, "4.7.8")
    # The destination is not down for it: other mail does not wait.
    assert refused.reached is ReachedStage.ANSWERED
    assert (await quay.send(RouteTo(target))).status is Status.DELIVERED
    assert "sesame" not in quay.told() + str(refused)
    configured = route_of(RouteConfig(domains=("*",), to=target))
    assert isinstance(configured, NextHopRoute)
    configured = replace(configured, credentials=Credentials("anna", b"x"))
    # With the credentials of the route itself it is down.
    of_route = await quay.send(RouteTo(target), configured)
    assert (of_route.enhanced, of_route.reached) == ("4.7.8", ReachedStage.NOWHERE)


@pytest.mark.parametrize(("tls", "secure"), [("none", False), ("may", True), ("require", True)])
@ensureDeferred
async def test_tls_is_as_the_policy_says(quay: Quay, tls: str, secure: bool) -> None:
    hop = SecureHop(Secured(quay.files))
    target = f"smtp://{NAME}:{await quay.listen(hop)}"
    outcome = await quay.send(RouteTo(target, tls=tls, address_family="ipv4"))
    assert outcome.status is Status.DELIVERED
    assert hop.secure[hop.verbs.index(b"MAIL")] is secure


@ensureDeferred
async def test_required_tls_that_is_not_to_be_had_is_the_trouble_of_its_own_mail(quay: Quay) -> None:
    hop = SecureHop()
    target = f"smtp://{NAME}:{await quay.listen(hop)}"
    outcome = await quay.send(RouteTo(target, tls="require", address_family="ipv4"))
    assert (outcome.status, outcome.enhanced) == (Status.DEFERRED, "4.7.4")
    assert outcome.reached is ReachedStage.ANSWERED
    assert b"MAIL" not in hop.verbs


@ensureDeferred
async def test_the_source_is_as_the_policy_says_and_another_is_another_connection(quay: Quay) -> None:
    peers: list[str] = []
    hop = SecureHop(on_session=lambda session: peers.append(session.transport.getPeer().host))
    target = f"smtp://127.0.0.1:{await quay.listen(hop)}"
    for source in ("127.0.0.7", ["127.0.0.7", "::1"], "127.0.0.8", None):
        assert (await quay.send(RouteTo(target, source=source))).status is Status.DELIVERED
    assert peers == ["127.0.0.7", "127.0.0.7", "127.0.0.8", "127.0.0.1"]


# Twisted leaves the socket that it could not bind to the collector.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@ensureDeferred
async def test_a_source_that_this_host_has_not_is_the_trouble_of_its_own_mail(quay: Quay) -> None:
    hop = SecureHop()
    target = f"smtp://127.0.0.1:{await quay.listen(hop)}"
    outcome = await quay.send(RouteTo(target, source="192.0.2.7"))
    assert (outcome.status, outcome.reached) == (Status.DEFERRED, ReachedStage.ANSWERED)
    assert "bind" in outcome.text
    closed = await quay.send(RouteTo(f"smtp://127.0.0.1:{quay.closed_port()}", source="127.0.0.7"))
    # Nothing listens there: that is about the destination.
    assert (closed.status, closed.reached) == (Status.DEFERRED, ReachedStage.NOWHERE)


@pytest.mark.parametrize(("family", "came"), [("ipv4", (0, 1)), ("ipv6", (1, 0)), ("prefer_ipv4", (0, 1))])
@ensureDeferred
async def test_the_family_is_as_the_policy_says(quay: Quay, family: str, came: tuple[int, int]) -> None:
    six, four = SecureHop(), SecureHop()
    port = await quay.listen_at_one_port({"::1": six, "127.0.0.1": four})
    outcome = await quay.send(RouteTo(f"smtp://{NAME}:{port}", address_family=family))
    assert outcome.status is Status.DELIVERED
    assert (six.connections, four.connections) == came
