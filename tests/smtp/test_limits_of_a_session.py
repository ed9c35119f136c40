"""Every limit of a session, at the number itself and one past it.

RFC 5321 §4.5.3.1.4, RFC 5321 §4.5.3.1.10, RFC 1870 §6.1, RFC 1870 §6.3.
"""

from __future__ import annotations

import time

import pytest

from elemta.smtp.events import Answer, MailQuestion, MessageQuestion, Question, RcptQuestion, Refuse
from elemta.smtp.reply import Reply
from tests.smtp.transcript import (
    DATA,
    HELLO,
    QUEUED,
    SENDER,
    Conversation,
    converse,
    play,
    proceed,
)

TOO_BIG = "S: 552 5.3.4 Message size exceeds fixed limit\n"
NO = Reply.of(550, "5.7.1", "No")


def refusing_recipients(question: Question) -> Answer:
    return Refuse(NO) if isinstance(question, RcptQuestion) else proceed(question)


def test_a_command_line_of_2048_octets_is_taken_and_one_more_is_refused() -> None:
    converse(HELLO + "C: NOOP " + "x" * 2041 + "\nS: 250 2.0.0 OK\n")
    converse(HELLO + "C: NOOP " + "x" * 2042 + "\nS: 500 5.5.2 Line too long\nC: NOOP\nS: 250 2.0.0 OK\n")


def test_a_line_without_an_end_ends_the_session() -> None:
    converse(HELLO + "C: " + "x" * 3998 + "\nS: 500 5.5.2 Line too long\n", max_discarded_line=4000)
    converse(HELLO + "C: " + "x" * 3999 + "\nS: 421 4.7.0 Line without an end\nX:\n", max_discarded_line=4000)
    told = play(HELLO, Conversation.begin(max_discarded_line=4000))
    for _ in range(4):
        told.send(b"x" * 1000)
    assert (told.closed, told.session.buffered) == (False, 0)
    told.send(b"x")
    assert told.closed


def test_a_long_line_is_not_kept() -> None:
    told = play(HELLO, Conversation.begin(max_discarded_line=1 << 30))
    for _ in range(100):
        told.send(b"x" * 10_000)
        assert told.session.buffered == 0
    told.send(b"\r\n")
    assert told.said() == "500 5.5.2 Line too long\r\n"


def test_an_overlong_line_that_ends_in_a_bare_lf_ends_the_session() -> None:
    converse(HELLO + "C> " + "x" * 3000 + "\\nNOOP\\r\\n\nS: 500 5.5.2 Command lines end with CRLF\nX:\n")


def test_a_declared_size_at_the_limit_is_taken_and_one_more_is_refused() -> None:
    converse(HELLO + "C: MAIL FROM:<a@b.test> SIZE=1000\nS: 250 2.1.0 Sender OK\n")
    told = converse(HELLO + "C: MAIL FROM:<a@b.test> SIZE=1001\n" + TOO_BIG)
    assert not any(isinstance(event, MailQuestion) for event in told.events)
    converse(HELLO + "C: MAIL FROM:<a@b.test> SIZE=99999999999999999999\n" + TOO_BIG)


def test_a_message_at_the_size_limit_is_taken_and_one_octet_more_is_read_and_refused() -> None:
    told = converse(DATA + "C: " + "x" * 998 + "\nC: .\n" + QUEUED)
    assert len(told.message) == 1000
    told = converse(DATA + "C: " + "x" * 999 + "\nC: .\n" + TOO_BIG + "C: NOOP\nS: 250 2.0.0 OK\n")
    assert not any(isinstance(event, MessageQuestion) for event in told.events)


def test_the_dots_that_were_stuffed_do_not_count() -> None:
    told = converse(DATA + "C: ..\n" * 333 + "C: .\n" + QUEUED)
    assert len(told.message) == 999


def test_a_message_far_beyond_the_limit_is_not_read_to_its_end() -> None:
    converse(DATA + "C: " + "x" * 1498 + "\nC: .\n" + TOO_BIG, oversize_slack=500)
    converse(DATA + "C: " + "x" * 1499 + "\nC: .\n" + TOO_BIG + "X:\n", oversize_slack=500)


def test_recipients_up_to_the_limit_are_taken_and_one_more_is_452() -> None:
    recipients = "C: RCPT TO:<c@home.test>\nS: 250 2.1.5 Recipient OK\n" * 5
    told = converse(
        SENDER
        + recipients
        + "C: RCPT TO:<d@home.test>\nS: 452 4.5.3 Too many recipients\n" * 30
        + "C: DATA\nS: 354 Start mail input; end with <CRLF>.<CRLF>\nC: .\n"
        + QUEUED
    )
    assert sum(isinstance(event, RcptQuestion) for event in told.events) == 5


ERROR = "C: XYZZY\nS: 500 5.5.2 Command not recognized\n"


def test_errors_up_to_the_limit_are_answered_and_one_more_ends_the_session() -> None:
    converse(HELLO + ERROR * 20 + "C: NOOP\nS: 250 2.0.0 OK\n")
    converse(HELLO + ERROR * 20 + "C: XYZZY\nS: 421 4.7.0 Too many errors\nX:\n")


def test_an_accepted_message_forgives_errors() -> None:
    errors = ERROR * 20
    converse(DATA.replace(HELLO, HELLO + errors) + "C: .\n" + QUEUED + errors)


def test_a_refused_message_forgives_nothing() -> None:
    refused = (
        DATA.replace(HELLO, HELLO + ERROR * 20)
        + "C> a\\nb\\r\\n.\\r\\n\nS: 550 5.6.0 Message contains a...\n"
    )
    converse(refused + "C: XYZZY\nS: 421 4.7.0 Too many errors\nX:\n")


@pytest.mark.parametrize(
    ("command", "said"),
    [
        ("NOOP", "250 2.0.0 OK"),
        ("RSET", "250 2.0.0 OK"),
        ("HELO x", "250 mx.test"),
        ("VRFY x", "252 2.5.0 Cannot VRFY user, but will accept message and attempt delivery"),
    ],
)
def test_junk_up_to_the_limit_is_answered_and_one_more_ends_the_session(command: str, said: str) -> None:
    # The HELO that began the session is the first
    junk = f"C: {command}\nS: {said}\n" * 99
    converse(HELLO + junk)
    converse(HELLO + junk + f"C: {command}\nS: 421 4.7.0 Too many commands without a message\nX:\n")


def test_an_accepted_message_forgives_junk() -> None:
    junk = "C: NOOP\nS: 250 2.0.0 OK\n"
    converse(DATA.replace(HELLO, HELLO + junk * 99) + "C: .\n" + QUEUED + junk * 100)


def test_refusals_up_to_the_limit_are_answered_and_one_more_ends_the_session() -> None:
    refused = "C: RCPT TO:<c@home.test>\nS: 550 5.7.1 No\n"
    converse(SENDER + refused * 10, refusing_recipients, max_refusals=10)
    told = converse(
        SENDER + refused * 10 + "C: RCPT TO:<c@home.test>\nS: 421 4.7.0 Too many refused commands\nX:\n",
        refusing_recipients,
        max_refusals=10,
    )
    assert told.session.transaction is None


def test_refusals_by_policies_are_no_errors_of_the_client() -> None:
    converse(SENDER + "C: RCPT TO:<c@home.test>\nS: 550 5.7.1 No\n" * 100, refusing_recipients, max_errors=0)


def test_pipelined_input_up_to_the_limit_waits_and_one_octet_more_ends_the_session() -> None:
    for octets, closed in ((100, False), (101, True)):
        told = play(HELLO, Conversation.begin(max_pipelined=100))
        told.take(told.session.receive(b"MAIL FROM:<a@b.test>\r\n"))
        told.take(told.session.receive(b"x" * octets))
        assert told.closed is closed
        assert told.session.buffered == (0 if closed else octets)


def test_thousands_of_commands_in_one_piece_do_not_recurse_and_take_linear_time() -> None:
    def seconds(count: int) -> float:
        told = play(HELLO, Conversation.begin(max_junk=10**9))
        begun = time.process_time()
        told.send(b"NOOP\r\n" * count)
        assert told.said() == "250 2.0.0 OK\r\n" * count
        return time.process_time() - begun

    seconds(1000)
    assert seconds(100_000) < 60 * max(min(seconds(10_000) for _ in range(3)), 0.001)


def test_octets_that_come_one_by_one_behind_a_question_take_linear_time() -> None:
    told = play(HELLO, Conversation.begin())
    told.take(told.session.receive(b"MAIL FROM:<a@b.test>\r\n"))
    begun = time.perf_counter()
    for _ in range(200_000):
        told.session.receive(b"x")
    assert told.session.buffered == 200_000
    assert time.perf_counter() - begun < 10
