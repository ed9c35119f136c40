"""Clients that do not speak SMTP, or speak out of turn (RFC 5321 §4.3.1, RFC 2920 §3.1, RFC 5321 §2.3.8)."""

from __future__ import annotations

import pytest

from elemta.smtp.events import (
    Close,
    ConnectQuestion,
    DataQuestion,
    HeloQuestion,
    MailQuestion,
    MessageStarted,
    PauseQuestion,
    Proceed,
    Refuse,
    StageQuestion,
)
from elemta.smtp.reply import Reply
from elemta.smtp.session import ServerSession
from tests.smtp.transcript import (
    ENVELOPE,
    GREETING,
    HELLO,
    TLS,
    Conversation,
    byte_by_byte,
    converse,
    play,
    settings,
    whole,
)


def unopened(tls=None, **changes) -> Conversation:
    facts = Conversation.begin().session.facts
    facts.tls = tls
    return Conversation(ServerSession(settings(**changes), facts))


@pytest.mark.parametrize("splitting", [whole, byte_by_byte])
@pytest.mark.parametrize("when", ["before open", "before the answer"])
def test_a_client_that_talks_before_the_greeting_is_refused(splitting, when: str) -> None:
    told = unopened(reject_early_talkers=True)
    session = told.session
    spoken = b"EHLO x\r\nMAIL FROM:<a@b.test>\r\n"
    if when == "before the answer":
        told.take(session.open())
    for piece in splitting(spoken):
        told.take(session.receive(piece))
    if when == "before open":
        told.take(session.open())
    assert isinstance(session.question, ConnectQuestion)
    told.take(session.answer(Proceed()))
    assert told.said() == "554 5.5.1 Client spoke before the greeting\r\n"
    assert told.closed
    assert not any(isinstance(event, HeloQuestion) for event in told.events)


def test_an_early_talker_that_policies_refuse_hears_their_word() -> None:
    told = unopened(reject_early_talkers=True)
    told.take(told.session.open())
    told.take(told.session.receive(b"EHLO x\r\n"))
    told.take(told.session.answer(Refuse(Reply.of(550, "5.7.1", "No"))))
    assert told.said() == "554 5.7.1 No\r\n"
    assert told.closed


def test_a_client_that_talks_while_the_greeting_waits_is_refused() -> None:
    told = unopened(reject_early_talkers=True)
    told.take(told.session.open())
    told.take(told.session.answer(Proceed()))
    assert isinstance(told.session.question, PauseQuestion)
    told.take(told.session.receive(b"EHLO x\r\n"))
    assert not told.output
    told.take(told.session.answer(Proceed()))
    assert told.said() == "554 5.5.1 Client spoke before the greeting\r\n"
    assert told.closed


@pytest.mark.parametrize("splitting", [whole, byte_by_byte])
@pytest.mark.parametrize("when", ["before open", "before the answer", "both"])
@pytest.mark.parametrize("strict", [False, True])
def test_input_before_the_greeting_waits_for_its_turn(splitting, when: str, strict: bool) -> None:
    told = unopened(strict=strict)
    session = told.session
    spoken = b"EHLO x\r\nMAIL FROM:<a@b.test>\r\nNOOP\r\n"
    early, late = {"before open": (spoken, b""), "both": (spoken[:11], spoken[11:])}.get(when, (b"", spoken))
    for piece in splitting(early):
        told.take(session.receive(piece))
    told.take(session.open())
    for piece in splitting(late):
        told.take(session.receive(piece))
    assert not told.output
    told.settle()
    said = told.said().split("\r\n")
    assert said[0] == "220 mx.test ESMTP Elemta"
    assert said[-3:] == ["250 2.1.0 Sender OK", "250 2.0.0 OK", ""]
    assert not told.closed


def test_input_before_the_greeting_is_bounded() -> None:
    told = unopened(max_pipelined=1000)
    told.take(told.session.open())
    told.take(told.session.receive(b"NOOP\r\n" * 200))
    assert told.said() == "421 4.7.0 Too much input without waiting for replies\r\n"
    assert told.closed


def test_an_early_talker_that_waits_and_is_refused_hears_it_once() -> None:
    told = unopened()
    told.take(told.session.receive(b"EHLO x\r\n"))
    told.take(told.session.open())
    told.take(told.session.answer(Refuse(Reply.of(554, "5.7.1", "No"))))
    assert told.said() == "554 5.7.1 No\r\n503 5.5.1 No service here; send QUIT\r\n"


@pytest.mark.parametrize("reject", [False, True])
@pytest.mark.parametrize(("tls", "changes"), [(TLS, {}), (None, {"implicit_tls": True})])
def test_with_implicit_tls_nobody_is_an_early_talker(tls, changes, reject: bool) -> None:
    told = unopened(tls, reject_early_talkers=reject, **changes)
    told.take(told.session.open())
    told.take(told.session.receive(b"HELO x\r\n"))
    told.settle()
    assert told.said() == "220 mx.test ESMTP Elemta\r\n250 mx.test\r\n"


@pytest.mark.parametrize("before", [GREETING, HELLO, ENVELOPE])
@pytest.mark.parametrize(
    "request_line",
    ["GET / HTTP/1.1", "POST /x HTTP/1.0", "CONNECT mx.test:25 HTTP/1.1", "get /", "PRI * HTTP/2.0"],
)
def test_http_is_told_so_and_closed_at_once(before: str, request_line: str) -> None:
    told = converse(
        before
        + f"C: {request_line}\nC: Host: mx.test\nC:\nC: EHLO evil\n"
        + "S: 554 5.5.1 This is an SMTP server, not HTTP\nX:\n"
    )
    assert told.session.facts.helo != "evil"


@pytest.mark.parametrize(
    "hello", [r"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03abc", r"\x16\x03\x03\n\r\n", r"\x16\x03"]
)
def test_a_tls_client_on_the_plain_port_is_closed_at_once(hello: str) -> None:
    converse(
        GREETING + f"C> {hello}\nS: 554 5.5.1 This is an SMTP server; TLS does not start here by itself\nX:\n"
    )


@pytest.mark.parametrize("line", ["NOOP", "EHLO x", "MAIL FROM:<a@b.test>", ""])
def test_a_strict_listener_refuses_a_command_that_a_bare_lf_ends_and_executes_nothing_behind_it(
    line: str,
) -> None:
    told = converse(
        GREETING
        + f"C> {line}\\nMAIL FROM:<evil@b.test>\\r\\n\nS: 500 5.5.2 Command lines end with CRLF\nX:\n",
        strict=True,
    )
    assert not any(isinstance(event, (MailQuestion, HeloQuestion)) for event in told.events)


@pytest.mark.parametrize(
    "behind", [b"x", b"Subject: x\r\n\r\nhello\r\n.\r\n", b"RSET\r\nMAIL FROM:<evil@b.test>\r\n"]
)
@pytest.mark.parametrize("late", [False, True])
def test_commands_behind_data_before_its_reply_end_the_session(behind: bytes, late: bool) -> None:
    told = play(ENVELOPE, Conversation.begin(late=late))
    told.send(b"DATA\r\n" + behind)
    assert told.said() == "554 5.5.0 Improper use of command pipelining\r\n"
    assert told.closed
    assert not any(isinstance(event, (DataQuestion, MessageStarted)) for event in told.events)


def test_input_that_comes_while_policies_think_about_data_ends_the_session() -> None:
    told = play(ENVELOPE, Conversation.begin())
    told.take(told.session.receive(b"DATA\r\n"))
    told.take(told.session.receive(b".\r\nMAIL FROM:<evil@b.test>\r\n"))
    told.settle()
    assert told.said() == "554 5.5.0 Improper use of command pipelining\r\n"
    assert told.closed
    assert not any(isinstance(event, MessageStarted) for event in told.events)


def test_what_is_behind_a_data_that_policies_refused_is_not_executed() -> None:
    def answering(question):
        no = isinstance(question, DataQuestion)
        return Refuse(Reply.of(550, "5.7.1", "No")) if no else Proceed()

    told = play(ENVELOPE, Conversation.begin(answering))
    told.take(told.session.receive(b"DATA\r\n"))
    told.take(told.session.receive(b"MAIL FROM:<evil@b.test>\r\n"))
    told.settle()
    assert told.said() == "550 5.7.1 No\r\n"
    assert isinstance(told.events[-1], Close)
    assert sum(isinstance(event, MailQuestion) for event in told.events) == 1


def test_what_is_behind_a_data_without_recipients_is_not_executed() -> None:
    told = play(HELLO, Conversation.begin())
    told.send(b"DATA\r\nMAIL FROM:<evil@b.test>\r\n")
    assert told.said() == "554 5.5.0 Improper use of command pipelining\r\n"
    assert told.closed


def test_groups_that_clients_really_send_are_taken() -> None:
    told = Conversation.begin()
    told.send(b"EHLO x\r\nMAIL FROM:<a@b.test>\r\nRCPT TO:<c@home.test>\r\nDATA\r\n")
    assert told.said().endswith("354 Start mail input; end with <CRLF>.<CRLF>\r\n")
    told.send(b"hi\r\n.\r\nRSET\r\nMAIL FROM:<a@b.test>\r\nQUIT\r\n")
    assert told.said().endswith(
        "250 2.0.0 OK\r\n250 2.1.0 Sender OK\r\n221 2.0.0 mx.test closing connection\r\n"
    )


def test_nothing_behind_quit_is_executed() -> None:
    told = converse(HELLO + "C: QUIT\nC: MAIL FROM:<a@b.test>\nS: 221 2.0.0 mx.test closing connection\nX:\n")
    assert not any(isinstance(event, StageQuestion) and event.stage.value == "mail" for event in told.events)
