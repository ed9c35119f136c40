"""Attempts to log in: how many passwords are looked at, whose, and what the log says of it."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import ip_address
from typing import Any

import pytest
from twisted.cred.checkers import ICredentialsChecker
from twisted.cred.credentials import IUsernamePassword
from twisted.cred.error import UnauthorizedLogin
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.task import Clock
from twisted.logger import LogEvent
from zope.interface import implementer

from elemta.auth.authenticator import Authenticator
from elemta.config import AuthConfig, PolicyCommon, ResourcesConfig
from elemta.limits import Limiter, LocalStore, rules_from_config
from elemta.net.context import ListenerContext
from elemta.net.login import LoginExchange
from elemta.policies.limits import LimitsOptions, LimitsPlugin
from elemta.policy import (
    CONTINUE,
    ILoginObserver,
    ILoginPolicy,
    LoadedPolicy,
    LoginOutcome,
    PolicyChain,
    Reject,
    Verdict,
)
from elemta.policy.testing import make_services
from elemta.smtp.events import Authenticated, Refuse, Response
from elemta.smtp.session_info import SessionInfo
from tests.net.conftest import Place
from tests.support.runtime import runtime_of

USERS = {"anna": b"anna's", "berta": b"berta's"}
#: A guesser, and where users sit.
ELSEWHERE, OFFICE, NEIGHBOUR = "203.0.113.7", "192.0.2.10", "192.0.2.11"


@implementer(ICredentialsChecker)
class Passwords:
    """Knows the passwords; ``late`` keeps its answers until :meth:`say` is called."""

    credentialInterfaces = (IUsernamePassword,)

    def __init__(self) -> None:
        self.looked_at = 0
        self.late = False
        self.trouble = False
        self.pending: list[tuple[Any, Deferred[bytes]]] = []

    def requestAvatarId(self, credentials: Any) -> Any:
        self.looked_at += 1
        answer: Deferred[bytes] = Deferred()
        self.pending.append((credentials, answer))
        if not self.late:
            self.say()
        return answer

    def say(self) -> None:
        pending, self.pending = self.pending, []
        for credentials, answer in pending:
            name = credentials.username.decode().lower()
            if self.trouble:
                answer.errback(OSError("the directory is down"))
            elif USERS.get(name) == credentials.password:
                answer.callback(name.encode())
            else:
                answer.errback(UnauthorizedLogin())

    def say_all(self) -> None:
        """Also to those whose turn comes by that."""
        while self.pending:
            self.say()


class Node:
    """What one node knows of logins; ``store`` is shared by the nodes of a fleet."""

    def __init__(
        self,
        place: Place,
        store: LocalStore,
        clock: Clock,
        more: dict[str, object] | None = None,
        **auth: str,
    ) -> None:
        from twisted.internet import reactor

        self.clock = clock
        self.checker = Passwords()
        config = AuthConfig(checkers=("memory:",), **auth)
        resources = ResourcesConfig(max_requests_per_window=0)
        self.limiter = Limiter(rules_from_config(resources, (), config), store)
        self.limiter.known_logins._now = lambda: 1_700_000_000.0 + clock.seconds()
        context = place.factory.context
        assert context is not None
        services = make_services(clock, limits=self.limiter)
        policies = [("limits", LimitsPlugin().build(LimitsOptions(), services)), *(more or {}).items()]
        loaded = [LoadedPolicy(name, policy, PolicyCommon(timeout=30.0)) for name, policy in policies]
        self.context: ListenerContext = replace(
            context,
            limiter=self.limiter,
            chain=PolicyChain(loaded, clock),  # type: ignore[arg-type]
            authenticator=Authenticator([self.checker], runtime_of(reactor, reactor=clock)),  # type: ignore[arg-type]
        )
        self.attempts: list[LoginExchange] = []

    def begin(self, user: str, password: bytes, ip: str = OFFICE) -> Deferred[Response]:
        facts = SessionInfo("S1", ip_address(ip), 40000, "mx")
        login = LoginExchange(self.context, self.context.chain.open(facts), facts, user)
        self.attempts.append(login)
        return Deferred.fromCoroutine(login.answer(password))

    def log_in(self, user: str, password: bytes, ip: str = OFFICE) -> Response:
        """The answer, however long it takes."""
        answers: list[Response] = []
        self.begin(user, password, ip).addCallback(answers.append)
        for _ in range(20):
            if answers:
                return answers[0]
            self.clock.advance(1)
        raise AssertionError("no answer")

    def good(self, user: str, ip: str = OFFICE) -> bool:
        return self.log_in(user, USERS[user], ip) == Authenticated(user)

    def exhaust(self, user: str, ip: str) -> None:
        """Guess until no guess is looked at any more."""
        for _ in range(200):
            before = self.checker.looked_at
            self.begin(user, b"guess", ip)
            if self.checker.looked_at == before:
                return
        raise AssertionError("every guess was looked at")


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def store(clock: Clock) -> LocalStore:
    return LocalStore(clock)


@pytest.fixture
def node(place: Place, store: LocalStore, clock: Clock) -> Node:
    return Node(place, store, clock)


def reply(answer: Response) -> str:
    assert isinstance(answer, Refuse)
    return str(answer.reply)


@pytest.mark.parametrize("late", [False, True], ids=["one by one", "at the same moment"])
def test_of_46_parallel_guesses_ten_are_looked_at_and_the_right_one_is_not_among_them(
    node: Node, late: bool
) -> None:
    node.checker.late = late
    answers: list[Response] = []
    for number in range(46):
        password = USERS["anna"] if number == 30 else b"guess"
        node.begin("anna", password, ELSEWHERE).addCallback(answers.append)
    node.checker.say_all()
    node.clock.advance(11)
    assert node.checker.looked_at == 10
    assert len(answers) == 46
    assert not any(isinstance(answer, Authenticated) for answer in answers)
    told = [reply(answer) for answer in answers]
    assert sum(text.startswith("535") for text in told) == 10
    refused = [text for text in told if text.startswith("454 4.7.0")]
    assert len(refused) == 36
    assert "guesses-per-user" in refused[0]


def test_hanging_up_in_place_of_waiting_gives_no_guess_back(node: Node) -> None:
    for _ in range(61):
        node.begin("anna", b"guess", ELSEWHERE)
        node.attempts[-1].leave()
        node.clock.advance(0.3)
    assert node.checker.looked_at == 10


def test_hanging_up_while_the_password_is_looked_at_gives_no_guess_back(node: Node) -> None:
    node.checker.late = True
    for _ in range(61):
        attempt = node.begin("anna", b"guess", ELSEWHERE)
        attempt.addErrback(lambda _: None)
        node.attempts[-1].leave()
        attempt.cancel()
    assert node.checker.looked_at == 10


def test_what_nobody_waits_for_when_its_turn_comes_is_not_looked_at(node: Node) -> None:
    node.checker.late = True
    for _ in range(10):
        node.begin("anna", b"guess", ELSEWHERE)
        node.attempts[-1].leave()
    node.checker.say_all()
    assert node.checker.looked_at == 2


def test_a_client_that_leaves_while_the_store_is_asked_made_no_attempt(
    node: Node, store: LocalStore, monkeypatch: pytest.MonkeyPatch, events: list[LogEvent]
) -> None:
    asked: list[Deferred[Any]] = []

    def later(requests: object) -> Deferred[Any]:
        asked.append(Deferred())
        return asked[-1]

    monkeypatch.setattr(store, "peek", later)
    node.begin("anna", b"guess", ELSEWHERE)
    node.attempts[-1].leave()
    asked.pop().callback(())
    assert (node.checker.looked_at, len(node.context.authenticator.turns)) == (0, 0)
    assert [event for event in events if event.get("event") == "auth.attempted"] == []


def test_the_limit_is_that_of_the_fleet(place: Place, store: LocalStore, clock: Clock) -> None:
    nodes = [Node(place, store, clock) for _ in range(3)]
    for number in range(60):
        nodes[number % 3].begin("anna", b"guess", ELSEWHERE)
    assert sum(node.checker.looked_at for node in nodes) == 10


@pytest.mark.parametrize(
    "spelling",
    ["ANNA", "Anna", "\uff41\uff4e\uff4e\uff41", "anna ", " anna", "an na", "an\u00a0na"],
    ids=ascii,
)
def test_another_spelling_of_a_name_is_no_other_name(node: Node, spelling: str) -> None:
    node.exhaust("anna", ELSEWHERE)
    before = node.checker.looked_at
    assert reply(node.log_in(spelling, b"guess", ELSEWHERE)).startswith("454")
    assert node.checker.looked_at == before


def test_guesses_of_many_names_from_one_network_have_a_limit_of_their_own(node: Node) -> None:
    for number in range(80):
        node.begin(f"user{number}", b"guess", f"203.0.113.{number}")
    assert node.checker.looked_at == 50
    told = reply(node.log_in("anna", b"guess", ELSEWHERE))
    assert told.startswith("454 4.7.0")
    assert "guesses-per-network" in told


def test_an_empty_setting_is_no_limit(place: Place, store: LocalStore, clock: Clock) -> None:
    node = Node(place, store, clock, guesses_per_user="", guesses_per_network="")
    for _ in range(100):
        node.begin("anna", b"guess", ELSEWHERE)
        node.clock.advance(0)
    assert node.checker.looked_at == 100


def test_many_good_logins_at_the_same_moment_all_pass(node: Node) -> None:
    node.checker.late = True
    answers: list[Response] = []
    for _ in range(60):
        node.begin("anna", USERS["anna"]).addCallback(answers.append)
    node.checker.say_all()
    assert answers == [Authenticated("anna")] * 60
    # And nothing of it counts.
    node.checker.late = False
    assert [reply(node.log_in("anna", b"typo"))[:3] for _ in range(9)] == ["535"] * 9
    assert node.good("anna")


def test_a_user_is_not_locked_out_by_guesses_from_another_network(node: Node) -> None:
    node.exhaust("anna", ELSEWHERE)
    assert node.good("anna")


def test_a_user_that_logged_in_before_is_not_locked_out_by_guesses_from_its_own_network(node: Node) -> None:
    assert node.good("anna")
    node.exhaust("anna", NEIGHBOUR)
    for number in range(60):
        node.begin(f"user{number}", b"guess", NEIGHBOUR)
    assert node.good("anna")
    # Berta never logged in here.
    assert reply(node.log_in("berta", USERS["berta"])).startswith("454")


def test_guesses_at_the_address_of_a_user_have_a_limit_too(node: Node) -> None:
    assert node.good("anna")
    before = node.checker.looked_at
    node.exhaust("anna", OFFICE)
    assert node.checker.looked_at == before + 10
    told = reply(node.log_in("anna", USERS["anna"]))
    assert "guesses-per-known-client" in told


def test_at_a_new_address_of_its_network_a_user_is_exempt_from_guesses_at_others(node: Node) -> None:
    assert node.good("anna")
    for number in range(60):
        node.begin(f"user{number}", b"guess", NEIGHBOUR)
    assert node.good("anna", "192.0.2.99")


def test_where_a_user_logged_in_is_known_in_the_fleet_and_for_weeks(
    place: Place, store: LocalStore, clock: Clock
) -> None:
    one, other = Node(place, store, clock), Node(place, store, clock)
    assert one.good("anna")
    clock.advance(14 * 86400)
    other.exhaust("anna", NEIGHBOUR)
    assert other.good("anna")
    clock.advance(14 * 86400)
    one.exhaust("anna", NEIGHBOUR)
    assert one.good("anna")
    clock.advance(31 * 86400)
    other.exhaust("anna", NEIGHBOUR)
    assert reply(other.log_in("anna", USERS["anna"])).startswith("454")


def test_local_trouble_is_no_guess(node: Node) -> None:
    node.checker.trouble = True
    for _ in range(30):
        assert reply(node.log_in("anna", USERS["anna"])) == "454 4.7.0 Temporary authentication failure"
    node.checker.trouble = False
    assert node.good("anna")


@pytest.mark.parametrize(
    ("typed", "shown"),
    [
        ("Anna", "Anna"),
        ("an\nna\x00", "an\nna\x00"),
        ("a" * 5000, "a" * 255 + "…"),
        ("änna\u202e", "änna\u202e"),
    ],
    ids=["as typed", "controls", "long", "beyond ASCII"],
)
def test_the_record_of_a_failure_is_there_at_once_and_names_the_user_and_never_the_password(
    node: Node, events: list[LogEvent], typed: str, shown: str
) -> None:
    node.begin(typed, b"hunter2", ELSEWHERE)
    (record,) = [event for event in events if event.get("event") == "auth.attempted"]
    assert (record["user"], record["outcome"], record["client_ip"]) == (shown, "bad", ELSEWHERE)
    assert not any("hunter2" in str(value) for event in events for value in event.values())


@implementer(ILoginPolicy, ILoginObserver)
class Guard:
    """A policy that does not answer until the test says so, and learns how attempts ended."""

    def __init__(self) -> None:
        self.pending: list[Deferred[Verdict]] = []
        self.ended: list[LoginOutcome] = []

    def login(self, session: object, username: str) -> Deferred[Verdict]:
        answer: Deferred[Verdict] = Deferred()
        self.pending.append(answer)
        return answer

    def login_ended(self, session: object, username: str, outcome: LoginOutcome) -> None:
        self.ended.append(outcome)


@pytest.fixture
def guard() -> Guard:
    return Guard()


@pytest.fixture
def guarded(place: Place, store: LocalStore, clock: Clock, guard: Guard) -> Node:
    return Node(place, store, clock, more={"guard": guard}, guesses_per_user="1/15m")


def test_no_password_is_looked_at_before_every_policy_has_answered(guarded: Node, guard: Guard) -> None:
    answers: list[Response] = []
    guarded.begin("anna", USERS["anna"]).addCallback(answers.append)
    assert (guarded.checker.looked_at, answers) == (0, [])
    guard.pending[0].callback(CONTINUE)
    assert answers == [Authenticated("anna")]
    assert guard.ended == [LoginOutcome.GOOD]


def test_what_another_policy_refuses_is_no_guess(guarded: Node, guard: Guard, events: list[LogEvent]) -> None:
    for _ in range(3):
        answers: list[Response] = []
        guarded.begin("anna", b"guess").addCallback(answers.append)
        guard.pending.pop().callback(Reject("not from there", 535, "5.7.8"))
        assert reply(answers[0]) == "535 5.7.8 not from there"
    assert guarded.checker.looked_at == 0
    assert guard.ended == [LoginOutcome.UNKNOWN] * 3
    record = [event for event in events if event.get("event") == "auth.attempted"][-1]
    assert (record["outcome"], record["policy"]) == ("refused", "guard")


def test_a_client_that_leaves_while_a_policy_is_asked_frees_its_turn_and_its_charge(
    guarded: Node, guard: Guard
) -> None:
    for _ in range(5):
        guarded.begin("anna", b"guess").addErrback(lambda failure: failure.trap(CancelledError) and None)
        guarded.attempts[-1].leave()
    assert guarded.checker.looked_at == 0
    assert guard.ended == [LoginOutcome.UNKNOWN] * 5
    answers: list[Response] = []
    guarded.begin("anna", USERS["anna"]).addCallback(answers.append)
    guard.pending[-1].callback(CONTINUE)
    assert answers == [Authenticated("anna")]


def test_without_the_policy_limits_no_login_is_limited(place: Place, store: LocalStore, clock: Clock) -> None:
    node = Node(place, store, clock)
    node.context = replace(node.context, chain=PolicyChain((), clock))  # type: ignore[arg-type]
    for _ in range(30):
        node.begin("anna", b"guess", ELSEWHERE)
        node.clock.advance(11)
    assert node.checker.looked_at == 30
