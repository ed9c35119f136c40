"""Nothing crosses STARTTLS (RFC 3207 §4.2)."""

from __future__ import annotations

import pytest

from elemta.smtp import replies
from elemta.smtp.events import Close, MailQuestion, StartTLS, TransactionEnded
from tests.smtp.transcript import (
    ENVELOPE,
    GREETING,
    HELLO,
    TLS,
    Conversation,
    byte_by_byte,
    converse,
    play,
    whole,
)

TLS_HELLO = """
    C: EHLO client.test
    S: 250-mx.test
    S: 250-PIPELINING
    S: 250-SIZE 1000
    S: 250-8BITMIME
    S: 250-SMTPUTF8
    S: 250-ENHANCEDSTATUSCODES
    S: 250-CHUNKING
    S: 250-DSN
    S: 250 AUTH PLAIN LOGIN
    """


def test_starttls_begins_the_conversation_anew() -> None:
    told = converse(
        HELLO
        + """
        C: STARTTLS
        S: 220 2.0.0 Ready to start TLS
        T:
        C: MAIL FROM:<a@b.test>
        S: 503 5.5.1 Send EHLO first
        """
        + TLS_HELLO
        + """
        C: STARTTLS
        S: 503 5.5.1 TLS already active
        C: MAIL FROM:<a@b.test>
        S: 250 2.1.0 Sender OK
        """
    )
    assert told.session.facts.tls == TLS


@pytest.mark.parametrize("splitting", [whole, byte_by_byte])
def test_everything_said_before_tls_is_forgotten(splitting) -> None:
    told = Conversation.begin(splitting=splitting, auth_needs_tls=False)
    told.send(b"EHLO x\r\nAUTH PLAIN AGEAYg==\r\n")
    assert told.session.facts.user == "a"
    told.send(b"MAIL FROM:<a@b.test>\r\n")
    told.send(b"STARTTLS\r\n")
    assert isinstance(told.events[-1], StartTLS)
    assert any(isinstance(event, TransactionEnded) and not event.accepted for event in told.events)
    told.take(told.session.tls_started(TLS))
    facts = told.session.facts
    assert (facts.helo, facts.esmtp, facts.user, told.session.transaction) == ("", False, None, None)


@pytest.mark.parametrize("behind", [b"MAIL FROM:<evil@b.test>\r\n", b"EHLO evil\r\n", b"\n", b"\0", b"x"])
@pytest.mark.parametrize("before", [b"", b"EHLO x\r\n", b"EHLO x\r\nNOOP\r\n"])
@pytest.mark.parametrize("late", [False, True])
def test_a_mail_command_sent_behind_starttls_is_not_executed(
    behind: bytes, before: bytes, late: bool
) -> None:
    told = Conversation.begin(late=late)
    told.send(before + b"STARTTLS\r\n" + behind)
    assert told.said().endswith("554 5.5.0 Improper use of command pipelining\r\n")
    assert told.closed
    assert not any(isinstance(event, (MailQuestion, StartTLS)) for event in told.events)
    assert told.session.facts.helo != "evil"
    assert told.session.tls_started(TLS) == []
    assert told.session.facts.tls is None


@pytest.mark.parametrize("behind", [b"MAIL FROM:<evil@b.test>\r\n", b"E"])
def test_plaintext_between_starttls_and_the_handshake_is_not_executed(behind: bytes) -> None:
    told = Conversation.begin(splitting=byte_by_byte)
    told.send(b"EHLO x\r\nSTARTTLS\r\n")
    told.said()
    told.send(behind)
    assert isinstance(told.events[-1], Close)
    assert told.said() == ""
    assert told.session.tls_started(TLS) == []
    assert not any(isinstance(event, MailQuestion) for event in told.events)


def test_starttls_takes_no_argument_and_is_not_there_without_a_certificate() -> None:
    converse(GREETING + "C: STARTTLS now\nS: 501 5.5.4 This command takes no argument")
    converse(GREETING + "C: STARTTLS\nS: 502 5.5.1 Command not implemented", starttls=False)


def test_starttls_ends_a_transaction() -> None:
    told = play(ENVELOPE + "C: STARTTLS\nS: 220 2.0.0 Ready to start TLS\n", Conversation.begin())
    assert told.session.transaction is None
    assert [event.accepted for event in told.events if isinstance(event, TransactionEnded)] == [False]


def test_no_plaintext_reply_is_sent_into_a_handshake() -> None:
    told = play(HELLO + "C: STARTTLS\nS: 220 2.0.0 Ready to start TLS\n", Conversation.begin())
    events = told.session.shut(replies.TIMEOUT, "timeout")
    assert [type(event) for event in events] == [Close]
    assert told.session.take_output() == b""


def test_pipelining_up_to_starttls_is_let_pass() -> None:
    told = Conversation.begin()
    told.send(b"EHLO x\r\nSTARTTLS\r\n")
    assert told.said().endswith("220 2.0.0 Ready to start TLS\r\n")
    assert not told.closed
