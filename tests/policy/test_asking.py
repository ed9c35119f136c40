"""The chain where policies do not answer at once."""

import pytest
from twisted.internet.defer import CancelledError, Deferred, fail, succeed
from twisted.internet.task import deferLater
from zope.interface import implementer

from elemta.config import OnError
from elemta.policy import CONTINUE, ChainDecision, ChainSettings, Defer, IOutcomeObserver, Quarantine, Reject
from elemta.policy.asking import NO_OPINION

TROUBLE = Defer("Local trouble, please try again later", code=451, enhanced="4.3.0")


class Later:
    """Answers with Deferreds that the test fires."""

    def __init__(self, canceller=None):
        self.asked = []
        self._canceller = canceller

    def __call__(self, *shown):
        self.asked.append(Deferred(self._canceller))
        return self.asked[-1]


@pytest.mark.parametrize("verdict", [CONTINUE, Reject("no"), Defer("later"), Quarantine("odd")])
def test_a_verdict_that_comes_later_counts_like_one_at_once(stage, scripted, said, verdict):
    later = Later()
    client = stage.play(scripted(later), scripted())
    decision = client.rcpt()
    assert isinstance(decision, Deferred)
    stage.clock.advance(2.5)
    later.asked[0].callback(verdict)
    assert said(decision) == (NO_OPINION if verdict == CONTINUE else ChainDecision(verdict, "p1"))
    assert stage.counted.asked_[0][3] == 2.5
    assert stage.clock.getDelayedCalls() == []


def test_the_next_policy_is_asked_only_when_the_one_before_has_answered(stage, scripted, said):
    first, second, third = Later(), Later(), scripted(Reject("no"))
    client = stage.play(scripted(first), scripted(second), third)
    decision = client.rcpt()
    assert (len(first.asked), len(second.asked), len(third.seen)) == (1, 0, 0)
    first.asked[0].callback(CONTINUE)
    assert (len(second.asked), len(third.seen)) == (1, 0)
    second.asked[0].callback(CONTINUE)
    assert said(decision) == ChainDecision(Reject("no"), "p3")


def test_a_deferred_that_has_fired_already_makes_nobody_wait(stage, scripted):
    client = stage.play(
        scripted(lambda *shown: succeed(CONTINUE)), scripted(lambda *shown: succeed(Reject("no")))
    )
    assert client.rcpt() == ChainDecision(Reject("no"), "p2")
    assert stage.clock.getDelayedCalls() == []


def test_a_coroutine_that_never_awaits_makes_nobody_wait(stage, scripted):
    async def at_once(*shown):
        return Reject("no")

    client = stage.play(scripted(at_once))
    assert client.rcpt() == ChainDecision(Reject("no"), "p1")


def test_a_coroutine_may_await(stage, scripted, said):
    async def look_up(*shown):
        await deferLater(stage.clock, 1.0)
        return Reject("no")

    decision = stage.play(scripted(look_up)).rcpt()
    stage.clock.advance(1.0)
    assert said(decision) == ChainDecision(Reject("no"), "p1")


async def raise_late(clock):
    await deferLater(clock, 1.0)
    raise RuntimeError("boom")


async def leave_late(clock):
    await deferLater(clock, 1.0)
    raise SystemExit(3)


async def invalid_late(clock):
    await deferLater(clock, 1.0)
    return Reject("no", code=250)


async def nothing_late(clock):
    await deferLater(clock, 1.0)


@pytest.mark.parametrize(
    ("failing", "kind"),
    [
        (raise_late, "error"),
        (leave_late, "error"),
        (invalid_late, "invalid"),
        (nothing_late, "invalid"),
    ],
)
@pytest.mark.parametrize(
    ("on_error", "verdict"),
    [
        (OnError.ACCEPT, CONTINUE),
        (OnError.DEFER, TROUBLE),
        (OnError.REJECT, Reject("Refused by local policy", code=554, enhanced="5.7.1")),
    ],
)
def test_a_late_failure_costs_the_verdict_that_the_operator_chose(
    stage, scripted, said, failing, kind, on_error, verdict
):
    decision = stage.play(scripted(lambda *shown: failing(stage.clock)), on_error=on_error).rcpt()
    stage.clock.advance(1.0)
    assert said(decision).verdict == verdict
    assert stage.counted.failed_ == [("p1", "rcpt", kind)]


def test_a_deferred_that_failed_already_costs_the_verdict_at_once(stage, scripted):
    client = stage.play(scripted(lambda *shown: fail(RuntimeError("boom"))))
    assert client.rcpt() == ChainDecision(TROUBLE, "p1")


def test_a_deferred_of_a_deferred_is_waited_for(stage, scripted, said):
    inner = Deferred()
    decision = stage.play(scripted(lambda *shown: succeed(None).addCallback(lambda _: inner))).rcpt()
    inner.callback(Reject("no"))
    assert said(decision) == ChainDecision(Reject("no"), "p1")


# Deadlines


def never(*shown):
    return Deferred()


async def await_forever(*shown):
    await Deferred()


async def ignore_cancelling(*shown):
    while True:
        try:
            await Deferred()
        except CancelledError:
            continue


def uncancellable(*shown):
    def refuse(_):
        raise RuntimeError("I shall not be cancelled")

    return Deferred(refuse)


@pytest.mark.parametrize("hang", [never, await_forever, ignore_cancelling, uncancellable])
def test_a_policy_that_hangs_costs_its_own_verdict_when_its_time_is_up(stage, scripted, said, hang):
    client = stage.play(("slow", scripted(hang), {"timeout": 3.0}), ("fast", scripted(), {}))
    decision = client.rcpt()
    stage.clock.advance(2.9)
    assert not decision.called
    stage.clock.advance(0.1)
    assert said(decision) == ChainDecision(TROUBLE, "slow")
    assert stage.counted.failed_ == [("slow", "rcpt", "timeout")]
    (event,) = stage.events("policy.failed")
    assert (event["policy"], event["kind"], event["seconds"]) == ("slow", "timeout", 3.0)


def test_while_one_session_waits_for_a_policy_another_goes_on(stage, scripted, said):
    def slow_for_one(session, transaction, recipient):
        return Deferred() if recipient.local == "slow" else Reject("no")

    client = stage.play(scripted(slow_for_one))
    waiting = client.rcpt("slow")
    for _ in range(100):
        assert stage.another().rcpt("quick") == ChainDecision(Reject("no"), "p1")
    assert not waiting.called
    stage.clock.advance(5.0)
    assert said(waiting) == ChainDecision(TROUBLE, "p1")


def test_each_policy_has_its_own_deadline(stage, scripted, said):
    first, second = Later(), Later()
    client = stage.play(
        ("one", scripted(first), {"timeout": 2.0, "on_error": OnError.ACCEPT}),
        ("two", scripted(second), {"timeout": 2.0}),
    )
    decision = client.rcpt()
    stage.clock.advance(2.0)
    assert len(second.asked) == 1
    stage.clock.advance(1.9)
    second.asked[0].callback(Reject("no"))
    assert said(decision) == ChainDecision(Reject("no"), "two")


def test_a_timed_out_call_is_cancelled_and_its_late_answer_changes_nothing(stage, scripted, said):
    cancelled = []
    later = Later(cancelled.append)
    client = stage.play(scripted(later), timeout=1.0)
    decision = client.rcpt()
    stage.clock.advance(1.0)
    assert cancelled == later.asked
    assert said(decision).verdict == TROUBLE
    assert stage.events("policy.answered_late") == []


def test_an_answer_after_the_deadline_is_dropped_and_logged_once(stage, scripted, said):
    gate = Deferred()

    async def stubborn(session, transaction, recipient):
        try:
            await Deferred()
        except CancelledError:
            await gate
        transaction.add_header("X-Late", "yes")
        return Reject("too late")

    client = stage.play(scripted(stubborn), timeout=1.0, on_error=OnError.ACCEPT)
    decision = client.rcpt()
    stage.clock.advance(1.0)
    assert said(decision) == NO_OPINION
    gate.callback(None)
    (event,) = stage.events("policy.answered_late")
    assert (event["policy"], event["stage"], event["failed"]) == ("p1", "rcpt", True)
    assert client.transaction.added_headers == []
    assert stage.counted.asked_ == []


# A client that goes away


def test_a_session_that_ends_gives_up_what_is_being_asked(stage, scripted):
    cancelled = []
    later, next_one = Later(cancelled.append), scripted()
    client = stage.play(scripted(later), next_one)
    decision = client.rcpt()
    client.talk.disconnected()
    assert cancelled == later.asked
    assert not decision.called
    assert stage.clock.getDelayedCalls() == []
    assert stage.counted.failed_ == []
    assert next_one.seen == []


def test_cancelling_the_decision_gives_the_question_up(stage, scripted, said):
    cancelled = []
    later = Later(cancelled.append)
    decision = stage.play(scripted(later)).rcpt()
    decision.cancel()
    assert cancelled == later.asked
    assert said(decision).check(CancelledError)
    assert stage.clock.getDelayedCalls() == []


def test_nothing_is_accepted_from_a_session_that_is_over(stage, scripted):
    client = stage.play(scripted())
    client.talk.disconnected()
    assert client.message().verdict.code == 421


# Too many calls


def test_the_unanswered_calls_of_one_policy_are_bounded(stage, scripted):
    later = Later()
    stage.play(scripted(later), terms=ChainSettings(max_outstanding=3))
    decisions = [stage.another(ip=f"192.0.{number}.1").rcpt() for number in range(5)]
    assert len(later.asked) == 3
    assert decisions[3] == decisions[4] == ChainDecision(TROUBLE, "p1")
    assert stage.counted.failed_ == [("p1", "rcpt", "busy")] * 2
    assert len(stage.events("policy.busy")) == 1
    later.asked[0].callback(CONTINUE)
    stage.another(ip="192.0.5.1").rcpt()
    assert len(later.asked) == 4


def test_calls_that_never_end_count_as_unanswered_after_their_deadline(stage, scripted, said):
    stage.play(scripted(ignore_cancelling), terms=ChainSettings(max_outstanding=2, failures=100))
    first, second = stage.another().rcpt(), stage.another(ip="192.0.3.1").rcpt()
    stage.clock.advance(5.0)
    assert said(first) == said(second) == ChainDecision(TROUBLE, "p1")
    assert stage.another(ip="192.0.4.1").rcpt() == ChainDecision(TROUBLE, "p1")
    assert stage.counted.failed_[-1] == ("p1", "rcpt", "busy")


def test_one_network_that_makes_a_policy_slow_leaves_room_for_all_others(stage, scripted):
    later = Later()
    stage.play(scripted(later), terms=ChainSettings(max_outstanding=100))
    for number in range(200):
        stage.another(ip=f"192.0.2.{number}").rcpt()
    assert len(later.asked) == 50
    others = [stage.another(ip=f"198.51.{number}.1").rcpt() for number in range(50)]
    assert all(isinstance(decision, Deferred) for decision in others)


def test_facts_that_hang_keep_no_policy_from_being_asked(stage, scripted):
    @implementer(IOutcomeObserver)
    class Hanging(type(scripted())):
        def disconnected(self, session):
            return Deferred()

        committed = refused = None

    policy = Hanging()
    stage.play(policy, terms=ChainSettings(max_outstanding=40))
    for number in range(100):
        stage.another(ip=f"198.51.{number}.1").talk.disconnected()
    policy.answer = Later()
    assert isinstance(stage.another().rcpt(), Deferred)
