"""Policies at an attempt to log in: asked before the password is looked at, told how it ended."""

from __future__ import annotations

from typing import Any

import pytest
from twisted.internet.defer import CancelledError, Deferred
from zope.interface import implementer

from elemta.policy import (
    CONTINUE,
    Accept,
    ChainDecision,
    Defer,
    ILoginObserver,
    ILoginPolicy,
    LoginOutcome,
    Quarantine,
    Reject,
)


@implementer(ILoginPolicy, ILoginObserver)
class Guard:
    """Answers with what it was made with; a callable is called."""

    def __init__(self, answer: Any = CONTINUE) -> None:
        self.answer = answer
        self.seen: list[tuple[Any, ...]] = []

    def login(self, session: Any, username: str) -> Any:
        self.seen.append(("login", session.user, username))
        return self.answer() if callable(self.answer) else self.answer

    def login_ended(self, session: Any, username: str, outcome: LoginOutcome) -> None:
        self.seen.append(("ended", session.user, username, outcome))


def test_policies_are_asked_in_their_order_until_one_decides(stage: Any) -> None:
    first, second, third = Guard(), Guard(Reject("no", 535, "5.7.8")), Guard()
    client = stage.play(first, second, third)
    assert client.talk.ask_login("anna") == ChainDecision(Reject("no", 535, "5.7.8"), "p2")
    assert first.seen == second.seen == [("login", None, "anna")]
    assert third.seen == []


@pytest.mark.parametrize("outcome", list(LoginOutcome))
def test_every_observer_hears_how_it_ended(stage: Any, outcome: LoginOutcome) -> None:
    guards = [Guard(), Guard(Accept()), Guard()]
    client = stage.play(*guards)
    client.talk.ask_login("anna")
    client.talk.login_ended("anna", outcome)
    assert [guard.seen[-1] for guard in guards] == [("ended", None, "anna", outcome)] * 3


def test_nothing_is_told_after_the_session(stage: Any) -> None:
    guard = Guard()
    client = stage.play(guard)
    client.talk.disconnected()
    client.talk.login_ended("anna", LoginOutcome.GOOD)
    assert guard.seen == []
    assert client.talk.ask_login("anna").verdict.code == 421


def raises() -> None:
    raise OSError("the directory is away")


@pytest.mark.parametrize(
    ("answer", "kind"),
    [(raises, "error"), ("yes", "invalid"), (Deferred, "timeout")],
    ids=["raises", "invalid", "hangs"],
)
def test_a_failing_policy_defers_the_login_with_454(stage: Any, answer: Any, kind: str) -> None:
    """RFC 4954 §6: 454 is a temporary authentication failure."""
    client = stage.play(Guard(answer), timeout=5.0)
    asked = client.talk.ask_login("anna")
    decided: list[ChainDecision] = []
    if isinstance(asked, Deferred):
        asked.addCallback(decided.append)
        stage.clock.advance(5)
    else:
        decided.append(asked)
    (decision,) = decided
    assert isinstance(decision.verdict, Defer)
    assert (decision.verdict.code, decision.verdict.enhanced) == (454, "4.7.0")
    assert stage.counted.failed_ == [("p1", "login", kind)]


def test_to_give_the_question_up_cancels_the_work_of_the_policy(stage: Any) -> None:
    cancelled: list[object] = []
    client = stage.play(Guard(lambda: Deferred(cancelled.append)))
    asked = client.talk.ask_login("anna")
    failures: list[Any] = []
    asked.addErrback(failures.append)
    asked.cancel()
    assert len(cancelled) == 1
    assert failures[0].check(CancelledError)


def test_a_mark_at_the_login_holds_the_messages_of_the_session(stage: Any) -> None:
    client = stage.play(Guard(Quarantine("odd login")))
    client.talk.ask_login("anna")
    assert client.talk.hold_reason(client.transaction) == "odd login"
