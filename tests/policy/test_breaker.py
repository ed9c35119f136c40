"""The breaker of a policy: no party's input switches it off for others, and a lost backend costs little."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import pytest
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock, deferLater

from elemta.config import OnError
from elemta.policy import CONTINUE, ChainDecision, ChainSettings, Defer, Reject
from elemta.policy.breaker import CallParties, PolicyBreaker

TROUBLE = Defer("Local trouble, please try again later", code=451, enhanced="4.3.0")
TIMEOUT = 5.0


def hang(_: Clock) -> Any:
    return Deferred()


def raise_late(clock: Clock) -> Any:
    return deferLater(clock, 4.9, lambda: 1 / 0)


def raise_soon(clock: Clock) -> Any:
    return deferLater(clock, 0.15, lambda: 1 / 0)


def invalid_late(clock: Clock) -> Any:
    return deferLater(clock, 4.0, lambda: None)


def network(number: int) -> str:
    """An address in a network of its own."""
    return f"10.{number // 250 % 250}.{number % 250}.1"


class Traffic:
    """Sessions of many clients, and one policy that looks their HELO name up, on a still clock."""

    def __init__(self, stage: Any, scripted: Any, **common: Any) -> None:
        self.stage = stage
        self.clock: Clock = stage.clock
        self.lost = False
        self.answers: dict[str, Callable[[Clock], Any]] = {}
        self.slowness = 0.05
        terms = common.pop("terms", None)
        stage.play(scripted(self._look_up), terms=terms, **common)

    def _look_up(self, session: Any) -> Any:
        if self.lost:
            return Deferred()
        how = self.answers.get(session.helo)
        if how is not None:
            return how(self.clock)
        return deferLater(self.clock, self.slowness, lambda: CONTINUE)

    def helo(self, ip: str, helo: str = "") -> _Asked:
        return _Asked(self, ip, helo or f"mail.{ip}.example")

    def attack(self, ip: str, how: Callable[[Clock], Any], helo: str = "") -> _Asked:
        name = helo or f"dead-{ip}.example"
        self.answers[name] = how
        return self.helo(ip, name)

    def pass_time(self, seconds: float) -> None:
        self.clock.pump([0.05] * round(seconds / 0.05))

    @property
    def is_open(self) -> bool:
        return bool(self.stage.chain.open_breakers()["p1"])


class _Asked:
    """What became of one session's HELO."""

    def __init__(self, traffic: Traffic, ip: str, helo: str) -> None:
        self.decision: ChainDecision | None = None
        self.seconds = 0.0
        began = traffic.clock.seconds()
        decision = traffic.stage.another(ip=ip, helo=helo).helo()

        def decided(decision: ChainDecision) -> None:
            self.decision = decision
            self.seconds = traffic.clock.seconds() - began

        if isinstance(decision, Deferred):
            decision.addCallback(decided)
        else:
            decided(decision)

    @property
    def failed(self) -> bool:
        return self.decision is None or self.decision.verdict != CONTINUE


def count_failed(asked: list[_Asked]) -> int:
    return sum(each.failed for each in asked)


@pytest.fixture
def traffic(stage: Any, scripted: Any) -> Traffic:
    return Traffic(stage, scripted)


WAYS = [hang, raise_late, raise_soon, invalid_late]


@pytest.mark.parametrize("how", WAYS)
@pytest.mark.parametrize("networks", [1, 5, 50])
@pytest.mark.parametrize("slowness", [0.02, 0.3, 0.9])
def test_sessions_with_dead_dns_cost_no_honest_session_of_the_next_half_minute(
    traffic: Traffic, how: Callable[[Clock], Any], networks: int, slowness: float
) -> None:
    traffic.slowness = slowness
    for number in range(max(5, networks)):
        traffic.attack(network(number % networks), how, helo=f"dead{number}.example")
    traffic.pass_time(6)
    honest = []
    for number in range(300):
        honest.append(traffic.helo(network(1000 + number)))
        traffic.pass_time(0.1)
    traffic.pass_time(5)
    assert count_failed(honest) == 0


@pytest.mark.parametrize("how", WAYS)
@pytest.mark.parametrize("burst", [1, 5, 25])
@pytest.mark.parametrize("networks", [1, 500])
def test_five_hundred_slow_connections_among_honest_ones_cost_none_of_these_anything(
    traffic: Traffic, how: Callable[[Clock], Any], burst: int, networks: int
) -> None:
    chance = random.Random(7)
    honest: list[_Asked] = []
    made = 0
    # A tenth of the five minutes and 14,902 sessions, with as many attackers
    for tick in range(300):
        if tick % max(1, 300 * burst // 500) == 0:
            for _ in range(burst if burst > 1 else 2):
                traffic.attack(network(made % networks), how, helo=f"dead{made}.example")
                made += 1
        for _ in range(5):
            traffic.slowness = chance.choice([0.01, 0.02, 0.05, 0.2, 0.7, 2.0])
            honest.append(traffic.helo(network(5000 + chance.randrange(2000))))
        traffic.pass_time(0.1)
    traffic.pass_time(6)
    assert made >= 500
    assert count_failed(honest) == 0
    assert not traffic.is_open


def test_an_attack_that_goes_on_while_few_are_honest_costs_these_nothing_either(traffic: Traffic) -> None:
    honest = []
    for number in range(120):
        for attacker in range(10):
            traffic.attack(network(number * 10 + attacker), hang)
        if number % 10 == 9:
            honest.append(traffic.helo(network(5000 + number)))
        traffic.pass_time(1)
    assert traffic.is_open
    assert count_failed(honest) == 0


def test_a_policy_whose_backend_is_lost_costs_few_sessions_their_whole_timeout(traffic: Traffic) -> None:
    for number in range(50):
        traffic.helo(network(number))
        traffic.pass_time(0.2)
    traffic.lost = True
    traffic.pass_time(TIMEOUT)
    asked = []
    for number in range(200):
        asked.append(traffic.helo(network(100 + number)))
        traffic.pass_time(1)
    traffic.pass_time(5)
    assert traffic.is_open
    assert count_failed(asked) == 200
    # Those before it opened, and three trials in each of seven rests
    assert sum(each.seconds > 1.1 for each in asked) <= 12 + 7 * 3
    assert max(each.seconds for each in asked[20:]) <= TIMEOUT + 0.1
    traffic.lost = False
    back = []
    for number in range(10):
        back.append(traffic.helo(network(500 + number)))
        traffic.pass_time(0.5)
    assert count_failed(back) == 0
    assert not traffic.is_open
    (opened,) = traffic.stage.events("policy.breaker_open")
    assert (opened["policy"], opened["stage"]) == ("p1", "helo")
    assert len(traffic.stage.events("policy.breaker_closed")) == 1


def test_a_backend_that_was_lost_from_the_start_costs_the_only_network_little(traffic: Traffic) -> None:
    traffic.lost = True
    asked = []
    for _ in range(30):
        asked.append(traffic.helo("192.0.2.1", "front.example"))
        traffic.pass_time(TIMEOUT)
    assert [round(each.seconds) for each in asked[:5]] == [5] * 5
    assert sum(each.seconds > 1.1 for each in asked[5:]) <= 5
    assert traffic.stage.counted.failed_[5] == ("p1", "helo", "open")


def test_answers_that_an_attacker_makes_hide_no_lost_backend(traffic: Traffic) -> None:
    traffic.lost = True
    policy_answers = traffic.answers

    def answer(clock: Clock) -> Any:
        return deferLater(clock, 0.01, lambda: CONTINUE)

    policy_answers["literal.example"] = answer
    asked = []
    for number in range(100):
        traffic.lost = False
        traffic.helo("203.0.113.9", "literal.example")
        traffic.lost = True
        asked.append(traffic.helo(network(number)))
        traffic.pass_time(1)
    traffic.pass_time(5)
    assert traffic.is_open
    assert sum(each.seconds > 1.1 for each in asked[40:]) <= 10


def test_an_open_breaker_is_no_way_around_a_policy(stage: Any, scripted: Any) -> None:
    traffic = Traffic(stage, scripted, on_error=OnError.ACCEPT)
    for number in range(20):
        traffic.attack(network(number), hang)
    traffic.pass_time(6)
    assert traffic.is_open
    spam = traffic.attack(
        network(1), lambda clock: deferLater(clock, 0.3, lambda: Reject("spam")), "s.example"
    )
    traffic.pass_time(1)
    assert spam.decision == ChainDecision(Reject("spam"), "p1")


def test_a_slow_answer_that_is_usual_is_waited_for_with_an_open_breaker_too(traffic: Traffic) -> None:
    traffic.slowness = 2.0
    for number in range(20):
        traffic.helo(network(number))
    traffic.pass_time(20)
    for number in range(100, 150):
        traffic.attack(network(number), hang)
    traffic.pass_time(6)
    assert traffic.is_open
    honest = [traffic.helo(network(300 + number)) for number in range(50)]
    traffic.pass_time(6)
    assert count_failed(honest) == 0


def test_failures_that_cost_no_time_open_nothing(stage: Any, scripted: Any) -> None:
    stage.play(scripted(lambda *shown: 1 / 0))
    for number in range(100):
        stage.another(ip=network(number)).helo()
    assert stage.chain.open_breakers() == {"p1": False}


def test_clients_that_go_away_open_nothing(stage: Any, scripted: Any) -> None:
    stage.play(scripted(lambda *shown: Deferred()), terms=ChainSettings(failures=1))
    for number in range(10):
        client = stage.another(ip=network(number))
        client.helo()
        client.talk.disconnected()
    assert stage.chain.open_breakers() == {"p1": False}


def test_what_one_stage_waits_for_in_vain_shortens_no_other(stage: Any, scripted: Any) -> None:
    stage.play(scripted(lambda *shown: Deferred()))
    for number in range(10):
        stage.another(ip=network(number)).helo()
    stage.clock.advance(TIMEOUT)
    waiting = stage.another().rcpt()
    stage.clock.advance(TIMEOUT - 0.1)
    assert not waiting.called


def test_the_breaker_of_one_policy_is_none_of_anothers_business(stage: Any, scripted: Any, said: Any) -> None:
    hanging = ("slow", scripted(lambda *shown: Deferred()), {"on_error": OnError.ACCEPT})
    client = stage.play(hanging, ("relay", scripted(Reject("no")), {}), terms=ChainSettings(failures=1))
    waiting = client.rcpt()
    stage.clock.advance(5.0)
    assert said(waiting) == ChainDecision(Reject("no"), "relay")


# The breaker by itself


@pytest.mark.parametrize("kind", ["helo", "sender_domain", "recipient_domain"])
def test_what_one_party_has_in_common_opens_nothing_for_those_without_it(kind: str) -> None:
    def cause(number: int, value: str) -> CallParties:
        others = {"helo": f"h{number}", "sender_domain": f"s{number}", "recipient_domain": f"r{number}"}
        return CallParties(network(number), **{**others, kind: value})

    breaker = PolicyBreaker(TIMEOUT)
    for number in range(3):
        breaker.succeeded(cause(number, f"good{number}"), 0.1, float(number))
    assert not any(breaker.failed(cause(number, "dead"), 100.0 + number) for number in range(10, 100))
    assert breaker.longest_wait(network(500), 300.0) == TIMEOUT
    assert any(breaker.failed(cause(number, f"dead{number}"), 300.0 + number) for number in range(100, 140))


def test_a_site_with_one_domain_of_recipients_notices_a_lost_backend() -> None:
    breaker = PolicyBreaker(TIMEOUT)
    for number in range(10):
        breaker.succeeded(CallParties(network(number), "h", "s", "example.com"), 0.1, float(number))
    opened = [
        breaker.failed(
            CallParties(network(number), f"h{number}", f"s{number}", "example.com"), 100.0 + number
        )
        for number in range(20)
    ]
    assert opened.count(True) == 1


def test_what_a_breaker_remembers_is_bounded() -> None:
    breaker = PolicyBreaker(TIMEOUT)
    for number in range(2000):
        breaker.failed(CallParties(network(number)), float(number))
        breaker.succeeded(CallParties(network(number + 3000)), 0.1, number + 0.5)
        breaker.longest_wait(network(number), float(number))
    assert len(breaker._answered) == 64
    assert len(breaker._recent) == 20
    assert len(breaker._tried) <= 20
