"""Whole conversations: the state after every order of commands.

RFC 5321 §4.1.4, RFC 5321 §3.3, RFC 5321 §3.1.
"""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from elemta.address import NULL, Address
from elemta.envelope import BodyType, Notify, Return
from elemta.smtp import replies
from elemta.smtp.events import (
    Close,
    HeloQuestion,
    MailQuestion,
    MessageQuestion,
    Proceed,
    Question,
    Queued,
    RcptQuestion,
    Refuse,
    Replied,
    Response,
    Stage,
    StageQuestion,
    TransactionEnded,
)
from elemta.smtp.reply import Reply
from tests.smtp.transcript import (
    DATA,
    ENVELOPE,
    GREETING,
    HELLO,
    QUEUED,
    SENDER,
    Conversation,
    converse,
    in_pieces,
    play,
    proceed,
)

NO = Reply.of(550, "5.7.1", "No")
LATER = Reply.of(450, "4.7.1", "Later")


def refusing(stage: Stage, reply: Reply = NO, close: bool = False):
    def answer(question: Question) -> Response:
        if isinstance(question, StageQuestion) and question.stage is stage:
            return Refuse(reply, close=close)
        return proceed(question)

    return answer


ONE_MESSAGE = (
    DATA
    + """
    C: Subject: hello
    C:
    C: ..two dots are one
    C: .
    """
    + QUEUED
    + """
    C: QUIT
    S: 221 2.0.0 mx.test closing connection
    X:
    """
)


def test_a_message_goes_from_greeting_to_quit() -> None:
    told = converse(ONE_MESSAGE)
    assert told.message == b"Subject: hello\r\n\r\n.two dots are one\r\n"
    assert told.facts_told() == [
        ("asked", "ConnectQuestion"),
        ("", "220 mx.test ESMTP Elemta"),
        ("asked", "HeloQuestion"),
        ("HELO", "250 mx.test"),
        ("asked", "MailQuestion"),
        ("MAIL", "250 2.1.0 Sender OK"),
        ("asked", "RcptQuestion"),
        ("RCPT", "250 2.1.5 Recipient OK"),
        ("asked", "DataQuestion"),
        ("DATA", "354 Start mail input; end with <CRLF>.<CRLF>"),
        "MessageStarted",
        told.message,
        ("asked", "MessageQuestion"),
        (".", "250 2.0.0 Message accepted for delivery; queued as Q1"),
        ("ended", True, "a@b.test", len(told.message)),
        ("QUIT", "221 2.0.0 mx.test closing connection"),
        "Close",
    ]


def test_ehlo_offers_what_works_and_nothing_else() -> None:
    converse(
        GREETING
        + """
        C: EHLO client.test
        S: 250-mx.test
        S: 250-PIPELINING
        S: 250-SIZE 1000
        S: 250-8BITMIME
        S: 250-SMTPUTF8
        S: 250-ENHANCEDSTATUSCODES
        S: 250-CHUNKING
        S: 250-DSN
        S: 250 STARTTLS
        """
    )
    converse(GREETING + "C: EHLO x\nS: 250-mx.test\n" + EXTENSIONS + "S: 250 DSN", starttls=False)
    offered = EXTENSIONS + "S: 250-DSN\nS: 250-STARTTLS\nS: 250 AUTH PLAIN LOGIN"
    converse(GREETING + "C: EHLO x\nS: 250-mx.test\n" + offered, auth_needs_tls=False)


EXTENSIONS = """S: 250-PIPELINING
S: 250-SIZE 1000
S: 250-8BITMIME
S: 250-SMTPUTF8
S: 250-ENHANCEDSTATUSCODES
S: 250-CHUNKING
"""

SMALL_COMMANDS = (
    HELLO
    + """
    C: NOOP
    S: 250 2.0.0 OK
    C: noop with words
    S: 250 2.0.0 OK
    C: RSET
    S: 250 2.0.0 OK
    C: RSET now
    S: 501 5.5.4 This command takes no argument
    C: VRFY someone
    S: 252 2.5.0 Cannot VRFY user, but will accept message and attempt delivery
    C: VRFY
    S: 501 5.5.4 Syntax error in arguments
    C: EXPN list
    S: 502 5.5.1 Command not implemented
    C: LHLO client.test
    S: 502 5.5.1 Command not implemented
    C: HELP
    S: 214-2.0.0 Commands:...
    S: 214 2.0.0 See RFC 5321
    C: XYZZY
    S: 500 5.5.2 Command not recognized
    C:
    S: 500 5.5.2 Command not recognized
    C: QUIT now
    S: 501 5.5.4 This command takes no argument
    C> QUIT   \\r\\n
    S: 221 2.0.0 mx.test closing connection
    X:
    """
)


def test_small_commands_have_their_replies() -> None:
    told = converse(SMALL_COMMANDS)
    verbs = {event.verb for event in told.events if isinstance(event, Replied)}
    assert "XYZZY" not in verbs
    assert "?" in verbs


SEQUENCE = (
    GREETING
    + """
    C: MAIL FROM:<a@b.test>
    S: 503 5.5.1 Send EHLO first
    C: RCPT TO:<a@b.test>
    S: 503 5.5.1 Send EHLO first
    C: DATA
    S: 503 5.5.1 Send EHLO first
    C: HELO client.test
    S: 250 mx.test
    C: RCPT TO:<a@b.test>
    S: 503 5.5.1 Need MAIL command
    C: DATA
    S: 503 5.5.1 Need MAIL command
    C: MAIL FROM:<a@b.test>
    S: 250 2.1.0 Sender OK
    C: MAIL FROM:<a@b.test>
    S: 503 5.5.1 Nested MAIL command
    C: DATA
    S: 554 5.5.1 No valid recipients
    C: RCPT TO:<c@home.test>
    S: 250 2.1.5 Recipient OK
    C: MAIL FROM:<a@b.test>
    S: 503 5.5.1 Nested MAIL command
    C: AUTH PLAIN
    S: 503 5.5.1 Not during a mail transaction
    C: DATA
    S: 354 Start mail input; end with <CRLF>.<CRLF>
    C: .
    """
    + QUEUED
)


def test_commands_out_of_sequence_are_503_and_change_nothing() -> None:
    converse(SEQUENCE)


def test_a_second_mail_works_after_a_finished_message() -> None:
    told = converse(
        DATA
        + "C: one\nC: .\n"
        + QUEUED
        + ENVELOPE[len(HELLO) :]
        + DATA[len(ENVELOPE) :]
        + "C: two\nC: .\n"
        + QUEUED
        + "C: RCPT TO:<c@home.test>\nS: 503 5.5.1 Need MAIL command\n"
    )
    assert told.message == b"one\r\ntwo\r\n"


def test_rcpt_after_a_refused_end_of_data_needs_a_new_mail() -> None:
    told = converse(
        DATA
        + """
        C: one
        C: .
        S: 550 5.7.1 No
        C: RCPT TO:<c@home.test>
        S: 503 5.5.1 Need MAIL command
        C: MAIL FROM:<a@b.test>
        S: 250 2.1.0 Sender OK
        """,
        refusing(Stage.MESSAGE),
    )
    assert ("ended", False, "a@b.test", 5) in told.facts_told()


@pytest.mark.parametrize("command", ["RSET\nS: 250 2.0.0 OK", "HELO again\nS: 250 mx.test"])
def test_rset_and_helo_end_a_transaction(command: str) -> None:
    told = converse(
        ENVELOPE
        + "C: "
        + command
        + "\nC: RCPT TO:<c@home.test>\nS: 503 5.5.1 Need MAIL command\n"
        + SENDER[len(HELLO) :]
    )
    assert [event.accepted for event in told.events if isinstance(event, TransactionEnded)] == [False]


def test_a_refused_recipient_does_not_end_the_transaction() -> None:
    def answer(question: Question) -> Response:
        if isinstance(question, RcptQuestion) and question.recipient.local == "no":
            return Refuse(NO)
        return proceed(question)

    told = converse(
        SENDER
        + """
        C: RCPT TO:<no@home.test>
        C: RCPT TO:<yes@home.test>
        C: RCPT TO:<no@home.test>
        S: 550 5.7.1 No
        S: 250 2.1.5 Recipient OK
        S: 550 5.7.1 No
        """,
        answer,
    )
    transaction = told.session.transaction
    assert transaction is not None
    assert [str(recipient) for recipient in transaction.recipients] == ["yes@home.test"]


def test_a_refused_mail_ends_its_transaction_and_what_was_pipelined_is_no_error_of_the_client() -> None:
    pipelined = "C: MAIL FROM:<a@b.test>\n" + "C: RCPT TO:<c@home.test>\n" * 30 + "S: 450 4.7.1 Later\n"
    told = converse(
        HELLO + pipelined + "S: 503 5.5.1 Need MAIL command\n" * 30 + "C: NOOP\nS: 250 2.0.0 OK",
        refusing(Stage.MAIL, LATER),
        max_errors=3,
    )
    assert [event.accepted for event in told.events if isinstance(event, TransactionEnded)] == [False]


@pytest.mark.parametrize(
    ("mail", "said"),
    [
        ("MAIL FROM:<a@b.test> SIZE=1001", "552 5.3.4 Message size exceeds fixed limit"),
        ("MAIL FROM:<a@b-.test>", "501 5.1.7 Bad sender address syntax"),
        ("MAIL FROM:<ü@b.test>", "553 5.6.7 Address needs SMTPUTF8"),
    ],
)
def test_a_mail_that_can_not_be_taken_does_not_make_errors_of_what_was_pipelined(
    mail: str, said: str
) -> None:
    pipelined = f"C: {mail}\n" + "C: RCPT TO:<c@home.test>\n" * 30 + f"S: {said}\n"
    converse(HELLO + pipelined + "S: 503 5.5.1 Need MAIL command\n" * 30, max_errors=1)
    converse(
        HELLO + f"C: {mail}x\nS: 5...\n" * 1 + "C: XYZZY\nS: 500 5.5.2 Command not recognized\n", max_errors=2
    )


def test_a_refused_data_ends_the_transaction() -> None:
    converse(
        ENVELOPE + "C: DATA\nS: 550 5.7.1 No\nC: DATA\nS: 503 5.5.1 Need MAIL command\n", refusing(Stage.DATA)
    )


def test_a_refused_helo_leaves_everything_as_it_was() -> None:
    def answer(question: Question) -> Response:
        if isinstance(question, HeloQuestion) and question.session.helo == "bad":
            assert question.session.esmtp
            return Refuse(NO)
        return proceed(question)

    told = converse(
        ENVELOPE
        + "C: EHLO bad\nS: 550 5.7.1 No\nC: DATA\nS: 354 Start mail input; end with <CRLF>.<CRLF>\nC: .\n"
        + QUEUED,
        answer,
    )
    assert told.session.facts.helo == "client.test"
    assert told.session.facts.esmtp is False


@pytest.mark.parametrize("stage", [Stage.HELO, Stage.MAIL, Stage.RCPT, Stage.DATA, Stage.MESSAGE])
def test_a_refusal_that_closes_closes_after_its_reply(stage: Stage) -> None:
    said = Reply.of(421, "4.7.0", "Enough")
    for answering in (refusing(stage, said), refusing(stage, NO, close=True)):
        told = Conversation.begin(answering)
        told.send(b"HELO x\r\nMAIL FROM:<a@b.test>\r\nRCPT TO:<c@home.test>\r\n")
        if not told.closed:
            told.send(b"DATA\r\n")
        if not told.closed:
            told.send(b"hi\r\n.\r\nNOOP\r\n")
        assert told.closed
        assert told.said().splitlines()[-1] in ("421 4.7.0 Enough", "550 5.7.1 No")
        assert told.session.transaction is None
        assert isinstance(told.events[-1], Close)


def test_parameters_reach_the_transaction() -> None:
    told = converse(
        HELLO
        + """
        C: MAIL FROM:<a@b.test> SIZE=999 BODY=8BITMIME SMTPUTF8 RET=HDRS ENVID=a+2Bb AUTH=<>
        S: 250 2.1.0 Sender OK
        C: RCPT TO:<c@home.test> NOTIFY=SUCCESS,DELAY ORCPT=rfc822;c+2Bd@home.test
        S: 250 2.1.5 Recipient OK
        """
    )
    transaction = told.session.transaction
    assert transaction is not None
    assert transaction.size == 999
    parameters = transaction.parameters
    assert (parameters.size, parameters.body, parameters.smtputf8) == (999, BodyType.EIGHT_BIT, True)
    assert (parameters.ret, parameters.envid, parameters.auth) == (Return.HEADERS, "a+b", "")
    recipient = transaction.recipients[0]
    assert recipient.notify == Notify.SUCCESS | Notify.DELAY
    assert recipient.orcpt == "rfc822;c+d@home.test"


def test_a_bare_postmaster_is_given_a_domain_and_only_in_rcpt() -> None:
    told = converse(
        SENDER
        + """
        C: RCPT TO:<PostMaster>
        S: 250 2.1.5 Recipient OK
        C: RCPT TO:<someone>
        S: 501 5.1.3 Bad recipient address syntax
        C: RCPT TO:<>
        S: 501 5.1.3 Bad recipient address syntax
        C: RSET
        S: 250 2.0.0 OK
        C: MAIL FROM:<postmaster>
        S: 501 5.1.7 Bad sender address syntax
        C: MAIL FROM:<>
        S: 250 2.1.0 Sender OK
        """
    )
    asked = [event for event in told.events if isinstance(event, RcptQuestion)]
    assert [question.recipient.address for question in asked] == [Address("postmaster", "home.test")]
    senders = [event.transaction.sender for event in told.events if isinstance(event, MailQuestion)]
    assert senders[-1] == NULL


BAD_SYNTAX = (
    HELLO
    + """
    C: MAIL
    S: 501 5.5.4 Syntax: MAIL FROM:<address> [parameters]
    C: MAIL TO:<a@b.test>
    S: 501 5.5.4 Syntax: MAIL FROM:<address> [parameters]
    C: MAIL FROM:a@b.test
    S: 501 5.1.7 Bad sender address syntax
    C: MAIL FROM:<a@b.test
    S: 501 5.1.7 Bad sender address syntax
    C: MAIL FROM:<a@b.test>SIZE=1
    S: 501 5.1.7 Bad sender address syntax
    C: MAIL FROM:<a@b.test> SIZE=1e30
    S: 501 5.5.4 Bad or repeated parameter
    C: MAIL FROM:<a@b.test> SIZE=1 SIZE=1
    S: 501 5.5.4 Bad or repeated parameter
    C: MAIL FROM:<a@b.test> COLOUR=blue
    S: 555 5.5.4 Parameter not recognized or not implemented
    C: MAIL FROM:<a@b.test> NOTIFY=NEVER
    S: 555 5.5.4 Parameter not recognized or not implemented
    C: MAIL FROM: <a@b.test>
    S: 250 2.1.0 Sender OK
    C: RCPT FROM:<c@home.test>
    S: 501 5.5.4 Syntax: RCPT TO:<address> [parameters]
    C: RCPT TO:<c@home.test> SIZE=1
    S: 555 5.5.4 Parameter not recognized or not implemented
    """
)


def test_bad_syntax_is_refused_and_says_what_is_wrong() -> None:
    converse(BAD_SYNTAX, strict=True)


@pytest.mark.parametrize("name", ["", "two words", "ü.test", "a" * 256, "<script>", '"x"'])
def test_a_helo_name_that_is_none_is_refused_by_a_strict_listener(name: str) -> None:
    converse(GREETING + f"C: EHLO {name}\nS: 501 5.5.4 Domain name or address literal required", strict=True)


@pytest.mark.parametrize("name", ["a" * 255, "[192.0.2.1]", "[IPv6:2001:db8::1]", "WIN_PC-1", "localhost"])
def test_helo_names_of_real_clients_are_taken(name: str) -> None:
    assert converse(GREETING + f"C: HELO {name}\nS: 250 mx.test").session.facts.helo == name


UTF8 = (
    HELLO
    + """
    C: MAIL FROM:<jürgen@b.test>
    S: 553 5.6.7 Address needs SMTPUTF8
    C: MAIL FROM:<a@bücher.test>
    S: 553 5.6.7 Address needs SMTPUTF8
    C: MAIL FROM:<a@b.test>
    S: 250 2.1.0 Sender OK
    C: RCPT TO:<jürgen@home.test>
    S: 553 5.6.7 Address needs SMTPUTF8
    C: RSET
    S: 250 2.0.0 OK
    C: MAIL FROM:<jürgen@bücher.test> SMTPUTF8
    S: 250 2.1.0 Sender OK
    C: RCPT TO:<用户@例子.test>
    S: 250 2.1.5 Recipient OK
    C> RCPT TO:<\\xff@home.test>\\r\\n
    S: 501 5.6.7 Command is neither ASCII nor UTF-8
    C> RCPT TO:<\\xc0\\xaf@home.test>\\r\\n
    S: 501 5.6.7 Command is neither ASCII nor UTF-8
    """
)


def test_addresses_beyond_ascii_need_smtputf8() -> None:
    told = converse(UTF8)
    transaction = told.session.transaction
    assert transaction is not None
    assert transaction.sender == Address("jürgen", "bücher.test")


@pytest.mark.parametrize(
    ("octet", "strict"),
    [(octet, strict) for octet in (r"\x00", r"\r", r"\x07", r"\x1b", r"\x7f") for strict in (False, True)]
    + [(r"\t", True)],
)
@pytest.mark.parametrize(
    "place", ["HELO a{}b", "MAIL FROM:<a{}@b.test>", 'MAIL FROM:<"a{}"@b.test>', "NOOP{}"]
)
def test_control_characters_in_commands_are_refused(octet: str, place: str, strict: bool) -> None:
    converse(
        HELLO
        + "C> "
        + place.format(octet)
        + "\\r\\n\nS: 501 5.5.2 Control characters are not allowed in commands",
        strict=strict,
    )


def test_eight_bit_content_is_taken_without_body_8bitmime() -> None:
    assert converse(DATA + "C> h\\xe9llo\\r\\n.\\r\\n\n" + QUEUED).message == b"h\xe9llo\r\n"


def test_very_long_lines_and_an_empty_message_are_taken() -> None:
    assert (
        converse(DATA + "C: " + "x" * 20_000 + "\nC: .\n" + QUEUED, max_message_size=50_000).message
        == b"x" * 20_000 + b"\r\n"
    )
    assert converse(DATA + "C: .\n" + QUEUED).message == b""


# Answers, questions and the shell


def test_answers_that_come_late_are_in_order() -> None:
    told = Conversation.begin(late=True)
    told.said()
    session = told.session
    told.take(
        session.receive(
            b"EHLO x\r\nMAIL FROM:<a@b.test>\r\nRCPT TO:<c@home.test>\r\nNOOP\r\nRCPT TO:<d@home.test>\r\n"
        )
    )
    assert isinstance(session.question, HeloQuestion)
    assert told.said() == ""
    assert session.buffered == len(
        b"MAIL FROM:<a@b.test>\r\nRCPT TO:<c@home.test>\r\nNOOP\r\nRCPT TO:<d@home.test>\r\n"
    )
    told.take(session.answer(Proceed()))
    assert told.said().endswith("250 STARTTLS\r\n")
    told.take(session.answer(Proceed()))
    assert told.said() == "250 2.1.0 Sender OK\r\n"
    told.take(session.receive(b"DATA\r\n"))
    assert told.said() == ""
    told.take(session.answer(Refuse(NO)))
    assert told.said() == "550 5.7.1 No\r\n250 2.0.0 OK\r\n"
    told.take(session.answer(Proceed()))
    assert told.said() == "250 2.1.5 Recipient OK\r\n"
    told.take(session.answer(Proceed()))
    assert told.said() == "354 Start mail input; end with <CRLF>.<CRLF>\r\n"
    assert session.buffered == 0
    assert session.receiving


def test_an_answer_without_a_question_or_of_the_wrong_kind_is_an_error_of_ours() -> None:
    told = Conversation.begin()
    with pytest.raises(RuntimeError):
        told.session.answer(Proceed())
    told.take(told.session.receive(b"HELO x\r\n"))
    with pytest.raises(TypeError):
        told.session.answer(Queued("Q1"))


def test_a_message_is_answered_only_by_queued_or_a_refusal() -> None:
    told = play(DATA, Conversation.begin())
    told.take(told.session.receive(b".\r\n"))
    assert isinstance(told.session.question, MessageQuestion)
    with pytest.raises(TypeError):
        told.session.answer(Proceed())


def test_a_session_receives_from_the_command_to_the_end_of_the_message() -> None:
    told = play(HELLO, Conversation.begin())
    session = told.session
    told.send(b"MAIL FROM:<a@b.test>\r\nRCPT TO:<c@home.test>\r\n")
    assert not session.receiving
    told.send(b"DATA\r\n")
    assert session.receiving
    told.take(session.receive(b".\r\n"))
    assert not session.receiving
    told.settle()
    assert not session.closed
    told.send(b"QUIT\r\n")
    assert session.closed


@pytest.mark.parametrize("script", [GREETING, HELLO, ENVELOPE, DATA, DATA + "C: half a message"])
def test_the_shell_can_end_the_session_anywhere(script: str) -> None:
    told = play(script, Conversation.begin())
    under_way = told.session.transaction is not None
    events = told.session.shut(replies.SHUTTING_DOWN, "drain")
    assert [type(event) for event in events] == [Replied, *[TransactionEnded] * under_way, Close]
    assert told.session.take_output() == b"421 4.3.2 Service shutting down, try again later\r\n"
    assert told.session.receive(b"NOOP\r\n") == []
    assert told.session.shut(replies.SHUTTING_DOWN, "drain") == []
    assert told.session.lost() == []


def test_an_answer_that_comes_after_the_end_is_ignored() -> None:
    told = play(HELLO, Conversation.begin())
    told.take(told.session.receive(b"MAIL FROM:<a@b.test>\r\n"))
    told.take(told.session.shut(replies.TIMEOUT, "timeout"))
    assert told.said() == "421 4.4.2 Timeout, closing connection\r\n"
    assert told.session.answer(Proceed()) == []
    assert told.session.question is None
    assert told.session.take_output() == b""


def test_a_lost_client_ends_its_transaction_once() -> None:
    told = play(DATA, Conversation.begin())
    events = told.session.lost()
    assert [type(event) for event in events] == [TransactionEnded]
    assert told.session.lost() == []
    assert told.session.closed


def test_a_refusal_by_a_transient_reply_to_the_connection_is_421() -> None:
    told = Conversation.begin(refusing(Stage.CONNECT, LATER))
    assert told.said() == "421 4.7.1 Later\r\n"
    assert told.closed


@pytest.mark.parametrize(
    ("code", "said"), [(550, "554 5.7.1 No"), (554, "554 5.7.1 No"), (521, "521 5.7.1 No")]
)
def test_a_client_that_was_refused_for_good_may_only_quit(code: int, said: str) -> None:
    script = f"""
        S: {said}
        C: EHLO x
        S: 503 5.5.1 No service here; send QUIT
        C: XYZZY
        S: 503 5.5.1 No service here; send QUIT
        C: QUIT
        S: 221 2.0.0 mx.test closing connection
        X:
        """
    converse(script, refusing(Stage.CONNECT, NO.with_code(code, "5.7.1")))


def test_a_client_that_was_refused_for_good_has_a_bounded_number_of_words() -> None:
    told = Conversation.begin(refusing(Stage.CONNECT), max_errors=3)
    told.send(b"NOOP\r\n" * 3)
    assert not told.closed
    told.send(b"NOOP\r\n")
    assert told.closed


def test_a_disconnecting_refusal_of_the_connection_keeps_its_code() -> None:
    told = Conversation.begin(refusing(Stage.CONNECT, Reply.of(421, "4.7.0", "Too many"), close=True))
    assert told.said() == "421 4.7.0 Too many\r\n"
    assert told.closed


SCRIPTS = [ONE_MESSAGE, SMALL_COMMANDS, SEQUENCE, BAD_SYNTAX, UTF8]


@given(st.sampled_from(SCRIPTS), st.lists(st.integers(1, 40), min_size=1, max_size=8), st.booleans())
def test_how_the_input_is_cut_changes_nothing(script: str, sizes: list[int], late: bool) -> None:
    strict = script == BAD_SYNTAX
    expected = play(script, Conversation.begin(strict=strict)).facts_told()
    cut_up = Conversation.begin(splitting=in_pieces(sizes), late=late, strict=strict)
    assert play(script, cut_up).facts_told() == expected
