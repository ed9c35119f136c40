"""Fields as they are written: the octets that were given, whatever a signature made of them."""

from __future__ import annotations

import re
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from elemta.message.header_edits import field_octets, split_header, value_of

DKIM = (
    "v=1; a=rsa-sha256; c=simple/simple; d=example.org; s=k;\r\n\tt=1700000000; bh=AAAA;"
    "\r\n\th=From:To;\r\n\tb=abc"
)


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("v", b"X: v\r\n"),
        ("", b"X:\r\n"),
        (" v", b"X: v\r\n"),
        ("\tv", b"X:\tv\r\n"),
        ("  two  blanks  ", b"X:  two  blanks  \r\n"),
        ("x" * 200, b"X: " + b"x" * 200 + b"\r\n"),
        ("a\r\n\tb", b"X: a\r\n\tb\r\n"),
        ("a\n b", b"X: a\r\n b\r\n"),
        ("\r\n\ta", b"X:\r\n\ta\r\n"),
        (DKIM, b"X: " + DKIM.encode() + b"\r\n"),
        ("mx.test; spf=pass smtp.mailfrom=\u00f6@x.test", None),
    ],
)
def test_a_value_is_written_as_it_is_given(value: str, expected: bytes | None) -> None:
    written = field_octets("X", value)
    if expected is None:
        assert written.startswith(b"X: mx.test; spf=pass =?utf-8?b?")
        assert field_octets("X", value, utf8=True) == f"X: {value}\r\n".encode()
    else:
        assert written == expected


@pytest.mark.parametrize(
    "value", ["y" * 990 + " " * 40, "y " * 600, "y" + "\t" * 5000, " " * 2000, "a\r\n b" + " " * 2000]
)
def test_a_fold_leaves_no_line_of_blanks_alone(value: str) -> None:
    # To some readers such a line is the end of the header.
    lines = field_octets("X", value).removesuffix(b"\r\n").split(b"\r\n")
    assert all(line.strip() and len(line) <= 998 for line in lines)


def test_a_line_over_998_octets_is_folded_at_a_blank_and_no_other_is() -> None:
    value = " ".join(["word"] * 400)
    lines = field_octets("X", value).split(b"\r\n")
    assert all(len(line) <= 998 for line in lines)
    assert len(lines) == 4
    assert b"".join(lines) == b"X: " + value.encode()
    with pytest.raises(ValueError, match="too long"):
        field_octets("X", "x" * 1000)


@pytest.mark.parametrize(
    "value",
    [
        "a\r\nB: c",
        "a\nb",
        "a\rb",
        "a\x00",
        "a\x07",
        "a\r\n",
        "a\r\n\r\n b",
        "a\r\n \r\n b",
        "a\n \nb",
        "\x7f",
    ],
)
def test_no_value_makes_another_field_or_the_end_of_the_header(value: str) -> None:
    with pytest.raises(ValueError, match="control character"):
        field_octets("X", value)


@pytest.mark.parametrize("name", ["", "a b", "a:", "\u00fc", "x" * 77, "a\r\n", None])
def test_what_is_no_name_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match="not a header field name"):
        field_octets(name, "v")


@given(st.text(max_size=3000))
def test_what_is_written_is_one_field_or_none(value: str) -> None:
    try:
        written = field_octets("X", value)
    except (ValueError, UnicodeError):
        return
    assert written.endswith(b"\r\n")
    assert split_header(written) == [written]
    assert b"\r\n\r\n" not in written
    assert all(len(line) <= 998 for line in written.split(b"\r\n"))


def test_a_header_is_split_without_losing_an_octet() -> None:
    header = b"A: 1\r\n\tfold\r\nno field\r\nB : 2\r\n\r\n"
    assert b"".join(split_header(header)) == header
    assert value_of(b"A: 1\r\n\tfold\r\n") == "1\tfold"


def line_by_line(header: bytes) -> list[bytes]:
    """What :func:`split_header` says, in the slow way."""
    fields: list[bytes] = []
    for line in re.findall(rb"[^\n]*\n|[^\n]+\Z", header):
        if fields and not re.match(rb"[!-9;-~]+[ \t]*:", line):
            fields[-1] += line
        else:
            fields.append(line)
    return fields


@given(
    st.lists(
        st.sampled_from(
            [b"A: 1", b" fold", b"\tfold", b"no field", b"", b"b :x", b"c\t: ", b": none", b"d:\r"]
        )
    )
)
def test_a_header_is_split_as_line_by_line(lines):
    header = b"".join(line + b"\r\n" for line in lines)
    assert split_header(header) == line_by_line(header)


def test_a_field_of_very_many_lines_is_read_soon():
    # Put together line by line it took minutes.
    header = b"X: y\r\n" + b" z\r\n" * 200_000
    began = time.monotonic()
    assert split_header(header) == [header]
    assert time.monotonic() - began < 10
