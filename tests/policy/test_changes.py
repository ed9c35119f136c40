"""What a policy may make of a transaction: its sender and its recipients, within bounds, in little time."""

from __future__ import annotations

import time
from typing import Any

import pytest

from elemta.address import NULL, Address
from elemta.config import Mode
from elemta.envelope import Notify, Recipient
from elemta.errors import AddressSyntaxError, RelayNotGranted
from elemta.policy import CONTINUE, Accept, Reject
from tests.policy.conftest import Scripted

LOCAL = "new@example.com"


def change(stage: Any, do: Any, **how: Any) -> Any:
    """Let a policy do something at RCPT; what it raises is raised."""
    raised: list[Exception] = []

    def rcpt(session: Any, transaction: Any, recipient: Any) -> Any:
        try:
            do(transaction, recipient)
        except Exception as error:
            raised.append(error)
        return CONTINUE

    client = stage.play(("p1", Scripted(rcpt), how)) if how else stage.play(Scripted(rcpt))
    client.rcpt()
    if raised:
        raise raised[0]
    return client


# The sender


@pytest.mark.parametrize(
    ("sender", "expected"),
    [
        ("SRS0=x@example.com", Address("SRS0=x", "example.com")),
        (Address("a", "b.test"), Address("a", "b.test")),
        ("", NULL),
        (NULL, NULL),
    ],
)
def test_a_policy_sets_the_sender_and_the_clients_own_stays_known(
    stage: Any, sender: Any, expected: Any
) -> None:
    client = change(stage, lambda transaction, _: setattr(transaction, "sender", sender))
    assert client.transaction.sender == expected
    assert client.transaction.mail_from == Address("sender", "example.org")


@pytest.mark.parametrize("sender", ["no address", "a@b@c", "x" * 300 + "@b.test", "ü@b.test", None, 3])
def test_what_is_no_sender_changes_nothing(stage: Any, sender: Any) -> None:
    with pytest.raises((ValueError, TypeError, AttributeError)):
        change(stage, lambda transaction, _: setattr(transaction, "sender", sender))
    assert stage.chain


def test_in_observe_mode_nothing_changes(stage: Any) -> None:
    def do(transaction: Any, recipient: Any) -> None:
        transaction.sender = "other@example.com"
        transaction.replace_recipient("first@example.com", [LOCAL])
        transaction.replace_recipient(recipient, [LOCAL])

    client = change(stage, do, mode=Mode.OBSERVE)
    assert client.transaction.sender == Address("sender", "example.org")
    assert client.transaction.replacement is None
    assert [str(each) for each in client.transaction.recipients] == ["first@example.com"]


@pytest.mark.parametrize(
    "do",
    [
        lambda t: setattr(t, "sender", "a@example.com"),
        lambda t: t.replace_recipient("first@example.com", [LOCAL]),
        lambda t: t.add_recipient(LOCAL),
        lambda t: t.remove_recipient("first@example.com"),
    ],
)
def test_after_its_answer_a_policy_changes_nothing(stage: Any, do: Any) -> None:
    policy = Scripted()
    client = stage.play(policy)
    client.rcpt()
    with pytest.raises(RuntimeError):
        do(policy.seen[0][2])
    assert [str(each) for each in client.transaction.recipients] == ["first@example.com"]


# Recipients


def test_a_new_recipient_keeps_what_the_sender_asked_for(stage: Any) -> None:
    old = Recipient(Address("old", "example.com"), notify=Notify.FAILURE, orcpt=None)

    def do(transaction: Any, recipient: Any) -> None:
        transaction.replace_recipient("old@example.com", [LOCAL])
        transaction.replace_recipient("first@example.com", [Recipient(Address("plain", "example.com"))])

    def rcpt(session: Any, transaction: Any, recipient: Any) -> Any:
        do(transaction, recipient)
        return CONTINUE

    client = stage.play(Scripted(rcpt))
    client.transaction.recipients.append(old)
    client.rcpt()
    assert client.transaction.recipients == [
        Recipient(Address("new", "example.com"), notify=Notify.FAILURE, orcpt="rfc822;old@example.com"),
        Recipient(Address("plain", "example.com")),
    ]


@pytest.mark.parametrize(
    ("new", "error"),
    [
        ([], ValueError),
        (["x@foreign.test"], RelayNotGranted),
        ([LOCAL, "x@foreign.test"], RelayNotGranted),
        (["nonsense"], AddressSyntaxError),
        ([NULL], ValueError),
    ],
)
@pytest.mark.parametrize("which", ["asked", "accepted"])
def test_what_can_not_replace_a_recipient_changes_nothing(
    stage: Any, new: Any, error: Any, which: str
) -> None:
    def do(transaction: Any, recipient: Any) -> None:
        transaction.replace_recipient(recipient if which == "asked" else "first@example.com", new)

    with pytest.raises(error):
        change(stage, do)


def test_only_a_recipient_of_this_message_is_replaced(stage: Any) -> None:
    with pytest.raises(ValueError, match="not a recipient"):
        change(stage, lambda transaction, _: transaction.replace_recipient("none@example.com", [LOCAL]))


def test_policies_behind_are_asked_about_the_new_one_and_may_replace_it_again(stage: Any) -> None:
    def first(session: Any, transaction: Any, recipient: Any) -> Any:
        transaction.replace_recipient(recipient, ["second@example.com", "third@example.com"])
        return CONTINUE

    def second(session: Any, transaction: Any, recipient: Any) -> Any:
        transaction.replace_recipient(recipient, ["fourth@example.com"])
        return CONTINUE

    last = Scripted()
    client = stage.play(Scripted(first), Scripted(second), last)
    client.rcpt()
    assert str(last.seen[0][3]) == "third@example.com"
    assert sorted(map(str, client.transaction.replacement)) == ["fourth@example.com", "third@example.com"]


def test_a_policy_that_may_grant_it_replaces_a_foreign_recipient_and_others_may_not(stage: Any) -> None:
    def forward(session: Any, transaction: Any, recipient: Any) -> Any:
        transaction.replace_recipient(recipient, ["anna@elsewhere.test"])
        return Accept()

    client = stage.play(("srs", Scripted(forward), {}))
    assert client.rcpt("srs0=x").verdict == Accept()
    assert [str(each) for each in client.transaction.replacement] == ["anna@elsewhere.test"]
    client = stage.play(("other", Scripted(forward), {}))
    client.rcpt("srs0=x")
    assert client.transaction.replacement is None


def test_a_foreign_recipient_that_becomes_a_local_one_is_no_relaying(stage: Any) -> None:
    def local(session: Any, transaction: Any, recipient: Any) -> Any:
        transaction.replace_recipient(recipient, [LOCAL])
        return CONTINUE

    client = stage.play(Scripted(local))
    assert client.rcpt("old", "former.test").verdict == CONTINUE
    client = stage.play(Scripted(CONTINUE))
    assert isinstance(client.rcpt("old", "former.test").verdict, Reject)


def test_the_bound_on_recipients_holds_for_added_ones(stage: Any) -> None:
    def do(transaction: Any, recipient: Any) -> None:
        for number in range(2000):
            transaction.add_recipient(f"r{number}@example.com")

    with pytest.raises(ValueError, match="max_recipients"):
        change(stage, do)
    client = stage.play(Scripted())
    client.transaction.max_recipients = 3

    def many(session: Any, transaction: Any, recipient: Any) -> Any:
        with pytest.raises(ValueError, match="max_recipients"):
            transaction.replace_recipient(recipient, [f"r{number}@example.com" for number in range(4)])
        return CONTINUE

    client = stage.play(Scripted(many))
    client.transaction.max_recipients = 3
    client.rcpt()


@pytest.mark.parametrize("mode", list(Mode))
def test_the_bound_on_recipients_is_checked_in_observe_mode_too(stage: Any, mode: Mode) -> None:
    first = "first@example.com"

    def do(session: Any, transaction: Any, recipient: Any) -> Any:
        for more in (
            lambda: transaction.add_recipient(LOCAL),
            lambda: transaction.replace_recipient(first, [first, LOCAL]),
            lambda: transaction.replace_recipient(recipient, [LOCAL, "more@example.com"]),
        ):
            with pytest.raises(ValueError, match="max_recipients"):
                more()
        return CONTINUE

    client = stage.play(("p1", Scripted(do), {"mode": mode}))
    client.transaction.max_recipients = 1
    assert client.rcpt().verdict == CONTINUE
    assert [str(each) for each in client.transaction.recipients] == [first]


def test_five_thousand_additions_and_removals_do_not_stop_the_reactor(stage: Any) -> None:
    """What each takes does not depend on how many there are: before, 5,000 took over a second."""
    took: list[float] = []

    def do(transaction: Any, recipient: Any) -> None:
        began = time.process_time()
        for number in range(5000):
            transaction.add_recipient(Address(f"r{number}", "example.com"))
        for number in range(5000):
            transaction.add_recipient(Address(f"r{number}", "example.com"))
        for number in range(5000):
            transaction.remove_recipient(Address(f"r{number}", "example.com"))
        took.append(time.process_time() - began)

    client = stage.play(Scripted())

    def rcpt(session: Any, transaction: Any, recipient: Any) -> Any:
        do(transaction, recipient)
        return CONTINUE

    client = stage.play(Scripted(rcpt))
    client.transaction.max_recipients = 10_000
    from elemta.policy import transaction_view

    before = transaction_view.MAX_ADDED_RECIPIENT_OCTETS
    transaction_view.MAX_ADDED_RECIPIENT_OCTETS = 10**9
    try:
        client.rcpt()
    finally:
        transaction_view.MAX_ADDED_RECIPIENT_OCTETS = before
    assert [str(each) for each in client.transaction.recipients] == ["first@example.com"]
    assert took[0] < 1.0


def test_the_memory_of_removed_recipients_is_given_back(stage: Any) -> None:
    def do(transaction: Any, recipient: Any) -> None:
        for number in range(100):
            transaction.add_recipient(f"r{number}@example.com")
        for number in range(100):
            transaction.remove_recipient(f"r{number}@example.com")
        assert [str(each) for each in transaction.recipients] == ["first@example.com"]
        transaction.add_recipient("r5@example.com")
        transaction.remove_recipient("r5@example.com")
        transaction.add_recipient("r5@example.com")

    client = change(stage, do)
    assert [str(each) for each in client.transaction.recipients] == ["first@example.com", "r5@example.com"]
    with pytest.raises(ValueError, match="last recipient"):
        change(stage, lambda transaction, _: transaction.remove_recipient("first@example.com"))


def test_limits_per_sender_count_the_sender_that_the_client_gave(stage: Any) -> None:
    from elemta.limits.rules import Subject, _sender

    client = change(stage, lambda transaction, _: setattr(transaction, "sender", "srs@example.com"))
    assert _sender(Subject(client.facts, client.transaction)) == "sender@example.org"
