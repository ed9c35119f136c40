"""Policies with a life: started before they are asked, handed over at a reload, stopped at the end."""

from __future__ import annotations

from typing import Any

import pytest
from twisted.internet.defer import Deferred
from twisted.internet.testing import MemoryReactorClock
from zope.interface import implementer

from elemta.config import OnError, PolicyCommon
from elemta.deferred_value import value_of
from elemta.policy import CONTINUE, ILifecycle, IRcptPolicy, LoadedPolicy, PolicyChain, Reject
from elemta.policy.backends import PolicyBackends
from elemta.policy.lifecycle import FIRST_RETRY, LAST_RETRY, PolicyLives
from elemta.policy.verdicts import reply_of
from tests.policy.conftest import LOCAL, Client, Counted
from tests.support.runtime import simulated_runtime

REFUSED = Reject("asked", code=550, enhanced="5.7.1")


@implementer(IRcptPolicy, ILifecycle)
class Living:
    """A policy whose start and stop do what the test says."""

    def __init__(self, history: list[str], name: str, start: Any = None, stop: Any = None) -> None:
        self.history, self.name = history, name
        self._start, self._stop = start, stop
        self.predecessor: Any = "not started"

    def start(self, predecessor: object | None) -> Any:
        self.predecessor = predecessor
        before = getattr(predecessor, "name", "nothing")
        self.history.append(f"{self.name} starts after {before}")
        return self._start() if self._start is not None else None

    def stop(self) -> Any:
        self.history.append(f"{self.name} stops")
        return self._stop() if self._stop is not None else None

    def rcpt(self, session: Any, transaction: Any, recipient: Any) -> Any:
        self.history.append(f"{self.name} is asked")
        return REFUSED


@implementer(IRcptPolicy)
class Plain:
    def rcpt(self, session: Any, transaction: Any, recipient: Any) -> Any:
        return CONTINUE


def raises() -> Any:
    raise OSError("Address already in use")


def exits() -> Any:
    raise SystemExit(3)


async def fails() -> Any:
    raise OSError("Address already in use")


class House:
    def __init__(self) -> None:
        self.clock = MemoryReactorClock()  # type: ignore[no-untyped-call]
        reactor: Any = self.clock
        self.backends = PolicyBackends(reactor, simulated_runtime(self.clock).threads)
        self.lives = PolicyLives(reactor, self.backends)
        self.counted = Counted()
        self.history: list[str] = []

    def chain(self, *policies: Any, on_error: OnError = OnError.DEFER) -> PolicyChain:
        loaded = [
            LoadedPolicy(f"p{number}", policy, PolicyCommon(timeout=5.0, on_error=on_error))
            for number, policy in enumerate(policies)
        ]
        return PolicyChain(loaded, self.clock, self.counted, relay=LOCAL)

    def begin(self, chain: PolicyChain) -> list[Any]:
        done: list[Any] = []
        Deferred.fromCoroutine(value_of(self.lives.start(chain))).addBoth(done.append)
        return done

    def replace(self, chain: PolicyChain) -> None:
        assert self.begin(chain) == [None]
        self.lives.retire_others(chain)

    def living(self, name: str, **what: Any) -> Living:
        return Living(self.history, name, **what)

    def stop(self) -> list[Any]:
        done: list[Any] = []
        Deferred.fromCoroutine(self.lives.stop()).addBoth(done.append)
        return done


@pytest.fixture
def house() -> House:
    return House()


def code(client: Client) -> int:
    decision = client.rcpt()
    assert not isinstance(decision, Deferred)
    reply = reply_of(decision.verdict)
    return 250 if reply is None else reply.code


def test_a_policy_starts_before_it_is_asked_and_stops_at_the_end(house: House) -> None:
    chain = house.chain(house.living("a"))
    assert house.begin(chain) == [None]
    client = Client(chain)
    assert code(client) == 550
    client.talk.disconnected()
    assert house.stop() == [None]
    assert house.history == ["a starts after nothing", "a is asked", "a stops"]


def test_a_reload_hands_over_and_the_old_one_stops_after_its_last_session(house: House) -> None:
    first, second = house.living("first"), house.living("second")
    old, new = house.chain(first), house.chain(second)
    assert house.begin(old) == [None]
    one, other = Client(old), Client(old)
    house.replace(new)
    assert second.predecessor is first
    house.clock.pump([0.25] * 20)
    assert code(one) == 550
    one.talk.disconnected()
    house.clock.pump([0.25] * 20)
    assert "first stops" not in house.history
    other.talk.disconnected()
    other.talk.disconnected()
    house.clock.pump([0.25] * 4)
    assert house.history == [
        "first starts after nothing",
        "second starts after first",
        "first is asked",
        "first stops",
    ]
    assert house.stop() == [None]
    assert house.history[-1] == "second stops"


def test_six_reloads_leave_one_policy(house: House) -> None:
    for number in range(7):
        house.replace(house.chain(house.living(f"n{number}")))
        house.clock.pump([0.25] * 4)
    started = sum("starts" in each for each in house.history)
    stopped = sum("stops" in each for each in house.history)
    assert (started, stopped) == (7, 6)
    assert not house.clock.getDelayedCalls()


@pytest.mark.parametrize("how", [raises, fails, exits])
@pytest.mark.parametrize(
    ("on_error", "answer"), [(OnError.DEFER, 451), (OnError.ACCEPT, 250), (OnError.REJECT, 554)]
)
def test_a_policy_that_can_not_start_is_not_asked_and_tried_again(
    house: House, logged: list[Any], how: Any, on_error: OnError, answer: int
) -> None:
    results = [how, how, lambda: None]
    policy = house.living("a", start=lambda: results.pop(0)())  # noqa: PLW0108 - one for each start
    chain = house.chain(policy, Plain(), on_error=on_error)
    assert house.begin(chain) == [None]
    client = Client(chain)
    assert code(client) == answer
    assert house.counted.failed_[-1][:3] == ("p0", "rcpt", "stopped")
    house.clock.advance(FIRST_RETRY)
    assert code(client) == answer
    house.clock.advance(2 * FIRST_RETRY)
    assert code(client) == 550
    assert house.history.count("a is asked") == 1
    assert [event["policy"] for event in logged if event.get("event") == "policy.start_failed"] == ["p0"] * 2


def test_the_wait_for_the_next_try_has_a_bound_and_ends_with_the_policy(house: House) -> None:
    chain = house.chain(house.living("a", start=raises))
    house.begin(chain)
    house.clock.pump([1.0] * 1000)
    tries = sum("starts" in each for each in house.history)
    assert 1000 / LAST_RETRY < tries < 1000 / LAST_RETRY + 10
    house.stop()
    assert not house.clock.getDelayedCalls()
    assert house.history[-1] == "a stops"


def test_a_start_that_never_ends_takes_its_timeout_and_no_other_policys(house: House) -> None:
    late: Deferred[None] = Deferred()
    waiting = house.living("waiting", start=lambda: late)
    good = house.living("good")
    done = house.begin(house.chain(waiting, good))
    assert not done
    house.clock.advance(4.9)
    assert not done
    house.clock.advance(0.1)
    assert done == [None]
    assert late.called  # cancelled


def test_no_question_is_lost_while_the_new_ones_start(house: House) -> None:
    """The old chain is in force until the last policy of the new one has started, or failed."""
    old = house.chain(house.living("old"))
    house.begin(old)
    ready: Deferred[None] = Deferred()
    new = house.chain(house.living("new", start=lambda: ready))
    done = house.begin(new)
    assert not done
    assert code(Client(old)) == 550
    ready.callback(None)
    assert done == [None]
    assert code(Client(new)) == 550


@pytest.mark.parametrize("how", [raises, fails, exits, Deferred])
def test_a_stop_that_fails_or_never_ends_keeps_nothing_from_ending(house: House, how: Any) -> None:
    bad, good = house.living("bad", stop=how), house.living("good")
    house.begin(house.chain(bad, good))
    done = house.stop()
    house.clock.advance(5.0)
    assert done == [None]
    assert house.history[-2:] == ["bad stops", "good stops"]


def test_a_start_that_ends_after_the_stop_opens_nothing(house: House) -> None:
    ready: Deferred[None] = Deferred()
    chain = house.chain(house.living("a", start=lambda: ready))
    house.begin(chain)
    house.stop()
    ready.callback(None)
    assert code(Client(chain)) == 451
    house.clock.advance(10.0)
    assert not house.clock.getDelayedCalls()


def test_a_call_that_ignores_its_end_does_not_keep_the_old_policy_for_ever(house: House) -> None:
    @implementer(IRcptPolicy, ILifecycle)
    class Ignoring(Living):
        def rcpt(self, session: Any, transaction: Any, recipient: Any) -> Any:
            return Deferred(lambda deferred: deferred.callback(Deferred()))

    old = house.chain(Ignoring(house.history, "old"))
    house.begin(old)
    client = Client(old)
    client.rcpt()
    client.talk.disconnected()
    house.replace(house.chain(house.living("new")))
    house.clock.pump([0.25] * 40)
    assert "old stops" in house.history


def test_sessions_of_health_checks_count_and_end(house: House) -> None:
    old = house.chain(house.living("old"))
    house.begin(old)
    client = Client(old)
    assert old.sessions == 1
    client.talk.leave()
    client.talk.leave()
    assert old.sessions == 0


def test_policies_without_a_life_cost_nothing(house: House) -> None:
    started = house.lives.start(house.chain(Plain()))
    assert started is None
