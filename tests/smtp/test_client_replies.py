"""Reading a server's replies: what is one, what is none, and how much of it is taken."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from elemta.smtp.client_replies import MAX_LINE, MAX_LINES, MalformedReplyError, ReplyReader
from elemta.smtp.reply import Reply


def replies(data: bytes) -> list[Reply]:
    return list(ReplyReader().feed(data))


def test_a_reply_is_code_enhanced_code_and_text() -> None:
    assert replies(b"250 2.1.0 Sender OK\r\n") == [Reply(250, "2.1.0", ("Sender OK",))]
    assert replies(b"250\r\n") == [Reply(250, "", ("",))]
    assert replies(b"250 \r\n") == [Reply(250, "", ("",))]


def test_a_reply_of_several_lines_is_one_reply() -> None:
    wire = b"550-5.1.1 No such\r\n550-5.1.1 user\r\n550 5.1.1 here\r\n"
    assert replies(wire) == [Reply(550, "5.1.1", ("No such", "user", "here"))]


def test_an_enhanced_code_of_another_class_is_only_text() -> None:
    assert replies(b"450 5.1.1 what\r\n") == [Reply(450, "", ("5.1.1 what",))]


def test_pipelined_replies_come_one_after_the_other() -> None:
    assert [reply.code for reply in replies(b"250 a\r\n550 b\r\n354 c\r\n")] == [250, 550, 354]


def test_a_lone_lf_ends_a_line_too() -> None:
    assert [reply.code for reply in replies(b"250-a\n250 b\n")] == [250]


def test_what_is_not_printable_never_gets_into_the_text() -> None:
    assert replies(b"250 a\x1b[31m\x00\rb\xff\r\n")[0].text == "a?[31m??b\ufffd"


@pytest.mark.parametrize(
    "wire",
    [
        b"999 x\r\n",
        b"199 x\r\n",
        b"260 x\r\n",
        b"25 x\r\n",
        b"2500 x\r\n",
        b"hello\r\n",
        b"\r\n",
        b"250_x\r\n",
        b" 250 x\r\n",
        b"250-a\r\n251 b\r\n",
        b"250-a\r\nx\r\n",
        b"HTTP/1.1 400 Bad Request\r\n",
        b"\x16\x03\x01\n",
        b"\xef\xbc\x92\xef\xbc\x95\xef\xbc\x90 x\r\n",
    ],
)
def test_what_is_no_reply_is_refused(wire: bytes) -> None:
    with pytest.raises(MalformedReplyError):
        replies(wire)


def test_a_line_at_the_limit_is_taken_and_one_octet_more_is_not() -> None:
    longest = b"250 " + b"x" * (MAX_LINE - 6) + b"\r\n"
    assert len(longest) == MAX_LINE
    assert len(replies(longest)) == 1
    with pytest.raises(MalformedReplyError, match="octets"):
        replies(b"250 x" + longest[4:])


def test_a_line_without_end_is_given_up_at_the_limit() -> None:
    reader = ReplyReader()
    for _ in range(MAX_LINE // 100):
        assert list(reader.feed(b"2" * 100)) == []
    with pytest.raises(MalformedReplyError, match="octets"):
        list(reader.feed(b"2" * 100))
    assert len(reader._buffer) <= MAX_LINE + 100


def test_lines_at_the_limit_are_taken_and_one_more_is_not() -> None:
    assert len(replies(b"250-x\r\n" * (MAX_LINES - 1) + b"250 x\r\n")) == 1
    with pytest.raises(MalformedReplyError, match="lines"):
        replies(b"250-x\r\n" * MAX_LINES + b"250 x\r\n")


def test_many_long_lines_are_given_up_too() -> None:
    with pytest.raises(MalformedReplyError, match="octets"):
        replies((b"250-" + b"x" * 1000 + b"\r\n") * 70)


@given(st.binary(max_size=200), st.integers(1, 7))
def test_byte_by_byte_and_whole_read_the_same(noise: bytes, step: int) -> None:
    wire = b"250-2.0.0 a\r\n250 2.0.0 b\r\n" + noise

    def read(chunks: list[bytes]) -> tuple[list[Reply], bool]:
        reader, got = ReplyReader(), []
        try:
            for chunk in chunks:
                got.extend(reply for reply in reader.feed(chunk))
        except MalformedReplyError:
            return got[:1], True
        return got[:1], False

    whole = read([wire])
    assert read([wire[i : i + step] for i in range(0, len(wire), step)])[1] == whole[1]
