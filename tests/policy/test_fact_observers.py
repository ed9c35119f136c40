"""Facts: what became of transactions and sessions."""

import pytest
from twisted.internet.defer import Deferred, fail
from zope.interface import implementer

from elemta.address import Address
from elemta.envelope import Recipient
from elemta.policy import (
    CONTINUE,
    ChainDecision,
    ChainSettings,
    IOutcomeObserver,
    IRcptPolicy,
    Reject,
    Reply,
    Stage,
)
from elemta.policy.asking import NO_OPINION
from elemta.policy.discovery import problem_with
from elemta.smtp.events import HeloQuestion, RcptQuestion

BOB = Recipient(Address("bob", "example.com"))


@implementer(IOutcomeObserver)
class Watcher:
    def __init__(self, answer=None):
        self.answer = answer
        self.told = []

    def _note(self, fact, *shown):
        self.told.append((fact, *shown))
        return self.answer(*shown) if self.answer else None

    def committed(self, session, transaction):
        return self._note("committed", session, transaction)

    def refused(self, session, transaction):
        return self._note("refused", session, transaction)

    def disconnected(self, session):
        return self._note("disconnected", session)


FACTS = ["committed", "refused", "disconnected"]


def tell(client, fact):
    if fact == "disconnected":
        client.talk.disconnected()
    else:
        getattr(client.talk, fact)(client.transaction)


@pytest.mark.parametrize("fact", FACTS)
def test_an_observer_is_told_with_its_own_views(stage, fact):
    watcher = Watcher()
    client = stage.play(watcher)
    tell(client, fact)
    ((told, session, *rest),) = watcher.told
    assert told == fact
    assert session.id == client.facts.id
    assert [str(each.sender) for each in rest] == ["sender@example.org"] * len(rest)


def test_a_transaction_that_is_told_of_has_the_notes_that_were_made_while_it_was_asked_about(stage):
    @implementer(IRcptPolicy)
    class Noting(Watcher):
        def rcpt(self, session, transaction, recipient):
            transaction.notes["receipt"] = 42
            return Reject("no")

    noting = Noting()
    client = stage.play(noting)
    client.rcpt()
    client.talk.refused(client.transaction)
    assert noting.told[0][2].notes["receipt"] == 42


def test_a_disconnection_is_told_once(stage):
    watcher = Watcher()
    client = stage.play(watcher)
    client.talk.disconnected()
    client.talk.disconnected()
    assert len(watcher.told) == 1


@pytest.mark.parametrize("fact", FACTS)
def test_every_observer_is_told_whatever_the_others_do(stage, fact):
    def leave(*shown):
        raise SystemExit(1)

    last = Watcher()
    client = stage.play(
        Watcher(lambda *shown: 1 / 0), Watcher(leave), Watcher(lambda *shown: fail(OSError())), last
    )
    tell(client, fact)
    assert len(last.told) == 1
    assert stage.counted.failed_ == [(f"p{number}", fact, "error") for number in (1, 2, 3)]
    assert len(stage.events("policy.failed")) == 3


def test_what_an_observer_does_later_ends_with_its_timeout(stage):
    cancelled = []
    client = stage.play(Watcher(lambda *shown: Deferred(cancelled.append)), timeout=2.0)
    client.talk.committed(client.transaction)
    stage.clock.advance(2.0)
    assert len(cancelled) == 1
    assert stage.counted.failed_ == [("p1", "committed", "timeout")]


def test_what_an_observer_finishes_in_time_is_no_failure(stage):
    pending = Deferred()
    client = stage.play(Watcher(lambda *shown: pending))
    client.talk.disconnected()
    pending.callback(None)
    stage.clock.advance(60.0)
    assert stage.counted.failed_ == []


def test_an_observer_may_be_a_coroutine_that_fails(stage):
    async def broken(*shown):
        raise OSError

    client = stage.play(Watcher(broken))
    client.talk.refused(client.transaction)
    assert stage.counted.failed_ == [("p1", "refused", "error")]


def test_unfinished_facts_of_one_policy_are_bounded(stage):
    watcher = Watcher(lambda *shown: Deferred())
    stage.play(watcher, terms=ChainSettings(max_outstanding=2))
    for number in range(4):
        client = stage.another(ip=f"192.0.{number}.1")
        client.talk.committed(client.transaction)
    assert len(watcher.told) == 2
    assert stage.counted.failed_ == [("p1", "committed", "busy")] * 2


def test_a_fact_changes_no_transaction(stage):
    client = stage.play(Watcher(lambda session, transaction: transaction.add_header("X-Late", "yes")))
    client.talk.committed(client.transaction)
    assert client.transaction.added_headers == []
    assert stage.counted.failed_ == [("p1", "committed", "error")]


def test_an_observer_is_told_of_its_listeners_only(stage):
    watcher = Watcher()
    stage.play(("watch", watcher, {"listeners": ("submission",)}))
    stage.another(listener="mx").talk.disconnected()
    assert watcher.told == []
    stage.another(listener="submission").talk.disconnected()
    assert len(watcher.told) == 1


def test_one_that_only_observes_is_never_asked(stage, scripted):
    client = stage.play(Watcher(), scripted(Reject("no")))
    assert client.rcpt() == ChainDecision(Reject("no"), "p2")
    assert client.begin()
    assert stage.play(Watcher()).rcpt() == NO_OPINION


# What version 2 of the contract adds


@implementer(IOutcomeObserver, IRcptPolicy)
class Second:
    def __init__(self):
        self.heard = []

    def rcpt(self, session, transaction, recipient):
        return CONTINUE

    def committed(self, session, transaction, queue_id):
        self.heard.append(("committed", queue_id))

    def refused(self, session, transaction):
        self.heard.append("refused")

    def disconnected(self, session):
        self.heard.append("disconnected")

    def decided(self, session, policy, stage, verdict):
        self.heard.append((policy, stage.value, verdict))


def test_an_observer_hears_the_queue_id_and_what_was_decided(stage, scripted):
    observer = Second()
    refusal = Reject("no")
    client = stage.play(observer, scripted(lambda *shown: refusal if len(shown) == 3 else CONTINUE))
    client.mail()
    client.rcpt()
    client.transaction.queue_id = "2CmXq07DRb3"
    client.talk.committed(client.transaction)
    client.talk.disconnected()
    assert observer.heard == [
        ("", "mail", CONTINUE),
        ("p2", "rcpt", refusal),
        ("committed", "2CmXq07DRb3"),
        "disconnected",
    ]


def test_an_observer_of_version_1_is_one_still(stage):
    heard = []

    @implementer(IOutcomeObserver)
    class First:
        def committed(self, session, transaction):
            heard.append("committed")

        def refused(self, session, transaction):
            heard.append("refused")

        def disconnected(self, session):
            heard.append("disconnected")

    assert problem_with(First()) == ""
    client = stage.play(First())
    client.talk.committed(client.transaction)
    client.talk.disconnected()
    assert heard == ["committed", "disconnected"]
    assert problem_with(Second()) == ""


class Refusals(Watcher):
    def refused_at(self, session, stage, reply, transaction, recipient):
        return self._note("refused_at", session, stage, reply, transaction, recipient)


def test_an_observer_hears_of_each_refusal_what_it_was_about(stage):
    watcher = Refusals()
    client = stage.play(watcher)
    assert client.talk.tells_refusals
    reply = Reply.of(550, "5.1.1", "no")
    client.talk.refused_at(HeloQuestion(client.facts), reply)
    client.talk.refused_at(RcptQuestion(client.facts, client.transaction, BOB), reply)
    (_, session, early, _, no_transaction, no_recipient), (_, _, late, said, transaction, recipient) = (
        watcher.told
    )
    assert (session.id, early, no_transaction, no_recipient) == (client.facts.id, Stage.HELO, None, None)
    assert (late, said, recipient) == (Stage.RCPT, reply, BOB)
    assert str(transaction.sender) == "sender@example.org"


def test_nothing_is_told_of_refusals_behind_the_end_of_a_session(stage):
    watcher = Refusals()
    client = stage.play(watcher)
    client.talk.disconnected()
    client.talk.refused_at(HeloQuestion(client.facts), Reply.of(550, "5.1.1", "no"))
    assert [fact for fact, *_ in watcher.told] == ["disconnected"]


def test_without_such_an_observer_refusals_are_not_reported(stage):
    assert not stage.play(Watcher()).talk.tells_refusals
