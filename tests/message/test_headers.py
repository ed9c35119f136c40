"""The header reader: bounded and tolerant."""

from __future__ import annotations

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from elemta.message.headers import MAX_FIELD, MAX_FIELDS, MAX_HEADER, read_headers


def test_fields_are_found_in_any_case_and_in_order() -> None:
    headers = read_headers(b"Received: one\r\nSubject: hello\r\nRECEIVED: two\r\n\r\nReceived: body\r\n")
    assert headers.get("subject") == "hello"
    assert headers.get_all("received") == ["one", "two"]
    assert headers.count("Received") == 2
    assert headers.get("absent") is None
    assert [name for name, _ in headers.items()] == ["Received", "Subject", "RECEIVED"]
    assert headers.complete


def test_a_folded_field_is_unfolded_and_keeps_its_white_space() -> None:
    assert read_headers(b"Subject: a\r\n  b\r\n\tc\r\n\r\n").get("Subject") == "a  b\tc"


@pytest.mark.parametrize("end", [b"\r\n", b"\n"])
def test_both_line_ends_are_understood(end: bytes) -> None:
    headers = read_headers(end.join([b"A: 1", b"B: 2", b"", b"C: 3"]))
    assert headers.items() == (("A", "1"), ("B", "2"))


def test_a_line_that_is_no_field_is_passed_over() -> None:
    headers = read_headers(b"From someone Mon Jan 1\r\nno colon here\r\nB\xff: 1\r\n: x\r\nC : 2\r\n\r\n")
    assert headers.items() == (("C", "2"),)


def test_a_continuation_of_nothing_is_passed_over() -> None:
    assert read_headers(b" lost\r\nA: 1\r\n\r\n").items() == (("A", "1"),)


def test_octets_that_are_not_utf8_do_not_hurt() -> None:
    assert read_headers(b"Subject: \xff\xfe caf\xc3\xa9\r\n\r\n").get("Subject") == "\ufffd\ufffd café"


def test_a_header_without_an_end_says_that_it_is_not_complete() -> None:
    headers = read_headers(b"A: 1\r\nB: 2")
    assert headers.items() == (("A", "1"), ("B", "2"))
    assert not headers.complete


def test_a_message_that_starts_with_an_empty_line_has_no_header() -> None:
    assert read_headers(b"\r\nA: 1\r\n\r\n").items() == ()


def test_fields_at_the_limit_are_read_and_one_more_is_not() -> None:
    assert len(read_headers(b"R: x\r\n" * MAX_FIELDS + b"\r\n").items()) == MAX_FIELDS
    over = read_headers(b"R: x\r\n" * (MAX_FIELDS + 1) + b"\r\n")
    assert len(over.items()) == MAX_FIELDS
    assert not over.complete


def test_an_endless_field_and_an_endless_header_cost_no_more_than_the_limits() -> None:
    started = time.perf_counter()
    headers = read_headers(b"A: " + b"x" * 10_000_000)
    assert len(headers.get("A") or "") <= MAX_FIELD
    folded = read_headers(b"A: 1\r\n" + b" y\r\n" * 5_000_000)
    assert len(folded.get("A") or "") <= MAX_HEADER
    assert time.perf_counter() - started < 1.0


def test_nesting_that_breaks_parsers_is_only_text() -> None:
    value = b"(" * 5000 + b";" * 5000
    assert read_headers(b"To: " + value + b"\r\n\r\n").get("To") == value.decode()


@given(st.binary(max_size=400))
def test_no_bytes_at_all_raise(data: bytes) -> None:
    for name, value in read_headers(data).items():
        assert name
        assert "\n" not in value
