"""Policies on the way out: the route that they choose, what they learn, and what their failures cost."""

from io import BytesIO

import pytest
from twisted.internet.defer import CancelledError, Deferred, fail, succeed
from zope.interface import implementer

from elemta.address import Address
from elemta.config import Mode, OnError
from elemta.envelope import Client, Envelope, Recipient
from elemta.errors import NotSigned
from elemta.outcome import Outcome, Status
from elemta.policy import (
    CONTINUE,
    Accept,
    ChainDecision,
    ChainSettings,
    Defer,
    Hold,
    IDeliveryObserver,
    IDeliveryPolicy,
    ISigner,
    Quarantine,
    Reject,
    RouteTo,
)
from elemta.policy.asking import NO_OPINION
from elemta.policy.message_view import MessageContent

RECIPIENT = Recipient(Address("bob", "example.net"))
ENVELOPE = Envelope(
    "2CmXq07DRb3",
    Address("alice", "example.org"),
    (RECIPIENT,),
    1_800_000_000.0,
    1000,
    client=Client("192.0.2.7", "client.example", "submission", "s1", "alice"),
)
OUTCOME = Outcome(
    "2CmXq07DRb3", RECIPIENT.address, Status.DELIVERED, "ok", "mx:", "mail.example.net", 1_800_000_001.0
)
TROUBLE = Defer("Local trouble, please try again later", code=451, enhanced="4.3.0")


@implementer(IDeliveryPolicy)
class Router:
    """Answers with what it was made with; a callable is called."""

    def __init__(self, answer):
        self.answer = answer
        self.seen = []

    def route(self, envelope, recipient):
        self.seen.append((envelope, recipient))
        return self.answer() if callable(self.answer) else self.answer


@implementer(IDeliveryObserver)
class Listener:
    """Keeps what it is called with; ``answer`` is called with it."""

    def __init__(self, answer=None):
        self.told = []
        self._answer = answer

    def attempted(self, outcome):
        self.told.append(outcome)
        return self._answer(outcome) if self._answer else None


def raising():
    raise RuntimeError("boom")


def ask(stage, *policies, terms=None, envelope=ENVELOPE, **common):
    if policies:
        stage.play(*policies, terms=terms, **common)
    return stage.chain.delivery_hooks.route(envelope, RECIPIENT)


@pytest.mark.parametrize("choice", [RouteTo("smtp://mail.example.net:25"), RouteTo("mx:"), Hold("by hand")])
def test_the_first_policy_with_an_opinion_decides(stage, choice):
    third = Router(RouteTo("hold:"))
    assert ask(stage, Router(CONTINUE), Router(choice), third) == ChainDecision(choice, "p2")
    assert third.seen == []
    assert [(name, where, verdict) for name, where, verdict, _ in stage.counted.asked_] == [
        ("p1", "route", "continue"),
        ("p2", "route", "hold" if isinstance(choice, Hold) else "route"),
    ]


def test_policies_see_the_envelope_and_the_recipient(stage):
    router = Router(CONTINUE)
    assert ask(stage, router) == NO_OPINION
    assert router.seen == [(ENVELOPE, RECIPIENT)]


def test_a_chain_without_such_policies_asks_and_tells_nobody(stage, scripted):
    stage.play(scripted())
    hooks = stage.chain.delivery_hooks
    assert (hooks.asks, hooks.tells) == (False, False)
    assert hooks.route(ENVELOPE, RECIPIENT) == NO_OPINION
    hooks.attempted(OUTCOME)


def test_a_choice_is_logged_with_its_policy_and_the_message(stage):
    ask(stage, Router(RouteTo("mx:")))
    (event,) = stage.events("policy.route")
    assert (event["policy"], event["target"], event["queue_id"]) == ("p1", "mx:", "2CmXq07DRb3")


def test_what_a_policy_says_of_a_route_is_logged_but_for_the_credentials(stage):
    ask(stage, Router(RouteTo("smtp://127.0.0.1", tls="may", credentials=("anna", "sesame"))))
    (event,) = stage.events("policy.route")
    assert (event["target"], event["tls"]) == ("smtp://127.0.0.1", "may")
    assert "source" not in event
    assert "sesame" not in str(event)
    assert "anna" not in str(event)


def test_an_answer_that_comes_later_counts_like_one_at_once(stage, said):
    later = Deferred()
    decision = ask(stage, Router(later), Router(Hold("second")))
    assert isinstance(decision, Deferred)
    stage.clock.advance(1.5)
    later.callback(CONTINUE)
    assert said(decision) == ChainDecision(Hold("second"), "p2")
    assert stage.counted.asked_[0][3] == 1.5
    assert stage.clock.getDelayedCalls() == []


def test_a_coroutine_may_answer(stage):
    async def at_once():
        return RouteTo("mx:")

    assert ask(stage, Router(at_once)) == ChainDecision(RouteTo("mx:"), "p1")


@pytest.mark.parametrize(
    ("on_error", "cost"),
    [
        (OnError.ACCEPT, NO_OPINION),
        (OnError.DEFER, ChainDecision(TROUBLE, "p1")),
        (OnError.REJECT, ChainDecision(Hold("the policy p1 failed"), "p1")),
    ],
)
@pytest.mark.parametrize(
    ("answer", "kind"),
    [
        (raising, "error"),
        (None, "invalid"),
        ("mx:", "invalid"),
        (Accept(), "invalid"),
        (Reject("no"), "invalid"),
        (Quarantine("odd"), "invalid"),
        (Defer("later", code=550), "invalid"),
        (RouteTo("mx:example.net"), "invalid"),
        (RouteTo("smtp://"), "invalid"),
        (RouteTo(None), "invalid"),
        (Hold(7), "invalid"),
    ],
)
def test_a_failure_costs_what_the_operator_chose_and_never_a_bounce(stage, answer, kind, on_error, cost):
    assert ask(stage, Router(answer), on_error=on_error) == cost
    assert stage.counted.failed_ == [("p1", "route", kind)]


def test_a_policy_that_does_not_answer_in_time_costs_its_own_opinion(stage, said):
    cancelled = []
    never = Deferred(cancelled.append)
    decision = ask(stage, Router(never), timeout=2.0)
    stage.clock.advance(1.9)
    assert not decision.called
    stage.clock.advance(0.2)
    assert said(decision) == ChainDecision(TROUBLE, "p1")
    assert cancelled == [never]
    assert stage.counted.failed_ == [("p1", "route", "timeout")]


def test_a_policy_that_answers_nobody_on_the_way_out_is_waited_for_shortly(stage, said):
    hanging = Router(Deferred)
    stage.play(hanging, terms=ChainSettings(failures=3, rest=30.0), timeout=10.0)
    for _ in range(3):
        ask(stage)
        stage.clock.advance(10.0)
    decision = ask(stage)
    stage.clock.advance(2.0)
    assert said(decision) == ChainDecision(TROUBLE, "p1")
    assert stage.counted.failed_[-1] == ("p1", "route", "open")


def test_unanswered_questions_are_bounded(stage):
    router = Router(Deferred)
    stage.play(router, terms=ChainSettings(max_outstanding=2))
    assert isinstance(ask(stage), Deferred)
    assert ask(stage) == ChainDecision(TROUBLE, "p1")
    assert len(router.seen) == 1


def test_an_observed_policy_is_asked_and_changes_nothing(stage):
    assert ask(stage, Router(Hold("by hand")), Router(raising), mode=Mode.OBSERVE) == NO_OPINION
    assert stage.counted.asked_[0][:3] == ("p1", "route", "hold")
    assert stage.events("policy.route")[0]["mode"] == "observe"


def test_a_policy_is_asked_only_about_mail_of_its_listeners(stage):
    router = Router(Hold("by hand"))
    assert ask(stage, router, listeners=("mx",)) == NO_OPINION
    assert ask(stage, router, listeners=("mx", "submission")) == ChainDecision(Hold("by hand"), "p1")
    assert len(router.seen) == 1


def test_a_question_that_is_given_up_is_neither_success_nor_failure(stage):
    never = Deferred()
    decision = ask(stage, Router(never))
    decision.addErrback(lambda failure: failure.trap(CancelledError))
    decision.cancel()
    assert stage.clock.getDelayedCalls() == []
    assert stage.counted.failed_ == []


@pytest.mark.parametrize("verdict", [RouteTo("mx:"), Hold("by hand")])
def test_a_choice_of_routes_is_invalid_in_a_session(stage, scripted, verdict):
    client = stage.play(scripted(verdict))
    assert client.rcpt() == ChainDecision(TROUBLE, "p1")
    assert stage.counted.failed_ == [("p1", "rcpt", "invalid")]


# Facts


def test_everybody_is_told_of_an_attempt_whatever_the_others_do_with_it(stage):
    first = Listener(lambda outcome: raising())
    second, third = Listener(lambda outcome: Deferred()), Listener()
    stage.play(first, second, third, timeout=1.0)
    stage.chain.delivery_hooks.attempted(OUTCOME, ENVELOPE)
    assert first.told == second.told == third.told == [OUTCOME]
    stage.clock.advance(1.1)
    assert stage.counted.failed_ == [("p1", "attempted", "error"), ("p2", "attempted", "timeout")]
    failed = stage.events("policy.failed")
    assert [event["queue_id"] for event in failed] == ["2CmXq07DRb3"] * 2
    assert stage.clock.getDelayedCalls() == []


def test_only_who_cares_for_the_listener_is_told(stage):
    inside, outside = Listener(), Listener()
    stage.play(("in", inside, {"listeners": ("submission",)}), ("out", outside, {"listeners": ("mx",)}))
    stage.chain.delivery_hooks.attempted(OUTCOME, ENVELOPE)
    assert (inside.told, outside.told) == ([OUTCOME], [])


@implementer(ISigner)
class Signer:
    """Adds a field, and answers with what it was made with; a callable is called."""

    def __init__(self, answer):
        self.answer = answer

    def sign(self, envelope, message):
        message.add_header("X-Signed", envelope.queue_id)
        return self.answer() if callable(self.answer) else self.answer


async def answering(answer):
    return answer


SIGNED = b"X-Signed: 2CmXq07DRb3\r\n"
WAYS = {"at once": lambda answer: answer, "deferred": succeed, "coroutine": answering}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(
    ("answer", "fields"),
    [(None, SIGNED), (CONTINUE, SIGNED), (Reject("no"), None), (Accept(), None), (b"field", None), (0, None)],
)
def test_a_policy_that_signs_answers_nothing_however_it_answers(stage, said, way, answer, fields):
    """Signing has no verdicts: any answer but None and Continue is a failure of the policy."""
    stage.play(Signer(lambda: WAYS[way](answer)))
    content = MessageContent(20, b"Subject: hi\r\n\r\nhi\r\n\r\n", BytesIO)
    if fields is not None:
        assert said(stage.chain.delivery_hooks.sign(ENVELOPE, content)) == fields
        assert stage.counted.asked_[0][:3] == ("p1", "sign", "continue")
        return
    with pytest.raises(NotSigned):
        said(stage.chain.delivery_hooks.sign(ENVELOPE, content))
    (event,) = stage.events("policy.failed")
    assert (event["stage"], event["kind"]) == ("sign", "invalid")


@implementer(IDeliveryObserver)
class Keeper:
    """Keeps results before they are recorded; ``answer`` is called for each."""

    def __init__(self, answer):
        self.kept = []
        self._answer = answer

    def attempted(self, outcome):
        """Not of interest."""

    def recording(self, envelope, recipient, outcome):
        self.kept.append((envelope, recipient, outcome))
        return self._answer()


def record(stage):
    return stage.chain.delivery_hooks.recording(ENVELOPE, RECIPIENT, OUTCOME)


def test_a_record_waits_for_each_policy_that_keeps_it(stage):
    waiting = Deferred()
    stage.play(Keeper(lambda: waiting), Keeper(lambda: None), Listener())
    assert stage.chain.delivery_hooks.keeps
    (kept,) = record(stage)
    assert not kept.called
    waiting.callback(None)
    assert kept.called


@pytest.mark.parametrize("answer", [raising, lambda: fail(ValueError("boom")), lambda: answering("nonsense")])
def test_a_policy_that_fails_to_keep_it_delays_no_record(stage, answer):
    stage.play(Keeper(answer))
    assert all(kept.called for kept in record(stage))


def test_a_policy_that_never_keeps_it_is_not_waited_for_again_until_it_rested(stage):
    stage.play(Keeper(Deferred), timeout=5.0)
    (kept,) = record(stage)
    stage.clock.advance(4.9)
    assert not kept.called
    stage.clock.advance(0.1)
    assert kept.called
    assert not record(stage)
    stage.clock.advance(30.0)
    assert len(record(stage)) == 1


def test_a_busy_policy_is_called_all_the_same(stage):
    keeper = Keeper(Deferred)
    stage.play(keeper, terms=ChainSettings(max_outstanding=2))
    for _ in range(5):
        record(stage)
    assert len(keeper.kept) == 5


def test_without_such_a_policy_nothing_is_kept(stage):
    stage.play(Listener())
    assert not stage.chain.delivery_hooks.keeps
    assert not record(stage)
