"""Every limit of a session, at the number itself and one past it.

RFC 5321 §4.5.3.1.4, RFC 5321 §4.5.3.1.10, RFC 1870 §6.1, RFC 1870 §6.3.
"""

from __future__ import annotations

import time

import pytest

from elemta.smtp import replies
from elemta.smtp.events import (
    DataQuestion,
    MailQuestion,
    MessageQuestion,
    PauseQuestion,
    Proceed,
    Question,
    RcptQuestion,
    Refuse,
    Response,
)
from elemta.smtp.reply import Reply
from tests.smtp.transcript import (
    DATA,
    ENVELOPE,
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
LATER = Reply.of(451, "4.7.1", "Later")


def refusing_recipients(question: Question) -> Response:
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


def test_an_overlong_line_that_ends_in_a_bare_lf_ends_the_session_of_a_strict_listener() -> None:
    sent = "C> " + "x" * 3000 + "\\nNOOP\\r\\n\n"
    converse(HELLO + sent + "S: 500 5.5.2 Command lines end with CRLF\nX:\n", strict=True)
    converse(HELLO + sent + "S: 500 5.5.2 Line too long\nS: 250 2.0.0 OK\n")


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
    converse(SENDER + "C: RCPT TO:<c@home.test>\nS: 550 5.7.1 No\n" * 50, refusing_recipients, max_errors=0)


REFUSED = "C: RCPT TO:<c@home.test>\nS: 550 5.7.1 No\n"
GONE = "C: RCPT TO:<c@home.test>\nS: 421 4.7.0 Too many refused commands\nX:\n"


def refusing_some(question: Question) -> Response:
    """Refuse recipients whose name begins with c, or for now those whose name begins with t."""
    if isinstance(question, RcptQuestion):
        letter = question.recipient.address.local[:1]
        return Refuse({"c": NO, "t": LATER}[letter]) if letter in "ct" else proceed(question)
    return proceed(question)


def pauses(told: Conversation) -> int:
    return sum(isinstance(event, PauseQuestion) for event in told.events)


def test_ten_refusals_are_answered_at_once_each_later_one_after_a_second_and_the_51st_is_the_end() -> None:
    assert pauses(converse(SENDER + REFUSED * 10, refusing_some)) == 0
    told = converse(SENDER + REFUSED * 50 + GONE, refusing_some)
    asked = [event for event in told.events if isinstance(event, PauseQuestion)]
    assert [question.seconds for question in asked] == [1.0] * 40


@pytest.mark.parametrize(
    "between",
    [
        "C: RSET\nS: 250 2.0.0 OK\nC: MAIL FROM:<a@b.test>\nS: 250 2.1.0 Sender OK\n",
        "C: HELO x\nS: 250 mx.test\nC: MAIL FROM:<a@b.test>\nS: 250 2.1.0 Sender OK\n",
        "C: RCPT TO:<good@home.test>\nS: 250 2.1.5 Recipient OK\nC: DATA\nS: 354 Start mail input; end with "
        "<CRLF>.<CRLF>\nC: .\n" + QUEUED + "C: MAIL FROM:<a@b.test>\nS: 250 2.1.0 Sender OK\n",
    ],
    ids=["RSET", "HELO", "an accepted message"],
)
def test_nothing_in_a_session_makes_refusals_undone(between: str) -> None:
    some = REFUSED * 9 + between
    told = converse(SENDER + some * 5 + REFUSED * 5 + GONE, refusing_some)
    assert pauses(told) == 40


def test_what_is_refused_for_now_or_only_repeats_a_refusal_is_no_refusal_for_good() -> None:
    later = "C: RCPT TO:<t@home.test>\nS: 451 4.7.1 Later\n" * 100
    too_many = "C: RCPT TO:<d@home.test>\nS: 250 2.1.5 Recipient OK\n"
    too_many += "C: RCPT TO:<d@home.test>\nS: 452 4.5.3 Too many recipients\n" * 100
    assert pauses(converse(SENDER + later + too_many, refusing_some, max_recipients=1)) == 0
    data = "C: DATA\nS: 554 5.5.1 No valid recipients\n" * 100
    assert pauses(converse(SENDER + data, refusing_some)) == 0


def test_what_a_limit_of_refusals_says_counts_as_a_refusal_for_good() -> None:
    def limited(question: Question) -> Response:
        if isinstance(question, RcptQuestion):
            return Refuse(LATER, by_limit=True, of_refused_client=True)
        return proceed(question)

    later = "C: RCPT TO:<c@home.test>\nS: 451 4.7.1 Later\n" * 50
    assert pauses(converse(SENDER + later + GONE, limited)) == 40


def test_refusals_of_any_kind_up_to_a_thousand_are_answered_and_an_accepted_message_forgives_them() -> None:
    later = "C: RCPT TO:<t@home.test>\nS: 451 4.7.1 Later\n" * 10
    converse(SENDER + later + GONE.replace("c@", "t@"), refusing_some, max_declined=10)
    forgiven = DATA.replace("<c@", "<d@").replace(SENDER, SENDER + later) + "C: .\n" + QUEUED
    forgiven += "C: MAIL FROM:<a@b.test>\nS: 250 2.1.0 Sender OK\n"
    converse(forgiven + later, refusing_some, max_declined=10)


def test_a_refused_message_is_a_refusal_and_its_transaction_is_over_before_the_pause() -> None:
    refused = "C> a\\nb\\r\\n.\\r\\n\nS: 550 5.6.0 Message contains a bare CR or LF\n"
    told = converse(DATA + refused, quick_refusals=0)
    names = [type(event).__name__ for event in told.events]
    assert names.index("TransactionEnded") < names.index("PauseQuestion") < len(names) - 1


def test_users_that_logged_in_and_clients_that_may_relay_are_not_slowed() -> None:
    hundred = REFUSED * 100
    assert pauses(converse(SENDER + hundred, refusing_some, may_relay=lambda ip: str(ip) == "192.0.2.1")) == 0
    auth = "C: AUTH PLAIN AGphbmUAc2VjcmV0\nS: 235 2.7.0 Authentication successful\n"
    logged_in = SENDER.replace(HELLO, HELLO + auth)
    assert pauses(converse(logged_in + hundred, refusing_some, auth_needs_tls=False)) == 0


def test_what_is_pipelined_behind_a_refusal_waits_in_order_and_what_was_said_before_is_out() -> None:
    told = play(SENDER, Conversation.begin(refusing_some, quick_refusals=0))
    told.take(told.session.receive(b"NOOP\r\nRCPT TO:<c@home.test>\r\nNOOP\r\nRSET\r\n"))
    told.take(told.session.answer(Refuse(NO)))
    assert isinstance(told.session.question, PauseQuestion)
    assert told.said() == "250 2.0.0 OK\r\n"
    told.take(told.session.answer(Proceed()))
    assert told.said() == "550 5.7.1 No\r\n250 2.0.0 OK\r\n250 2.0.0 OK\r\n"


@pytest.mark.parametrize("end", ["shut", "input behind DATA", "lost"])
def test_a_reply_that_waits_is_the_first_that_is_said_when_the_session_ends(end: str) -> None:
    def refuse_data(question: Question) -> Response:
        return Refuse(NO) if isinstance(question, DataQuestion) else proceed(question)

    told = play(ENVELOPE, Conversation.begin(refuse_data, quick_refusals=0))
    told.take(told.session.receive(b"DATA\r\n"))
    if end == "input behind DATA":
        told.take(told.session.receive(b"Subject: x\r\n"))
    told.take(told.session.answer(Refuse(NO)))
    if end == "shut":
        told.take(told.session.shut(replies.SHUTTING_DOWN, "drain"))
        assert told.said() == "550 5.7.1 No\r\n421 4.3.2 Service shutting down, try again later\r\n"
    elif end == "lost":
        told.take(told.session.lost())
        assert told.said() == ""
    else:
        assert told.said() == "550 5.7.1 No\r\n"
    assert told.session.closed


def test_pipelined_input_up_to_the_limit_waits_and_one_octet_more_ends_the_session() -> None:
    for octets, closed in ((100, False), (101, True)):
        told = play(HELLO, Conversation.begin(max_pipelined=100))
        told.take(told.session.receive(b"MAIL FROM:<a@b.test>\r\n"))
        told.take(told.session.receive(b"x" * octets))
        assert told.closed is closed
        assert told.session.buffered == (0 if closed else octets)


def test_thousands_of_commands_in_one_piece_do_not_recurse_and_take_linear_time() -> None:
    def seconds(count: int) -> float:
        told = play(HELLO, Conversation.begin(max_idle_commands=10**9))
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
