"""The chain as long as policies answer at once."""

import itertools

import pytest
from twisted.internet.defer import Deferred
from twisted.internet.task import deferLater
from zope.interface import implementer

from elemta.config import Mode, OnError
from elemta.policy import (
    CONTINUE,
    Accept,
    ChainDecision,
    Continue,
    Defer,
    Disconnect,
    IRcptPolicy,
    Quarantine,
    Reject,
    Stage,
)
from elemta.policy.asking import NO_OPINION

STAGES = ["connect", "helo", "auth", "mail", "rcpt", "data", "message"]


def ask_all(client):
    return {name: getattr(client, name)() for name in STAGES}


def test_a_chain_without_policies_has_no_opinion_and_asks_nobody(stage):
    client = stage.play()
    assert all(decision == NO_OPINION for decision in ask_all(client).values())
    # Whether a recipient may be relayed to is decided without any policy.
    assert stage.chain.asked == {Stage.RCPT}


def test_a_policy_is_asked_at_every_stage_that_it_provides_with_what_the_contract_names(stage, scripted):
    policy = scripted()
    client = stage.play(policy)
    assert all(decision == NO_OPINION for decision in ask_all(client).values())
    assert [seen[0] for seen in policy.seen] == STAGES
    assert [len(seen) - 1 for seen in policy.seen] == [1, 1, 1, 2, 3, 2, 3]
    assert str(policy.seen[4][3]) == "someone@example.com"
    assert policy.seen[6][3].headers.get("subject") == "hello"


def test_a_policy_is_asked_at_no_other_stage_than_it_provides(stage):
    @implementer(IRcptPolicy)
    class OnlyRcpt:
        def rcpt(self, session, transaction, recipient):
            return Reject("no")

        def mail(self, session, transaction):
            raise AssertionError

    client = stage.play(OnlyRcpt())
    assert stage.chain.asked == {Stage.RCPT}
    assert client.mail() == NO_OPINION
    assert client.rcpt() == ChainDecision(Reject("no"), "p1")


@pytest.mark.parametrize("verdict", [Accept(), Defer("later"), Reject("no"), Disconnect("bye")])
def test_the_first_decisive_verdict_in_the_configured_order_wins(stage, scripted, verdict):
    before, decisive, after = scripted(), scripted(verdict), scripted(Reject("never asked"))
    client = stage.play(before, decisive, after)
    assert client.rcpt() == ChainDecision(verdict, "p2")
    assert (len(before.seen), len(decisive.seen), len(after.seen)) == (1, 1, 0)


def test_an_equal_continue_is_no_opinion_too(stage, scripted):
    client = stage.play(scripted(Continue()), scripted(Reject("no")))
    assert client.rcpt() == ChainDecision(Reject("no"), "p2")


def test_answers_at_once_make_no_deferred(stage, scripted, monkeypatch):
    made = []
    monkeypatch.setattr(Deferred, "__init__", lambda self, *args, **named: made.append(self))
    client = stage.play(scripted(), scripted(), scripted(Reject("no")))
    assert client.rcpt() == ChainDecision(Reject("no"), "p3")
    assert made == []


def test_a_refusal_is_logged_with_the_policy_and_the_session(stage, scripted):
    client = stage.play(("greylist", scripted(Defer("later")), {}))
    client.rcpt()
    (event,) = stage.events("policy.verdict")
    assert event["log_level"].name == "info"
    assert event["policy"] == "greylist"
    assert event["stage"] == "rcpt"
    assert event["verdict"] == "defer"
    assert event["reply"] == "450 4.7.1 later"
    assert event["session_id"] == client.facts.id
    assert event["client_ip"] == "192.0.2.7"


def test_no_opinion_is_not_logged_and_acceptance_only_for_debugging(stage, scripted):
    client = stage.play(scripted(), scripted(Accept()))
    client.rcpt()
    (event,) = stage.events("policy.verdict")
    assert (event["policy"], event["log_level"].name) == ("p2", "debug")


def test_every_answer_is_counted_by_policy_stage_and_verdict(stage, scripted):
    client = stage.play(scripted(), scripted(Reject("no")))
    client.rcpt()
    assert stage.counted.asked_ == [("p1", "rcpt", "continue", 0.0), ("p2", "rcpt", "reject", 0.0)]
    assert stage.counted.failed_ == []


def test_an_observed_policy_is_asked_counted_and_logged_but_changes_nothing(stage, scripted):
    def watch(session, transaction, recipient):
        transaction.add_header("X-Watched", "yes")
        transaction.add_recipient("other@example.com")
        transaction.remove_recipient("first@example.com") if len(transaction.recipients) > 1 else None
        return Reject("no")

    client = stage.play(("watch", scripted(watch), {"mode": Mode.OBSERVE}))
    assert client.rcpt() == NO_OPINION
    assert stage.counted.asked_ == [("watch", "rcpt", "reject", 0.0)]
    (event,) = stage.events("policy.verdict")
    assert event["mode"] == "observe"
    assert client.transaction.added_headers == []
    assert [str(recipient) for recipient in client.transaction.recipients] == ["first@example.com"]


def test_a_quarantine_by_an_observed_policy_holds_nothing(stage, scripted):
    client = stage.play(("watch", scripted(Quarantine("odd")), {"mode": Mode.OBSERVE}))
    client.rcpt()
    assert client.talk.hold_reason(client.transaction) is None


def test_a_policy_is_asked_only_on_its_listeners(stage, scripted):
    only_mx = ("mx-only", scripted(Reject("no")), {"listeners": ("mx",)})
    everywhere = ("all", scripted(Defer("later")), {})
    stage.play(only_mx, everywhere)
    assert stage.another(listener="mx").rcpt().policy == "mx-only"
    assert stage.another(listener="submission").rcpt().policy == "all"


# What a policy does wrong while it is asked

ON_ERROR = [
    (OnError.ACCEPT, CONTINUE),
    (OnError.DEFER, Defer("Local trouble, please try again later", code=451, enhanced="4.3.0")),
    (OnError.REJECT, Reject("Refused by local policy", code=554, enhanced="5.7.1")),
]


def boom(*shown):
    raise RuntimeError("boom")


def leave(*shown):
    raise SystemExit(3)


def recurse(*shown):
    return recurse(*shown)


@pytest.mark.parametrize(("on_error", "verdict"), ON_ERROR)
@pytest.mark.parametrize(
    ("answer", "kind"),
    [
        (boom, "error"),
        (leave, "error"),
        (recurse, "error"),
        (None, "invalid"),
        ("accept", "invalid"),
        (True, "invalid"),
        (Defer("no", code=550), "invalid"),
        (lambda *shown: (each for each in shown), "invalid"),
    ],
    ids=["raises", "exits", "recurses", "none", "text", "bool", "bad code", "generator"],
)
def test_a_policy_that_fails_costs_the_verdict_that_the_operator_chose(
    stage, scripted, answer, kind, on_error, verdict
):
    bad = scripted(answer)
    client = stage.play(bad, on_error=on_error)
    other = stage.another()
    decision = client.rcpt()
    assert decision.verdict == verdict
    assert stage.counted.failed_ == [("p1", "rcpt", kind)]
    (event,) = stage.events("policy.failed")
    assert (event["policy"], event["kind"], event["session_id"]) == ("p1", kind, client.facts.id)
    bad.answer = CONTINUE
    assert other.rcpt() == NO_OPINION
    assert client.rcpt() == NO_OPINION


def test_on_error_accept_is_no_opinion_so_that_the_next_policy_still_decides(stage, scripted):
    client = stage.play(
        ("broken", scripted(boom), {"on_error": OnError.ACCEPT}), ("relay", scripted(Reject("no")), {})
    )
    assert client.rcpt() == ChainDecision(Reject("no"), "relay")


def test_local_trouble_before_the_greeting_is_a_421(stage, scripted):
    client = stage.play(scripted(boom))
    assert client.connect().verdict == Disconnect(
        "Local trouble, please try again later", code=421, enhanced="4.3.0"
    )


def test_an_observed_policy_that_fails_changes_nothing(stage, scripted):
    client = stage.play(("watch", scripted(boom), {"mode": Mode.OBSERVE, "on_error": OnError.REJECT}))
    assert client.rcpt() == NO_OPINION
    assert stage.counted.failed_ == [("watch", "rcpt", "error")]


@pytest.mark.parametrize("kind", [KeyboardInterrupt, SystemExit, GeneratorExit, BaseException])
def test_what_would_end_a_process_is_a_failure_of_the_policy(stage, scripted, kind):
    """The keyboard is the reactor's: no signal raises KeyboardInterrupt in a call."""

    def leave(*shown):
        raise kind

    client = stage.play(scripted(leave))
    assert client.rcpt().verdict == Defer("Local trouble, please try again later", code=451, enhanced="4.3.0")
    assert stage.counted.failed_ == [("p1", "rcpt", "error")]


def test_input_that_makes_a_policy_raise_never_switches_it_off_for_others(stage, scripted):
    policy = scripted(
        lambda session, transaction, recipient: boom() if recipient.local == "poison" else Reject("no")
    )
    client = stage.play(policy)
    for _ in range(50):
        assert client.rcpt("poison").verdict.code == 451
    assert stage.another().rcpt("someone") == ChainDecision(Reject("no"), "p1")


def test_of_many_failures_in_a_row_one_in_ten_seconds_has_its_traceback_in_the_log(stage, scripted):
    client = stage.play(scripted(boom))
    for _ in range(20):
        client.rcpt()
    events = stage.events("policy.failed")
    assert len(events) == 20
    assert [event for event in events if "log_failure" in event] == events[:1]
    assert "boom" in events[1]["error"]
    stage.clock.advance(10)
    client.rcpt()
    assert "log_failure" in stage.events("policy.failed")[-1]


def test_a_noisy_stage_does_not_take_the_traceback_of_another(stage, scripted):
    client = stage.play(scripted(boom))
    client.mail()
    client.rcpt()
    assert ["log_failure" in event for event in stage.events("policy.failed")] == [True, True]


def test_the_chain_tells_which_breakers_are_open(stage, scripted):
    slow = ("slow", scripted(lambda *shown: Deferred()), {"on_error": OnError.ACCEPT})
    stage.play(slow, ("quick", scripted(boom), {}))
    assert stage.chain.open_breakers() == {"slow": False, "quick": False}
    for number in range(5):
        stage.another(ip=f"192.0.{number}.1").rcpt()
        stage.clock.advance(5.0)
    assert stage.chain.open_breakers() == {"slow": True, "quick": False}


def test_a_policy_that_blocks_the_reactor_is_named_in_the_log(stage, scripted):
    def block(*shown):
        stage.clock.advance(0.5)
        return CONTINUE

    client = stage.play(scripted(block))
    client.rcpt()
    client.rcpt()
    (event,) = stage.events("policy.slow")
    assert (event["policy"], event["stage"], event["seconds"]) == ("p1", "rcpt", 0.5)


# Quarantine


def test_a_quarantine_holds_the_message_of_its_transaction_only(stage, scripted):
    policy = scripted(lambda *shown: Quarantine("odd recipient") if len(shown) == 3 else CONTINUE)
    client = stage.play(policy)
    client.mail()
    client.rcpt()
    assert client.talk.hold_reason(client.transaction) == "odd recipient"
    client.talk.committed(client.transaction)
    client.begin()
    client.mail()
    assert client.talk.hold_reason(client.transaction) is None


def test_a_quarantine_before_mail_holds_every_message_of_the_session(stage, scripted):
    policy = scripted(lambda *shown: Quarantine("odd name") if len(shown) == 1 else CONTINUE)
    client = stage.play(policy)
    client.helo()
    for _ in range(2):
        client.begin()
        client.mail()
        assert client.talk.hold_reason(client.transaction) == "odd name"
        client.talk.committed(client.transaction)
    assert stage.another().talk.hold_reason(client.transaction) is None


def test_the_reasons_of_a_session_without_an_end_do_not_add_up(stage, scripted):
    numbers = itertools.count()
    policy = scripted(lambda *shown: Quarantine(f"odd {next(numbers)}") if len(shown) == 1 else CONTINUE)
    client = stage.play(policy)
    for _ in range(300):
        client.helo()
    client.begin()
    reason = client.talk.hold_reason(client.transaction)
    assert reason.startswith("odd 0; odd 1; ")
    assert reason.count(";") < 100


def test_reasons_of_several_quarantines_are_joined_and_none_is_told_twice(stage, scripted):
    reasons = iter(["odd name", "odd recipient", "odd recipient", "odd words"])
    client = stage.play(scripted(lambda *shown: Quarantine(next(reasons))))
    client.helo()
    client.rcpt()
    client.rcpt()
    client.message()
    assert client.talk.hold_reason(client.transaction) == "odd name; odd recipient; odd words"


@pytest.mark.parametrize("later", [False, True])
def test_a_quarantine_marks_and_the_policies_after_it_are_asked(stage, scripted, said, later):
    held = succeed_later(stage, Quarantine("odd")) if later else Quarantine("odd")
    after = scripted()
    client = stage.play(scripted(held), after)
    decision = client.rcpt()
    stage.clock.advance(1.0)
    assert said(decision) == ChainDecision(Quarantine("odd"), "p1")
    assert len(after.seen) == 1
    assert client.talk.hold_reason(client.transaction) == "odd"


@pytest.mark.parametrize("refusal", [Defer("later"), Reject("no"), Disconnect("bye")])
def test_a_refusal_after_a_quarantine_wins_and_what_it_refused_holds_nothing(stage, scripted, refusal):
    client = stage.play(scripted(Quarantine("odd")), scripted(refusal))
    assert client.rcpt() == ChainDecision(refusal, "p2")
    assert client.talk.hold_reason(client.transaction) is None


def test_an_acceptance_after_a_quarantine_ends_the_asking_and_the_message_is_held(stage, scripted):
    last = scripted(Reject("never asked"))
    client = stage.play(scripted(Quarantine("odd")), scripted(Accept()), last)
    assert client.message() == ChainDecision(Accept(), "p2")
    assert last.seen == []
    assert client.talk.hold_reason(client.transaction) == "odd"


def succeed_later(stage, verdict):
    return lambda *shown: deferLater(stage.clock, 1.0, lambda: verdict)


def test_a_policy_blind_to_the_difference_can_be_shared_by_two_chains(stage, scripted):
    policy = scripted(Reject("no"))
    stage.play(policy)
    first = stage.chain
    stage.play(policy)
    assert first is not stage.chain
    assert stage.another().rcpt().verdict == Reject("no")
