"""What policies see, may change, and may remember."""

import contextlib
import io
import sys
from ipaddress import ip_address

import pytest

from elemta.address import NULL, Address
from elemta.config import OnError
from elemta.envelope import Recipient
from elemta.errors import AddressSyntaxError
from elemta.policy import CONTINUE, Message, Reject
from elemta.policy.testing import make_message
from elemta.policy.views import MAX_ADDED_HEADERS, MAX_ADDED_OCTETS, MAX_ADDED_RECIPIENT_OCTETS, MAX_NOTES
from elemta.smtp.session_info import TLSInfo


def during_rcpt(stage, scripted, said, change):
    """Let a policy do something to the transaction at RCPT; returns the client. What it raises is raised."""
    raised = []

    def do(session, transaction, recipient):
        try:
            change(transaction)
        except Exception as error:
            raised.append(error)
        return CONTINUE

    client = stage.play(scripted(do))
    client.rcpt()
    if raised:
        raise raised[0]
    return client


def recipients_of(client):
    return [str(recipient) for recipient in client.transaction.recipients]


def test_a_session_is_seen_as_it_is_at_the_moment(stage, scripted):
    policy = scripted()
    client = stage.play(policy)
    client.connect()
    session = policy.seen[0][1]
    assert session.id == client.facts.id
    assert session.client_ip == ip_address("192.0.2.7")
    assert (session.client_port, session.listener, session.helo) == (4321, "mx", "client.example.org")
    assert (session.esmtp, session.tls, session.user, session.reverse_name) == (False, None, None, None)
    client.facts.user = "alice"
    client.facts.tls = TLSInfo("TLSv1.3", "TLS_AES_256_GCM_SHA384")
    assert session.user == "alice"
    assert session.tls.version == "TLSv1.3"


@pytest.mark.parametrize("name", ["id", "client_ip", "helo", "user", "listener"])
def test_a_session_can_not_be_changed(stage, scripted, name):
    policy = scripted()
    stage.play(policy).connect()
    with pytest.raises(AttributeError):
        setattr(policy.seen[0][1], name, "something else")


def test_views_are_made_once_for_a_session_and_once_for_a_transaction(stage, scripted):
    policy = scripted()
    client = stage.play(policy)
    client.mail()
    client.rcpt()
    client.talk.refused(client.transaction)
    client.begin()
    client.mail()
    (_, session, first), (_, again, same, _), (_, still, second) = policy.seen
    assert session is again is still
    assert first is same is not second


def test_notes_are_private_and_only_what_is_published_is_seen_by_name(stage, scripted):
    seen = {}

    def write(session, transaction):
        session.notes["score"] = 3
        session.notes.publish("country", "AQ")
        transaction.notes.publish("spf", "pass")
        return CONTINUE

    def read(session, transaction):
        seen["private"] = session.notes.get("score")
        seen["country"] = session.notes.published("geo", "country")
        seen["spf"] = transaction.notes.published("geo", "spf")
        seen["as note"] = session.notes.get("country")
        seen["of nobody"] = session.notes.published("nobody", "country", "unknown")
        return CONTINUE

    client = stage.play(("geo", scripted(write), {}), ("score", scripted(read), {}))
    client.mail()
    assert seen == {"private": None, "country": "AQ", "spf": "pass", "as note": None, "of nobody": "unknown"}


def test_notes_of_a_session_outlive_a_transaction_whose_own_do_not(stage, scripted):
    def count(session, transaction):
        session.notes["mails"] = session.notes.get("mails", 0) + 1
        transaction.notes["mails"] = transaction.notes.get("mails", 0) + 1
        transaction.notes.publish("mails", 1)
        return Reject(f"{session.notes['mails']} {transaction.notes['mails']}")

    client = stage.play(scripted(count))
    assert client.mail().verdict.text == "1 1"
    client.begin()
    assert client.mail().verdict.text == "2 1"
    assert stage.another().mail().verdict.text == "1 1"


def test_notes_are_a_mapping_with_a_bound(stage, scripted, said):
    policy = scripted()
    stage.play(policy).connect()
    notes = policy.seen[0][1].notes
    for number in range(MAX_NOTES):
        notes[str(number)] = number
        notes.publish(str(number), number)
    notes["0"] = "changed"
    notes.publish("0", "changed")
    with pytest.raises(ValueError, match="notes"):
        notes["one more"] = 1
    with pytest.raises(ValueError, match="notes"):
        notes.publish("one more", 1)
    del notes["0"]
    assert len(notes) == MAX_NOTES - 1
    assert "0" not in notes


def test_an_added_header_is_there_for_the_message(stage, scripted, said):
    client = during_rcpt(stage, scripted, said, lambda txn: txn.add_header("X-Score", "3.5"))
    assert client.transaction.added_headers == [("X-Score", "3.5")]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("X-Score", "3\r\nBcc: everybody@example.org"),
        ("X-Score", "3\nBcc: everybody@example.org"),
        ("X-Score", "3\r\n\r\nbody"),
        ("X-Score", "3\x00"),
        ("X-Score: 3\r\nBcc", "x"),
        ("X Score", "3"),
        ("X-Score:", "3"),
        ("", "3"),
    ],
)
def test_header_injection_is_the_policys_own_error(stage, scripted, said, name, value):
    with pytest.raises(ValueError, match="field"):
        during_rcpt(stage, scripted, said, lambda txn: txn.add_header(name, value))


def test_header_injection_costs_the_policy_its_verdict(stage, scripted):
    def inject(session, transaction, recipient):
        transaction.add_header("X-Recipient", f"{recipient}\r\nX-Spam: no")
        return CONTINUE

    client = stage.play(scripted(inject), on_error=OnError.DEFER)
    assert client.rcpt().verdict.code == 451
    assert client.transaction.added_headers == []


@pytest.mark.parametrize(
    "value", ["x " * 5_000, "\u00e4 " * 1_000, "\U0001f4e7" * 2_000, " \t" * 50_000 + "x" + " " * 50_000]
)
def test_the_octets_of_added_headers_are_bounded_as_python_takes_them(stage, scripted, said, value):
    def add(transaction):
        for _ in range(100):
            transaction.add_header("X-Long", value)

    client = stage.play(scripted(add_quietly(add)))
    client.rcpt()
    kept = client.transaction.added_headers
    assert kept
    assert sum(sys.getsizeof(value) for _, value in kept) <= MAX_ADDED_OCTETS + 100 * len(kept)


def add_quietly(add):
    def policy(session, transaction, recipient):
        with contextlib.suppress(ValueError):
            add(transaction)
        return CONTINUE

    return policy


def test_added_headers_are_bounded(stage, scripted, said):
    def add(transaction):
        for number in range(MAX_ADDED_HEADERS + 1):
            transaction.add_header("X-Number", str(number))

    with pytest.raises(ValueError, match="more than"):
        during_rcpt(stage, scripted, said, add)


@pytest.mark.parametrize(
    "recipient",
    ["second@example.com", Address("second", "example.com"), Recipient(Address("second", "example.com"))],
)
def test_a_recipient_is_added_in_any_form_and_only_once(stage, scripted, said, recipient):
    def add(transaction):
        transaction.add_recipient(recipient)
        transaction.add_recipient(recipient)

    client = during_rcpt(stage, scripted, said, add)
    assert recipients_of(client) == ["first@example.com", "second@example.com"]


@pytest.mark.parametrize("text", ["", "nobody", "a@b@c", "<a@example.com>", "a@example.com\r\n"])
def test_what_is_no_address_is_not_added(stage, scripted, said, text):
    with pytest.raises(AddressSyntaxError):
        during_rcpt(stage, scripted, said, lambda txn: txn.add_recipient(text))


def test_the_null_address_is_no_recipient(stage, scripted, said):
    with pytest.raises(ValueError, match="null"):
        during_rcpt(stage, scripted, said, lambda txn: txn.add_recipient(NULL))


def test_an_accepted_recipient_can_be_exchanged(stage, scripted, said):
    def exchange(transaction):
        transaction.add_recipient("second@example.com")
        transaction.remove_recipient("first@example.com")

    client = during_rcpt(stage, scripted, said, exchange)
    assert recipients_of(client) == ["second@example.com"]


def test_the_last_recipient_can_not_be_removed_because_the_message_would_vanish(stage, scripted, said):
    with pytest.raises(ValueError, match="last recipient"):
        during_rcpt(stage, scripted, said, lambda txn: txn.remove_recipient("first@example.com"))


def test_the_recipient_that_is_asked_about_can_not_be_removed_because_it_is_not_accepted_yet(
    stage, scripted, said
):
    with pytest.raises(ValueError, match="not a recipient"):
        during_rcpt(stage, scripted, said, lambda txn: txn.remove_recipient("someone@example.com"))


def test_the_recipients_that_are_shown_can_not_be_changed_behind_the_transactions_back(stage, scripted, said):
    with pytest.raises(AttributeError):
        during_rcpt(stage, scripted, said, lambda txn: txn.recipients.clear())


def test_a_transaction_can_only_be_changed_while_the_policy_is_asked(stage, scripted):
    policy = scripted()
    client = stage.play(policy)
    client.rcpt()
    transaction = policy.seen[0][2]
    for change in (
        lambda: transaction.add_header("X-Late", "yes"),
        lambda: transaction.add_recipient("second@example.com"),
        lambda: transaction.remove_recipient("first@example.com"),
    ):
        with pytest.raises(RuntimeError, match="being asked"):
            change()
    assert recipients_of(client) == ["first@example.com"]


def test_a_messages_headers_are_read_once_and_its_file_as_often_as_wanted():
    opened = []

    def opener():
        opened.append(1)
        return io.BytesIO(b"whole")

    message = Message(5, b"Subject: one\r\nSubject: two\r\n\r\n", opener)
    assert message.headers is message.headers
    assert message.headers.get_all("subject") == ["one", "two"]
    assert opened == []
    with message.open() as file:
        assert file.read() == b"whole"
    with message.open() as file:
        assert file.read(1) == b"w"


@pytest.mark.parametrize("content", [b"", b"\x00\xff" * 1000, b":" * 70_000, b"a" * 100_000 + b"\r\n\r\n"])
def test_a_message_of_garbage_has_headers_all_the_same(content):
    assert make_message(content).headers.get("subject") is None


def test_the_memory_of_added_recipients_is_bounded(stage, scripted, said):
    def add(transaction):
        for number in range(10_000):
            transaction.add_recipient(Address(f"someone-with-a-long-name-{number}", "example.com"))

    client = stage.play(scripted(add_quietly(add)))
    client.transaction.max_recipients = 100_000
    client.rcpt()
    assert 1_500 < len(client.transaction.recipients) < 3_000
    assert client.transaction.memory.held <= MAX_ADDED_RECIPIENT_OCTETS + 4096
