"""BDAT: chunks, and everything that can go wrong in and between them (RFC 3030 §2)."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from elemta.smtp.events import (
    Close,
    DataQuestion,
    MailQuestion,
    MessageQuestion,
    Question,
    Refuse,
    Replied,
    Response,
    TransactionEnded,
)
from elemta.smtp.framing import ChunkDecoder, ContentError
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
    proceed,
)

FIVE = "C> BDAT 5\\r\\nab\\r\\nc\nS: 250 2.0.0 5 octets received\n"
INSIDE = r"QUIT\r\n"


def refusing_data(question: Question) -> Response:
    if isinstance(question, DataQuestion):
        return Refuse(Reply.of(450, "4.7.1", "Later"))
    return proceed(question)


def test_a_message_in_chunks() -> None:
    told = converse(
        ENVELOPE + FIVE + "C: NOOP\nS: 250 2.0.0 OK\nC> BDAT 5 LAST\\r\\n.\\r\\nd\\n\n" + QUEUED,
        normalize_newlines=True,
    )
    assert told.message == b"ab\r\nc.\r\nd\r\n"
    told = converse(
        ENVELOPE
        + FIVE
        + "C> bdat 3 last\\r\\nd\\r\\n\n"
        + QUEUED
        + "C: RCPT TO:<c@home.test>\nS: 503 5.5.1 Need MAIL command\n"
    )
    assert told.message == b"ab\r\ncd\r\n"


def test_chunks_may_be_pipelined_with_the_envelope() -> None:
    told = converse(
        HELLO
        + """
        C: MAIL FROM:<a@b.test>
        C: RCPT TO:<c@home.test>
        C> BDAT 4\\r\\nab\\r\\nBDAT 0 LAST\\r\\n
        C: MAIL FROM:<d@b.test>
        S: 250 2.1.0 Sender OK
        S: 250 2.1.5 Recipient OK
        S: 250 2.0.0 4 octets received
        """
        + QUEUED
        + "S: 250 2.1.0 Sender OK\n"
    )
    assert told.message == b"ab\r\n"


def test_a_dot_alone_is_content_and_ends_nothing() -> None:
    told = converse(ENVELOPE + "C> BDAT 9 LAST\\r\\na\\r\\n.\\r\\nb\\r\\n\n" + QUEUED)
    assert told.message == b"a\r\n.\r\nb\r\n"


@pytest.mark.parametrize(
    ("size", "content", "message"), [(0, "", b""), (1, "a", b"a\r\n"), (3, r"a\r\n", b"a\r\n")]
)
def test_the_last_line_of_a_message_always_ends(size: int, content: str, message: bytes) -> None:
    assert converse(ENVELOPE + f"C> BDAT {size} LAST\\r\\n{content}\n" + QUEUED).message == message


@pytest.mark.parametrize(
    ("before", "said"),
    [
        (GREETING, "503 5.5.1 Send EHLO first"),
        (HELLO, "503 5.5.1 Need MAIL command"),
        (SENDER, "554 5.5.1 No valid recipients"),
    ],
)
@pytest.mark.parametrize("last", ["", " LAST"])
def test_the_octets_of_a_chunk_that_is_refused_are_not_commands(before: str, said: str, last: str) -> None:
    told = converse(before + f"C> BDAT 12{last}\\r\\n{INSIDE}{INSIDE}\nS: {said}\nC: NOOP\nS: 250 2.0.0 OK\n")
    assert not told.closed


def test_a_chunk_that_policies_refuse_is_read_and_ends_the_transaction() -> None:
    told = converse(
        ENVELOPE
        + f"C> BDAT 6\\r\\n{INSIDE}\nC> BDAT 6 LAST\\r\\n{INSIDE}\n"
        + "S: 450 4.7.1 Later\nS: 503 5.5.1 Need MAIL command\n"
        + "C: MAIL FROM:<a@b.test>\nS: 250 2.1.0 Sender OK\n",
        refusing_data,
        max_errors=0,
    )
    assert [event.accepted for event in told.events if isinstance(event, TransactionEnded)] == [False]
    assert told.message == b""


def test_data_and_bdat_do_not_mix() -> None:
    told = converse(
        ENVELOPE
        + FIVE
        + "C: DATA\nS: 503 5.5.1 A message is being sent with BDAT\n"
        + "C: RCPT TO:<d@home.test>\nS: 503 5.5.1 A message is being sent with BDAT\n"
        + "C: MAIL FROM:<d@home.test>\nS: 503 5.5.1 A message is being sent with BDAT\n"
        + "C> BDAT 2 LAST\\r\\n\\r\\n\n"
        + QUEUED
    )
    assert told.message == b"ab\r\nc\r\n"


@pytest.mark.parametrize("command", ["RSET\nS: 250 2.0.0 OK", "HELO x\nS: 250 mx.test"])
def test_rset_and_helo_between_chunks_end_the_message(command: str) -> None:
    told = converse(
        ENVELOPE + FIVE + f"C: {command}\nC> BDAT 2 LAST\\r\\nxx\nS: 503 5.5.1 Need MAIL command\n"
    )
    assert not any(isinstance(event, MessageQuestion) for event in told.events)


@pytest.mark.parametrize("argument", ["", "x", "-1", "1 FIRST", "1 LAST LAST", "1e3", "0x10", "9" * 21])
def test_a_chunk_whose_end_nobody_knows_ends_the_session(argument: str) -> None:
    told = converse(ENVELOPE + f"C: BDAT {argument}\nC: QUIT\nS: 501 5.5.4 Syntax: BDAT size [LAST]\nX:\n")
    assert told.session.transaction is None


UNREADABLE = [
    b"BDAT\t6",
    b"BDAT\t6 LAST",
    b"BDAT 6\tLAST",
    b"BDAT 6 LAST\0",
    b"\0BDAT 6",
    b"BD\0AT 6 LAST",
    b"BDAT\xff6",
    b"\xff\xfeBDAT 6",
    b"BDAT\xc2\xa06 LAST",
    b"\xef\xbb\xbfBDAT 6",
    b" BDAT 6",
    b"\tBDAT 6 LAST",
    b"bdat6",
    b"BDAT6 LAST",
    b"BDAT-6",
    b"BDAT=6",
    b"BDAT\r6",
    b"BDAT  6",
    b"BDAT 6 LAS",
    b"BDAT 6 LASTX",
    b"BDAT 6,LAST",
    b"BDAT LAST",
    b"BDAT +6",
    b"BDAT 6" + b" " * 2100,
    b" " * 2100 + b"BDAT 6",
    b"BD" + b"\0" * 5000 + b"AT 6",
    b"BDAT " + b"6" * 2100,
]


# With spare blanks and TABs there is one way to read these, which only a strict listener does not take.
READABLE = {
    *(b"BDAT\t6", b"BDAT\t6 LAST", b"BDAT 6\tLAST", b" BDAT 6", b"\tBDAT 6 LAST", b"BDAT  6"),
}


@pytest.mark.parametrize("before", [HELLO, ENVELOPE, ENVELOPE + FIVE], ids=["ready", "rcpt", "chunks"])
@pytest.mark.parametrize(
    ("line", "strict"),
    [(line, True) for line in UNREADABLE] + [(line, False) for line in UNREADABLE if line not in READABLE],
    ids=lambda value: repr(value[:20] if isinstance(value, bytes) else value),
)
def test_a_line_that_may_be_bdat_and_cannot_be_read_ends_the_session(
    line: bytes, strict: bool, before: str
) -> None:
    text = line.decode("latin-1").encode("unicode_escape").decode("ascii")
    told = converse(
        before
        + f"C> {text}\\r\\nNOOP\\r\\nMAIL FROM:<x@y.test>\\r\\n\nS: 501 5.5.4 Syntax: BDAT size [LAST]\nX:\n",
        strict=strict,
    )
    assert told.session.transaction is None
    assert told.events[-1] == Close("where this chunk ends is not known", in_message=True)


@given(
    verb=st.sampled_from([b"BDAT", b"bdat", b"Bdat"]),
    inside=st.lists(
        st.tuples(
            st.integers(0, 5), st.sampled_from([b"\0", b"\t", b" ", b"\xff", b"\x7f", b"\xc2\xa0", b"0"])
        ),
        max_size=3,
    ),
    rest=st.binary(max_size=20).map(lambda octets: octets.replace(b"\n", b"")),
    cut=st.integers(1, 40),
)
def test_no_line_with_the_letters_of_bdat_lets_its_chunk_be_executed(
    verb: bytes, inside: list[tuple[int, bytes]], rest: bytes, cut: int
) -> None:
    for place, octets in inside:
        verb = verb[:place] + octets + verb[place:]
    line = verb + rest
    told = Conversation.begin()
    told.send(b"HELO x\r\n")
    told.said()
    data = line + b"\r\n" + b"RSET\r\n" * 3
    told.send(data[:cut])
    told.send(data[cut:])
    executed = [event.verb for event in told.events if isinstance(event, Replied) and event.verb == "RSET"]
    words = line.split()
    readable = len(words) > 1 and words[0].upper() == b"BDAT" and words[1].isdigit()
    assert readable or (told.closed and not executed)


def test_what_is_sent_behind_a_data_that_cannot_be_read_is_not_executed() -> None:
    for line in (b"DATA\t", b" DATA", b"DA\0TA", b"DATA" + b" " * 3000, b"DATA\xff"):
        told = Conversation.begin()
        told.send(b"HELO x\r\nMAIL FROM:<a@b.test>\r\nRCPT TO:<c@home.test>\r\n")
        told.said()
        told.send(line + b"\r\nRSET\r\n")
        assert told.said() == "554 5.5.0 Improper use of command pipelining\r\n"
        assert told.closed


def test_a_chunk_far_beyond_the_limit_is_not_waited_for() -> None:
    told = converse(
        ENVELOPE + "C: BDAT 99999999999999999999\nS: 552 5.3.4 Message size exceeds fixed limit\nX:\n"
    )
    assert isinstance(told.events[-1], Close)


def test_a_chunk_up_to_the_end_of_patience_is_read_and_one_octet_more_is_not() -> None:
    read = "C> BDAT 1500 LAST\\r\\n" + "x" * 1500 + "\n"
    converse(ENVELOPE + read + "S: 552 5.3.4 Message size exceeds fixed limit\n", oversize_slack=500)
    over = "C> BDAT 1501 LAST\\r\\n" + "x" * 1501 + "\n"
    converse(ENVELOPE + over + "S: 552 5.3.4 Message size exceeds fixed limit\nX:\n", oversize_slack=500)


def test_the_size_limit_holds_over_all_chunks() -> None:
    chunk = "C> BDAT 500\\r\\n" + "x" * 500 + "\nS: 250 2.0.0 500 octets received\n"
    converse(ENVELOPE + chunk + "C> BDAT 500 LAST\\r\\n" + "x" * 498 + "\\r\\n\n" + QUEUED)
    over = "C> BDAT 501\\r\\n" + "x" * 501 + "\nS: 552 5.3.4 Message size exceeds fixed limit\n"
    told = converse(ENVELOPE + chunk + over + "C> BDAT 3 LAST\\r\\nabc\nS: 503 5.5.1 Need MAIL command\n")
    assert not any(isinstance(event, MessageQuestion) for event in told.events)
    converse(
        ENVELOPE
        + chunk
        + "C> BDAT 501 LAST\\r\\n"
        + "x" * 499
        + "\\r\\n\nS: 552 5.3.4 Message size exceeds fixed limit\n"
    )


@pytest.mark.parametrize(
    "chunks",
    [
        [r"a\nb"],
        [r"a\r", r"b"],
        [r"a\r"],
        [r"a", r"\n"],
        [r"\r\n.\n"],
    ],
)
def test_bare_newlines_in_chunks_are_refused_or_normalized(chunks: list[str]) -> None:
    octets = [chunk.encode().decode("unicode_escape").encode() for chunk in chunks]
    for normalize in (False, True):
        told = Conversation.begin(normalize_newlines=normalize)
        told.send(b"HELO x\r\nMAIL FROM:<a@b.test>\r\nRCPT TO:<c@home.test>\r\n")
        told.said()
        for chunk in octets:
            told.send(b"BDAT %d\r\n%b" % (len(chunk), chunk))
        told.send(b"BDAT 0 LAST\r\n")
        if normalize:
            assert "queued as Q1" in told.said()
            assert told.message.replace(b"\r\n", b"").isascii()
            assert b"\r" not in told.message.replace(b"\r\n", b"")
        else:
            assert "550 5.6.0 Message contains a bare CR or LF" in told.said()


def test_a_crlf_may_be_parted_by_a_chunk_boundary() -> None:
    told = converse(
        ENVELOPE + "C> BDAT 2\\r\\na\\r\nS: 250 2.0.0 2 octets received\nC> BDAT 1 LAST\\r\\n\\n\n" + QUEUED
    )
    assert told.message == b"a\r\n"


def test_small_chunks_have_a_limit() -> None:
    small = "C> BDAT 0\\r\\n\nS: 250 2.0.0 0 octets received\n"
    converse(ENVELOPE + small * 3 + "C: BDAT 0 LAST\n" + QUEUED, max_small_chunks=3)
    converse(ENVELOPE + small * 3 + "C: BDAT 0\nS: 421 4.7.0 Too many small chunks\nX:\n", max_small_chunks=3)


def test_large_chunks_have_none() -> None:
    large = "C> BDAT 1024\\r\\n" + "x" * 1024 + "\nS: 250 2.0.0 1024 octets received\n"
    converse(ENVELOPE + large * 5 + "C: BDAT 0 LAST\n" + QUEUED, max_small_chunks=1, max_message_size=10_000)


def test_a_late_answer_to_the_first_chunk_keeps_its_octets_waiting() -> None:
    told = Conversation.begin(late=True)
    told.send(b"HELO x\r\nMAIL FROM:<a@b.test>\r\nRCPT TO:<c@home.test>\r\n")
    told.take(told.session.receive(b"BDAT 6 LAST\r\n" + b"QUI"))
    assert isinstance(told.session.question, DataQuestion)
    told.take(told.session.receive(b"T\r\nNOOP\r\n"))
    assert told.session.buffered == 12
    told.said()
    told.settle()
    assert told.said().endswith("queued as Q1\r\n250 2.0.0 OK\r\n")
    assert told.message == b"QUIT\r\n"


def test_chunks_after_a_finished_message_need_a_new_mail() -> None:
    told = converse(DATA + "C: .\n" + QUEUED + "C> BDAT 6\\r\\nQUIT\\r\\n\nS: 503 5.5.1 Need MAIL command\n")
    assert sum(isinstance(event, MailQuestion) for event in told.events) == 1


@given(
    st.lists(
        st.lists(st.sampled_from([b"\r", b"\n", b"\r\n", b".", b"ab"]), max_size=5).map(b"".join), max_size=8
    ),
    st.booleans(),
)
def test_how_content_is_cut_into_chunks_changes_nothing(chunks: list[bytes], normalize: bool) -> None:
    whole = ChunkDecoder(normalize=normalize)
    expected = whole.feed(b"".join(chunks)) + whole.finish()
    parts = ChunkDecoder(normalize=normalize)
    got = b"".join(parts.feed(chunk) for chunk in chunks) + parts.finish()
    assert parts.check.flaw is whole.check.flaw
    assert got == expected
    assert got == b"" or got.endswith(b"\r\n")
    left = got.replace(b"\r\n", b"")
    assert (b"\r" in left or b"\n" in left) is (parts.check.flaw is ContentError.BARE_NEWLINE)
