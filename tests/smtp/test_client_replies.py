"""Reading a server's replies: what is one, what is none, and how much of it is taken."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from elemta.smtp.client_replies import MAX_LINE, MAX_LINES, MAX_REPLY, MalformedReplyError, ReplyReader
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
    ("wire", "reply"),
    [
        # Codes that no RFC names: the first digit says what they mean.
        (b"571 5.7.1 no\r\n", Reply(571, "5.7.1", ("no",))),
        (b"591 no\r\n", Reply(591, "", ("no",))),
        (b"260 yes\r\n", Reply(260, "", ("yes",))),
        (b"499\r\n", Reply(499, "", ("",))),
        # Several codes: the last line's.
        (b"550-5.7.1 no\r\n554 5.7.1 no\r\n", Reply(554, "5.7.1", ("no", "no"))),
        (b"250-a\r\n251 b\r\n", Reply(251, "", ("a", "b"))),
        (b"450-4.7.1 a\r\n550 b\r\n", Reply(550, "", ("4.7.1 a", "b"))),
        # Something else than a blank behind the code.
        (b"550\t5.1.1\r\n", Reply(550, "5.1.1", ("",))),
        (b"550: 5.1.1 no\r\n", Reply(550, "5.1.1", ("no",))),
        (b"250_x\r\n", Reply(250, "", ("x",))),
        (b"550-no\r\n550\r\n", Reply(550, "", ("no", ""))),
        (b"550-\r\n550\tno\r\n", Reply(550, "", ("", "no"))),
        # Lines without a code.
        (b"\r\n\n550 no\r\n", Reply(550, "", ("no",))),
        (b"550-no\r\nsee example.org\r\n550 x\r\n", Reply(550, "", ("no", "see example.org", "x"))),
        (b"550-no\r\n\r\n550 x\r\n", Reply(550, "", ("no", "", "x"))),
        (b"550-from\r\n200.1.2.3\r\n550 x\r\n", Reply(550, "", ("from", "200.1.2.3", "x"))),
    ],
)
def test_what_is_odd_and_has_one_meaning_is_read_as_that(wire: bytes, reply: Reply) -> None:
    assert replies(wire + b"250 next\r\n") == [reply, Reply(250, "", ("next",))]
    assert replies(wire.replace(b"\r\n", b"\n")) == [reply]


@pytest.mark.parametrize(
    "wire",
    [
        b"999 x\r\n",
        b"199 x\r\n",
        b"25 x\r\n",
        b"2500 x\r\n",
        b"250x\r\n",
        b"hello\r\n",
        b" 250 x\r\n",
        b"250-a\r\n550 b\r\n",
        b"550-a\r\n250 b\r\n",
        b"354-a\r\n250 b\r\n",
        b"HTTP/1.1 400 Bad Request\r\n",
        b"\x16\x03\x01\n",
        b"250\x00x\r\n",
        b"\xef\xbc\x92\xef\xbc\x95\xef\xbc\x90 x\r\n",
    ],
)
def test_what_is_no_reply_or_says_yes_and_no_is_refused(wire: bytes) -> None:
    with pytest.raises(MalformedReplyError):
        replies(wire)


@pytest.mark.parametrize("more", [0, 1, 3000, MAX_REPLY - MAX_LINE])
def test_what_is_beyond_the_limit_of_a_line_is_left_out(more: int) -> None:
    line = b"250 " + b"x" * (MAX_LINE - 6 + more) + b"\r\n"
    (reply,) = replies(line)
    assert (reply.code, len(reply.text)) == (250, MAX_LINE - 6 + min(more, 2))


def test_a_line_without_end_is_given_up_at_the_limit_of_a_reply_and_takes_the_memory_of_a_line() -> None:
    reader = ReplyReader()
    for _ in range(MAX_REPLY // 100):
        assert list(reader.feed(b"2" * 100)) == []
        assert len(reader._buffer) <= MAX_LINE
    with pytest.raises(MalformedReplyError, match="octets"):
        list(reader.feed(b"2" * 2 * MAX_LINE))


def test_empty_lines_without_end_are_given_up_too() -> None:
    with pytest.raises(MalformedReplyError, match="octets"):
        replies(b"\n" * (MAX_REPLY + 1))


def test_lines_at_the_limit_are_taken_and_one_more_is_not() -> None:
    assert len(replies(b"250-x\r\n" * (MAX_LINES - 1) + b"250 x\r\n")) == 1
    with pytest.raises(MalformedReplyError, match="lines"):
        replies(b"250-x\r\n" * MAX_LINES + b"250 x\r\n")


def test_many_long_lines_are_given_up_too() -> None:
    with pytest.raises(MalformedReplyError, match="octets"):
        replies((b"250-" + b"x" * 1000 + b"\r\n") * 70)


_PIECES = st.lists(
    st.sampled_from(
        [b"250-a", b"250 b", b"550-c", b"554 d", b"571", b"\r\n", b"\r\n", b"\n", b"", b"text", b"x" * 2100]
    ),
    max_size=12,
).map(b"".join)


@given(st.binary(max_size=200) | _PIECES, st.integers(1, 7))
def test_byte_by_byte_and_whole_read_the_same(noise: bytes, step: int) -> None:
    wire = b"250-2.0.0 a\r\n250 2.0.0 b\r\n" + noise

    def read(chunks: list[bytes]) -> tuple[list[Reply], bool]:
        reader, got = ReplyReader(), []
        try:
            for chunk in chunks:
                got.extend(reply for reply in reader.feed(chunk))
        except MalformedReplyError:
            return got, True
        return got, False

    whole = read([wire])
    assert len(whole[0]) >= 1
    assert read([wire[i : i + step] for i in range(0, len(wire), step)]) == whole


_WORDS = st.sampled_from(
    ("250", "354", "450", " ", "  ", "-", "2.1.0", "4.1.", "3.0.0", "5.1.1234", "ok", ".")
)


@given(st.sampled_from("2345"), st.lists(_WORDS, max_size=5).map("".join), st.sampled_from(("\r\n", "\n")))
def test_a_plain_reply_means_what_any_line_means(digit: str, text: str, end: str) -> None:
    line = f"{digit}50 {text}".encode()
    reader = ReplyReader()
    (reply,) = reader.feed(line + end.encode())
    assert reader._line(line) == reply
    # Behind a reply of several lines nothing is plain.
    assert replies(b"250-a\r\n250 b\r\n" + line + end.encode())[-1] == reply
