"""What names a message for people, out of headers that a hostile client may have written."""

from __future__ import annotations

import base64

import pytest
from hypothesis import given
from hypothesis import strategies as st

from elemta.message.summary import (
    LONGEST_MESSAGE_ID,
    LONGEST_SUBJECT,
    read_summary,
    subject_text,
)


def summary_of(head: bytes, block: bytes = b"") -> tuple[str, str]:
    found = read_summary(head, block)
    return found.message_id, subject_text(found.subject)


def encoded(charset: str, octets: bytes) -> bytes:
    return b"=?" + charset.encode() + b"?B?" + base64.b64encode(octets) + b"?="


@pytest.mark.parametrize(
    ("head", "expected"),
    [
        (b"Message-ID: <a@b>\r\nSubject: Hello\r\n\r\nbody", ("<a@b>", "Hello")),
        (b"MESSAGE-id \t: <a@b>\r\nsUBJECT:Hello\r\n\r\n", ("<a@b>", "Hello")),
        (b"Message-ID:\r\n <a@b>\r\nSubject: a\r\n\tb\r\n  c\r\n\r\n", ("<a@b>", "a b c")),
        (b"Message-ID: (made) <a@b> (here)\r\n\r\n", ("<a@b>", "")),
        (b"Message-ID: without-brackets\r\n\r\n", ("without-brackets", "")),
        (b"Subject: last line", ("", "last line")),
        # Of two the first counts, and what only looks like one does not.
        (b"Subject: one\r\nSubject: two\r\n\r\n", ("", "one")),
        (b"Subject-Line: no\r\nX-Subject: no\r\nSubject: yes\r\n\r\n", ("", "yes")),
        (b"X: a\r\n Subject: folded\r\nSubject: yes\r\n\r\n", ("", "yes")),
        # What stands in the body is none.
        (b"X: a\r\n\r\nMessage-ID: <a@b>\r\nSubject: no\r\n", ("", "")),
        (b"\r\nSubject: no\r\n", ("", "")),
        (b"", ("", "")),
        (b"Subject:\r\nMessage-ID:\r\n\r\n", ("", "")),
        (b"Subject: =?utf-8?Q?caf=C3=A9?= =?utf-8?Q?_noir?=\r\n\r\n", ("", "café noir")),
        (b"Subject: " + encoded("utf-8", b"a\r\nDATA\x00b") + b"\r\n\r\n", ("", "a DATA\x00b")),
        (b"Subject: =?no-such?B?YQ==?=\r\n\r\n", ("", "=?no-such?B?YQ==?=")),
        (b"Subject: caf\xc3\xa9 \xff\r\n\r\n", ("", "café \ufffd")),
    ],
)  # fmt: skip
def test_a_header_has_a_summary(head: bytes, expected: tuple[str, str]) -> None:
    assert summary_of(head) == expected


def test_fields_that_elemta_put_in_front_count_where_the_message_has_none() -> None:
    block = b"Received: from x\r\nMessage-ID: <ours@here>\r\n"
    assert summary_of(b"Subject: a\r\n\r\n", block) == ("<ours@here>", "a")
    assert summary_of(b"Message-ID: <its@own>\r\n\r\n", block) == ("<its@own>", "")


def test_what_is_long_is_cut() -> None:
    subject = b"Subject: " + b"\xc3\xa9" * 50_000 + b"\r\n"
    message_id = b"Message-ID: <" + b"a" * 50_000 + b">\r\n"
    found = read_summary(subject + message_id + b"\r\n")
    assert len(found.subject) <= 2000
    assert len(subject_text(found.subject)) == LONGEST_SUBJECT
    assert len(found.message_id) == LONGEST_MESSAGE_ID


@given(st.binary(max_size=400), st.binary(max_size=100))
def test_no_header_raises(head: bytes, block: bytes) -> None:
    for text in summary_of(b"Subject: " + head, block):
        assert text == " ".join(text.split())
        text.encode()


@given(
    st.sampled_from(["utf-7", "utf-8", "utf-16", "iso-2022-jp", "idna", "punycode", "unicode_escape"]),
    st.binary(),
)
def test_no_encoded_word_raises(charset: str, octets: bytes) -> None:
    _, subject = summary_of(b"Subject: " + encoded(charset, octets) + b"\r\n\r\n")
    assert len(subject) <= LONGEST_SUBJECT
    subject.encode()
